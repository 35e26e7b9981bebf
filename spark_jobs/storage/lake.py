"""Read a day of a table, replace a day of a table: the only code that writes the tables' files.

A new day is first written beside the old one, compared by content, and then moved into its place. So a crash leaves
the old day readable, and a run without changes leaves the old files unchanged.
"""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyspark.sql import Column as SparkColumn
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from grasp import partitions
from grasp.partitions import CONTENT_FILE, Content
from grasp.settings import Settings
from grasp.tables import Column, Table
from grasp.versions import Versions


class Lake:
    """The tables of one installation, seen through one Spark session."""

    def __init__(self, spark: SparkSession, settings: Settings) -> None:
        self.spark = spark
        self.settings = settings
        self.versions = Versions(settings)
        self.root = settings.lake
        partitions.recover(self.root)

    def read(self, table: Table, day: str) -> DataFrame:
        """One day of a table; raises `MissingPartitionError` when it was never written."""
        path = partitions.require_partition(self.root, table, self._version(table), day)
        return self.spark.read.schema(table.ddl).parquet(str(path))

    def read_until(self, table: Table, day: str) -> DataFrame:
        """All days of a delta table up to and including `day`; without rows when there are none."""
        return self.read_days(table, self.days(table, until=day))

    def read_latest(self, table: Table, day: str) -> DataFrame:
        """The latest state up to `day`, from which unchanged rows are taken over; no rows if there is none."""
        return self.read_days(table, self.days(table, until=day)[-1:])

    def read_before(self, table: Table, day: str) -> DataFrame:
        """The last state before `day`; without rows when there is none."""
        return self.read_days(table, [each for each in self.days(table) if each < day][-1:])

    def read_days(self, table: Table, days: list[str]) -> DataFrame:
        """Some days of a table; without rows when there are none."""
        if not days:
            return self.spark.createDataFrame([], table.ddl)
        paths = [str(self.partition(table, day)) for day in days]
        return self.spark.read.schema(table.ddl).parquet(*paths)

    def days(self, table: Table, until: str | None = None) -> list[str]:
        return partitions.days(self.root, table, self._version(table), until)

    def partition(self, table: Table, day: str) -> Path:
        """The folder of one day of a table, whether it was written or not."""
        return partitions.partition_path(self.root, table, self._version(table), day)

    def num_rows(self, table: Table, day: str) -> int | None:
        """Number of rows of one day; None when it was never written."""
        content = partitions.read_content(self.partition(table, day))
        return content.num_rows if content else None

    def write(self, table: Table, rows: DataFrame, day: str) -> bool:
        """Replace one day of a table with `rows`; returns False if it already held the same rows.

        Columns are put into the table's order and types; a missing column or a null or repeated key raises
        `ValueError` and the old day stays.
        """
        return bool(self.write_days(table, rows.withColumn("day", F.lit(day)), [day]))

    def write_days(self, table: Table, rows: DataFrame, days: list[str]) -> list[str]:
        """Replace several days at once; `rows` has a column `day` beside the table's. Returns the changed days."""
        missing = set(table.column_names) - set(rows.columns)
        if missing:
            raise ValueError(f"{table.name}: column {', '.join(sorted(missing))} is missing")
        schema = T.StructType.fromDDL(table.ddl)
        typed = rows.select(*(F.col(field.name).cast(field.dataType) for field in schema), "day")
        with self.staging(table.name) as staging:
            self._stage(table, typed, staging)
            contents = self._contents(table, staging)
            unexpected = set(contents) - set(days)
            if unexpected:
                raise ValueError(f"{table.name}: rows of {sorted(unexpected)} in a write of {days[0]} to {days[-1]}")
            return [day for day in days if self._replace(table, staging, day, contents.get(day))]

    @contextmanager
    def staging(self, name: str) -> Iterator[Path]:
        """A path below the lake for a new folder, which is removed at the end of the block."""
        place = self.root / "_staging" / f"{name}-{os.getpid()}-{time.monotonic_ns()}"
        try:
            yield place
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def remove_days(self, table: Table, days: list[str]) -> None:
        """Remove days that nobody needs any more. A removal that was cut short leaves a day that does not count."""
        for day in days:
            folder = self.partition(table, day)
            (folder / CONTENT_FILE).unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)

    def _version(self, table: Table) -> str | None:
        return self.versions.of(table.versioned_by)

    def _stage(self, table: Table, rows: DataFrame, staging: Path) -> None:
        # Sorted by key within each file, so that a lookup by key reads few row groups.
        ordered = rows.repartition("day") if table.delta else rows
        ordered.sortWithinPartitions("day", *table.key).write.partitionBy("day").parquet(str(staging))

    def _contents(self, table: Table, staging: Path) -> dict[str, Content]:
        """Count and hash what was staged, day by day, and refuse null or repeated keys."""
        if not any(staging.glob("day=*")):
            return {}
        staged = self.spark.read.schema(f"{table.ddl}, day string").parquet(str(staging))
        hashed = [part for column in table.columns if column.name != "computed_at" for part in _hashable(column)]
        key = F.struct(*table.key)
        no_key = F.greatest(*(F.col(name).isNull().cast("int") for name in table.key), F.lit(0))
        summary = (
            staged.groupBy("day")
            .agg(
                F.count("*").alias("num_rows"),
                F.sum(F.xxhash64(*hashed).cast("decimal(38,0)")).alias("hash"),
                F.count_distinct(key).alias("num_keys"),
                F.sum(no_key).alias("num_null_keys"),
            )
            .collect()
        )
        for row in summary:
            if row.num_null_keys:
                raise ValueError(f"{table.name} {row.day}: {row.num_null_keys} rows have no {', '.join(table.key)}")
            if row.num_keys != row.num_rows:
                raise ValueError(f"{table.name} {row.day}: {row.num_rows - row.num_keys} rows repeat a key {table.key}")
        return {row.day: Content(row.num_rows, f"{row.num_rows}:{row.hash}") for row in summary}

    def _replace(self, table: Table, staging: Path, day: str, content: Content | None) -> bool:
        """Move the staged day into its place, unless the same content is already there."""
        target = self.partition(table, day)
        staged = staging / f"day={day}"
        if content is None:
            content = Content(0, "0:empty")
            self.spark.createDataFrame([], table.ddl).coalesce(1).write.parquet(str(staged))
        if partitions.read_content(target) == content:
            return False
        partitions.write_content(staged, content)
        partitions.put_in_place(staged, target)
        return True


def _hashable(column: Column) -> list[SparkColumn]:
    """The parts of a column to hash. Spark's hash alone skips nulls and ignores where an array ends."""
    value = F.col(column.name)
    if column.type.startswith("map"):  # a map has no order and no hash; its sorted entries have both
        value = F.array_sort(F.map_entries(value))
    if column.type.startswith(("map", "array")):
        return [F.coalesce(F.size(value), F.lit(-1)), value]
    return [value.isNull(), value]


@contextmanager
def cached(frame: DataFrame) -> Iterator[DataFrame]:
    """Cache the frame until the end of the block."""
    frame = frame.cache()
    try:
        yield frame
    finally:
        frame.unpersist()
