"""Log served requests and their outcomes as tables for analysts: ids only, no texts.

Reads:   nothing
Writes:  served_requests, outcomes; one partition per day, one file per batch and process

A thread writes the rows in batches, so a request never waits for the disk. When the queue is full, rows are dropped and
counted. A batch that cannot be written is tried again. A killed process loses at most `FLUSH_SECONDS` of rows.
"""

import logging
import queue
import threading
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from grasp import partitions
from grasp.tables import Table

MAX_QUEUED = 20_000  # rows
FLUSH_SECONDS = 30.0
ARROW_TYPES = {
    "string": pa.string(),
    "double": pa.float64(),
    "timestamp": pa.timestamp("us", "UTC"),
    "array<string>": pa.list_(pa.string()),
    "array<float>": pa.list_(pa.float32()),
}

Row = Mapping[str, Any]
Entry = tuple[Table, str, Row]  # table, day, row

log = logging.getLogger("grasp.serving")


class RequestsLog:
    """One per process. `count(result, num_rows)` is called for rows that were `written` or `dropped`."""

    def __init__(
        self,
        lake: Path,
        count: Callable[[str, int], None],
        flush_seconds: float = FLUSH_SECONDS,
        max_queued: int = MAX_QUEUED,
    ) -> None:
        self._lake = lake
        self._count = count
        self._flush_seconds = flush_seconds
        self._queue: queue.Queue[Entry] = queue.Queue(max_queued)
        self._unwritten: list[Entry] = []  # used by the writing thread only
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="requests-log", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def add(self, table: Table, day: str, rows: Iterable[Row]) -> bool:
        """Queue rows for writing. False when the queue was full and some were dropped."""
        num_dropped = 0
        for row in rows:
            try:
                self._queue.put_nowait((table, day, row))
            except queue.Full:
                num_dropped += 1
        if num_dropped:
            self._count("dropped", num_dropped)
        return not num_dropped

    def close(self) -> None:
        """Write the queued rows and end the thread."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._flush_seconds):
            self._flush()
        self._flush()
        if self._unwritten:
            log.error("%d rows of the requests log could not be written and are lost", len(self._unwritten))
            self._count("dropped", len(self._unwritten))

    def _flush(self) -> None:
        batches: dict[tuple[Table, str], list[Row]] = defaultdict(list)
        for table, day, row in [*self._unwritten, *self._take_queued()]:
            batches[table, day].append(row)
        self._unwritten = []
        for (table, day), rows in batches.items():
            try:
                _write(partitions.partition_path(self._lake, table, None, day), table, rows)
            except OSError as error:
                log.error("%d rows of %s cannot be written now and will be retried: %s", len(rows), table.name, error)
                self._unwritten += [(table, day, row) for row in rows]
            except pa.ArrowException:
                log.exception("%d rows do not fit %s and are lost", len(rows), table.name)
                self._count("dropped", len(rows))
            else:
                self._count("written", len(rows))

    def _take_queued(self) -> list[Entry]:
        """Take rows off the queue, only as many as keep `_unwritten` within the queue's size."""
        taken: list[Entry] = []
        while len(self._unwritten) + len(taken) < self._queue.maxsize:
            try:
                taken.append(self._queue.get_nowait())
            except queue.Empty:
                break
        return taken


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
