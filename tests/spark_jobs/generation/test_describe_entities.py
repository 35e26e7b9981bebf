"""Descriptions are paid for once, within the caps, most popular first, and ignore future events."""

import json
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest
from pyspark import cloudpickle
from pyspark.sql import functions as F

from grasp import partitions, tables
from spark_jobs.commands.dead_letters import PARKED, find_dead_letters, replay
from spark_jobs.describe_items import item_facts
from spark_jobs.describe_users import user_facts
from spark_jobs.generation import live_generation
from spark_jobs.generation.budget import Caps
from spark_jobs.generation.describe_entities import describe_entities, model_factory
from spark_jobs.generation.live_generation import GenerationError
from spark_jobs.generation.prompts import ITEM, USER, item_input, prompt_messages
from spark_jobs.models.language_model import Generation, ModelFolderError
from spark_jobs.storage.lake import Lake

pytestmark = pytest.mark.spark

DAY, NEXT = "1998-03-01", "1998-03-02"
CATALOGUE = {"1": "Heat", "2": "Alien", "3": "Fargo", "4": "Jaws"}
HISTORY = [("u1", "2", f"{DAY}T01:00:00"), ("u2", "2", f"{DAY}T02:00:00"), ("u1", "1", f"{DAY}T03:00:00")]
WRITTEN = (tables.ITEM_DESCRIPTION, tables.ITEM_GENERATION)
ACCEPTED = "{} is a film for viewers who enjoy the drama, and it goes well with other dramas."


class FakeModel:
    """Writes a good text for every title except Alien, which it refuses, and logs each request to a file."""

    def __init__(self, log: Path) -> None:
        self.log = log

    def limit(self, limits):
        pass

    def generate(self, prompts):
        with self.log.open("a") as file:
            file.writelines(json.dumps(prompt[-1]["content"]) + "\n" for prompt in prompts)
        for place, prompt in reversed(list(enumerate(prompts))):  # as a server may: not in the order asked
            yield place, Generation(self._answer(prompt[-1]["content"]), 100, 20, 0.1)

    @staticmethod
    def _answer(asked):
        named = next(line for line in asked.splitlines() if line.startswith(("title: ", "recent: ")))
        title = named.split(": ", 1)[1].split(";")[0]
        return (
            "Sorry, it is not possible to describe this film for viewers."
            if title == "Alien"
            else ACCEPTED.format(title)
        )


class BrokenModel(FakeModel):
    """Raises an exception at Jaws, after all other titles."""

    def generate(self, prompts):
        answers = sorted(super().generate(prompts), key=lambda answer: "Jaws" in answer[1].text)
        for place, generation in answers:
            if "Jaws" in generation.text:
                raise ModelFolderError("GRASP_LLM: no usable language model")
            yield place, generation


class OverloadedModel(FakeModel):
    """Returns an error for Jaws, as an overloaded server may."""

    def generate(self, prompts):
        for place, generation in super().generate(prompts):
            lost = "Jaws" in generation.text
            yield place, Generation("", 0, 0, 0.1, 5, "rate_limited") if lost else generation


def no_model():
    raise AssertionError("a model was made although nothing is to be generated")


@pytest.fixture
def log(tmp_path):
    return tmp_path / "asked.jsonl"


def asked(log):
    return log.read_text().splitlines() if log.exists() else []


def frame(lake, table, rows):
    return lake.spark.createDataFrame(rows, table.ddl)


def item_rows(titles):
    return [(key, title, {"genres": "Drama"}) for key, title in titles.items()]


def items_frame(lake, titles):
    return frame(lake, tables.ITEMS, item_rows(titles))


def users_frame(lake, keys):
    return frame(lake, tables.USERS, [(key, {"age": "24", "occupation": "writer"}) for key in keys])


def interactions_frame(lake, rows):
    """`rows`: user, item, moment; the order of the rows is the source's."""
    timed = [
        (user, item, datetime.fromisoformat(moment).replace(tzinfo=UTC), number)
        for number, (user, item, moment) in enumerate(rows)
    ]
    return frame(lake, tables.INTERACTIONS, timed)


@pytest.fixture
def filled(lake, write_rows):
    """Two days of one catalogue. The most popular items are Alien, then Heat."""
    for day in (DAY, NEXT):
        write_rows(lake, tables.ITEMS, item_rows(CATALOGUE), day)
    return lake


def describe_items(lake, day, num_keys, make_model=None):
    facts = item_facts(lake.read(tables.ITEMS, day), interactions_frame(lake, HISTORY), day)
    describe_entities(lake, day, ITEM, facts, caps=Caps(num_keys), make_model=make_model)
    return {row.item_id: row for row in lake.read(tables.ITEM_DESCRIPTION, day).collect()}


def facts_of_users(lake, day, rows, holdout=0):
    users, items = users_frame(lake, ["u1", "u2", "silent"]), items_frame(lake, CATALOGUE)
    return user_facts(users, items, interactions_frame(lake, rows), day, holdout=holdout, hidden=())


def raw_facts(lake, day, rows, holdout=0):
    return {row.entity_id: json.loads(row.raw) for row in facts_of_users(lake, day, rows, holdout).collect()}


def mtimes(lake, day):
    folders = [partitions.partition_path(lake.root, table, None, day) for table in WRITTEN]
    return {path: path.stat().st_mtime_ns for folder in folders for path in folder.iterdir()}


def sources(rows):
    return {key: (row.source, row.fallback_reason) for key, row in rows.items()}


def test_the_most_popular_items_are_paid_for_once_in_all_runs_of_a_day(filled, log):
    rows = describe_items(filled, DAY, 2, partial(FakeModel, log))
    assert sources(rows) == {
        "1": ("llm", None),
        "2": ("facts", "refusal"),
        "3": ("facts", "budget"),
        "4": ("facts", "budget"),
    }
    assert rows["1"].description == ACCEPTED.format("Heat")
    assert rows["2"].description == "Alien. genres: Drama."
    before = mtimes(filled, DAY)
    describe_items(filled, DAY, 2, partial(FakeModel, log))
    assert mtimes(filled, DAY) == before
    assert len(asked(log)) == 2


def test_withdrawn_items_are_asked_about_last(filled, log, write_rows):
    write_rows(filled, tables.WITHDRAWN_ITEMS, [("2", DAY), ("u1", DAY)], DAY)
    rows = describe_items(filled, DAY, 3, partial(FakeModel, log))
    assert sources(rows) == dict.fromkeys("134", ("llm", None)) | {"2": ("facts", "budget")}
    assert sources(describe_items(filled, NEXT, 1, partial(FakeModel, log)))["2"] == ("facts", "refusal")

    facts = facts_of_users(filled, DAY, HISTORY)  # of other entities, whose ids may be the same
    describe_entities(filled, DAY, USER, facts, caps=Caps(1), make_model=partial(FakeModel, log))
    [described] = filled.read(tables.USER_DESCRIPTION, DAY).where("source = 'llm'").collect()
    assert described.user_id == "u1"


def test_a_later_day_pays_for_the_next_items_and_changes_no_earlier_day(filled, log):
    describe_items(filled, DAY, 2, partial(FakeModel, log))
    before = mtimes(filled, DAY)
    rows = describe_items(filled, NEXT, 2, partial(FakeModel, log))
    assert sources(rows) == {"1": ("llm", None), "2": ("facts", "refusal"), "3": ("llm", None), "4": ("llm", None)}
    describe_items(filled, DAY, 2, partial(FakeModel, log))
    assert mtimes(filled, DAY) == before
    assert len(asked(log)) == len(set(asked(log))) == 4


def test_an_earlier_day_described_later_uses_paid_texts_and_no_model(filled, log):
    describe_items(filled, NEXT, 2, partial(FakeModel, log))
    rows = describe_items(filled, DAY, 0, no_model)
    assert sources(rows)["1"] == ("llm", None)
    assert sources(rows)["3"] == ("facts", "budget")


def test_with_a_higher_budget_a_day_is_completed_and_equal_facts_are_paid_for_once(filled, log, write_rows):
    write_rows(filled, tables.ITEMS, item_rows(CATALOGUE | {"5": "Fargo"}), DAY)
    describe_items(filled, DAY, 1, partial(FakeModel, log))
    rows = describe_items(filled, DAY, 3, partial(FakeModel, log))
    assert rows["3"].description == rows["5"].description == ACCEPTED.format("Fargo")
    assert len(asked(log)) == 3


def test_unchanged_rows_keep_computed_at(filled, settings_with, log):
    first = describe_items(filled, DAY, 2, partial(FakeModel, log))
    later = Lake(filled.spark, settings_with(now="1998-03-09T00:00:00Z"))
    second = describe_items(later, NEXT, 1, partial(FakeModel, log))
    assert second["1"].computed_at == first["1"].computed_at
    assert second["3"].computed_at > first["3"].computed_at  # facts gave way to a text


def test_a_new_model_has_its_own_budget_and_the_old_rows_stay(filled, settings, log):
    old = describe_items(filled, DAY, 2, partial(FakeModel, log))
    (settings.llm / "config.json").write_text('{"new": true}')
    new = describe_items(Lake(filled.spark, settings), DAY, 2, partial(FakeModel, log))
    assert new["1"].model_revision != old["1"].model_revision
    assert filled.read(tables.ITEM_GENERATION, DAY).count() == len(asked(log)) == 4


def test_texts_paid_for_before_a_failure_are_not_paid_again(filled, log, write_rows):
    films = {f"{number}": f"Film {number}" for number in range(10, 16)}
    write_rows(filled, tables.ITEMS, item_rows(films | {"99": "Jaws"}), DAY)
    with pytest.raises(GenerationError, match=r"^GRASP_LLM: no usable language model$"):
        describe_items(filled, DAY, 99, partial(BrokenModel, log))
    num_kept = filled.read(tables.ITEM_GENERATION, DAY).count()
    assert num_kept >= 1
    before = len(asked(log))
    assert sources(describe_items(filled, DAY, 99, partial(FakeModel, log)))["99"] == ("llm", None)
    assert len(asked(log)) - before == len(films) + 1 - num_kept


def test_a_failed_call_is_repeated_by_the_next_run(filled, log):
    rows = describe_items(filled, DAY, 9, partial(OverloadedModel, log))
    assert sources(rows)["4"] == ("facts", "rate_limited")
    assert {row.item_id: row.error for row in filled.read(tables.ITEM_GENERATION, DAY).collect() if row.error} == {
        "4": "rate_limited"
    }
    assert sources(describe_items(filled, DAY, 9, partial(FakeModel, log)))["4"] == ("llm", None)
    assert len(asked(log)) == 5


def test_a_failed_call_is_the_fallback_reason_of_its_day_only(filled, log):
    describe_items(filled, DAY, 9, partial(OverloadedModel, log))
    assert sources(describe_items(filled, NEXT, 0, no_model))["4"] == ("facts", "budget")
    describe_items(filled, NEXT, 9, partial(FakeModel, log))
    before = mtimes(filled, DAY)
    assert sources(describe_items(filled, DAY, 9, no_model))["4"] == ("facts", "rate_limited")
    assert mtimes(filled, DAY) == before


def test_a_server_can_replace_the_folder_and_is_asked_once(filled, settings_with, model_server):
    settings = settings_with(llm_url=model_server.url, llm_model="test-model", llm_max_attempts=3)
    served = Lake(filled.spark, settings)
    model_server.script(numbers=[{"kind": "status", "status": 500}, {"kind": "reset"}])
    rows = describe_items(served, DAY, 9)
    assert {row.source for row in rows.values()} == {"llm"}
    assert rows["2"].description == ACCEPTED.format("Alien")
    assert rows["2"].model_revision.startswith("test_model-")
    describe_items(served, DAY, 9)
    assert sorted(model_server.seen()["answers"].values()) == [1, 1, 1, 1]


def served(filled, settings_with, model_server, **changed):
    at = {"llm_url": model_server.url, "llm_model": "test-model", "llm_max_attempts": 2, "llm_max_failure_share": 1.0}
    return Lake(filled.spark, settings_with(**at | changed))


def titles_asked(model_server):
    return {key.partition("title: ")[2].partition("\n")[0]: num for key, num in model_server.seen()["requests"].items()}


@pytest.mark.parametrize(
    ("caps", "usage"),
    [
        ({"llm_max_tokens": 160_000}, [1150, 30]),  # items have half of it
        ({"llm_max_cost": 0.6, "llm_input_price": 1.0, "llm_output_price": 40.0}, [1150, 80]),
        ({"llm_max_calls": 132}, [1150, 30]),
    ],
)
def test_a_cap_is_nearly_used_up_over_many_tasks_and_never_exceeded(
    filled, settings_with, model_server, write_rows, monkeypatch, caps, usage
):
    for name in ("MIN_TASK_REQUESTS", "MAX_TASK_REQUESTS"):  # as on a cluster with many cores
        monkeypatch.setattr(live_generation, name, 1)
    films = {f"{number}": f"Film {number}" for number in range(99)}
    write_rows(filled, tables.ITEMS, item_rows(films), DAY)
    model_server.script(default={"kind": "answer", "usage": usage})
    lake = served(filled, settings_with, model_server, llm_budget=200, llm_max_new_tokens=80, **caps)
    facts = item_facts(lake.read(tables.ITEMS, DAY), interactions_frame(lake, HISTORY), DAY)

    limits = Caps.of(lake.settings, "item")
    describe_entities(lake, DAY, ITEM, facts, caps=limits)

    num_tokens = F.col("num_input_tokens") + F.col("num_output_tokens")
    rows = lake.read(tables.ITEM_GENERATION, DAY).select("num_attempts", num_tokens.alias("num_tokens"), "cost")
    [spent] = rows.agg(*(F.sum(name).alias(name) for name in rows.columns)).collect()
    used = {"num_calls": spent.num_attempts, "num_tokens": spent.num_tokens, "cost": spent.cost}
    shares = [used[name] / limit for name, limit in asdict(limits.limits()).items() if limit is not None]
    assert len(shares) == 1
    assert 0.95 <= shares[0] <= 1
    assert model_server.num_requests() == spent.num_attempts >= 60


def test_texts_that_fail_again_and_again_do_not_use_up_the_budget(filled, settings_with, model_server, write_rows):
    lake = served(filled, settings_with, model_server)
    filtered = {"kind": "status", "status": 400, "code": "content_filter", "repeat": True}
    alien = prompt_messages(ITEM, item_input({"title": "Alien", "attributes": {"genres": "Drama"}}, ()))
    model_server.script(prompts={alien[-1]["content"]: [filtered]})

    with pytest.raises(GenerationError, match="1 content_filter"):  # of a model that has never answered
        describe_items(lake, DAY, 1)
    for number in range(2, 8):
        write_rows(lake, tables.ITEMS, item_rows(CATALOGUE), f"1998-03-{number:02d}")
        rows = describe_items(lake, f"1998-03-{number:02d}", 1)  # Alien is the most urgent
    assert titles_asked(model_server) == {"Alien": lake.settings.llm_park_after, "Heat": 1, "Fargo": 1, "Jaws": 1}
    assert sources(rows)["2"] == ("facts", "content_filter")

    [letter] = find_dead_letters(lake.settings, "item")
    assert letter.state == PARKED
    replay(lake.settings, [letter], limit=None)
    model_server.script(prompts={})
    write_rows(lake, tables.ITEMS, item_rows(CATALOGUE), "1998-03-08")
    assert sources(describe_items(lake, "1998-03-08", 1))["2"] == ("llm", None)


@pytest.mark.parametrize(
    ("behaviour", "said", "billed"),
    [
        ({"kind": "wrong_model"}, r"5 wrong_model \(asked for test-model, answered by another-model\)", 500),
        (
            {"kind": "status", "status": 400, "code": "unsupported_parameter", "param": "max_tokens"},
            r"5 rejected \(status 400, unsupported_parameter, max_tokens\)",
            0,
        ),
        ({"kind": "empty", "finish": "length"}, r"5 cut \(by GRASP_LLM_MAX_NEW_TOKENS\)", 500),
    ],
)
def test_wrong_settings_show_in_the_first_few_requests(
    filled, settings_with, model_server, write_rows, behaviour, said, billed
):
    write_rows(filled, tables.ITEMS, item_rows({f"{number}": f"Film {number}" for number in range(66)}), DAY)
    model_server.script(default=behaviour | {"repeat": True})
    lake = served(filled, settings_with, model_server)
    with pytest.raises(GenerationError, match=f"none of the first 5 requests was answered, .*: {said}$"):
        describe_items(lake, DAY, 99)

    assert model_server.num_requests() == 5
    [spent] = lake.read(tables.ITEM_GENERATION, DAY).agg(F.sum("num_input_tokens").alias("num")).collect()
    assert spent.num == billed


def test_waves_of_tasks_begin_with_the_most_urgent_requests(filled, log, write_rows, monkeypatch):
    for name in ("MIN_TASK_REQUESTS", "MAX_TASK_REQUESTS"):
        monkeypatch.setattr(live_generation, name, 2)
    films = {f"{number:02d}": f"Film {number}" for number in range(12)}
    write_rows(filled, tables.ITEMS, item_rows(films), DAY)
    describe_items(filled, DAY, 99, partial(FakeModel, log))

    order = [int(line.partition("Film ")[2].partition("\\n")[0]) for line in asked(log)]
    assert sorted(order) == list(range(12))
    assert [set(order[start : start + 4]) for start in range(0, 12, 4)] == [
        set(range(start, start + 4)) for start in (0, 4, 8)
    ]


def test_users_are_described_from_their_profile_and_history(filled, log):
    facts = facts_of_users(filled, DAY, HISTORY)
    describe_entities(filled, DAY, USER, facts, caps=Caps(1), make_model=partial(FakeModel, log))
    rows = {row.user_id: row for row in filled.read(tables.USER_DESCRIPTION, DAY).collect()}
    assert rows["u1"].source == "llm"
    assert "recent: Heat; Alien" in json.loads(asked(log)[0])
    assert rows["u2"].description == "A 24 year old writer who favours Drama. Recently chose Alien."
    assert rows["silent"].description == "A 24 year old writer."


def test_a_future_event_does_not_change_earlier_facts(lake):
    planted = [*HISTORY, ("u1", "4", f"{NEXT}T00:00:00"), ("u2", "3", f"{NEXT}T05:00:00")]
    assert raw_facts(lake, DAY, planted) == raw_facts(lake, DAY, HISTORY)
    assert raw_facts(lake, NEXT, planted)["u1"]["recent"] == ["Jaws", "Heat", "Alien"]
    items = items_frame(lake, CATALOGUE)
    priorities = {
        row.entity_id: row.activity for row in item_facts(items, interactions_frame(lake, planted), DAY).collect()
    }
    assert priorities == {"1": 1, "2": 2, "3": 0, "4": 0}


def test_the_latest_interaction_can_be_held_out(lake):
    facts = raw_facts(lake, DAY, HISTORY, holdout=1)
    assert facts["u1"]["recent"] == ["Alien"]
    assert "recent" not in facts["u2"]


def test_equal_times_keep_the_order_of_the_source(lake):
    rows = [("u1", item, f"{DAY}T01:00:00") for item in ("2", "3", "1")]
    assert raw_facts(lake, DAY, rows)["u1"]["recent"] == ["Heat", "Fargo", "Alien"]


def test_no_secret_is_sent_to_the_workers(settings_with):
    settings = settings_with(milvus_token="very-secret")
    assert b"very-secret" not in cloudpickle.dumps(model_factory(settings))


def test_the_factory_of_a_server_model_holds_no_key(settings_with, monkeypatch):
    monkeypatch.setenv("GRASP_LLM_API_KEY", "very-secret")
    settings = settings_with(llm_url="http://localhost:8000/v1", llm_model="m", llm_requests_per_minute=90)
    make_model = model_factory(settings, num_workers=3)
    assert make_model.args[0].requests_per_minute == 30
    assert b"very-secret" not in cloudpickle.dumps(make_model)
