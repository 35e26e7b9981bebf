"""The measurements behind a report that is no quality table.

    measurements.jsonl     one line per measurement, with the conditions it was made under

A measurement that is there is never made again; what each kind holds is said where its figures are made.
"""

import json
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.core.machine import commit
from grasp.progress import say

MEASUREMENTS_FILE = "measurements.jsonl"


@dataclass(frozen=True)
class Conditions:
    """Measurements are compared only under the same ones; the commit may differ and is shown."""

    data_checksum: str
    num_threads: int
    machine: dict[str, Any]


@dataclass(frozen=True)
class Measurement:
    name: str  # what makes it the same measurement as another
    kind: str
    found: dict[str, Any]
    conditions: Conditions
    commit: str


@dataclass(frozen=True)
class Job:
    """One measurement that can be made: its name, its kind, and how."""

    name: str
    kind: str
    measure: Callable[[], dict[str, Any]]


class Measurements:
    """All measurements of a report's folder."""

    def __init__(self, folder: Path) -> None:
        """Raises `ValueError` when a line before the last is damaged; a last line without an end does not count."""
        self.file = folder / MEASUREMENTS_FILE
        self._by_name = {each.name: each for each in map(_parsed, self._lines())}

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def all(self) -> list[Measurement]:
        return list(self._by_name.values())

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [each.found for each in self._by_name.values() if each.kind == kind]

    def commits(self) -> str:
        """The sources that the measurements come from."""
        return ", ".join(sorted({each.commit for each in self.all()}))

    def require(self, conditions: Conditions) -> None:
        """Raises `ValueError` when something was measured under other conditions: the two cannot be compared."""
        now = asdict(conditions)
        for each in self._by_name.values():
            before = asdict(each.conditions)
            if other := [f"{name} {before[name]}, now {now[name]}" for name in now if before[name] != now[name]]:
                raise ValueError(f"{self.file} was measured with {'; '.join(other)}: give another folder")

    def add(self, measurement: Measurement) -> None:
        """Write it after the others, the file as a whole."""
        self.require(measurement.conditions)
        self._by_name[measurement.name] = measurement
        self.file.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.file.with_name(f".{self.file.name}.{os.getpid()}")
        temporary.write_text("".join(f"{json.dumps(asdict(each))}\n" for each in self._by_name.values()))
        temporary.replace(self.file)

    def _lines(self) -> list[str]:
        if not self.file.exists():
            return []
        return [line for line in self.file.read_text().splitlines(keepends=True) if line.endswith("\n")]


def _parsed(line: str) -> Measurement:
    try:
        found = json.loads(line)
        return Measurement(**found | {"conditions": Conditions(**found["conditions"])})
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{MEASUREMENTS_FILE} has a damaged line ({error}): {line[:80]!r}") from error


def measure_missing(
    every: Iterable[Job], only: Collection[str], measurements: Measurements, conditions: Conditions
) -> None:
    """Make the measurements of some kinds that are not there yet, each written as soon as it is made."""
    missing = [job for job in every if job.name not in measurements and job.kind in only]
    for number, job in enumerate(missing, start=1):
        say(f"{number} of {len(missing)}: {job.name}")
        measurements.add(Measurement(job.name, job.kind, job.measure(), conditions, commit()))


def chosen_kinds(text: str, known: Sequence[str]) -> tuple[str, ...]:
    """Kinds of measurements separated by commas; raises `ValueError` naming one that is none."""
    names = tuple(text.split(","))
    if unknown := sorted(set(names) - set(known)):
        raise ValueError(f"no measurement {', '.join(unknown)}; there are {', '.join(known)}")
    return names
