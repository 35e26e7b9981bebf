"""Sections of the quality report that set GRASP against others: rivals, its backbones alone, corrupted knowledge."""

from collections.abc import Sequence
from functools import partial

import numpy as np

from benchmarks.core import plots
from benchmarks.core.report import Folded, Plot, Section, Table, with_interval
from benchmarks.quality.comparison import (
    GRASP,
    GROUPS,
    GROUPS_BY_TIME,
    KERNEL,
    LLM_ESR,
    NDCG,
    Comparison,
    System,
    best_rival,
    compare,
    find,
)
from benchmarks.quality.results import Results
from benchmarks.quality.rows import FILTERED, OVERALL, SAMPLED

BACKBONES = ("sasrec", "gru4rec", "bert4rec")


def rival_section(results: Results, among: Sequence[System]) -> Section | None:
    """GRASP against every other system of the main table, and against the strongest ones group by group."""
    grasp = find(among, GRASP, KERNEL)
    rivals = [one for one in among if (one.is_main or one.is_rival) and one is not grasp]
    if grasp is None or not rivals:
        return None
    best, best_with_kernel = best_rival(among), best_rival(among, KERNEL)
    rows = []
    for rival in rivals:
        mark = " (best other trained one, nothing added)" if rival is best else ""
        mark += " (best other trained one with kernel or STAR)" if rival is best_with_kernel else ""
        rows.append([rival.label + mark, *_against(results, grasp, rival, OVERALL)])
    strongest = [best, best_with_kernel, find(among, LLM_ESR), find(among, "star")]
    by_group = [
        [rival.label, group, *_against(results, grasp, rival, group)]
        for rival in {one.label: one for one in strongest if one}.values()
        for group in _groups(results)
    ]
    columns = ["filtered", "ratio", "sampled", "ratio"]
    return Section(
        f"{grasp.label} against every other system",
        [
            "Its NDCG@10 minus theirs, with the interval, and divided by theirs. An interval that holds 0 decides "
            "nothing.",
            Table(["against", *columns], rows),
            Folded("The same by group", [Table(["against", "group", *columns], by_group)]),
        ],
    )


def _against(results: Results, own: System, rival: System, group: str) -> list[str]:
    found = [compare(results, own, rival, ranking, group=group) for ranking in (FILTERED, SAMPLED)]
    return [text for each in found for text in (each.cell, f"{each.ratio.mean:.3f}")]


def _groups(results: Results) -> list[str]:
    found = results.groups()
    return [group for group in (*GROUPS, *GROUPS_BY_TIME) if group in found and found[group].any()]


def backbone_section(results: Results, among: Sequence[System]) -> Section | None:
    """GRASP on each backbone against that backbone alone, group by group."""
    rows = []
    for backbone in BACKBONES:
        for addition in ("none", KERNEL):
            own, alone = find(among, f"{backbone}_grasp", addition), find(among, backbone, addition)
            if own and alone:
                for group in (OVERALL, *_groups(results)):
                    found = compare(results, own, alone, FILTERED, group=group)
                    values = [one.cell(FILTERED, NDCG, group) for one in (alone, own)]
                    rows.append([own.label, group, *values, found.cell, found.verdict])
    if not rows:
        return None
    return Section(
        "GRASP on each backbone",
        [
            "Filtered NDCG@10 of GRASP and of its backbone alone, both without and both with the history kernel. "
            "*Better* and *worse* where the interval leaves out 0.",
            Table(["model", "group", "alone", "with GRASP", "difference", "GRASP is"], rows),
        ],
    )


def corruption_section(results: Results, among: Sequence[System]) -> Section | None:
    """What false knowledge costs, against the backbone that has none."""
    corrupted = sorted({(one.row.model, one.row.ablation) for one in among if one.row.corruption})
    curves = {model: found for model, ablation in corrupted if (found := _corruption(results, among, model, ablation))}
    if not curves:
        return None
    lines = [
        plots.Line(name, found[0][0].row.enhancer, {one.row.corruption: against.ratio for one, against in found})
        for name, found in curves.items()
    ]
    y_label = "filtered NDCG@10 over the backbone alone"
    draw = partial(plots.curves, lines, "share swapped", y_label, level=1.0)
    rows = [
        [
            name,
            f"{100 * one.row.corruption:g} %",
            str(len(one.rows)),
            one.cell(FILTERED, NDCG),
            with_interval(against.ratio, digits=3),
            against.verdict,
        ]
        for name, found in curves.items()
        for one, against in found
    ]
    return Section(
        "Corrupted knowledge",
        [
            "Descriptions and neighbours of a share of users and items swapped at random before training. The ratio is "
            "to the backbone alone; its interval is that of the paired difference, the backbone's mean taken as known. "
            "No history kernel anywhere, nor in the choice of GRASP's epoch.",
            Table(["model", "swapped", "seeds", "filtered NDCG@10", "ratio", "than the backbone"], rows),
            Plot("corruption.svg", "corruption", draw),
        ],
    )


def _corruption(
    results: Results, among: Sequence[System], model: str, ablation: str
) -> list[tuple[System, Comparison]]:
    """The model at every share, against its backbone alone; empty while the backbone is not finished."""
    points = [one for one in among if (one.row.model, one.row.addition, one.row.ablation) == (model, "none", ablation)]
    backbone = find(among, points[0].row.backbone) if points else None
    if backbone is None:
        return []
    points.sort(key=lambda one: one.row.corruption)
    return [(one, compare(results, one, backbone, FILTERED)) for one in points]


def attention_section(_: Results, among: Sequence[System]) -> Section | None:
    """Whether attention turns away from what is false."""
    attending = [one for one in among if one.row.addition == "none" and _masses(one)]
    if not attending:
        return None
    attending.sort(key=lambda one: (one.label, one.row.ablation, one.row.corruption))
    kinds = list(dict.fromkeys(kind for one in attending for mass in _masses(one) for kind in mass))
    rows = [
        [
            one.row.model,
            one.row.ablation or "–",
            f"{100 * one.row.corruption:g} %",
            *(_mean([mass[kind] for mass in _masses(one) if kind in mass]) for kind in kinds),
        ]
        for one in attending
    ]
    return Section(
        "Attention mass",
        [
            "Mean attention weight of a history item of each kind, over seeds.",
            Table(["model", "switch", "swapped", *kinds], rows),
        ],
    )


def _masses(one: System) -> list[dict[str, float]]:
    return [each.info.attention_mass for each in one.rows if each.info.attention_mass]


def _mean(values: Sequence[float]) -> str:
    return f"{np.mean(values):.3f}" if values else "–"
