"""Sections of the quality report on GRASP's own switches: ablations, activation and scale, number of neighbours."""

from collections.abc import Sequence
from functools import partial

from benchmarks.core import plots
from benchmarks.core.report import Bullets, Plot, Section, Table, with_interval
from benchmarks.quality.comparison import GRASP, HR, NDCG, System, compare, find, per_event
from benchmarks.quality.results import Results
from benchmarks.quality.rows import FILTERED, OVERALL, SAMPLED
from training.evaluation.metrics import bootstrap_interval

# The recipe's own values: where a table varies one of these, the row of the main table stands at this value.
OWN = {"k": "10", "activation": "sigmoid", "normalise": "mean", "bias": "-log L"}
AS_IT_IS = "as it is"


def ablation_section(results: Results, among: Sequence[System]) -> Section | None:
    """The effect of each switch. Activation and k have tables of their own."""
    switched = [one for one in among if one.row.ablation and not one.row.corruption and not _settings(one)]
    pairs = [(one, find(among, one.row.model, one.row.addition)) for one in switched]
    rows = [_ablation_row(results, one, own) for one, own in pairs if own]
    if not rows:
        return None
    header = "model, switch, seeds, filtered NDCG@10, relative, difference, HR@10, tail items, sampled NDCG@10"
    return Section(
        "Ablations",
        [
            "One switch turned at a time, against the same model with none turned. A difference below 0: it is worse "
            "so. The last three columns are differences too, tail items in filtered NDCG@10. "
            f"{_seeds_differ(among)}",
            Table(header.split(", "), rows),
        ],
    )


def _seeds_differ(among: Sequence[System]) -> str:
    """The size from which a difference can be a switch's: intervals are over users and know nothing of seeds."""
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
    relative = f"{100 * (found.ratio.mean - 1):+.1f} %"
    first = [own.label, one.row.ablation, str(len(one.rows)), one.cell(FILTERED, NDCG), relative]
    return [*first, *(each.cell for each in (found, *others))]


def activation_section(results: Results, among: Sequence[System]) -> Section | None:
    """Sigmoid or softmax, summed or divided by the length: whether the activation counts or the scale.

    Sigmoid has two rows, by its bias; softmax ignores a bias.
    """
    grasp = find(among, GRASP)
    found = [(one, _settings(one)) for one in among if one.row.model == GRASP and not one.row.corruption]
    varied = [(OWN | settings, one) for one, settings in found if settings and "k" not in settings]
    if not varied or grasp is None:
        return None
    systems = {(_activation(OWN), OWN["normalise"]): grasp}
    systems |= {(_activation(settings), settings["normalise"]): one for settings, one in varied}
    activations, scales = (sorted({key[position] for key in systems}) for position in (0, 1))
    rows = [
        [activation, *(_beside(results, systems.get((activation, scale)), grasp) for scale in scales)]
        for activation in activations
    ]
    against_softmax = [
        f"{activation} minus softmax, {scale}: {compare(results, sigmoid, softmax, FILTERED).cell}"
        for scale in scales
        for activation in activations
        if activation != "softmax"
        and (sigmoid := systems.get((activation, scale)))
        and (softmax := systems.get(("softmax", scale)))
    ]
    return Section(
        "Activation and normalisation",
        [
            f"Filtered NDCG@10 of {GRASP} with the activation of its attention and the normalisation of the activated "
            "values exchanged, and the difference to the model as it is; sigmoid also without its bias of minus the "
            "logarithm of the longest history. Below the table sigmoid against softmax at one normalisation. How large "
            "the activated values come out is told by the attention mass further down: only cells of like mass are at "
            f"one scale. {_seeds_differ(among)}",
            Table(["", *scales], rows),
            Bullets(against_softmax),
        ],
    )


def _activation(settings: dict[str, str]) -> str:
    return "softmax" if settings["activation"] == "softmax" else f"sigmoid, bias {settings['bias']}"


def _beside(results: Results, one: System | None, grasp: System) -> str:
    """A system's NDCG@10, and its difference to GRASP as it is."""
    return "–" if one is None else f"{one.cell(FILTERED, NDCG)}; {_difference(results, one, grasp)}"


def _difference(results: Results, one: System, grasp: System) -> str:
    return AS_IT_IS if one is grasp else compare(results, one, grasp, FILTERED).cell


def neighbours_section(results: Results, among: Sequence[System]) -> Section | None:
    """How many neighbours are enough."""
    grasp = find(among, GRASP)
    varied = [
        one for one in among if one.row.model == GRASP and not one.row.corruption and _settings(one).keys() == {"k"}
    ]
    if not varied or grasp is None:
        return None
    by_k = dict(sorted(({int(OWN["k"]): grasp} | {int(_settings(one)["k"]): one for one in varied}).items()))
    values = {k: per_event(results, one, FILTERED, NDCG) for k, one in by_k.items()}
    found = {k: bootstrap_interval(each, results.units(OVERALL)) for k, each in values.items()}
    line = plots.Line(GRASP, "grasp", found)
    rows = [
        [str(k), str(len(one.rows)), with_interval(found[k]), _difference(results, one, grasp)]
        for k, one in by_k.items()
    ]
    return Section(
        "Number of neighbours",
        [
            f"Filtered NDCG@10 of {GRASP} with the mean of k neighbours. The paired difference to the model as it is "
            f"says more than the intervals of the values, in which easy and hard users differ. {_seeds_differ(among)}",
            Table(["k", "seeds", "filtered NDCG@10", "difference"], rows),
            Plot("k.svg", "k", partial(plots.curves, [line], "neighbours k", "filtered NDCG@10")),
        ],
    )


def _settings(one: System) -> dict[str, str]:
    """`activation=softmax,normalise=sum` as a mapping; empty for any switch that is not in `OWN`."""
    settings = dict(part.split("=", 1) for part in one.row.ablation.split(",") if "=" in part)
    return settings if settings.keys() <= OWN.keys() else {}
