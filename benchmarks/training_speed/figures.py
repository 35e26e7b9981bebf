"""The figures of training speed, from its measurements.

Kinds of measurements, and what they hold:

    positions   one round of a system with so many negatives (None: all items): seconds, num_targets
    curve       one training of a system: points (seconds of training, validation NDCG@10), setup_seconds
    text_cost   seconds of interleaved epochs: ids_seconds, text_seconds
    grasp_seed  minutes of one seed to early stopping, and where they come from
    full_eval   seconds of full-ranking evaluations
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median

from benchmarks.core.store import Measurements
from benchmarks.core.summary import Figure, Goal

OWN = "ours"  # every other system is a peer
GOALS = {
    "speed_over_fastest_peer": Goal(4.0),
    "text_cost_over_ids": Goal(1.3, "at most"),
    "grasp_seed_minutes": Goal(15.0, "at most"),
    "full_eval_seconds": Goal(10.0, "at most"),
}


@dataclass(frozen=True)
class Speed:
    """Target positions per second at one number of negatives: the median round of each system."""

    num_negatives: int | None
    by_system: dict[str, float]
    rounds: dict[str, list[float]]

    @property
    def fastest_peer(self) -> str | None:
        peers = [system for system in self.by_system if system != OWN]
        return max(peers, key=self.by_system.__getitem__, default=None)

    @property
    def ratio(self) -> float | None:
        """Ours over the fastest peer's; None while one of them is missing."""
        if OWN not in self.by_system or self.fastest_peer is None:
            return None
        return self.by_system[OWN] / self.by_system[self.fastest_peer]


def speeds(measurements: Measurements) -> list[Speed]:
    """Fewest negatives first, all items last."""
    rounds: dict[int | None, dict[str, list[float]]] = {}
    for found in measurements.of("positions"):
        systems = rounds.setdefault(found["num_negatives"], {})
        systems.setdefault(found["system"], []).append(found["num_targets"] / found["seconds"])
    ordered = sorted(rounds.items(), key=lambda item: (item[0] is None, item[0] or 0))
    return [Speed(num, {name: median(each) for name, each in found.items()}, found) for num, found in ordered]


@dataclass(frozen=True)
class Curve:
    """A system's validation NDCG@10 during its training."""

    system: str  # a peer's name may be followed by its loss
    setup_seconds: float
    points: list[tuple[float, float]]  # seconds of training, NDCG@10

    @property
    def best(self) -> float:
        return max(value for _, value in self.points)

    def seconds_to(self, target: float) -> float | None:
        """Seconds to the first point that is at least as good; None without one."""
        return next((seconds for seconds, value in self.points if value >= target), None)


@dataclass(frozen=True)
class Race:
    """All curves. The target is an NDCG@10 that each of them reaches: the lowest of their best values."""

    curves: list[Curve]

    @property
    def target(self) -> float:
        return min(curve.best for curve in self.curves)

    def ratios(self, target: float) -> dict[str, float | None]:
        """Each peer's seconds to a target over ours; None when one of them does not reach it."""
        own = next((curve.seconds_to(target) for curve in self.curves if curve.system == OWN), None)
        found = {curve.system: curve.seconds_to(target) for curve in self.curves if curve.system != OWN}
        return {system: seconds / own if seconds and own else None for system, seconds in found.items()}

    @property
    def ratio(self) -> float | None:
        """The fastest peer's seconds over ours; None while one of the two sides is missing."""
        return min((ratio for ratio in self.ratios(self.target).values() if ratio), default=None)


def race(measurements: Measurements) -> Race | None:
    curves = [
        Curve(found["system"], found["setup_seconds"], [(point[0], point[1]) for point in found["points"]])
        for found in measurements.of("curve")
    ]
    return Race(curves) if curves else None


def text_cost(found: Mapping[str, Sequence[float]]) -> float:
    """The median epoch with text over the median epoch with ids alone."""
    return median(found["text_seconds"]) / median(found["ids_seconds"])


def figures(measurements: Measurements, wanted: Iterable[str]) -> dict[str, Figure]:
    """The figures with a goal. Speed over peers is unknown until every measurement of `wanted` is there."""
    running = race(measurements)
    ratios = [each.ratio for each in speeds(measurements)] + [running.ratio if running else None]
    known = [ratio for ratio in ratios if ratio is not None]
    is_complete = len(known) == len(ratios) and all(name in measurements for name in wanted)
    values = {
        "speed_over_fastest_peer": min(known) if is_complete else None,
        "text_cost_over_ids": _mean([text_cost(found) for found in measurements.of("text_cost")]),
        "grasp_seed_minutes": _mean([found["minutes"] for found in measurements.of("grasp_seed")]),
        "full_eval_seconds": _mean([median(found["seconds"]) for found in measurements.of("full_eval")]),
    }
    return {name: Figure(values[name], goal) for name, goal in GOALS.items()}


def _mean(values: Sequence[float]) -> float | None:
    return mean(values) if values else None
