"""The history kernel: the similarity of a candidate to the latest items of the sequence, of three kinds.

    score(x) = sum over kinds k of weight_k * sum over the latest items s_j of 0.7^j * R_k(s_j, x),  s_0 the newest

    semantic      cosine of whitened semantic vectors
    transition    sum over d = 1..5 of 0.6^(d-1) * |x taken d steps after s| / sqrt(|s| |x|)
    cooccurrence  |users of both| / sqrt(|users of s| * |users of x|)

The form and the last kind are from STAR (arXiv 2410.16458). Each R is stored for the most similar items only. The
weights are chosen on the validation targets after the ranker is fitted (`training/fitting/kernel_calibration.py`);
docs/decisions/history-kernel.md explains why they are not trained.

Shape suffixes:  B batch  T sequence length  J latest items, newest first  N items, row 0 is padding
                 M stored items  K kinds  L stored entries of all latest items  S semantic size  C components
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn
from torch.nn import functional as F

from training.data.cooccurrence import cosine, item_cosine, item_counts, transitions
from training.data.nearest import nearest_rows
from training.model.config import PADDING, RankerConfig
from training.model.semantic_adapter import whitening_map

KINDS = ("semantic", "transition", "cooccurrence")
DECAY = 0.7  # weight of a history item relative to the next newer one
WINDOW, WINDOW_DECAY = 5, 0.6  # longest transition in steps, and the decay of the weight per step
NUM_NEWEST = 200  # items of a user that are counted, because pairs grow with the square
NUM_COMPONENTS = 256  # whitened components that the semantic similarity compares


class HistoryKernel(nn.Module):
    """The stored similarities of each kind, and the weights of the kinds, which are zero until calibration."""

    weights_K: Tensor

    def __init__(self, config: RankerConfig) -> None:
        super().__init__()
        self.num_rows, self.num_stored = config.num_items + 1, min(config.kernel_neighbours, config.num_items)
        for kind in KINDS:
            self.register_buffer(f"{kind}_ids_NM", torch.zeros(self.num_rows, self.num_stored, dtype=torch.int32))
            self.register_buffer(f"{kind}_values_NM", torch.zeros(self.num_rows, self.num_stored))
        self.register_buffer("weights_K", torch.zeros(len(KINDS)))
        self.length = config.kernel_length

    def initialise_from(self, semantic_NS: np.ndarray, sequences: Sequence[np.ndarray]) -> None:
        """Store the most similar items of each kind, from vectors (row i holds item i + 1) and training sequences."""
        num_items = len(semantic_NS)
        sequences = [items[-NUM_NEWEST:] for items in sequences]
        components_NC = whiten(torch.from_numpy(semantic_NS))
        rows_NM, cosines_NM = nearest_rows(components_NC, components_NC, self.num_stored, same_rows=True)
        self._store("semantic", rows_NM + 1, cosines_NM.clamp(min=0))
        for kind, similarity_NN in (
            ("transition", cosine(window_transitions(sequences, num_items), item_counts(sequences, num_items))),
            ("cooccurrence", item_cosine(sequences, num_items)),
        ):
            ids, values = largest_entries(similarity_NN, self.num_stored)
            self._store(kind, torch.from_numpy(ids), torch.from_numpy(values))

    def _store(self, kind: str, ids_NM: Tensor, values_NM: Tensor) -> None:
        self.get_buffer(f"{kind}_ids_NM")[1:] = ids_NM
        self.get_buffer(f"{kind}_values_NM")[1:] = values_NM

    def forward(self, items_BT: Tensor, num_items: int) -> Tensor:
        """Scores of all items, (B, num_items + 1); 0 for padding and for items newer than the model."""
        score_BN = torch.zeros(len(items_BT), num_items + 1)
        for weight, (ids_BL, values_BL) in zip(self.weights_K, self._stored_entries(items_BT), strict=True):
            score_BN.scatter_add_(1, ids_BL, weight * values_BL)
        score_BN[:, PADDING] = 0
        return score_BN

    def sparse_scores(self, items_T: Tensor) -> tuple[Tensor, Tensor]:
        """The scores of `forward` for one sequence without padding, as items and values, both (L,).

        An item may occur several times; its values add up.
        """
        latest_J = items_T[-self.length :].flip(-1)
        known_J = latest_J * (latest_J < self.num_rows)
        decay_J1 = DECAY ** torch.arange(len(known_J))[:, None]
        item_L, value_L = (
            torch.stack([self.get_buffer(f"{kind}_{name}_NM")[known_J] for kind in KINDS]) for name in ("ids", "values")
        )
        item_L, value_L = item_L.flatten(), (self.weights_K[:, None, None] * decay_J1 * value_L).flatten()
        is_item_L = item_L != PADDING
        return item_L[is_item_L].long(), value_L[is_item_L]

    def losses(self, items_T: Tensor, items_R: Sequence[int]) -> np.ndarray:
        """How much the scores of `items_R` fall when each item of a sequence is taken out of it, (T, R); exact.

        Without an item, all older ones move up by one place, and one more is read.
        """
        latest_P = items_T[-self.length - 1 :].numpy()[::-1]
        known_P = latest_P * (latest_P < self.num_rows)
        # NumPy, because for so few numbers torch's calls take longer than the work.
        ids_PX, values_PX = (
            np.concatenate([self.get_buffer(f"{kind}_{name}_NM").numpy()[known_P] for kind in KINDS], 1)
            for name in ("ids", "values")
        )
        values_PX = values_PX * np.repeat(self.weights_K.numpy(), self.num_stored)
        order_R = np.argsort(items_R)
        sorted_R = np.asarray(items_R)[order_R]
        place_PX = np.searchsorted(sorted_R, ids_PX).clip(max=len(items_R) - 1)
        p_F, x_F = np.nonzero(sorted_R[place_PX] == ids_PX)
        stored_PR = np.zeros((len(known_P), len(items_R)), dtype=np.float32)
        np.add.at(stored_PR, (p_F, order_R[place_PX[p_F, x_F]]), values_PX[p_F, x_F])
        decay_P1 = DECAY ** np.arange(len(known_P), dtype=np.float32)[:, None]
        counted_PR, moved_up_PR = stored_PR * decay_P1, stored_PR * decay_P1 / DECAY
        counted_PR[self.length :] = 0
        change_PR = counted_PR - moved_up_PR
        older_PR = change_PR[::-1].cumsum(0)[::-1] - change_PR  # of all older items together
        loss_TR = np.zeros((len(items_T), len(items_R)), dtype=np.float32)
        loss_TR[len(items_T) - len(known_P) :] = (counted_PR + older_PR)[::-1]
        return loss_TR

    def unweighted_scores(self, items_BT: Tensor, num_items: int) -> Tensor:
        """The scores of each kind before weighting, (K, B, num_items + 1)."""
        scores_KBN = torch.zeros(len(KINDS), len(items_BT), num_items + 1)
        for scores_BN, (ids_BL, values_BL) in zip(scores_KBN, self._stored_entries(items_BT), strict=True):
            scores_BN.scatter_add_(1, ids_BL, values_BL)
        scores_KBN[..., PADDING] = 0
        return scores_KBN

    def _stored_entries(self, items_BT: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """For each kind, the stored items of the latest items and their decayed values, both (B, L)."""
        latest_BJ = items_BT[:, -self.length :].flip(-1)
        known_BJ = latest_BJ * ((latest_BJ > PADDING) & (latest_BJ < self.num_rows))
        decay_J1 = DECAY ** torch.arange(known_BJ.shape[1])[:, None]
        for kind in KINDS:
            ids_BJM = self.get_buffer(f"{kind}_ids_NM")[known_BJ].long()
            values_BJM = decay_J1 * self.get_buffer(f"{kind}_values_NM")[known_BJ]
            yield ids_BJM.flatten(1), values_BJM.flatten(1)


def whiten(semantic_NS: Tensor) -> Tensor:
    """Whitened components, whose cosine separates items better than that of raw sentence vectors.

    Zero vectors stay zero; otherwise whitening would make all items without a vector similar.
    """
    weight_CS, bias_C = whitening_map(semantic_NS.float(), min(NUM_COMPONENTS, semantic_NS.shape[1]))
    return F.linear(semantic_NS.float(), weight_CS, bias_C) * semantic_NS.any(1, keepdim=True)


def window_transitions(sequences: Sequence[np.ndarray], num_items: int) -> sparse.csr_matrix:
    """How often item x came up to `WINDOW` steps after item a, weighted by distance: (N, N), row a, column x."""
    counts_NN = sparse.csr_matrix((num_items, num_items))
    for steps in range(1, WINDOW + 1):
        counts_NN = counts_NN + WINDOW_DECAY ** (steps - 1) * transitions(sequences, num_items, steps)
    counts_NN.setdiag(0)  # an item does not support itself
    counts_NN.eliminate_zeros()
    return counts_NN


def largest_entries(matrix: sparse.csr_matrix, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Item indices (from 1) and values of the k largest entries of each row, both (N, k); 0 if a row has fewer."""
    ids = np.zeros((matrix.shape[0], k), np.int32)
    values = np.zeros((matrix.shape[0], k), np.float32)
    for row in range(matrix.shape[0]):
        begin, end = matrix.indptr[row], matrix.indptr[row + 1]
        order = np.argsort(-matrix.data[begin:end], kind="stable")[:k]
        ids[row, : len(order)] = matrix.indices[begin:end][order] + 1
        values[row, : len(order)] = matrix.data[begin:end][order]
    return ids, values
