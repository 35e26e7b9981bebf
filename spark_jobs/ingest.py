"""Take in what the source knows up to a day: interactions, items and users; refuse what breaks the contract.

Reads:   the source folder (docs/data.md)
Writes:  quarantine and items and users of the day; interactions, one partition per event day

A day that ends after the clock (`GRASP_NOW`, else the wall clock) is refused before anything is read.
The first run takes every event up to the day. A later run takes the days since the last ingested day and
`late_days` before it, for events that came late. Events after the day are not known yet and are left alone.

Refused rows go to the quarantine with a reason (the functions below name them all). When their share is above
`max_quarantine_share` the day fails, after the quarantine is written and before anything else is replaced.
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
from spark_jobs.source import reader as source
from spark_jobs.storage.lake import Lake
from spark_jobs.validation.clean_text import clean_text

EARLIEST = datetime(1990, 1, 1, tzinfo=UTC)  # earlier times are mistakes, such as 0 or a two-digit year

_MAX_ID_CHARS = 200
TIMELESS = ("unreadable_interaction", "no_time", "before_1990", "in_the_future")
_NOT_COUNTED = "duplicate"  # a repeated delivery loses nothing, so that it never fails a day


@dataclass(frozen=True)
class Share:
    """How many of a group of source rows were refused."""

    group: str
    num_rows: int
    num_refused: int


@dataclass(frozen=True)
class Count:
    """How many rows of one table and event day met one fate; `reason` is None for accepted rows."""

    source_table: str
    day: str | None
    reason: str | None
    num_rows: int


class QuarantineError(ValueError):
    """Too many rows were refused; the message counts them by reason."""


def judge_interactions(rows: DataFrame, known_items: DataFrame, clock: datetime) -> DataFrame:
    """Parse interactions and give each refused one a `reason`; `dated` tells whether the row has a usable time.

    Order among equal times is the column `row_number` where the source has one, else the position in the source.
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
    reason = _first(
        (F.col("fields").isNull(), "unreadable_interaction"),
        (F.col("event_time").isNull(), "no_time"),
        (F.col("event_time") < F.lit(EARLIEST), "before_1990"),
        (F.col("event_time") > F.lit(clock), "in_the_future"),
        (_no_id("user_id"), "no_user_id"),
        (_no_id("item_id"), "no_item_id"),
        (F.col("is_known").isNull(), "unknown_item"),
        (F.col("row_number").isNull(), "no_row_number"),
    )
    judged = parsed.join(known, "item_id", "left").withColumn("reason", reason)
    return judged.withColumn("dated", ~F.coalesce(F.col("reason").isin(*TIMELESS), F.lit(False)))


def refuse_repeated(judged: DataFrame) -> DataFrame:
    """Of equal interactions the one with the lowest row number stays; two that claim one place are not both kept."""
    by_user = judged.repartition("user_id")
    same = Window.partitionBy("user_id", "item_id", "event_time", "accepted").orderBy("row_number", "position")
    place = Window.partitionBy("user_id", "event_time", "row_number", "accepted").orderBy("position")
    reason = _first(
        (F.col("reason").isNotNull(), F.col("reason")),
        (F.col("copy") > 1, _NOT_COUNTED),
        (F.col("claim") > 1, "repeated_row_number"),
    )
    return (
        by_user.withColumn("accepted", F.col("reason").isNull())
        .withColumn("copy", F.row_number().over(same))
        # A refused copy claims no place.
        .withColumn("accepted", F.col("accepted") & (F.col("copy") == 1))
        .withColumn("claim", F.row_number().over(place))
        .withColumn("reason", reason)
        .drop("accepted", "copy", "claim")
    )


def judge_entities(rows: DataFrame, entity: str) -> DataFrame:
    """Clean items or users and give each refused row a `reason`; of a repeated id the first row stays."""
    key = f"{entity}_id"
    known = rows.withColumn(key, F.col("fields")[key])
    first = Window.partitionBy(key).orderBy("position")
    reason = _first(
        (F.col("fields").isNull(), f"unreadable_{entity}"),
        (_no_id(key), f"no_{key}"),
        (F.row_number().over(first) > 1, f"repeated_{key}"),
    )
    clean = F.udf(_clean_facts, T.MapType(T.StringType(), T.StringType()), useArrow=False)
    facts = clean(F.map_filter("fields", lambda name, _: name != key))
    return known.withColumn("reason", reason).withColumn("facts", facts)


def _clean_facts(facts: dict[str, str] | None) -> dict[str, str]:
    cleaned = {clean_text(name, max_chars=60): clean_text(value) for name, value in (facts or {}).items()}
    return {name: value for name, value in cleaned.items() if name and value}


def _first(*cases: tuple[Column, Column | str]) -> Column:
    """The outcome of the first case that holds, else null."""
    outcomes = [F.when(case, outcome if isinstance(outcome, Column) else F.lit(outcome)) for case, outcome in cases]
    return F.coalesce(*outcomes)


def _no_id(name: str) -> Column:
    """Missing, overlong, or with characters nobody sees: no key to join on."""
    column = F.col(name)
    return column.isNull() | (F.length(column) > _MAX_ID_CHARS) | column.rlike(r"[\p{Cc}\p{Cf}]")


def _refused(judged: DataFrame, source_table: str) -> DataFrame:
    return judged.where("reason is not null").select(
        F.lit(source_table).alias("source_table"), "source_file", "source_row", "reason", "record"
    )


def shares(counts: list[Count], num_interactions: int) -> list[Share]:
    """The groups of rows that have a limit of their own.

    Interactions without a usable time turn up on every day, whatever days are read, so that all interactions of the
    source are their measure.
    """
    groups = [
        _share(table, [count for count in counts if count.source_table == table and count.reason not in TIMELESS])
        for table in ("interactions", "items", "users")
    ]
    num_timeless = sum(count.num_rows for count in counts if count.reason in TIMELESS)
    return [*groups, Share("interactions (those without a usable time)", num_interactions, num_timeless)]


def _share(group: str, counts: list[Count]) -> Share:
    num_refused = sum(count.num_rows for count in counts if count.reason not in (None, _NOT_COUNTED))
    return Share(group, sum(count.num_rows for count in counts), num_refused)


def check_quarantine(counts: list[Count], num_interactions: int, limit: float) -> None:
    """Say what was refused; raises `QuarantineError` when a group's share is above the limit."""
    by_reason: Counter[str] = Counter()
    for count in counts:
        by_reason[f"{count.source_table} {count.reason}"] += count.num_rows if count.reason else 0
    reasons = ", ".join(f"{num_rows:,} {reason}" for reason, num_rows in sorted(by_reason.items()) if num_rows)
    if reasons:
        say(f"ingest: quarantined {reasons}")
    for share in shares(counts, num_interactions):
        if share.num_refused > limit * share.num_rows:
            raise QuarantineError(
                f"{share.num_refused:,} of {share.num_rows:,} {share.group} were refused, a larger share than "
                f"GRASP_MAX_QUARANTINE_SHARE={limit}: {reasons}; the table quarantine names file and row"
            )


def first_day(lake: Lake, day: str) -> str | None:
    """First event day to take in again, or None for all: `late_days` before the last ingested day."""
    ingested = lake.days(tables.USERS, until=plus_days(day, -1))
    return plus_days(ingested[-1], -lake.settings.late_days) if ingested else None


def in_window(judged: DataFrame, first: str | None, day: str) -> DataFrame:
    """Rows of the days to take in, and every row that has no usable time."""
    begins = F.col("event_time") >= F.lit(start_of(first)) if first else F.lit(True)
    return judged.where(~F.col("dated") | (begins & (F.col("event_time") <= F.lit(end_of(day)))))


@dataclass(frozen=True)
class Judged:
    """What was read, each row with its reason or null."""

    interactions: DataFrame  # of the days to take in
    items: DataFrame
    users: DataFrame


def main(lake: Lake, day: str) -> None:
    require_ended(day, lake.settings.clock())
    folder, first = lake.settings.source, first_day(lake, day)
    raw = source.read(lake.spark, source.require(folder, "interactions"))
    items = judge_entities(source.read(lake.spark, source.require(folder, "items")), "item").cache()
    known_items = items.where("reason is null").select("item_id")
    judged = in_window(judge_interactions(raw, known_items, lake.settings.clock()), first, day)
    rows = Judged(refuse_repeated(judged).cache(), items, _read_users(lake).cache())
    try:
        counts = _quarantine(lake, day, rows, raw)
        _write_interactions(lake, day, rows, first, counts)
        _write_entities(lake, day, rows)
    finally:
        for cached in (rows.interactions, rows.items, rows.users):
            cached.unpersist()


def _read_users(lake: Lake) -> DataFrame:
    """Facts about users, judged; without rows when the source knows none."""
    table = source.find(lake.settings.source, "users")
    if table is None:
        say("ingest: the source has no users table, so users have no facts")
        ddl = "source_file string, source_row bigint, position bigint, fields map<string,string>, record string"
        return judge_entities(lake.spark.createDataFrame([], ddl), "user")
    return judge_entities(source.read(lake.spark, table), "user")


def _quarantine(lake: Lake, day: str, rows: Judged, raw: DataFrame) -> list[Count]:
    """Write what was refused, then fail the day if it was too much."""
    counts = _count(rows)
    refused = _refused(rows.interactions, "interactions").unionByName(_refused(rows.items, "items"))
    lake.write(tables.QUARANTINE, refused.unionByName(_refused(rows.users, "users")).coalesce(1), day)
    has_timeless = any(count.reason in TIMELESS for count in counts)
    check_quarantine(counts, raw.count() if has_timeless else 0, lake.settings.max_quarantine_share)
    return counts


def _count(rows: Judged) -> list[Count]:
    of_days = rows.interactions.select(F.lit("interactions").alias("source_table"), _event_day(), "reason")
    states = (
        judged.select(F.lit(name).alias("source_table"), F.lit(None).alias("day"), "reason")
        for name, judged in (("items", rows.items), ("users", rows.users))
    )
    counted = reduce(DataFrame.unionByName, states, of_days).groupBy("source_table", "day", "reason").count()
    return [Count(*row) for row in counted.collect()]


def _event_day() -> Column:
    return F.date_format("event_time", "yyyy-MM-dd").alias("day")


def _write_interactions(lake: Lake, day: str, rows: Judged, first: str | None, counts: list[Count]) -> None:
    num_by_day = {
        count.day: count.num_rows
        for count in counts
        if count.source_table == "interactions" and count.reason is None and count.day
    }
    # A day whose events were all withdrawn is replaced as well.
    known = {each for each in lake.days(tables.INTERACTIONS, until=day) if first is None or each >= first}
    accepted = rows.interactions.where("reason is null").select("*", _event_day())
    changed = lake.write_days(tables.INTERACTIONS, accepted, sorted({*num_by_day, *known, day}))
    since = f"from {first}" if first else "from the beginning"
    say(f"ingest: {sum(num_by_day.values()):,} interactions {since} to {day}, {len(changed)} days changed")
    if day not in num_by_day:
        say(f"ingest: {day} has no interactions; GRASP_MIN_DAY_INTERACTIONS decides whether it is published")


def _write_entities(lake: Lake, day: str, rows: Judged) -> None:
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
