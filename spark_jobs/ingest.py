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
`GRASP_MAX_VANISHED_SHARE` of what was ingested before is missing: then the day fails in the same way.
"""

from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from functools import reduce
from pathlib import Path

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F
from pyspark.sql import types as T

from grasp import tables
from grasp.days import end_of, plus_days, require_ended, start_of
from grasp.progress import say
from grasp.tables import MAX_ID_BYTES
from spark_jobs.job import run
from spark_jobs.source.contract import EARLIEST, TablePlan, find_table, require_table
from spark_jobs.source.reader import DDL, MARKER, Completeness, completeness, plan_table, read_table
from spark_jobs.storage.lake import Lake
from spark_jobs.validation.clean_text import clean_text

NO_TIME_REASONS = ("unreadable_interaction", "no_time", "before_1990", "in_the_future")
LATE_REASONS = ("too_late", "incomplete_day")
_OTHER_FOLDER = "folder_of_another_day"
_DUPLICATE = "duplicate"  # not counted as refused: a repeated delivery loses no data
_EVENT = ("user_id", "item_id", "event_time")  # what makes two interactions the same


@dataclass(frozen=True)
class RefusedShare:
    """How many rows of a group were refused."""

    group: str
    num_rows: int
    num_refused: int


@dataclass(frozen=True)
class RowCount:
    """Number of rows by table, event day and reason; `reason` is None for accepted rows."""

    source_table: str
    day: str | None
    reason: str | None
    num_rows: int


@dataclass(frozen=True)
class Vanished:
    """How much of what was ingested before is missing from the source."""

    group: str
    num_before: int
    num_gone: int


@dataclass(frozen=True)
class DaysRead:
    """Which event days a run replaces: from `first` (None: from the beginning) to `last`.

    If the source names its complete days, only these.
    """

    first: str | None
    last: str
    complete: frozenset[str] | None = None

    def __contains__(self, day: str) -> bool:
        is_between = (self.first is None or day >= self.first) and day <= self.last
        return is_between and (self.complete is None or day in self.complete)


class QuarantineError(ValueError):
    """Too many rows were refused; the message has the count by reason."""


class DeliveryError(ValueError):
    """The source lacks rows, or days, that it should hold; the message has both counts."""


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
        (F.lit(is_by_day) & (F.col("fields")["day"] != _event_day()), _OTHER_FOLDER),
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
    of_other_days = (*LATE_REASONS, _OTHER_FOLDER)
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


def require_days(complete: frozenset[str], last_ingested: str | None, day: str, folder: Path) -> None:
    """Raise `DeliveryError` unless the complete days of a source include every day since the last ingested one."""
    wanted = plus_days(last_ingested, 1) if last_ingested else day
    while wanted <= day:
        if wanted not in complete:
            held = f"{min(complete)} to {max(complete)}" if complete else "none"
            raise DeliveryError(
                f"{folder}: {wanted} is not among the complete days of this delivery ({held}). Deliver it; if nothing "
                f"happened on it, say so in {folder / MARKER} (docs/data.md)"
            )
        wanted = plus_days(wanted, 1)


def placed(checked: DataFrame, days: DaysRead) -> DataFrame:
    """Set `place`: `read` for rows of the days read and those that have no day, else `earlier` or `later`."""
    has_no_day = ~F.col("dated") | F.coalesce(F.col("reason") == _OTHER_FOLDER, F.lit(False))
    begins = F.col("event_time") >= F.lit(start_of(days.first)) if days.first else F.lit(True)
    if days.complete is not None:
        begins = begins & _event_day().isin([day for day in days.complete if day in days])
    place = _first_match(
        (has_no_day, "read"), (F.col("event_time") > F.lit(end_of(days.last)), "later"), (begins, "read")
    )
    return checked.withColumn("place", F.coalesce(place, F.lit("earlier")))


def late_rows(checked: DataFrame, ingested: DataFrame, days: DaysRead) -> DataFrame:
    """Valid rows of earlier days that were never ingested, with their reason."""
    earlier = checked.where("place = 'earlier' and reason is null")
    is_late = F.col("event_time") < F.lit(start_of(days.first)) if days.first else F.lit(False)
    reason = F.when(is_late, "too_late").otherwise("incomplete_day")
    return earlier.join(ingested.select(*_EVENT), list(_EVENT), "left_anti").withColumn("reason", reason)


def vanished_interactions(ingested: DataFrame, accepted: DataFrame) -> list[Vanished]:
    """Number of ingested and of missing interactions of each day."""
    there = accepted.select(*_EVENT, F.lit(True).alias("is_there"))
    compared = ingested.select(*_EVENT).join(there, list(_EVENT), "left").withColumn("day", _event_day())
    counted = compared.groupBy("day").agg(F.count("*"), F.count_if(F.col("is_there").isNull()))
    return [Vanished(f"interactions of {day}", before, gone) for day, before, gone in sorted(counted.collect())]


def _vanished_entities(before: DataFrame, now: DataFrame, group: str) -> Vanished:
    (key,) = before.columns
    compared = before.join(now.withColumn("is_there", F.lit(True)), key, "left")
    num_before, num_gone = compared.agg(F.count("*"), F.count_if(F.col("is_there").isNull())).collect()[0]
    return Vanished(group, num_before, num_gone)


def check_vanished(vanished: list[Vanished], limit: float, folder: Path) -> None:
    """Raise `DeliveryError` if the missing share of a group is above the limit."""
    too_many = [each for each in vanished if each.num_gone > limit * each.num_before]
    if too_many:
        worst = ", ".join(f"{each.num_gone:,} of {each.num_before:,} {each.group}" for each in too_many[:3])
        more = f" and {len(too_many) - 3} more days" if len(too_many) > 3 else ""
        raise DeliveryError(
            f"{folder} lacks what was ingested before: {worst}{more}; a larger share than "
            f"GRASP_MAX_VANISHED_SHARE={limit}. Nothing was replaced. If it was deleted on purpose, confirm with "
            f"GRASP_MAX_VANISHED_SHARE=1 for this run, or in {folder / MARKER} (docs/data.md)"
        )


def require_all_rows(counts: list[RowCount], elsewhere: int, plans: dict[str, TablePlan]) -> None:
    """Raise `DeliveryError` if a row of the files is not among those counted; `elsewhere`: of other days."""
    for name, plan in plans.items():
        num_found = sum(count.num_rows for count in counts if count.source_table == name)
        num_found += elsewhere if name == "interactions" else 0
        if num_found != plan.num_rows:
            raise DeliveryError(
                f"{plan.table.path} holds {plan.num_rows:,} rows, {num_found:,} were read: the source was changed "
                "meanwhile; run again"
            )


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
    held: list[DataFrame] = []
    try:
        checked = {name: check_entities(_rows(lake, plans, f"{name}s"), name).cache() for name in ("item", "user")}
        held += checked.values()
        interactions = _check_interactions(lake, plans["interactions"], checked["item"], days).cache()
        held.append(interactions)
        places = dict(interactions.groupBy("place").count().collect())
        later, earlier = places.get("later", 0), places.get("earlier", 0)
        read = refuse_repeated(interactions.where("place = 'read'"))
        if earlier:
            read = read.unionByName(late_rows(interactions, lake.read_until(tables.INTERACTIONS, day), days))
        held.append(read.cache())
        rows = CheckedSource(plans, read, checked["item"], checked["user"], later, earlier)
        counts = _quarantine(lake, day, rows)
        _check_delivery(lake, rows, days, complete)
        _write_interactions(lake, days, rows, counts)
        _write_entities(lake, day, rows)
    finally:
        for cached in held:
            cached.unpersist()


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
    num_accepted = sum(c.num_rows for c in counts if c.source_table == "interactions" and c.reason is None)
    num_refused = num_rows - num_accepted - num_known - rows.num_later
    say(
        f"ingest: {num_rows:,} interactions in the source: {num_accepted:,} accepted, {num_refused:,} refused, "
        f"{num_known:,} of earlier days, {rows.num_later:,} after {day}"
    )
    check_quarantine(counts, num_rows, lake.settings.max_quarantine_share)
    return counts


def _count(rows: CheckedSource) -> list[RowCount]:
    of_days = rows.interactions.select(F.lit("interactions").alias("source_table"), _event_day().alias("day"), "reason")
    states = (
        checked.select(F.lit(name).alias("source_table"), F.lit(None).alias("day"), "reason")
        for name, checked in (("items", rows.items), ("users", rows.users))
    )
    counted = reduce(DataFrame.unionByName, states, of_days).groupBy("source_table", "day", "reason").count()
    return [RowCount(*row) for row in counted.collect()]


def _event_day() -> Column:
    return F.date_format("event_time", "yyyy-MM-dd")


def _check_delivery(lake: Lake, rows: CheckedSource, days: DaysRead, complete: Completeness) -> None:
    """Compare what the source holds with what was ingested before, unless it says that it is complete."""
    if not lake.days(tables.INTERACTIONS, until=days.last):
        return  # nothing was ingested before
    vanished = []
    if days.complete is None:
        begins = F.col("event_time") >= F.lit(start_of(days.first)) if days.first else F.lit(True)
        ingested = lake.read_until(tables.INTERACTIONS, days.last).where(begins)
        vanished += vanished_interactions(ingested, rows.interactions.where("reason is null"))
    if "items" not in complete.tables:
        withdrawn = lake.read_latest(tables.WITHDRAWN_ITEMS, days.last).select("item_id")
        offered = lake.read_latest(tables.ITEMS, days.last).select("item_id").join(withdrawn, "item_id", "left_anti")
        vanished.append(_vanished_entities(offered, _accepted(rows.items, "item_id"), "items"))
    if "users" not in complete.tables:
        profiled = lake.read_latest(tables.USERS, days.last).where("size(attributes) > 0").select("user_id")
        vanished.append(_vanished_entities(profiled, _accepted(rows.users, "user_id"), "users with facts"))
    check_vanished(vanished, lake.settings.max_vanished_share, lake.settings.source)


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
    accepted = rows.interactions.where("reason is null").withColumn("day", _event_day())
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
