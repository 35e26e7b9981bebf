"""The ledger of one kind of description: every generation ever paid for, by its generation key.

A key may have several rows (a refused text and its repair, a replayed dead letter); the latest counts. Known keys are
found by an anti-join in Spark, so neither five million keys nor a million inputs pass through the driver.
"""

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from spark_jobs.generation.replays import REPLAY_DDL, replay_files
from spark_jobs.models.account import Usage
from spark_jobs.models.chat_completions import REPEATING
from spark_jobs.storage.append_only import AppendOnly


class Ledger(AppendOnly):
    def latest_answers(self, *, until: str | None = None, after: str = "") -> DataFrame:
        """The latest answer of each key, over all days or those up to `until` or after `after`.

        Failed calls are not answers.
        """
        latest = F.max_by(F.struct(*self.table.column_names), "generated_at").alias("latest")
        rows = self.of_days([day for day in self.days(until) if day > after])
        answered = rows.where(F.col("error").isNull())
        return answered.groupBy("generation_key").agg(latest).select("latest.*")

    def last_errors(self, day: str, park_after: int) -> DataFrame:
        """The `error` of each key whose last call failed on this day, or that is parked by the end of the day."""
        failures = _failures(self.rows(until=day))
        is_parked = F.col("num_repeated") >= park_after
        return failures.where(is_parked | (F.col("last_day") == day)).select("generation_key", "error")

    def failures(self) -> DataFrame:
        """The failed calls of each key since its last replay.

        Columns: `generation_key, error` (of the last one), `num_failures, num_repeated, last_day`. `num_failures`
        counts those that the prompt repeats, `num_repeated` those of them with the same error.
        """
        rows, requests = self.rows(), self._replay_requests()
        if requests is not None:
            requested = requests.groupBy("generation_key").agg(F.max("requested_at").alias("requested_at"))
            is_later = F.col("requested_at").isNull() | (F.col("generated_at") > F.col("requested_at"))
            rows = rows.join(requested, "generation_key", "left").where(is_later)
        return _failures(rows)

    def without_answer(self, inputs: DataFrame, park_after: int) -> DataFrame:
        """The rows of `inputs` whose `generation_key` has no answer or waits for a replay, and is not parked.

        A key is parked after `park_after` equal failures that its prompt repeats.
        """
        answered = self.rows().where(F.col("error").isNull()).select("generation_key")
        answered = answered.join(self.waiting_for_replay("generation_key"), "generation_key", "left_anti")
        parked = self.failures().where(F.col("num_repeated") >= park_after).select("generation_key")
        return inputs.join(answered, "generation_key", "left_anti").join(parked, "generation_key", "left_anti")

    def waiting_for_replay(self, column: str) -> DataFrame:
        """The values of a column (the key or the entity id) that have no answer since their replay was requested.

        If the facts of an entity changed since the request, its old key is never asked again. The entity waits until
        its new key is answered.
        """
        answered = self.rows().where(F.col("error").isNull())
        requests = self._replay_requests()
        if requests is None:
            return answered.where(F.lit(False)).select(column)  # empty: Spark skips joins with it
        requested = answered.join(requests, "generation_key").groupBy(column).agg(F.max("requested_at").alias("at"))
        return (
            answered.join(requested, column)
            .groupBy(column)
            .agg(F.max("generated_at").alias("answered_at"), F.max("at").alias("requested_at"))
            .where("answered_at < requested_at")
            .select(column)
        )

    def _replay_requests(self) -> DataFrame | None:
        files = replay_files(self.folder)
        return self._lake.spark.read.schema(REPLAY_DDL).parquet(*map(str, files)) if files else None

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


def _failures(rows: DataFrame) -> DataFrame:
    """The failures of each key, with the columns of `Ledger.failures`."""
    by_error = (
        rows.where(F.col("error").isNotNull())
        .groupBy("generation_key", "error")
        .agg(F.count("*").alias("num"), F.max(F.struct("day", "generated_at")).alias("at"))
    )
    num_repeated = F.when(F.col("error").isin(*REPEATING), F.col("num")).otherwise(0)
    return by_error.groupBy("generation_key").agg(
        F.max_by("error", "at").alias("error"),
        F.sum(num_repeated).alias("num_failures"),
        F.max(num_repeated).alias("num_repeated"),
        F.max("at.day").alias("last_day"),
    )
