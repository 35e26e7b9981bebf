"""The report of fresh features, from the folders of rows and measurements below one folder.

python -m benchmarks.fresh.report DIR
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.core import plots
from benchmarks.core.machine import describe
from benchmarks.core.report import Bullets, Folded, Origin, Plot, Report, Section, Table, Writer, first_named
from benchmarks.fresh.entries import AS_GRASP, BEST_WIDTH, BLOCK_DAYS, SETTINGS, UNTAUGHT, WEEKLY
from benchmarks.fresh.figures import (
    FUTURE_FACTS,
    MOMENTS_SHARE,
    ONLINE,
    WITHOUT,
    Name,
    Place,
    figures,
    grasp,
    moments_job_share,
    place_train_seconds,
    places,
    read_online,
    without_fresh,
)
from benchmarks.quality.comparison import GRASP, HR, NDCG, System, per_event
from benchmarks.quality.report import PROTOCOLS
from benchmarks.quality.rows import DAYS, FILTERED, OVERALL
from benchmarks.quality.scorers import STATE_VOTES, STORED_VOTES, TAKERS
from grasp.tables import TAKER_DAYS
from training.evaluation.metrics import Interval, bootstrap_interval

MODULE = "benchmarks.fresh"
WEEKLY_WEIGHTS, CUT_WEIGHTS = grasp("fresh", WEEKLY), grasp("fresh")
# The systems whose ageing is shown, by name; those with a family (and so a colour) are in the plot, too.
OVER_TIME: tuple[tuple[str, str, Name], ...] = (
    ("kernel", "none", WITHOUT),
    ("takers", "", grasp("takers")),
    ("takers, frozen", "", grasp("takers_frozen")),
    ("fresh", "grasp", CUT_WEIGHTS),
    ("fresh, frozen", "llm_init", grasp("fresh_frozen")),
    ("fresh, trained weekly", "llm_esr", WEEKLY_WEIGHTS),
)
NOTE = (
    "Gains are ratios of filtered NDCG@10 in the full ranking, GRASP's unless another system is named, with the "
    "history kernel on both sides. `time_gain` is *takers* over *kernel*, `moments_gain` is *fresh* over *takers* "
    "(`_low`: the lower end of its interval), `stored_votes_gain` is *stored* over *takers*, "
    "`moments_true_over_permuted_text` is *stored* over *permuted*, `chosen_gain` is *chosen* over *kernel*. "
    "`recipe_over_llm_init_published` sets *fresh* against LLMInit as its authors have it, without the kernel, by "
    "global time; `_leave_one_out` does so in the order of the file. A figure without a goal is only reported; one "
    "that was not measured yet has no value and meets no goal."
)
TESTS = (
    "Known are takers, both kinds of votes, and what takers add to the loss. Tests plant such events for the day's "
    "tables (`tests/spark_jobs/test_build_features.py`, `tests/spark_jobs/test_find_moments.py`) and for the answers "
    "of the service (`tests/serving/ranking/test_fresh_scores.py`, "
    "`tests/serving/releases/test_moments_of_a_release.py`)."
)


def build(folder: Path, command: str) -> Report:
    measured = places(folder)
    if not measured:
        raise FileNotFoundError(f"no finished row below {folder}: run python -m {MODULE} first")
    first = measured[0].about
    commits = {commit for place in measured for commit in place.results.commits().split(", ")}
    return Report(
        "What fresh features are worth",
        Origin(first["machine"], first["command"] or command, ", ".join(sorted(commits))),
        facts=facts(measured),
        figures=figures(folder, measured),
        notes=[NOTE],
        sections=[
            *(place_section(place) for place in measured),
            *(time_section(place) for place in measured),
            weights_section(measured),
            cost_section(folder, measured),
            future_section(measured),
        ],
    )


def facts(measured: Sequence[Place]) -> list[str]:
    """What was measured and how, and how much of it is missing."""
    shape = ", ".join(f"{name} {value}" for name, value in SETTINGS.items())
    return [
        *(_place_fact(place, measured[0]) for place in measured),
        f"*kernel*: the ranker with its history kernel, trained without takers (*{UNTAUGHT}*). *takers*: with the "
        f"takers of the last {', '.join(map(str, TAKER_DAYS))} days, too, in training and in scores; with *{UNTAUGHT}* "
        "in scores alone. *fresh*: with state votes, too, of recent moments whose state in the ranker is like the "
        "user's. *stored*: with the votes of moments with similar texts and items instead, a daily feature. Here every "
        "user has them; the daily job leaves out who was not active lately. Features are as of the day before each "
        "event. *frozen*: nothing is known after the day before the cut, with the same weights. *permuted*: like "
        "*stored*, with item vectors that were permuted among items. *chosen*: "
        "the features that validation chooses. Weights are fitted to validation events, with the ranker that was "
        "trained on what was known then.",
        f"All systems have {shape}, without trials. *{AS_GRASP}*: trained in GRASP's way. *{BEST_WIDTH}*: the "
        "width that validation chooses.",
        "By global time gains are of users known at the cut; new users are answered with what is popular, whatever the "
        "ranker. When one is left out, features come from training events only.",
        "Intervals: 95 %, paired bootstrap by user, each user's values averaged over a system's seeds first; ± is the "
        "standard deviation over seeds.",
    ]


def _place_fact(place: Place, first: Place) -> str:
    about, num_asked = place.about, int(place.results.groups()[place.group].sum())
    missing = [row_id for row_id in about["wanted"] if not place.results.finished(row_id)]
    text = (
        f"{place.name}: {about['num_users']:,} users, {about['num_items']:,} items, {about['num_interactions']:,} "
        f"interactions; {about['num_events']:,} test events, {num_asked:,} of them of known users. "
        f"{PROTOCOLS[place.results.protocol]}. Rows: {len(place.results.rows())} finished, {len(missing)} of "
        f"{len(about['wanted'])} wanted ones missing{first_named(missing)}."
    )
    if about["command"] != first.about["command"]:
        text += f" Command: `{about['command']}`."
    if about["machine"] != first.about["machine"]:
        text += f" Machine: {describe(about['machine'])}."
    return text


def place_section(place: Place) -> Section:
    """All systems of a place, the best one first."""
    is_by_time = place.group != OVERALL
    shown = sorted(place.systems, key=lambda one: -one.mean(FILTERED, NDCG, place.group))
    rows = [
        [
            one.label,
            str(len(one.rows)),
            *(one.cell(FILTERED, metric, place.group) for metric in (NDCG, HR)),
            _over_without(place, one),
            *([one.cell(FILTERED, NDCG)] if is_by_time else []),
        ]
        for one in shown
    ]
    header = ["system", "seeds", "NDCG@10", "HR@10", "over the same without fresh features"]
    text = "Filtered NDCG@10 and HR@10, best first."
    if is_by_time:
        header.append("NDCG@10, all users")
        text += " All columns but the last are of users known at the cut."
    return Section(place.name, [text, Table(header, rows)])


def _over_without(place: Place, one: System) -> str:
    row = one.row
    if row.addition in ("none", "kernel"):
        return "–"
    return _ratio_cell(place.ratio(Name(row.model, row.addition, row.ablation), without_fresh(row.model)))


def _ratio_cell(ratio: Interval | None) -> str:
    return f"{ratio.mean:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]" if ratio else "–"


def time_section(place: Place) -> Section | None:
    """How systems age after the cut, with fresh features and without, and with weekly weights."""
    bins = day_bins(place)
    shown = [(label, family, one) for label, family, name in OVER_TIME if (one := place.find(name))]
    if not bins or not shown:
        return None
    header = [f"{name.removeprefix(DAYS)} ({int(mask_E.sum()):,})" for name, mask_E in bins.items()]
    values = {label: _over_time(place, one, bins) for label, _, one in shown}
    rows = [[label, *(f"{each.mean:.4f}" for each in found)] for label, found in values.items()]
    if place.find(WEEKLY_WEIGHTS) and place.find(CUT_WEIGHTS):
        ratios = (place.ratio(WEEKLY_WEIGHTS, CUT_WEIGHTS, mask_E) for mask_E in bins.values())
        rows.append(["trained weekly over fresh", *map(_ratio_cell, ratios)])
    lines = [
        plots.Line(label, family, dict(zip(map(_first_day, bins), values[label], strict=True)))
        for label, family, _ in shown
        if family
    ]
    draw = partial(plots.curves, lines, "days since the cut (first day of each bin)", "filtered NDCG@10")
    return Section(
        f"{place.name}, by days since the cut",
        [
            f"Filtered NDCG@10 of users known at the cut; events in brackets. *trained weekly*: {GRASP} with fresh "
            f"features is trained anew every {BLOCK_DAYS} days, on all that is known by then; recipe, epochs and the "
            "weights of kernel and fresh features are those that were chosen at the cut. All others have the weights "
            "of the cut.",
            Table(["days since the cut", *header], rows),
            Plot(f"{place.name}-days.svg", "NDCG@10 by days since the cut", draw),
        ],
    )


def day_bins(place: Place) -> dict[str, np.ndarray]:
    """The events of users known at the cut by days since it, as masks (E,). Bins without events are left out."""
    groups = place.results.groups()
    bins = {name: mask_E & groups[place.group] for name, mask_E in groups.items() if name.startswith(DAYS)}
    return {name: mask_E for name, mask_E in bins.items() if mask_E.any()}


def _over_time(place: Place, one: System, bins: dict[str, np.ndarray]) -> list[Interval]:
    """NDCG@10 of a system in each bin of days."""
    values_E, user_E = per_event(place.results, one, FILTERED, NDCG), place.results.units(OVERALL)
    return [bootstrap_interval(values_E[mask_E], user_E[mask_E]) for mask_E in bins.values()]


def _first_day(name: str) -> int:
    """11 of `days 11-20`, 51 of `days from 51 on`."""
    return int(name.removeprefix(DAYS).removeprefix("from ").replace("-", " ").split()[0])


def weights_section(measured: Sequence[Place]) -> Section | None:
    """The weights that were fitted, and what validation chose."""
    rows = []
    for place in measured:
        for each in place.results.rows():
            added = (each.info.chosen or {}).get("added") or {}
            is_repeated = each.row.ablation == WEEKLY or each.row.addition.endswith("_frozen")
            if TAKERS in added and not is_repeated:
                weights = [f"{weight:.3f}" for weight in (*added[TAKERS], added[STORED_VOTES], added[STATE_VOTES])]
                label = System((each,)).label
                rows.append([place.name, label, str(each.row.seed), added.get("choice", "given"), *weights])
    if not rows:
        return None
    header = ["", "system", "seed", "features", *(f"{days} days" for days in TAKER_DAYS), "stored votes", "state votes"]
    text = (
        "What fresh features add to a score: the weight of each window times log(1 + takers), and either the weight "
        "of stored votes times log(1 + 1000 times the item's share of the votes), or that of state votes times log(1 + "
        "30 times the sum of the item's votes). Frozen and weekly rows have the weights of *takers* "
        "and *fresh*."
    )
    return Section("Weights", [text, Folded("All weights", [Table(header, sorted(rows))])])


def cost_section(folder: Path, measured: Sequence[Place]) -> Section:
    """What fresh features cost in training, in the service and in the daily refresh."""
    lines = [
        f"{place.name}: training {GRASP} with takers, and choosing fresh features, takes {ratio:.3f} times the CPU "
        "seconds of training it without either."
        for place in measured
        if (ratio := place_train_seconds(place))
    ]
    online = read_online(folder)
    elsewhere = {name: (online.get(name), "benchmarks.serving") for name in ONLINE}
    elsewhere[MOMENTS_SHARE] = (moments_job_share(folder), "benchmarks.fresh.moments_job")
    lines += [
        f"`{name}`, which `{module}` measures: {'not measured yet' if value is None else f'{value:.3g}'}."
        for name, (value, module) in elsewhere.items()
    ]
    return Section("Costs", [Bullets(lines)])


def future_section(measured: Sequence[Place]) -> Section | None:
    """Whether features know anything of the day of an event, or of a later one."""
    lines = [
        f"{place.name}: {found['num_planted']:,} events planted over {found['num_days']} days, each on the day of the "
        f"events that are asked or after it. Of {found['num_values']:,} values that are known of "
        f"{found['num_events']:,} training, validation and test events {found['num_different']:,} changed. Asked a few "
        f"days later, {found['num_different_later']:,} did."
        for place in measured
        for found in place.measurements.of(FUTURE_FACTS)
    ]
    return Section("Future facts", [Bullets(lines), TESTS]) if lines else None


REPORT = Writer(MODULE, build)

if __name__ == "__main__":
    REPORT.main()
