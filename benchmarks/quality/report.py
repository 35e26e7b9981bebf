"""Write what the finished rows of a folder say: tables, plots and the figures with a goal.

    python -m benchmarks.quality.report DIR

Reads:   the store of `benchmarks/quality/results.py` in DIR
Writes:  report.md, its plots (*.svg) and summary.json in DIR

A section without rows is left out; running it again on the same rows writes the same files.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.core import machine, plots
from benchmarks.core.invocation import write_again
from benchmarks.core.markdown import first_named, folded, goals, table
from benchmarks.core.summary import Figure, write_summary
from benchmarks.quality.cells import cell
from benchmarks.quality.comparison import (
    FILTERED,
    GROUPS,
    NDCG,
    OVERALL,
    UNFILTERED,
    System,
    figures,
    find,
    like_for_like,
    systems,
)
from benchmarks.quality.results import RESULTS_FILE, Results
from benchmarks.quality.rivals import attention_section, backbone_section, corruption_section, rival_section
from benchmarks.quality.rows import SAMPLED
from benchmarks.quality.switches import ablation_section, activation_section, neighbours_section
from training.evaluation.evaluate import CUTOFFS
from training.evaluation.negatives import NUM_NEGATIVES

REPORT_FILE = "report.md"
FIGURES_OF = "beauty"  # the data set for which figures have goals

Section = Callable[[Results, Sequence[System]], list[str]]


def write(folder: Path) -> None:
    """Write report, plots and summary. Raises `FileNotFoundError` when nothing is finished in the folder."""
    results = Results(folder)
    if not results.rows():
        raise FileNotFoundError(f"no finished row in {folder / RESULTS_FILE}: run python -m benchmarks.quality first")
    among, about = systems(results), results.about()
    found = figures(results) if about and about.data == FIGURES_OF else {}
    lines = [*head(results), *goal_section(found, among)]
    lines += [line for section in SECTIONS for line in section(results, among)]
    (folder / REPORT_FILE).write_text("\n".join(lines).rstrip() + "\n")
    write_summary(
        folder,
        about.command if about else f"python -m benchmarks.quality.report {folder.name}",
        found,
        measured_on=about.machine if about else None,
        measured_at=results.commits(),
    )


def head(results: Results) -> list[str]:
    """What was measured, on what, how, and how much of it is still missing."""
    about = results.about()
    lines = [f"# Quality on {about.data if about else results.folder.name}", ""]
    if about:
        lines += [
            f"- Data: {about.num_users:,} users, {about.num_items:,} items, {about.num_interactions:,} interactions; "
            f"{about.num_events:,} test events.",
            f"- Machine: {machine.describe(about.machine)}.",
            f"- Command: `{about.command}`",
            f"- Rows: {_progress(results, about.wanted)}.",
        ]
    num_draws = sum(name.startswith(SAMPLED) for name in results.rows()[0].metrics)
    return [
        *lines,
        f"- Source: commit {results.commits()}.",
        *_limits(results),
        *_cut_short(results),
        "- Protocol: leave-one-out, one test event per user. *Filtered*: full ranking without the user's history; "
        f"*unfiltered*: full ranking of everything; *sampled*: the target among {NUM_NEGATIVES} items drawn once for "
        f"all rows, mean of {num_draws} draws. Ties count at their expected value.",
        "- Intervals: 95 %, paired bootstrap by user, each user's values averaged over a system's seeds first. They "
        "say how far users, not seeds, could have come out differently; ± is the standard deviation over seeds.",
        "",
    ]


def _progress(results: Results, wanted: Sequence[str]) -> str:
    missing = [row_id for row_id in wanted if not results.finished(row_id)]
    named = first_named(missing)
    return f"{len(results.rows())} finished, {len(missing)} of {len(wanted)} wanted ones missing{named}"


def _limits(results: Results) -> list[str]:
    """What every training was allowed; a line per allowance, so that an unequal one shows."""
    allowed: dict[str, list[str]] = {}
    for each in results.rows():
        if each.row.backbone and each.row.addition == "none":
            minutes = each.info.time_limit_seconds
            terms = (
                f"{f'{minutes / 60:g} minutes' if minutes else 'no time limit'}, patience {each.info.patience}, "
                f"{each.info.num_validation_users} validation users, {each.info.num_trials} trials on validation"
            )
            allowed.setdefault(terms, []).append(f"`{each.row.row_id}`")
    if len(allowed) == 1:
        return [f"- Allowed to every trained row: {next(iter(allowed))}."]
    return [f"- Allowed to {len(rows)} trained rows ({rows[0]}, ...): {terms}." for terms, rows in allowed.items()]


def _cut_short(results: Results) -> list[str]:
    """Rows that patience did not end: their best epoch may still have been to come."""
    found = [f"`{each.row.row_id}`" for each in results.rows() if each.row.backbone and each.info.is_cut_short]
    return [f"- Ended by a limit, not by patience: {', '.join(found)}."] if found else []


def goal_section(found: Mapping[str, Figure], among: Sequence[System]) -> list[str]:
    """The figures with a goal, and what those that compare unlike things would be like for like."""
    if not found:
        return []
    lines = ["## Figures with a goal", "", *goals(found)]
    alike = [f"- {name}: {text}" for name, text in like_for_like(among).items()]
    if alike:
        lines += [
            "`_over_` figures but the one `_with_kernel` set GRASP as it serves, with its history kernel, against "
            "others as they come, without one. NDCG@10 of GRASP divided by theirs with the same on both sides:",
            "",
            *alike,
            "",
        ]
    return lines


def main_section(results: Results, among: Sequence[System]) -> list[str]:
    """The table of all systems, and the same at other cut-offs and for other groups."""
    main = [one for one in among if one.is_main]
    if not main:
        return []
    lines = [
        "## All systems",
        "",
        "Best NDCG@10 in the full ranking first. Tail and head columns are filtered NDCG@10. Coverage is the share of "
        "the catalogue that is in anyone's first ten; cross-category the share of recommendations from outside the "
        "categories of the user's history. Minutes are CPU minutes of one seed: training, or "
        "scoring where nothing is trained.",
        "",
        *system_table(main, 10, with_cost=True),
        *_below_their_backbone(main),
    ]
    for k in CUTOFFS:
        if k != 10:
            lines += folded(f"The same at k = {k}", system_table(main, k, with_cost=False))
    lines += folded("NDCG@10 by group", group_tables(results, main))
    return lines


def system_table(main: Sequence[System], k: int, with_cost: bool) -> list[str]:
    """One line per system at cut-off k, cost and breadth with it when asked for."""
    ndcg, hr = f"ndcg@{k}", f"hr@{k}"
    columns = [
        (f"{protocol} {name}", protocol, metric, OVERALL)
        for protocol in (FILTERED, UNFILTERED, SAMPLED)
        for name, metric in ((f"NDCG@{k}", ndcg), (f"HR@{k}", hr))
    ]
    columns += [(group, FILTERED, ndcg, group) for group in GROUPS]
    cost = ["coverage", "cross-category", "CPU minutes", "parameters"] if with_cost else []
    rows = [
        [one.label, str(len(one.rows)), *(cell(one, *column[1:]) for column in columns), *(_cost(one) if cost else [])]
        for one in main
    ]
    return table(["model", "seeds", *(column[0] for column in columns), *cost], rows)


def _below_their_backbone(main: Sequence[System]) -> list[str]:
    """An enhancer that is worth less than nothing is a mistake of ours until explained: it is named."""
    pairs = [(one, find(main, one.row.backbone, one.row.addition)) for one in main if one.row.enhancer != "none"]
    below = [one.label for one, alone in pairs if alone and one.mean(FILTERED, NDCG) < alone.mean(FILTERED, NDCG)]
    return [f"Below their own backbone alone: {', '.join(below)}.", ""] if below else []


def group_tables(results: Results, main: Sequence[System]) -> list[str]:
    """NDCG@10 of every group, repeat and non-repeat among them, in the full and in the sampled ranking."""
    sizes = {group: int(mask.sum()) for group, mask in results.groups().items() if mask.any()}
    lines = []
    for protocol in (FILTERED, SAMPLED):
        rows = [[one.label, *(cell(one, protocol, NDCG, group) for group in sizes)] for one in main]
        lines += table([protocol, *(f"{group} ({size:,})" for group, size in sizes.items())], rows)
    return lines


def plot_section(results: Results, among: Sequence[System]) -> list[str]:
    """Quality against cost, and tail against head."""
    main = [one for one in among if one.is_main]
    if not main:
        return []
    cost = [plots.Point(one.label, _family(one), _minutes(one), one.mean(FILTERED, NDCG)) for one in main]
    plots.scatter(results.folder / "quality-cost.svg", cost, "CPU minutes of one seed", "filtered NDCG@10", log_x=True)
    lines = [
        "## Quality against cost",
        "",
        "Filtered NDCG@10 against the CPU minutes that training one seed took, or scoring where nothing is trained.",
        "",
        "![quality against cost](quality-cost.svg)",
        "",
    ]
    groups = results.groups()
    if groups["head items"].any() and groups["tail items"].any():
        sides = [
            plots.Point(
                one.label, _family(one), *(one.mean(FILTERED, NDCG, group) for group in ("head items", "tail items"))
            )
            for one in main
        ]
        plots.scatter(
            results.folder / "tail-head.svg", sides, "filtered NDCG@10, head items", "filtered NDCG@10, tail items"
        )
        lines += [
            "## Tail against head",
            "",
            "Filtered NDCG@10 on tail items against that on head items: up and to the right is better.",
            "",
            "![tail against head](tail-head.svg)",
            "",
        ]
    return lines


SECTIONS: tuple[Section, ...] = (
    main_section,
    rival_section,
    plot_section,
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


def main() -> None:
    write_again("benchmarks.quality.report", write, RESULTS_FILE, REPORT_FILE)


if __name__ == "__main__":
    main()
