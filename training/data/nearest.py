"""Nearest rows by cosine, searched exactly and in blocks of bounded memory.

Shape suffixes:  A asking rows  N known rows  S size of a vector  M neighbours
"""

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK = 1024  # rows compared at once


@torch.no_grad()
def nearest(asking_AS: Tensor, known_NS: Tensor, num: int, *, are_same: bool = False) -> tuple[Tensor, Tensor]:
    """Row numbers and cosines of the known rows nearest to each asking one, both (A, M), nearest first.

    With `are_same` row i of both is the same thing: it comes last, at -1. A row of zeros has cosine 0 with all.
    """
    known_NS = F.normalize(known_NS.float(), dim=-1)
    rows, cosines = [torch.zeros(0, num, dtype=torch.long)], [torch.zeros(0, num)]
    for start in range(0, len(asking_AS), BLOCK):
        cosine_BN = F.normalize(asking_AS[start : start + BLOCK].float(), dim=-1) @ known_NS.T
        if are_same:
            row = torch.arange(len(cosine_BN))
            cosine_BN[row, row + start] = -1
        best = cosine_BN.topk(num)
        rows.append(best.indices)
        cosines.append(best.values)
    return torch.cat(rows), torch.cat(cosines)
