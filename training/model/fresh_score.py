"""What fresh features add to the score of an item: how many took it lately, and what similar users took.

    added(x) = sum over windows w of takers_weight_w * log(1 + takers_w(x))
             + vote_weight * log(1 + 1000 * weight of x among the stored votes)
            or state_vote_weight * log(1 + 30 * weight of x among the state votes)

*Stored votes* are those of the daily features: of recent moments with similar texts and items. *State votes* are those
of recent moments that are similar to this ranker (`grasp/moments.py`). They take the place of the stored ones wherever
they can be had. No weight is a part of the sequence's model, so fresh features work with any backbone and know what
happened after the training. The weights are zero until they are fitted to validation targets
(`training/fitting/fresh_calibration.py`).

Shape suffixes:  W windows of `TAKER_DAYS`  N items  V voted items
"""

import torch
from torch import Tensor, nn

from grasp.tables import TAKER_DAYS

VOTE_SCALE, STATE_VOTE_SCALE = 1000.0, 30.0  # of shares of all votes, and of sums of votes


class FreshScore(nn.Module):
    """The weights of takers and votes."""

    takers_weight_W: Tensor
    vote_weight: Tensor
    state_vote_weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("takers_weight_W", torch.zeros(len(TAKER_DAYS)))
        self.register_buffer("vote_weight", torch.zeros(()))
        self.register_buffer("state_vote_weight", torch.zeros(()))

    @property
    def reads_takers(self) -> bool:
        return bool(self.takers_weight_W.any())

    @property
    def reads_votes(self) -> bool:
        """Whether stored votes count, where no state votes can be had."""
        return bool(self.vote_weight)

    @property
    def reads_state_votes(self) -> bool:
        return bool(self.state_vote_weight)

    def of_takers(self, takers_WN: Tensor) -> Tensor:
        """What the numbers of takers add to each item's score, (N,)."""
        return self.takers_weight_W @ takers_of(takers_WN)

    def of_votes(self, weight_V: Tensor) -> Tensor:
        """What stored votes add to the scores of voted items, (V,)."""
        return self.vote_weight * votes_of(weight_V)

    def of_state_votes(self, weight_V: Tensor) -> Tensor:
        """What state votes add to the scores of voted items, (V,)."""
        return self.state_vote_weight * state_votes_of(weight_V)


def takers_of(takers_WN: Tensor) -> Tensor:
    """Numbers of takers as the score reads them, (W, N)."""
    return takers_WN.float().log1p()


def votes_of(weight_V: Tensor) -> Tensor:
    """Weights of stored votes as the score reads them, (V,)."""
    return (VOTE_SCALE * weight_V.float()).log1p()


def state_votes_of(weight_V: Tensor) -> Tensor:
    """Weights of state votes as the score reads them, (V,)."""
    return (STATE_VOTE_SCALE * weight_V.float()).log1p()
