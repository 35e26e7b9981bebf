"""The figures of a benchmark, each beside its goal.

    python -m benchmarks.core.summary

Reads:   docs/benchmarks/*/summary.json, which every benchmark command writes beside its report
Prints:  one table of all figures
"""

import argparse
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.core.machine import commit, machine
from grasp.files import write_json
from grasp.settings import ROOT

SUMMARY_FILE = "summary.json"
REPORTS = ROOT / "docs" / "benchmarks"
DIGITS = 5  # significant digits of a stored value


@dataclass(frozen=True)
class Goal:
    bound: float
    direction: Literal["at least", "at most"] = "at least"

    def is_met(self, value: float | None) -> bool:
        """A value that was not measured meets no goal."""
        if value is None:
            return False
        return value >= self.bound if self.direction == "at least" else value <= self.bound


@dataclass(frozen=True)
class Figure:
    """`value` is None or not finite when it was not measured yet. Without a goal it is only reported."""

    value: float | None
    goal: Goal | None = None

    @property
    def is_met(self) -> bool | None:
        return self.goal.is_met(self.value) if self.goal else None


Found = Mapping[str, Any]  # what one measurement found
FigureOf = tuple[Goal, str, Callable[[Found], float | None]]  # goal, kind of measurement, the figure in its result


def figures_of(declared: Mapping[str, FigureOf], latest: Mapping[str, Found]) -> dict[str, Figure]:
    """The declared figures from the latest measurement of each kind; a kind that is missing gives no value."""
    values = {name: value_of(latest[kind]) for name, (_, kind, value_of) in declared.items() if kind in latest}
    return {name: Figure(values.get(name), goal) for name, (goal, _, _) in declared.items()}


def write_summary(
    folder: Path,
    command: str,
    figures: Mapping[str, Figure],
    measured_on: Mapping[str, Any] | None = None,
    measured_at: str | None = None,
) -> None:
    """Write `summary.json`. Machine and commit are this process's own unless they are given."""
    write_json(
        folder / SUMMARY_FILE,
        {
            "machine": dict(measured_on or machine()),
            "command": command,
            "commit": measured_at or commit(),
            "figures": {name: _as_json(figure) for name, figure in figures.items()},
        },
    )


def _as_json(figure: Figure) -> dict[str, Any]:
    is_measured = figure.value is not None and math.isfinite(figure.value)
    value = figure.value if is_measured else None
    # Judged before it is rounded: 0.04996 is shown as 0.05 and does not reach 0.05.
    shown = None if value is None else float(f"{value:.{DIGITS}g}")
    bound = figure.goal.bound if figure.goal else None
    return {"value": shown, "goal": bound, "met": figure.is_met}


def table(reports: Path) -> str:
    """All summaries below a folder as one aligned table, and how many goals are met."""
    rows = [
        (file.parent.name, name, *(_shown(found[key]) for key in ("value", "goal", "met")))
        for file in sorted(reports.glob(f"*/{SUMMARY_FILE}"))
        for name, found in json.loads(file.read_text())["figures"].items()
    ]
    if not rows:
        return f"no figures below {reports} yet"
    lines = [("report", "figure", "value", "goal", "met"), *rows]
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    met = [row[-1] == "yes" for row in rows if row[-1] != "-"]
    return "\n".join([*text, f"{sum(met)} of {len(met)} goals met"])


def _shown(value: float | bool | None) -> str:
    if value is None:
        return "-"
    return ("yes" if value else "no") if isinstance(value, bool) else f"{value:g}"


def main() -> None:
    argparse.ArgumentParser(
        prog="python -m benchmarks.core.summary", description="all figures and their goals"
    ).parse_args()
    print(table(REPORTS))


if __name__ == "__main__":
    main()
