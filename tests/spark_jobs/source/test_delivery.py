"""What a delivery lacks fails the day, unless it may be missing; days that it does not replace are not read."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from spark_jobs.source.contract import SourceTable, Split, TablePlan
from spark_jobs.source.delivery import (
    DaysRead,
    DeliveryError,
    RowCount,
    Vanished,
    check_vanished,
    leave_folders,
    require_all_rows,
    require_days,
    require_items,
)

DAY = "1998-02-20"
INTERACTIONS = SourceTable("interactions", Path("interactions.parquet"), "parquet")


def test_every_row_of_the_files_is_accounted_for():
    counts = [RowCount("interactions", DAY, None, 5), RowCount("interactions", DAY, "too_late", 2)]
    require_all_rows(counts, 3, {"interactions": TablePlan(INTERACTIONS, (), (), 10)})
    with pytest.raises(DeliveryError, match=r"interactions\.parquet holds 11 rows, 10 were read"):
        require_all_rows(counts, 3, {"interactions": TablePlan(INTERACTIONS, (), (), 11)})


def test_a_share_below_the_limit_may_vanish():
    folder = Path("source")
    check_vanished([Vanished("items", 200, 2), Vanished("users", 0, 0)], 0.01, folder)
    with pytest.raises(DeliveryError, match=r"3 of 200 items; .*GRASP_MAX_VANISHED_SHARE=1 for this run, or in source"):
        check_vanished([Vanished("items", 200, 3)], 0.01, folder)


@pytest.mark.parametrize(
    ("num_before", "num_gone", "limit", "is_above"),
    [
        (80, 1, 0.01, False),
        (80, 2, 0.01, True),
        (2, 1, 0.01, False),
        (2, 1, 0.0, False),
        (1, 1, 0.01, True),
        (2, 2, 0.01, True),
        (2, 2, 1.0, False),
        (0, 0, 0.0, False),
    ],
)
def test_one_row_may_always_vanish_unless_it_was_the_only_one(num_before, num_gone, limit, is_above):
    assert Vanished("items", num_before, num_gone).is_above(limit) is is_above


@pytest.mark.parametrize(("num_items", "num_before", "limit"), [(1, 0, 0.01), (5, 10, 0.01), (1, 10, 0.9), (1, 10, 1)])
def test_a_catalogue_may_be_new_or_lose_half_or_what_was_confirmed(num_items, num_before, limit):
    require_items(num_items, num_before, limit, Path("items.tsv"))


@pytest.mark.parametrize(("num_items", "num_before", "limit"), [(0, 0, 1), (0, 10, 1), (4, 10, 0.01), (4, 10, 0.5)])
def test_a_catalogue_that_is_lost_is_refused(num_items, num_before, limit):
    with pytest.raises(DeliveryError, match=r"^items\.tsv holds"):
        require_items(num_items, num_before, limit, Path("items.tsv"))


def test_a_run_replaces_the_complete_days_of_its_window():
    days = DaysRead("1998-02-10", "1998-02-20")
    assert [day in days for day in ("1998-02-09", "1998-02-10", "1998-02-20", "1998-02-21")] == [
        False,
        True,
        True,
        False,
    ]
    declared = DaysRead("1998-02-10", "1998-02-20", frozenset({"1998-02-09", "1998-02-12"}))
    assert [day in declared for day in ("1998-02-09", "1998-02-10", "1998-02-12")] == [False, False, True]


def test_no_day_since_the_last_ingested_one_may_be_missing():
    folder, held = Path("source"), frozenset({"1998-02-19", "1998-02-20"})
    require_days(held, None, "1998-02-20", folder)
    require_days(held, "1998-02-18", "1998-02-20", folder)
    with pytest.raises(DeliveryError, match=r"1998-02-18 is not among .*\(1998-02-19 to 1998-02-20\).*complete\.json"):
        require_days(held, "1998-02-17", "1998-02-20", folder)


def test_folders_of_other_days_are_left_out_unless_they_may_hold_late_or_future_events():
    num_rows = {"1998-02-01": 10, "1998-02-02": 11, "1998-02-03": 12, DAY: 13, "1998-02-21": 14, "2098-01-01": 15}
    splits = tuple(Split(f"{day}.parquet", day, 1, 0, day=day) for day in num_rows)
    plan = TablePlan(INTERACTIONS, (), splits, sum(num_rows.values()), num_rows)
    num_ingested = {"1998-02-01": 10, "1998-02-02": 10, "1998-02-03": None}
    part = leave_folders(plan, DaysRead("1998-02-13", DAY), num_ingested, datetime(1998, 3, 1, tzinfo=UTC))
    assert [split.day for split in part.plan.splits] == ["1998-02-02", "1998-02-03", DAY, "2098-01-01"]
    assert (part.num_earlier, part.num_later, part.plan.num_rows) == (10, 14, 75)


def test_a_source_without_folders_of_days_is_read_as_a_whole():
    plan = TablePlan(INTERACTIONS, (), (Split("x.parquet", "x", 1, 0),), 1)
    part = leave_folders(plan, DaysRead("1998-02-13", DAY), {}, datetime(1998, 3, 1, tzinfo=UTC))
    assert (part.plan, part.num_earlier, part.num_later) == (plan, 0, 0)
