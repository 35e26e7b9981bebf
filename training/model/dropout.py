"""Dropout from random bytes. torch draws one number per element, which took a quarter of an epoch on a CPU."""

import torch
from torch import Tensor, nn

STEPS = 256  # values of a byte; the share is rounded to a multiple of 1/256


class Dropout(nn.Module):
    """`nn.Dropout` at a third of its cost. Raises `ValueError` for a share outside [0, 1)."""

    def __init__(self, share: float) -> None:
        super().__init__()
        if not 0 <= share < 1:
            raise ValueError(f"dropout {share} is not in [0, 1)")
        self.num_dropped = min(round(share * STEPS), STEPS - 1)

    def forward(self, values: Tensor) -> Tensor:
        """Zero a share of the values and scale up the rest to keep the mean; in training only."""
        if not self.training or not self.num_dropped:
            return values
        size = values.numel()
        eight_bytes = torch.empty((size + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
        kept = eight_bytes.view(torch.uint8)[:size].view(values.shape) >= self.num_dropped
        return values * (kept * (STEPS / (STEPS - self.num_dropped)))
