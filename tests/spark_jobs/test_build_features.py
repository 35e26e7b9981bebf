"""Every item and user gets one row without data from after its day, and with the time of its last change."""

import shutil
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest

from grasp import tables
from grasp.days import end_of, last_second
from grasp.partitions import MissingPartitionError
from grasp.versions import Versions
from spark_jobs import build_features
from spark_jobs.build_features import (
    IncompleteFeaturesError,
    item_popularity,
    user_sequences,
    with_neighbour_items,
)
from spark_jobs.storage.lake import Lake

pytestmark = pytest.mark.spark

DAY, NEXT = "1998-02-20", "1998-02-21"
NOON, NEXT_NOON = datetime(1998, 2, 20, 12, tzinfo=UTC), datetime(1998, 2, 21, 12, tzinfo=UTC)


def interactions(spark, *rows):
    return spark.createDataFrame(list(rows), tables.INTERACTIONS.ddl)


@pytest.fixture
def write_parts(write_rows):
    """`write_parts(lake, DAY, "item", ids)`: the smallest complete description, embedding and neighbour row of each."""

    def write(lake, day, entity, ids):
        kind = entity.upper()
        texts = [(each, "text", "facts", "budget", "p-1", "m-1", "in", None, f"hash {each}", NOON) for each in ids]
        for table, rows in (
            (getattr(tables, f"{kind}_DESCRIPTION"), texts),
            (getattr(tables, f"{kind}_EMBEDDING"), [(each, [1.0, 0.0], f"hash {each}", NOON) for each in ids]),
            (getattr(tables, f"{kind}_NEIGHBOUR_FEATURES"), [(each, [0.0, 1.0], ["x"], [0.5]) for each in ids]),
        ):
            assert table.key == (f"{entity}_id",)
            write_rows(lake, table, rows, day)

    return write


@pytest.fixture
def write_day(write_rows, write_parts):
    def write(lake, day, events, item_ids=("a", "b"), user_ids=("ann",), votes=()):
        write_rows(lake, tables.INTERACTIONS, events, day)
        write_rows(lake, tables.ITEMS, [(each, each, {}) for each in item_ids], day)
        write_rows(lake, tables.USERS, [(each, {}) for each in user_ids], day)
        write_rows(lake, tables.USER_NEIGHBOUR_ITEMS, votes, day)
        write_parts(lake, day, "item", item_ids)
        write_parts(lake, day, "user", user_ids)

    return write


def features(lake, table, day):
    return {row[0]: row.asDict() for row in lake.read(table, day).collect()}


def changed_on(rows):
    """The day of `computed_at`, by key."""
    return {key: row["computed_at"].astimezone(UTC).day for key, row in rows.items()}


def test_a_sequence_holds_the_last_hundred_by_time_then_row_number(spark):
    many = [("ann", f"i{number}", NOON, number) for number in range(150, 0, -1)]
    few = [("bob", "late", NEXT_NOON, 1), ("bob", "early", NOON, 9)]
    users = spark.createDataFrame([("ann",), ("bob",), ("cyd",)], "user_id string")
    found = {row.user_id: row for row in user_sequences(users, interactions(spark, *many, *few), NEXT).collect()}
    assert found["ann"].sequence == [f"i{number}" for number in range(51, 151)]
    assert found["ann"].sequence_times == [int(NOON.timestamp())] * 100
    assert (found["ann"].num_interactions, found["ann"].is_tail) == (150, 0)
    assert (found["bob"].sequence, found["bob"].num_interactions, found["bob"].is_tail) == (["early", "late"], 2, 1)
    assert found["bob"].sequence_times == [int(NOON.timestamp()), int(NEXT_NOON.timestamp())]
    assert found["cyd"].sequence_times == []
    assert found["bob"].earlier_item_ids == found["cyd"].earlier_item_ids == []
    assert (found["cyd"].sequence, found["cyd"].num_interactions, found["cyd"].is_tail) == ([], 0, 1)
    assert [found[each].gap_days for each in ("ann", "bob", "cyd")] == [1, 0, None]


def test_sequence_and_earlier_items_hold_the_whole_history_each_item_once(spark):
    early = [("ann", item_id, NOON, number) for number, item_id in enumerate(["z", "b", "b", "i7"])]
    last = [("ann", f"i{number}", NEXT_NOON, number) for number in range(100)]
    users = spark.createDataFrame([("ann",)], "user_id string")

    (row,) = user_sequences(users, interactions(spark, *early, *last), NEXT).collect()

    assert row.sequence == [f"i{number}" for number in range(100)]
    assert row.earlier_item_ids == ["b", "z"]  # i7 is in the sequence


def test_the_head_is_the_most_popular_fifth_ties_by_id(spark):
    events = [("ann", "b", NOON, 1), ("bob", "b", NOON, 2), *(("ann", "c", NOON, number) for number in range(3, 9))]
    events += [("ann", "a", NOON, 10), ("bob", "a", NOON, 11)]
    items = spark.createDataFrame([(each, each) for each in "abcde"], "item_id string, title string")
    found = {
        row.item_id: (row.popularity, row.is_tail)
        for row in item_popularity(items, interactions(spark, *events)).collect()
    }
    assert found == {"a": (2, 0), "b": (2, 1), "c": (1, 1), "d": (0, 1), "e": (0, 1)}


def test_a_day_ignores_the_future_and_unchanged_rows_keep_computed_at(spark, settings_with, write_day):
    first, second = (Lake(spark, settings_with(now=now)) for now in ("1998-02-21T02:00:00Z", "1998-02-22T02:00:00Z"))
    write_day(first, DAY, [("ann", "a", NOON, 1), ("bob", "a", NOON, 1)], "abc", ("ann", "bob"))
    build_features.main(first, DAY)
    items, users = features(first, tables.ITEM_FEATURES, DAY), features(first, tables.USER_FEATURES, DAY)
    assert users["ann"]["sequence"] == ["a"]
    assert users["ann"]["sequence_times"] == [int(NOON.timestamp())]
    assert users["ann"]["event_timestamp"].astimezone(UTC) == datetime(1998, 2, 20, 23, 59, 59, tzinfo=UTC)
    assert (users["ann"]["embedding_version"], users["ann"]["feature_version"]) == (
        first.versions.embedding,
        first.versions.feature,
    )

    write_day(second, NEXT, [("ann", "b", NEXT_NOON, 2)], "abc", ("ann", "bob"))  # the future of DAY
    build_features.main(second, DAY)
    assert (features(second, tables.ITEM_FEATURES, DAY), features(second, tables.USER_FEATURES, DAY)) == (items, users)

    build_features.main(second, NEXT)
    later = features(second, tables.ITEM_FEATURES, NEXT)
    assert (later["a"]["takers_1d"], later["a"]["takers_3d"]) == (0, 2)
    assert changed_on(later) == {"a": 22, "b": 22, "c": 21}  # fewer takers of the last day are a change
    users = features(second, tables.USER_FEATURES, NEXT)
    assert (users["bob"]["gap_days"], changed_on(users)) == (1, {"ann": 22, "bob": 21})  # a longer gap is none
    ann = users["ann"]
    assert ann["sequence"] == ["a", "b"]
    assert ann["sequence_times"] == [int(NOON.timestamp()), int(NEXT_NOON.timestamp())]


def test_an_entity_without_a_part_is_named(spark, lake, write_day):
    write_day(lake, DAY, [("ann", "a", NOON, 1)])
    stale = spark.createDataFrame([("a", [1.0, 0.0], "hash of yesterday", NOON)], tables.ITEM_EMBEDDING.ddl)
    lake.write(tables.ITEM_EMBEDDING, stale, DAY)
    message = (
        r"item_features: 1 have no embedding \(for example item_id b\), "
        r"1 have the embedding of another description \(for example item_id a\)"
    )
    with pytest.raises(IncompleteFeaturesError, match=message):
        build_features.main(lake, DAY)
    assert lake.days(tables.ITEM_FEATURES) == []


def test_users_without_votes_have_empty_lists(spark):
    users = spark.createDataFrame([("ann",), ("bob",)], "user_id string")
    votes = spark.createDataFrame([("ann", ["b", "a"], [0.5, 0.25])], tables.USER_NEIGHBOUR_ITEMS.ddl)
    found = {row.user_id: tuple(row)[1:] for row in with_neighbour_items(users, votes).collect()}
    assert found == {"ann": (["b", "a"], [0.5, 0.25]), "bob": ([], [])}


def test_without_moments_no_votes_are_read(spark, settings_with, write_day):
    on, off = (Lake(spark, settings_with(moments=is_on)) for is_on in (True, False))
    for lake in (on, off):
        write_day(lake, DAY, [("ann", "a", NOON, 1)])
        shutil.rmtree(lake.root / tables.USER_NEIGHBOUR_ITEMS.name)
    build_features.main(off, DAY)
    ann = features(off, tables.USER_FEATURES, DAY)["ann"]
    assert (ann["neighbour_item_ids"], ann["neighbour_item_weights"]) == ([], [])
    with pytest.raises(MissingPartitionError, match="user_neighbour_items has no partition for 1998-02-20"):
        build_features.main(on, DAY)


def test_a_late_event_changes_later_days_and_its_own_day_once_that_is_refreshed(lake, write_day, write_rows):
    old, late, later = "1998-01-05", "1998-02-19", "1998-02-23"
    ago = {day: NOON + (datetime.fromisoformat(day) - datetime.fromisoformat(DAY)) for day in (old, late, later)}
    write_rows(lake, tables.INTERACTIONS, [("ann", "a", ago[old], 1)], old)
    write_day(lake, DAY, [("ann", "a", NOON, 1)], "abc")
    build_features.main(lake, DAY)
    before = features(lake, tables.ITEM_FEATURES, DAY)
    assert [before[each]["takers_30d"] for each in "abc"] == [1, 0, 0]
    # Without an earlier state all history is read.
    assert [before[each]["first_seen_day"] for each in "abc"] == [old, DAY, DAY]

    write_rows(lake, tables.INTERACTIONS, [("ann", "a", NOON, 1), ("bob", "a", NOON, 2)], DAY)
    write_rows(lake, tables.INTERACTIONS, [("bob", "b", ago[late], 1)], late)
    # Nothing this old can arrive late, so nobody looks for it: a day reads no history once there is a state.
    write_rows(lake, tables.INTERACTIONS, [("ann", "a", ago[old], 1), ("bob", "c", ago[old], 1)], old)
    write_day(lake, later, [("cyd", "a", ago[later], 1)], "abc", ("ann", "bob", "cyd"))
    build_features.main(lake, later)
    found = features(lake, tables.ITEM_FEATURES, later)
    assert [found["a"][f"takers_{days}d"] for days in tables.TAKER_DAYS] == [1, 1, 3, 3, 3]
    assert [found[each]["first_seen_day"] for each in "abc"] == [old, late, DAY]
    assert features(lake, tables.ITEM_FEATURES, DAY) == before

    build_features.main(lake, DAY)
    again = features(lake, tables.ITEM_FEATURES, DAY)
    assert [again["a"][f"takers_{days}d"] for days in tables.TAKER_DAYS] == [2] * 5
    assert again["b"]["first_seen_day"] == late


NEW = {
    tables.ITEM_FEATURES: [*(f"takers_{days}d" for days in tables.TAKER_DAYS), "first_seen_day"],
    tables.USER_FEATURES: ["gap_days", "neighbour_item_ids", "neighbour_item_weights"],
}


def test_no_new_column_of_a_back_filled_day_nor_a_join_as_of_it_knows_what_came_after(lake, write_day):
    """The next day is there first, with its events, its votes and its features."""
    write_day(lake, DAY, [("ann", "a", NOON, 1)], votes=[("ann", ["b"], [0.5])])
    planted = [("ann", "b", NEXT_NOON, 2), ("bob", "a", NEXT_NOON, 3)]
    write_day(lake, NEXT, planted, user_ids=("ann", "bob"), votes=[("ann", ["a"], [0.75])])
    for day in (NEXT, DAY):
        build_features.main(lake, day)
    known = {"a": (1, 1, 1, 1, 1, DAY), "b": (0, 0, 0, 0, 0, DAY), "ann": (0, ["b"], [0.5])}
    later = {"a": (1, 2, 2, 2, 2, DAY), "b": (1, 1, 1, 1, 1, NEXT), "ann": (0, ["a"], [0.75])}

    for day, expected in ((DAY, known), (NEXT, later)):
        rows = {key: row for table in NEW for key, row in features(lake, table, day).items()}
        columns = {"a": tables.ITEM_FEATURES, "b": tables.ITEM_FEATURES, "ann": tables.USER_FEATURES}
        assert {key: tuple(rows[key][name] for name in NEW[table]) for key, table in columns.items()} == expected
    for moment, expected in (
        (end_of(DAY), known),
        (last_second(NEXT) - timedelta(seconds=1), known),
        (end_of(NEXT), later),
    ):
        assert joined_as_of(lake.settings, moment) == expected


def joined_as_of(settings, moment):
    """What Feast joins to ann and to the items at a moment, by key."""
    from feature_repo.materialise import open_for_writing

    store, found = open_for_writing(settings, Versions(settings).feature, apply=True), {}
    for (table, names), ids in zip(NEW.items(), (["a", "b"], ["ann"]), strict=True):
        (key,) = table.key
        asked = pd.DataFrame({key: ids, "event_timestamp": [moment] * len(ids)})
        rows = store.get_historical_features(asked, [f"{table.name}:{name}" for name in names]).to_df()
        for row in rows[[key, *names]].itertuples(index=False):
            found[row[0]] = tuple(list(each) if isinstance(each, np.ndarray) else each for each in row[1:])
    return found
