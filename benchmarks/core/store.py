"""Measurements as a report's folder keeps them: files of JSON lines that only grow.

    measurements.jsonl     one line per measurement, with the conditions under which it was made
    about.json             what a report says of its data and of the measurements that are planned

A measurement that is there is never made again: delete its line to measure again.
"""

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from benchmarks.core.machine import commit
from grasp.files import write_json
from grasp.progress import say

MEASUREMENTS_FILE = "measurements.jsonl"
ABOUT_FILE = "about.json"

Record = list[dict[str, Any]]  # its lines


class JsonLines:
    """A file of records that several processes may read and append to.

    A record is one line, or several with the same `row_id` that count themselves (`line` of `num_lines`). Whole records
    are appended under a lock. What a crash left of the last record does not count: readers skip it, the next writer
    cuts it off.
    """

    def __init__(self, file: Path) -> None:
        self.file = file

    def read(self) -> list[Record]:
        """All complete records. Raises `ValueError` when a line before the last record is damaged."""
        if not self.file.exists():
            return []
        with self._locked("rb", fcntl.LOCK_SH) as opened:
            return self._complete(opened.read())[0]

    @contextmanager
    def locked_for_appending(self) -> Iterator[tuple[list[Record], Callable[[Record], None]]]:
        """All complete records and a function that appends one. No other process writes meanwhile."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self._locked("a+b", fcntl.LOCK_EX) as opened:
            records, end = self._complete(opened.read())
            opened.truncate(end)

            def append(record: Record) -> None:
                opened.write("".join(f"{json.dumps(line, allow_nan=False)}\n" for line in record).encode())
                opened.flush()
                os.fsync(opened.fileno())

            yield records, append

    @contextmanager
    def _locked(self, mode: str, kind: int) -> Iterator[IO[bytes]]:
        with self.file.open(mode) as opened:
            fcntl.flock(opened, kind)  # released when the file is closed, also by a crash
            opened.seek(0)
            yield opened

    def _complete(self, content: bytes) -> tuple[list[Record], int]:
        """The complete records, and the byte at which the last one ends."""
        records: list[Record] = []
        record: Record = []
        position = end = 0
        for number, line in enumerate(content.splitlines(keepends=True), start=1):
            position += len(line)
            if position == len(content) and not line.endswith(b"\n"):
                break
            record.append(self._parsed(line, number))
            last = record[-1]
            if last.get("row_id") != record[0].get("row_id") or last.get("line", 1) != len(record):
                raise ValueError(f"{self.file} line {number} does not follow the one before it: restore the file")
            if len(record) == last.get("num_lines", 1):
                records.append(record)
                record, end = [], position
        if end < len(content):
            say(f"{self.file}: the last record was cut short after {len(content) - end:,} bytes and does not count")
        return records, end

    def _parsed(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{self.file} line {number} is damaged ({error}): restore the file") from error
        return found


@dataclass(frozen=True)
class Conditions:
    """Measurements are compared only under equal conditions. The commit may differ and is shown."""

    data_checksum: str
    num_threads: int
    machine: dict[str, Any]


@dataclass(frozen=True)
class Measurement:
    name: str  # identifies it within the folder
    kind: str
    found: dict[str, Any]
    conditions: Conditions
    commit: str


@dataclass(frozen=True)
class PlannedMeasurement:
    name: str
    kind: str
    measure: Callable[[], dict[str, Any]]


class Measurements:
    """All measurements of a report's folder."""

    def __init__(self, folder: Path) -> None:
        """Raises `ValueError` when the file is damaged before its end."""
        self._lines = JsonLines(folder / MEASUREMENTS_FILE)
        self.file = self._lines.file
        self._by_name = {each.name: each for each in map(self._measurement, self._lines.read())}

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def all(self) -> list[Measurement]:
        return list(self._by_name.values())

    def of(self, kind: str) -> list[dict[str, Any]]:
        """What was found by each measurement of a kind, oldest first."""
        return [each.found for each in self._by_name.values() if each.kind == kind]

    def by_kind(self) -> dict[str, list[dict[str, Any]]]:
        return {each.kind: self.of(each.kind) for each in self.all()}

    def commits(self) -> str:
        """The commits at which the measurements were made."""
        return ", ".join(sorted({each.commit for each in self.all()}))

    def require(self, conditions: Conditions) -> None:
        """Raises `ValueError` when a measurement was made under other conditions: the two cannot be compared."""
        now = asdict(conditions)
        for each in self._by_name.values():
            before = asdict(each.conditions)
            if other := [f"{name} {before[name]}, now {now[name]}" for name in now if before[name] != now[name]]:
                raise ValueError(f"{self.file} was measured with {'; '.join(other)}: give another folder")

    def add(self, measurement: Measurement) -> None:
        self.require(measurement.conditions)
        with self._lines.locked_for_appending() as (_, append):
            append([asdict(measurement)])
        self._by_name[measurement.name] = measurement

    def make_missing(self, planned: Sequence[PlannedMeasurement], kinds: Sequence[str], conditions: Conditions) -> None:
        """Make the planned measurements of some kinds that are not there yet. Each is stored as soon as it is made."""
        self.require(conditions)
        missing = [each for each in planned if each.name not in self and each.kind in kinds]
        for number, each in enumerate(missing, start=1):
            say(f"{number} of {len(missing)}: {each.name}")
            self.add(Measurement(each.name, each.kind, each.measure(), conditions, commit()))

    def _measurement(self, record: Record) -> Measurement:
        try:
            return Measurement(**record[0] | {"conditions": Conditions(**record[0]["conditions"])})
        except (TypeError, KeyError) as error:
            raise ValueError(f"{self.file} has a damaged line ({error}): {str(record[0])[:80]}") from error


def write_about(folder: Path, about: Mapping[str, Any]) -> None:
    write_json(folder / ABOUT_FILE, about)


def read_about(folder: Path) -> dict[str, Any]:
    """Raises `FileNotFoundError` before a benchmark has written it."""
    about: dict[str, Any] = json.loads((folder / ABOUT_FILE).read_text())
    return about
