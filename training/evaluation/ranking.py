"""The rank of the target of each event. Training, promotion and benchmarks all use this evaluation.

One pass over the scores ranks the target among three sets of items:

    filtered      all items except the user's history
    unfiltered    all items
    sampled       a few randomly drawn items (the protocol of LLM-ESR)

Ties are counted, so that a scorer gains nothing by giving many items the same score. A score that is not finite is an
error.

Shape suffixes:  E events  N items  K negatives of an event  H items of all histories
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from training.data.training_set import TrainingSet, pad_left
from training.evaluation.fresh_features import FreshFeatures
from training.evaluation.state_votes import StateVotes

if TYPE_CHECKING:
    from torch import Tensor

    from training.model.fresh_score import FreshScore
    from training.model.ranker import Ranker

MISSED = np.iinfo(np.int64).max  # rank of a target unknown at the cutoff
BATCH_SIZE = 256


@dataclass(frozen=True)
class Event:
    """One next-item prediction: which item did the user take after this history?"""

    user: int  # row of the training set
    history: np.ndarray  # item indices, oldest first, from 1
    target: int  # item index from 1; 0 for an item unknown at the cutoff
    day: int = 0  # in days since 1970-01-01; what a scorer reads besides the history must be known before this day


@dataclass(frozen=True)
class Ranks:
    """How many other items scored higher than the target and how many scored the same, (E,) each."""

    num_greater: np.ndarray
    num_tied: np.ndarray


@dataclass(frozen=True)
class RankingResult:
    """The ranks of all events from one pass over their scores."""

    filtered: Ranks  # among all items except the history; the target is ranked even if it is in the history
    unfiltered: Ranks  # among all items
    sampled: list[Ranks]  # among the event's negatives, one entry per draw
    top: np.ndarray | None  # (E, num_top) best items outside the history, from 1; 0 if none are left


Scorer = Callable[[Sequence[Event]], np.ndarray]  # events -> scores (E, N), column i for item i + 1


def evaluation_events(training_set: TrainingSet, split: str) -> list[Event]:
    """The events of a split (`validation` or `test`), each with the history known at that moment."""
    rows = zip(training_set.sequences, training_set.splits, training_set.days, strict=True)
    return [
        Event(user, _history_before(training_set, sequence, days, int(place)), int(sequence[place]), int(days[place]))
        for user, (sequence, splits, days) in enumerate(rows)
        for place in np.flatnonzero(splits == split)
    ]


def _history_before(training_set: TrainingSet, sequence: np.ndarray, days: np.ndarray, place: int) -> np.ndarray:
    end = np.searchsorted(days, days[place]) if training_set.history_excludes_day else place
    return sequence[:end][sequence[:end] > 0]


def rank_events(
    score: Scorer, events: Sequence[Event], negatives: Sequence[np.ndarray] = (), num_top: int = 0
) -> RankingResult:
    """Rank the target of every event, in batches of bounded memory.

    Each array in `negatives` is (E, K) and holds items from 1 for the sampled ranks. `num_top` is the number of best
    items to keep, at most N. Raises `ValueError` if a score is not finite: comparisons with NaN are false, so a target
    with the score NaN would rank first.
    """
    parts, batches = [], _batches(events)
    for rows in batches:
        batch = [events[row] for row in rows]
        parts.append(_rank_batch(score(batch), batch, [draw[rows] for draw in negatives], num_top))
    place = np.argsort(np.concatenate([np.zeros(0, np.int64), *batches]))  # of each event in the joined batches
    tops = [part.top for part in parts if part.top is not None]
    return RankingResult(
        _join([part.filtered for part in parts], place),
        _join([part.unfiltered for part in parts], place),
        [_join([part.sampled[draw] for part in parts], place) for draw in range(len(negatives))],
        np.concatenate(tops)[place] if tops else None,
    )


def _rank_batch(
    scores: np.ndarray, events: Sequence[Event], negatives: Sequence[np.ndarray], num_top: int
) -> RankingResult:
    import torch

    scores_EN = torch.from_numpy(np.require(scores, requirements=["C", "W"]))
    _require_finite(scores_EN)
    target_E = torch.tensor([event.target for event in events])
    column_E1 = (target_E - 1).clamp(min=0)[:, None]  # any column will do for an unknown target
    own_E1 = scores_EN.gather(1, column_E1)
    # The target ties with itself, which is not counted.
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
    return RankingResult(
        _ranks(target_E, kept_greater_E, kept_tied_E), _ranks(target_E, greater_E, tied_E), sampled, top
    )


def _require_finite(scores: "Tensor") -> None:
    low, high = scores.aminmax()  # both are NaN if any score is
    if not (low.isfinite() and high.isfinite()):
        raise ValueError(f"{(~scores.isfinite()).sum()} of {scores.numel()} scores are not finite")


def _history(events: Sequence[Event], num_items: int) -> "tuple[Tensor, Tensor]":
    """Row (event) and column (item) of the items of all histories, without repeats."""
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
    """Row numbers of events in batches of similar history length, because a batch is padded to its longest."""
    order = np.argsort([len(event.history) for event in events], kind="stable")
    return [order[start : start + BATCH_SIZE] for start in range(0, len(events), BATCH_SIZE)]


class RankerScorer:
    """Scores of a ranker as in serving: items newer than the ranker are attached after its vocabulary."""

    def __init__(
        self, ranker: "Ranker", vocabulary: Sequence[str], training_set: TrainingSet, *, with_kernel: bool = True
    ) -> None:
        import torch

        self._ranker, self._training_set, self._with_kernel = ranker, training_set, with_kernel
        places = {item_id: place for place, item_id in enumerate(vocabulary)}
        self._place_N = np.array([places.setdefault(item_id, len(places)) for item_id in training_set.item_ids])
        vectors = np.zeros((2, len(places), training_set.item_semantic.shape[1]), np.float32)
        vectors[:, self._place_N] = training_set.item_semantic, training_set.item_neighbour
        ranker.eval().attach_items(torch.from_numpy(vectors[0]), torch.from_numpy(vectors[1]))
        with torch.inference_mode():
            self._candidate_ND = ranker.candidate_vectors()
        # After training, both have the same order: a slice then avoids a copy that costs as much as the scoring.
        is_in_order = np.array_equal(self._place_N, np.arange(len(places)))
        self._column_N = slice(1, None) if is_in_order else torch.from_numpy(self._place_N + 1)

    def __call__(self, events: Sequence[Event]) -> np.ndarray:
        import torch

        inputs = self._inputs([event.history for event in events], [event.user for event in events])
        with torch.inference_mode():
            scores = self._ranker.scores(*inputs, self._candidate_ND, with_kernel=self._with_kernel)
            scores_EN: np.ndarray = scores[:, self._column_N].numpy()
        return scores_EN

    def states(self, histories: Sequence[np.ndarray], users: Sequence[int] | None = None) -> np.ndarray:
        """The ranker's states after histories, (E, D); without users all of their vectors are 0."""
        import torch

        with torch.inference_mode():
            state_ED: np.ndarray = self._ranker.last_state(*self._inputs(histories, users)).numpy()
        return state_ED

    def _inputs(self, histories: Sequence[np.ndarray], users: Sequence[int] | None) -> "tuple[Tensor, Tensor, Tensor]":
        """Items, vectors of users, and vectors of their neighbours."""
        import torch

        longest = self._ranker.config.max_length
        items_ET = pad_left([self._place_N[history[-longest:] - 1] + 1 for history in histories])
        every = self._training_set.user_semantic, self._training_set.user_neighbour
        if users is None:
            vectors = [np.zeros((len(histories), each.shape[1]), np.float32) for each in every]
        else:
            vectors = [each[list(users)] for each in every]
        return torch.from_numpy(items_ET), torch.from_numpy(vectors[0]), torch.from_numpy(vectors[1])


def ranker_scorer(
    ranker: "Ranker",
    vocabulary: Sequence[str],
    training_set: TrainingSet,
    *,
    with_kernel: bool = True,
    fresh: FreshFeatures | None = None,
) -> Scorer:
    """The scores of a ranker. Without `fresh`, the features of the events' days, only what the sequence says counts."""
    score = RankerScorer(ranker, vocabulary, training_set, with_kernel=with_kernel)
    return score if fresh is None else with_fresh(score, ranker.fresh, fresh, StateVotes(fresh, score.states))


def with_fresh(score: Scorer, weights: "FreshScore", features: FreshFeatures, state_votes: StateVotes) -> Scorer:
    """The scorer with what fresh features add to it. Stored votes only count for a ranker that reads no state votes."""
    import torch

    reads_votes = weights.reads_votes or weights.reads_state_votes

    def scored(events: Sequence[Event]) -> np.ndarray:
        score_EN = np.require(score(events), requirements=["C", "W"])
        if weights.reads_takers:
            for score_N, event in zip(score_EN, events, strict=True):
                item_A, takers_WA = features.takers(event)
                score_N[item_A - 1] += weights.of_takers(torch.from_numpy(takers_WA)).numpy()
        if reads_votes:
            for score_N, (item_V, value_V) in zip(score_EN, voted(events), strict=True):
                score_N[item_V - 1] += value_V
        return score_EN

    def voted(events: Sequence[Event]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        if weights.reads_state_votes:
            for votes in state_votes.votes(events):
                yield votes.items, weights.of_state_votes(torch.from_numpy(votes.weights)).numpy()
        else:
            for votes in features.votes(events):
                yield votes.items, weights.of_votes(torch.from_numpy(votes.weights)).numpy()

    return scored if weights.reads_takers or reads_votes else score
