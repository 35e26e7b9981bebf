"""The report's sections that set GRASP against others: every system, its backbones alone, corrupted knowledge.

Each takes the store and its systems and returns lines of Markdown, none when no row of it is finished.
"""

from collections.abc import Sequence

import numpy as np

from benchmarks.core import plots
from benchmarks.core.markdown import folded, table
from benchmarks.quality.cells import cell, difference, ratio
from benchmarks.quality.comparison import (
    FILTERED,
    GRASP,
    GROUPS,
    KERNEL,
    LLM_ESR,
    NDCG,
    OVERALL,
    Comparison,
    System,
    best_rival,
    compare,
    find,
)
from benchmarks.quality.results import Results
from benchmarks.quality.rows import SAMPLED

BACKBONES = ("sasrec", "gru4rec", "bert4rec")


def rival_section(results: Results, among: Sequence[System]) -> list[str]:
    """GRASP against every other system of the main table, against the chosen ones group by group."""
    grasp = find(among, GRASP, KERNEL)
    rivals = [one for one in among if (one.is_main or one.is_rival) and one is not grasp]
    if grasp is None or not rivals:
        return []
    best, best_with_kernel = best_rival(among), best_rival(among, KERNEL)
    rows = []
    for rival in rivals:
        mark = " (best other trained one, nothing added)" if rival is best else ""
        mark += " (best other trained one with kernel or STAR)" if rival is best_with_kernel else ""
        rows.append([rival.label + mark, *_against(results, grasp, rival, OVERALL)])
    chosen = [best, best_with_kernel, find(among, LLM_ESR), find(among, "star")]
    distinct = list({one.label: one for one in chosen if one}.values())
    columns = ["filtered", "ratio", "sampled", "ratio"]
    return [
        f"## {grasp.label} against every other system",
        "",
        "Its NDCG@10 minus theirs, with the interval, and divided by theirs. An interval that holds 0 decides nothing.",
        "",
        *table(["against", *columns], rows),
        *folded(
            "The same by group",
            table(
                ["against", "group", *columns],
                [
                    [rival.label, group, *_against(results, grasp, rival, group)]
                    for rival in distinct
                    for group in _groups(results)
                ],
            ),
        ),
    ]


def _against(results: Results, own: System, rival: System, group: str) -> list[str]:
    found = [compare(results, own, rival, protocol, group=group) for protocol in (FILTERED, SAMPLED)]
    return [text for each in found for text in (difference(each), f"{each.ratio.mean:.3f}")]


def _groups(results: Results) -> list[str]:
    return [group for group in GROUPS if results.groups()[group].any()]


def backbone_section(results: Results, among: Sequence[System]) -> list[str]:
    """GRASP on each backbone against that backbone alone, group by group."""
    rows = []
    for backbone in BACKBONES:
        for addition in ("none", KERNEL):
            own, alone = find(among, f"{backbone}_grasp", addition), find(among, backbone, addition)
            if own and alone:
                for group in (OVERALL, *_groups(results)):
                    found = compare(results, own, alone, FILTERED, group=group)
                    values = [cell(one, FILTERED, NDCG, group) for one in (alone, own)]
                    rows.append([own.label, group, *values, difference(found), found.verdict])
    if not rows:
        return []
    return [
        "## GRASP on each backbone",
        "",
        "Filtered NDCG@10 of GRASP and of its backbone alone, both without and both with the history kernel. "
        "*Better* and *worse* where the interval leaves out 0.",
        "",
        *table(["model", "group", "alone", "with GRASP", "difference", "GRASP is"], rows),
    ]


def corruption_section(results: Results, among: Sequence[System]) -> list[str]:
    """What false knowledge costs, against the backbone that has none."""
    corrupted = sorted({(one.row.model, one.row.ablation) for one in among if one.row.corruption})
    curves = {model: found for model, ablation in corrupted if (found := _corruption(results, among, model, ablation))}
    if not curves:
        return []
    lines = [
        plots.Line(name, found[0][0].row.enhancer, {one.row.corruption: against.ratio for one, against in found})
        for name, found in curves.items()
    ]
    plots.curves(
        results.folder / "corruption.svg", lines, "share swapped", "filtered NDCG@10 over the backbone alone", level=1.0
    )
    rows = [
        [
            name,
            f"{100 * one.row.corruption:g} %",
            str(len(one.rows)),
            cell(one, FILTERED, NDCG),
            ratio(against),
            against.verdict,
        ]
        for name, found in curves.items()
        for one, against in found
    ]
    return [
        "## Corrupted knowledge",
        "",
        "Descriptions and neighbours of a share of users and items swapped at random before training. The ratio is to "
        "the backbone alone; its interval is that of the paired difference, the backbone's mean taken as known. No "
        "history kernel anywhere, nor in the choice of GRASP's epoch.",
        "",
        *table(["model", "swapped", "seeds", "filtered NDCG@10", "ratio", "than the backbone"], rows),
        "![corruption](corruption.svg)",
        "",
    ]


def _corruption(
    results: Results, among: Sequence[System], model: str, ablation: str
) -> list[tuple[System, Comparison]]:
    """The model at every share, against its backbone alone; nothing while that is not finished."""
    points = [one for one in among if (one.row.model, one.row.addition, one.row.ablation) == (model, "none", ablation)]
    backbone = find(among, points[0].row.backbone) if points else None
    if backbone is None:
        return []
    points.sort(key=lambda one: one.row.corruption)
    return [(one, compare(results, one, backbone, FILTERED)) for one in points]


def attention_section(_: Results, among: Sequence[System]) -> list[str]:
    """Does the attention turn away from what is false?"""
    told = [one for one in among if one.row.addition == "none" and any(each.info.attention_mass for each in one.rows)]
    told.sort(key=lambda one: (one.label, one.row.ablation, one.row.corruption))
    if not told:
        return []
    masses = [[each.info.attention_mass for each in one.rows if each.info.attention_mass] for one in told]
    kinds = list(dict.fromkeys(kind for found in masses for mass in found for kind in mass))
    rows = [
        [
            one.row.model,
            one.row.ablation or "–",
            f"{100 * one.row.corruption:g} %",
            *(_mean([mass[kind] for mass in found if kind in mass]) for kind in kinds),
        ]
        for one, found in zip(told, masses, strict=True)
    ]
    return [
        "## Attention mass",
        "",
        "Mean attention weight of a history item of each kind, over seeds.",
        "",
        *table(["model", "switch", "swapped", *kinds], rows),
    ]


def _mean(values: Sequence[float]) -> str:
    return f"{np.mean(values):.3f}" if values else "–"
