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
        normed_BTD = self.attention_norm(step_BTD)
        mean_BHD = self._last_weights(normed_BTD) @ normed_BTD
        return self._residual(step_BTD[:, -1:], self._values_of(mean_BHD[:, None]))

    def last_states_without(self, step_BTD: Tensor) -> Tensor:
        """What `last_state` would be if the last step did not read step t, for each t, (B, T, D)."""
        normed_BTD = self.attention_norm(step_BTD)
        weights_BHT = self._last_weights(normed_BTD)
        weights_BTH1 = weights_BHT.transpose(1, 2)[..., None]
        rest_BTHD = (weights_BHT @ normed_BTD)[:, None] - weights_BTH1 * normed_BTD[:, :, None]
        mean_BTHD = rest_BTHD / (1 - weights_BTH1).clamp(min=1e-6)
        return self._residual(step_BTD[:, -1:], self._values_of(mean_BTHD))

    def _last_weights(self, normed_BTD: Tensor) -> Tensor:
        """What share of each step the last step reads, (B, H, T)."""
        weight, bias = self.query_key_value.weight.chunk(3), self.query_key_value.bias.chunk(3)
        query_BHK = F.linear(normed_BTD[:, -1], weight[0], bias[0]).unflatten(-1, (self.num_heads, -1))
        key_query_BHD = torch.einsum("bhk,hkd->bhd", query_BHK, weight[1].unflatten(0, (self.num_heads, -1)))
        return (key_query_BHD * query_BHK.shape[-1] ** -0.5 @ normed_BTD.transpose(1, 2)).softmax(-1)

    def _values_of(self, mean_BTHD: Tensor) -> Tensor:
        """The values of means over steps, (B, T, D)."""
        value_HKD = self.query_key_value.weight.chunk(3)[2].unflatten(0, (self.num_heads, -1))
        read_BTHK = torch.einsum("bthd,hkd->bthk", mean_BTHD, value_HKD)
        return read_BTHK.flatten(2) + self.query_key_value.bias.chunk(3)[2]

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
        return self._last_state_of(self._before_last_block(step_BTD))

    def last_state_and_without(self, step_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """The last state, (B, D), and what it would be without each step, (B, T, D); for inference.

        The second is an estimate, because only the last block leaves the step out. It is exact for the newest step of a
        causal backbone.
        """
        step_BTD = self._before_last_block(step_BTD)
        without_BTD = self.norm(cast(Block, self.blocks[-1]).last_states_without(step_BTD))
        if self.is_causal and step_BTD.shape[1] > 1:
            without_BTD[:, -1] = self._last_state_of(step_BTD[:, :-1])
        return self._last_state_of(step_BTD), without_BTD

    def _before_last_block(self, step_BTD: Tensor) -> Tensor:
        position_TD = self.position.weight[1 : step_BTD.shape[1] + 1]
        step_BTD = torch.add(position_TD, step_BTD, alpha=math.sqrt(step_BTD.shape[-1]))
        for block in self.blocks[:-1]:
            step_BTD = block(step_BTD, None, is_causal=self.is_causal)
        return step_BTD

    def _last_state_of(self, step_BTD: Tensor) -> Tensor:
        state_BTD: Tensor = self.norm(cast(Block, self.blocks[-1]).last_state(step_BTD))
        return state_BTD[:, 0]


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
