"""Descriptions: paid once, within the budget, most important first, and never from the future."""

import json
import os
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest

from grasp import partitions, tables
from spark_jobs import describe as module
from spark_jobs.describe import GenerationError, describe, item_budget, user_budget
from spark_jobs.describe_items import item_facts
from spark_jobs.describe_users import user_facts
from spark_jobs.llm import Generation, ModelFolderError
from spark_jobs.prompts import ITEM, USER

pytestmark = pytest.mark.spark

DAY, NEXT = "1998-03-01", "1998-03-02"
CATALOGUE = {"1": "Heat", "2": "Alien", "3": "Fargo", "4": "Jaws"}
ACCEPTED = "{} is a film for viewers who enjoy the drama, and it goes well with other dramas."


class FakeModel:
    """Writes a good text for every title, refuses to speak of Alien, and notes in a file what it was asked."""

    def __init__(self, log: Path) -> None:
        self.log = log

    def generate(self, prompts):
        with self.log.open("a") as file:
            file.writelines(json.dumps(prompt[-1]["content"]) + "\n" for prompt in prompts)
        return [Generation(self._answer(prompt[-1]["content"]), 100, 20, 0.1) for prompt in prompts]

    @staticmethod
    def _answer(asked):
        named = next(line for line in asked.splitlines() if line.startswith(("title: ", "recent: ", "favours: ")))
        title = named.split(": ", 1)[1].split(";")[0]
        return "As an AI language model." if title == "Alien" else ACCEPTED.format(title)


class BrokenModel(FakeModel):
    """Fails on Jaws, as a model of a later round may."""

    def generate(self, prompts):
        if any("Jaws" in prompt[-1]["content"] for prompt in prompts):
            raise ModelFolderError("GRASP_LLM: no usable language model")
        return super().generate(prompts)


@pytest.fixture
def log(tmp_path):
    return tmp_path / "asked.jsonl"


def asked(log):
    return log.read_text().splitlines() if log.exists() else []


def write_items(lake, day, titles):
    rows = [(key, title, {"genres": "Drama"}) for key, title in titles.items()]
    lake.write(tables.ITEMS, lake.spark.createDataFrame(rows, tables.ITEMS.ddl), day)


def write_interactions(lake, day, rows):
    """`rows`: user, item, hour of the day."""
    moments = [
        (user, item, datetime.fromisoformat(f"{day}T{hour:02}:00:00").replace(tzinfo=UTC), number)
        for number, (user, item, hour) in enumerate(rows)
    ]
    lake.write(tables.INTERACTIONS, lake.spark.createDataFrame(moments, tables.INTERACTIONS.ddl), day)


def write_users(lake, day, keys):
    rows = [(key, {"age": "24", "occupation": "writer"}) for key in keys]
    lake.write(tables.USERS, lake.spark.createDataFrame(rows, tables.USERS.ddl), day)


@pytest.fixture
def filled(lake):
    """Alien is the most popular item, then Heat; Fargo and Jaws have no users."""
    for day in (DAY, NEXT):
        write_items(lake, day, CATALOGUE)
        write_users(lake, day, ["u1", "u2"])
    write_interactions(lake, DAY, [("u1", "2", 1), ("u2", "2", 2), ("u1", "1", 3)])
    write_interactions(lake, NEXT, [("u2", "3", 1)])
    return lake


def describe_items(lake, day, budget, log, model=FakeModel):
    facts = item_facts(lake.read(tables.ITEMS, day), lake.read_until(tables.INTERACTIONS, day), day)
    describe(lake, day, ITEM, facts, budget=budget, make_model=partial(model, log))
    return {row.item_id: row for row in lake.read(tables.ITEM_DESCRIPTION, day).collect()}


def facts_of_users(lake, day, holdout=0):
    return user_facts(
        lake.read(tables.USERS, day),
        lake.read(tables.ITEMS, day),
        lake.spark.read.schema(tables.INTERACTIONS.ddl).parquet(str(lake.root / "interactions" / "day=*")),
        day,
        holdout=holdout,
        hidden=(),
    )


def raw_facts(lake, day, holdout=0):
    return {row.entity_id: json.loads(row.raw) for row in facts_of_users(lake, day, holdout).collect()}


def mtimes(lake, table, day):
    folder = partitions.partition_path(lake.root, table, None, day)
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def sources(rows):
    return {key: (row.source, row.fallback_reason) for key, row in rows.items()}


def test_the_budget_is_halved_between_items_and_users():
    assert (item_budget(75), user_budget(75)) == (37, 38)
    assert (item_budget(0), user_budget(0)) == (0, 0)


def test_the_most_popular_are_paid_for_and_everyone_has_a_row(filled, log):
    rows = describe_items(filled, DAY, 2, log)
    assert sources(rows) == {
        "1": ("llm", None),
        "2": ("facts", "refusal"),
        "3": ("facts", "budget"),
        "4": ("facts", "budget"),
    }
    assert rows["1"].description == ACCEPTED.format("Heat")
    assert rows["2"].description == "Alien. genres: Drama."
    assert len(asked(log)) == 2


def test_running_a_day_again_spends_nothing_and_changes_no_file(filled, log):
    describe_items(filled, DAY, 2, log)
    watched = (tables.ITEM_DESCRIPTION, tables.ITEM_GENERATION)
    before = [mtimes(filled, table, DAY) for table in watched]
    describe_items(filled, DAY, 2, log)
    assert [mtimes(filled, table, DAY) for table in watched] == before
    assert len(asked(log)) == 2


def test_a_later_day_pays_for_the_next_ones_only(filled, log):
    describe_items(filled, DAY, 2, log)
    rows = describe_items(filled, NEXT, 2, log)
    assert sources(rows) == {"1": ("llm", None), "2": ("facts", "refusal"), "3": ("llm", None), "4": ("llm", None)}
    assert len(asked(log)) == 4
    assert len(set(asked(log))) == 4


def test_running_an_earlier_day_again_gives_the_same_result_after_a_later_one_paid(filled, log):
    describe_items(filled, DAY, 2, log)
    before = mtimes(filled, tables.ITEM_DESCRIPTION, DAY)
    describe_items(filled, NEXT, 2, log)
    describe_items(filled, DAY, 2, log)
    assert mtimes(filled, tables.ITEM_DESCRIPTION, DAY) == before
    assert len(asked(log)) == 4


def test_a_day_filled_in_later_uses_what_was_paid_for(filled, log):
    describe_items(filled, NEXT, 4, log)
    rows = describe_items(filled, DAY, 0, log)
    assert sources(rows)["1"] == ("llm", None)
    assert len(asked(log)) == 4


def test_a_raised_budget_pays_for_the_rest_of_the_same_day(filled, log):
    describe_items(filled, DAY, 1, log)
    assert sources(describe_items(filled, DAY, 3, log))["3"] == ("llm", None)
    assert len(asked(log)) == 3


def test_without_a_budget_no_model_is_made(filled, log):
    rows = describe_items(filled, DAY, 0, log, model=None)
    assert {row.fallback_reason for row in rows.values()} == {"budget"}


def test_equal_facts_are_paid_for_once(filled, log):
    write_items(filled, DAY, {"1": "Heat", "5": "Heat"})
    rows = describe_items(filled, DAY, 4, log)
    assert rows["1"].description == rows["5"].description == ACCEPTED.format("Heat")
    assert len(asked(log)) == 1


def test_unchanged_rows_keep_the_time_they_were_computed_at(filled, settings_with, log):
    from spark_jobs.lake import Lake

    first = describe_items(filled, DAY, 2, log)
    later = Lake(filled.spark, settings_with(now="1998-03-09T00:00:00Z"))
    second = describe_items(later, NEXT, 1, log)
    assert second["1"].computed_at == first["1"].computed_at
    assert second["3"].computed_at > first["3"].computed_at  # facts gave way to a text


def test_a_new_model_has_a_ledger_and_a_budget_of_its_own(filled, settings, log):
    from spark_jobs.lake import Lake

    old = describe_items(filled, DAY, 2, log)
    (settings.llm / "config.json").write_text('{"new": true}')
    new = describe_items(Lake(filled.spark, settings), DAY, 2, log)
    assert len(asked(log)) == 4
    assert new["1"].model_revision != old["1"].model_revision
    assert filled.read(tables.ITEM_GENERATION, DAY).count() == 4


def test_what_finished_rounds_paid_for_survives_a_failure(filled, log, monkeypatch):
    monkeypatch.setattr(module, "MIN_ROUND", 1)
    with pytest.raises(GenerationError, match="^GRASP_LLM: no usable language model$"):
        describe_items(filled, DAY, 4, log, model=BrokenModel)
    assert filled.read(tables.ITEM_GENERATION, DAY).count() == 3
    describe_items(filled, DAY, 4, log)
    assert len(asked(log)) == 4


def test_users_are_described_from_their_profile_and_history(filled, log):
    write_users(filled, DAY, ["u1", "u2", "silent"])
    describe(filled, DAY, USER, facts_of_users(filled, DAY), budget=1, make_model=partial(FakeModel, log))
    rows = {row.user_id: row for row in filled.read(tables.USER_DESCRIPTION, DAY).collect()}
    assert rows["u1"].source == "llm"
    assert "recent: Heat; Alien" in json.loads(asked(log)[0])
    assert rows["u2"].description == "A 24 year old writer who favours Drama. Recently chose Alien."
    assert rows["silent"].description == "A 24 year old writer."


def test_a_future_event_changes_no_earlier_fact(filled):
    before = raw_facts(filled, DAY)
    write_interactions(filled, NEXT, [("u1", "4", 0), ("u2", "4", 5), ("u2", "3", 6)])
    assert raw_facts(filled, DAY) == before
    assert raw_facts(filled, NEXT)["u1"]["recent"] == ["Jaws", "Heat", "Alien"]


def test_a_future_event_changes_no_items_priority(filled):
    future = filled.read(tables.INTERACTIONS, NEXT)
    facts = item_facts(filled.read(tables.ITEMS, DAY), future, DAY)
    assert {row.priority for row in facts.collect()} == {0}


def test_the_latest_interaction_can_be_held_out(filled):
    assert raw_facts(filled, DAY, holdout=1)["u1"]["recent"] == ["Alien"]
    assert "recent" not in raw_facts(filled, DAY, holdout=1)["u2"]


def test_equal_times_keep_the_order_of_the_source(filled):
    write_interactions(filled, DAY, [("u1", "2", 1), ("u1", "3", 1), ("u1", "1", 1)])
    assert raw_facts(filled, DAY)["u1"]["recent"] == ["Heat", "Fargo", "Alien"]


def test_nothing_secret_travels_to_the_workers(settings_with):
    import cloudpickle

    settings = settings_with(milvus_token="very-secret")
    assert b"very-secret" not in cloudpickle.dumps(module.real_model(settings))


def test_the_tests_run_in_this_process_only_as_driver(filled, log):
    """The fake runs in Spark workers, as the real model does."""
    describe_items(filled, DAY, 1, log, model=PidModel)
    assert {int(line) for line in asked(log)} - {os.getpid()}


class PidModel(FakeModel):
    def generate(self, prompts):
        self.log.write_text(f"{os.getpid()}\n")
        return [Generation("", 1, 1, 0.0) for _ in prompts]
