"""Shards: small parquet files that workers add to a table that only grows. A shard is complete or not there at all.

    day=1998-04-22/<run>-<task>-<number>-<random>-<rows>.parquet

A worker writes a shard when it has enough rows, or when its oldest row has waited long enough. A crash loses only the
rows of the unfinished shard. A retried task reads which keys its earlier attempts finished. This module needs no Spark.
"""

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from grasp.tables import Table

SHARD_ROWS = 64
SHARD_SECONDS = 10.0
ARROW_TYPES = {
    "string": pa.string(),
    "int": pa.int32(),
    "double": pa.float64(),
    "boolean": pa.bool_(),
    "timestamp": pa.timestamp("us", tz="UTC"),
    "array<float>": pa.list_(pa.float32()),
}


def arrow_schema(table: Table) -> pa.Schema:
    """A table's columns as an Arrow schema; timestamps are in microseconds, which all readers support."""
    return pa.schema([(column.name, ARROW_TYPES[column.type]) for column in table.columns])


@dataclass(frozen=True)
class Shards:
    """Where one run of a job writes its shards. It is sent to the workers, which see the same file system."""

    table: Table
    folder: Path
    run: str  # unique to one run of the job; hexadecimal

    def files(self, task: int | None = None) -> list[Path]:
        """The complete shards of this run: those of one task, or of all tasks."""
        return sorted(self.folder.glob(f"{self.run}-{'*' if task is None else f'{task:05d}'}-*.parquet"))

    def num_rows(self) -> int:
        """The number of rows written so far, read from the file names; cheap enough to call during the run."""
        return sum(int(file.stem.rsplit("-", 1)[1]) for file in self.files())


class ShardWriter:
    """Collects the rows of one task and writes them shard by shard; writes the rest at exit, even after a failure."""

    def __init__(self, shards: Shards, task: int, max_rows: int = SHARD_ROWS, max_seconds: float = SHARD_SECONDS):
        self._shards, self._task = shards, task
        self._max_rows, self._max_seconds = max_rows, max_seconds
        self._rows: list[Mapping[str, Any]] = []
        self._oldest = 0.0
        files = shards.files(task)
        self._number = len(files)
        self._earlier = [pq.read_table(file, partitioning=None) for file in files]
        # Keys that earlier attempts of this task finished.
        self.finished = {key for rows in self._earlier for key in rows[shards.table.key[0]].to_pylist()}

    def earlier(self, *columns: str) -> list[tuple[Any, ...]]:
        """These columns of the rows that earlier attempts wrote."""
        return [tuple(row.values()) for rows in self._earlier for row in rows.select(columns).to_pylist()]

    def add(self, row: Mapping[str, Any]) -> None:
        if not self._rows:
            self._oldest = time.monotonic()
        self._rows.append(row)
        if len(self._rows) >= self._max_rows or time.monotonic() - self._oldest >= self._max_seconds:
            self.flush()

    def flush(self) -> None:
        if not self._rows:
            return
        folder = self._shards.folder
        folder.mkdir(parents=True, exist_ok=True)
        place = f"{self._shards.run}-{self._task:05d}-{self._number:05d}"
        # Unique to this attempt: a worker that Spark believes dead may still write while the next attempt runs.
        name = f"{place}-{uuid.uuid4().hex[:6]}-{len(self._rows)}.parquet"
        temporary = folder / f".{name}.tmp"  # readers of parquet folders ignore it
        pq.write_table(pa.Table.from_pylist(list(self._rows), arrow_schema(self._shards.table)), temporary)
        temporary.replace(folder / name)
        self._rows, self._number = [], self._number + 1

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.flush()
