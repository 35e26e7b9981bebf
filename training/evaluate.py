"""How good scores are: ranks with their ties, NDCG and HR, and what they are worth beyond noise.

Every item is ranked, items of the user's history left out. Ranks are expected values over ties, so that a scorer
gains nothing by giving many items one score; a score that is not finite is an error.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from training.dataset import TrainingSet

if TYPE_CHECKING:
    from training.model import Ranker

CUTOFFS = (1, 3, 5, 10, 20)
MISSED = np.iinfo(np.int64).max  # rank of an item that no model could have named
UNKNOWN = -1  # target: an item unknown at the cutoff
NUM_RESAMPLES = 1000
BATCH_SIZE = 256


@dataclass(frozen=True)
class Event:
    """One next-item question: which item did the user take after this history?"""

    user: int  # row of the training set
    history: np.ndarray  # item indices, oldest first, from 1
    target: int  # item index from 1; 0 for an item unknown at the cutoff


@dataclass(frozen=True)
class Ranks:
    """Where the targets came: how many others scored higher and how many the same. One entry per event."""

    num_greater: np.ndarray
    num_tied: np.ndarray


@dataclass(frozen=True)
class Interval:
    """A mean over events and its 95 % interval when users, not events, are drawn again."""

    mean: float
    low: float
    high: float


Scorer = Callable[[Sequence[Event]], np.ndarray]  # events -> scores (E, N), column i for item i + 1


def questions(training_set: TrainingSet, split: str) -> list[Event]:
    """Every event of a split as a question, with the sequence as it was known when it was asked."""
    return [
        Event(user, sequence[:place][sequence[:place] > 0], int(sequence[place]))
        for user, (sequence, splits) in enumerate(zip(training_set.sequences, training_set.splits, strict=True))
        for place in np.flatnonzero(splits == split)
    ]


def ranks(scores: np.ndarray, targets: np.ndarray, excluded: np.ndarray) -> Ranks:
    """Rank each row's target among the columns that are not excluded; the target itself never is.

    `scores` and `excluded` are (E, N), `targets` (E,) are columns or `UNKNOWN`. Raises `ValueError` when a score is
    not finite: comparisons with NaN are false, which would put such a target first.
    """
    if not np.isfinite(scores).all():
        raise ValueError(f"{(~np.isfinite(scores)).sum()} of {scores.size} scores are not finite")
    row = np.arange(len(scores))
    target_score = scores[row, targets][:, None]
    others = ~excluded
    others[row, targets] = False
    num_greater = ((scores > target_score) & others).sum(1)
    num_tied = ((scores == target_score) & others).sum(1)
    is_unknown = targets == UNKNOWN
    return Ranks(np.where(is_unknown, MISSED, num_greater), np.where(is_unknown, 0, num_tied))


def gains(found: Ranks, k: int) -> tuple[np.ndarray, np.ndarray]:
    """NDCG@k and HR@k of each event, expected over the order of ties.

    With g higher and e tied others the target's rank (from 0) is g .. g + e with equal chance:
    NDCG = 1/(e+1) * sum of 1/log2(r + 2) over the ranks r < k, HR = their share.
    """
    discounts = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(k) + 2))])
    first = np.minimum(found.num_greater, k)
    end = np.minimum(first + found.num_tied + 1, k)
    num_places = found.num_tied + 1
    return (discounts[end] - discounts[first]) / num_places, (end - first) / num_places


def metrics(found: Ranks) -> dict[str, np.ndarray]:
    """Every metric of every event: `ndcg@1` to `hr@20`."""
    result = {}
    for k in CUTOFFS:
        result[f"ndcg@{k}"], result[f"hr@{k}"] = gains(found, k)
    return result


def interval(values: np.ndarray, users: np.ndarray, seed: int = 0) -> Interval:
    """Mean of `values` with a bootstrap interval by user: a few users hold many of the events.

    For the difference of two models give the differences of their values, event by event.
    """
    if not len(values):
        return Interval(float("nan"), float("nan"), float("nan"))
    _, user = np.unique(users, return_inverse=True)
    total, count = np.bincount(user, values), np.bincount(user)
    random = np.random.default_rng(seed)
    drawn = random.integers(len(count), size=(NUM_RESAMPLES, len(count)))
    means = total[drawn].sum(1) / count[drawn].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(values.mean()), float(low), float(high))


def groups(training_set: TrainingSet, events: Sequence[Event]) -> dict[str, np.ndarray]:
    """Which events count: all, and those of head and tail items and users. An unknown item is in the tail."""
    item_is_tail = np.concatenate([[True], training_set.item_is_tail])[[event.target for event in events]]
    user_is_tail = training_set.user_is_tail[[event.user for event in events]]
    return {
        "overall": np.ones(len(events), dtype=bool),
        "head items": ~item_is_tail,
        "tail items": item_is_tail,
        "head users": ~user_is_tail,
        "tail users": user_is_tail,
    }


def rank_events(score: Scorer, events: Sequence[Event]) -> Ranks:
    """Rank the target of every event among all items, its history left out, in batches of bounded memory."""
    parts = []
    for batch in _batches(events):
        scores = score(batch)
        excluded = np.zeros(scores.shape, dtype=bool)
        for row, event in enumerate(batch):
            excluded[row, event.history - 1] = True
        parts.append(ranks(scores, np.array([event.target - 1 for event in batch]), excluded))
    return Ranks(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("num_greater", "num_tied")))


def _batches(events: Sequence[Event]) -> Iterator[Sequence[Event]]:
    for start in range(0, len(events), BATCH_SIZE):
        yield events[start : start + BATCH_SIZE]


def popularity_scorer(training_set: TrainingSet) -> Scorer:
    """The baseline: everyone gets what most users had before the cutoff."""
    popularity = training_set.popularity.astype(np.float64)
    return lambda events: np.broadcast_to(popularity, (len(events), len(popularity)))


def ranker_scorer(ranker: "Ranker", vocabulary: Sequence[str], training_set: TrainingSet) -> Scorer:
    """A ranker as it would serve: the set's items attached, those it never trained with after its vocabulary."""
    import torch

    places = {item_id: place for place, item_id in enumerate(vocabulary)}
    place_N = np.array([places.setdefault(item_id, len(places)) for item_id in training_set.item_ids])
    vectors = np.zeros((2, len(places), training_set.item_semantic.shape[1]), np.float32)
    vectors[:, place_N] = training_set.item_semantic, training_set.item_neighbour
    ranker.eval().attach_items(torch.from_numpy(vectors[0]), torch.from_numpy(vectors[1]))
    with torch.inference_mode():
        candidates = ranker.candidates()[place_N + 1]

    def score(events: Sequence[Event]) -> np.ndarray:
        recent = [place_N[event.history[-ranker.config.max_length :] - 1] + 1 for event in events]
        users = [event.user for event in events]
        with torch.inference_mode():
            state = ranker.last_state(
                torch.from_numpy(pad(recent)),
                torch.from_numpy(training_set.user_semantic[users]),
                torch.from_numpy(training_set.user_neighbour[users]),
            )
            return (state @ candidates.T).numpy()

    return score


def pad(sequences: Sequence[np.ndarray]) -> np.ndarray:
    """Sequences as rows (B, T), zeros on the left."""
    padded = np.zeros((len(sequences), max(len(items) for items in sequences)), np.int64)
    for row, items in zip(padded, sequences, strict=True):
        row[len(row) - len(items) :] = items
    return padded
