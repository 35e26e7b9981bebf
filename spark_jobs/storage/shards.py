"""What workers add to a table that only grows: small parquet files, each there as a whole or not at all.

    day=1998-04-22/<run>-<task>-<number>-<random>-<rows>.parquet

A worker writes a shard whenever enough rows have come together or the oldest has waited long enough. A crash loses the
rows of the shard that was being filled; a retried task reads which keys its earlier attempt had finished. Everything
here runs without Spark, in workers and in tests.
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
    """A table's columns as Arrow has them; timestamps in microseconds, which all readers know."""
    return pa.schema([(column.name, ARROW_TYPES[column.type]) for column in table.columns])


@dataclass(frozen=True)
class Shards:
    """Where one run of a job puts its shards. Travels to the workers, which see the same file system."""

    table: Table
    folder: Path
    run: str  # unique to one run of the job; hexadecimal

    def files(self, task: int | None = None) -> list[Path]:
        """The shards of this run that are complete, of one task or of all."""
        return sorted(self.folder.glob(f"{self.run}-{'*' if task is None else f'{task:05d}'}-*.parquet"))

    def num_rows(self) -> int:
        """Rows written so far, by the names of the files alone: cheap enough to ask while work goes on."""
        return sum(int(file.stem.rsplit("-", 1)[1]) for file in self.files())


class ShardWriter:
    """Collects the rows of one task and writes them shard by shard; on the way out, also of a failure, the rest."""

    def __init__(self, shards: Shards, task: int, max_rows: int = SHARD_ROWS, max_seconds: float = SHARD_SECONDS):
        self._shards, self._task = shards, task
        self._max_rows, self._max_seconds = max_rows, max_seconds
        self._rows: list[Mapping[str, Any]] = []
        self._oldest = 0.0
        files = shards.files(task)
        self._number = len(files)
        self._earlier = [pq.read_table(file, partitioning=None) for file in files]
        # Keys that an earlier attempt of this task has finished.
        self.finished = {key for rows in self._earlier for key in rows[shards.table.key[0]].to_pylist()}

    def earlier(self, *columns: str) -> list[tuple[Any, ...]]:
        """These columns of the rows of earlier attempts."""
        return [tuple(row.values()) for rows in self._earlier for row in rows.select(columns).to_pylist()]

    def spent(self, *columns: str) -> int:
        """The sum of some columns over the rows of earlier attempts."""
        return sum(sum(rows[column].to_pylist()) for rows in self._earlier for column in columns)

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
        # Of this attempt alone: Spark may take a worker for dead that goes on writing beside the next attempt.
        name = f"{place}-{uuid.uuid4().hex[:6]}-{len(self._rows)}.parquet"
        temporary = folder / f".{name}.tmp"  # readers of parquet folders pass over it
        pq.write_table(pa.Table.from_pylist(list(self._rows), arrow_schema(self._shards.table)), temporary)
        temporary.replace(folder / name)
        self._rows, self._number = [], self._number + 1

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.flush()
