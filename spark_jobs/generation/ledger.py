"""The ledger of one kind of description: every generation that was ever paid for, found again by its key.

A key may have several rows (a refused text and its repair, a replayed dead letter); the latest counts. Whether a key is
known is asked by an anti-join in Spark, so that neither five million keys nor a million inputs pass through the driver.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from spark_jobs.generation import replays
from spark_jobs.storage.append_only import AppendOnly


@dataclass(frozen=True)
class Spent:
    """What a day has cost so far: texts answered, model calls, tokens both ways, money in the currency of prices."""

    num_keys: int = 0
    num_calls: int = 0
    num_tokens: int = 0
    cost: float = 0.0

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(
            self.num_keys + other.num_keys,
            self.num_calls + other.num_calls,
            self.num_tokens + other.num_tokens,
            self.cost + other.cost,
        )


class Ledger(AppendOnly):
    def answers(self, *, until: str | None = None, after: str = "") -> DataFrame:
        """The latest row of each key, of all days or of those up to or after one.

        Calls that failed before the model answered say nothing about a key.
        """
        latest = F.max_by(F.struct(*self.table.column_names), "generated_at").alias("latest")
        rows = self.of_days([day for day in self.days(until) if day > after])
        answered = rows.where(F.col("error").isNull())
        return answered.groupBy("generation_key").agg(latest).select("latest.*")

    def errors(self, day: str) -> DataFrame:
        """The `error` of each key's last call of a day that failed."""
        failed = self.of_day(day).where(F.col("error").isNotNull())
        return failed.groupBy("generation_key").agg(F.max_by("error", "generated_at").alias("error"))

    def unpaid(self, inputs: DataFrame) -> DataFrame:
        """Of `inputs`, which have a `generation_key`, those that no call has answered, or that wait to be replayed."""
        answered = self.rows().where(F.col("error").isNull()).select("generation_key")
        answered = answered.join(self.waiting("generation_key"), "generation_key", "left_anti")
        return inputs.join(answered, "generation_key", "left_anti")

    def waiting(self, column: str) -> DataFrame:
        """The values of a column, the key or the entity, that have no answer since a replay of theirs was requested.

        An entity whose facts have changed since the request never has its old key answered again: it waits until it is
        answered about the new ones.
        """
        answered = self.rows().where(F.col("error").isNull())
        files = replays.files(self.folder)
        if not files:
            return answered.where(F.lit(False)).select(column)  # Spark leaves out what is joined with it
        requests = self._lake.spark.read.schema(replays.DDL).parquet(*map(str, files))
        requested = answered.join(requests, "generation_key").groupBy(column).agg(F.max("requested_at").alias("at"))
        return (
            answered.join(requested, column)
            .groupBy(column)
            .agg(F.max("generated_at").alias("answered_at"), F.max("at").alias("requested_at"))
            .where("answered_at < requested_at")
            .select(column)
        )

    def spent(self, day: str, prompt_version: str, model_revision: str) -> Spent:
        """What a day paid with this prompt and model, failed calls and repairs included.

        A key that no call has answered is no text yet: after an outage a run may ask for as many as before it.
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
        return Spent(row.num_keys, row.num_calls, row.num_tokens, row.cost)

    def request_replay(self, keys: Sequence[str], at: datetime) -> None:
        """Have these keys generated again by the next run that meets them, whatever they were answered."""
        replays.request(self.folder, keys, at)
