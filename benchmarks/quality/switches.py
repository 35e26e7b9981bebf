"""The report's sections on GRASP's own switches: ablations, activation and normalisation, number of neighbours.

Each takes the store and its systems and returns lines of Markdown, none when no row of it is finished.
"""

from collections.abc import Sequence

import numpy as np

from benchmarks.core import plots
from benchmarks.core.markdown import span, table
from benchmarks.quality.cells import cell, difference
from benchmarks.quality.comparison import FILTERED, GRASP, HR, NDCG, System, compare, find, per_event
from benchmarks.quality.results import Results
from benchmarks.quality.rows import SAMPLED
from training.evaluation.evaluate import Interval, interval

# GRASP as it comes: where a table varies one of these, its row at this value is the one of the main table.
OWN = {"k": "10", "activation": "sigmoid", "normalise": "mean", "bias": "-log L"}
AS_IT_IS = "as it is"


def ablation_section(results: Results, among: Sequence[System]) -> list[str]:
    """Each switch's effect; the 2x2 and k have tables of their own."""
    switched = [one for one in among if one.row.ablation and not one.row.corruption and not _settings(one)]
    pairs = [(one, find(among, one.row.model, one.row.addition)) for one in switched]
    rows = [_ablation_row(results, one, own) for one, own in pairs if own]
    if not rows:
        return []
    header = "model, switch, seeds, filtered NDCG@10, relative, difference, HR@10, tail items, sampled NDCG@10"
    return [
        "## Ablations",
        "",
        "One switch turned at a time, against the same model with none turned. A difference below 0: it is worse so. "
        f"The last three columns are differences too, tail items in filtered NDCG@10. {_seeds_differ(among)}",
        "",
        *table(header.split(", "), rows),
    ]


def _seeds_differ(among: Sequence[System]) -> str:
    """What a difference has to exceed to be one of a switch: intervals are over users and know nothing of seeds."""
    grasp = find(among, GRASP)
    deviation = grasp.deviation(FILTERED, NDCG) if grasp else None
    if deviation is None:
        return ""
    return (
        f"Intervals are over users; the seeds of {GRASP} itself have a standard deviation of {deviation:.4f}, so that "
        "one seed's difference of less than twice that says nothing of the switch."
    )


def _ablation_row(results: Results, one: System, own: System) -> list[str]:
    found = compare(results, one, own, FILTERED)
    others = [
        compare(results, one, own, FILTERED, metric=HR),
        compare(results, one, own, FILTERED, group="tail items"),
        compare(results, one, own, SAMPLED),
    ]
    return [
        own.label,
        one.row.ablation,
        str(len(one.rows)),
        cell(one, FILTERED, NDCG),
        f"{100 * (found.ratio.mean - 1):+.1f} %",
        *(difference(each) for each in (found, *others)),
    ]


def activation_section(results: Results, among: Sequence[System]) -> list[str]:
    """Sigmoid or softmax, summed or divided by the length: is it the activation or the scale that counts?

    Sigmoid has two rows, by its bias; softmax ignores a bias.
    """
    grasp = find(among, GRASP)
    found = [(one, _settings(one)) for one in among if one.row.model == GRASP and not one.row.corruption]
    chosen = [(OWN | settings, one) for one, settings in found if settings and "k" not in settings]
    if not chosen or grasp is None:
        return []
    cells = {(_activation(OWN), OWN["normalise"]): grasp}
    cells |= {(_activation(settings), settings["normalise"]): one for settings, one in chosen}
    activations, scales = (sorted({key[place] for key in cells}) for place in (0, 1))
    rows = [
        [activation, *(_activation_cell(results, cells.get((activation, scale)), grasp) for scale in scales)]
        for activation in activations
    ]
    return [
        "## Activation and normalisation",
        "",
        f"Filtered NDCG@10 of {GRASP} with the activation of its attention and the normalisation of the activated "
        "values exchanged, and the difference to the model as it is; sigmoid also without its bias of minus the "
        "logarithm of the longest history. Below the table sigmoid against softmax at one normalisation. How large "
        "the activated values come out is told by the attention mass further down: only cells of like mass are at "
        f"one scale. {_seeds_differ(among)}",
        "",
        *table(["", *scales], rows),
        *_activations_compared(results, cells),
        "",
    ]


def _activation(settings: dict[str, str]) -> str:
    """The row of a cell."""
    if settings["activation"] == "softmax":
        return "softmax"
    return f"sigmoid, bias {settings['bias']}"


def _activation_cell(results: Results, one: System | None, grasp: System) -> str:
    if one is None:
        return "–"
    against = AS_IT_IS if one is grasp else difference(compare(results, one, grasp, FILTERED))
    return f"{cell(one, FILTERED, NDCG)}; {against}"


def _activations_compared(results: Results, cells: dict[tuple[str, str], System]) -> list[str]:
    lines = []
    for scale in sorted({scale for _, scale in cells}):
        softmax = cells.get(("softmax", scale))
        for activation in sorted({activation for activation, _ in cells if activation != "softmax"}):
            sigmoid = cells.get((activation, scale))
            if sigmoid and softmax:
                found = difference(compare(results, sigmoid, softmax, FILTERED))
                lines.append(f"- {activation} minus softmax, {scale}: {found}")
    return lines


def neighbours_section(results: Results, among: Sequence[System]) -> list[str]:
    """How many neighbours are enough."""
    grasp = find(among, GRASP)
    varied = [
        one for one in among if one.row.model == GRASP and not one.row.corruption and _settings(one).keys() == {"k"}
    ]
    if not varied or grasp is None:
        return []
    by_k = dict(sorted(({int(OWN["k"]): grasp} | {int(_settings(one)["k"]): one for one in varied}).items()))
    found = {k: _value(results, one) for k, one in by_k.items()}
    plots.curves(results.folder / "k.svg", [plots.Line(GRASP, "grasp", found)], "neighbours k", "filtered NDCG@10")
    rows = [
        [
            str(k),
            str(len(one.rows)),
            span(found[k]),
            AS_IT_IS if one is grasp else difference(compare(results, one, grasp, FILTERED)),
        ]
        for k, one in by_k.items()
    ]
    return [
        "## Number of neighbours",
        "",
        f"Filtered NDCG@10 of {GRASP} with the mean of k neighbours. The paired difference to the model as it is says "
        f"more than the intervals of the values, in which easy and hard users differ. {_seeds_differ(among)}",
        "",
        *table(["k", "seeds", "filtered NDCG@10", "difference"], rows),
        "![k](k.svg)",
        "",
    ]


def _value(results: Results, one: System) -> Interval:
    values = per_event(results, one, FILTERED, NDCG)
    return interval(values, np.arange(len(values)))


def _settings(one: System) -> dict[str, str]:
    """`activation=softmax,normalise=sum` as a mapping; empty for any switch that is not in `OWN`."""
    settings = dict(part.split("=", 1) for part in one.row.ablation.split(",") if "=" in part)
    return settings if settings.keys() <= OWN.keys() else {}
