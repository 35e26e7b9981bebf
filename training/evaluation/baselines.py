"""Baselines: scorers without training, which every trained model has to beat.

Each is built from the sequences that are known before the events (`training.data.training_set.known_sequences`): the
`train` split for validation events, `train` and `validation` for test events. The weights of the heuristics are set by
hand, once per data set. The settings of STAR, and the weight of scores added to a model's, are chosen on validation
events (`best_scorer`).

Shape suffixes:  E events  N items  S semantic size; item i is in row or column i - 1
"""

from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np
from scipy.sparse import csr_matrix, diags, identity
from scipy.special import log_softmax

from grasp.tables import TAKER_DAYS
from training.data.cooccurrence import cooccurrence, cosine, item_cosine, item_counts, transitions, user_item_matrix
from training.data.training_set import TrainingSet
from training.evaluation.fresh_features import FreshFeatures
from training.evaluation.metrics import ndcg_and_hit_rate
from training.evaluation.ranking import Event, Scorer, rank_events

DECAY = 0.8  # weight of a history item relative to the next newer one, in the heuristics
TIE_BREAK = 1e-6  # weight of popularity that only orders items with equal scores
MAX_TABLE_ITEMS = 20_000  # up to this size all pairwise cosines are computed once, in at most 1.6 GB

Sequences = Sequence[np.ndarray]
Key = TypeVar("Key", bound=Hashable)


class StarSettings(NamedTuple):
    """The settings of `star` that are chosen on validation events."""

    semantic_share: float
    decay: float
    last: int


STAR_GRID = [StarSettings(share, decay, last) for share in (0.3, 0.5, 0.7) for decay in (0.7, 0.9) for last in (3, 10)]


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Rows of length 1, float32; zeros stay."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(length == 0, 1, length)).astype(np.float32)


def distinct_user_popularity(training_set: TrainingSet) -> Scorer:
    """Number of distinct users of an item before the cutoff: the rival of every promotion."""
    num_N = training_set.popularity.astype(np.float64)
    return lambda events: np.broadcast_to(num_N, (len(events), len(num_N)))


def popular_lately(training_set: TrainingSet, features: FreshFeatures) -> Scorer:
    """What is answered without a model: most takers of seven days, then of thirty, then most users of all time."""
    week, month = TAKER_DAYS.index(7), TAKER_DAYS.index(30)
    popularity_N = training_set.popularity.astype(np.float64)
    of_month = popularity_N.max(initial=0) + 1  # outweighs any popularity

    def score(events: Sequence[Event]) -> np.ndarray:
        score_EN = np.tile(popularity_N, (len(events), 1))
        for score_N, event in zip(score_EN, events, strict=True):
            item_A, takers_WA = features.takers(event)
            of_week = of_month * (takers_WA[month].max(initial=0) + 1)
            score_N[item_A - 1] += of_week * takers_WA[week] + of_month * takers_WA[month]
        return score_EN

    return score


def popularity(sequences: Sequences, num_items: int) -> Scorer:
    """Number of interactions of an item."""
    num_N = item_counts(sequences, num_items).astype(np.float64)
    return lambda events: np.broadcast_to(num_N, (len(events), num_items))


def repeat_popularity(sequences: Sequences, num_items: int) -> Scorer:
    """How often the user took the item; ties by popularity."""
    return _sum((1.0, history_scorer(identity(num_items, format="csr"))), (TIE_BREAK, popularity(sequences, num_items)))


def markov_popularity(sequences: Sequences, num_items: int) -> Scorer:
    """How often the item directly followed the user's last one; ties by popularity."""
    next_NN = transitions(sequences, num_items)
    return _sum((1.0, history_scorer(next_NN, last=1)), (TIE_BREAK, popularity(sequences, num_items)))


def knn_repeat_popularity(sequences: Sequences, num_items: int, *, repeat: float = 2.0) -> Scorer:
    """Co-occurrence with the user's items, plus `repeat` for items in the history; ties by popularity.

    For data with repeats: the co-occurrence is divided by interactions, repeats included.
    """
    num_N = item_counts(sequences, num_items)
    like_NN = cosine(cooccurrence(user_item_matrix(sequences, num_items)), num_N)
    kernel_NN = like_NN + repeat * identity(num_items, format="csr")
    return _sum((1.0, history_scorer(kernel_NN, DECAY)), (TIE_BREAK, popularity(sequences, num_items)))


def knn(sequences: Sequences, num_items: int, *, markov: float = 0.0, popular: float = TIE_BREAK) -> Scorer:
    """Item-KNN: cosine by common users + `markov` * P(item | last item) + `popular` * popularity scaled to 1.

    The defaults give plain Item-KNN with ties by popularity.
    """
    next_NN = transitions(sequences, num_items)
    share_NN = diags(1 / np.maximum(np.asarray(next_NN.sum(1)).ravel(), 1)) @ next_NN
    max_count = max(item_counts(sequences, num_items).max(), 1)
    return _sum(
        (1.0, history_scorer(item_cosine(sequences, num_items), DECAY)),
        (markov, history_scorer(share_NN.tocsr(), last=1)),
        (popular / max_count, popularity(sequences, num_items)),
    )


knn_markov = partial(knn, markov=0.3)
knn_markov_popularity = partial(knn, markov=0.3, popular=0.1)


def history_scorer(kernel_NN: csr_matrix, decay: float = 1.0, last: int | None = None) -> Scorer:
    """sum_j decay^j kernel[a_j, x] over the `last` newest history items a_0, a_1, ..., repeats included."""
    return lambda events: (_history_weights(events, kernel_NN.shape[0], decay, last) @ kernel_NN).toarray()


def star(
    sequences: Sequences,
    item_semantic: np.ndarray,
    *,
    semantic_share: float = 0.3,
    decay: float = 0.7,
    last: int | None = 3,
    mean: bool = True,
) -> Scorer:
    """STAR (arXiv 2410.16458): similarity to the newest items by text and by common users, weighted by recency.

    score(x) = 1/n * sum_j decay^j * (s * cos(x, a_j) + (1 - s) * common(x, a_j)) over the n newest history items
    a_0, a_1, ...; s is `semantic_share`, n is `last` or the length of a shorter history. The similarity of an item with
    itself is 0. `item_semantic` is (N, S). Without `mean` the sum is not divided by n. The ranking is the same, but a
    longer history has more weight if the score is added to a model's (`with_added_scores`).
    """
    unit_NS = unit_rows(item_semantic)
    own_N = np.einsum("ns,ns->n", unit_NS, unit_NS)  # cosine of an item with itself: 1, or 0 for a zero vector
    common_NN = item_cosine(sequences, len(unit_NS)).astype(np.float32)

    def score(events: Sequence[Event]) -> np.ndarray:
        weight_EN = _history_weights(events, len(unit_NS), decay, last).astype(np.float32)
        semantic_EN = (weight_EN @ unit_NS) @ unit_NS.T
        itself = weight_EN.tocoo()
        semantic_EN[itself.row, itself.col] -= itself.data * own_N[itself.col]
        score_EN = semantic_share * semantic_EN + ((1 - semantic_share) * weight_EN @ common_NN).toarray()
        if mean:
            score_EN /= np.array([[max(len(_newest(event, last)), 1)] for event in events], np.float32)
        return score_EN

    return score


def max_cosine(item_semantic: np.ndarray) -> Scorer:
    """Highest cosine of an item's text vector with those of the history; 1 for an item in the history."""
    unit_NS = unit_rows(item_semantic)
    table_NN = unit_NS @ unit_NS.T if len(unit_NS) <= MAX_TABLE_ITEMS else None

    def nearest(history: np.ndarray) -> np.ndarray:
        cosine_HN = unit_NS[history - 1] @ unit_NS.T if table_NN is None else table_NN[history - 1]
        return cosine_HN.max(0)

    return lambda events: np.stack([nearest(np.unique(event.history)) for event in events])


def with_added_scores(base: Scorer, extra: Scorer, weight: float) -> Scorer:
    """log-softmax of the base scores over all items, plus `weight` * `extra`."""
    return lambda events: log_softmax(base(events), axis=1) + weight * extra(events)


def best_scorer(scorers: Mapping[Key, Scorer], events: Sequence[Event]) -> Key:
    """Key of the scorer with the highest filtered NDCG@10 on (validation) events; the first one of equals."""
    if not scorers:
        raise ValueError("no scorers to choose from")
    return max(
        scorers, key=lambda each: float(ndcg_and_hit_rate(rank_events(scorers[each], events).filtered, 10)[0].mean())
    )


def best_added_weight(base: Scorer, extra: Scorer, events: Sequence[Event], grid: Sequence[float]) -> float:
    """Weight of `with_added_scores` with the highest filtered NDCG@10 on (validation) events."""
    return best_scorer({weight: with_added_scores(base, extra, weight) for weight in grid}, events)


def _sum(*parts: tuple[float, Scorer]) -> Scorer:
    """Weighted sum; scorers with weight 0 are not called."""
    return lambda events: sum((weight * score(events) for weight, score in parts if weight), start=np.zeros(()))


def _newest(event: Event, last: int | None) -> np.ndarray:
    """The `last` newest history items, newest first."""
    return event.history[::-1][:last]


def _history_weights(events: Sequence[Event], num_items: int, decay: float, last: int | None) -> csr_matrix:
    """Weights of the history items, (E, N): 1 for the newest; the weights of a repeated item add up."""
    newest = [_newest(event, last) for event in events]
    sizes = np.array([len(items) for items in newest])
    row = np.repeat(np.arange(len(events)), sizes)
    age = np.arange(len(row)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    column = np.concatenate([np.zeros(0, np.int64), *newest]) - 1
    return csr_matrix((decay**age, (row, column)), shape=(len(events), num_items))
