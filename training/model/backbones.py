"""The backbones (sequence encoders): SASRec and BERT4Rec, which are Transformers, and GRU4Rec.

Shape suffixes:  B batch  T sequence length, oldest first  D model width  H heads  K width of a head
"""

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.model.attention import attention_mask
from training.model.config import RankerConfig
from training.model.dropout import Dropout


def new_backbone(config: RankerConfig) -> nn.Module:
    """A module that maps inputs (B, T, D) and the mask of items (B, T) to states (B, T, D)."""
    if config.variant == "legacy":
        from training.model.llm_esr_backbones import new_legacy_backbone

        return new_legacy_backbone(config)
    if config.backbone == "gru4rec":
        return GruBackbone(config)
    return TransformerBackbone(config, is_causal=config.backbone == "sasrec")


class Block(nn.Module):
    """One pre-norm Transformer block."""

    def __init__(self, config: RankerConfig, hidden: int) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.attention_norm, self.feed_forward_norm = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.query_key_value = nn.Linear(config.width, 3 * config.width)
        self.output = nn.Linear(config.width, config.width)
        self.feed_forward = nn.Sequential(
            nn.Linear(config.width, hidden), nn.GELU(), Dropout(config.dropout), nn.Linear(hidden, config.width)
        )
        self.dropout = Dropout(config.dropout)

    def forward(self, step_BTD: Tensor, allowed_BHTT: Tensor | None, *, is_causal: bool = False) -> Tensor:
        """Without padding, pass `is_causal` instead of a mask."""
        query, key, value = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for part in self.query_key_value(self.attention_norm(step_BTD)).chunk(3, -1)
        )
        # No dropout on attention weights: torch would not use its fused kernel, and an epoch would take twice as long.
        read_BHTK = F.scaled_dot_product_attention(query, key, value, allowed_BHTT, is_causal=is_causal)
        return self._residual(step_BTD, read_BHTK.transpose(1, 2).flatten(-2))

    def last_state(self, step_BTD: Tensor) -> Tensor:
        """The output of `forward` for the last step, (B, 1, D), which reads all steps; for inference.

        Needs no keys and values: q . (W_k x) = (W_k' q) . x, and a mean of values is the value of the mean.
        """
        normed_BTD, last_B1D = self.attention_norm(step_BTD), step_BTD[:, -1:]
        weight, bias = self.query_key_value.weight.chunk(3), self.query_key_value.bias.chunk(3)
        query_BHK = F.linear(normed_BTD[:, -1], weight[0], bias[0]).unflatten(-1, (self.num_heads, -1))
        key_HKD, value_HKD = (part.unflatten(0, (self.num_heads, -1)) for part in weight[1:])
        key_query_BHD = torch.einsum("bhk,hkd->bhd", query_BHK, key_HKD) * query_BHK.shape[-1] ** -0.5
        mean_BHD = (key_query_BHD @ normed_BTD.transpose(1, 2)).softmax(-1) @ normed_BTD
        read_BHK = torch.einsum("bhd,hkd->bhk", mean_BHD, value_HKD)
        return self._residual(last_B1D, (read_BHK.flatten(1) + bias[2])[:, None])

    def last_states_without(self, step_BTD: Tensor, num: int, *, is_causal: bool) -> Tensor:
        """`last_state` as if the last step did not read one of the `num` latest, and then as it is, (B, num + 1, D).

        In a causal block, the row without the last step is the output for the step before it: exactly what the sequence
        gives without its newest item. Needs two steps.
        """
        normed_BTD = self.attention_norm(step_BTD)
        weight, bias = self.query_key_value.weight.chunk(3), self.query_key_value.bias.chunk(3)
        key_HKD, value_HKD = (part.unflatten(0, (self.num_heads, -1)) for part in weight[1:])
        query_BHQK = (
            F.linear(normed_BTD[:, -2:], weight[0], bias[0]).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        )
        key_query_BHQD = query_BHQK @ key_HKD * query_BHQK.shape[-1] ** -0.5
        logit_BHQT = key_query_BHQD @ normed_BTD[:, None].transpose(-1, -2)
        if is_causal:
            logit_BHQT[:, :, 0, -1] = -torch.inf
        share_BHQT = logit_BHQT.softmax(-1)
        mean_BHQD = share_BHQT @ normed_BTD[:, None]
        share_BHT1 = share_BHQT[:, :, 1, -num:, None]
        rest_BHTD = (mean_BHQD[:, :, 1:] - share_BHT1 * normed_BTD[:, None, -num:]) / (1 - share_BHT1).clamp(min=1e-6)
        mean_BHTD = torch.cat([rest_BHTD, mean_BHQD[:, :, 1:]], 2)
        last_BTD = step_BTD[:, -1:].repeat(1, mean_BHTD.shape[2], 1)
        if is_causal:
            mean_BHTD[:, :, -2], last_BTD[:, -2] = mean_BHQD[:, :, 0], step_BTD[:, -2]
        read_BTHK = (mean_BHTD @ value_HKD.transpose(-1, -2)).transpose(1, 2)
        return self._residual(last_BTD, read_BTHK.flatten(2) + bias[2])

    def _residual(self, step_BTD: Tensor, read_BTD: Tensor) -> Tensor:
        step_BTD = step_BTD + self.dropout(self.output(read_BTD))
        return step_BTD + self.dropout(self.feed_forward(self.feed_forward_norm(step_BTD)))


class TransformerBackbone(nn.Module):
    """SASRec (causal) or BERT4Rec (every step reads all steps)."""

    def __init__(self, config: RankerConfig, *, is_causal: bool) -> None:
        super().__init__()
        self.is_causal = is_causal
        self.position = nn.Embedding(
            config.max_length + 2, config.width, padding_idx=0
        )  # padding, max_length items, and the mask
        nn.init.normal_(self.position.weight[1:], std=0.02)
        hidden = config.width if is_causal else 4 * config.width
        self.blocks = nn.ModuleList(Block(config, hidden) for _ in range(config.num_blocks))
        self.norm = nn.LayerNorm(config.width)
        self.dropout = Dropout(config.dropout)

    def forward(self, step_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        # Positions count items only, so that padding has no effect.
        position_BT = mask_BT.cumsum(1) * mask_BT
        step_BTD = self.dropout(step_BTD * math.sqrt(step_BTD.shape[-1]) + self.position(position_BT))
        allowed_BTT = attention_mask("prefix" if self.is_causal else "full", mask_BT)
        # Padding reads itself, because a row without allowed keys would give NaN.
        allowed_BTT = allowed_BTT | torch.eye(mask_BT.shape[1], dtype=torch.bool)
        for block in self.blocks:
            step_BTD = block(step_BTD, allowed_BTT[:, None])
        return self.norm(step_BTD)

    def last_state(self, step_BTD: Tensor) -> Tensor:
        """The state after the last step of sequences without padding, (B, D); for inference."""
        step_BTD = self._before_last_block(step_BTD)
        return self.norm(cast(Block, self.blocks[-1]).last_state(step_BTD))[:, 0]

    def last_state_and_without(self, step_BTD: Tensor, num: int) -> tuple[Tensor, Tensor]:
        """The last state, (B, D), and what it would be without each of the `num` latest steps, (B, num, D).

        The second is an estimate, because only the last block leaves the step out. It is exact for the newest step of a
        causal backbone. Needs two steps.
        """
        last_block = cast(Block, self.blocks[-1])
        state_BTD = self.norm(
            last_block.last_states_without(self._before_last_block(step_BTD), num, is_causal=self.is_causal)
        )
        return state_BTD[:, -1], state_BTD[:, :-1]

    def _before_last_block(self, step_BTD: Tensor) -> Tensor:
        position_TD = self.position.weight[1 : step_BTD.shape[1] + 1]
        step_BTD = torch.add(position_TD, step_BTD, alpha=math.sqrt(step_BTD.shape[-1]))
        for block in self.blocks[:-1]:
            step_BTD = block(step_BTD, None, is_causal=self.is_causal)
        return step_BTD


class GruBackbone(nn.Module):
    """GRU4Rec. Without biases, zero inputs keep the state at zero, so padding on the left has no effect."""

    def __init__(self, config: RankerConfig) -> None:
        super().__init__()
        self.gru = nn.GRU(config.width, config.width, config.num_blocks, bias=False, batch_first=True)
        self.norm = nn.LayerNorm(config.width)
        self.dropout = Dropout(config.dropout)

    def forward(self, step_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        state_BTD, _ = self.gru(self.dropout(step_BTD) * mask_BT[..., None])
        return self.norm(state_BTD)

    def last_state(self, step_BTD: Tensor) -> Tensor:
        """The state after the last step of sequences without padding, (B, D); for inference."""
        _, state_LBD = self.gru(step_BTD)
        return self.norm(state_LBD[-1])
