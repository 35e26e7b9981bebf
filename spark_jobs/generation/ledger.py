"""The ledger of one kind of description: every generation ever paid for, by its generation key.

A key may have several rows (a refused text and its repair, a replayed dead letter); the latest counts. Known keys are
found by an anti-join in Spark, so neither five million keys nor a million inputs pass through the driver.
"""

from dataclasses import dataclass

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from spark_jobs.generation.replays import REPLAY_DDL, replay_files
from spark_jobs.storage.append_only import AppendOnly


@dataclass(frozen=True)
class Usage:
    """What was spent: texts answered, model calls, tokens in and out, money in the currency of the prices."""

    num_keys: int = 0
    num_calls: int = 0
    num_tokens: int = 0
    cost: float = 0.0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.num_keys + other.num_keys,
            self.num_calls + other.num_calls,
            self.num_tokens + other.num_tokens,
            self.cost + other.cost,
        )


class Ledger(AppendOnly):
    def latest_answers(self, *, until: str | None = None, after: str = "") -> DataFrame:
        """The latest answer of each key, over all days or those up to `until` or after `after`.

        Failed calls are not answers.
        """
        latest = F.max_by(F.struct(*self.table.column_names), "generated_at").alias("latest")
        rows = self.of_days([day for day in self.days(until) if day > after])
        answered = rows.where(F.col("error").isNull())
        return answered.groupBy("generation_key").agg(latest).select("latest.*")

    def last_errors(self, day: str) -> DataFrame:
        """The `error` of each key's last failed call of a day."""
        failed = self.of_day(day).where(F.col("error").isNotNull())
        return failed.groupBy("generation_key").agg(F.max_by("error", "generated_at").alias("error"))

    def without_answer(self, inputs: DataFrame) -> DataFrame:
        """The rows of `inputs` whose `generation_key` has no answer, or waits for a replay."""
        answered = self.rows().where(F.col("error").isNull()).select("generation_key")
        answered = answered.join(self.waiting_for_replay("generation_key"), "generation_key", "left_anti")
        return inputs.join(answered, "generation_key", "left_anti")

    def waiting_for_replay(self, column: str) -> DataFrame:
        """The values of a column (the key or the entity id) that have no answer since their replay was requested.

        If the facts of an entity changed since the request, its old key is never asked again. The entity waits until
        its new key is answered.
        """
        answered = self.rows().where(F.col("error").isNull())
        files = replay_files(self.folder)
        if not files:
            return answered.where(F.lit(False)).select(column)  # empty: Spark skips joins with it
        requests = self._lake.spark.read.schema(REPLAY_DDL).parquet(*map(str, files))
        requested = answered.join(requests, "generation_key").groupBy(column).agg(F.max("requested_at").alias("at"))
        return (
            answered.join(requested, column)
            .groupBy(column)
            .agg(F.max("generated_at").alias("answered_at"), F.max("at").alias("requested_at"))
            .where("answered_at < requested_at")
            .select(column)
        )

    def usage(self, day: str, prompt_version: str, model_revision: str) -> Usage:
        """What was spent on a day with this prompt and model, including failed calls and repairs.

        Keys without an answer do not count as texts, so after an outage a run may ask for them again.
        """
        same = (F.col("prompt_version") == prompt_version) & (F.col("model_revision") == model_revision)
        tokens = F.col("num_input_tokens") + F.col("num_output_tokens")
        [row] = (
            self.of_day(day)
            .where(same)
            .agg(
                F.count_distinct(F.when(F.col("error").isNull(), F.col("generation_key"))).alias("num_keys"),
                F.coalesce(F.sum("num_attempts"), F.lit(0)).alias("num_calls"),
                F.coalesce(F.sum(tokens), F.lit(0)).alias("num_tokens"),
                F.coalesce(F.sum("cost"), F.lit(0.0)).alias("cost"),
            )
            .collect()
        )
        return Usage(row.num_keys, row.num_calls, row.num_tokens, row.cost)
