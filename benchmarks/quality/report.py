"""The report of ranking quality, from the finished rows of a folder.

python -m benchmarks.quality.report DIR
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.core import plots
from benchmarks.core.report import Bullets, Folded, Origin, Part, Plot, Report, Section, Table, Writer, first_named
from benchmarks.core.store import read_about
from benchmarks.data.protocols import Protocol
from benchmarks.quality.against_others import attention_section, backbone_section, corruption_section, rival_section
from benchmarks.quality.comparison import GROUPS, GROUPS_BY_TIME, NDCG, System, figures, find, like_for_like, systems
from benchmarks.quality.results import Results
from benchmarks.quality.rows import DAYS, FILTERED, KNOWN_USERS, OVERALL, SAMPLED, UNFILTERED
from benchmarks.quality.switches import ablation_section, activation_section, neighbours_section
from training.evaluation.metrics import CUTOFFS
from training.evaluation.negatives import NUM_NEGATIVES

MODULE = "benchmarks.quality"
FIGURES_OF = ("beauty", "published")  # the data set and protocol whose figures have goals
PROTOCOLS: dict[Protocol, str] = {
    "published": "leave-one-out in the order of the file, one test event per user",
    "shuffled-ties": "leave-one-out, a user's events of equal time in an order drawn once for all rows, one test event "
    "per user",
    "global-time": "chosen on the days between 80 % and 90 % of all events, made anew from all that was known at 90 %, "
    "tested on all events of each user's first day after that; histories end before that day",
}


def build(folder: Path, command: str) -> Report:
    results = Results(folder)
    if not results.rows():
        raise FileNotFoundError(f"no finished row in {results.file}: run python -m {MODULE} first")
    among, about = systems(results), read_about(folder)
    found = figures(results) if (about["data"], results.protocol) == FIGURES_OF else {}
    return Report(
        f"Quality on {about['data']}, {results.protocol}",
        Origin(about["machine"], about["command"] or command, results.commits()),
        facts=facts(results, about),
        figures=found,
        notes=notes(among) if found else [],
        sections=[section(results, among) for section in SECTIONS],
    )


def facts(results: Results, about: Mapping[str, Any]) -> list[str]:
    """What was measured and how, and how much of it is missing."""
    rows, wanted = results.rows(), about["wanted"]
    missing = [row_id for row_id in wanted if not results.finished(row_id)]
    num_draws = sum(name.startswith(SAMPLED) for name in rows[0].metrics)
    cut_short = [f"`{each.row.row_id}`" for each in rows if each.row.backbone and each.info.is_cut_short]
    return [
        f"Protocol: {results.protocol}, {PROTOCOLS[results.protocol]}.",
        "Data: {num_users:,} users, {num_items:,} items, {num_interactions:,} interactions; {num_events:,} test "
        "events.".format(**about),
        f"Rows: {len(rows)} finished, {len(missing)} of {len(wanted)} wanted ones missing{first_named(missing)}.",
        *_limits(results),
        *([f"Ended by a limit, not by patience: {', '.join(cut_short)}."] if cut_short else []),
        "*Filtered*: full ranking without the user's history; "
        f"*unfiltered*: full ranking of everything; *sampled*: the target among {NUM_NEGATIVES} items drawn once for "
        f"all rows, mean of {num_draws} draws. Ties count at their expected value.",
        "Intervals: 95 %, paired bootstrap by user, each user's values averaged over a system's seeds first. They say "
        "how far users, not seeds, could have come out differently; ± is the standard deviation over seeds."
        f"{' For cold items, items are resampled.' * (results.protocol == 'global-time')}",
    ]


def _limits(results: Results) -> list[str]:
    """What every training was allowed. Unequal allowances have a line each, so that they show."""
    allowed: dict[str, list[str]] = {}
    for each in results.rows():
        if each.row.backbone and each.row.addition == "none":
            seconds = each.info.time_limit_seconds
            terms = (
                f"{f'{seconds / 60:g} minutes' if seconds else 'no time limit'}, patience {each.info.patience}, "
                f"{each.info.num_validation_users} validation users, {each.info.num_trials} trials on validation"
            )
            allowed.setdefault(terms, []).append(f"`{each.row.row_id}`")
    if len(allowed) == 1:
        return [f"Allowed to every trained row: {next(iter(allowed))}."]
    return [f"Allowed to {len(rows)} trained rows ({rows[0]}, ...): {terms}." for terms, rows in allowed.items()]


def notes(among: Sequence[System]) -> list[Part]:
    """What the figures that compare unlike systems would be like for like."""
    alike = [f"{name}: {ratios}" for name, ratios in like_for_like(among).items()]
    return (
        [
            "`_over_` figures but the one `_with_kernel` set GRASP as it serves, with its history kernel, against "
            "others as they come, without one. NDCG@10 of GRASP divided by theirs with the same on both sides:",
            Bullets(alike),
        ]
        if alike
        else []
    )


def main_section(results: Results, among: Sequence[System]) -> Section | None:
    """The table of all systems, and the same at other cut-offs and for other groups."""
    main = [one for one in among if one.is_main]
    if not main:
        return None
    pairs = [(one, find(main, one.row.backbone, one.row.addition)) for one in main if one.row.enhancer != "none"]
    # An enhancer that is worth less than nothing is a mistake of ours until it is explained: it is named.
    below = [one.label for one, alone in pairs if alone and one.mean(FILTERED, NDCG) < alone.mean(FILTERED, NDCG)]
    return Section(
        "All systems",
        [
            "Best NDCG@10 in the full ranking first. Tail and head columns are filtered NDCG@10. Coverage is the share "
            "of the catalogue that is in anyone's first ten; cross-category the share of recommendations from outside "
            "the categories of the user's history. Minutes are CPU minutes of one seed: training, or scoring where "
            "nothing is trained.",
            system_table(main, 10, with_cost=True),
            *([f"Below their own backbone alone: {', '.join(below)}."] if below else []),
            *(Folded(f"The same at k = {k}", [system_table(main, k)]) for k in CUTOFFS if k != 10),
            Folded("NDCG@10 by group", group_tables(results, main)),
        ],
    )


def system_table(main: Sequence[System], k: int, with_cost: bool = False) -> Table:
    """One line per system at cut-off k."""
    columns = [
        (f"{ranking} {name}@{k}", ranking, f"{name.lower()}@{k}", OVERALL)
        for ranking in (FILTERED, UNFILTERED, SAMPLED)
        for name in ("NDCG", "HR")
    ]
    columns += [(group, FILTERED, f"ndcg@{k}", group) for group in GROUPS]
    cost = ["coverage", "cross-category", "CPU minutes", "parameters"] if with_cost else []
    rows = [
        [one.label, str(len(one.rows)), *(one.cell(*column[1:]) for column in columns), *(_cost(one) if cost else [])]
        for one in main
    ]
    return Table(["model", "seeds", *(column[0] for column in columns), *cost], rows)


def group_tables(results: Results, main: Sequence[System]) -> list[Part]:
    """NDCG@10 of every group, repeat and non-repeat among them, in the full and in the sampled ranking."""
    sizes = {group: int(mask.sum()) for group, mask in results.groups().items() if mask.any()}
    return [
        Table(
            [ranking, *(f"{group} ({size:,})" for group, size in sizes.items())],
            [[one.label, *(one.cell(ranking, NDCG, group) for group in sizes)] for one in main],
        )
        for ranking in (FILTERED, SAMPLED)
    ]


def time_section(results: Results, among: Sequence[System]) -> Section | None:
    """How fast all systems grow old, and what they know of those who are new."""
    main, groups = [one for one in among if one.is_main], results.groups()
    sizes = {
        group: int(groups[group].sum())
        for group in (OVERALL, *GROUPS_BY_TIME, *(name for name in groups if name.startswith(DAYS)))
        if group in groups and groups[group].any()
    }
    if not main or KNOWN_USERS not in sizes:
        return None
    return Section(
        "By days since the cut",
        [
            "Filtered NDCG@10; events in brackets. Cold users and items were first seen after the cut. Of the users "
            "nothing is known, so every system answers what is popular; the items are scored by their texts, as newer "
            "items are in serving. Nothing is refreshed after the cut.",
            Table(
                ["model", *(f"{group} ({size:,})" for group, size in sizes.items())],
                [[one.label, *(one.cell(FILTERED, NDCG, group) for group in sizes)] for one in main],
            ),
        ],
    )


def cost_section(_: Results, among: Sequence[System]) -> Section | None:
    main = [one for one in among if one.is_main]
    if not main:
        return None
    points = [plots.Point(one.label, _family(one), _minutes(one), one.mean(FILTERED, NDCG)) for one in main]
    draw = partial(plots.scatter, points, "CPU minutes of one seed", "filtered NDCG@10", log_x=True)
    return Section(
        "Quality against cost",
        [
            "Filtered NDCG@10 against the CPU minutes that training one seed took, or scoring where nothing is "
            "trained.",
            Plot("quality-cost.svg", "quality against cost", draw),
        ],
    )


def tail_section(results: Results, among: Sequence[System]) -> Section | None:
    main, groups, sides = [one for one in among if one.is_main], results.groups(), ("head items", "tail items")
    if not main or not all(groups[side].any() for side in sides):
        return None
    points = [plots.Point(one.label, _family(one), *(one.mean(FILTERED, NDCG, side) for side in sides)) for one in main]
    x_label, y_label = (f"filtered NDCG@10, {side}" for side in sides)
    return Section(
        "Tail against head",
        [
            "Filtered NDCG@10 on tail items against that on head items: up and to the right is better.",
            Plot("tail-head.svg", "tail against head", partial(plots.scatter, points, x_label, y_label)),
        ],
    )


SECTIONS: tuple[Callable[[Results, Sequence[System]], Section | None], ...] = (
    main_section,
    rival_section,
    time_section,
    cost_section,
    tail_section,
    backbone_section,
    ablation_section,
    activation_section,
    neighbours_section,
    corruption_section,
    attention_section,
)


def _family(one: System) -> str:
    return one.row.enhancer if one.row.backbone else "control"


def _minutes(one: System) -> float:
    return float(np.mean([each.info.cpu_seconds for each in one.rows])) / 60


def _cost(one: System) -> list[str]:
    shares = [each.info.cross_category_share_at_10 for each in one.rows]
    known = [share for share in shares if share is not None]
    return [
        f"{100 * np.mean([each.info.coverage_at_10 for each in one.rows]):.1f} %",
        f"{100 * np.mean(known):.1f} %" if known else "–",
        f"{_minutes(one):.1f}",
        f"{one.rows[0].info.num_parameters:,}",
    ]


REPORT = Writer(MODULE, build)

if __name__ == "__main__":
    REPORT.main()
