"""The history kernel: how near a candidate is to the latest items, by meaning and by who took both.

    score(x) = sum over the last J items s_j of  w_j * R_S(s_j, x) + v_j * R_C(s_j, x)

R_S is the cosine of semantic vectors, R_C = |U_s & U_x| / sqrt(|U_s| |U_x|), each stored for the nearest items only.
The form is STAR's (arXiv 2410.16458), which sets w and v by hand; here they are trained together with the rest, and
the user's attention may weigh them, so that the kernel and the sequence model each learn what the other does not know.

Training needs care: a user's own sequence is part of the counts, so its target would always look near. For the target
of a step the user is taken out of all counts; other items of the user are no candidates (see `losses.py`).

Shape suffixes:  V steps that are trained or asked  J latest items, newest first  N items, row 0 is padding
                 K candidates shared by all steps   M stored neighbours   P distinct items of a batch
"""

import math

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn
from torch.nn import functional as F

from training.config import PADDING, RankerConfig

DECAY, SEMANTIC_SHARE = 0.7, 0.3  # STAR's weights
BLOCK = 1024  # items compared at once


class HistoryKernel(nn.Module):
    """Stored nearness of items and the trained weights of the latest items."""

    semantic_ids_NM: Tensor
    semantic_values_NM: Tensor
    cooccurrence_ids_NM: Tensor
    cooccurrence_values_NM: Tensor
    num_users_N: Tensor

    def __init__(self, config: RankerConfig) -> None:
        super().__init__()
        self.length = config.kernel_length
        shape = (config.num_items + 1, min(config.kernel_neighbours, config.num_items))
        for kind in ("semantic", "cooccurrence"):
            self.register_buffer(f"{kind}_ids_NM", torch.zeros(shape, dtype=torch.int32))
            self.register_buffer(f"{kind}_values_NM", torch.zeros(shape))
        self.register_buffer("num_users_N", torch.ones(config.num_items + 1))
        recency_J = torch.arange(self.length) * math.log(DECAY)
        share = SEMANTIC_SHARE
        self.log_semantic_J = nn.Parameter(recency_J + math.log(config.kernel_scale * share))
        self.log_cooccurrence_J = nn.Parameter(recency_J + math.log(config.kernel_scale * (1 - share)))

        self.requires_grad_(config.kernel_is_trained)

    def start_from(self, semantic_NS: np.ndarray, cooccurrence_NN: sparse.csr_matrix, num_users_N: np.ndarray) -> None:
        """Store the nearest items by cosine of the vectors and by R_C; `num_users_N` is |U_x|.

        Row i of the arguments is item i + 1.
        """
        size = self.semantic_ids_NM.shape[1]
        self.num_users_N[1:] = torch.from_numpy(np.maximum(num_users_N, 1).astype(np.float32))
        near_ids, near_values = nearest(torch.from_numpy(semantic_NS), size)
        self.semantic_ids_NM[1:], self.semantic_values_NM[1:] = near_ids + 1, near_values
        ids, values = strongest(cooccurrence_NN, size)
        self.cooccurrence_ids_NM[1:], self.cooccurrence_values_NM[1:] = torch.from_numpy(ids), torch.from_numpy(values)

    def shared(self, latest_VJ: Tensor, candidates_K: Tensor, gate_VJ: Tensor | None = None) -> Tensor:
        """Scores of candidates that all steps share, (V, K), for training: each step's own user is out of the counts.

        A candidate is taken for an item that the user does not have.
        """
        unique_P, place_VJ = latest_VJ.unique(return_inverse=True)
        column_N = torch.full((len(self.num_users_N),), -1, dtype=torch.long)
        column_N[candidates_K] = torch.arange(len(candidates_K))
        semantic_VJ, cooccurrence_VJ = self._weights(latest_VJ, gate_VJ)
        table = self._dense(self.semantic_ids_NM, self.semantic_values_NM, unique_P, column_N, len(candidates_K))
        score_VK = F.embedding_bag(place_VJ, table, per_sample_weights=semantic_VJ, mode="sum")
        table = self._dense(
            self.cooccurrence_ids_NM, self.cooccurrence_values_NM, unique_P, column_N, len(candidates_K)
        )
        num_VJ = self.num_users_N[latest_VJ]
        without_user_VJ = (num_VJ / (num_VJ - 1).clamp(min=1)).sqrt()
        return score_VK + F.embedding_bag(
            place_VJ, table, per_sample_weights=cooccurrence_VJ * without_user_VJ, mode="sum"
        )

    def own(self, latest_VJ: Tensor, target_V: Tensor, gate_VJ: Tensor | None = None) -> Tensor:
        """Score of each step's own target, (V,), for training: the user is out of all counts."""
        semantic_VJ, cooccurrence_VJ = self._weights(latest_VJ, gate_VJ)
        near_VJ = _lookup(self.semantic_ids_NM, self.semantic_values_NM, latest_VJ, target_V)
        both_VJ = _lookup(self.cooccurrence_ids_NM, self.cooccurrence_values_NM, latest_VJ, target_V)
        num_VJ, num_V1 = self.num_users_N[latest_VJ], self.num_users_N[target_V][:, None]
        others_VJ = (both_VJ * (num_VJ * num_V1).sqrt() - 1).clamp(min=0)
        both_VJ = others_VJ / ((num_VJ - 1).clamp(min=1) * (num_V1 - 1).clamp(min=1)).sqrt()
        return (semantic_VJ * near_VJ + cooccurrence_VJ * both_VJ).sum(1)

    def forward(self, latest_VJ: Tensor, num_items: int, gate_VJ: Tensor | None = None) -> Tensor:
        """Scores of all items, (V, num_items + 1), for inference; zero for padding and items newer than the model."""
        semantic_VJ, cooccurrence_VJ = self._weights(latest_VJ, gate_VJ)
        known_VJ = latest_VJ * (latest_VJ < len(self.num_users_N))
        score_VN = torch.zeros(len(latest_VJ), num_items + 1)
        for ids_NM, values_NM, weight_VJ in (
            (self.semantic_ids_NM, self.semantic_values_NM, semantic_VJ),
            (self.cooccurrence_ids_NM, self.cooccurrence_values_NM, cooccurrence_VJ),
        ):
            parts_VJM = values_NM[known_VJ] * weight_VJ[..., None]
            score_VN.scatter_add_(1, ids_NM[known_VJ].long().flatten(1), parts_VJM.flatten(1))
        score_VN[:, PADDING] = 0
        return score_VN

    def _weights(self, latest_VJ: Tensor, gate_VJ: Tensor | None) -> tuple[Tensor, Tensor]:
        present_VJ = (latest_VJ > PADDING) & (latest_VJ < len(self.num_users_N))
        gate = present_VJ.float() if gate_VJ is None else present_VJ * gate_VJ
        return self.log_semantic_J.exp() * gate, self.log_cooccurrence_J.exp() * gate

    @staticmethod
    def _dense(ids_NM: Tensor, values_NM: Tensor, rows_P: Tensor, column_N: Tensor, num_columns: int) -> Tensor:
        """Stored nearness of the rows' items to the candidates, (P, K)."""
        column_PM = column_N[ids_NM[rows_P].long()]
        table = torch.zeros(len(rows_P), num_columns + 1)
        # Neighbours that are no candidates meet in a last column, which is cut off.
        table.scatter_(1, column_PM.where(column_PM >= 0, torch.tensor(num_columns)), values_NM[rows_P])
        return table[:, :num_columns].contiguous()


def latest(items_BT: Tensor, length: int) -> Tensor:
    """The last `length` items up to each step, newest first, (B, T, J); padding where there are fewer."""
    padded = F.pad(items_BT.clamp(min=PADDING), (length - 1, 0))
    return padded.unfold(1, length, 1).flip(-1)


def nearest(semantic_NS: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Rows and cosines of the k nearest others of each row, (N, k)."""
    unit_NS = F.normalize(semantic_NS.float(), dim=-1)
    ids, values = [], []
    for start in range(0, len(unit_NS), BLOCK):
        similarity = unit_NS[start : start + BLOCK] @ unit_NS.T
        row = torch.arange(len(similarity))
        similarity[row, row + start] = 0  # an item says nothing about itself
        found = similarity.topk(k)
        ids.append(found.indices)
        values.append(found.values.clamp(min=0))
    return torch.cat(ids), torch.cat(values)


def strongest(matrix: sparse.csr_matrix, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Item indices (from 1, 0 where there are fewer) and values of the k largest entries of each row, (N, k)."""
    ids = np.zeros((matrix.shape[0], k), np.int32)
    values = np.zeros((matrix.shape[0], k), np.float32)
    for row in range(matrix.shape[0]):
        begin, end = matrix.indptr[row], matrix.indptr[row + 1]
        order = np.argsort(-matrix.data[begin:end], kind="stable")[:k]
        ids[row, : len(order)] = matrix.indices[begin:end][order] + 1
        values[row, : len(order)] = matrix.data[begin:end][order]
    return ids, values


def _lookup(ids_NM: Tensor, values_NM: Tensor, latest_VJ: Tensor, target_V: Tensor) -> Tensor:
    is_target_VJM = ids_NM[latest_VJ] == target_V[:, None, None]
    return (values_NM[latest_VJ] * is_target_VJM).sum(-1)
