"""The history kernel: how near a candidate is to the latest items, by meaning and by who took both.

    score(x) = scale * sum over the latest items s_j of decay^j * (a R_S(s_j, x) + (1 - a) R_C(s_j, x)),  s_0 the newest

R_S is the cosine of semantic vectors, R_C = |U_s & U_x| / sqrt(|U_s| |U_x|), each stored for the nearest items only.
The form and the weights a and decay are STAR's (arXiv 2410.16458). The scale is chosen on validation once a ranker is
fitted (`fit.calibrate`), for reasons in docs/decisions/history-kernel.md.

Shape suffixes:  B batch  J latest items, newest first  N items, row 0 is padding  M stored neighbours
                 S semantic size
"""

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn
from torch.nn import functional as F

from training.config import PADDING, RankerConfig

DECAY, SEMANTIC_SHARE = 0.7, 0.3
BLOCK = 1024  # items compared at once


class HistoryKernel(nn.Module):
    """The stored nearness of items, and the scale that it counts with; zero until it is calibrated."""

    semantic_ids_NM: Tensor
    semantic_values_NM: Tensor
    cooccurrence_ids_NM: Tensor
    cooccurrence_values_NM: Tensor
    scale: Tensor

    def __init__(self, config: RankerConfig) -> None:
        super().__init__()
        shape = (config.num_items + 1, min(config.kernel_neighbours, config.num_items))
        for kind in ("semantic", "cooccurrence"):
            self.register_buffer(f"{kind}_ids_NM", torch.zeros(shape, dtype=torch.int32))
            self.register_buffer(f"{kind}_values_NM", torch.zeros(shape))
        self.register_buffer("scale", torch.zeros(()))
        self.length = config.kernel_length

    def start_from(self, semantic_NS: np.ndarray, cooccurrence_NN: sparse.csr_matrix) -> None:
        """Store the nearest items by cosine of the vectors and by R_C; row i of both is item i + 1."""
        size = self.semantic_ids_NM.shape[1]
        near_ids, near_values = nearest(torch.from_numpy(semantic_NS), size)
        self.semantic_ids_NM[1:], self.semantic_values_NM[1:] = near_ids + 1, near_values
        ids, values = strongest(cooccurrence_NN, size)
        self.cooccurrence_ids_NM[1:], self.cooccurrence_values_NM[1:] = torch.from_numpy(ids), torch.from_numpy(values)

    def forward(self, items_BT: Tensor, num_items: int) -> Tensor:
        """Scores of all items by the latest of a sequence, (B, num_items + 1); padding and newer items have none."""
        latest_BJ = items_BT[:, -self.length :].flip(-1)
        known_BJ = latest_BJ * ((latest_BJ > PADDING) & (latest_BJ < len(self.semantic_ids_NM)))
        weight_BJ1 = (self.scale * DECAY ** torch.arange(known_BJ.shape[1])).expand_as(known_BJ)[..., None]
        score_BN = torch.zeros(len(items_BT), num_items + 1)
        for ids_NM, values_NM, share in (
            (self.semantic_ids_NM, self.semantic_values_NM, SEMANTIC_SHARE),
            (self.cooccurrence_ids_NM, self.cooccurrence_values_NM, 1 - SEMANTIC_SHARE),
        ):
            parts_BJM = share * weight_BJ1 * values_NM[known_BJ]
            score_BN.scatter_add_(1, ids_NM[known_BJ].long().flatten(1), parts_BJM.flatten(1))
        score_BN[:, PADDING] = 0
        return score_BN


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
