"""The plots of reports: small SVG files. Systems differ in colour and in marker, so that colour is not needed."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.evaluation.metrics import Interval

# Okabe and Ito's colours, safe for colour-blind readers, without the yellow one, which is too pale on white.
COLOURS = {
    "grasp": "#D55E00",
    "llm_esr": "#0072B2",
    "alphafuse": "#009E73",
    "none": "#000000",
    "llm_init": "#CC79A7",
    "rlmrec_contrastive": "#E69F00",
    "rlmrec_generative": "#56B4E9",
    "control": "#999999",
}
OTHER_COLOUR = "#555555"
MARKERS = "osD^vP*X<>ph"
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "grasp", "font.size": 9, "axes.grid": True, "grid.alpha": 0.3}


@dataclass(frozen=True)
class Point:
    label: str
    family: str  # key of COLOURS
    x: float
    y: float


@dataclass(frozen=True)
class Line:
    """A curve with an interval at each x."""

    label: str
    family: str
    by_x: Mapping[int, Interval] | Mapping[float, Interval]


@contextmanager
def plot(file: Path, x_label: str, y_label: str, width: float = 6.0) -> Iterator[Any]:
    """Axes to draw on. The file is written at the end; equal content gives equal bytes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context(STYLE):
        figure, axes = pyplot.subplots(figsize=(width, 4.0))
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.spines[["top", "right"]].set_visible(False)
        try:
            yield axes
            figure.savefig(file, bbox_inches="tight", metadata={"Date": None})
        finally:
            pyplot.close(figure)


def scatter(points: Sequence[Point], x_label: str, y_label: str, file: Path, *, log_x: bool = False) -> None:
    """One marker per system. Equal systems in equal order have equal markers in every plot."""
    drawn: dict[str, int] = {}
    with plot(file, x_label, y_label, width=7.5) as axes:
        for point in points:
            number = drawn[point.family] = drawn.get(point.family, -1) + 1
            style = {"color": _colour(point.family), "marker": MARKERS[number % len(MARKERS)]}
            axes.plot([point.x], [point.y], linestyle="", label=point.label, markersize=7, alpha=0.9, **style)
        if log_x:
            axes.set_xscale("log")
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8, frameon=False)


def curves(lines: Sequence[Line], x_label: str, y_label: str, file: Path, *, level: float | None = None) -> None:
    """Lines with their intervals as bars. `level` is a value to compare with, drawn as a dotted line."""
    with plot(file, x_label, y_label) as axes:
        if level is not None:
            axes.axhline(level, color=COLOURS["none"], linestyle=":", linewidth=1)
        for number, line in enumerate(lines):
            x = sorted(line.by_x)
            found = [each for _, each in sorted(line.by_x.items())]
            bars = [[each.mean - each.low for each in found], [each.high - each.mean for each in found]]
            style = {"color": _colour(line.family), "marker": MARKERS[number % len(MARKERS)], "capsize": 3}
            axes.errorbar(x, [each.mean for each in found], yerr=bars, label=line.label, **style)
        axes.set_xticks(sorted({x for line in lines for x in line.by_x}))
        axes.legend(fontsize=8, frameon=False)


def _colour(family: str) -> str:
    return COLOURS.get(family, OTHER_COLOUR)
