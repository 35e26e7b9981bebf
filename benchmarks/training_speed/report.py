"""The report of training speed, from the measurements of a folder.

python -m benchmarks.training_speed.report DIR
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median

from benchmarks.core.plots import COLOURS, MARKERS, plot
from benchmarks.core.report import Bullets, Plot, Report, Section, Table, Writer, first_named, measured, origin_of
from benchmarks.core.store import Measurements, read_about
from benchmarks.training_speed.figures import OWN, Race, figures, race, speeds, text_cost

MODULE = "benchmarks.training_speed"


def build(folder: Path, command: str) -> Report:
    measurements = measured(folder, MODULE)
    about = read_about(folder)
    wanted, shape_of_all = about["wanted"], about["shape"].items()
    missing = [name for name in wanted if name not in measurements]
    shape = ", ".join(f"{name.replace('_', ' ').removeprefix('num ')} {value:g}" for name, value in shape_of_all)
    num_threads = measurements.all()[0].conditions.num_threads
    note = f"; {num_threads} threads for every side, none that spins while it waits"
    return Report(
        f"Training speed on {about['data']}",
        origin_of(measurements, about["command"] or command, note),
        facts=[
            "Data: {num_users:,} users, {num_items:,} items, {num_targets:,} training targets; "
            "{num_validation_users:,} validation users.".format(**about),
            f"Peers, each in an environment of its own with the same torch: {', '.join(about['peers'])}.",
            f"Every side: {shape}; feed-forward as wide as the model. A peer's batch size and learning rate are its "
            "defaults.",
            f"Measurements: {len(measurements.all())} made, {len(missing)} of {len(wanted)} missing"
            f"{first_named(missing, '; ')}.",
        ],
        figures=figures(measurements, wanted),
        notes=[
            "`speed_over_fastest_peer` is the smallest of these ratios: the seconds of the fastest peer to the target "
            "over ours, and our positions per second over the fastest peer's at each number of negatives."
        ],
        sections=[
            race_section(measurements, about["curve_minutes"]),
            position_section(measurements),
            own_section(measurements),
        ],
    )


def race_section(measurements: Measurements, most_minutes: float) -> Section | None:
    """Seconds of training to the same validation NDCG@10."""
    running = race(measurements)
    if running is None:
        return None
    header = (
        "system; best NDCG@10; seconds trained; seconds to the target; times ours; times ours, to its own best; "
        "setting up"
    )
    rows = [
        [
            curve.system,
            f"{curve.best:.4f}",
            f"{curve.points[-1][0]:.0f}",
            _number(curve.seconds_to(running.target), 0),
            *(_number(running.ratios(target).get(curve.system), 1) for target in (running.target, curve.best)),
            f"{curve.setup_seconds:.0f}",
        ]
        for curve in running.curves
    ]
    return Section(
        "Seconds to the same validation NDCG@10",
        [
            "Ours is the recipe `sasrec` with its own loss, negatives and pieces of sequences (at least 5 items, at "
            f"most the longest that is read). Each side trained for at most {most_minutes:g} minutes. The "
            f"target, {running.target:.4f}, is what the one that came least far reached. Peers are judged every few "
            "seconds of their training, ours only at the end of an epoch. Exports, judging and setting up do not "
            "count; the last column is what setting up took. The column before it asks for the peer's own best instead "
            "of the target.",
            Table(header.split("; "), rows),
            Plot("race.svg", "validation NDCG@10 against seconds of training", partial(_draw, running)),
        ],
    )


def position_section(measurements: Measurements) -> Section | None:
    """Target positions per second."""
    found = speeds(measurements)
    if not found:
        return None
    systems = sorted({name for speed in found for name in speed.by_system}, key=lambda name: (name != OWN, name))
    rows = [
        [
            "all items" if speed.num_negatives is None else f"{speed.num_negatives:,}",
            *(_spread(speed.rounds.get(name)) for name in systems),
            _number(speed.ratio, 1),
        ]
        for speed in found
    ]
    return Section(
        "Target positions per second",
        [
            "A target position is a step of a sequence whose next item is to be guessed; padding is none. Median of "
            "the rounds, and the slowest and fastest of them. Ours are whole epochs, a peer's a bounded time after a "
            "few steps that do not count. Negatives are shared by a batch in ours and drawn for every position in "
            "RecTools; RecBole knows one negative or all items, and makes a sequence of its own of every prefix.",
            Table(["negatives", *systems, "ours over the fastest peer"], rows),
        ],
    )


def own_section(measurements: Measurements) -> Section | None:
    """What text costs, how long one seed of GRASP takes, and a full evaluation."""
    lines = [
        f"Text: an epoch of GRASP, at the width and dropout of most quality rows, takes "
        f"{median(found['text_seconds']):.1f} s, one of ids alone, trained in the same way, "
        f"{median(found['ids_seconds']):.1f} s (medians of {len(found['ids_seconds'])} in turns): "
        f"{text_cost(found):.2f} times."
        for found in measurements.of("text_cost")
    ]
    lines += [
        f"One seed of GRASP to early stopping: {found['minutes']:.1f} minutes (the slowest "
        f"{found['slowest_minutes']:.1f}), {', '.join(map(str, found['epochs']))} epochs; {found['source']}."
        for found in measurements.of("grasp_seed")
    ]
    lines += [
        f"Full ranking of {found['num_events']:,} users over {found['num_items']:,} items by GRASP: "
        f"{median(found['seconds']):.1f} s (median of {len(found['seconds'])})."
        for found in measurements.of("full_eval")
    ]
    return Section("Our own costs", [Bullets(lines)]) if lines else None


def _draw(running: Race, file: Path) -> None:
    """Curves of NDCG@10 against seconds on a logarithmic axis, and the target as a line."""
    colours = iter([colour for family, colour in COLOURS.items() if family != "grasp"])
    with plot(file, "seconds of training", "validation NDCG@10", width=7.0) as axes:
        axes.axhline(running.target, color=COLOURS["control"], linestyle=":", linewidth=1)
        for number, curve in enumerate(running.curves):
            seconds, values = zip(*curve.points, strict=True)
            colour = COLOURS["grasp"] if curve.system == OWN else next(colours)
            style = {"color": colour, "marker": MARKERS[number % len(MARKERS)]}
            axes.plot(seconds, values, label=curve.system, markersize=3, linewidth=1, **style)
        axes.set_xscale("log")
        axes.legend(fontsize=8, frameon=False)


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _spread(rounds: Sequence[float] | None) -> str:
    return "–" if not rounds else f"{median(rounds):,.0f} ({min(rounds):,.0f} to {max(rounds):,.0f})"


REPORT = Writer(MODULE, build)

if __name__ == "__main__":
    REPORT.main()
