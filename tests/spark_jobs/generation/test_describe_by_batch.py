"""Describing a day with batch files gives the same tables as live generation, and asks for no text twice."""

import pytest

from grasp import partitions, tables
from spark_jobs.commands.dead_letters import find_dead_letters
from spark_jobs.describe_items import item_facts
from spark_jobs.generation.budget import Caps
from spark_jobs.generation.describe_entities import describe_entities, model_factory
from spark_jobs.generation.live_generation import GenerationError
from spark_jobs.generation.prompts import ITEM
from spark_jobs.storage.lake import Lake

pytestmark = pytest.mark.spark

DAY, NEXT = "1998-03-01", "1998-03-02"
CATALOGUE = {"1": "Heat", "2": "Alien", "3": "Fargo", "4": "Jaws"}


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch):
    """The test server is fast, so it is polled often."""
    monkeypatch.setattr("spark_jobs.generation.batch_generation.MIN_POLL_SECONDS", 0.02)


@pytest.fixture
def describe_day(spark, settings_with, model_server, write_rows):
    """`describe_day(day, titles, num_keys)` does one run and returns the day's item descriptions."""

    def described(day, titles, num_keys=99, num_tokens=None, **changed):
        at = {"llm_url": model_server.url, "llm_model": "test-model", "llm_max_attempts": 1, "llm_batch_files": True}
        lake = Lake(spark, settings_with(**at | {"llm_batch_patience_hours": 0.5} | changed))
        items = [(key, title, {"genres": "Drama"}) for key, title in titles.items()]
        write_rows(lake, tables.ITEMS, items, day)
        nothing = spark.createDataFrame([], tables.INTERACTIONS.ddl)
        facts = item_facts(lake.read(tables.ITEMS, day), nothing, day)
        caps = Caps(num_keys, num_tokens)
        describe_entities(lake, day, ITEM, facts, caps=caps, make_model=model_factory(lake.settings))
        rows = lake.read(tables.ITEM_DESCRIPTION, day).collect()
        return {row.item_id: (row.source, row.fallback_reason) for row in rows}

    return described


def asked(model_server):
    """Number of requests per title."""
    keys = model_server.seen()["requests"].items()
    return {key.partition("title: ")[2].partition("\n")[0]: num for key, num in keys}


def test_a_day_is_described_within_its_caps_and_a_second_run_submits_nothing(describe_day, model_server):
    first = describe_day(DAY, CATALOGUE, 3)
    assert first == describe_day(DAY, CATALOGUE, 3)
    assert first == {"1": ("llm", None), "2": ("llm", None), "3": ("llm", None), "4": ("facts", "budget")}
    assert model_server.seen()["num_batches"] == 1


def test_facts_that_change_during_a_batch_are_not_paid_for_twice(describe_day, model_server, spark):
    describe_day(DAY, CATALOGUE, llm_batch_patience_hours=0)

    changed = {"1": "Heat", "2": "Aliens", "3": "Fargo", "5": "Solaris"}
    assert set(describe_day(DAY, changed).values()) == {("llm", None)}

    assert asked(model_server) == dict.fromkeys({*CATALOGUE.values(), "Aliens", "Solaris"}, 1)
    assert model_server.seen()["num_batches"] == 2


def test_a_pending_batch_is_not_submitted_again_and_counts_against_the_caps(describe_day, model_server):
    model_server.script(batch_end="in_progress")
    for num_keys in (3, 3, 4):
        describe_day(DAY, CATALOGUE, num_keys, llm_batch_patience_hours=0)
    assert model_server.seen()["num_batches"] == 1

    model_server.script(batch_end="completed")
    assert set(describe_day(DAY, CATALOGUE, 4).values()) == {("llm", None)}
    assert set(asked(model_server).values()) == {1}


@pytest.fixture
def metrics_of(spark, settings_with):
    return lambda day: Lake(spark, settings_with()).read(tables.GENERATION_METRICS, day).first()


def test_the_next_day_reads_a_batch_for_the_day_that_submitted_it(describe_day, model_server, metrics_of):
    describe_day(DAY, CATALOGUE, llm_batch_patience_hours=0)
    assert metrics_of(DAY).num_answers == 0
    assert set(describe_day(NEXT, CATALOGUE).values()) == {("llm", None)}
    assert (metrics_of(DAY).num_accepted, metrics_of(DAY).asked_by_history) == (4, {"0": 4})
    assert metrics_of(DAY).num_described == 0, "as it was published"
    assert (metrics_of(NEXT).num_answers, metrics_of(NEXT).num_cache_hits) == (0, 4)

    assert set(describe_day(DAY, CATALOGUE).values()) == {("llm", None)}, "as if the batch had come in time"
    assert (metrics_of(DAY).num_accepted, metrics_of(DAY).num_cache_hits, metrics_of(DAY).num_described) == (4, 0, 4)
    assert model_server.seen()["num_batches"] == 1


def test_a_batch_that_mostly_failed_stops_the_day_that_reads_it_as_it_would_have_stopped_its_own(
    describe_day, model_server, metrics_of, settings_with
):
    films = {f"{number:02d}": f"Film {number}" for number in range(20)}
    describe_day("1998-02-28", {"0": "Known"})
    describe_day(DAY, films, llm_batch_patience_hours=0)
    model_server.script(default={"kind": "refusal"})

    for _ in range(2):  # the run and its retry
        with pytest.raises(GenerationError, match=r"^20 of 20 texts of 1998-03-01 failed, .*: 20 refusal"):
            describe_day(NEXT, films)
    assert (metrics_of(DAY).num_refused, metrics_of(NEXT).num_refused) == (20, 0)
    assert partitions.latest_day(settings_with().lake, tables.ITEM_DESCRIPTION, None) == DAY

    assert set(describe_day(NEXT, films, llm_max_failure_share=1.0).values()) == {("facts", "refusal")}
    assert set(describe_day("1998-03-03", films).values()) == {("facts", "refusal")}, "said once"


def test_what_answers_give_back_is_submitted_until_nearly_all_of_a_cap_is_used(
    describe_day, model_server, spark, settings_with
):
    films = {f"{number:02d}": f"Film {number}" for number in range(99)}
    model_server.script(default={"kind": "answer", "usage": [450, 40]})
    cap = 60 * (450 + 40)
    describe_day(DAY, films, num_tokens=cap)

    rows = Lake(spark, settings_with()).read(tables.ITEM_GENERATION, DAY).collect()
    used = sum(row.num_input_tokens + row.num_output_tokens for row in rows)
    assert 0.95 * cap <= used <= cap


def test_with_a_slow_vendor_days_are_published_and_a_later_run_reads_the_batch(describe_day, model_server):
    model_server.script(batch_end="in_progress")
    for day in (DAY, NEXT):
        rows = describe_day(day, CATALOGUE, 3, llm_batch_patience_hours=0)
        assert rows == dict.fromkeys("123", ("facts", "pending")) | {"4": ("facts", "budget")}

    model_server.script(batch_end="completed")
    later = describe_day("1998-03-03", CATALOGUE, 0)
    assert later == dict.fromkeys("123", ("llm", None)) | {"4": ("facts", "budget")}
    assert model_server.seen()["num_batches"] == 1


def test_a_new_model_describes_the_rest_after_the_first_few(describe_day, model_server):
    films = {f"{number:02d}": f"Film {number}" for number in range(12)}
    assert set(describe_day(DAY, films).values()) == {("llm", None)}
    assert model_server.seen()["num_batches"] == 2
    assert set(asked(model_server).values()) == {1}


def test_live_generation_does_not_ask_for_keys_in_a_batch(describe_day, model_server):
    describe_day(DAY, CATALOGUE, 3, llm_batch_patience_hours=0)

    assert set(describe_day(DAY, CATALOGUE, 4, llm_batch_files=False).values()) == {("llm", None)}
    assert asked(model_server) == dict.fromkeys(CATALOGUE.values(), 1)


def test_an_expired_batch_is_submitted_again_and_a_refused_text_is_a_dead_letter(
    describe_day, model_server, settings_with
):
    model_server.script(batch_end="expired", default={"kind": "refusal"})
    rows = describe_day(DAY, CATALOGUE)
    assert sorted(rows.values()) == [("facts", "refusal")] * 2 + [("facts", "timeout")] * 2

    model_server.script(batch_end="completed", default={"kind": "answer"})
    rows = describe_day(DAY, CATALOGUE)
    assert sorted(rows.values()) == [("facts", "refusal")] * 2 + [("llm", None)] * 2
    letters = find_dead_letters(settings_with(llm_url=model_server.url, llm_model="test-model"), "item")
    assert [(letter.reason, letter.state) for letter in letters] == [("refusal", "refused")] * 2
