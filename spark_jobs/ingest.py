"""Ingest interactions, items and users up to a day; quarantine rows that violate the contract.

Reads:   the source folder (docs/data.md)
Writes:  quarantine, items and users of the day; interactions, one partition per event day

A day that is not over by the clock (`GRASP_NOW`, else the wall clock) is refused before anything is read. The first run
reads all events up to the day. A later run reads from `GRASP_LATE_DAYS` before the last ingested day, for events that
arrive late. Events after the day are ignored.

Refused rows go to the quarantine with a reason (see the functions below). If their share is above
`GRASP_MAX_QUARANTINE_SHARE`, the day fails: the quarantine is written, and nothing else is replaced.
"""

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import reduce

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F
from pyspark.sql import types as T

from grasp import tables
from grasp.days import end_of, plus_days, require_ended, start_of
from grasp.progress import say
from spark_jobs.job import run
from spark_jobs.source.reader import find_table, read_table, require_table
from spark_jobs.storage.lake import Lake
from spark_jobs.validation.clean_text import clean_text

EARLIEST = datetime(1990, 1, 1, tzinfo=UTC)  # earlier times are errors, for example 0 or a two-digit year

_MAX_ID_CHARS = 200
NO_TIME_REASONS = ("unreadable_interaction", "no_time", "before_1990", "in_the_future")
_DUPLICATE = "duplicate"  # not counted as refused: a repeated delivery loses no data


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


class QuarantineError(ValueError):
    """Too many rows were refused; the message has the count by reason."""


def check_interactions(rows: DataFrame, known_items: DataFrame, clock: datetime) -> DataFrame:
    """Parse interactions and set a `reason` for each refused one; `dated` is whether the row has a usable time.

    Equal times are ordered by the column `row_number` if the source has it, else by the position in the source.
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
    return column.isNull() | (F.length(column) > _MAX_ID_CHARS) | column.rlike(r"[\p{Cc}\p{Cf}]")


def _refused(checked: DataFrame, source_table: str) -> DataFrame:
    return checked.where("reason is not null").select(
        F.lit(source_table).alias("source_table"), "source_file", "source_row", "reason", "record"
    )


def refused_shares(counts: list[RowCount], num_interactions: int) -> list[RefusedShare]:
    """The share of refused rows by group; each group has its own limit.

    Interactions without a usable time belong to no day and are read on every day. They are therefore compared with all
    interactions of the source.
    """
    groups = [
        _refused_share(
            table, [count for count in counts if count.source_table == table and count.reason not in NO_TIME_REASONS]
        )
        for table in ("interactions", "items", "users")
    ]
    num_timeless = sum(count.num_rows for count in counts if count.reason in NO_TIME_REASONS)
    return [*groups, RefusedShare("interactions (those without a usable time)", num_interactions, num_timeless)]


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
    ingested = lake.days(tables.USERS, until=plus_days(day, -1))
    return plus_days(ingested[-1], -lake.settings.late_days) if ingested else None


def in_window(checked: DataFrame, first: str | None, day: str) -> DataFrame:
    """Rows of the days to ingest, and every row without a usable time."""
    begins = F.col("event_time") >= F.lit(start_of(first)) if first else F.lit(True)
    return checked.where(~F.col("dated") | (begins & (F.col("event_time") <= F.lit(end_of(day)))))


@dataclass(frozen=True)
class CheckedSource:
    """The rows that were read, each with its refusal reason or null."""

    interactions: DataFrame  # of the days to ingest
    items: DataFrame
    users: DataFrame


def main(lake: Lake, day: str) -> None:
    require_ended(day, lake.settings.clock())
    folder, first = lake.settings.source, first_day(lake, day)
    raw = read_table(lake.spark, require_table(folder, "interactions"))
    items = check_entities(read_table(lake.spark, require_table(folder, "items")), "item").cache()
    known_items = items.where("reason is null").select("item_id")
    clock = max(lake.settings.clock(), end_of(day))  # a clock in whole seconds is behind the day's last events
    checked = in_window(check_interactions(raw, known_items, clock), first, day)
    rows = CheckedSource(refuse_repeated(checked).cache(), items, _read_users(lake).cache())
    try:
        counts = _quarantine(lake, day, rows, raw)
        _write_interactions(lake, day, rows, first, counts)
        _write_entities(lake, day, rows)
    finally:
        for cached in (rows.interactions, rows.items, rows.users):
            cached.unpersist()


def _read_users(lake: Lake) -> DataFrame:
    """Facts about users, checked; empty if the source has no users table."""
    table = find_table(lake.settings.source, "users")
    if table is None:
        say("ingest: the source has no users table, so users have no facts")
        ddl = "source_file string, source_row bigint, position bigint, fields map<string,string>, record string"
        return check_entities(lake.spark.createDataFrame([], ddl), "user")
    return check_entities(read_table(lake.spark, table), "user")


def _quarantine(lake: Lake, day: str, rows: CheckedSource, raw: DataFrame) -> list[RowCount]:
    """Write the refused rows; then fail the day if there are too many."""
    counts = _count(rows)
    refused = _refused(rows.interactions, "interactions").unionByName(_refused(rows.items, "items"))
    lake.write(tables.QUARANTINE, refused.unionByName(_refused(rows.users, "users")).coalesce(1), day)
    has_timeless = any(count.reason in NO_TIME_REASONS for count in counts)
    check_quarantine(counts, raw.count() if has_timeless else 0, lake.settings.max_quarantine_share)
    return counts


def _count(rows: CheckedSource) -> list[RowCount]:
    of_days = rows.interactions.select(F.lit("interactions").alias("source_table"), _event_day(), "reason")
    states = (
        checked.select(F.lit(name).alias("source_table"), F.lit(None).alias("day"), "reason")
        for name, checked in (("items", rows.items), ("users", rows.users))
    )
    counted = reduce(DataFrame.unionByName, states, of_days).groupBy("source_table", "day", "reason").count()
    return [RowCount(*row) for row in counted.collect()]


def _event_day() -> Column:
    return F.date_format("event_time", "yyyy-MM-dd").alias("day")


def _write_interactions(lake: Lake, day: str, rows: CheckedSource, first: str | None, counts: list[RowCount]) -> None:
    num_by_day = {
        count.day: count.num_rows
        for count in counts
        if count.source_table == "interactions" and count.reason is None and count.day
    }
    # Includes days that have no events any more.
    known = {each for each in lake.days(tables.INTERACTIONS, until=day) if first is None or each >= first}
    accepted = rows.interactions.where("reason is null").select("*", _event_day())
    changed = lake.write_days(tables.INTERACTIONS, accepted, sorted({*num_by_day, *known, day}))
    since = f"from {first}" if first else "from the beginning"
    say(f"ingest: {sum(num_by_day.values()):,} interactions {since} to {day}, {len(changed)} days changed")
    if day not in num_by_day:
        say(f"ingest: {day} has no interactions; GRASP_MIN_DAY_INTERACTIONS decides whether it is published")


def _write_entities(lake: Lake, day: str, rows: CheckedSource) -> None:
    attributes = F.map_filter("facts", lambda name, _: name != "title")
    title = F.coalesce(F.col("facts")["title"], F.lit(""))
    items = rows.items.where("reason is null").select("item_id", title.alias("title"), attributes.alias("attributes"))
    lake.write(tables.ITEMS, items.coalesce(1), day)

    seen = lake.read_until(tables.INTERACTIONS, day).select("user_id").distinct()
    profiles = rows.users.where("reason is null").select("user_id", F.col("facts").alias("attributes"))
    known = F.coalesce("attributes", F.create_map().cast("map<string,string>"))
    users = seen.join(profiles, "user_id", "left").withColumn("attributes", known)
    lake.write(tables.USERS, users.coalesce(1), day)
    num_items, num_users = (lake.read(table, day).count() for table in (tables.ITEMS, tables.USERS))
    say(f"ingest: {num_items:,} items and {num_users:,} users known by the end of {day}")


if __name__ == "__main__":
    run(main)
