"""Build a report: sections become report.md with its plots, figures become summary.json.

A benchmark declares what its report says (`Report`, made of sections) and leaves Markdown to this module. The same
measurements always give the same files.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.core.command import folder_name
from benchmarks.core.machine import describe
from benchmarks.core.store import Measurements
from benchmarks.core.summary import SUMMARY_FILE, Figure, write_summary
from grasp.progress import say
from training.evaluation.metrics import Interval

REPORT_FILE = "report.md"
NUM_NAMED = 5  # most names in one line


@dataclass(frozen=True)
class Table:
    header: Sequence[str]
    rows: Iterable[Sequence[str]]


@dataclass(frozen=True)
class Bullets:
    lines: Sequence[str]


@dataclass(frozen=True)
class Plot:
    file: str
    text: str  # shown where the picture cannot be
    draw: Callable[[Path], None]


@dataclass(frozen=True)
class Folded:
    """Parts that a reader opens with a click."""

    title: str
    parts: "Sequence[Part]"


Part = str | Table | Bullets | Plot | Folded  # a text is one paragraph


@dataclass(frozen=True)
class Section:
    title: str
    parts: Sequence[Part]


@dataclass(frozen=True)
class Origin:
    """How the figures were measured: on which machine, by which command, at which commits."""

    machine: Mapping[str, Any]
    command: str
    commits: str
    machine_note: str = ""

    def lines(self) -> list[str]:
        return [
            f"Machine: {describe(self.machine)}{self.machine_note}.",
            f"Command: `{self.command}`",
            f"Source: commit {self.commits}.",
        ]


@dataclass(frozen=True)
class Report:
    """From top to bottom; figures stand in a table beside their goals."""

    title: str
    origin: Origin
    facts: Sequence[str] = ()  # further bullets below the origin
    opening: Sequence[Part] = ()
    figures: Mapping[str, Figure] = field(default_factory=dict)
    notes: Sequence[Part] = ()  # on the figures
    sections: Sequence[Section | None] = ()  # None: nothing was measured

    def parts(self) -> Iterator[Part]:
        yield f"# {self.title}"
        yield Bullets([*self.origin.lines(), *self.facts])
        yield from self.opening
        if self.figures:
            yield goals(self.figures)
        yield from self.notes
        for section in self.sections:
            if section:
                yield f"## {section.title}"
                yield from section.parts


@dataclass(frozen=True)
class Writer:
    """Writes the report of a benchmark's folder, now or again from what is stored there."""

    module: str  # of the command that measures
    build: Callable[[Path, str], Report]  # from a folder and the command; raises `FileNotFoundError` without results
    file_of: Callable[[Path], Path] = lambda folder: folder / REPORT_FILE

    def write(self, folder: Path, command: str | None = None) -> None:
        """Write report, plots and summary; without a command, the one of the summary that is there."""
        report = self.build(folder, command or self._command_before(folder))
        file = self.file_of(folder)
        file.write_text("\n".join(_lines(report.parts(), folder)).rstrip() + "\n")
        origin = report.origin
        write_summary(folder, origin.command, report.figures, measured_on=origin.machine, measured_at=origin.commits)
        say(f"report: {file}")

    def _command_before(self, folder: Path) -> str:
        try:
            return str(json.loads((folder / SUMMARY_FILE).read_text())["command"])
        except (FileNotFoundError, ValueError, LookupError):
            return f"python -m {self.module} --out {folder_name(folder.resolve())}"

    def main(self, arguments: Sequence[str] | None = None) -> None:
        """The command that writes a report again: it takes the folder and nothing else."""
        parser = argparse.ArgumentParser(
            prog=f"python -m {self.module}.report", description="write a report again from its folder"
        )
        parser.add_argument("folder", type=Path, help="folder of the measurements")
        folder = parser.parse_args(arguments).folder
        try:
            self.write(folder)
        except (FileNotFoundError, ValueError) as error:
            sys.exit(f"error: {error}")


def measured(folder: Path, module: str) -> Measurements:
    """The measurements of a folder; raises `FileNotFoundError` when there are none."""
    measurements = Measurements(folder)
    if not measurements.all():
        raise FileNotFoundError(f"no measurement in {measurements.file}: run python -m {module} first")
    return measurements


def origin_of(measurements: Measurements, command: str, machine_note: str = "") -> Origin:
    machine = measurements.all()[0].conditions.machine
    return Origin(machine, command, measurements.commits(), machine_note)


def _lines(parts: Iterable[Part], folder: Path) -> Iterator[str]:
    """Markdown; plots are drawn into the folder."""
    for part in parts:
        if isinstance(part, str):
            yield part
        elif isinstance(part, Table):
            yield from (f"| {' | '.join(row)} |" for row in (part.header, ["---"] * len(part.header), *part.rows))
        elif isinstance(part, Bullets):
            yield from (f"- {line}" for line in part.lines)
        elif isinstance(part, Plot):
            part.draw(folder / part.file)
            yield f"![{part.text}]({part.file})"
        else:
            yield from ("<details>", f"<summary>{part.title}</summary>", "", *_lines(part.parts, folder), "</details>")
        yield ""


def goals(figures: Mapping[str, Figure]) -> Table:
    """Figures beside their goals, where they have one. A figure that was not measured does not meet its goal."""
    shown = {True: "yes", False: "no", None: "–"}
    rows = [
        [
            name,
            "–" if figure.value is None else number(figure.value),
            f"{figure.goal.direction} {figure.goal.bound:g}" if figure.goal else "–",
            shown[figure.is_met],
        ]
        for name, figure in figures.items()
    ]
    return Table(["figure", "value", "goal", "met"], rows)


def number(value: float) -> str:
    """Four significant digits; thousands in full."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def with_interval(found: Interval, digits: int = 4, sign: str = "") -> str:
    """A mean and its interval in brackets; `sign` is "+" for a difference."""
    mean, low, high = (f"{each:{sign}.{digits}f}" for each in (found.mean, found.low, found.high))
    return f"{mean} [{low}, {high}]"


def first_named(names: Sequence[str], separator: str = ", ") -> str:
    """A space and the first few names in brackets; nothing when there are none."""
    if not names:
        return ""
    shown = [f"`{name}`" for name in names[:NUM_NAMED]] + ["..."] * (len(names) > NUM_NAMED)
    return f" ({separator.join(shown)})"
