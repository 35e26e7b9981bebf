"""Write what the measurements of training speed say: tables, the plot of the race and the figures with a goal.

    python -m benchmarks.training_speed.report DIR

Reads:   measurements.jsonl and about.json in DIR
Writes:  report.md, race.svg and summary.json in DIR; again on the same measurements, the same files
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.core.invocation import write_again
from benchmarks.core.machine import describe as describe_machine
from benchmarks.core.markdown import first_named, goals, table
from benchmarks.core.measurements import MEASUREMENTS_FILE, Measurements
from benchmarks.core.plots import COLOURS, MARKERS, plot
from benchmarks.core.summary import write_summary
from benchmarks.training_speed.results import OWN, Curve, Race, figures, race, speeds, text_cost
from grasp.files import write_json

REPORT_FILE = "report.md"
ABOUT_FILE = "about.json"
PLOT_FILE = "race.svg"


@dataclass(frozen=True)
class About:
    """What the report's first lines say."""

    data: str
    num_users: int
    num_items: int
    num_targets: int  # training positions with a next item
    num_validation_users: int
    peers: list[str]  # distributions
    shape: dict[str, float]  # of every side's model
    curve_minutes: float
    command: str
    wanted: list[str]  # names of all measurements


def describe(folder: Path, about: About) -> None:
    """Keep what the report says first; replaces what an earlier run said."""
    write_json(folder / ABOUT_FILE, asdict(about))


def write(folder: Path) -> None:
    """Write report, plot and summary. Raises `FileNotFoundError` when nothing was measured in the folder."""
    measurements = Measurements(folder)
    if not measurements.all():
        raise FileNotFoundError(f"no measurement in {measurements.file}: run python -m benchmarks.training_speed first")
    about = About(**json.loads((folder / ABOUT_FILE).read_text()))
    lines = [*head(measurements, about), *(line for section in SECTIONS for line in section(measurements, about))]
    if running := race(measurements):
        draw(folder / PLOT_FILE, running)
    (folder / REPORT_FILE).write_text("\n".join(lines).rstrip() + "\n")
    write_summary(
        folder,
        about.command,
        figures(measurements, about.wanted),
        measured_on=measurements.all()[0].conditions.machine,
        measured_at=measurements.commits(),
    )


def head(measurements: Measurements, about: About) -> list[str]:
    """What was measured, on what, and how much of it is still missing."""
    conditions = measurements.all()[0].conditions
    missing = [name for name in about.wanted if name not in measurements]
    shape = ", ".join(f"{name.replace('_', ' ').removeprefix('num ')} {value:g}" for name, value in about.shape.items())
    return [
        f"# Training speed on {about.data}",
        "",
        f"- Data: {about.num_users:,} users, {about.num_items:,} items, {about.num_targets:,} training targets; "
        f"{about.num_validation_users:,} validation users.",
        f"- Machine: {describe_machine(conditions.machine)}; {conditions.num_threads} threads for every side, none "
        "that spins while it waits.",
        f"- Command: `{about.command}`",
        f"- Peers, each in an environment of its own with the same torch: {', '.join(about.peers)}.",
        f"- Every side: {shape}; feed-forward as wide as the model. A peer's batch size and learning rate are its "
        "defaults.",
        f"- Measurements: {len(measurements.all())} made, {len(missing)} of {len(about.wanted)} missing"
        f"{first_named(missing, '; ')}.",
        f"- Source: commit {measurements.commits()}.",
        "",
        *goals(figures(measurements, about.wanted)),
        "`speed_over_fastest_peer` is the smallest of these ratios: the seconds of the fastest peer to the target over "
        "ours, and our positions per second over the fastest peer's at each number of negatives.",
        "",
    ]


def race_section(measurements: Measurements, about: About) -> list[str]:
    """Seconds of training to the same validation NDCG@10."""
    running = race(measurements)
    if running is None:
        return []
    return [
        "## Seconds to the same validation NDCG@10",
        "",
        "Ours is the recipe `sasrec` with its own loss, negatives and pieces of sequences (at least 5 items, at most "
        f"the longest that is read). Each side trained for at most "
        f"{about.curve_minutes:g} minutes. The target, {running.target:.4f}, is what the one that came least far "
        "reached. Peers are judged every few seconds of their training, ours only at the end of an epoch. Exports, "
        "judging and setting up do not count; the last column is what setting up took. The column before it asks for "
        "the peer's own best instead of the target.",
        "",
        *table(
            [
                "system",
                "best NDCG@10",
                "seconds trained",
                "seconds to the target",
                "times ours",
                "times ours, to its own best",
                "setting up",
            ],
            [_race_row(running, curve) for curve in running.curves],
        ),
        f"![validation NDCG@10 against seconds of training]({PLOT_FILE})",
        "",
    ]


def _race_row(running: Race, curve: Curve) -> list[str]:
    return [
        curve.system,
        f"{curve.best:.4f}",
        f"{curve.points[-1][0]:.0f}",
        _number(curve.seconds_to(running.target)),
        *(_times(running.ratios(target).get(curve.system)) for target in (running.target, curve.best)),
        f"{curve.setup_seconds:.0f}",
    ]


def position_section(measurements: Measurements, _: About) -> list[str]:
    """Target positions per second."""
    found = speeds(measurements)
    if not found:
        return []
    systems = sorted({name for speed in found for name in speed.by_system}, key=lambda name: (name != OWN, name))
    rows = [
        [
            "all items" if speed.num_negatives is None else f"{speed.num_negatives:,}",
            *(_spread(speed.rounds.get(name)) for name in systems),
            _times(speed.ratio),
        ]
        for speed in found
    ]
    return [
        "## Target positions per second",
        "",
        "A target position is a step of a sequence whose next item is to be guessed; padding is none. Median of the "
        "rounds, and the slowest and fastest of them. Ours are whole epochs, a peer's a bounded time after a few steps "
        "that do not count. Negatives are shared by a batch in ours and drawn for every position in RecTools; RecBole "
        "knows one negative or all items, and makes a sequence of its own of every prefix.",
        "",
        *table(["negatives", *systems, "ours over the fastest peer"], rows),
    ]


def own_section(measurements: Measurements, _: About) -> list[str]:
    """What text costs, how long one seed of GRASP takes, and a full evaluation."""
    lines = ["## Our own costs", ""]
    for found in measurements.of("text_cost"):
        lines.append(
            f"- Text: an epoch of GRASP, at the width and dropout of most quality rows, takes "
            f"{median(found['text_seconds']):.1f} s, one of ids alone, trained in the same way, "
            f"{median(found['ids_seconds']):.1f} s (medians of {len(found['ids_seconds'])} in turns): "
            f"{text_cost(found):.2f} times."
        )
    for found in measurements.of("grasp_seed"):
        lines.append(
            f"- One seed of GRASP to early stopping: {found['minutes']:.1f} minutes (the slowest "
            f"{found['slowest_minutes']:.1f}), {_list(found['epochs'])} epochs; {found['source']}."
        )
    for found in measurements.of("full_eval"):
        lines.append(
            f"- Full ranking of {found['num_events']:,} users over {found['num_items']:,} items by GRASP: "
            f"{median(found['seconds']):.1f} s (median of {len(found['seconds'])})."
        )
    return [*lines, ""] if len(lines) > 2 else []


SECTIONS: tuple[Callable[[Measurements, About], list[str]], ...] = (race_section, position_section, own_section)


def draw(file: Path, running: Race) -> None:
    """Curves of NDCG@10 against seconds on a logarithmic axis, with the target across."""
    with plot(file, "seconds of training", "validation NDCG@10", width=7.0) as axes:
        axes.axhline(running.target, color=COLOURS["control"], linestyle=":", linewidth=1)
        for curve, style in zip(running.curves, _styles(running.curves), strict=True):
            seconds, values = zip(*curve.points, strict=True)
            axes.plot(seconds, values, label=curve.system, markersize=3, linewidth=1, **style)
        axes.set_xscale("log")
        axes.legend(fontsize=8, frameon=False)


def _styles(curves: Sequence[Curve]) -> list[dict[str, Any]]:
    colours = iter([colour for family, colour in COLOURS.items() if family != "grasp"])
    return [
        {"color": COLOURS["grasp"] if curve.system == OWN else next(colours), "marker": MARKERS[number % len(MARKERS)]}
        for number, curve in enumerate(curves)
    ]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}"


def _times(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _spread(rounds: Sequence[float] | None) -> str:
    return "–" if not rounds else f"{median(rounds):,.0f} ({min(rounds):,.0f} to {max(rounds):,.0f})"


def _list(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))


def main() -> None:
    write_again("benchmarks.training_speed.report", write, MEASUREMENTS_FILE, REPORT_FILE)


if __name__ == "__main__":
    main()
