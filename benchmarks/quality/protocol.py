"""How every system of a data set is tested: on the same events, with the same sampled negatives.

Measured besides ranks: how much of the catalogue is recommended, from which categories, and where attention goes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from benchmarks.data.datasets import BenchmarkData, Cut
from benchmarks.quality.rows import COLD_ITEMS, COLD_USERS, DAYS, KNOWN_USERS
from training.evaluation.baselines import distinct_user_popularity
from training.evaluation.metrics import event_groups
from training.evaluation.negatives import draw_negatives, load_negatives, save_negatives
from training.evaluation.ranking import Event, RankingResult, Ranks, Scorer, evaluation_events, rank_events
from training.model.ranker import Ranker

NUM_DRAWS = 3  # of sampled negatives, the same for every system
NUM_TOP = 10
NUM_MASS_EVENTS = 2000  # over which attention is averaged
BIN_DAYS, LAST_DAYS = 10, 50  # events are grouped by days since the cut: ten of them, and all after the fiftieth


@dataclass(frozen=True)
class TestResult:
    """The test of one scorer."""

    __test__ = False  # no test class of pytest

    rankings: dict[str, Ranks]
    coverage: float
    cross_category_share: float | None


@dataclass(frozen=True)
class TestProtocol:
    """The test events of a data set, and the negatives that all systems share."""

    __test__ = False  # no test class of pytest

    data: BenchmarkData
    events: list[Event]
    negatives: list[np.ndarray]

    @cached_property
    def groups(self) -> dict[str, np.ndarray]:
        found = event_groups(self.data.training_set, self.events)
        return found | groups_by_time(self.data.cut, self.events) if self.data.cut else found

    @cached_property
    def units(self) -> dict[str, np.ndarray] | None:
        """The user and the item of each event (E,); None where each event is of another user."""
        if self.data.cut is None:
            return None
        pairs = np.array([(event.user, event.target) for event in self.events], np.int32)
        return dict(zip(("user", "item"), pairs.T, strict=True))

    def test(self, score: Scorer) -> TestResult:
        """Every ranking, and what the first ten recommendations cover."""
        return self.result(self.rank(score, np.arange(len(self.events))))

    def rank(self, score: Scorer, rows: np.ndarray) -> RankingResult:
        """Rank the targets of some events, which are given by their rows."""
        score = popular_for_new_users(score, distinct_user_popularity(self.data.training_set))
        events, negatives = [self.events[row] for row in rows], [draw[rows] for draw in self.negatives]
        return rank_events(score, events, negatives, NUM_TOP)

    def result(self, ranking: RankingResult) -> TestResult:
        """The test from the ranks of all events."""
        assert ranking.top is not None
        rankings = {"filtered": ranking.filtered, "unfiltered": ranking.unfiltered}
        rankings |= {f"sampled_{draw}": ranks for draw, ranks in enumerate(ranking.sampled)}
        coverage = len(np.unique(ranking.top[ranking.top > 0])) / len(self.data.training_set.item_ids)
        return TestResult(rankings, coverage, cross_category_share(ranking.top, self.events, self.data.categories))


def load_protocol(data: BenchmarkData, cache: Path) -> TestProtocol:
    """The test events and their negatives, which are drawn once per data set and kept under `cache`."""
    events = evaluation_events(data.training_set, "test")
    negatives = []
    for draw in range(NUM_DRAWS):
        file = cache / "negatives" / f"{data.name}-{data.checksum[:12]}-{draw}.npz"
        if not file.exists():
            save_negatives(file, draw_negatives(events, len(data.training_set.item_ids), seed=draw), events)
        negatives.append(load_negatives(file, events))
    return TestProtocol(data, events, negatives)


def popular_for_new_users(score: Scorer, popular: Scorer) -> Scorer:
    """The scorer, but of users without a history what is popular, which serving answers them whatever the model."""

    def scored(events: Sequence[Event]) -> np.ndarray:
        is_known = np.array([len(event.history) > 0 for event in events])
        if is_known.all():
            return score(events)
        scores = np.array(popular(events))
        if is_known.any():
            of_known = score([event for event in events if len(event.history)])
            scores = scores.astype(of_known.dtype)
            scores[is_known] = of_known
        return scores

    return scored


def groups_by_time(cut: Cut, events: Sequence[Event]) -> dict[str, np.ndarray]:
    """Masks (E,) of events of users and of items that were first seen after the cut, and of events by days since it."""
    is_cold = np.array([event.user >= len(cut.fitting.user_ids) for event in events], bool)
    is_newer = np.array([event.target > len(cut.fitting.item_ids) for event in events], bool)
    days = np.array([event.day for event in events]) - cut.day
    found = {KNOWN_USERS: ~is_cold, COLD_USERS: is_cold, COLD_ITEMS: is_newer}
    for first in range(0, LAST_DAYS, BIN_DAYS):
        found[f"{DAYS}{first + 1}-{first + BIN_DAYS}"] = days // BIN_DAYS == first // BIN_DAYS
    return found | {f"{DAYS}from {LAST_DAYS + 1} on": days >= LAST_DAYS}


def cross_category_share(top: np.ndarray, events: Sequence[Event], categories: Sequence[str]) -> float | None:
    """Share of recommended items whose category is not in the history; None when no item has a category.

    `top` (E, k) holds items from 1, and 0 for none. Items without a category do not count.
    """
    code = np.concatenate([[0], np.unique(["", *categories], return_inverse=True)[1][1:]])
    if not code.any():
        return None
    num_new = num_known = 0
    for items, event in zip(top, events, strict=True):
        recommended = code[items[items > 0]]
        recommended = recommended[recommended > 0]
        num_known += len(recommended)
        num_new += int((~np.isin(recommended, code[event.history])).sum())
    return num_new / max(num_known, 1)


def attention_mass(
    ranker: Ranker, data: BenchmarkData, clean: BenchmarkData, events: Sequence[Event]
) -> dict[str, float] | None:
    """Mean attention weight of history items with clean and with corrupted vectors; None for other enhancers."""
    if ranker.config.enhancer != "grasp":
        return None
    corrupted = (data.training_set.item_semantic != clean.training_set.item_semantic).any(1)
    total, count = np.zeros(2), np.zeros(2)
    for event in [each for each in events if len(each.history)][:NUM_MASS_EVENTS]:
        history = event.history[-ranker.config.max_length :]
        vectors = data.training_set.user_semantic, data.training_set.user_neighbour
        with torch.inference_mode():
            users = [torch.from_numpy(each[[event.user]]) for each in vectors]
            weights = ranker.history_weights(torch.from_numpy(history)[None], *users)[0].numpy()
        kind = corrupted[history - 1].astype(int)
        total += np.bincount(kind, weights, minlength=2)
        count += np.bincount(kind, minlength=2)
    return {name: float(total[kind] / count[kind]) for kind, name in enumerate(("clean", "corrupted")) if count[kind]}
