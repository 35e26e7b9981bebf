"""Quality from ranks: NDCG and hit rate of each event, their means with bootstrap intervals, and groups of events.

Shape suffixes:  E events
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from training.data.training_set import TrainingSet
from training.evaluation.ranking import Event, Ranks

CUTOFFS = (1, 3, 5, 10, 20)
NUM_RESAMPLES = 1000
RESAMPLES_AT_ONCE = 50  # bounds the memory of a bootstrap over many users


@dataclass(frozen=True)
class Interval:
    """A mean over events and its 95 % bootstrap interval. Users are resampled, not events."""

    mean: float
    low: float
    high: float


def ndcg_and_hit_rate(ranks: Ranks, k: int) -> tuple[np.ndarray, np.ndarray]:
    """NDCG@k and HR@k of each event, (E,), as expected values over the order of ties.

    With g items above the target and e items tied with it, the target's rank (from 0) is uniform over g .. g + e:
    NDCG = 1/(e+1) * sum of 1/log2(r + 2) over the ranks r < k, and HR is the share of ranks r < k.
    """
    discounts = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(k) + 2))])
    first = np.minimum(ranks.num_greater, k)
    end = np.minimum(first + ranks.num_tied + 1, k)
    num_ranks = ranks.num_tied + 1
    return (discounts[end] - discounts[first]) / num_ranks, (end - first) / num_ranks


def event_metrics(ranks: Ranks) -> dict[str, np.ndarray]:
    """Every metric, `ndcg@1` to `hr@20`, of every event: (E,) each."""
    result = {}
    for k in CUTOFFS:
        result[f"ndcg@{k}"], result[f"hr@{k}"] = ndcg_and_hit_rate(ranks, k)
    return result


def bootstrap_interval(values: np.ndarray, users: np.ndarray, seed: int = 0) -> Interval:
    """Mean of `values` (E,) with its interval. Users are resampled because a few users hold many of the events."""
    if not len(values):
        return Interval(float("nan"), float("nan"), float("nan"))
    _, user = np.unique(users, return_inverse=True)
    total, count = np.bincount(user, values), np.bincount(user)
    random = np.random.default_rng(seed)
    means = []
    for start in range(0, NUM_RESAMPLES, RESAMPLES_AT_ONCE):
        num = min(RESAMPLES_AT_ONCE, NUM_RESAMPLES - start)
        drawn = random.integers(len(count), size=(num, len(count)))
        means.append(total[drawn].sum(1) / count[drawn].sum(1))
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return Interval(float(values.mean()), float(low), float(high))


def event_groups(training_set: TrainingSet, events: Sequence[Event]) -> dict[str, np.ndarray]:
    """Masks (E,) of the groups that are reported: all, head and tail items and users, repeats and non-repeats.

    An event is a repeat if its target is in its history. An item unknown at the cutoff counts as a tail item.
    """
    item_is_tail = np.concatenate([[True], training_set.item_is_tail])[[event.target for event in events]]
    user_is_tail = training_set.user_is_tail[[event.user for event in events]]
    is_repeat = np.array([event.target in event.history for event in events], dtype=bool)
    return {
        "overall": np.ones(len(events), dtype=bool),
        "head items": ~item_is_tail,
        "tail items": item_is_tail,
        "head users": ~user_is_tail,
        "tail users": user_is_tail,
        "repeat": is_repeat,
        "non-repeat": ~is_repeat,
    }
