"""Users count once and by their last time; the day first seen comes from the earlier state and what came since."""

from datetime import UTC, datetime, timedelta

import pytest

from grasp import tables
from spark_jobs.features.item_times import first_seen, takers

pytestmark = pytest.mark.spark

DAY = "1998-02-20"
LAST_MOMENT = datetime(1998, 2, 20, 23, 59, 59, 999_999, tzinfo=UTC)
FIRST_MOMENT = datetime(1998, 2, 20, tzinfo=UTC)


def interactions(spark, *rows):
    return spark.createDataFrame([(*row, number) for number, row in enumerate(rows)], tables.INTERACTIONS.ddl)


def items(spark, ids):
    return spark.createDataFrame([(each,) for each in ids], "item_id string")


def days_ago(days):
    return FIRST_MOMENT - timedelta(days=days)


def test_a_window_ends_with_the_day_and_holds_whole_days(spark):
    """Taken on the first moment of a window and on the last moment before it."""
    ages = {"today": 0, "in 3": 2, "in 7": 6, "in 14": 13, "in 30": 29}
    events = [("ann", item_id, days_ago(age)) for item_id, age in ages.items()]
    before = {"before today": 0, "before 3": 2, "before 7": 6, "before 14": 13, "before 30": 29}
    events += [("ann", item_id, days_ago(age) - timedelta(microseconds=1)) for item_id, age in before.items()]
    known = items(spark, [*ages, *before, "never"])

    found = {row[0]: tuple(row)[1:] for row in takers(known, interactions(spark, *events), DAY).collect()}

    assert found == {
        "today": (1, 1, 1, 1, 1),
        "in 3": (0, 1, 1, 1, 1),
        "in 7": (0, 0, 1, 1, 1),
        "in 14": (0, 0, 0, 1, 1),
        "in 30": (0, 0, 0, 0, 1),
        "before today": (0, 1, 1, 1, 1),
        "before 3": (0, 0, 1, 1, 1),
        "before 7": (0, 0, 0, 1, 1),
        "before 14": (0, 0, 0, 0, 1),
        "before 30": (0, 0, 0, 0, 0),
        "never": (0, 0, 0, 0, 0),
    }


def test_a_user_counts_once_by_the_last_time(spark):
    events = [
        ("ann", "a", days_ago(20)),
        ("ann", "a", days_ago(5)),
        ("ann", "a", LAST_MOMENT),
        ("bob", "a", days_ago(5)),
        ("bob", "a", days_ago(6)),
    ]
    (row,) = takers(items(spark, ["a"]), interactions(spark, *events), DAY).collect()
    assert row.asDict() == {
        "item_id": "a",
        "takers_1d": 1,
        "takers_3d": 1,
        "takers_7d": 2,
        "takers_14d": 2,
        "takers_30d": 2,
    }


@pytest.mark.parametrize(
    ("before", "taken_ago", "expected"),
    [
        ((7, "1998-01-05"), [3], "1998-01-05"),
        ((7, "1998-02-19"), [3, 0], "1998-02-17"),  # a late event makes it earlier
        ((0, "1998-01-05"), [3, 0], "1998-02-17"),  # it stood in the catalogue until somebody took it
        ((0, "1998-01-05"), [], "1998-01-05"),
        ((7, "1998-01-05"), [], "1998-01-05"),
        (None, [3, 0], "1998-02-17"),
        (None, [], DAY),
    ],
)
def test_the_first_interaction_counts_and_without_one_the_first_day_in_the_catalogue(
    spark, before, taken_ago, expected
):
    states = [("a", *before)] if before else []
    state = spark.createDataFrame(states, "item_id string, popularity bigint, first_seen_day string")
    events = interactions(spark, *(("ann", "a", days_ago(age)) for age in taken_ago))
    (row,) = first_seen(items(spark, ["a"]), events, state, DAY).collect()
    assert tuple(row) == ("a", expected)
