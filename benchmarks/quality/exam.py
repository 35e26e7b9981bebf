"""The exam that every system of a data set sits: the same test events, the same sampled negatives.

Also what ranks do not say: how much of the catalogue is recommended, from which categories, what attention looks at.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from benchmarks.data.datasets import BenchmarkData
from training.evaluation.evaluate import Event, Ranks, Scorer, groups, questions, rank_events
from training.evaluation.negatives import draw_negatives, load_negatives, save_negatives
from training.model.ranker import Ranker

NUM_DRAWS = 3  # of sampled negatives, the same for every system
NUM_TOP = 10
NUM_MASS_EVENTS = 2000  # whose attention is averaged


@dataclass(frozen=True)
class Measured:
    """What the test says of one scorer."""

    rankings: dict[str, Ranks]
    coverage: float
    cross_category_share: float | None


@dataclass(frozen=True)
class Exam:
    """The questions that all systems of a data set are asked, with the negatives they share."""

    data: BenchmarkData
    events: list[Event]
    negatives: list[np.ndarray]

    @cached_property
    def groups(self) -> dict[str, np.ndarray]:
        return groups(self.data.training_set, self.events)

    def measure(self, score: Scorer) -> Measured:
        """Ranks in every protocol, and what the first ten recommendations of all users cover."""
        ranking = rank_events(score, self.events, self.negatives, NUM_TOP)
        assert ranking.top is not None
        rankings = {"filtered": ranking.filtered, "unfiltered": ranking.unfiltered}
        rankings |= {f"sampled_{draw}": ranks for draw, ranks in enumerate(ranking.sampled)}
        coverage = len(np.unique(ranking.top[ranking.top > 0])) / len(self.data.training_set.item_ids)
        return Measured(rankings, coverage, cross_category_share(ranking.top, self.events, self.data.categories))


def load_exam(data: BenchmarkData, cache: Path) -> Exam:
    """The test events, and their negatives: drawn once per data set and kept under `cache`."""
    events = questions(data.training_set, "test")
    negatives = []
    for draw in range(NUM_DRAWS):
        file = cache / "negatives" / f"{data.name}-{data.checksum[:12]}-{draw}.npz"
        if not file.exists():
            save_negatives(file, draw_negatives(events, len(data.training_set.item_ids), seed=draw), events)
        negatives.append(load_negatives(file, events))
    return Exam(data, events, negatives)


def cross_category_share(top: np.ndarray, events: Sequence[Event], categories: Sequence[str]) -> float | None:
    """Share of recommended items whose category is none of the history's; None where items have no category.

    `top` (E, k) holds items from 1, 0 for none. Items without a category do not count.
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
    """Mean attention weight of history items whose vectors are as they should be, and of those that are corrupted."""
    if ranker.config.enhancer != "grasp":
        return None
    corrupted = (data.training_set.item_semantic != clean.training_set.item_semantic).any(1)
    total, count = np.zeros(2), np.zeros(2)
    for event in events[:NUM_MASS_EVENTS]:
        history = event.history[-ranker.config.max_length :]
        vectors = data.training_set.user_semantic, data.training_set.user_neighbour
        with torch.inference_mode():
            users = [torch.from_numpy(each[[event.user]]) for each in vectors]
            weights = ranker.history_weights(torch.from_numpy(history)[None], *users)[0].numpy()
        kind = corrupted[history - 1].astype(int)
        total += np.bincount(kind, weights, minlength=2)
        count += np.bincount(kind, minlength=2)
    return {name: float(total[kind] / count[kind]) for kind, name in enumerate(("clean", "corrupted")) if count[kind]}
