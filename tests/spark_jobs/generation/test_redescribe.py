"""Over several days: which texts are generated again, which are kept, and what happens when a day fails."""

import json
from functools import partial

import pytest

from grasp import partitions, tables
from spark_jobs.commands.dead_letters import find_dead_letters, replay
from spark_jobs.commands.forecast import count_keys
from spark_jobs.generation.budget import Caps
from spark_jobs.generation.describe_entities import FACTS_DDL, describe_entities
from spark_jobs.generation.live_generation import GenerationError
from spark_jobs.generation.prompts import ITEM, USER
from spark_jobs.models.language_model import Generation
from spark_jobs.storage.lake import Lake

pytestmark = pytest.mark.spark

DAY, NEXT, LAST = "1998-03-01", "1998-03-02", "1998-03-03"
ALL_DAYS = (DAY, NEXT, LAST)
ACCEPTED = "{} is a film for viewers who enjoy the drama, and it goes well with other dramas."
REFUSED = "Sorry, it is not possible to describe this film for viewers."


class FakeModel:
    """Writes a good text unless the title begins with `Bad`, and logs each request to a file."""

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
def filled(lake, write_rows):
    for day in ALL_DAYS:
        write_rows(lake, tables.ITEMS, [("1", "Heat", {"genres": "Drama"})], day)
    return lake


def facts_of_users(lake, users):
    """`users`: by id, the number of interactions and the newest titles."""
    rows = [
        (
            user,
            activity,
            json.dumps({"attributes": {"occupation": "writer"}, "recent": recent, "favourites": ["Drama"]}),
        )
        for user, (activity, recent) in users.items()
    ]
    return lake.spark.createDataFrame(rows, FACTS_DDL)


def describe_users(lake, day, users, num_keys, make_model):
    describe_entities(lake, day, USER, facts_of_users(lake, users), caps=Caps(num_keys), make_model=make_model)
    return {row.user_id: row for row in lake.read(tables.USER_DESCRIPTION, day).collect()}


def describe_user(lake, day, activity, recent, num_keys, make_model):
    return describe_users(lake, day, {"u": (activity, recent)}, num_keys, make_model)["u"]


def describe_items(lake, day, titles, num_keys, make_model):
    raws = [json.dumps({"title": title, "attributes": {"genres": "Drama"}}) for title in titles]
    facts = lake.spark.createDataFrame([(f"{n}", 1, raw) for n, raw in enumerate(raws)], FACTS_DDL)
    describe_entities(lake, day, ITEM, facts, caps=Caps(num_keys), make_model=make_model)
    return {row.item_id: row for row in lake.read(tables.ITEM_DESCRIPTION, day).collect()}


def files_of(lake, *of):
    """Every file of these tables with the time of its last change."""
    paths = [path for table in of for path in partitions.table_path(lake.root, table, None).glob("**/*")]
    return {str(path): path.stat().st_mtime_ns for path in paths if path.is_file() and path.name != "_lock"}


def test_a_user_gets_a_new_text_when_the_history_has_grown_enough(filled, log):
    model = partial(FakeModel, log)
    first = describe_user(filled, DAY, 10, ["Heat"], 9, model)
    second = describe_user(filled, NEXT, 11, ["Jaws", "Heat"], 9, no_model)
    assert (second.description, second.activity, second.computed_at) == (first.description, 10, first.computed_at)

    third = describe_user(filled, LAST, 12, ["Fargo", "Jaws", "Heat"], 9, model)  # a fifth more than ten
    assert (third.description, third.activity) == (ACCEPTED.format("Fargo"), 12)
    assert asked(log) == ["Heat", "Fargo; Jaws; Heat"]


def test_the_growth_is_a_setting(filled, settings_with, log):
    model = partial(FakeModel, log)
    describe_user(filled, DAY, 10, ["Heat"], 9, model)
    often = Lake(filled.spark, settings_with(redescribe_growth=0.1))
    assert describe_user(often, NEXT, 11, ["Jaws", "Heat"], 9, model).activity == 11


def test_a_users_text_is_kept_until_there_is_a_new_one(filled, log):
    model = partial(FakeModel, log)
    first = describe_user(filled, DAY, 10, ["Heat"], 9, model)
    second = describe_user(filled, NEXT, 30, ["Jaws", "Heat"], 0, no_model)
    assert (second.source, second.description, second.activity) == ("llm", first.description, 10)

    third = describe_user(filled, LAST, 30, ["Jaws", "Heat"], 9, model)
    assert (third.description, third.activity) == (ACCEPTED.format("Jaws"), 30)

    before = files_of(filled, tables.USER_DESCRIPTION)
    assert describe_user(filled, NEXT, 30, ["Jaws", "Heat"], 0, no_model) == second
    assert files_of(filled, tables.USER_DESCRIPTION) == before


def why(row):
    """Source, fallback reason, and number of interactions at the model's last answer."""
    return row.source, row.fallback_reason, row.activity


def forecast(lake, day, users):
    """The number of kept users, and of keys to generate."""
    counts, _ = count_keys(lake, day, USER, facts_of_users(lake, users))
    return counts.num_kept, counts.num_new


def test_a_refused_user_is_asked_about_again_when_the_history_has_grown_enough(filled, log):
    model = partial(FakeModel, log)
    first = {"to_good": (10, ["Bad 1"]), "to_bad": (10, ["Bad 2"]), "from_good": (10, ["Heat"])}
    rows = describe_users(filled, DAY, first, 9, model)
    assert why(rows["to_good"]) == why(rows["to_bad"]) == ("facts", "refusal", 10)
    assert why(rows["from_good"]) == ("llm", None, 10)

    second = {"to_good": (11, ["Jaws", "Bad 1"]), "to_bad": (11, ["Alien", "Bad 2"]), "from_good": (12, ["Bad 3"])}
    assert forecast(filled, NEXT, second) == (2, 1)
    rows = describe_users(filled, NEXT, second, 9, model)
    assert why(rows["to_good"]) == why(rows["to_bad"]) == ("facts", "refusal", 10)
    assert "Jaws" in rows["to_good"].description, "facts are the day's own"
    assert why(rows["from_good"]) == ("facts", "refusal", 12)

    third = {"to_good": (12, ["Fargo"]), "to_bad": (12, ["Bad 4"]), "from_good": (13, ["Dune"])}
    assert forecast(filled, LAST, third) == (1, 2)
    rows = describe_users(filled, LAST, third, 9, model)
    assert why(rows["to_good"]) == ("llm", None, 12)
    assert why(rows["to_bad"]) == why(rows["from_good"]) == ("facts", "refusal", 12)
    assert sorted(asked(log)) == ["Bad 1", "Bad 2", "Bad 3", "Bad 4", "Fargo", "Heat"]


def test_after_a_failed_call_the_user_is_asked_about_on_the_next_day(filled, log):
    model = partial(FakeModel, log)
    describe_user(filled, DAY, 10, ["Bad"], 9, model)
    failed = describe_user(filled, NEXT, 12, ["Jaws", "Bad"], 9, partial(SilentModel, log))
    assert why(failed) == ("facts", "timeout", None)
    assert why(describe_user(filled, LAST, 13, ["Fargo", "Jaws"], 9, model)) == ("llm", None, 13)


def test_an_outage_does_not_put_the_most_active_user_behind_others(filled, log):
    users = {"active": (10, ["Heat"]), "other": (6, ["Jaws"])}
    describe_users(filled, DAY, users, 1, partial(SilentModel, log))
    rows = describe_users(filled, NEXT, users, 1, partial(FakeModel, log))
    assert {user: row.source for user, row in rows.items()} == {"active": "llm", "other": "facts"}


def test_a_replay_asks_about_refused_users_once_whatever_their_history(filled, log):
    model = partial(FakeModel, log)
    # Two with equal facts, paid for as those of `clicked`, who has other facts when the replay comes.
    describe_users(filled, DAY, {"clicked": (10, ["Bad 1"]), "same": (10, ["Bad 1"]), "v": (10, ["Bad 2"])}, 9, model)
    letters = find_dead_letters(filled.settings, "user")
    assert [letter.state for letter in letters] == ["refused", "refused"]
    replay(filled.settings, letters, limit=None)

    second = {"clicked": (11, ["Jaws", "Bad 1"]), "same": (10, ["Bad 1"]), "v": (11, ["Bad 3", "Bad 2"])}
    assert forecast(filled, NEXT, second) == (0, 3)
    rows = describe_users(filled, NEXT, second, 9, model)
    assert why(rows["clicked"]) == ("llm", None, 11)
    assert why(rows["same"]) == ("facts", "refusal", 10)
    assert why(rows["v"]) == ("facts", "refusal", 11)
    assert sorted(asked(log)) == ["Bad 1", "Bad 1", "Bad 2", "Bad 3; Bad 2", "Jaws; Bad 1"]
    assert "queued" not in {letter.state for letter in find_dead_letters(filled.settings, "user")}

    third = {"clicked": (12, ["Dune"]), "same": (11, ["Dune", "Bad 1"]), "v": (12, ["Heat"])}
    rows = describe_users(filled, LAST, third, 9, no_model)
    assert [why(rows[user])[2] for user in third] == [11, 10, 11]


def test_running_an_earlier_day_again_keeps_its_refusal(filled, log):
    model, newest = partial(FakeModel, log), ["Bad too", "Bad"]
    for day, activity, recent in ((DAY, 10, ["Bad"]), (NEXT, 11, newest), (LAST, 12, newest)):
        describe_user(filled, day, activity, recent, 9, model)
    assert asked(log) == ["Bad", "Bad too; Bad"], "on the first day and on the last"
    before = files_of(filled, tables.USER_DESCRIPTION, tables.USER_GENERATION)

    for day, activity, recent in ((NEXT, 11, newest), (DAY, 10, ["Bad"]), (LAST, 12, newest)):
        describe_user(filled, day, activity, recent, 9, no_model)
    assert files_of(filled, tables.USER_DESCRIPTION, tables.USER_GENERATION) == before


def test_an_items_text_is_dropped_when_its_facts_change(filled, log):
    assert describe_items(filled, DAY, ["Heat"], 9, partial(FakeModel, log))["0"].source == "llm"
    row = describe_items(filled, NEXT, ["Heat and Dust"], 0, no_model)["0"]
    assert (row.source, row.fallback_reason, row.description) == ("facts", "budget", "Heat and Dust. genres: Drama.")


def test_a_day_with_too_many_failures_fails_every_time_it_runs(filled, settings_with, log):
    titles = ["Heat", *(f"Bad {number}" for number in range(19))]
    with pytest.raises(GenerationError, match=r"^19 of 20 texts of 1998-03-01 failed, .*SHARE=0\.9 allows: 19 refusal"):
        describe_items(filled, DAY, titles, 99, partial(FakeModel, log))
    assert filled.read(tables.ITEM_GENERATION, DAY).count() == len(asked(log)) == 20
    assert filled.days(tables.ITEM_DESCRIPTION) == []
    [metrics] = filled.read(tables.GENERATION_METRICS, DAY).collect()
    assert (metrics.num_accepted, metrics.num_refused, metrics.reasons) == (1, 19, {"refusal": 19})
    before = files_of(filled, tables.ITEM_GENERATION, tables.GENERATION_METRICS)

    with pytest.raises(GenerationError, match="19 of 20 texts of 1998-03-01 failed"):
        describe_items(filled, DAY, titles, 99, no_model)
    assert files_of(filled, tables.ITEM_GENERATION, tables.GENERATION_METRICS) == before
    assert filled.days(tables.ITEM_DESCRIPTION) == []

    allowed = Lake(filled.spark, settings_with(llm_max_failure_share=0.95))
    assert describe_items(allowed, DAY, titles, 99, no_model)["0"].source == "llm"


def test_failures_are_not_checked_for_few_texts(filled, log):
    rows = describe_items(filled, DAY, [f"Bad {number}" for number in range(19)], 99, partial(FakeModel, log))
    assert {row.fallback_reason for row in rows.values()} == {"refusal"}


def test_after_an_outage_the_day_is_asked_for_again_within_its_caps(filled, log):
    titles = [f"Film {number}" for number in range(20)]
    with pytest.raises(GenerationError, match=r"20 of 20 texts of 1998-03-01 failed.*20 timeout"):
        describe_items(filled, DAY, titles, 20, partial(SilentModel, log))

    rows = describe_items(filled, DAY, titles, 20, partial(FakeModel, log))
    assert {row.source for row in rows.values()} == {"llm"}
    [metrics] = filled.read(tables.GENERATION_METRICS, DAY).collect()
    assert (metrics.num_answers, metrics.num_unanswered, metrics.num_failed_calls) == (20, 0, 100)
