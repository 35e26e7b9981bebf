"""The ledger finds every paid generation again."""

import itertools
from datetime import UTC, datetime, timedelta

import pytest

from grasp import partitions, tables
from spark_jobs.commands.dead_letters import PARKED, QUEUED, REFUSED, find_dead_letters
from spark_jobs.generation.ledger import Ledger
from spark_jobs.generation.replays import request_replay
from spark_jobs.models.account import Usage
from spark_jobs.storage import append_only
from spark_jobs.storage.shards import ShardWriter

pytestmark = pytest.mark.spark

DAY, NEXT = "1998-03-01", "1998-03-02"
START = datetime(2026, 1, 1, tzinfo=UTC)


def row(key, minute=0, **changed):
    found = {
        "generation_key": key,
        "item_id": f"item of {key}",
        "prompt_version": "item-1",
        "model_revision": "model-1",
        "output": "text",
        "description": "text",
        "refusal_reason": None,
        "error": None,
        "is_repair": False,
        "num_attempts": 1,
        "num_input_tokens": 100,
        "num_output_tokens": 20,
        "cost": 0.5,
        "seconds": 0.1,
        "generated_at": START + timedelta(minutes=minute),
    }
    return found | changed


@pytest.fixture
def ledger(lake):
    return Ledger(lake, tables.ITEM_GENERATION)


def pay(ledger, day, *rows):
    with ShardWriter(ledger.shards(day), task=0, max_rows=1) as writer:
        for each in rows:
            writer.add(each)


def without_answer(ledger, lake, *keys):
    inputs = lake.spark.createDataFrame([(key,) for key in keys], "generation_key string")
    return sorted(row.generation_key for row in ledger.without_answer(inputs, park_after=3).collect())


def test_a_key_is_known_on_every_day_and_before_sealing(ledger, lake):
    assert without_answer(ledger, lake, "a", "b", "c") == ["a", "b", "c"]
    pay(ledger, NEXT, row("a"), row("b", description=None, refusal_reason="loop"))
    pay(ledger, DAY, row("c", description=None, output="", error="timeout"))

    assert without_answer(ledger, lake, "a", "b", "c", "d") == ["c", "d"]  # a failed call is no answer
    assert ledger.days() == [DAY, NEXT]
    assert ledger.days(until=DAY) == [DAY]


def test_the_latest_answer_counts_and_a_failed_call_is_no_answer(ledger):
    pay(ledger, DAY, row("a", description=None, refusal_reason="loop"), row("a", 1, description="mended"))
    pay(ledger, NEXT, row("a", 2, description=None, output="", error="timeout"), row("b", 3))

    assert {each.generation_key: each.description for each in ledger.latest_answers().collect()} == {
        "a": "mended",
        "b": "text",
    }
    assert [each.generation_key for each in ledger.latest_answers(until=DAY).collect()] == ["a"]


def test_a_replayed_key_counts_as_unanswered_until_its_next_answer(ledger, lake):
    pay(ledger, DAY, row("a", 0), row("b", 0))
    request_replay(ledger.folder, ["a"], START + timedelta(minutes=5))
    assert without_answer(ledger, lake, "a", "b") == ["a"]

    pay(ledger, NEXT, row("a", 6))
    assert without_answer(ledger, lake, "a", "b") == []


def failed(key, minute, error="content_filter"):
    return row(key, minute, description=None, output="", error=error)


def test_a_key_is_parked_after_equal_failures_until_it_is_replayed(ledger, lake):
    pay(ledger, DAY, failed("a", 0), failed("a", 1), failed("b", 0, "connection"), failed("b", 1, "connection"))
    assert without_answer(ledger, lake, "a", "b") == ["a", "b"]
    pay(ledger, NEXT, failed("a", 2), failed("b", 2, "connection"))
    assert without_answer(ledger, lake, "a", "b") == ["b"]  # an outage parks nothing

    request_replay(ledger.folder, ["a"], START + timedelta(minutes=5))
    assert without_answer(ledger, lake, "a") == ["a"]
    pay(ledger, NEXT, *(failed("a", minute) for minute in (6, 7, 8)))
    assert without_answer(ledger, lake, "a") == []


def test_only_failures_that_a_prompt_repeats_are_counted(ledger):
    outage = ("connection", "timeout", "server_error", "rate_limited", "rejected")
    pay(ledger, DAY, *(failed("a", minute, error) for minute, error in enumerate(outage)))
    pay(ledger, DAY, failed("a", 9, "circuit_open") | {"num_attempts": 0})
    pay(ledger, NEXT, failed("b", 0, "cut"), failed("b", 1, "timeout"), failed("b", 2, "cut"), failed("b", 3, "empty"))

    found = {each.generation_key: each for each in ledger.failures().collect()}
    assert (found["a"].error, found["a"].num_failures, found["a"].num_repeated) == ("circuit_open", 0, 0)
    assert (found["b"].error, found["b"].num_failures, found["b"].num_repeated) == ("empty", 3, 2)


KINDS = {"c": {"error": "cut"}, "e": {"error": "empty"}, "t": {"error": "timeout"}, "r": {"refusal_reason": "loop"}}


def test_the_list_of_dead_letters_and_a_run_agree_on_what_is_parked(ledger, lake, settings_with, item_rows):
    histories = ["".join(kinds) for num in (1, 2, 3) for kinds in itertools.product(KINDS, repeat=num)]
    keys = [(history, place) for history in histories for place in range(len(history) + 1)]
    with ShardWriter(ledger.shards(DAY), task=0, max_rows=len(keys) * 3) as writer:
        for history, place in keys:
            for minute, kind in enumerate(history):
                changed = {"output": "", "description": None, **KINDS[kind]}
                writer.add(item_rows.accepted(f"{history}{place}", 60 * minute, **changed))
    for minute in (1, 2, 3):
        replayed = [f"{history}{place}" for history, place in keys if place == minute]
        request_replay(ledger.folder, replayed, START + timedelta(minutes=minute - 0.5))

    settings = settings_with(llm_park_after=2)
    states = {letter.generation_key: letter.state for letter in find_dead_letters(settings, "item")}
    inputs = lake.spark.createDataFrame([(key,) for key in states], "generation_key string")
    asked = {row.generation_key for row in ledger.without_answer(inputs, park_after=2).collect()}

    assert len(states) == len(keys)
    assert asked == {key for key, state in states.items() if state == QUEUED}
    assert set(states.values()) == {QUEUED, PARKED, REFUSED}


def test_a_replayed_refusal_is_parked_like_any_other_text(ledger, lake):
    pay(ledger, DAY, row("a", 0, description=None, refusal_reason="loop"))
    request_replay(ledger.folder, ["a"], START + timedelta(minutes=5))
    pay(ledger, DAY, failed("a", 6), failed("a", 7))
    assert without_answer(ledger, lake, "a") == ["a"]
    pay(ledger, DAY, failed("a", 8))
    assert without_answer(ledger, lake, "a") == []


def test_a_days_errors_are_its_own_and_those_of_parked_keys(ledger):
    pay(ledger, DAY, failed("a", 0), failed("b", 0, "connection"))
    pay(ledger, NEXT, failed("a", 1), failed("a", 2), failed("c", 1, "cut"))

    def errors(day):
        return {each.generation_key: each.error for each in ledger.last_errors(day, park_after=3).collect()}

    assert errors(DAY) == {"a": "content_filter", "b": "connection"}
    assert errors(NEXT) == {"a": "content_filter", "c": "cut"}
    assert errors("1998-03-03") == {"a": "content_filter"}


def test_an_entity_waits_for_its_replay_until_any_later_answer(ledger):
    def waiting():
        return [each.item_id for each in ledger.waiting_for_replay("item_id").collect()]

    pay(ledger, DAY, row("a", 0, item_id="x"), row("b", 0, item_id="y"))
    assert waiting() == []
    request_replay(ledger.folder, ["a"], START + timedelta(minutes=5))
    assert waiting() == ["x"]

    pay(ledger, NEXT, row("c", 6, item_id="x", description=None, output="", error="timeout"))
    assert waiting() == ["x"]
    pay(ledger, NEXT, row("c", 7, item_id="x"))
    assert waiting() == []
    assert [each.generation_key for each in ledger.waiting_for_replay("generation_key").collect()] == ["a"]


def test_usage_of_a_day_is_by_prompt_and_model(ledger):
    pay(
        ledger, DAY, row("a", num_attempts=3), row("a", 1, is_repair=True), row("b"), row("c", model_revision="model-2")
    )
    pay(ledger, DAY, row("d", description=None, output="", error="timeout", num_attempts=5, cost=0.0))

    # What no call has answered is no text yet, but its calls and tokens count.
    assert ledger.usage(DAY, "item-1", "model-1") == Usage(2, 10, 480, 1.5)
    assert ledger.usage(DAY, "item-1", "model-2") == Usage(1, 1, 120, 0.5)
    assert ledger.usage(NEXT, "item-1", "model-1") == Usage()


def test_sealing_merges_files_and_keeps_all_rows(ledger, monkeypatch):
    monkeypatch.setattr(append_only, "MAX_FILES", 2)
    monkeypatch.setattr(append_only, "MERGED_ROWS", 2)
    pay(ledger, DAY, *(row(key) for key in "abcde"))
    folder = partitions.partition_path(ledger.folder.parent, ledger.table, None, DAY)
    ledger.seal(DAY)

    assert sorted(file.name for file in folder.glob("*.parquet")) == [f"merged-0000{part}.parquet" for part in range(3)]
    assert sorted(each.generation_key for each in ledger.rows().collect()) == list("abcde")
    assert partitions.read_content(folder).num_rows == 5
    pay(ledger, DAY, row("f"))
    ledger.seal(DAY)
    assert partitions.read_content(folder).num_rows == 6


def test_no_merge_while_tasks_of_a_failed_run_may_still_write(ledger, monkeypatch):
    monkeypatch.setattr(append_only, "MAX_FILES", 2)

    def run(*keys, fails):
        with ledger.growing(DAY) as shards:
            with ShardWriter(shards, task=0, max_rows=1) as writer:
                for key in keys:
                    writer.add(row(key))
            if fails:
                raise ValueError("the model failed in another task")

    with pytest.raises(ValueError, match="the model failed"):
        run("a", "b", "c", fails=True)
    folder = ledger.shards(DAY).folder
    assert len(list(folder.glob("*.parquet"))) == 3
    assert partitions.read_content(folder).num_rows == 3
    run("d", fails=False)

    assert [file.name for file in folder.glob("*.parquet")] == ["merged-00000.parquet"]
    assert sorted(each.generation_key for each in ledger.rows().collect()) == list("abcd")


def test_few_files_are_not_merged(ledger):
    pay(ledger, DAY, row("a"))
    before = [file.name for file in ledger.shards(DAY).folder.iterdir()]
    ledger.seal(DAY)

    assert {file.name for file in ledger.shards(DAY).folder.iterdir()} == {*before, partitions.CONTENT_FILE}
    ledger.seal(NEXT)  # a day without a row stays without a folder
    assert ledger.days() == [DAY]
