"""The ledger of one kind of description: every generation that was ever paid for, found again by its key.

Append-only: workers add shards (`shards.py`), `seal` merges a day's many small files into few. A key may have several
rows (a refused text and its repair, a replayed dead letter); the latest counts. Whether a key is known is asked by an
anti-join in Spark, so that neither five million keys nor a million inputs pass through the driver.
"""

import uuid
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from grasp import partitions
from grasp.files import held
from grasp.partitions import Content
from grasp.tables import Table
from grasp.versions import digest
from spark_jobs import replays
from spark_jobs.lake import Lake
from spark_jobs.shards import Shards, arrow_schema

MAX_FILES = 16  # of a day, before they are merged
MERGED_ROWS = 500_000  # of a merged file


@dataclass(frozen=True)
class Spent:
    """What a day has cost so far: texts answered, model calls, tokens both ways, money in the currency of prices."""

    num_keys: int = 0
    num_calls: int = 0
    num_tokens: int = 0
    cost: float = 0.0


class Ledger:
    def __init__(self, lake: Lake, table: Table) -> None:
        self._lake, self.table = lake, table
        self.folder = partitions.table_path(lake.root, table, None)

    def days(self, until: str | None = None) -> list[str]:
        """Days with at least one row, in order. Unlike other tables' they count before they are sealed."""
        found = sorted({file.parent.name.removeprefix("day=") for file in self.folder.glob("day=*/*.parquet")})
        return [day for day in found if until is None or day <= until]

    def rows(self, until: str | None = None) -> DataFrame:
        """Every row ever written up to a day, or at all."""
        return self._read(self.days(until))

    def of_day(self, day: str) -> DataFrame:
        return self._read([day] if day in self.days() else [])

    def answers(self, until: str | None = None) -> DataFrame:
        """The latest row of each key; calls that failed before the model answered say nothing about a key."""
        latest = F.max_by(F.struct(*self.table.column_names), "generated_at").alias("latest")
        answered = self.rows(until).where(F.col("error").isNull())
        return answered.groupBy("generation_key").agg(latest).select("latest.*")

    def unpaid(self, inputs: DataFrame) -> DataFrame:
        """Of `inputs`, which have a `generation_key`, those that no call has answered, or that wait to be replayed."""
        answered = self.rows().where(F.col("error").isNull()).select("generation_key", "generated_at")
        if requests := replays.files(self.folder):
            requested = self._lake.spark.read.schema(replays.DDL).parquet(*map(str, requests))
            requested = requested.groupBy("generation_key").agg(F.max("requested_at").alias("requested_at"))
            answered = answered.join(requested, "generation_key", "left").where(
                F.col("requested_at").isNull() | (F.col("generated_at") >= F.col("requested_at"))
            )
        return inputs.join(answered.select("generation_key"), "generation_key", "left_anti")

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

    def shards(self, day: str) -> Shards:
        """Where a new run puts what it pays for."""
        return Shards(self.table, self.folder / f"day={day}", uuid.uuid4().hex[:12])

    def request_replay(self, keys: Sequence[str], at: datetime) -> None:
        """Have these keys generated again by the next run that meets them, whatever they were answered."""
        replays.request(self.folder, keys, at)

    def held(self) -> AbstractContextManager[None]:
        """Held by the run that generates: two at once would pay for the same keys. A killed one lets go."""
        return held(self.folder / "_lock", f"{self.table.name}: another run is generating; waiting for it")

    def seal(self, day: str) -> None:
        """Merge a day's files when they are many, and say what the day holds as every table does."""
        folder = self.folder / f"day={day}"
        if len(files := sorted(folder.glob("*.parquet"))) > MAX_FILES:
            staging = self._lake.root / "_staging" / f"{self.table.name}-{uuid.uuid4().hex[:12]}"
            merge(files, staging, arrow_schema(self.table))
            _write_content(staging)
            partitions.put_in_place(staging, folder)
        elif files:
            _write_content(folder)

    def _read(self, days: list[str]) -> DataFrame:
        if not days:
            return self._lake.spark.createDataFrame([], self.table.ddl)
        folders = [str(self.folder / f"day={day}") for day in days]
        return self._lake.spark.read.schema(self.table.ddl).parquet(*folders)


def merge(files: Sequence[Path], folder: Path, schema: pa.Schema) -> None:
    """Rows of many files into few in a new folder, one small file in memory at a time."""
    folder.mkdir(parents=True)
    writer, num_written, num_files = None, 0, 0
    for file in files:
        if writer is None or num_written >= MERGED_ROWS:
            if writer:
                writer.close()
            writer = pq.ParquetWriter(folder / f"merged-{num_files:05d}.parquet", schema)
            num_written, num_files = 0, num_files + 1
        rows = pq.read_table(file, schema=schema, partitioning=None)
        writer.write_table(rows)
        num_written += rows.num_rows
    if writer:
        writer.close()


def _write_content(folder: Path) -> None:
    """Rows and a hash of the files' names: a ledger is no stage's input, so nothing needs a hash of its rows."""
    files = sorted(folder.glob("*.parquet"))
    num_rows = sum(pq.read_metadata(file).num_rows for file in files)
    partitions.write_content(folder, Content(num_rows, f"{num_rows}:{digest([file.name for file in files])}"))
