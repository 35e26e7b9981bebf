"""What was served and what came of it, as tables for analysts: ids only, written in batches by a thread.

Reads:   nothing
Writes:  served_requests, outcomes; a file per batch and process, one partition per day

A request never waits for the disk. Rows that find the queue full are dropped and counted; a batch that cannot be
written is tried again. A process that is killed loses what it was told since the last batch, `FLUSH_SECONDS` at most.
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

MAX_WAITING = 20_000  # rows
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
    """One per process; `count(result, num_rows)` is told of rows that were `written` or `dropped`."""

    def __init__(
        self,
        lake: Path,
        count: Callable[[str, int], None],
        flush_seconds: float = FLUSH_SECONDS,
        max_waiting: int = MAX_WAITING,
    ) -> None:
        self._lake = lake
        self._count = count
        self._flush_seconds = flush_seconds
        self._waiting: queue.Queue[Entry] = queue.Queue(max_waiting)
        self._unwritten: list[Entry] = []  # touched by the writing thread alone
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="requests-log", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def keep(self, table: Table, day: str, rows: Iterable[Row]) -> bool:
        """Have the rows written soon; False when some were dropped because too many wait."""
        num_dropped = 0
        for row in rows:
            try:
                self._waiting.put_nowait((table, day, row))
            except queue.Full:
                num_dropped += 1
        if num_dropped:
            self._count("dropped", num_dropped)
        return not num_dropped

    def close(self) -> None:
        """Write what waits and end the thread."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._flush_seconds):
            self._flush()
        self._flush()
        if self._unwritten:
            log.error("%d rows of the requests log are lost: they could not be written", len(self._unwritten))
            self._count("dropped", len(self._unwritten))

    def _flush(self) -> None:
        batches: dict[tuple[Table, str], list[Row]] = defaultdict(list)
        for table, day, row in [*self._unwritten, *self._taken()]:
            batches[table, day].append(row)
        self._unwritten = []
        for (table, day), rows in batches.items():
            try:
                _write(partitions.partition_path(self._lake, table, None, day), table, rows)
            except OSError as error:
                log.error("%d rows of %s wait for a disk that can take them: %s", len(rows), table.name, error)
                self._unwritten += [(table, day, row) for row in rows]
            except pa.ArrowException:
                log.exception("%d rows are lost: they do not fit %s", len(rows), table.name)
                self._count("dropped", len(rows))
            else:
                self._count("written", len(rows))

    def _taken(self) -> list[Entry]:
        """What waits; nothing while as much could not be written, so that memory stays bounded."""
        taken: list[Entry] = []
        while len(self._unwritten) + len(taken) < self._waiting.maxsize:
            try:
                taken.append(self._waiting.get_nowait())
            except queue.Empty:
                break
        return taken


def _write(partition: Path, table: Table, rows: list[Row]) -> None:
    """A file of its own, seen by readers only when it is whole."""
    schema = pa.schema([(column.name, ARROW_TYPES[column.type]) for column in table.columns])
    partition.mkdir(parents=True, exist_ok=True)
    file = partition / f"part-{uuid.uuid4().hex}.parquet"
    temporary = file.with_name(f".{file.name}")  # with a dot in front neither Spark nor Arrow reads it
    try:
        pq.write_table(pa.Table.from_pylist(list(rows), schema), temporary)
        temporary.rename(file)
    finally:
        temporary.unlink(missing_ok=True)
