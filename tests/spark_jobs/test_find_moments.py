"""The window's moments, who asks them, and what they vote for: of the past alone, and without users who are gone."""

import json
from dataclasses import asdict
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from grasp import tables
from grasp.days import plus_days, start_of
from grasp.manifest import MANIFEST_FILE, Manifest
from grasp.moments import VoteRule
from grasp.versions import collection, description_hash
from spark_jobs import find_moments
from spark_jobs.storage.lake import Lake
from spark_jobs.vectors.milvus import open_vector_store
from spark_jobs.vectors.moment_collection import MomentCollection, texts_of
from spark_jobs.vectors.moment_table import files_of_window

pytestmark = pytest.mark.spark

FIRST, SECOND, THIRD, FOURTH = (f"1998-03-0{number}" for number in range(1, 5))
ITEMS = "abcdefghijkl"


def at(day, minute):
    return start_of(day) + timedelta(hours=10, minutes=minute)


def vector(item):
    unit = np.random.default_rng(ord(item)).normal(size=4)
    return (unit / np.linalg.norm(unit)).tolist()


@pytest.fixture
def events(write_rows):
    """`events(lake, DAY, "ann:abc", "bob:b")`: what users took on a day, in this order; and the day's item vectors."""

    def write(lake, day, *taken, items=ITEMS):
        steps = [(user, item) for user, _, took in (each.partition(":") for each in taken) for item in took]
        rows = [(user, item, at(day, number), number) for number, (user, item) in enumerate(steps)]
        write_rows(lake, tables.INTERACTIONS, rows, day)
        vectors = [(item, vector(item), description_hash(item), None) for item in items]
        write_rows(lake, tables.ITEM_EMBEDDING, vectors, day)

    return write


@pytest.fixture
def state(write_rows):
    """`state(lake, DAY, "ann:abc")`: `user_features` of a day, with what users had taken, one item a day until then."""

    def write(lake, day, *taken):
        rows = []
        for user, _, took in (each.partition(":") for each in taken):
            days = [plus_days(day, -age) for age in range(len(took) - 1, -1, -1)]
            known = {
                "user_id": user,
                "sequence": list(took),
                "sequence_times": [int(at(each, 0).timestamp()) for each in days],
            }
            rows.append(tuple(known.get(name) for name in tables.USER_FEATURES.column_names))
        write_rows(lake, tables.USER_FEATURES, rows, day)

    return write


@pytest.fixture
def lake_with(spark, settings_with):
    """`lake_with(moment_days=2)`: by default two days of moments, and one user is enough for a vote."""
    return lambda **changed: Lake(
        spark, settings_with(**{"moment_days": 2, "moment_min_voters": 1, "late_days": 1} | changed)
    )


def moments(lake, day):
    rows = lake.read(tables.MOMENTS, day).orderBy("event_time", "row_number").collect()
    return [(row.user_id, "".join(row.history_item_ids), row.item_id) for row in rows]


def votes(lake, day):
    """Voted items of each user with their weights."""
    return {
        row.user_id: dict(zip(row.neighbour_item_ids, map(round4, row.neighbour_item_weights), strict=True))
        for row in lake.read(tables.USER_NEIGHBOUR_ITEMS, day).collect()
    }


def round4(weight):
    return round(weight, 4)


def files(lake, *of):
    return {
        path: path.stat().st_mtime_ns for table in of for path in lake.partition(table, "x").parent.rglob("*.parquet")
    }


def test_a_moment_is_what_was_taken_before_newest_first(lake_with, events):
    lake = lake_with()
    events(lake, FIRST, "ann:ab", "bob:c")
    events(lake, SECOND, "bob:d", "ann:cdefghi")
    find_moments.main(lake, SECOND)
    assert moments(lake, FIRST) == [("ann", "a", "b")]
    assert moments(lake, SECOND) == [
        ("bob", "c", "d"),
        ("ann", "ba", "c"),
        ("ann", "cba", "d"),
        ("ann", "dcba", "e"),
        ("ann", "edcba", "f"),
        ("ann", "fedcba", "g"),
        ("ann", "gfedcba", "h"),
        ("ann", "hgfedcba", "i"),
    ]
    events(lake, THIRD, "ann:j")
    find_moments.main(lake, THIRD)
    assert moments(lake, THIRD) == [("ann", "ihgfedcb", "j")]


def test_equal_times_are_ordered_by_row_number(lake_with, write_rows, events):
    lake = lake_with()
    events(lake, FIRST)
    rows = [("ann", item, at(FIRST, 0), number) for item, number in (("b", 2), ("a", 1), ("c", 3))]
    write_rows(lake, tables.INTERACTIONS, rows, FIRST)
    find_moments.main(lake, FIRST)
    assert moments(lake, FIRST) == [("ann", "a", "b"), ("ann", "ba", "c")]


def test_what_similar_users_took_is_voted_for_by_every_user_who_was_active(lake_with, events):
    lake = lake_with(moment_active_days=3, moment_text_share=0, moment_sharpness=0, moment_min_voters=2)
    events(lake, FIRST, "gone:a")
    events(lake, SECOND, "idle:a")
    events(lake, THIRD, "ann:ab", "bob:ab", "cyd:ac")
    events(lake, FOURTH, "dan:a")
    find_moments.main(lake, FOURTH)
    # Three moments vote: b, b and c. Of ann's and bob's only the other's is left, and that is one user.
    assert votes(lake, FOURTH) == {
        "idle": {"b": 0.6667},
        "ann": {},
        "bob": {},
        "cyd": {"b": 1.0},
        "dan": {"b": 0.6667},
    }
    assert moments(lake, THIRD) == [("ann", "a", "b"), ("bob", "a", "b"), ("cyd", "a", "c")]
    assert moments(lake, FOURTH) == []


def test_the_nearer_moment_has_more_votes(lake_with, events):
    lake = lake_with()
    events(lake, FIRST, "ann:ab", "bob:cd", "cyd:a", "dan:c")
    find_moments.main(lake, FIRST)
    found = votes(lake, FIRST)
    assert next(iter(found["cyd"])) == "b"
    assert next(iter(found["dan"])) == "d"


def test_items_from_before_the_window_come_from_the_state_before_it(lake_with, events, state):
    """The same rows as from all history; what lies before the state is not read."""
    lake = lake_with()
    taken = {plus_days(FIRST, -age): f"ann:{item}" for age, item in zip(range(6, 0, -1), ITEMS, strict=False)}
    for day, each in taken.items():
        events(lake, day, each)
    events(lake, FIRST, "ann:h", "bob:b")
    events(lake, SECOND, "ann:i", "bob:c")
    find_moments.main(lake, SECOND)
    before = moments(lake, FIRST), moments(lake, SECOND), votes(lake, SECOND)
    assert before[0] == [("ann", "fedcba", "h")]

    last = plus_days(FIRST, -1)
    state(lake, last, "ann:abcdef")
    for day in list(taken)[:-2]:  # GRASP_LATE_DAYS before the state are read again
        lake.remove_days(tables.INTERACTIONS, [day])
    events(lake, THIRD, "ann:j", "bob:d")  # a later day
    find_moments.main(lake, SECOND)
    assert (moments(lake, FIRST), moments(lake, SECOND), votes(lake, SECOND)) == before


def test_an_event_that_came_after_the_state_counts(lake_with, events, state):
    lake, last = lake_with(), plus_days(FIRST, -1)
    state(lake, last, "ann:aab")
    events(lake, plus_days(last, -1), "ann:a")
    events(lake, last, "ann:bc")  # c came late
    events(lake, FIRST, "ann:d")
    events(lake, SECOND, "ann:e")
    find_moments.main(lake, SECOND)
    assert moments(lake, FIRST) == [("ann", "cbaa", "d")]


def test_a_late_event_changes_its_day_and_what_follows(lake_with, events, capsys):
    lake = lake_with(moment_days=3)
    events(lake, FIRST, "ann:ab")
    events(lake, SECOND, "ann:c", "bob:a")
    events(lake, THIRD, "bob:b", "ann:d")
    find_moments.main(lake, THIRD)
    before = files(lake, tables.MOMENTS)
    events(lake, SECOND, "ann:c", "bob:a", "bob:e")
    find_moments.main(lake, THIRD)
    assert moments(lake, SECOND) == [("ann", "ba", "c"), ("bob", "a", "e")]
    assert moments(lake, THIRD) == [("bob", "ea", "b"), ("ann", "cba", "d")]
    assert "2 days changed" in capsys.readouterr().out
    kept = {path for path in before if f"day={FIRST}" in str(path)}
    assert kept and all(files(lake, tables.MOMENTS).get(path) == before[path] for path in kept)


def test_a_user_who_is_gone_has_no_moment_no_vote_and_is_no_voter(lake_with, events, state):
    lake = lake_with(moment_min_voters=2)
    state(lake, plus_days(FIRST, -1), "bob:hhh", "cyd:ggg")
    events(lake, FIRST, "ann:ab", "bob:ab", "cyd:a", "dan:ac", "eve:ac")
    events(lake, SECOND, "cyd:d")
    find_moments.main(lake, SECOND)
    assert votes(lake, SECOND)["cyd"].keys() == {"b", "c"}
    assert {user for user, _, _ in moments(lake, FIRST)} == {"ann", "bob", "cyd", "dan", "eve"}

    events(lake, FIRST, "ann:ab", "cyd:a", "dan:ac", "eve:ac")  # bob was erased
    find_moments.main(lake, SECOND)
    found = votes(lake, SECOND)
    assert found.keys() == {"ann", "cyd", "dan", "eve"}
    assert found["cyd"].keys() == {"c"}, "one user is left who took b"
    assert "bob" not in {user for user, _, _ in moments(lake, FIRST)}


def test_nothing_after_the_day_is_read(lake_with, events, state):
    lake = lake_with()
    events(lake, FIRST, "ann:ab", "bob:c")
    events(lake, SECOND, "ann:c", "bob:d", "cyd:a")
    find_moments.main(lake, SECOND)
    before = moments(lake, FIRST), moments(lake, SECOND), votes(lake, SECOND)

    events(lake, THIRD, "ann:d", "bob:e", "cyd:b", "new:ab", items=ITEMS + "mn")
    events(lake, FOURTH, "cyd:c", items=ITEMS + "mnop")
    find_moments.main(lake, FOURTH)
    state(lake, FOURTH, "ann:abcd", "bob:cde", "cyd:abc")
    find_moments.main(lake, SECOND)
    assert (moments(lake, FIRST), moments(lake, SECOND), votes(lake, SECOND)) == before


def test_the_window_is_kept_and_a_back_fill_takes_nothing_from_a_later_day(lake_with, events):
    lake = lake_with()
    for day in (FIRST, SECOND, THIRD, FOURTH):
        events(lake, day, "ann:ab", "bob:ab")
    for day in (SECOND, THIRD, FOURTH):
        find_moments.main(lake, day)
    assert lake.days(tables.MOMENTS) == [THIRD, FOURTH]
    before = files(lake, tables.MOMENTS, tables.USER_NEIGHBOUR_ITEMS)

    find_moments.main(lake, SECOND)
    assert lake.days(tables.MOMENTS) == [FIRST, SECOND, THIRD, FOURTH]
    after = files(lake, tables.MOMENTS, tables.USER_NEIGHBOUR_ITEMS)
    assert after.items() >= before.items()

    find_moments.main(lake, SECOND)
    assert files(lake, tables.MOMENTS, tables.USER_NEIGHBOUR_ITEMS) == after
    find_moments.main(lake, FOURTH)
    assert files(lake, tables.MOMENTS, tables.USER_NEIGHBOUR_ITEMS) == before


def crowd(events, lake):
    """Two days of forty users."""
    random = np.random.default_rng(5)
    for day in (FIRST, SECOND):
        events(lake, day, *(f"u{user}:{''.join(random.choice(list(ITEMS), 3))}" for user in range(40)))


def test_blocks_of_users_change_no_vote(lake_with, events, monkeypatch, capsys):
    lake = lake_with()
    crowd(events, lake)
    find_moments.main(lake, SECOND)
    together = votes(lake, SECOND)
    assert len(together) == 40
    assert all(together.values())
    monkeypatch.setattr(find_moments, "USERS_PER_BLOCK", 7)
    lake.remove_days(tables.USER_NEIGHBOUR_ITEMS, [SECOND])
    find_moments.main(lake, SECOND)
    assert votes(lake, SECOND) == together
    capsys.readouterr()
    find_moments.main(lake, SECOND)
    assert "40 got votes, unchanged" in capsys.readouterr().out


def test_a_user_who_starts_today_asks_with_what_was_taken_today(lake_with, events):
    lake = lake_with(moment_text_share=0)
    events(lake, FIRST, "ann:ab", "bob:cd")
    events(lake, SECOND, "cyd:c")
    find_moments.main(lake, SECOND)
    assert next(iter(votes(lake, SECOND)["cyd"])) == "d"


def test_days_without_moments_or_interactions_leave_users_without_votes(lake_with, events):
    lake = lake_with(moment_active_days=2)
    for day, asked in ((FIRST, {"ann": {}}), (SECOND, {"ann": {}}), (THIRD, {})):
        events(lake, day, *(["ann:a"] if day == FIRST else []))
        find_moments.main(lake, day)
        assert (moments(lake, day), votes(lake, day)) == ([], asked)


def test_a_day_without_item_embedding_is_named(lake_with):
    with pytest.raises(FileNotFoundError, match="item_embedding has no partition for 1998-03-01"):
        find_moments.main(lake_with(), FIRST)


# --- Milvus


def in_milvus(lake):
    with open_vector_store(lake.settings) as store:
        name = collection("moments", lake.versions.embedding)
        return store.texts(name) if store.has_collection(name) else None


def test_what_milvus_proposes_gives_the_same_votes(lake_with, events, capsys):
    exact, proposed = lake_with(), lake_with(moment_exact_up_to=1)
    crowd(events, exact)
    find_moments.main(exact, SECOND)
    expected = votes(exact, SECOND)
    assert in_milvus(exact) is None, "Milvus-Lite gets nothing while all are compared"
    find_moments.main(proposed, SECOND)
    assert votes(proposed, SECOND) == expected
    assert "recall 1.000 of the nearest moments, measured on 32 users" in capsys.readouterr().out
    held = in_milvus(proposed)
    assert len(held) == 5 * 40  # the first of six interactions is no moment
    assert {each.id for each in held} == {FIRST, SECOND}, "no row names a user"
    assert not list((proposed.root / "_staging").glob("votes-*")), "the file of the votes is gone"


def test_a_collection_that_proposes_too_little_names_the_setting(lake_with, events):
    class ForgetfulStore:
        """Finds one row, whatever it is asked for."""

        def search(self, name, vectors, k):
            return [[(row, 1.0)] for _ in vectors]

    lake = lake_with()
    events(lake, FIRST, "ann:abcd", "bob:cd")
    find_moments.main(lake, FIRST)
    found = files_of_window(lake, FIRST)
    row = texts_of(found, lake.settings.moment_text_share)[0]
    moments = MomentCollection(ForgetfulStore(), lake, found)
    asking = pa.table({"user_id": ["cyd"], "history_item_ids": [["a"]]})
    with pytest.raises(ValueError, match=r"1 of 4 nearest moments.* GRASP_MOMENT_EXACT_UP_TO to 4 to compare all"):
        list(moments.votes(asking))


def test_moments_of_nobody_are_deleted_those_of_a_later_day_and_of_releases_stay(lake_with, events):
    lake = lake_with(moment_exact_up_to=1)
    for number, day in enumerate((FIRST, SECOND, THIRD, FOURTH)):
        events(lake, day, f"ann:{ITEMS[2 * number]}", f"bob:{ITEMS[2 * number + 1]}")
    for day in (SECOND, THIRD):
        find_moments.main(lake, day)
    assert {each.id for each in in_milvus(lake)} == {SECOND, THIRD}
    held = in_milvus(lake)
    find_moments.main(lake, SECOND)
    assert in_milvus(lake) == held, "a first interaction is no moment, and the third day needs its own"

    folder = publish(lake, SECOND)
    find_moments.main(lake, FOURTH)
    assert {each.id for each in in_milvus(lake)} == {SECOND, THIRD, FOURTH}
    (folder / MANIFEST_FILE).write_text("{")
    events(lake, THIRD, "ann:g")
    find_moments.main(lake, FOURTH)
    assert in_milvus(lake) >= held, "nothing is deleted while a release cannot be read"
    (folder / MANIFEST_FILE).unlink()
    find_moments.main(lake, FOURTH)
    assert len(in_milvus(lake)) == 3


def publish(lake, day):
    """What a release on disk tells the job: its manifest, its moments, and the descriptions of its items."""
    version = lake.versions.embedding
    rule = asdict(VoteRule.of(lake.settings))
    manifest = Manifest(day, "f", version, {}, "ranker", None, vote_rule=rule)
    folder = lake.settings.releases / manifest.release_id
    (folder / "items").mkdir(parents=True)
    (folder / MANIFEST_FILE).write_text(json.dumps(asdict(manifest)))
    pq.write_table(pa.table({"item_id": list(ITEMS), "description": list(ITEMS)}), folder / "items" / "part-0.parquet")
    for number, part in enumerate(sorted(lake.partition(tables.MOMENTS, day).glob("*.parquet"))):
        target = folder / "moments" / f"part-{number}.parquet"
        target.parent.mkdir(exist_ok=True)
        pq.write_table(pq.ParquetFile(part).read(), target)
    return folder


def test_a_server_gets_the_moments_although_all_are_compared(lake_with, events):
    lake = lake_with(milvus_uri="http://127.0.0.1:9")
    events(lake, FIRST, "ann:ab", "bob:a")
    with pytest.raises(ValueError, match=r"GRASP_MILVUS_URI=http://127\.0\.0\.1:9"):
        find_moments.main(lake, FIRST)
    assert votes(lake, FIRST)["bob"] == {"b": 1.0}, "the votes are written first"


def test_a_moment_without_a_known_item_is_not_in_milvus(lake_with, events):
    lake = lake_with(moment_exact_up_to=1)
    events(lake, FIRST, "ann:ab", "bob:ba", "cyd:abc", items="b")
    find_moments.main(lake, FIRST)
    assert len(in_milvus(lake)) == 2  # bob's, and cyd's second
    assert votes(lake, FIRST) == {"ann": {}, "bob": {}, "cyd": {}}, "the day knows none of what they took next"
