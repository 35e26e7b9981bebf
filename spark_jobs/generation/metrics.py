"""What describing a day took: one row of `generation_metrics` for each kind, prompt and model.

Everything is read off what is stored, never counted while it happens: a day that runs twice, or in two halves after a
crash, has the row of a day that ran once. A cache hit is therefore not "found by this run", which on a second run
everything is, but an entity whose answer was paid for on another day.
"""

from dataclasses import asdict, dataclass
from itertools import pairwise

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from grasp import partitions, tables
from grasp.files import file_lock
from spark_jobs.generation.ledger_totals import Account
from spark_jobs.generation.prometheus_file import expose
from spark_jobs.storage.lake import Lake

TABLE = tables.GENERATION_METRICS
HISTORY_FROM = (0, 1, 5, 10, 20, 50, 100, 200)  # interactions; where each range begins


@dataclass(frozen=True)
class Coverage:
    """Entities of a day, and where their texts come from."""

    num_entities: int
    num_cache_hits: int
    num_kept: int
    num_described: int


def coverage(inputs: DataFrame, answers: DataFrame, kept: DataFrame, answered_today: DataFrame) -> Coverage:
    """Count the entities of `inputs`.

    `answers` has `entity_id, llm_description` of those with an answer, `kept` the `entity_id` of those who have an
    earlier text, `answered_today` the `generation_key` of the day's own answers.
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
class ByHistory:
    """Texts asked for on a day, and those that were refused or never came, by how much was known of the entity."""

    asked_by_history: dict[str, int]
    failed_by_history: dict[str, int]


def by_history(asked: DataFrame, inputs: DataFrame) -> ByHistory:
    """Count the texts of `asked`, the ledger's rows of a day, by the `activity` their entities have in `inputs`.

    A text counts by its latest answer. One whose entity is gone since counts nowhere.
    """
    answer = F.struct("generated_at", F.col("refusal_reason").isNull().alias("is_accepted"))
    rows = (
        asked.groupBy("generation_key")
        .agg(
            F.max_by("entity_id", "generated_at").alias("entity_id"),
            F.max(F.when(F.col("error").isNull(), answer)).alias("answer"),
        )
        .join(inputs.select("entity_id", history(F.col("activity")).alias("history")), "entity_id")
        .groupBy("history")
        .agg(
            F.count("*").alias("num_asked"),
            F.count_if(~F.coalesce("answer.is_accepted", F.lit(False))).alias("num_failed"),
        )
        .orderBy("history")
        .collect()
    )
    return ByHistory(
        {row.history: row.num_asked for row in rows}, {row.history: row.num_failed for row in rows if row.num_failed}
    )


def history(activity: Column) -> Column:
    """The range that a number of interactions lies in, such as `5-9`; the last one has no end."""
    ranges = [f"{low}-{high - 1}" if high - low > 1 else f"{low}" for low, high in pairwise(HISTORY_FROM)]
    found = F.lit(f"{HISTORY_FROM[-1]}+")
    for name, end in reversed(list(zip(ranges, HISTORY_FROM[1:], strict=True))):
        found = F.when(activity < end, name).otherwise(found)
    return found


def record(
    lake: Lake, day: str, key: tuple[str, str, str], *, covered: Coverage, asked: Account, histories: ByHistory
) -> None:
    """Replace the day's row of this kind, prompt and model, and what monitoring reads."""
    row = {
        **dict(zip(TABLE.key, key, strict=True)),
        **asdict(covered),
        **asdict(asked),
        **asdict(histories),
        "answers_per_minute": asked.answers_per_minute,
        "computed_at": lake.settings.clock(),
    }
    # Both kinds of description write here, and somebody may run them by hand at the same time.
    lock = partitions.table_path(lake.root, TABLE, None) / "_lock"
    with file_lock(lock, f"{TABLE.name}: another job writes; waiting for it"):
        known = lake.read(TABLE, day).collect() if day in lake.days(TABLE) else []
        others = [each.asDict() for each in known if tuple(each[name] for name in TABLE.key) != key]
        rows = [tuple(each[name] for name in TABLE.column_names) for each in [*others, row]]
        lake.write(TABLE, lake.spark.createDataFrame(rows, TABLE.ddl), day)
        expose(lake.settings, lake.versions)
