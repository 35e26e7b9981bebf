"""Log served requests and their outcomes as tables for analysts: ids only, no texts.

Reads:   nothing
Writes:  served_requests, outcomes; one partition per day, one file per batch and process

A thread writes the rows in batches, so a request never waits for the disk. Each table has a queue of its own, and
outcomes are written first: a flood of requests costs no outcome. Rows that find their queue full are not taken. A batch
that cannot be written is tried again. A killed process loses at most `FLUSH_SECONDS` of rows.
"""

import logging
import threading
import uuid
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from grasp import partitions
from grasp.tables import OUTCOMES, SERVED_REQUESTS, Table

IN_ORDER = (OUTCOMES, SERVED_REQUESTS)  # as they are written
MAX_QUEUED = 20_000  # rows of each table
FLUSH_SECONDS = 30.0  # or sooner, when a queue is half full
ARROW_TYPES = {
    "string": pa.string(),
    "double": pa.float64(),
    "timestamp": pa.timestamp("us", "UTC"),
    "array<string>": pa.list_(pa.string()),
    "array<float>": pa.list_(pa.float32()),
}

Row = Mapping[str, Any]
Entry = tuple[str, Row]  # day, row
LogProblem = Literal["not_written"]

log = logging.getLogger("grasp.serving")


class RequestsLog:
    """One per process. `count(table, result, num_rows)` hears of rows that are `written`, or `dropped` in the end."""

    def __init__(
        self,
        lake: Path,
        count: Callable[[str, str, int], None],
        flush_seconds: float = FLUSH_SECONDS,
        max_queued: int = MAX_QUEUED,
    ) -> None:
        self._lake = lake
        self._count = count
        self._flush_seconds = flush_seconds
        self._max_queued = max_queued
        self._lock = threading.Lock()  # of the queues
        self._queues: dict[str, list[Entry]] = {table.name: [] for table in IN_ORDER}
        self._unwritten: dict[str, list[Entry]] = {table.name: [] for table in IN_ORDER}  # changed by the thread only
        self._wake, self._is_closed = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="requests-log", daemon=True)

    @property
    def problem(self) -> LogProblem | None:
        """`not_written` while rows could not be written and wait for another try."""
        return "not_written" if any(self._unwritten.values()) else None

    def start(self) -> None:
        self._thread.start()

    def add(self, table: Table, day: str, rows: Sequence[Row]) -> bool:
        """Queue rows for writing, all or none. False when the table's queue has no room for them."""
        with self._lock:
            queue = self._queues[table.name]
            if len(queue) + len(rows) > self._max_queued:
                return False
            queue.extend((day, row) for row in rows)
            is_half_full = 2 * len(queue) >= self._max_queued
        if is_half_full:
            self._wake.set()
        return True

    def close(self) -> None:
        """Write the queued rows and end the thread."""
        self._is_closed.set()
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._is_closed.is_set():
            # A disk that failed is not tried again for every request.
            (self._is_closed if self.problem else self._wake).wait(self._flush_seconds)
            self._wake.clear()
            self._flush()
        self._flush()
        for name, entries in self._unwritten.items():
            if entries:
                log.error("%d rows of %s could not be written and are lost", len(entries), name)
                self._count(name, "dropped", len(entries))

    def _flush(self) -> None:
        for table in IN_ORDER:
            by_day: dict[str, list[Row]] = defaultdict(list)
            for day, row in self._unwritten[table.name] + self._take(table.name):
                by_day[day].append(row)
            self._unwritten[table.name] = []
            for day, rows in by_day.items():
                self._write_day(table, day, rows)

    def _take(self, name: str) -> list[Entry]:
        """Take rows off a queue, only as many as keep the unwritten ones within its size."""
        num = self._max_queued - len(self._unwritten[name])
        with self._lock:
            taken, self._queues[name] = self._queues[name][:num], self._queues[name][num:]
        return taken

    def _write_day(self, table: Table, day: str, rows: list[Row]) -> None:
        try:
            _write(partitions.partition_path(self._lake, table, None, day), table, rows)
        except OSError as error:
            log.error("%d rows of %s cannot be written now and will be retried: %s", len(rows), table.name, error)
            self._unwritten[table.name] += [(day, row) for row in rows]
        except pa.ArrowException:
            log.exception("%d rows do not fit %s and are lost", len(rows), table.name)
            self._count(table.name, "dropped", len(rows))
        else:
            self._count(table.name, "written", len(rows))


def _write(partition: Path, table: Table, rows: list[Row]) -> None:
    """Write a new file. The rename makes it visible to readers only when it is complete."""
    schema = pa.schema([(column.name, ARROW_TYPES[column.type]) for column in table.columns])
    partition.mkdir(parents=True, exist_ok=True)
    file = partition / f"part-{uuid.uuid4().hex}.parquet"
    temporary = file.with_name(f".{file.name}")  # Spark and Arrow ignore files that begin with a dot
    try:
        pq.write_table(pa.Table.from_pylist(list(rows), schema), temporary)
        temporary.rename(file)
    finally:
        temporary.unlink(missing_ok=True)
