"""The figures of fresh features, from the rows and measurements below one folder.

Gains are ratios of full filtered NDCG@10, of the same events and seeds on both sides. By global time they are those of
users known at the cut: new users are answered with what is popular, whatever the ranker.

Shape suffixes:  E test events
"""

# ruff: noqa: N803 - names carry the shape suffixes above

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.core.store import Measurements, read_about
from benchmarks.core.summary import Figure, Goal
from benchmarks.fresh.entries import AS_GRASP, AS_GRASP_UNTAUGHT, BEST_WIDTH, IDS, LLM_INIT, UNTAUGHT, WEEKLY
from benchmarks.fresh.moments_job import KIND as MOMENTS_JOB
from benchmarks.fresh.moments_job import share_of_moments
from benchmarks.quality.comparison import GRASP, NDCG, Comparison, System, find, per_event, systems
from benchmarks.quality.results import RESULTS_FILE, Results
from benchmarks.quality.rows import FILTERED, KNOWN_USERS, OVERALL, Addition
from training.evaluation.metrics import Interval, bootstrap_interval

FUTURE_FACTS = "future_facts"  # a kind of measurements
MOMENTS_SHARE = "moments_job_share"
ONLINE = ("added_online_p50_ms", "online_moment_search_ms")  # figures of `benchmarks.serving`
LEAST_KEPT = Goal(0.99)  # where fresh features say nothing, nothing is lost


@dataclass(frozen=True)
class Name:
    """A system of a place."""

    model: str
    addition: Addition
    ablation: str = ""


def grasp(addition: Addition, ablation: str = "") -> Name:
    return Name(GRASP, addition, ablation)


def without_fresh(model: str) -> Name:
    """A system without fresh features: neither trained nor scored with takers."""
    return Name(model, "kernel", UNTAUGHT if model == GRASP else AS_GRASP_UNTAUGHT)


@dataclass(frozen=True)
class Gain:
    """NDCG@10 of one system over another one's."""

    place: str
    own: Name
    rival: Name
    goal: Goal | None = None
    is_low_end: bool = False  # of the interval, instead of the mean


AS_PUBLISHED = Name(LLM_INIT, "none")  # or with the best width, where that was tried
BY_TIME, SHUFFLED, PUBLISHED = "beauty-global-time", "beauty-shuffled-ties", "beauty-published"
MOVIELENS_BY_TIME, MOVIELENS_SHUFFLED = "movielens-global-time", "movielens-shuffled-ties"
WITHOUT, CHOSEN = without_fresh(GRASP), grasp("fresh_chosen")
GAINS: dict[str, Gain] = {
    "time_gain": Gain(BY_TIME, grasp("takers"), WITHOUT, Goal(1.30)),
    "time_gain_frozen": Gain(BY_TIME, grasp("takers_frozen"), WITHOUT, Goal(1.20)),
    "moments_gain": Gain(BY_TIME, grasp("fresh"), grasp("takers"), Goal(1.08)),
    "moments_gain_low": Gain(BY_TIME, grasp("fresh"), grasp("takers"), Goal(1.0), is_low_end=True),
    "stored_votes_gain": Gain(BY_TIME, grasp("stored"), grasp("takers")),
    "moments_true_over_permuted_text": Gain(BY_TIME, grasp("stored"), grasp("stored_permuted")),
    "recipe_over_llm_init_published": Gain(BY_TIME, grasp("fresh"), AS_PUBLISHED, Goal(1.45)),
    "recipe_over_llm_init_published_leave_one_out": Gain(PUBLISHED, grasp("fresh"), AS_PUBLISHED),
    "ids_time_gain": Gain(BY_TIME, Name(IDS, "takers", AS_GRASP), without_fresh(IDS)),
    "llm_init_time_gain": Gain(BY_TIME, Name(LLM_INIT, "takers", AS_GRASP), without_fresh(LLM_INIT)),
    "time_gain_shuffled": Gain(SHUFFLED, grasp("takers"), WITHOUT, LEAST_KEPT),
    "moments_gain_shuffled": Gain(SHUFFLED, grasp("fresh"), grasp("takers"), LEAST_KEPT),
    "chosen_gain_shuffled": Gain(SHUFFLED, grasp("fresh_chosen"), WITHOUT, LEAST_KEPT),
    "movielens_time_gain": Gain(MOVIELENS_BY_TIME, grasp("takers"), WITHOUT, LEAST_KEPT),
    "movielens_moments_gain": Gain(MOVIELENS_BY_TIME, grasp("fresh"), grasp("takers"), LEAST_KEPT),
    "movielens_chosen_gain": Gain(MOVIELENS_BY_TIME, grasp("fresh_chosen"), WITHOUT, LEAST_KEPT),
    "movielens_time_gain_shuffled": Gain(MOVIELENS_SHUFFLED, grasp("takers"), WITHOUT, LEAST_KEPT),
    "movielens_moments_gain_shuffled": Gain(MOVIELENS_SHUFFLED, grasp("fresh"), grasp("takers"), LEAST_KEPT),
    "movielens_chosen_gain_shuffled": Gain(MOVIELENS_SHUFFLED, grasp("fresh_chosen"), WITHOUT, LEAST_KEPT),
    "weekly_retraining_gain": Gain(BY_TIME, grasp("fresh", WEEKLY), grasp("fresh")),
}


@dataclass(frozen=True)
class Place:
    """The rows and measurements of one data set and protocol."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @cached_property
    def results(self) -> Results:
        return Results(self.folder)

    @cached_property
    def systems(self) -> list[System]:
        return systems(self.results)

    @cached_property
    def about(self) -> dict[str, Any]:
        return read_about(self.folder)

    @cached_property
    def measurements(self) -> Measurements:
        return Measurements(self.folder)

    @property
    def group(self) -> str:
        """The events of gains."""
        return KNOWN_USERS if KNOWN_USERS in self.results.groups() else OVERALL

    def find(self, name: Name) -> System | None:
        if name == AS_PUBLISHED:
            best = find(self.systems, LLM_INIT, ablation=BEST_WIDTH)
            if best:
                return best
        return find(self.systems, name.model, name.addition, ablation=name.ablation)

    def ratio(self, own: Name, rival: Name, mask_E: np.ndarray | None = None) -> Interval | None:
        """NDCG@10 of one system over another's, over the seeds that both have.

        None when they have no seed in common, or the rival hits nothing. `mask_E` chooses other events than `group`.
        """
        found = [self.find(name) for name in (own, rival)]
        seeds = set.intersection(*({each.row.seed for each in one.rows} if one else set() for one in found))
        sides = [System(tuple(each for each in one.rows if each.row.seed in seeds)) for one in found if one and seeds]
        if not sides:
            return None
        mask_E = self.results.groups()[self.group] if mask_E is None else mask_E
        own_E, rival_E = (per_event(self.results, one, FILTERED, NDCG)[mask_E] for one in sides)
        difference = bootstrap_interval(own_E - rival_E, self.results.units(OVERALL)[mask_E])
        ratio = Comparison(difference, float(rival_E.mean())).ratio
        return ratio if math.isfinite(ratio.mean) else None


def places(folder: Path) -> list[Place]:
    """What was measured below a folder, in the order of names."""
    found = [Place(file.parent) for file in sorted(folder.glob(f"*/{RESULTS_FILE}"))]
    return [place for place in found if place.results.rows()]


def figures(folder: Path, measured: Sequence[Place]) -> dict[str, Figure]:
    """All figures. One whose rows or measurements are missing has no value."""
    by_name = {place.name: place for place in measured}
    found = {
        name: Figure(_gain(by_name[gain.place], gain) if gain.place in by_name else None, gain.goal)
        for name, gain in GAINS.items()
    }
    online = read_online(folder)
    return found | {
        "train_seconds_over_today": Figure(train_seconds_ratio(measured), Goal(1.5, "at most")),
        ONLINE[0]: Figure(online.get(ONLINE[0]), Goal(1.0, "at most")),
        ONLINE[1]: Figure(online.get(ONLINE[1]), Goal(3.0, "at most")),
        MOMENTS_SHARE: Figure(moments_job_share(folder), Goal(0.5, "at most")),
        "future_facts_seen": Figure(_future_facts(measured), Goal(0.0, "at most")),
    }


def _gain(place: Place, gain: Gain) -> float | None:
    ratio = place.ratio(gain.own, gain.rival)
    if ratio is None:
        return None
    return ratio.low if gain.is_low_end else ratio.mean


def train_seconds_ratio(measured: Sequence[Place]) -> float | None:
    """The largest ratio of `place_train_seconds` on Beauty."""
    found = [ratio for place in measured if place.name.startswith("beauty-") and (ratio := place_train_seconds(place))]
    return max(found, default=None)


def place_train_seconds(place: Place) -> float | None:
    """CPU seconds of GRASP's training with takers, and of choosing fresh features, over those without either.

    Wall seconds would depend on what else runs on the machine. The mean over the seeds that were trained both ways;
    None without one.
    """
    sides = [{each.row.seed: each.info for each in one.rows} for one in map(place.find, (CHOSEN, WITHOUT)) if one]
    if len(sides) < 2:
        return None
    ratios = [
        sides[0][seed].cpu_seconds / (sides[1][seed].cpu_seconds - (sides[1][seed].fresh_cpu_seconds or 0.0))
        for seed in sides[0].keys() & sides[1].keys()
    ]
    return float(np.mean(ratios)) if ratios else None


def read_online(folder: Path) -> Mapping[str, float | None]:
    """The figures of the service, as its report had them when this one was measured last."""
    try:
        found: Mapping[str, float | None] = read_about(folder)["online"]
    except FileNotFoundError:
        return {}
    return found


def moments_job_share(folder: Path) -> float | None:
    """CPU seconds of finding moments over those of all jobs of a usual day."""
    found = Measurements(folder).of(MOMENTS_JOB)
    return share_of_moments(found[-1]) if found else None


def _future_facts(measured: Sequence[Place]) -> float | None:
    """Values that planted events changed. None unless every check would have noticed one."""
    found = [each for place in measured for each in place.measurements.of(FUTURE_FACTS)]
    if not found or not all(each["num_different_later"] for each in found):
        return None
    return float(sum(each["num_different"] for each in found))
