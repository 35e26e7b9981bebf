"""A table that only grows: expensive results are stored as they arrive.

Workers add shards (`shards.py`) to a day; `seal` merges a day's many small files into few. One run at a time adds rows,
so that two runs never pay for the same key.
"""

import uuid
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pyspark.sql import DataFrame

from grasp import partitions
from grasp.files import file_lock
from grasp.partitions import Content
from grasp.tables import Table
from grasp.versions import digest
from spark_jobs.storage.lake import Lake
from spark_jobs.storage.shards import Shards, arrow_schema

MAX_FILES = 16  # of a day, before they are merged
MERGED_ROWS = 500_000  # of a merged file
MERGED_BATCH = 8192  # rows of one step of merging


class AppendOnly:
    def __init__(self, lake: Lake, table: Table) -> None:
        self._lake, self.table = lake, table
        self.folder = partitions.table_path(lake.root, table, lake.versions.of(table.versioned_by))

    def days(self, until: str | None = None) -> list[str]:
        """Days with at least one row, in order. A day counts before it is sealed, unlike in other tables."""
        found = sorted({file.parent.name.removeprefix("day=") for file in self.folder.glob("day=*/*.parquet")})
        return [day for day in found if until is None or day <= until]

    def rows(self, until: str | None = None) -> DataFrame:
        """All rows up to and including a day, or all rows there are, with their `day`."""
        return self.of_days(self.days(until))

    def of_day(self, day: str) -> DataFrame:
        return self.of_days([day] if day in self.days() else [])

    def of_days(self, days: Sequence[str]) -> DataFrame:
        """The rows of these days, with their `day`. Each day must have rows."""
        ddl = f"{self.table.ddl}, day string"
        if not days:
            return self._lake.spark.createDataFrame([], ddl)
        folders = [str(self.folder / f"day={day}") for day in days]
        return self._lake.spark.read.schema(ddl).option("basePath", str(self.folder)).parquet(*folders)

    def shards(self, day: str) -> Shards:
        """Shards for a new run."""
        return Shards(self.table, self.folder / f"day={day}", uuid.uuid4().hex[:12])

    @contextmanager
    def growing(self, day: str) -> Iterator[Shards]:
        """Shards for a new run; the day is sealed at the end.

        After a failure nothing is merged: other tasks may still write for seconds, and their rows would be lost.
        """
        try:
            yield self.shards(day)
        except BaseException:
            self.count(day)
            raise
        self.seal(day)

    def lock(self) -> AbstractContextManager[None]:
        """Lock of the run that adds rows: two runs at once would pay for the same keys. A killed run releases it."""
        return file_lock(self.folder / "_lock", f"{self.table.name}: another run is writing; waiting for it")

    def seal(self, day: str) -> None:
        """Merge a day's files if there are many, and record its content; no task may be writing."""
        folder = self.folder / f"day={day}"
        if len(files := sorted(folder.glob("*.parquet"))) <= MAX_FILES:
            self.count(day)
        else:
            staging = self._lake.root / "_staging" / f"{self.table.name}-{uuid.uuid4().hex[:12]}"
            merge(files, staging, arrow_schema(self.table))
            _write_content(staging)
            partitions.put_in_place(staging, folder)

    def count(self, day: str) -> None:
        """Record the day's content, as every table does."""
        folder = self.folder / f"day={day}"
        if any(folder.glob("*.parquet")):
            _write_content(folder)


def merge(files: Sequence[Path], folder: Path, schema: pa.Schema) -> None:
    """Rows of many files into few in a new folder, a few thousand in memory at a time."""
    folder.mkdir(parents=True)
    writer, num_written, num_files = None, 0, 0
    for file in files:
        if writer is None or num_written >= MERGED_ROWS:
            if writer:
                writer.close()
            writer = pq.ParquetWriter(folder / f"merged-{num_files:05d}.parquet", schema)
            num_written, num_files = 0, num_files + 1
        # Without reading ahead: files that were merged before are large.
        scan = ds.dataset(file, schema, format="parquet").scanner(
            batch_size=MERGED_BATCH, batch_readahead=1, fragment_readahead=1
        )
        for rows in scan.to_batches():
            writer.write_batch(rows)
            num_written += rows.num_rows
    if writer:
        writer.close()


def _write_content(folder: Path) -> None:
    """Number of rows and a hash of the file names; no stage reads such a table, so no hash of its rows is needed."""
    files = sorted(folder.glob("*.parquet"))
    num_rows = sum(pq.read_metadata(file).num_rows for file in files)
    partitions.write_content(folder, Content(num_rows, f"{num_rows}:{digest([file.name for file in files])}"))
