"""How good scores are: ranks with their ties, NDCG and HR, and what they are worth beyond noise.

The one evaluation of training, promotion and benchmarks. One pass over the scores ranks the target among all items
without the user's history (*filtered*), among all items (*unfiltered*), and among a few drawn ones (*sampled*, the
protocol of LLM-ESR). Ranks are expected values over ties, so that a scorer gains nothing by giving many items one
score; a score that is not finite is an error.

Shape suffixes:  E events  N items  K negatives of an event
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from training.data.training_set import TrainingSet

if TYPE_CHECKING:
    from torch import Tensor

    from training.model.ranker import Ranker

CUTOFFS = (1, 3, 5, 10, 20)
MISSED = np.iinfo(np.int64).max  # rank of an item that no model could have named
NUM_RESAMPLES = 1000
RESAMPLES_AT_ONCE = 50  # bounds the memory of a bootstrap over many users
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
class Ranking:
    """One pass over the scores of all events."""

    filtered: Ranks  # among all items but the history; the target takes part even when it is in the history
    unfiltered: Ranks  # among all items
    sampled: list[Ranks]  # among the event's negatives, for each draw of them
    top: np.ndarray | None  # (E, num_top) best items without the history, from 1; 0 where none are left


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
    """Mean of `values` (E,) with a bootstrap interval by user: a few users hold many of the events."""
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


def groups(training_set: TrainingSet, events: Sequence[Event]) -> dict[str, np.ndarray]:
    """Which events count: all, head and tail items and users, and whether the target is in the history.

    An item unknown at the cutoff is in the tail. Masks are (E,).
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


def rank_events(
    score: Scorer, events: Sequence[Event], negatives: Sequence[np.ndarray] = (), num_top: int = 0
) -> Ranking:
    """Rank the target of every event, in batches of bounded memory.

    Each of `negatives` (E, K) holds items from 1 for sampled ranks; `num_top`, at most N, is how many best items are
    kept.
    Raises `ValueError` when a score is not finite: comparisons with NaN are false, which would put its target first.
    """
    parts, batches = [], _batches(events)
    for rows in batches:
        batch = [events[row] for row in rows]
        parts.append(_rank_batch(score(batch), batch, [draw[rows] for draw in negatives], num_top))
    place = np.argsort(np.concatenate([np.zeros(0, np.int64), *batches]))  # of each event among the parts
    tops = [part.top for part in parts if part.top is not None]
    return Ranking(
        _join([part.filtered for part in parts], place),
        _join([part.unfiltered for part in parts], place),
        [_join([part.sampled[draw] for part in parts], place) for draw in range(len(negatives))],
        np.concatenate(tops)[place] if tops else None,
    )


def _rank_batch(scores: np.ndarray, events: Sequence[Event], negatives: Sequence[np.ndarray], num_top: int) -> Ranking:
    import torch

    scores_EN = torch.from_numpy(np.require(scores, requirements=["C", "W"]))
    _require_finite(scores_EN)
    target_E = torch.tensor([event.target for event in events])
    column_E1 = (target_E - 1).clamp(min=0)[:, None]  # of an unknown target any column will do
    own_E1 = scores_EN.gather(1, column_E1)
    # The target is neither above nor below itself, but it equals itself.
    greater_E, tied_E = (scores_EN > own_E1).sum(1), (scores_EN == own_E1).sum(1) - 1
    row_H, column_H = _history(events, scores_EN.shape[1])
    history_H = scores_EN[row_H, column_H]
    is_other_H = column_H != column_E1[row_H, 0]
    greater_H = (history_H > own_E1[row_H, 0]) & is_other_H
    tied_H = (history_H == own_E1[row_H, 0]) & is_other_H
    kept_greater_E = greater_E - torch.bincount(row_H[greater_H], minlength=len(events))
    kept_tied_E = tied_E - torch.bincount(row_H[tied_H], minlength=len(events))
    sampled = []
    for draw_EK in negatives:
        negative_EK = scores_EN.gather(1, torch.from_numpy(draw_EK.astype(np.int64)) - 1)
        sampled.append(_ranks(target_E, (negative_EK > own_E1).sum(1), (negative_EK == own_E1).sum(1)))
    top = None
    if num_top:
        left_EN = scores_EN.index_put((row_H, column_H), torch.tensor(-torch.inf, dtype=scores_EN.dtype))
        best = left_EN.topk(num_top)
        top = ((best.indices + 1) * best.values.isfinite()).numpy()
    return Ranking(_ranks(target_E, kept_greater_E, kept_tied_E), _ranks(target_E, greater_E, tied_E), sampled, top)


def _require_finite(scores: "Tensor") -> None:
    low, high = scores.aminmax()  # NaN wins both
    if not (low.isfinite() and high.isfinite()):
        raise ValueError(f"{(~scores.isfinite()).sum()} of {scores.numel()} scores are not finite")


def _history(events: Sequence[Event], num_items: int) -> "tuple[Tensor, Tensor]":
    """Row and column of every item in a history, each once."""
    import torch

    row = np.repeat(np.arange(len(events)), [len(event.history) for event in events])
    column = np.concatenate([event.history for event in events]).astype(np.int64) - 1
    row, column = np.divmod(np.unique(row * num_items + column), num_items)
    return torch.from_numpy(row), torch.from_numpy(column)


def _ranks(target_E: "Tensor", greater_E: "Tensor", tied_E: "Tensor") -> Ranks:
    is_unknown = (target_E == 0).numpy()
    return Ranks(np.where(is_unknown, MISSED, greater_E.numpy()), np.where(is_unknown, 0, tied_E.numpy()))


def _join(parts: Sequence[Ranks], place: np.ndarray) -> Ranks:
    empty = np.zeros(0, np.int64)
    return Ranks(
        np.concatenate([empty, *(part.num_greater for part in parts)])[place],
        np.concatenate([empty, *(part.num_tied for part in parts)])[place],
    )


def _batches(events: Sequence[Event]) -> list[np.ndarray]:
    """Rows of events in batches, histories of like length together: a batch is padded to its longest."""
    order = np.argsort([len(event.history) for event in events], kind="stable")
    return [order[start : start + BATCH_SIZE] for start in range(0, len(events), BATCH_SIZE)]


def popularity_scorer(training_set: TrainingSet) -> Scorer:
    """The baseline: everyone gets what most users had before the cutoff."""
    popularity = training_set.popularity.astype(np.float64)
    return lambda events: np.broadcast_to(popularity, (len(events), len(popularity)))


def ranker_scorer(
    ranker: "Ranker", vocabulary: Sequence[str], training_set: TrainingSet, *, with_kernel: bool = True
) -> Scorer:
    """A ranker as it would serve: the set's items attached, those it never trained with after its vocabulary."""
    import torch

    places = {item_id: place for place, item_id in enumerate(vocabulary)}
    place_N = np.array([places.setdefault(item_id, len(places)) for item_id in training_set.item_ids])
    vectors = np.zeros((2, len(places), training_set.item_semantic.shape[1]), np.float32)
    vectors[:, place_N] = training_set.item_semantic, training_set.item_neighbour
    ranker.eval().attach_items(torch.from_numpy(vectors[0]), torch.from_numpy(vectors[1]))
    with torch.inference_mode():
        candidates = ranker.candidates()
    # A slice where the set has the vocabulary's order, as after training: picking every column costs like scoring.
    is_in_order = np.array_equal(place_N, np.arange(len(places)))
    column_N = slice(1, None) if is_in_order else torch.from_numpy(place_N + 1)

    def score(events: Sequence[Event]) -> np.ndarray:
        recent = [place_N[event.history[-ranker.config.max_length :] - 1] + 1 for event in events]
        users = [event.user for event in events]
        with torch.inference_mode():
            scores = ranker.scores(
                torch.from_numpy(pad(recent)),
                torch.from_numpy(training_set.user_semantic[users]),
                torch.from_numpy(training_set.user_neighbour[users]),
                candidates,
                with_kernel=with_kernel,
            )
            return scores[:, column_N].numpy()

    return score


def pad(sequences: Sequence[np.ndarray]) -> np.ndarray:
    """Sequences as rows (B, T), zeros on the left."""
    padded = np.zeros((len(sequences), max(len(items) for items in sequences)), np.int64)
    for row, items in zip(padded, sequences, strict=True):
        row[len(row) - len(items) :] = items
    return padded
