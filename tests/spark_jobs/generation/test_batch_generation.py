"""Batch files: after any crash, each text is submitted and paid for once and is stored in the ledger."""

import json
import multiprocessing
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from grasp import tables
from grasp.versions import Versions
from spark_jobs.generation import batch_files
from spark_jobs.generation.batch_files import pending_batches
from spark_jobs.generation.batch_generation import BatchError, BatchGeneration
from spark_jobs.generation.budget import Caps
from spark_jobs.generation.ledger import Ledger
from spark_jobs.generation.live_generation import FIRST_REQUESTS, Validator
from spark_jobs.generation.prompts import ITEM, item_input, prompt_messages
from spark_jobs.models.account import Prices, Usage

DAY, NEXT = "1998-03-01", "1998-03-02"
TITLES = ["Heat", "Alien", "Fargo", "Jaws"]
AMPLE = Caps(99)
KEY = "sk-very-secret"
GOOD = "Heat is a film for viewers who enjoy the drama, and it goes well with other dramas."


@dataclass
class Place:
    """The parts of a lake that a ledger needs, without Spark."""

    root: Path
    versions: Versions


class FileLedger(Ledger):
    """Its rows read without Spark."""

    def read(self, day=DAY):
        files = sorted((self.folder / f"day={day}").glob("*.parquet"))
        return [row for file in files for row in pq.read_table(file, partitioning=None).to_pylist()]

    def usage(self, day, prompt_version, model_revision):
        rows = [row for row in self.read(day) if row["prompt_version"] == prompt_version]
        tokens = sum(row["num_input_tokens"] + row["num_output_tokens"] for row in rows)
        keys = {row["generation_key"] for row in rows if row["error"] is None}
        return Usage(len(keys), len(rows), tokens, sum(row["cost"] for row in rows))


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch):
    """The test server is fast, so it is polled often."""
    monkeypatch.setattr("spark_jobs.generation.batch_generation.MIN_POLL_SECONDS", 0.02)


@pytest.fixture
def batches_with(settings_with, model_server):
    """`batches_with(prompt="item-2", caps=Caps(9), llm_batch_patience_hours=0)`: the batches of one ledger."""

    def batches(prompt="item-1", caps=AMPLE, max_requests=50_000, **changed):
        at = {"llm_url": model_server.url, "llm_model": "test-model", "llm_max_attempts": 1}
        settings = settings_with(**at | {"llm_batch_files": True, "llm_batch_patience_hours": 0.5} | changed)
        validator = Validator(ITEM, prompt, "model-1", Prices.of(settings), frozenset())
        ledger = FileLedger(Place(settings.lake, Versions(settings)), tables.ITEM_GENERATION)
        return BatchGeneration(ledger, (prompt, "model-1"), lambda: validator, caps, settings, max_requests)

    return batches


def facts(title):
    return item_input({"title": title, "attributes": {"genres": "Drama"}}, ())


def key(title):
    """The server's key of a prompt."""
    return prompt_messages(ITEM, facts(title))[-1]["content"]


def lay(batches, titles=TITLES, day=DAY, left=AMPLE):
    requests = [
        {"generation_key": title, "entity_id": title, "canonical": json.dumps(facts(title))} for title in titles
    ]
    batches.prepare(day, requests, left)


def known(batches):
    """The same, after the model has answered."""
    lay(batches, ["Known"], day="1998-01-01")
    batches.wait()
    return batches


def outcomes(batches, day=DAY):
    """The ledger's answers for each title, in order."""
    found = {}
    for row in batches.ledger.read(day):
        found.setdefault(row["item_id"], []).append(row["error"] or row["refusal_reason"] or "accepted")
    return found


def accepted(*titles):
    return {title: ["accepted"] for title in titles}


def test_every_text_is_a_ledger_row_and_the_batch_folder_is_removed(batches_with, model_server):
    batches = batches_with(llm_input_price=2.0, llm_output_price=10.0)
    lay(batches)
    batches.wait()

    assert outcomes(batches) == accepted(*TITLES)
    rows = batches.ledger.read()
    assert {(row["num_attempts"], row["num_input_tokens"], row["cost"]) for row in rows} == {(1, 100, 0.0004)}
    assert all(row["description"].startswith(f"{row['item_id']} is a film") for row in rows)
    assert pending_batches(batches.folder) == []
    assert model_server.seen()["num_batches"] == 1


def test_after_the_patience_ends_a_later_run_reads_the_batch(batches_with, model_server, capsys):
    batches = batches_with(llm_batch_patience_hours=0)
    lay(batches)
    batches.wait()
    assert "1 batch (batch-0) with 4 texts: not finished yet, a later run reads them" in capsys.readouterr().out
    assert outcomes(batches) == {}
    assert batches.reserved(DAY).num_keys == 4

    batches_with().wait()

    assert outcomes(batches) == accepted(*TITLES)
    assert batches.reserved(DAY) == Usage()
    assert model_server.seen()["num_batches"] == 1


FILMS = [f"Film {number}" for number in range(20)]


def test_an_unknown_model_is_first_asked_a_few_texts(batches_with, model_server):
    batches = batches_with()
    assert not batches.is_model_known()
    lay(batches, FILMS)
    lay(batches, FILMS[FIRST_REQUESTS:])  # the few are not answered yet
    batches.wait()
    assert list(outcomes(batches)) == FILMS[:FIRST_REQUESTS]

    assert batches.is_model_known()
    assert not batches_with(prompt="item-2").is_model_known()
    lay(batches, FILMS[FIRST_REQUESTS:])
    batches.wait()
    assert outcomes(batches) == accepted(*FILMS)
    assert model_server.seen()["num_batches"] == 2


def test_an_alias_costs_a_few_texts_which_are_in_the_ledger(batches_with, model_server):
    model_server.script(default={"kind": "wrong_model", "repeat": True})
    batches = batches_with()
    for number in (1, 2):
        lay(batches, FILMS)
        with pytest.raises(
            BatchError, match=r"none of its 5 requests was answered: 5 wrong_model \(asked for test-model, answered by"
        ):
            batches.wait()
        rows = batches.ledger.read()
        assert [row["error"] for row in rows] == ["wrong_model"] * FIRST_REQUESTS * number
        assert {row["num_input_tokens"] for row in rows} == {100}


def test_a_model_that_was_replaced_is_asked_a_few_texts_again(batches_with, model_server):
    batches = known(batches_with())
    lay(batches, FILMS)
    model_server.script(default={"kind": "wrong_model", "repeat": True})
    with pytest.raises(BatchError, match="20 wrong_model"):
        batches.wait()

    assert not batches.is_model_known()
    lay(batches, FILMS)
    assert batches.reserved(DAY).num_keys == FIRST_REQUESTS


def test_an_answer_that_is_also_in_the_error_file_is_an_answer(batches_with, model_server):
    model_server.script(repeat_as_errors=True)
    batches = batches_with()
    lay(batches)
    batches.wait()

    assert outcomes(batches) == accepted(*TITLES)


def test_a_run_killed_between_upload_and_batch_is_continued(batches_with, model_server, monkeypatch):
    monkeypatch.setattr(batch_files, "LISTED_AFTER_SECONDS", 0.5)
    lay(batches_with())
    model_server.script(hold_batches=True)
    run = multiprocessing.get_context("fork").Process(target=batches_with().wait)
    run.start()
    give_up_at = time.monotonic() + 300
    while "file-0" not in {batch.file_id for batch in pending_batches(batches_with().folder)}:
        assert time.monotonic() < give_up_at
        time.sleep(0.05)
    run.kill()
    run.join()
    model_server.script(hold_batches=False)

    batches = batches_with()
    batches.wait()

    assert outcomes(batches) == accepted(*TITLES)
    seen = model_server.seen()
    assert (seen["num_files"], seen["num_batches"]) == (1, 1)


def test_a_batch_whose_id_was_not_saved_is_found_again(batches_with, model_server):
    batches = batches_with()
    lay(batches)
    model_server.script(lose_batch=True)
    batches.wait()

    assert outcomes(batches) == accepted(*TITLES)
    assert model_server.seen()["num_batches"] == 1


@pytest.mark.parametrize("other", [{}, {"prompt": "item-2"}, {"llm_batch_files": False}])
def test_a_batch_whose_id_was_lost_is_not_submitted_again_while_the_vendor_may_list_it_late(
    batches_with, model_server, other
):
    batches = batches_with(llm_batch_patience_hours=0)
    lay(batches)
    model_server.script(lose_batch=True, late_lists=2)
    batches.wait()
    again = batches_with(**{"llm_batch_patience_hours": 0} | other)  # this run, the next one, one that wants others
    again.wait()
    assert len(pending_batches(again.folder)) == 1, "its texts are not asked for elsewhere"

    batches_with().wait()

    assert outcomes(batches) == accepted(*TITLES)
    assert model_server.seen()["num_batches"] == 1


def test_a_batch_that_the_vendor_refused_to_create_is_submitted_by_the_next_run(batches_with, model_server):
    batches = batches_with()
    lay(batches)
    model_server.script(refuse_batch=True)
    with pytest.raises(BatchError, match="could not be submitted: rejected"):
        batches.wait()

    batches_with(llm_batch_patience_hours=0).wait()

    seen = model_server.seen()
    assert (seen["num_files"], seen["num_batches"]) == (1, 1)


def test_a_run_killed_before_the_folder_is_removed_adds_its_rows_once(batches_with):
    batches = batches_with()
    lay(batches)
    [batch] = pending_batches(batches.folder)
    shutil.copytree(batch.folder, before := batches.folder.parent / "before")
    batches.wait()
    before.rename(batch.folder)
    (batches.folder / ".half-made").mkdir()

    batches.wait()

    assert outcomes(batches) == accepted(*TITLES)
    assert list(batches.folder.iterdir()) == []


def test_answers_of_an_expired_batch_are_kept_and_the_rest_is_unanswered(batches_with, model_server):
    model_server.script(batch_end="expired")
    batches = batches_with()
    lay(batches)
    batches.wait()

    assert outcomes(batches) == accepted("Heat", "Alien") | {"Fargo": ["timeout"], "Jaws": ["timeout"]}
    assert pending_batches(batches.folder) == []


def test_all_requests_of_a_failed_batch_are_unanswered(batches_with, model_server, capsys):
    batches = known(batches_with())
    model_server.script(batch_end="failed")
    lay(batches)
    batches.wait()

    assert outcomes(batches) == {title: ["rejected"] for title in TITLES}
    said = capsys.readouterr().out
    assert "failed (invalid_json_line), 0 of" in said
    assert "very-secret" not in said


def test_failed_requests_have_error_codes(batches_with, model_server):
    model_server.script(
        prompts={
            key("Alien"): [{"kind": "status", "status": 400}],
            key("Fargo"): [{"kind": "status", "status": 500}],
            key("Jaws"): [{"kind": "wrong_model"}],
        }
    )
    batches = batches_with()
    lay(batches)
    batches.wait()

    found = {"Alien": ["rejected_prompt"], "Fargo": ["server_error"], "Jaws": ["wrong_model"]}
    assert outcomes(batches) == accepted("Heat") | found
    assert [row["num_input_tokens"] for row in batches.ledger.read() if row["item_id"] == "Jaws"] == [100]  # billed


def test_refused_texts_are_repaired_by_another_batch(batches_with, model_server):
    model_server.script(
        prompts={
            key("Heat"): [{"kind": "answer", "text": "Too short."}],
            key("Jaws"): [{"kind": "refusal"}],
        },
        default={"kind": "answer", "text": GOOD},
    )
    batches = batches_with()
    lay(batches, ["Heat", "Jaws"])
    batches.wait()

    assert outcomes(batches) == {"Heat": ["too_short", "accepted"], "Jaws": ["refusal"]}
    assert [row["is_repair"] for row in batches.ledger.read()] == [False, False, True]
    assert model_server.seen()["num_batches"] == 2


@pytest.mark.parametrize(("caps", "repaired"), [(Caps(9, num_calls=2), False), (Caps(9, num_calls=3), True)])
def test_repairs_stay_within_the_caps(batches_with, model_server, caps, repaired):
    model_server.script(prompts={key("Heat"): [{"kind": "answer", "text": "Too short."}]})
    batches = batches_with(caps=caps)
    lay(batches, ["Heat", "Jaws"])
    batches.wait()

    assert len(outcomes(batches)["Heat"]) == (2 if repaired else 1)


@pytest.mark.parametrize("left", [Caps(3), Caps(99, num_calls=3), Caps(99, num_tokens=2500), Caps(99, cost=2.5)])
def test_no_more_is_submitted_than_the_caps_allow(batches_with, model_server, left):
    batches = known(batches_with(llm_input_price=1000.0, llm_output_price=1000.0))
    lay(batches, [f"Film {number}" for number in range(20)], left=left)

    most = batches.reserved(DAY)
    assert left.allow(most)
    assert 0 < most.num_keys < 20
    batches.wait()
    assert left.allow(batches.ledger.usage(DAY, *batches.versions))


def test_what_the_server_counted_lets_more_requests_into_a_cap(batches_with, model_server):
    model_server.script(default={"kind": "answer", "usage": [450, 40]})
    cap = 60 * (450 + 40)
    unknown, films = batches_with(), [f"Film {number}" for number in range(99)]
    batches = known(unknown)
    lay(batches, films, left=Caps(99, num_tokens=cap))

    assert 52 <= batches.reserved(DAY).num_keys <= 60


def test_many_requests_are_split_into_several_batches(batches_with, model_server):
    batches = known(batches_with(max_requests=3))
    lay(batches)
    batches.wait()

    assert outcomes(batches) == accepted(*TITLES)
    assert model_server.seen()["num_batches"] == 1 + 2


def test_a_batch_belongs_to_the_day_that_submitted_it(batches_with):
    batches = known(batches_with())
    lay(batches, ["Heat"])
    lay(batches, ["Jaws"], day=NEXT)
    assert (batches.reserved(DAY).num_keys, batches.reserved(NEXT).num_keys) == (1, 1)

    batches.wait()

    assert outcomes(batches) == accepted("Heat")
    assert outcomes(batches, NEXT) == accepted("Jaws")


def test_a_transient_error_while_reading_a_batch_is_ignored(batches_with, model_server):
    batches = batches_with()
    lay(batches)
    model_server.script(failing_looks=1)
    batches.wait()

    assert outcomes(batches) == accepted(*TITLES)


def test_a_batch_missing_at_the_server_is_named_with_its_folder(batches_with, model_server):
    batches = batches_with(llm_batch_patience_hours=0)
    lay(batches)
    batches.wait()
    model_server.call("/forget", {})

    with pytest.raises(BatchError, match=r"batch-0 could not be read: rejected \(status 404\); .* remove .*-first"):
        batches.wait()


def test_batches_of_another_prompt_are_read_but_not_waited_for(batches_with, model_server):
    earlier = batches_with(llm_batch_patience_hours=0)
    lay(earlier, ["Heat"])
    earlier.wait()
    model_server.script(batch_end="in_progress")
    later = batches_with(prompt="item-2")

    later.wait()
    assert outcomes(later) == {}
    assert later.reserved(DAY) == Usage()
    model_server.script(batch_end="completed")
    later.wait()

    assert [(row["item_id"], row["prompt_version"]) for row in later.ledger.read()] == [("Heat", "item-1")]


def test_a_prepared_batch_of_another_prompt_is_not_submitted(batches_with, model_server):
    lay(batches_with())
    batches_with(prompt="item-2").wait()

    assert pending_batches(batches_with().folder) == []
    assert model_server.seen()["num_files"] == 0


def test_keys_in_a_batch_at_another_server_are_not_requested_again(batches_with, model_server):
    batches = batches_with(llm_batch_patience_hours=0)
    lay(batches)
    batches.wait()

    with pytest.raises(BatchError, match=r"another server than GRASP_LLM_URL: set it back .* remove .*_batches"):
        batches_with(llm_url="http://127.0.0.1:9/v1").wait()

    batches_with(llm_batch_files=False).wait()  # the setting is about what is submitted
    assert outcomes(batches) == accepted(*TITLES)


def test_an_unreachable_server_is_reported_without_the_key(batches_with, monkeypatch, capsys):
    monkeypatch.setenv("GRASP_LLM_API_KEY", KEY)
    batches = batches_with(llm_url="http://127.0.0.1:9/v1", llm_batch_patience_hours=0)
    lay(batches)
    batches.wait()
    said = capsys.readouterr().out
    assert "could not be submitted: connection" in said
    assert KEY not in said
    [batch] = pending_batches(batches.folder)
    assert (batch.file_id, batch.batch_id) == ("", "")
