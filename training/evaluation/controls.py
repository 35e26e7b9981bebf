"""Scorers that need no training: what every trained model has to beat.

Each is made from the sequences known when the events are asked (`training.data.training_set.known_sequences`):
`train` for validation, `train` and `validation` for the test. Weights of the heuristics are set by hand, once per data
set; those of STAR and of whatever is added to a model are chosen on validation events (`choose`).

Shape suffixes:  E events  N items  S semantic size; item i is in row or column i - 1
"""

from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np
from scipy.sparse import csr_matrix, diags, identity
from scipy.special import log_softmax

from training.data.cooccurrence import cooccurrence, cosine, item_cosine, occurrences, transitions, user_items
from training.evaluation.evaluate import Event, Scorer, gains, rank_events

DECAY = 0.8  # of the heuristics: weight of a history item by that of the next newer one
LITTLE = 1e-6  # of popularity: it orders what is equal otherwise
MAX_TABLE_ITEMS = 20_000  # up to here all cosines of a catalogue are computed once, in at most 1.6 GB

Sequences = Sequence[np.ndarray]
Choice = TypeVar("Choice", bound=Hashable)


class StarSettings(NamedTuple):
    """What `star` wants to be told."""

    semantic_share: float
    decay: float
    last: int


STAR_GRID = [StarSettings(share, decay, last) for share in (0.3, 0.5, 0.7) for decay in (0.7, 0.9) for last in (3, 10)]


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows of length 1, float32; zeros stay."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(length == 0, 1, length)).astype(np.float32)


def popularity(sequences: Sequences, num_items: int) -> Scorer:
    """How often an item was taken."""
    num_N = occurrences(sequences, num_items).astype(np.float64)
    return lambda events: np.broadcast_to(num_N, (len(events), num_items))


def repeat_popularity(sequences: Sequences, num_items: int) -> Scorer:
    """How often the user took the item, then popularity."""
    return _sum((1.0, from_history(identity(num_items, format="csr"))), (LITTLE, popularity(sequences, num_items)))


def markov_popularity(sequences: Sequences, num_items: int) -> Scorer:
    """How often the item came right after the user's last one, then popularity."""
    next_NN = transitions(sequences, num_items)
    return _sum((1.0, from_history(next_NN, last=1)), (LITTLE, popularity(sequences, num_items)))


def knn_repeat_popularity(sequences: Sequences, num_items: int, *, repeat: float = 2.0) -> Scorer:
    """Likeness to the user's items by common users, taking an item again counting `repeat`, then popularity.

    Likeness divides by occurrences, repeats included. Meant for data with repeats.
    """
    num_N = occurrences(sequences, num_items)
    like_NN = cosine(cooccurrence(user_items(sequences, num_items)), num_N)
    kernel_NN = like_NN + repeat * identity(num_items, format="csr")
    return _sum((1.0, from_history(kernel_NN, DECAY)), (LITTLE, popularity(sequences, num_items)))


def knn(sequences: Sequences, num_items: int, *, markov: float = 0.0, popular: float = LITTLE) -> Scorer:
    """Likeness to the user's items by common users + `markov` * P(item | last item) + `popular` * popularity up to 1.

    Item-KNN as it is; with `markov` 0.3, KNN + Markov; with `popular` 0.1 too, KNN + Markov + popularity.
    """
    next_NN = transitions(sequences, num_items)
    share_NN = diags(1 / np.maximum(np.asarray(next_NN.sum(1)).ravel(), 1)) @ next_NN
    most = max(occurrences(sequences, num_items).max(), 1)
    return _sum(
        (1.0, from_history(item_cosine(sequences, num_items), DECAY)),
        (markov, from_history(share_NN.tocsr(), last=1)),
        (popular / most, popularity(sequences, num_items)),
    )


knn_markov = partial(knn, markov=0.3)
knn_markov_popularity = partial(knn, markov=0.3, popular=0.1)


def from_history(kernel_NN: csr_matrix, decay: float = 1.0, last: int | None = None) -> Scorer:
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
    """STAR (arXiv 2410.16458): likeness by text and by common users to the newest items, the newest counting most.

    score(x) = 1/n * sum_j decay^j * (a * cos(x, a_j) + (1 - a) * common(x, a_j)) over the n newest history items a_0,
    a_1, ...; `a` is `semantic_share`, n is `last` or what the history holds, and no item is like itself.
    `item_semantic` is (N, S). Without `mean` the sum is not divided by n, which leaves every ranking as it is but lets
    a longer history say more where the score is added to a model's (`plus`).
    """
    unit_NS = unit(item_semantic)
    own_N = np.einsum("ns,ns->n", unit_NS, unit_NS)  # cosine of an item with itself: 1, or 0 without a vector
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
    """The cosine of an item's text vector with that of the most similar history item; 1 for one in the history."""
    unit_NS = unit(item_semantic)
    table_NN = unit_NS @ unit_NS.T if len(unit_NS) <= MAX_TABLE_ITEMS else None

    def nearest(history: np.ndarray) -> np.ndarray:
        cosine_HN = unit_NS[history - 1] @ unit_NS.T if table_NN is None else table_NN[history - 1]
        return cosine_HN.max(0)

    return lambda events: np.stack([nearest(np.unique(event.history)) for event in events])


def plus(base: Scorer, extra: Scorer, weight: float) -> Scorer:
    """`extra`, times a weight, on top of a model's log-softmax over all items."""
    return lambda events: log_softmax(base(events), axis=1) + weight * extra(events)


def choose(scorers: Mapping[Choice, Scorer], events: Sequence[Event]) -> Choice:
    """The key of the scorer with the highest NDCG@10 on (validation) events, history left out; the first of equals."""
    if not scorers:
        raise ValueError("there is nothing to choose from")
    return max(scorers, key=lambda each: float(gains(rank_events(scorers[each], events).filtered, 10)[0].mean()))


def choose_weight(base: Scorer, extra: Scorer, events: Sequence[Event], grid: Sequence[float]) -> float:
    """The weight of `plus` that is best on (validation) events; the first of equals."""
    return choose({weight: plus(base, extra, weight) for weight in grid}, events)


def _sum(*parts: tuple[float, Scorer]) -> Scorer:
    """Weighted sum; what has no weight is not computed."""
    return lambda events: sum((weight * score(events) for weight, score in parts if weight), start=np.zeros(()))


def _newest(event: Event, last: int | None) -> np.ndarray:
    """Newest first."""
    return event.history[::-1][:last]


def _history_weights(events: Sequence[Event], num_items: int, decay: float, last: int | None) -> csr_matrix:
    """(E, N): what each event's history items weigh, 1 for the newest; the weights of an item that repeats add up."""
    newest = [_newest(event, last) for event in events]
    sizes = np.array([len(items) for items in newest])
    row = np.repeat(np.arange(len(events)), sizes)
    age = np.arange(len(row)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    column = np.concatenate([np.zeros(0, np.int64), *newest]) - 1
    return csr_matrix((decay**age, (row, column)), shape=(len(events), num_items))
