"""Valid rows are ingested, invalid rows are quarantined with a reason, and future events are ignored."""

import json
import shutil
from datetime import UTC
from pathlib import Path
from types import SimpleNamespace

import pytest

from grasp import partitions, tables
from grasp.days import DayNotOverError, start_of
from spark_jobs import ingest
from spark_jobs.ingest import (
    DaysRead,
    DeliveryError,
    QuarantineError,
    RowCount,
    Vanished,
    check_interactions,
    check_quarantine,
    check_vanished,
    refuse_repeated,
    require_all_rows,
    require_days,
)
from spark_jobs.source.contract import SourceError, SourceTable, TablePlan

DAY, NEXT = "1998-02-20", "1998-02-28"
NOON, NEXT_NOON = 887_976_000, 888_667_200  # 12:00 UTC of the two days; the clock of tests is 1998-03-02
ITEMS = [{"item_id": 1, "title": "Toy\u200b <b>Story</b>\x07", "genres": ["Comedy", "Animation"]}, {"item_id": "2"}]
USERS = ["user_id\tage\tnote", "ann\t33\tlikes\u202e &lt;i&gt;films"]


def write_source(settings, lines, items=ITEMS, users=USERS, header="user_id\titem_id\ttimestamp"):
    settings.source.mkdir(parents=True, exist_ok=True)
    (settings.source / "interactions.tsv").write_text("\n".join([header, *lines]))
    (settings.source / "items.jsonl").write_text("\n".join(map(json.dumps, items)))
    if users:
        (settings.source / "users.tsv").write_text("\n".join(users))


def reasons(lake, day=DAY):
    return {(row.source_file, row.source_row): row.reason for row in lake.read(tables.QUARANTINE, day).collect()}


def lenient(spark, settings_with, **changed):
    from spark_jobs.storage.lake import Lake

    return Lake(spark, settings_with(max_quarantine_share=1, **changed))


def state(lake):
    files = [path for path in lake.root.glob("*/day=*/*") if path.parent.parent.name != "quarantine"]
    return {path: path.stat().st_mtime_ns for path in files}


def declare(settings, **complete):
    (settings.source / "complete.json").write_text(json.dumps(complete))


def events(lake, day):
    return sorted((row.user_id, row.item_id) for row in lake.read(tables.INTERACTIONS, day).collect())


@pytest.mark.spark
def test_every_refused_row_has_its_reason(spark, settings_with):
    lake = lenient(spark, settings_with)
    lines = [
        f"ann\t1\t{NOON}",
        f"ann\t2\t{NOON}",
        f"ann\t1\t{NOON}",
        f"\t1\t{NOON}",
        f"bob\t\t{NOON}",
        f"bob\t99\t{NOON}",
        "bob\t1\tyesterday",
        "bob\t1\t0",
        "bob\t1\t888900000000",
        f"bob\t1\t{NOON + 86_400 * 365}",
        "bob\t1",
        f"bo\u200bb\t1\t{NOON}",
    ]
    write_source(lake.settings, lines, items=[*ITEMS, {"item_id": 1, "title": "again"}, {"title": "none"}])
    ingest.main(lake, DAY)
    assert reasons(lake) == {
        ("interactions.tsv", 3): "duplicate",
        ("interactions.tsv", 4): "no_user_id",
        ("interactions.tsv", 5): "no_item_id",
        ("interactions.tsv", 6): "unknown_item",
        ("interactions.tsv", 7): "no_time",
        ("interactions.tsv", 8): "before_1990",
        ("interactions.tsv", 9): "no_time",
        ("interactions.tsv", 10): "in_the_future",
        ("interactions.tsv", 11): "unreadable_interaction",
        ("interactions.tsv", 12): "no_user_id",
        ("items.jsonl", 3): "repeated_item_id",
        ("items.jsonl", 4): "no_item_id",
    }
    taken = lake.read(tables.INTERACTIONS, DAY).orderBy("row_number").collect()
    assert [(row.user_id, row.item_id, row.row_number) for row in taken] == [("ann", "1", 1), ("ann", "2", 2)]
    assert [row.event_time.astimezone(UTC).isoformat() for row in taken] == ["1998-02-20T12:00:00+00:00"] * 2


@pytest.mark.spark
def test_facts_are_cleaned_users_are_optional_and_an_empty_day_is_logged(spark, lake, capsys):
    write_source(lake.settings, [f"ann\t1\t{NOON}", f"bob\t2\t{NOON}"])
    ingest.main(lake, NEXT)
    items = {row.item_id: (row.title, row.attributes) for row in lake.read(tables.ITEMS, NEXT).collect()}
    assert items == {"1": ("Toy Story", {"genres": "Comedy, Animation"}), "2": ("", {})}
    users = {row.user_id: row.attributes for row in lake.read(tables.USERS, NEXT).collect()}
    assert users == {"ann": {"age": "33", "note": "likes films"}, "bob": {}}
    content = partitions.read_content(partitions.partition_path(lake.root, tables.INTERACTIONS, None, NEXT))
    assert content is not None and content.num_rows == 0
    assert f"{NEXT} has no interactions" in capsys.readouterr().out


@pytest.mark.spark
def test_row_number_decides_the_order_and_must_be_a_number(spark):
    given = [("ann", "1", "7"), ("ann", "2", "7"), ("bob", "1", "x"), ("bob", "2", "5"), ("bob", "2", "4")]
    rows = [
        (position, {"user_id": user, "item_id": item, "timestamp": str(NOON), "row_number": number})
        for position, (user, item, number) in enumerate(given, start=1)
    ]
    source_rows = spark.createDataFrame(rows, "position bigint, fields map<string,string>")
    items = spark.createDataFrame([("1",), ("2",)], "item_id string")
    checked = refuse_repeated(check_interactions(source_rows, items, start_of(NEXT)))
    found = {row.position: (row.row_number, row.reason) for row in checked.collect()}
    assert found == {
        1: (7, None),
        2: (7, "repeated_row_number"),
        3: (None, "no_row_number"),
        4: (5, "duplicate"),
        5: (4, None),
    }


@pytest.mark.spark
def test_a_later_run_reads_late_events_but_no_older_or_future_ones(spark, settings_with, capsys):
    lake = lenient(spark, settings_with)
    old = [f"ann\t1\t{NOON - 20 * 86_400}", f"ann\t1\t{NOON}"]
    write_source(lake.settings, [*old, f"ann\t2\t{NEXT_NOON}"])
    ingest.main(lake, DAY)
    assert lake.days(tables.INTERACTIONS) == ["1998-01-31", DAY]
    before = state(lake)
    ingest.main(lake, DAY)
    assert state(lake) == before

    late, too_late = f"bob\t1\t{NOON - 86_400}", f"bob\t2\t{NOON - 19 * 86_400}"
    write_source(lake.settings, [*old, f"ann\t2\t{NEXT_NOON}", late, too_late])
    ingest.main(lake, NEXT)
    assert lake.days(tables.INTERACTIONS) == ["1998-01-31", "1998-02-19", DAY, NEXT]
    assert {path: time for path, time in state(lake).items() if path in before} == before
    assert {row.user_id for row in lake.read(tables.USERS, DAY).collect()} == {"ann"}
    assert {row.user_id for row in lake.read(tables.USERS, NEXT).collect()} == {"ann", "bob"}
    assert reasons(lake, NEXT) == {("interactions.tsv", 5): "too_late"}
    said = capsys.readouterr().out
    assert "5 interactions in the source: 3 accepted, 1 refused, 1 of earlier days, 0 after 1998-02-28" in said
    assert "quarantined 1 interactions too_late" in said


def week(first, last):
    """Two events of each of the days `first` to `last` of February 1998."""
    noon = {day: NOON + (day - 20) * 86_400 for day in range(first, last + 1)}
    return [f"{user}\t1\t{seconds}" for seconds in noon.values() for user in ("ann", "bob")]


@pytest.mark.spark
def test_an_export_of_the_last_days_empties_no_earlier_day(spark, lake, settings_with):
    write_source(lake.settings, week(7, 15))
    ingest.main(lake, "1998-02-15")
    before = state(lake)

    write_source(lake.settings, week(12, 16))
    lacks = (
        r"2 of 2 interactions of 1998-02-08, .*1998-02-10 and 1 more days; a larger share than GRASP_MAX_VANISHED_SHARE"
    )
    with pytest.raises(DeliveryError, match=lacks):
        ingest.main(lake, "1998-02-16")
    with pytest.raises(DeliveryError, match=r"2 of 2 interactions of 1998-02-07"):
        ingest.main(lake, "1998-02-12")  # before the first day that was run: all days up to it are read
    assert state(lake) == before

    declare(lake.settings, interactions=["1998-02-12", "1998-02-16"])
    ingest.main(lake, "1998-02-16")
    assert [events(lake, f"1998-02-{day:02}") for day in range(7, 17)] == [[("ann", "1"), ("bob", "1")]] * 10

    (lake.settings.source / "complete.json").unlink()
    confirmed = lenient(spark, settings_with, max_vanished_share=1)
    ingest.main(confirmed, "1998-02-16")
    assert [len(events(lake, f"1998-02-{day:02}")) for day in (7, 8, 11, 12)] == [2, 0, 0, 2]


@pytest.mark.spark
def test_a_source_of_daily_folders_replaces_the_days_that_it_holds(spark, lake):
    import pyarrow as pa
    import pyarrow.parquet as pq

    def deliver(*days):
        folder = lake.settings.source / "interactions.parquet"
        shutil.rmtree(folder, ignore_errors=True)
        for day in days:
            place = folder / f"day=1998-02-{day}"
            place.mkdir(parents=True)
            columns = {"user_id": ["ann"], "item_id": [1], "timestamp": [NOON + (day - 20) * 86_400]}
            pq.write_table(pa.table(columns), place / "part.parquet")

    write_source(lake.settings, [])
    (lake.settings.source / "interactions.tsv").unlink()
    deliver(17, 18, 19)
    ingest.main(lake, "1998-02-19")
    before = state(lake)
    deliver(19, 20)
    ingest.main(lake, DAY)
    assert {path: time for path, time in state(lake).items() if path in before} == before
    assert events(lake, DAY) == [("ann", "1")]
    with pytest.raises(DeliveryError, match=r"1998-02-21 is not among the complete days .*1998-02-19 to 1998-02-20"):
        ingest.main(lake, "1998-02-22")
    moved = lake.settings.source / "interactions.parquet"
    (moved / "day=1998-02-20").rename(moved / "day=1998-02-21")
    with pytest.raises(QuarantineError, match="folder_of_another_day"):
        ingest.main(lake, "1998-02-21")


@pytest.mark.spark
def test_an_item_once_known_stays_known_and_is_withdrawn(spark, lake):
    write_source(lake.settings, [f"ann\t1\t{NOON}", f"ann\t2\t{NOON}"])
    ingest.main(lake, DAY)
    before = state(lake)

    write_source(lake.settings, [f"ann\t1\t{NOON}", f"ann\t2\t{NOON}"], items=ITEMS[1:])
    with pytest.raises(DeliveryError, match=r"1 of 2 items; a larger share"):
        ingest.main(lake, "1998-02-21")
    declare(lake.settings, items=True)
    for day in ("1998-02-21", "1998-02-22", "1998-02-22"):
        ingest.main(lake, day)
        assert {path: time for path, time in state(lake).items() if path in before} == before
        assert reasons(lake, day) == {}
        known = {row.item_id: row.title for row in lake.read(tables.ITEMS, day).collect()}
        assert known == {"1": "Toy Story", "2": ""}
        assert [tuple(row) for row in lake.read(tables.WITHDRAWN_ITEMS, day).collect()] == [("1", "1998-02-21")]

    write_source(lake.settings, [f"ann\t1\t{NOON}", f"ann\t2\t{NOON}"])
    ingest.main(lake, "1998-02-23")
    assert lake.read(tables.WITHDRAWN_ITEMS, "1998-02-23").count() == 0


@pytest.mark.spark
def test_facts_of_users_do_not_vanish_with_their_file(spark, lake):
    write_source(lake.settings, [f"ann\t1\t{NOON}"])
    ingest.main(lake, DAY)
    (lake.settings.source / "users.tsv").unlink()
    with pytest.raises(
        DeliveryError, match=r"1 of 1 users with facts; a larger share than GRASP_MAX_VANISHED_SHARE=0.01"
    ):
        ingest.main(lake, "1998-02-21")
    declare(lake.settings, users=True)
    ingest.main(lake, "1998-02-21")
    assert lake.read(tables.USERS, "1998-02-21").first().attributes == {}


@pytest.mark.spark
def test_a_key_passes_unchanged_or_is_refused(spark, settings_with):
    lake = lenient(spark, settings_with)
    passed = ["x", " x", "1e3", "字" * 170, "😀" * 128]
    refused = ["字" * 171, "😀" * 129, " ", "a\u200bb"]
    write_source(lake.settings, [f"{user}\t1\t{NOON}" for user in passed + refused])
    ingest.main(lake, DAY)
    assert {user for user, _ in events(lake, DAY)} == set(passed)
    assert list(reasons(lake).values()) == ["no_user_id"] * len(refused)


@pytest.mark.spark
def test_the_day_s_last_events_are_in_no_future_by_a_clock_in_whole_seconds(spark, settings_with):
    from spark_jobs.storage.lake import Lake

    lake = Lake(spark, settings_with(now="1998-02-20T23:59:59Z"))
    write_source(lake.settings, [f"ann\t1\t{NOON + 43_199.5}", f"ann\t2\t{NOON}"])
    ingest.main(lake, DAY)
    assert lake.read(tables.INTERACTIONS, DAY).count() == 2


@pytest.mark.spark
def test_too_many_refused_rows_fail_the_day_and_only_the_quarantine_is_written(spark, lake, capsys):
    write_source(lake.settings, [f"ann\t1\t{NOON}", f"ann\t99\t{NOON}"], users=None)
    with pytest.raises(QuarantineError, match=r"1 of 2 interactions were refused.*1 interactions unknown_item"):
        ingest.main(lake, DAY)
    assert reasons(lake) == {("interactions.tsv", 2): "unknown_item"}
    assert lake.days(tables.INTERACTIONS) == lake.days(tables.ITEMS) == lake.days(tables.USERS) == []
    assert "the source has no users table" in capsys.readouterr().out


@pytest.mark.spark
def test_a_missing_column_stops_before_anything_is_written(spark, lake):
    write_source(lake.settings, [], header="user\titem_id\ttimestamp")
    with pytest.raises(SourceError, match=r"interactions\.tsv: column user_id is missing"):
        ingest.main(lake, DAY)
    assert not lake.root.exists()


def test_a_day_that_is_not_over_is_refused_before_the_source_is_read(settings):
    with pytest.raises(DayNotOverError, match="1998-03-02 is after the clock"):
        ingest.main(SimpleNamespace(settings=settings), "1998-03-02")


def test_duplicates_never_fail_a_day():
    check_quarantine(
        [RowCount("interactions", DAY, None, 1), RowCount("interactions", DAY, "duplicate", 99)], 100, 0.05
    )


def test_rows_without_a_time_are_compared_with_the_whole_source():
    counts = [RowCount("interactions", DAY, None, 10), RowCount("interactions", None, "no_time", 5)]
    check_quarantine(counts, num_interactions=100, limit=0.05)
    with pytest.raises(QuarantineError, match="5 of 99 interactions"):
        check_quarantine(counts, num_interactions=99, limit=0.05)


def test_the_limit_itself_is_allowed():
    counts = [RowCount("items", None, None, 19), RowCount("items", None, "no_item_id", 1)]
    check_quarantine(counts, 0, limit=0.05)
    with pytest.raises(QuarantineError, match=r"1 of 20 items were refused.*1 items no_item_id"):
        check_quarantine(counts, 0, limit=0.049)


def plan(num_rows):
    return TablePlan(SourceTable("interactions", Path("interactions.tsv"), "tsv"), (), (), num_rows)


def test_every_row_of_the_files_is_accounted_for():
    counts = [RowCount("interactions", DAY, None, 5), RowCount("interactions", DAY, "too_late", 2)]
    require_all_rows(counts, 3, {"interactions": plan(10)})
    with pytest.raises(DeliveryError, match=r"interactions\.tsv holds 11 rows, 10 were read"):
        require_all_rows(counts, 3, {"interactions": plan(11)})


def test_late_rows_are_compared_with_the_whole_source():
    counts = [RowCount("interactions", DAY, None, 10), RowCount("interactions", "1998-01-01", "too_late", 5)]
    check_quarantine(counts, num_interactions=100, limit=0.05)
    with pytest.raises(QuarantineError, match=r"5 of 99 interactions \(those of other days\)"):
        check_quarantine(counts, num_interactions=99, limit=0.05)


def test_a_share_below_the_limit_may_vanish():
    folder = Path("source")
    check_vanished([Vanished("items", 100, 1), Vanished("users", 0, 0)], 0.01, folder)
    with pytest.raises(DeliveryError, match=r"2 of 100 items; .*GRASP_MAX_VANISHED_SHARE=1 for this run, or in source"):
        check_vanished([Vanished("items", 100, 2)], 0.01, folder)


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
