"""Over days: whose text is written anew, whose stays, and what becomes of a day that fails."""

import json
from functools import partial

import pytest

from grasp import partitions, tables
from spark_jobs.budget import Caps
from spark_jobs.describe import FACTS_DDL, describe
from spark_jobs.generate import GenerationError
from spark_jobs.lake import Lake
from spark_jobs.llm import Generation
from spark_jobs.prompts import ITEM, USER

pytestmark = pytest.mark.spark

DAY, NEXT, LAST = "1998-03-01", "1998-03-02", "1998-03-03"
ALL_DAYS = (DAY, NEXT, LAST)
ACCEPTED = "{} is a film for viewers who enjoy the drama, and it goes well with other dramas."
REFUSED = "Sorry, it is not possible to describe this film for viewers."


class FakeModel:
    """Writes a good text for every title but those that begin with `Bad`, and notes in a file what it was asked."""

    def __init__(self, log):
        self.log = log

    def limit(self, limits):
        pass

    def generate(self, prompts):
        for place, prompt in enumerate(prompts):
            lines = prompt[-1]["content"].splitlines()
            title = next(line for line in lines if line.startswith(("title: ", "recent: "))).split(": ", 1)[1]
            with self.log.open("a") as file:
                file.write(f"{title}\n")
            yield place, self.answer(title.split(";")[0])

    def answer(self, title):
        return Generation(REFUSED if title.startswith("Bad") else ACCEPTED.format(title), 100, 20, 0.1)


class SilentModel(FakeModel):
    """A server that does not answer."""

    def answer(self, title):
        return Generation("", 0, 0, 30.0, num_attempts=5, error="timeout")


def no_model():
    raise AssertionError("a model was made although nothing is to be generated")


@pytest.fixture
def log(tmp_path):
    return tmp_path / "asked.txt"


def asked(log):
    return log.read_text().splitlines() if log.exists() else []


@pytest.fixture
def filled(lake):
    items = lake.spark.createDataFrame([("1", "Heat", {"genres": "Drama"})], tables.ITEMS.ddl)
    for day in ALL_DAYS:
        lake.write(tables.ITEMS, items, day)
    return lake


def describe_user(lake, day, activity, recent, num_keys, make_model):
    """One user, by the number of interactions and the newest titles."""
    raw = json.dumps({"attributes": {"occupation": "writer"}, "recent": recent, "favourites": ["Drama"]})
    facts = lake.spark.createDataFrame([("u", activity, raw)], FACTS_DDL)
    describe(lake, day, USER, facts, caps=Caps(num_keys), make_model=make_model)
    [row] = lake.read(tables.USER_DESCRIPTION, day).collect()
    return row


def describe_items(lake, day, titles, num_keys, make_model):
    raws = [json.dumps({"title": title, "attributes": {"genres": "Drama"}}) for title in titles]
    facts = lake.spark.createDataFrame([(f"{n}", 1, raw) for n, raw in enumerate(raws)], FACTS_DDL)
    describe(lake, day, ITEM, facts, caps=Caps(num_keys), make_model=make_model)
    return {row.item_id: row for row in lake.read(tables.ITEM_DESCRIPTION, day).collect()}


def files_of(lake, *of):
    """Every file of these tables with the time of its last change."""
    paths = [path for table in of for path in partitions.table_path(lake.root, table, None).glob("**/*")]
    return {str(path): path.stat().st_mtime_ns for path in paths if path.is_file() and path.name != "_lock"}


def test_a_user_is_described_anew_once_the_history_has_grown_enough(filled, log):
    model = partial(FakeModel, log)
    first = describe_user(filled, DAY, 10, ["Heat"], 9, model)
    second = describe_user(filled, NEXT, 11, ["Jaws", "Heat"], 9, no_model)
    assert (second.description, second.activity, second.computed_at) == (first.description, 10, first.computed_at)

    third = describe_user(filled, LAST, 12, ["Fargo", "Jaws", "Heat"], 9, model)  # a fifth more than ten
    assert (third.description, third.activity) == (ACCEPTED.format("Fargo"), 12)
    assert asked(log) == ["Heat", "Fargo; Jaws; Heat"]


def test_how_much_is_enough_is_a_setting(filled, settings_with, log):
    model = partial(FakeModel, log)
    describe_user(filled, DAY, 10, ["Heat"], 9, model)
    often = Lake(filled.spark, settings_with(redescribe_growth=0.1))
    assert describe_user(often, NEXT, 11, ["Jaws", "Heat"], 9, model).activity == 11


def test_a_users_text_stays_until_a_new_one_is_paid_for(filled, log):
    model = partial(FakeModel, log)
    first = describe_user(filled, DAY, 10, ["Heat"], 9, model)
    second = describe_user(filled, NEXT, 30, ["Jaws", "Heat"], 0, no_model)
    assert (second.source, second.description, second.activity) == ("llm", first.description, 10)

    third = describe_user(filled, LAST, 30, ["Jaws", "Heat"], 9, model)
    assert (third.description, third.activity) == (ACCEPTED.format("Jaws"), 30)

    before = files_of(filled, tables.USER_DESCRIPTION)
    assert describe_user(filled, NEXT, 30, ["Jaws", "Heat"], 0, no_model) == second
    assert files_of(filled, tables.USER_DESCRIPTION) == before


def test_an_items_text_goes_with_the_facts_it_was_about(filled, log):
    assert describe_items(filled, DAY, ["Heat"], 9, partial(FakeModel, log))["0"].source == "llm"
    row = describe_items(filled, NEXT, ["Heat and Dust"], 0, no_model)["0"]
    assert (row.source, row.fallback_reason, row.description) == ("facts", "budget", "Heat and Dust. genres: Drama.")


def test_a_day_of_which_too_much_fails_is_no_day_however_often_it_runs(filled, settings_with, log):
    titles = ["Heat", *(f"Bad {number}" for number in range(19))]
    with pytest.raises(GenerationError, match=r"^19 of 20 texts failed, more than .*SHARE=0\.9 allows: 19 refusal"):
        describe_items(filled, DAY, titles, 99, partial(FakeModel, log))
    assert filled.read(tables.ITEM_GENERATION, DAY).count() == len(asked(log)) == 20
    assert filled.days(tables.ITEM_DESCRIPTION) == []
    [metrics] = filled.read(tables.GENERATION_METRICS, DAY).collect()
    assert (metrics.num_accepted, metrics.num_refused, metrics.reasons) == (1, 19, {"refusal": 19})
    before = files_of(filled, tables.ITEM_GENERATION, tables.GENERATION_METRICS)

    with pytest.raises(GenerationError, match="19 of 20 texts failed"):
        describe_items(filled, DAY, titles, 99, no_model)
    assert files_of(filled, tables.ITEM_GENERATION, tables.GENERATION_METRICS) == before
    assert filled.days(tables.ITEM_DESCRIPTION) == []

    allowed = Lake(filled.spark, settings_with(llm_max_failure_share=0.95))
    assert describe_items(allowed, DAY, titles, 99, no_model)["0"].source == "llm"


def test_too_few_failures_say_nothing(filled, log):
    rows = describe_items(filled, DAY, [f"Bad {number}" for number in range(19)], 99, partial(FakeModel, log))
    assert {row.fallback_reason for row in rows.values()} == {"refusal"}


def test_after_an_outage_the_day_is_asked_for_again_within_the_same_caps(filled, log):
    titles = [f"Film {number}" for number in range(20)]
    with pytest.raises(GenerationError, match=r"20 of 20 texts failed.*20 timeout"):
        describe_items(filled, DAY, titles, 20, partial(SilentModel, log))

    rows = describe_items(filled, DAY, titles, 20, partial(FakeModel, log))
    assert {row.source for row in rows.values()} == {"llm"}
    [metrics] = filled.read(tables.GENERATION_METRICS, DAY).collect()
    assert (metrics.num_answers, metrics.num_unanswered, metrics.num_failed_calls) == (20, 0, 100)
