"""Every item and user gets one row without data from after its day, and with the time of its last change."""

from datetime import UTC, datetime

import pytest

from grasp import tables
from spark_jobs import build_features
from spark_jobs.build_features import IncompleteFeaturesError, item_popularity, user_sequences
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
    def write(lake, day, events, item_ids=("a", "b"), user_ids=("ann",)):
        write_rows(lake, tables.INTERACTIONS, events, day)
        write_rows(lake, tables.ITEMS, [(each, each, {}) for each in item_ids], day)
        write_rows(lake, tables.USERS, [(each, {}) for each in user_ids], day)
        write_parts(lake, day, "item", item_ids)
        write_parts(lake, day, "user", user_ids)

    return write


def features(lake, table, day):
    return {row[0]: row.asDict() for row in lake.read(table, day).collect()}


def test_a_sequence_holds_the_last_hundred_by_time_then_row_number(spark):
    many = [("ann", f"i{number}", NOON, number) for number in range(150, 0, -1)]
    few = [("bob", "late", NEXT_NOON, 1), ("bob", "early", NOON, 9)]
    users = spark.createDataFrame([("ann",), ("bob",), ("cyd",)], "user_id string")
    found = {row.user_id: row for row in user_sequences(users, interactions(spark, *many, *few)).collect()}
    assert found["ann"].sequence == [f"i{number}" for number in range(51, 151)]
    assert found["ann"].sequence_times == [int(NOON.timestamp())] * 100
    assert (found["ann"].num_interactions, found["ann"].is_tail) == (150, 0)
    assert (found["bob"].sequence, found["bob"].num_interactions, found["bob"].is_tail) == (["early", "late"], 2, 1)
    assert found["bob"].sequence_times == [int(NOON.timestamp()), int(NEXT_NOON.timestamp())]
    assert found["cyd"].sequence_times == []
    assert found["bob"].earlier_item_ids == found["cyd"].earlier_item_ids == []
    assert (found["cyd"].sequence, found["cyd"].num_interactions, found["cyd"].is_tail) == ([], 0, 1)


def test_sequence_and_earlier_items_hold_the_whole_history_each_item_once(spark):
    early = [("ann", item_id, NOON, number) for number, item_id in enumerate(["z", "b", "b", "i7"])]
    last = [("ann", f"i{number}", NEXT_NOON, number) for number in range(100)]
    users = spark.createDataFrame([("ann",)], "user_id string")

    (row,) = user_sequences(users, interactions(spark, *early, *last)).collect()

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
    write_day(first, DAY, [("ann", "a", NOON, 1)])
    build_features.main(first, DAY)
    items, users = features(first, tables.ITEM_FEATURES, DAY), features(first, tables.USER_FEATURES, DAY)
    assert users["ann"]["sequence"] == ["a"]
    assert users["ann"]["sequence_times"] == [int(NOON.timestamp())]
    assert users["ann"]["event_timestamp"].astimezone(UTC) == datetime(1998, 2, 20, 23, 59, 59, tzinfo=UTC)
    assert (users["ann"]["embedding_version"], users["ann"]["feature_version"]) == (
        first.versions.embedding,
        first.versions.feature,
    )

    write_day(second, NEXT, [("ann", "b", NEXT_NOON, 2)])  # the future of DAY
    build_features.main(second, DAY)
    assert (features(second, tables.ITEM_FEATURES, DAY), features(second, tables.USER_FEATURES, DAY)) == (items, users)

    build_features.main(second, NEXT)
    later = features(second, tables.ITEM_FEATURES, NEXT)
    assert {key: row["computed_at"].astimezone(UTC).day for key, row in later.items()} == {"a": 21, "b": 22}
    ann = features(second, tables.USER_FEATURES, NEXT)["ann"]
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
