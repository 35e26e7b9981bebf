"""Compare systems: means over seeds, paired intervals over users, and the figures with a goal."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.core.report import with_interval
from benchmarks.core.summary import Figure, Goal
from benchmarks.quality.results import Results
from benchmarks.quality.rows import (
    COLD_ITEMS,
    COLD_USERS,
    FILTERED,
    KNOWN_USERS,
    OVERALL,
    SAMPLED,
    FinishedRow,
    Row,
)
from training.evaluation.metrics import Interval, bootstrap_interval

NDCG, HR = "ndcg@10", "hr@10"
GROUPS = ("tail items", "tail users", "head items", "head users")
GROUPS_BY_TIME = (KNOWN_USERS, COLD_USERS, COLD_ITEMS)
GRASP = "sasrec_grasp"
KERNEL = "kernel"  # GRASP serves with this addition, and every rival is shown with it too
LLM_ESR = "sasrec_llm_esr"


@dataclass(frozen=True)
class System:
    """One line of a table: the finished rows of all its seeds."""

    rows: tuple[FinishedRow, ...]

    @property
    def row(self) -> Row:
        return self.rows[0].row

    @property
    def label(self) -> str:
        addition = self.row.addition.replace("_", "-")
        name = f"{self.row.model}, {self.row.ablation}" if self.row.ablation else self.row.model
        return name if addition == "none" else f"{name} + {addition}"

    @property
    def is_main(self) -> bool:
        """Nothing corrupted, no switch turned."""
        return not self.row.corruption and not self.row.ablation

    @property
    def is_rival(self) -> bool:
        """Trained on clean data, and not GRASP. A rival trained with a switch of GRASP's is one too."""
        return not self.row.corruption and bool(self.row.backbone) and self.row.enhancer != "grasp"

    def values(self, ranking: str, metric: str, group: str = OVERALL) -> list[float]:
        return [each.value(ranking, metric, group) for each in self.rows]

    def mean(self, ranking: str, metric: str, group: str = OVERALL) -> float:
        return float(np.mean(self.values(ranking, metric, group)))

    def deviation(self, ranking: str, metric: str, group: str = OVERALL) -> float | None:
        """Standard deviation over seeds; None for a single seed."""
        found = self.values(ranking, metric, group)
        return float(np.std(found, ddof=1)) if len(found) > 1 else None

    def cell(self, ranking: str, metric: str, group: str = OVERALL) -> str:
        """Mean over seeds as a table shows it, with the standard deviation of several seeds."""
        mean, deviation = self.mean(ranking, metric, group), self.deviation(ranking, metric, group)
        if np.isnan(mean):
            return "–"
        return f"{mean:.4f}" if deviation is None else f"{mean:.4f} ± {deviation:.4f}"


@dataclass(frozen=True)
class Comparison:
    """`difference` is own minus rival. Each event is averaged over a system's seeds before users are resampled."""

    difference: Interval
    rival_mean: float

    @property
    def ratio(self) -> Interval:
        """Own over rival. The interval is that of the difference, rescaled: the rival's mean counts as known."""
        found = (self.difference.mean, self.difference.low, self.difference.high)
        if not self.rival_mean:
            return Interval(math.nan, math.nan, math.nan)
        return Interval(*(1 + each / self.rival_mean for each in found))

    @property
    def verdict(self) -> str:
        if self.difference.low > 0:
            return "better"
        return "worse" if self.difference.high < 0 else "undecided"

    @property
    def cell(self) -> str:
        return with_interval(self.difference, sign="+")


def systems(results: Results) -> list[System]:
    """The finished rows, grouped over seeds, with the best NDCG@10 in the full ranking first."""
    found: dict[tuple[object, ...], list[FinishedRow]] = {}
    for each in results.rows():
        row = each.row
        found.setdefault((row.model, row.addition, row.corruption, row.ablation), []).append(each)
    return sorted((System(tuple(rows)) for rows in found.values()), key=lambda one: -one.mean(FILTERED, NDCG))


def find(
    among: Sequence[System], model: str, addition: str = "none", *, corruption: float = 0.0, ablation: str = ""
) -> System | None:
    """The system of a model, by default without switches, or None when no row of it is finished."""
    wanted = (model, addition, corruption, ablation)
    return next(
        (one for one in among if (one.row.model, one.row.addition, one.row.corruption, one.row.ablation) == wanted),
        None,
    )


def best_rival(among: Sequence[System], addition: str = "none") -> System | None:
    """The trained system other than GRASP with the highest NDCG@10 in the full ranking.

    Among systems with the kernel, those with STAR instead count too.
    """
    additions = (KERNEL, "star") if addition == KERNEL else (addition,)
    rivals = [one for one in among if one.is_rival and one.row.addition in additions]
    return max(rivals, key=lambda one: one.mean(FILTERED, NDCG), default=None)


def per_event(results: Results, system: System, ranking: str, metric: str, group: str = OVERALL) -> np.ndarray:
    """A metric of each test event of a group, averaged over the system's seeds."""
    values = np.mean([results.per_event(each.row.row_id, ranking, metric) for each in system.rows], axis=0)
    return values[results.groups()[group]]


def compare(
    results: Results, own: System, rival: System, ranking: str, *, metric: str = NDCG, group: str = OVERALL
) -> Comparison:
    """Paired by event; users are resampled, or items where they are the new ones."""
    found = [per_event(results, each, ranking, metric, group) for each in (own, rival)]
    difference = bootstrap_interval(found[0] - found[1], results.units(group))
    return Comparison(difference, float(found[1].mean()) if len(found[1]) else math.nan)


def figures(results: Results) -> dict[str, Figure]:
    """The figures with a goal, which are Beauty's. A figure whose rows are missing has no value.

    Figures named `_over_` are ratios of means over seeds; sampled ones are means over the negative draws. GRASP has its
    history kernel in all of them. `over_best_rival_full` sets it against rivals without a kernel, `_with_kernel_full`
    against rivals with one.
    """
    among = systems(results)
    grasp, llm_esr = find(among, GRASP, KERNEL), find(among, LLM_ESR)
    tried = {
        "sasrec_strong_full_ndcg10": (_mean(find(among, "sasrec"), NDCG), 0.050),
        "grasp_full_ndcg10": (_mean(grasp, NDCG), 0.068),
        "grasp_full_hr10": (_mean(grasp, HR), 0.115),
        "grasp_over_star_full": (_ratio(grasp, find(among, "star"), FILTERED), 1.15),
        "grasp_over_best_rival_full": (_ratio(grasp, best_rival(among), FILTERED), 1.10),
        "grasp_over_best_rival_with_kernel_full": (_ratio(grasp, best_rival(among, KERNEL), FILTERED), 1.05),
        "grasp_over_llmesr_sampled_overall": (_ratio(grasp, llm_esr, SAMPLED), 1.15),
        "grasp_over_llmesr_sampled_tail_users": (_ratio(grasp, llm_esr, SAMPLED, "tail users"), 1.11),
        "grasp_over_llmesr_sampled_tail_items": (_ratio(grasp, llm_esr, SAMPLED, "tail items"), 1.40),
        "grasp_over_llmesr_maxcos_sampled": (_ratio(grasp, find(among, LLM_ESR, "max_cosine"), SAMPLED), 1.08),
        "corruption_100_over_backbone_low": (_corruption_low(results, among), 0.98),
    }
    return {name: Figure(value, Goal(bound, "at least")) for name, (value, bound) in tried.items()}


def like_for_like(among: Sequence[System]) -> dict[str, str]:
    """GRASP's NDCG@10 over a rival's, both without and both with the history kernel, by the comparison's name."""
    asked = [
        ("the best other trained system, full ranking", best_rival, FILTERED, OVERALL),
        ("LLM-ESR, sampled", _llm_esr, SAMPLED, OVERALL),
        ("LLM-ESR, sampled, tail users", _llm_esr, SAMPLED, "tail users"),
        ("LLM-ESR, sampled, tail items", _llm_esr, SAMPLED, "tail items"),
    ]
    found = {}
    for name, rival_of, ranking, group in asked:
        ratios = [
            _ratio(find(among, GRASP, addition), rival_of(among, addition), ranking, group)
            for addition in ("none", KERNEL)
        ]
        shown = [
            f"{ratio:.3f} {sides} kernel" for ratio, sides in zip(ratios, ("without", "with"), strict=True) if ratio
        ]
        if shown:
            found[name] = ", ".join(shown)
    return found


def _llm_esr(among: Sequence[System], addition: str) -> System | None:
    return find(among, LLM_ESR, addition)


def _mean(system: System | None, metric: str) -> float | None:
    return system.mean(FILTERED, metric) if system else None


def _ratio(own: System | None, rival: System | None, ranking: str, group: str = OVERALL) -> float | None:
    if own is None or rival is None or not rival.mean(ranking, NDCG, group):
        return None
    return own.mean(ranking, NDCG, group) / rival.mean(ranking, NDCG, group)


def _corruption_low(results: Results, among: Sequence[System]) -> float | None:
    """Lower end of the interval of GRASP without kernel, on fully corrupted inputs, over its backbone alone."""
    own, backbone = find(among, GRASP, corruption=1.0, ablation="no_kernel"), find(among, "sasrec")
    return compare(results, own, backbone, FILTERED).ratio.low if own and backbone else None
