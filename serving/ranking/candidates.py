"""Find the best items for a state: score every item, or search a large catalogue with an index.

score(x) = state . candidate_x + what the history kernel and votes add to x + what its recent takers add to x

The kernel and votes add to a few hundred items only. These are always scored, and so are the items to which takers add
most, so the index only has to find the items near the state.

Shape suffixes:  N items   D width of a state   L additions of kernel and votes (an item may have several)
                 R rows to score   Q sampled states
"""

# ruff: noqa: N803, N815 - the shape suffixes above

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from serving.ranking.items import top

NUM_INDEX_ROWS = 4000  # the index rounds, so it returns many rows, which are then scored exactly
NUM_HOT_ROWS = 2000  # rows to which recent takers add most, scored whatever the index finds
MIN_SPARE = 2  # score every item when fewer than this times k of the index's rows may be shown
MIN_RECALL, RECALL_AT = 0.98, 100
NUM_TRAINING_ROWS = 16_384  # rows that the index's code book is trained on
NUM_ADDED_ROWS = 65_536  # rows that are added at once
GATHER_DIVISOR = 12  # below 1/12 of the rows, gathering is faster than a full scan

log = logging.getLogger("grasp.serving")


@dataclass(frozen=True)
class Additions:
    """What is added to the scores of some rows. A row that occurs twice gets both values."""

    row_L: Tensor
    value_L: Tensor

    def __add__(self, other: "Additions") -> "Additions":
        pairs = (self.row_L, other.row_L), (self.value_L, other.value_L)
        return Additions(*(torch.cat(pair) for pair in pairs))


NO_ADDITIONS = Additions(torch.zeros(0, dtype=torch.long), torch.zeros(0))


class Index:
    """Approximate inner products with 4 bits per coordinate (FAISS fast scan). It scans all rows, with no clusters."""

    def __init__(self, candidate_ND: np.ndarray) -> None:
        """The vectors may have half precision."""
        import faiss

        num, width = candidate_ND.shape
        self._faiss = faiss
        self._index = faiss.index_factory(width, f"PQ{width}x4fs", faiss.METRIC_INNER_PRODUCT)
        faiss.omp_set_num_threads(1)
        training_rows = np.random.default_rng(0).choice(num, min(num, NUM_TRAINING_ROWS), replace=False)
        self._index.train(candidate_ND[np.sort(training_rows)].astype(np.float32))
        for start in range(0, num, NUM_ADDED_ROWS):
            self._index.add(candidate_ND[start : start + NUM_ADDED_ROWS].astype(np.float32, copy=False))

    @property
    def num_bytes(self) -> int:
        """Memory that the codes take."""
        return int(self._index.ntotal * self._index.d // 2)

    def search(self, state_D: np.ndarray, num: int) -> np.ndarray:
        """Approximately the `num` rows with the largest inner products, in no order."""
        self._faiss.omp_set_num_threads(1)  # FAISS keeps this per thread, and any thread may call
        _, found = self._index.search(state_D[None], min(num, self._index.ntotal))
        rows: np.ndarray = found[0]
        return rows[rows >= 0]


class Candidates:
    """The item vectors that a state is multiplied with. All methods are safe to call from several threads."""

    def __init__(self, candidate_ND: Tensor, index: Index | None = None, takers_N: Tensor | None = None) -> None:
        """`takers_N` is what recent takers add to each row; None adds nothing."""
        self.candidate_ND = candidate_ND
        self.index = index
        self.takers_N = takers_N
        self._hot_R = np.zeros(0, np.int64)
        if index is not None and takers_N is not None:
            best = takers_N.topk(min(NUM_HOT_ROWS, len(takers_N)))
            self._hot_R = best.indices[best.values > 0].numpy()

    def scores(self, state_D: Tensor, added: Additions = NO_ADDITIONS) -> np.ndarray:
        """Scores of all items, (N,)."""
        score_N = torch.mv(self.candidate_ND, state_D)
        if self.takers_N is not None:
            score_N += self.takers_N
        return score_N.index_add_(0, added.row_L, added.value_L).numpy()

    def scores_of(self, row_R: np.ndarray, state_D: Tensor, added: Additions = NO_ADDITIONS) -> np.ndarray:
        """Scores of some rows, (R,). The rows must be ascending and distinct."""
        rows = torch.from_numpy(row_R)
        score_R = torch.mv(self.candidate_ND[rows], state_D)
        if self.takers_N is not None:
            score_R += self.takers_N[rows]
        place_L = np.searchsorted(row_R, added.row_L.numpy())
        is_scored_L = np.append(row_R, -1)[place_L] == added.row_L.numpy()
        score_R.index_add_(0, torch.from_numpy(place_L[is_scored_L]), added.value_L[torch.from_numpy(is_scored_L)])
        return score_R.numpy()

    def best(
        self, k: int, state_D: Tensor, added: Additions, hidden_rows: Sequence[int], shown_N: np.ndarray | None
    ) -> list[tuple[int, float]]:
        """The k best rows with their scores, ties by row.

        `shown_N` marks the rows that may be shown, None means all. `hidden_rows` are left out in any case.
        """
        row_R = self._rows_to_score(k, state_D, added, hidden_rows, shown_N)
        if row_R is not None:
            return [(int(row_R[place]), score) for place, score in top(self.scores_of(row_R, state_D, added), k)]
        score_N = self.scores(state_D, added)
        if shown_N is not None:
            score_N[~shown_N] = -np.inf
        score_N[list(hidden_rows)] = -np.inf
        return top(score_N, k)

    def _rows_to_score(
        self, k: int, state_D: Tensor, added: Additions, hidden_rows: Sequence[int], shown_N: np.ndarray | None
    ) -> np.ndarray | None:
        """The rows to score, ascending and distinct; None for all rows."""
        if shown_N is not None and np.count_nonzero(shown_N) * GATHER_DIVISOR < len(shown_N):
            return np.setdiff1d(np.flatnonzero(shown_N), hidden_rows)
        if self.index is None:
            return None
        found = _visible(self.index.search(state_D.numpy(), NUM_INDEX_ROWS), hidden_rows, shown_N)
        if len(found) < MIN_SPARE * k:
            return None
        others = np.concatenate([added.row_L.numpy(), self._hot_R])
        return np.union1d(found, _visible(others, hidden_rows, shown_N))


def _visible(rows: np.ndarray, hidden_rows: Sequence[int], shown_N: np.ndarray | None) -> np.ndarray:
    """The rows that may be shown, ascending and distinct."""
    return np.setdiff1d(rows if shown_N is None else rows[shown_N[rows]], hidden_rows)


def indexed_candidates(candidate_ND: Tensor, state_QD: Tensor, takers_N: Tensor | None = None) -> Candidates:
    """Candidates with an index, or without one when its recall on these states is below `MIN_RECALL`.

    The recall is of what is served: with the additions of takers.
    """
    started = time.perf_counter()
    index = Index(candidate_ND.numpy())
    seconds = time.perf_counter() - started
    exact = Candidates(candidate_ND, takers_N=takers_N)
    searched = Candidates(candidate_ND, index, takers_N)
    found = recall(exact, searched, state_QD)
    summary = f"index of {len(candidate_ND):,} items built in {seconds:.1f} s, recall@{RECALL_AT} {found:.4f}"
    if found < MIN_RECALL:
        log.warning("%s is below %.2f: every request scores all items instead", summary, MIN_RECALL)
        return exact
    log.info("%s over %d states", summary, len(state_QD))
    return searched


def recall(exact: Candidates, searched: Candidates, state_QD: Tensor) -> float:
    """Share of the exact best `RECALL_AT` rows that `searched` finds, averaged over the states."""
    shares = []
    for state_D in state_QD:
        expected, found = (
            {row for row, _ in each.best(RECALL_AT, state_D, NO_ADDITIONS, (), None)} for each in (exact, searched)
        )
        shares.append(len(expected & found) / max(len(expected), 1))
    return float(np.mean(shares))
