"""Metrics of a day's descriptions: one row of `generation_metrics` for each kind, prompt and model.

Everything is computed from stored tables, not counted during the run. So the row is the same if a day runs twice or
continues after a crash. Therefore a cache hit is an entity whose answer was paid for on another day. When a later run
reads a batch of the day, it counts the answers in the day's row.
"""

from dataclasses import asdict, dataclass
from datetime import UTC
from itertools import pairwise
from typing import Any

from pyspark.sql import Column, DataFrame, Row
from pyspark.sql import functions as F

from grasp import partitions, tables
from grasp.files import file_lock
from spark_jobs.generation.ledger_totals import LedgerTotals
from spark_jobs.generation.prometheus_file import write_prometheus_file
from spark_jobs.storage.lake import Lake

TABLE = tables.GENERATION_METRICS
HISTORY_FROM = (0, 1, 5, 10, 20, 50, 100, 200)  # first number of interactions of each range


@dataclass(frozen=True)
class Coverage:
    """Number of entities of a day, by origin of their texts."""

    num_entities: int
    num_cache_hits: int
    num_kept: int
    num_described: int


def count_coverage(inputs: DataFrame, answers: DataFrame, kept: DataFrame, answered_today: DataFrame) -> Coverage:
    """Count the entities of `inputs`.

    `answers` has `entity_id, llm_description` of entities with an answer, `kept` the `entity_id` of those with an
    earlier text, `answered_today` the `generation_key` of the answers of this day.
    """
    answered = answers.select("entity_id", F.col("llm_description").isNotNull().alias("is_accepted"))
    earlier = kept.select("entity_id", F.lit(True).alias("has_earlier"))
    today = answered_today.select("generation_key").distinct().withColumn("is_new", F.lit(True))
    is_hit = F.col("is_accepted").isNotNull() & F.col("is_new").isNull()
    stays = F.col("is_accepted").isNull() & F.col("has_earlier").isNotNull()
    [row] = (
        inputs.select("entity_id", "generation_key")
        .join(answered, "entity_id", "left")
        .join(earlier, "entity_id", "left")
        .join(today, "generation_key", "left")
        .agg(
            F.count("*").alias("num_entities"),
            F.count_if(is_hit).alias("num_cache_hits"),
            F.count_if(stays).alias("num_kept"),
            F.count_if(stays | F.coalesce("is_accepted", F.lit(False))).alias("num_described"),
        )
        .collect()
    )
    return Coverage(**row.asDict())


@dataclass(frozen=True)
class HistoryCounts:
    """Texts requested on a day, and those refused or unanswered, by number of interactions of the entity."""

    asked_by_history: dict[str, int]
    failed_by_history: dict[str, int]


def count_by_history(asked: DataFrame, inputs: DataFrame) -> HistoryCounts:
    """Count the texts of `asked` (the ledger's rows of a day) by the `activity` of their entity in `inputs`.

    A text counts by its latest answer. Texts of entities that no longer exist are not counted.
    """
    answer = F.struct("generated_at", F.col("refusal_reason").isNull().alias("is_accepted"))
    rows = (
        asked.groupBy("generation_key")
        .agg(
            F.max_by("entity_id", "generated_at").alias("entity_id"),
            F.max(F.when(F.col("error").isNull(), answer)).alias("answer"),
        )
        .join(inputs.select("entity_id", history_range(F.col("activity")).alias("history")), "entity_id")
        .groupBy("history")
        .agg(
            F.count("*").alias("num_asked"),
            F.count_if(~F.coalesce("answer.is_accepted", F.lit(False))).alias("num_failed"),
        )
        .orderBy("history")
        .collect()
    )
    return HistoryCounts(
        {row.history: row.num_asked for row in rows}, {row.history: row.num_failed for row in rows if row.num_failed}
    )


def history_range(activity: Column) -> Column:
    """The range of a number of interactions, for example `5-9` or `200+`."""
    ranges = [f"{low}-{high - 1}" if high - low > 1 else f"{low}" for low, high in pairwise(HISTORY_FROM)]
    found = F.lit(f"{HISTORY_FROM[-1]}+")
    for name, end in reversed(list(zip(ranges, HISTORY_FROM[1:], strict=True))):
        found = F.when(activity < end, name).otherwise(found)
    return found


def write_metrics(
    lake: Lake,
    day: str,
    key: tuple[str, str, str],
    *,
    coverage: Coverage | None,
    totals: LedgerTotals,
    histories: HistoryCounts,
) -> None:
    """Replace the day's row of this kind, prompt and model, and the Prometheus file.

    Without `coverage` the row keeps its own; without a row nothing is written, because the day has not been described.
    """
    row = {
        **dict(zip(TABLE.key, key, strict=True)),
        **asdict(totals),
        **asdict(histories),
        "answers_per_minute": totals.answers_per_minute,
        "computed_at": lake.settings.clock(),
    }
    # Both description jobs write this table, possibly at the same time.
    lock = partitions.table_path(lake.root, TABLE, None) / "_lock"
    with file_lock(lock, f"{TABLE.name}: another job writes; waiting for it"):
        stored = lake.read(TABLE, day).collect() if day in lake.days(TABLE) else []
        known = {tuple(each[name] for name in TABLE.key): _in_utc(each) for each in stored}
        if coverage is None and key not in known:
            return
        known[key] = known.get(key, {}) | row | (asdict(coverage) if coverage else {})
        rows = [tuple(each[name] for name in TABLE.column_names) for each in known.values()]
        lake.write(TABLE, lake.spark.createDataFrame(rows, TABLE.ddl), day)
        write_prometheus_file(lake.settings, lake.versions)


def _in_utc(row: Row) -> dict[str, Any]:
    """A collected row, whose time is local and without a zone. An hour that the clock repeats would be read wrong."""
    return row.asDict() | {"computed_at": row.computed_at.astimezone(UTC)}
