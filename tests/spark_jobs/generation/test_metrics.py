"""A day's metrics are computed from stored tables, so running it again does not change them."""

import json
import time
from datetime import UTC, datetime, timedelta

import pytest
from pyspark.sql import functions as F

from grasp import partitions, tables
from spark_jobs.generation.budget import Caps
from spark_jobs.generation.describe_entities import FACTS_DDL, describe_entities
from spark_jobs.generation.metrics import HistoryCounts, count_by_history, history_range
from spark_jobs.generation.prometheus_file import prometheus_path
from spark_jobs.generation.prompts import ITEM, USER
from spark_jobs.generation.replays import request_replay
from spark_jobs.models.language_model import Generation
from spark_jobs.storage.lake import Lake

pytestmark = pytest.mark.spark

DAY, NEXT = "1998-03-01", "1998-03-02"
TITLES = ("Heat", "Fargo", "Alien", "Jaws", "Jaws")  # the last two have equal facts
ACCEPTED = "{} is a film for viewers who enjoy the drama, and it goes well with other dramas."


class FakeModel:
    """Refuses Alien, and needs two tries for Fargo."""

    def limit(self, limits):
        pass

    def generate(self, prompts):
        for place, prompt in enumerate(prompts):
            facts = next(message["content"] for message in reversed(prompt) if "<facts>" in message["content"])
            title = next(line for line in facts.splitlines() if line.startswith(("title: ", "recent: ")))
            yield place, Generation(self._answer(title.split(": ", 1)[1], prompt), 100, 20, 2.0)

    def _answer(self, title, prompt):
        if title == "Alien":
            return "Sorry, it is not possible to describe this film for viewers."
        is_repair = prompt[-2]["role"] == "assistant" and prompt[-1]["content"].startswith("That text cannot")
        return "No." if title == "Fargo" and not is_repair else ACCEPTED.format(title)


@pytest.fixture
def filled(settings_with, spark, write_rows):
    lake = Lake(spark, settings_with(llm_input_price=1000.0))
    for day in (DAY, NEXT):
        write_rows(lake, tables.ITEMS, [("1", "Heat", {"genres": "Drama"})], day)
    return lake


def describe_items(lake, day, num_keys):
    raws = [json.dumps({"title": title, "attributes": {"genres": "Drama"}}) for title in TITLES]
    rows = [(f"{number}", 9 - number, raw) for number, raw in enumerate(raws)]
    facts = lake.spark.createDataFrame(rows, FACTS_DDL)
    describe_entities(lake, day, ITEM, facts, caps=Caps(num_keys), make_model=FakeModel)


def describe_user(lake, day, activity, title, num_keys):
    raw = json.dumps({"attributes": {}, "recent": [title], "favourites": ["Drama"]})
    facts = lake.spark.createDataFrame([("u", activity, raw)], FACTS_DDL)
    describe_entities(lake, day, USER, facts, caps=Caps(num_keys), make_model=FakeModel)


def metrics(lake, day, entity="item"):
    [row] = lake.read(tables.GENERATION_METRICS, day).where(f"entity = '{entity}'").collect()
    return row


def covered(row):
    return row.num_entities, row.num_cache_hits, row.num_kept, row.num_described


def files(lake):
    folder = partitions.table_path(lake.root, tables.GENERATION_METRICS, None)
    return {path: path.stat().st_mtime_ns for path in folder.glob("day=*/*")}


def test_a_days_row_counts_requests_and_outcomes(filled):
    describe_items(filled, DAY, 3)
    row = metrics(filled, DAY)
    assert covered(row) == (5, 0, 0, 2)
    assert (row.num_answers, row.num_accepted, row.num_refused, row.num_unanswered) == (3, 2, 1, 0)
    assert (row.num_repairs, row.num_repaired, row.num_calls, row.num_failed_calls) == (1, 1, 4, 0)
    assert (row.num_input_tokens, row.num_output_tokens, row.cost, row.seconds) == (400, 80, 0.4, 8.0)
    assert row.reasons == {"refusal": 1}
    assert row.answers_per_minute > 0
    assert "grasp_generation_refused" in prometheus_path(filled.settings).read_text()


def test_failures_are_counted_by_the_length_of_the_history(filled):
    describe_items(filled, DAY, 3)  # of 9, 8 and 7 interactions; the last one is refused
    describe_user(filled, DAY, 300, "Alien", 1)
    assert (metrics(filled, DAY).asked_by_history, metrics(filled, DAY).failed_by_history) == ({"5-9": 3}, {"5-9": 1})
    assert metrics(filled, DAY, "user").failed_by_history == {"200+": 1}


def test_an_unanswered_text_has_failed_and_a_repaired_one_has_not(spark):
    rows = [
        ("k1", "short", "loop", None, 1),
        ("k1", "short", None, None, 2),
        ("k2", "long", None, "timeout", 1),
        ("k3", "long", None, None, 1),
        ("k3", "long", None, "timeout", 2),
        ("k4", "gone", "loop", None, 1),
    ]
    asked = spark.createDataFrame(
        rows, "generation_key string, entity_id string, refusal_reason string, error string, generated_at int"
    )
    inputs = spark.createDataFrame([("short", 0), ("long", 20)], "entity_id string, activity bigint")
    assert count_by_history(asked, inputs) == HistoryCounts({"0": 1, "20-49": 2}, {"20-49": 1})


def test_history_ranges_have_no_gaps(spark):
    activities = [0, 1, 4, 5, 9, 10, 19, 20, 49, 50, 99, 100, 199, 200, 5000]
    found = spark.createDataFrame([(each,) for each in activities], "activity bigint").select(
        history_range(F.col("activity"))
    )
    assert [row[0] for row in found.collect()] == [
        "0",
        *["1-4"] * 2,
        *["5-9"] * 2,
        *["10-19"] * 2,
        *["20-49"] * 2,
        *["50-99"] * 2,
        *["100-199"] * 2,
        *["200+"] * 2,
    ]


def test_a_second_run_does_not_change_the_cache_hits(filled):
    describe_items(filled, DAY, 3)
    describe_items(filled, NEXT, 3)  # pays for Jaws, which two items share
    assert covered(metrics(filled, NEXT)) == (5, 3, 0, 4)
    assert metrics(filled, NEXT).num_answers == 1
    before = files(filled)
    for day in (DAY, NEXT, DAY):
        describe_items(filled, day, 3)
    assert files(filled) == before


@pytest.fixture
def new_york():
    """A zone whose clock shows 01:30 twice in the night to 1998-10-25, at 05:30 and at 06:30 UTC."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "America/New_York")
        time.tzset()
        yield
    time.tzset()


def test_each_kind_and_model_has_its_own_row_and_keeps_its_time(filled, settings, new_york):
    now = datetime(1998, 10, 25, 6, 30, tzinfo=UTC)
    lake = Lake(filled.spark, filled.settings.model_copy(update={"now": now}))
    describe_items(lake, DAY, 3)
    describe_user(lake, DAY, 10, "Heat", 1)
    (settings.llm / "config.json").write_text('{"new": true}')
    describe_items(Lake(lake.spark, lake.settings), DAY, 1)
    rows = lake.read(tables.GENERATION_METRICS, DAY).withColumn("seconds", F.unix_seconds("computed_at")).collect()
    assert sorted((row.entity, row.num_answers) for row in rows) == [("item", 1), ("item", 3), ("user", 1)]
    assert {row.seconds for row in rows} == {int(now.timestamp())}


def test_a_kept_text_is_not_a_cache_hit(filled):
    describe_user(filled, DAY, 10, "Heat", 1)
    describe_user(filled, NEXT, 11, "Jaws", 1)
    assert covered(metrics(filled, DAY, "user")) == (1, 0, 0, 1)
    assert covered(metrics(filled, NEXT, "user")) == (1, 0, 1, 1)
    assert metrics(filled, NEXT, "user").answers_per_minute is None


def test_an_earlier_refusal_does_not_count_as_kept(filled):
    describe_user(filled, DAY, 10, "Alien", 1)
    describe_user(filled, NEXT, 11, "Jaws", 1)
    assert covered(metrics(filled, NEXT, "user")) == (1, 0, 0, 0)
    assert metrics(filled, NEXT, "user").asked_by_history == {}


def test_a_replayed_text_counts_on_the_day_of_the_replay(filled):
    describe_items(filled, DAY, 3)
    folder = partitions.table_path(filled.root, tables.ITEM_GENERATION, None)
    [alien] = filled.read(tables.ITEM_GENERATION, DAY).where("refusal_reason = 'refusal'").collect()
    request_replay(folder, [alien.generation_key], datetime.now(UTC) + timedelta(milliseconds=1))
    describe_items(filled, NEXT, 9)
    row = metrics(filled, NEXT)
    assert (row.num_answers, row.num_refused) == (2, 1)  # Jaws and Alien
    assert covered(row) == (5, 2, 0, 4)
