"""Ingest interactions, items and users up to a day; quarantine rows that violate the contract.

Reads:   the source folder (docs/data.md); the items, users and interactions ingested before
Writes:  quarantine, items, withdrawn_items and users of the day; interactions, one partition per event day

A day that is not over by the clock (`GRASP_NOW`, else the wall clock) is refused before anything is read. The first run
reads all events up to the day. A later run reads from `GRASP_LATE_DAYS` before the last ingested day, for events that
arrive late. Events after the day are ignored. The source is read once, and every row of it is accounted for.

Refused rows go to the quarantine with a reason (see the functions below). If their share is above
`GRASP_MAX_QUARANTINE_SHARE`, the day fails: the quarantine is written, and nothing else is replaced.

What is absent from the source is not deleted. An item that is gone stays known and is marked as withdrawn. A source
that names its complete days replaces these days only. Any other source replaces the days read, unless more than
`GRASP_MAX_VANISHED_SHARE` of what was ingested before is missing: then the day fails in the same way. What the delivery
must hold is checked by `spark_jobs/source/delivery.py`.
"""

from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from functools import reduce

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F
from pyspark.sql import types as T

from grasp import tables
from grasp.days import end_of, plus_days, require_ended
from grasp.progress import say
from grasp.tables import MAX_ID_BYTES
from spark_jobs.job import run
from spark_jobs.source.contract import EARLIEST, TablePlan, find_table, require_table
from spark_jobs.source.delivery import (
    LATE_REASONS,
    OTHER_FOLDER,
    DaysRead,
    DeliveryError,
    PartOfPlan,
    RowCount,
    check_vanished,
    event_day,
    late_rows,
    leave_folders,
    placed,
    require_all_rows,
    require_days,
    require_items,
    vanished_entities,
    vanished_interactions,
)
from spark_jobs.source.reader import DDL, Completeness, completeness, plan_table, read_table
from spark_jobs.storage.lake import Lake
from spark_jobs.storage.worker_errors import worker_errors
from spark_jobs.validation.clean_text import clean_text

NO_TIME_REASONS = ("unreadable_interaction", "no_time", "before_1990", "in_the_future")
_DUPLICATE = "duplicate"  # not counted as refused: a repeated delivery loses no data
_REPEATED_ID = ("repeated_item_id", "repeated_user_id")


@dataclass(frozen=True)
class RefusedShare:
    """How many rows of a group were refused."""

    group: str
    num_rows: int
    num_refused: int


class QuarantineError(ValueError):
    """Too many rows were refused; the message has the count by reason."""


def check_interactions(rows: DataFrame, known_items: DataFrame, clock: datetime, is_by_day: bool = False) -> DataFrame:
    """Parse interactions and set a `reason` for each refused one; `dated` is whether the row has a usable time.

    Equal times are ordered by the column `row_number` if the source has it, else by the position in the source.
    `is_by_day`: the source has a folder for each day, so an event belongs to the day of its folder.
    """
    seconds = F.expr("try_cast(fields['timestamp'] as decimal(16,6))")
    given, position = F.col("fields")["row_number"], F.expr("try_cast(fields['row_number'] as bigint)")
    parsed = rows.withColumns(
        {
            "user_id": F.col("fields")["user_id"],
            "item_id": F.col("fields")["item_id"],
            "event_time": F.timestamp_micros((seconds * 1_000_000).cast("bigint")),
            "row_number": F.when(given.isNotNull(), position).otherwise(F.col("position")),
        }
    )
    known = known_items.select("item_id", F.lit(True).alias("is_known"))
    reason = _first_match(
        (F.col("fields").isNull(), "unreadable_interaction"),
        (F.col("event_time").isNull(), "no_time"),
        (F.col("event_time") < F.lit(EARLIEST), "before_1990"),
        (F.col("event_time") > F.lit(clock), "in_the_future"),
        (_is_invalid_id("user_id"), "no_user_id"),
        (_is_invalid_id("item_id"), "no_item_id"),
        (F.col("is_known").isNull(), "unknown_item"),
        (F.col("row_number").isNull(), "no_row_number"),
        (F.lit(is_by_day) & (F.col("fields")["day"] != event_day()), OTHER_FOLDER),
    )
    checked = parsed.join(known, "item_id", "left").withColumn("reason", reason)
    return checked.withColumn("dated", ~F.coalesce(F.col("reason").isin(*NO_TIME_REASONS), F.lit(False)))


def refuse_repeated(checked: DataFrame) -> DataFrame:
    """Keep the first of equal interactions, and the first of those with equal user, time and row number."""
    by_user = checked.repartition("user_id")
    same = Window.partitionBy("user_id", "item_id", "event_time", "accepted").orderBy("row_number", "position")
    place = Window.partitionBy("user_id", "event_time", "row_number", "accepted").orderBy("position")
    reason = _first_match(
        (F.col("reason").isNotNull(), F.col("reason")),
        (F.col("copy") > 1, _DUPLICATE),
        (F.col("claim") > 1, "repeated_row_number"),
    )
    return (
        by_user.withColumn("accepted", F.col("reason").isNull())
        .withColumn("copy", F.row_number().over(same))
        .withColumn("accepted", F.col("accepted") & (F.col("copy") == 1))
        .withColumn("claim", F.row_number().over(place))
        .withColumn("reason", reason)
        .drop("accepted", "copy", "claim")
    )


def check_entities(rows: DataFrame, entity: str) -> DataFrame:
    """Clean items or users and set a `reason` for each refused row. The first row of a repeated id is kept."""
    key = f"{entity}_id"
    known = rows.withColumn(key, F.col("fields")[key])
    first = Window.partitionBy(key).orderBy("position")
    reason = _first_match(
        (F.col("fields").isNull(), f"unreadable_{entity}"),
        (_is_invalid_id(key), f"no_{key}"),
        (F.row_number().over(first) > 1, f"repeated_{key}"),
    )
    clean = F.udf(_clean_facts, T.MapType(T.StringType(), T.StringType()), useArrow=False)
    facts = clean(F.map_filter("fields", lambda name, _: name != key))
    return known.withColumn("reason", reason).withColumn("facts", facts)


def _clean_facts(facts: dict[str, str] | None) -> dict[str, str]:
    cleaned = {clean_text(name, max_chars=60): clean_text(value) for name, value in (facts or {}).items()}
    return {name: value for name, value in cleaned.items() if name and value}


def _first_match(*cases: tuple[Column, Column | str]) -> Column:
    """The outcome of the first case that is true, else null."""
    outcomes = [F.when(case, outcome if isinstance(outcome, Column) else F.lit(outcome)) for case, outcome in cases]
    return F.coalesce(*outcomes)


def _is_invalid_id(name: str) -> Column:
    """Missing, too long, or with invisible characters."""
    column = F.col(name)
    return column.isNull() | (F.octet_length(column) > MAX_ID_BYTES) | column.rlike(r"[\p{Cc}\p{Cf}]")


def _refused(checked: DataFrame, source_table: str) -> DataFrame:
    return checked.where("reason is not null").select(
        F.lit(source_table).alias("source_table"), "source_file", "source_row", "reason", "record"
    )


def refused_shares(counts: list[RowCount], num_interactions: int) -> list[RefusedShare]:
    """The share of refused rows by group; each group has its own limit.

    Interactions without a usable time, and those of other days, are counted on every day as long as the source holds
    them. They are therefore compared with all interactions of the source.
    """
    of_other_days = (*LATE_REASONS, OTHER_FOLDER)
    of_source = (*NO_TIME_REASONS, *of_other_days)
    groups = [
        _refused_share(
            table, [count for count in counts if count.source_table == table and count.reason not in of_source]
        )
        for table in ("interactions", "items", "users")
    ]
    for group, reasons in (("without a usable time", NO_TIME_REASONS), ("of other days", of_other_days)):
        num_refused = sum(count.num_rows for count in counts if count.reason in reasons)
        groups.append(RefusedShare(f"interactions (those {group})", num_interactions, num_refused))
    return groups


def _refused_share(group: str, counts: list[RowCount]) -> RefusedShare:
    num_refused = sum(count.num_rows for count in counts if count.reason not in (None, _DUPLICATE))
    return RefusedShare(group, sum(count.num_rows for count in counts), num_refused)


def _num_refused(counts: list[RowCount], source_table: str, day: str | None = None) -> int:
    """Refused rows of a table, or those that may be of one day: without a usable time they may be of any.

    Duplicates and repeated ids are left out, because another row holds the same.
    """
    of_any_day = (*NO_TIME_REASONS, OTHER_FOLDER)
    return sum(
        count.num_rows
        for count in counts
        if count.source_table == source_table
        and count.reason not in (None, _DUPLICATE, *_REPEATED_ID)
        and (day is None or count.day == day or count.reason in of_any_day)
    )


def check_quarantine(counts: list[RowCount], num_interactions: int, limit: float) -> None:
    """Log what was refused; raises `QuarantineError` if the share of a group is above the limit."""
    by_reason: Counter[str] = Counter()
    for count in counts:
        by_reason[f"{count.source_table} {count.reason}"] += count.num_rows if count.reason else 0
    reasons = ", ".join(f"{num_rows:,} {reason}" for reason, num_rows in sorted(by_reason.items()) if num_rows)
    if reasons:
        say(f"ingest: quarantined {reasons}")
    for share in refused_shares(counts, num_interactions):
        if share.num_refused > limit * share.num_rows:
            raise QuarantineError(
                f"{share.num_refused:,} of {share.num_rows:,} {share.group} were refused, a larger share than "
                f"GRASP_MAX_QUARANTINE_SHARE={limit}: {reasons}; the table quarantine names file and row"
            )


def first_day(lake: Lake, day: str) -> str | None:
    """First event day to read again: `late_days` before the last ingested day, or None for all days."""
    last = _last_ingested(lake, day)
    return plus_days(last, -lake.settings.late_days) if last else None


def _last_ingested(lake: Lake, day: str) -> str | None:
    ingested = lake.days(tables.USERS, until=plus_days(day, -1))
    return ingested[-1] if ingested else None


@dataclass(frozen=True)
class CheckedSource:
    """The rows that were read, each with its refusal reason or null."""

    plans: dict[str, TablePlan]
    interactions: DataFrame  # of the days to ingest, and late ones
    items: DataFrame
    users: DataFrame
    num_later: int  # interactions after the day
    num_earlier: int  # interactions of days before those read, late ones included


def main(lake: Lake, day: str) -> None:
    require_ended(day, lake.settings.clock())
    folder = lake.settings.source
    plans = {name: plan_table(require_table(folder, name)) for name in ("interactions", "items")}
    users = find_table(folder, "users")
    if users:
        plans["users"] = plan_table(users)
    else:
        say("ingest: the source has no users table, so users have no facts")
    complete = completeness(folder, plans["interactions"])
    if complete.days is not None:
        require_days(complete.days, _last_ingested(lake, day), day, folder)
    days = DaysRead(first_day(lake, day), day, complete.days)
    with worker_errors(DeliveryError):
        _ingest(lake, plans, days, complete)


def _ingest(lake: Lake, plans: dict[str, TablePlan], days: DaysRead, complete: Completeness) -> None:
    part = _part_to_read(lake, plans["interactions"], days)
    held: list[DataFrame] = []
    try:
        checked = {name: check_entities(_rows(lake, plans, f"{name}s"), name).cache() for name in ("item", "user")}
        held += checked.values()
        interactions = _check_interactions(lake, part.plan, checked["item"], days).cache()
        held.append(interactions)
        places = dict(interactions.groupBy("place").count().collect())
        later, earlier = places.get("later", 0), places.get("earlier", 0)
        read = refuse_repeated(interactions.where("place = 'read'"))
        if earlier:
            read = read.unionByName(late_rows(interactions, lake.read_until(tables.INTERACTIONS, days.last), days))
        held.append(read.cache())
        later, earlier = later + part.num_later, earlier + part.num_earlier
        rows = CheckedSource(plans, read, checked["item"], checked["user"], later, earlier)
        counts = _quarantine(lake, days.last, rows)
        _check_delivery(lake, rows, counts, days, complete)
        _write_interactions(lake, days, rows, counts)
        _write_entities(lake, days.last, rows)
    finally:
        for cached in held:
            cached.unpersist()


def _part_to_read(lake: Lake, plan: TablePlan, days: DaysRead) -> PartOfPlan:
    others = [day for day in plan.days or () if day not in days]
    num_ingested = {day: lake.num_rows(tables.INTERACTIONS, day) for day in others}
    return leave_folders(plan, days, num_ingested, lake.settings.clock())


def _rows(lake: Lake, plans: dict[str, TablePlan], name: str) -> DataFrame:
    return read_table(lake.spark, plans[name]) if name in plans else lake.spark.createDataFrame([], DDL)


def _check_interactions(lake: Lake, plan: TablePlan, items: DataFrame, days: DaysRead) -> DataFrame:
    """All interactions of the source, checked. An item that was known once is known."""
    before = lake.read_latest(tables.ITEMS, days.last)
    known = items.where("reason is null").select("item_id").union(before.select("item_id")).distinct()
    raw = read_table(lake.spark, plan)
    clock = max(lake.settings.clock(), end_of(days.last))  # a clock in whole seconds is behind the day's last events
    checked = check_interactions(raw, known, clock, is_by_day=plan.days is not None)
    return placed(checked, days).drop("fields", "is_known")


def _quarantine(lake: Lake, day: str, rows: CheckedSource) -> list[RowCount]:
    """Write the refused rows; then fail the day if there are too many, or if a row was lost."""
    counts = _count(rows)
    refused = _refused(rows.interactions, "interactions").unionByName(_refused(rows.items, "items"))
    lake.write(tables.QUARANTINE, refused.unionByName(_refused(rows.users, "users")).coalesce(1), day)
    num_late = sum(count.num_rows for count in counts if count.reason in LATE_REASONS)
    num_known = rows.num_earlier - num_late
    require_all_rows(counts, rows.num_later + num_known, rows.plans)
    num_rows = rows.plans["interactions"].num_rows
    num_accepted = _num_accepted(counts, "interactions")
    num_refused = num_rows - num_accepted - num_known - rows.num_later
    say(
        f"ingest: {num_rows:,} interactions in the source: {num_accepted:,} accepted, {num_refused:,} refused, "
        f"{num_known:,} of earlier days, {rows.num_later:,} after {day}"
    )
    check_quarantine(counts, num_rows, lake.settings.max_quarantine_share)
    return counts


def _count(rows: CheckedSource) -> list[RowCount]:
    of_days = rows.interactions.select(F.lit("interactions").alias("source_table"), event_day().alias("day"), "reason")
    states = (
        checked.select(F.lit(name).alias("source_table"), F.lit(None).alias("day"), "reason")
        for name, checked in (("items", rows.items), ("users", rows.users))
    )
    counted = reduce(DataFrame.unionByName, states, of_days).groupBy("source_table", "day", "reason").count()
    return [RowCount(*row) for row in counted.collect()]


def _check_delivery(
    lake: Lake, rows: CheckedSource, counts: list[RowCount], days: DaysRead, complete: Completeness
) -> None:
    """Compare what the source holds with what was ingested before; of what it calls complete, only refused rows."""
    limit, num_items = lake.settings.max_vanished_share, _num_accepted(counts, "items")
    before = lake.days(tables.INTERACTIONS, until=days.last)
    if not before:
        require_items(num_items, 0, limit, rows.plans["items"].table.path)
        return
    ingested = lake.read_days(tables.INTERACTIONS, [day for day in before if day in days])
    of_days = vanished_interactions(ingested, rows.interactions.where("reason is null"))
    vanished = [
        each if days.complete is None else each.of_complete(_num_refused(counts, "interactions", day))
        for day, each in of_days.items()
    ]
    withdrawn = lake.read_latest(tables.WITHDRAWN_ITEMS, days.last).select("item_id")
    offered = lake.read_latest(tables.ITEMS, days.last).select("item_id").join(withdrawn, "item_id", "left_anti")
    profiled = lake.read_latest(tables.USERS, days.last).where("size(attributes) > 0").select("user_id")
    items = vanished_entities(offered, _accepted(rows.items, "item_id"), "items")
    users = vanished_entities(profiled, _accepted(rows.users, "user_id"), "users with facts")
    vanished += [
        each.of_complete(_num_refused(counts, name)) if name in complete.tables else each
        for name, each in (("items", items), ("users", users))
    ]
    check_vanished(vanished, limit, lake.settings.source)
    require_items(num_items, items.num_before, limit, rows.plans["items"].table.path)


def _num_accepted(counts: list[RowCount], source_table: str) -> int:
    return sum(count.num_rows for count in counts if count.source_table == source_table and count.reason is None)


def _accepted(checked: DataFrame, key: str) -> DataFrame:
    return checked.where("reason is null").select(key)


def _write_interactions(lake: Lake, days: DaysRead, rows: CheckedSource, counts: list[RowCount]) -> None:
    num_by_day = {
        count.day: count.num_rows
        for count in counts
        if count.source_table == "interactions" and count.reason is None and count.day
    }
    # Includes days that have no events any more.
    known = {day for day in lake.days(tables.INTERACTIONS, until=days.last) if day in days}
    accepted = rows.interactions.where("reason is null").withColumn("day", event_day())
    changed = lake.write_days(tables.INTERACTIONS, accepted, sorted({*num_by_day, *known, days.last}))
    since = f"from {days.first}" if days.first else "from the beginning"
    say(f"ingest: {sum(num_by_day.values()):,} interactions {since} to {days.last}, {len(changed)} days changed")
    if days.last not in num_by_day:
        say(f"ingest: {days.last} has no interactions; GRASP_MIN_DAY_INTERACTIONS decides whether it is published")


def _write_entities(lake: Lake, day: str, rows: CheckedSource) -> None:
    attributes = F.map_filter("facts", lambda name, _: name != "title")
    title = F.coalesce(F.col("facts")["title"], F.lit(""))
    items = rows.items.where("reason is null").select("item_id", title.alias("title"), attributes.alias("attributes"))
    gone = lake.read_latest(tables.ITEMS, day).join(items.select("item_id"), "item_id", "left_anti")
    before = lake.read_latest(tables.WITHDRAWN_ITEMS, day)
    since = F.coalesce("withdrawn_on", F.lit(day)).alias("withdrawn_on")
    withdrawn = gone.select("item_id").join(before, "item_id", "left").select("item_id", since)
    # First the withdrawn ones: they are found in the items of before, which the next line may replace.
    lake.write(tables.WITHDRAWN_ITEMS, withdrawn.coalesce(1), day)
    lake.write(tables.ITEMS, items.unionByName(gone).coalesce(1), day)

    seen = lake.read_until(tables.INTERACTIONS, day).select("user_id").distinct()
    profiles = rows.users.where("reason is null").select("user_id", F.col("facts").alias("attributes"))
    known = F.coalesce("attributes", F.create_map().cast("map<string,string>"))
    users = seen.join(profiles, "user_id", "left").withColumn("attributes", known)
    lake.write(tables.USERS, users.coalesce(1), day)
    num_items, num_users, num_withdrawn = (
        lake.read(table, day).count() for table in (tables.ITEMS, tables.USERS, tables.WITHDRAWN_ITEMS)
    )
    say(f"ingest: {num_items:,} items ({num_withdrawn:,} withdrawn) and {num_users:,} users known by the end of {day}")


if __name__ == "__main__":
    run(main)
