"""Valid rows are ingested, invalid rows are quarantined with a reason, and future events are ignored."""

import json
import shutil
from dataclasses import replace
from datetime import UTC
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from grasp import partitions, tables
from grasp.days import DayNotOverError, start_of
from spark_jobs import ingest
from spark_jobs.ingest import QuarantineError, check_interactions, check_quarantine, refuse_repeated
from spark_jobs.source.contract import SourceError
from spark_jobs.source.delivery import DeliveryError, RowCount
from spark_jobs.source.reader import plan_table

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


def deliver(settings, *days, users=("ann",)):
    """Interactions in a folder for each of some days of February 1998, and nothing else of them."""
    write_source(settings, [])
    (settings.source / "interactions.tsv").unlink()
    folder = settings.source / "interactions.parquet"
    shutil.rmtree(folder, ignore_errors=True)
    for day in days:
        write_day(settings, day, users)


def write_day(settings, day, users):
    file = settings.source / "interactions.parquet" / f"day=1998-02-{day:02}" / "part.parquet"
    file.parent.mkdir(parents=True, exist_ok=True)
    times = [NOON + (day - 20) * 86_400] * len(users)
    pq.write_table(pa.table({"user_id": users, "item_id": [1] * len(users), "timestamp": times}), file)
    return file


def damage(file):
    """Its footer stays whole, so that it can be planned and not read."""
    content = file.read_bytes()
    start = pq.ParquetFile(file).metadata.row_group(0).column(0).data_page_offset
    file.write_bytes(content[:start] + b"\xff" * 40 + content[start + 40 :])


@pytest.mark.spark
def test_a_source_of_daily_folders_replaces_the_days_that_it_holds(spark, lake):
    deliver(lake.settings, 17, 18, 19)
    ingest.main(lake, "1998-02-19")
    before = state(lake)
    deliver(lake.settings, 19, 20)
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
def test_a_folder_outside_the_days_read_is_read_only_if_it_may_hold_late_events(spark, settings_with, capsys):
    lake = lenient(spark, settings_with, late_days=1)
    deliver(lake.settings, 17, 18, 19, 20, 21, users=("ann", "bob"))
    ingest.main(lake, DAY)
    # A damaged file shows whether it is read.
    damage(write_day(lake.settings, 17, ("ann", "bob")))
    damage(write_day(lake.settings, 28, ("ann", "bob", "cid")))
    ingest.main(lake, "1998-02-21")
    said = capsys.readouterr().out
    assert "13 interactions in the source: 6 accepted, 0 refused, 4 of earlier days, 3 after 1998-02-21" in said

    write_day(lake.settings, 17, ("ann", "bob", "cid"))
    ingest.main(lake, "1998-02-21")
    assert reasons(lake, "1998-02-21") == {("interactions.parquet/day=1998-02-17/part.parquet", 3): "too_late"}
    damage(lake.settings.source / "interactions.parquet" / "day=1998-02-20" / "part.parquet")
    with pytest.raises(DeliveryError, match=r"^\S+day=1998-02-20/part\.parquet is damaged: [^\n]*$"):
        ingest.main(lake, "1998-02-21")


@pytest.mark.spark
def test_refused_rows_empty_no_complete_day(spark, settings_with):
    lake = lenient(spark, settings_with)
    users = ("ann", "bob", "cid")
    whole = [f"{user}\t1\t{NOON + day * 86_400}" for day in (-1, 0) for user in users]
    write_source(lake.settings, whole)
    declare(lake.settings, interactions=["1998-02-19", DAY])
    ingest.main(lake, DAY)
    before = state(lake)

    for broken in ([f"{user}\t99\t{NOON - 86_400}" for user in users], [f"{user}\t1\tnoon" for user in users]):
        write_source(lake.settings, [*broken, *whole[3:]])
        with pytest.raises(DeliveryError, match=r"3 of 3 interactions of 1998-02-19 \(refused now\); a larger share"):
            ingest.main(lake, DAY)
        assert state(lake) == before

    write_source(lake.settings, [f"ann\t99\t{NOON - 86_400}", *whole[3:]])
    ingest.main(lake, DAY)  # one of three is refused, the others were deleted
    assert [len(events(lake, day)) for day in ("1998-02-19", DAY)] == [0, 3]


@pytest.mark.spark
def test_refused_items_and_users_do_not_vanish_from_complete_tables(spark, settings_with):
    lake = lenient(spark, settings_with)
    items = [{"item_id": str(number)} for number in range(1, 7)]
    users = ["user_id\tage", *(f"u{number}\t33" for number in range(4))]
    lines = [f"u{number}\t1\t{NOON}" for number in range(4)]
    write_source(lake.settings, lines, items, users)
    ingest.main(lake, DAY)
    declare(lake.settings, items=True, users=True)

    write_source(lake.settings, lines, [*items[:4], {"title": "5"}, {"title": "6"}], [*users[:3], "\t33", "\t33"])
    lacks = r"2 of 6 items \(refused now\), 2 of 4 users with facts \(refused now\); a larger share"
    with pytest.raises(DeliveryError, match=lacks):
        ingest.main(lake, DAY)
    write_source(lake.settings, lines, [*items[:4], items[0], items[0]], [*users[:3], *users[1:3]])
    ingest.main(lake, DAY)
    assert {row.item_id for row in lake.read(tables.WITHDRAWN_ITEMS, DAY).collect()} == {"5", "6"}


@pytest.mark.spark
def test_a_lost_catalogue_is_refused_whatever_the_source_says(spark, lake, settings_with):
    items = [{"item_id": str(number)} for number in range(1, 6)]
    write_source(lake.settings, [f"ann\t1\t{NOON}"], items)
    ingest.main(lake, DAY)
    before = state(lake)
    declare(lake.settings, items=True)

    confirmed = lenient(spark, settings_with, max_vanished_share=1)
    write_source(lake.settings, [f"ann\t1\t{NOON}"], items[:2])
    with pytest.raises(DeliveryError, match=r"items\.jsonl holds 2 items, fewer than half of the 5 before"):
        ingest.main(lake, "1998-02-21")
    (lake.settings.source / "items.jsonl").rename(lake.settings.source / "two items")
    (lake.settings.source / "items.tsv").write_text("item_id\n")
    with pytest.raises(DeliveryError, match=r"items\.tsv holds no item that can be used"):
        ingest.main(confirmed, "1998-02-21")
    assert state(lake) == before

    (lake.settings.source / "items.tsv").unlink()
    (lake.settings.source / "two items").rename(lake.settings.source / "items.jsonl")
    ingest.main(confirmed, "1998-02-21")
    assert lake.read(tables.WITHDRAWN_ITEMS, "1998-02-21").count() == 3


@pytest.mark.spark
def test_a_row_that_is_planned_and_not_read_fails_the_day(spark, lake, monkeypatch):
    def one_more(table):
        plan = plan_table(table)
        return replace(plan, num_rows=plan.num_rows + 1)

    monkeypatch.setattr(ingest, "plan_table", one_more)
    write_source(lake.settings, [f"ann\t1\t{NOON}"])
    with pytest.raises(DeliveryError, match=r"interactions\.tsv holds 2 rows, 1 were read"):
        ingest.main(lake, DAY)
    assert lake.days(tables.INTERACTIONS) == []


@pytest.mark.spark
def test_an_item_once_known_stays_known_and_is_withdrawn(spark, lake):
    whole = [*ITEMS, {"item_id": "3"}, {"item_id": "4"}]
    write_source(lake.settings, [f"ann\t1\t{NOON}", f"ann\t2\t{NOON}"], whole)
    ingest.main(lake, DAY)
    before = state(lake)

    write_source(lake.settings, [f"ann\t1\t{NOON}", f"ann\t2\t{NOON}"], [whole[1], whole[3]])
    with pytest.raises(DeliveryError, match=r"2 of 4 items; a larger share"):
        ingest.main(lake, "1998-02-21")
    declare(lake.settings, items=True)
    for day in ("1998-02-21", "1998-02-22", "1998-02-22"):
        ingest.main(lake, day)
        assert {path: time for path, time in state(lake).items() if path in before} == before
        assert reasons(lake, day) == {}
        known = {row.item_id: row.title for row in lake.read(tables.ITEMS, day).collect()}
        assert known == {"1": "Toy Story", "2": "", "3": "", "4": ""}
        withdrawn = {tuple(row) for row in lake.read(tables.WITHDRAWN_ITEMS, day).collect()}
        assert withdrawn == {("1", "1998-02-21"), ("3", "1998-02-21")}

    write_source(lake.settings, [f"ann\t1\t{NOON}", f"ann\t2\t{NOON}"], whole)
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
    users = [f"{key}\t1\t{NOON}" for key in passed + refused]
    items = [f"ann\t{key}\t{NOON}" for key in passed + refused]
    write_source(lake.settings, users + items, [*ITEMS, *({"item_id": key} for key in passed + refused)])
    ingest.main(lake, DAY)
    expected = [*((key, "1") for key in passed), *(("ann", key) for key in passed)]
    assert events(lake, DAY) == sorted(expected)
    assert {row.item_id for row in lake.read(tables.ITEMS, DAY).collect()} == {"1", "2", *passed}
    found = reasons(lake)
    num_keys = len(passed + refused)
    assert found == {
        ("interactions.tsv", row + num_before): reason
        for num_before, reason in ((0, "no_user_id"), (num_keys, "no_item_id"))
        for row in range(len(passed) + 1, num_keys + 1)
    } | {("items.jsonl", row + len(ITEMS)): "no_item_id" for row in range(len(passed) + 1, num_keys + 1)}


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


def test_late_rows_are_compared_with_the_whole_source():
    counts = [RowCount("interactions", DAY, None, 10), RowCount("interactions", "1998-01-01", "too_late", 5)]
    check_quarantine(counts, num_interactions=100, limit=0.05)
    with pytest.raises(QuarantineError, match=r"5 of 99 interactions \(those of other days\)"):
        check_quarantine(counts, num_interactions=99, limit=0.05)
