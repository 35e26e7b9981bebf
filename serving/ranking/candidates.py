"""Who scores highest for a state: every item scored, or of a large catalogue those that an index finds.

score(x) = state . candidate_x + what the history kernel adds to x. The kernel adds to a few hundred items only: these
are scored beside what the index finds, so that the index has to find what is near to the state and nothing else.

Shape suffixes:  N items   D width of a state   L additions, an item may have several   R chosen rows
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

NUM_FOUND = 4000  # rows that the index is asked for: what its rounding puts out of order is put right among them
SPARE = 2  # times k that must be left of them once what must not be shown is gone, or every item is scored
LEAST_RECALL, RECALL_AT = 0.98, 100
NUM_FITTED = 16_384  # rows that the index's 16 values of a coordinate are fitted to
FEW = 12  # a twelfth of the rows is sooner gathered than all are read

log = logging.getLogger("grasp.serving")


@dataclass(frozen=True)
class Additions:
    """What the history kernel adds to some rows; a row that is named twice gets both."""

    row_L: Tensor
    value_L: Tensor


NOTHING = Additions(torch.zeros(0, dtype=torch.long), torch.zeros(0))


class Index:
    """Inner products with 4 bits a coordinate, 16 table lookups at once (FAISS fast scan): reads all, skips nothing."""

    def __init__(self, candidate_ND: np.ndarray) -> None:
        import faiss

        num, width = candidate_ND.shape
        self._faiss = faiss
        self._index = faiss.index_factory(width, f"PQ{width}x4fs", faiss.METRIC_INNER_PRODUCT)
        faiss.omp_set_num_threads(1)
        fitted = np.random.default_rng(0).choice(num, min(num, NUM_FITTED), replace=False)
        self._index.train(candidate_ND[np.sort(fitted)])
        self._index.add(candidate_ND)

    @property
    def num_bytes(self) -> int:
        """Memory of the codes."""
        return int(self._index.ntotal * self._index.d // 2)

    def search(self, state_D: np.ndarray, num: int) -> np.ndarray:
        """About the `num` rows of largest inner product, unordered."""
        self._faiss.omp_set_num_threads(1)  # of the calling thread alone, and each request may have another
        _, found = self._index.search(state_D[None], min(num, self._index.ntotal))
        rows: np.ndarray = found[0]
        return rows[rows >= 0]


class Candidates:
    """The table that states are multiplied with. All methods may be called from several threads."""

    def __init__(self, candidate_ND: Tensor, index: Index | None = None) -> None:
        self.candidate_ND = candidate_ND
        self.index = index

    def scores(self, state_D: Tensor, added: Additions = NOTHING) -> np.ndarray:
        """Of every item, (N,)."""
        score_N = torch.mv(self.candidate_ND, state_D).index_add_(0, added.row_L, added.value_L)
        return score_N.numpy()

    def scores_of(self, row_R: np.ndarray, state_D: Tensor, added: Additions = NOTHING) -> np.ndarray:
        """Of some rows, ascending and each once, (R,)."""
        score_R = torch.mv(self.candidate_ND[torch.from_numpy(row_R)], state_D)
        place_L = np.searchsorted(row_R, added.row_L.numpy())
        is_chosen_L = np.append(row_R, -1)[place_L] == added.row_L.numpy()
        score_R.index_add_(0, torch.from_numpy(place_L[is_chosen_L]), added.value_L[torch.from_numpy(is_chosen_L)])
        return score_R.numpy()

    def best(
        self, k: int, state_D: Tensor, added: Additions, hidden_rows: Sequence[int], shown_N: np.ndarray | None
    ) -> list[tuple[int, float]]:
        """The k best rows with their scores, ties by row: of those in `shown_N`, all when None, without the hidden."""
        row_R = self._chosen(k, state_D, added, hidden_rows, shown_N)
        if row_R is not None:
            return [(int(row_R[place]), score) for place, score in top(self.scores_of(row_R, state_D, added), k)]
        score_N = self.scores(state_D, added)
        if shown_N is not None:
            score_N[~shown_N] = -np.inf
        score_N[list(hidden_rows)] = -np.inf
        return top(score_N, k)

    def _chosen(
        self, k: int, state_D: Tensor, added: Additions, hidden_rows: Sequence[int], shown_N: np.ndarray | None
    ) -> np.ndarray | None:
        """Rows among which the best are, ascending and each once; None where all have to be scored."""
        if shown_N is not None and np.count_nonzero(shown_N) * FEW < len(shown_N):
            return np.setdiff1d(np.flatnonzero(shown_N), hidden_rows)
        if self.index is None:
            return None
        found = _left(self.index.search(state_D.numpy(), NUM_FOUND), hidden_rows, shown_N)
        if len(found) < SPARE * k:
            return None
        return np.union1d(found, _left(added.row_L.numpy(), hidden_rows, shown_N))


def _left(rows: np.ndarray, hidden_rows: Sequence[int], shown_N: np.ndarray | None) -> np.ndarray:
    """Those that may be shown, ascending and each once."""
    return np.setdiff1d(rows if shown_N is None else rows[shown_N[rows]], hidden_rows)


def indexed(candidate_ND: Tensor, state_QD: Tensor) -> Candidates:
    """Candidates with an index, or without one when it finds too little of what these states are best served with."""
    started = time.perf_counter()
    index = Index(candidate_ND.numpy())
    seconds, exact, searched = time.perf_counter() - started, Candidates(candidate_ND), Candidates(candidate_ND, index)
    found = recall(exact, searched, state_QD)
    words = f"index of {len(candidate_ND):,} items built in {seconds:.1f} s, recall@{RECALL_AT} {found:.4f}"
    if found < LEAST_RECALL:
        log.warning("%s is below %.2f: every item is scored at every request", words, LEAST_RECALL)
        return exact
    log.info("%s over %d states", words, len(state_QD))
    return searched


def recall(exact: Candidates, searched: Candidates, state_QD: Tensor) -> float:
    """Mean share of the best `RECALL_AT` that is found."""
    shares = []
    for state_D in state_QD:
        expected, found = (
            {row for row, _ in each.best(RECALL_AT, state_D, NOTHING, (), None)} for each in (exact, searched)
        )
        shares.append(len(expected & found) / max(len(expected), 1))
    return float(np.mean(shares))
