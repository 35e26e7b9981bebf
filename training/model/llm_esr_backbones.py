"""The backbones of LLM-ESR's code (github.com/liuqidong07/LLM-ESR), to reproduce its published figures.

They differ from `backbones.py` in points that look like mistakes: SASRec has no causal mask, padding is read like an
item, and GRU4Rec learns one target per user. LLM-ESR pads all sequences to `max_length`. All padding is the same, so it
is computed once here and counted as often as it occurs, which gives the same states.

Shape suffixes:  B batch  T sequence length, oldest first  D model width  H heads  K width of a head
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.model.config import RankerConfig
from training.model.dropout import Dropout


def new_legacy_backbone(config: RankerConfig) -> nn.Module:
    return LegacyGru(config) if config.backbone == "gru4rec" else LegacyTransformer(config)


@torch.no_grad()
def initialise_legacy(ranker: nn.Module, item: nn.Embedding) -> None:
    """Xavier-normal for every matrix of the backbone, for the item embeddings, and for the vectors of MASK and padding.

    MASK and padding are rows of the item table in LLM-ESR. Other weights of the enhancer stay as they are.
    """
    for name, parameter in ranker.named_parameters():
        if parameter.ndim >= 2 and (name.startswith("backbone.") or parameter is item.weight):
            nn.init.xavier_normal_(parameter)
        elif name in {"mask", "backbone.padding"}:
            nn.init.normal_(parameter, std=math.sqrt(2 / sum(item.weight.shape)))
    item.weight[0] = 0


class LegacyBlock(nn.Module):
    """q = LN(x), x = q + MHA(q, x, x), x = LN(x), x = x + FFN(x), padding zeroed."""

    def __init__(self, config: RankerConfig) -> None:
        super().__init__()
        width = config.width
        self.num_heads = config.num_heads
        self.attention_norm = nn.LayerNorm(width, eps=1e-8)
        self.feed_forward_norm = nn.LayerNorm(width, eps=1e-8)
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))
        self.feed_forward = nn.Sequential(
            nn.Linear(width, width), Dropout(config.dropout), nn.ReLU(), nn.Linear(width, width)
        )
        self.dropout = Dropout(config.dropout)

    def forward(self, step_BTD: Tensor, mask_BT: Tensor, log_padding_B: Tensor) -> Tensor:
        query_BTD = self.attention_norm(step_BTD)
        # One zero step stands for all padding; log(count) added to its logit gives it the weight of that many steps.
        keys_BTD = F.pad(step_BTD, (0, 0, 1, 0))
        query, key, value = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for part in (self.query(query_BTD), self.key(keys_BTD), self.value(keys_BTD))
        )
        bias_BT = F.pad(torch.zeros(mask_BT.shape).masked_fill(~mask_BT, -torch.inf), (1, 0))
        bias_BT[:, 0] = log_padding_B
        logit_BHTT = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1]) + bias_BT[:, None, None, :]
        padding_BHT1, items_BHTT = logit_BHTT.softmax(-1).split([1, mask_BT.shape[1]], -1)
        # No dropout on padding: over that many separate steps, dropout would keep about the same sum.
        weights_BHTT = torch.cat([padding_BHT1, self.dropout(items_BHTT)], -1)
        read_BTD = (weights_BHTT @ value).transpose(1, 2).flatten(-2)
        step_BTD = self.feed_forward_norm(query_BTD + self.output(read_BTD))
        return (step_BTD + self.dropout(self.feed_forward(step_BTD))) * mask_BT[..., None]


class LegacyTransformer(nn.Module):
    """Both SASRec and BERT4Rec, because neither has a causal mask."""

    def __init__(self, config: RankerConfig) -> None:
        super().__init__()
        self.config = config
        self.position = nn.Embedding(config.max_length + 2, config.width, padding_idx=0)
        self.blocks = nn.ModuleList(LegacyBlock(config) for _ in range(config.num_blocks))
        self.norm = nn.LayerNorm(config.width, eps=1e-8)
        self.dropout = Dropout(config.dropout)

    def forward(self, step_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        position_BT = mask_BT.cumsum(1) * mask_BT
        step_BTD = step_BTD * math.sqrt(step_BTD.shape[-1]) + self.position(position_BT)
        step_BTD = self.dropout(step_BTD) * mask_BT[..., None]
        num_padding_B = self.config.max_length - mask_BT.sum(1)
        log_padding_B = num_padding_B.clamp(min=0).float().log()  # without padding -inf, so that it has no weight
        for block in self.blocks:
            step_BTD = block(step_BTD, mask_BT, log_padding_B)
        return self.norm(step_BTD)


class LegacyGru(nn.Module):
    """One layer without biases, which reads the embedding of padding before the first item."""

    def __init__(self, config: RankerConfig) -> None:
        super().__init__()
        self.config = config
        self.gru = nn.GRU(config.width, config.width, 1, bias=False, batch_first=True)
        self.padding = nn.Parameter(torch.zeros(config.width))  # row 0 of the item table in LLM-ESR

    def forward(self, step_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        steps_1TD = self.padding.expand(1, self.config.max_length, -1)
        after_padding_TD = F.pad(self.gru(steps_1TD)[0][0], (0, 0, 1, 0))  # row i: the state after i paddings
        num_items_B = mask_BT.sum(1)
        first_1BD = after_padding_TD[(self.config.max_length - num_items_B).clamp(min=0)][None]
        # Shift sequences left to start with their first item; states after the last item are not used.
        shift_B = mask_BT.shape[1] - num_items_B
        place_BT = (torch.arange(mask_BT.shape[1]) + shift_B[:, None]) % mask_BT.shape[1]
        left_BTD = step_BTD.gather(1, place_BT[..., None].expand_as(step_BTD))
        state_BTD, _ = self.gru(left_BTD, first_1BD.contiguous())
        back_BT = (torch.arange(mask_BT.shape[1]) - shift_B[:, None]) % mask_BT.shape[1]
        return state_BTD.gather(1, back_BT[..., None].expand_as(state_BTD))
