"""Nearest rows by cosine: an exact search in blocks of bounded memory.

Shape suffixes:  Q query rows  N known rows  S size of a vector  M neighbours
"""

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK_ROWS = 1024  # query rows compared at once


@torch.no_grad()
def nearest_rows(query_QS: Tensor, known_NS: Tensor, num: int, *, same_rows: bool = False) -> tuple[Tensor, Tensor]:
    """Row numbers and cosines of the `num` known rows nearest to each query row, both (Q, M), nearest first.

    With `same_rows` both inputs hold the same rows: the cosine of a row with itself is set to -1, so it comes last.
    A row of zeros has cosine 0 with every row.
    """
    known_NS = F.normalize(known_NS.float(), dim=-1)
    rows, cosines = [torch.zeros(0, num, dtype=torch.long)], [torch.zeros(0, num)]
    for start in range(0, len(query_QS), BLOCK_ROWS):
        cosine_BN = F.normalize(query_QS[start : start + BLOCK_ROWS].float(), dim=-1) @ known_NS.T
        if same_rows:
            row = torch.arange(len(cosine_BN))
            cosine_BN[row, row + start] = -1
        nearest = cosine_BN.topk(num)
        rows.append(nearest.indices)
        cosines.append(nearest.values)
    return torch.cat(rows), torch.cat(cosines)
