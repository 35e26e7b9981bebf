"""GRASP's holistic attention: the user asks, the items of the history answer, each through a sigmoid of its own.

An item that the description was wrong about can so be ignored altogether (GRASP, arXiv 2511.20177). The paper gives no
equations; this is a reconstruction, and each reading is a switch of `RankerConfig`.

Shape suffixes:  B batch  T sequence length, oldest first  D model width  H heads  K width of a head
                 C copies of the history used as keys (own, similar)  Q queries: 1 or T
"""

import math

import torch
from torch import Tensor, nn

from training.config import RankerConfig


class Attention(nn.Module):
    """One query against the history: `activation(Q K / sqrt(K) + bias)` weighs V (reconstruction of GRASP's `Att`)."""

    def __init__(self, config: RankerConfig) -> None:
        super().__init__()
        width = config.width
        self.config = config
        self.query = nn.Linear(width * (2 if config.mode == "cross" else 1), width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        # A sum of sigmoids grows with the length; -log(length) keeps it near one at the start (arXiv 2409.04431).
        start = -math.log(config.max_length) if config.sigmoid_bias == "log_length" else 0.0
        self.bias = nn.Parameter(torch.tensor(start))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, query_BQD: Tensor, keys_BCTD: Tensor, mask_BT: Tensor) -> Tensor:
        """One answer per step, (B, T, D); `mask_BT` is true where the history holds an item."""
        value_BHCTK = self._heads(self.value(keys_BCTD)).movedim(-2, 1)
        config = self.config
        steps_are_independent = config.use_attention and config.activation == "sigmoid" and config.mode != "full"
        if steps_are_independent and query_BQD.shape[1] == 1:
            answer_BHTK = self._answer_in_linear_time(query_BQD, keys_BCTD, value_BHCTK, mask_BT)
        else:
            weights_BHTCT = self.weights(query_BQD, keys_BCTD, allowed(config.mode, mask_BT))
            answer_BHTK = torch.einsum("bhqct,bhctk->bhqk", weights_BHTCT, value_BHCTK)
        return self.dropout(self.output(answer_BHTK.movedim(1, -2).flatten(-2)))

    def weights(self, query_BQD: Tensor, keys_BCTD: Tensor, allowed_BQT: Tensor) -> Tensor:
        """How much each item of each copy counts for each query, (B, H, Q, C, T)."""
        allowed_BHQCT = allowed_BQT[:, None, :, None, :]
        num_BHQCT = allowed_BHQCT.sum(-1, keepdim=True).clamp(min=1) * keys_BCTD.shape[1]
        if not self.config.use_attention:
            return (allowed_BHQCT / num_BHQCT).expand(-1, self.config.num_heads, -1, keys_BCTD.shape[1], -1)
        logit_BHQCT = self._logits(query_BQD, keys_BCTD)
        if self.config.activation == "sigmoid":
            weights_BHQCT = logit_BHQCT.sigmoid() * allowed_BHQCT
            return weights_BHQCT / num_BHQCT if self.config.normalise == "mean" else weights_BHQCT
        logit_BHQCT = logit_BHQCT.masked_fill(~allowed_BHQCT, torch.finfo(logit_BHQCT.dtype).min)
        weights_BHQCT = logit_BHQCT.flatten(-2).softmax(-1).view_as(logit_BHQCT) * allowed_BHQCT
        return weights_BHQCT * num_BHQCT if self.config.normalise == "sum" else weights_BHQCT

    def _answer_in_linear_time(
        self, query_BQD: Tensor, keys_BCTD: Tensor, value_BHCTK: Tensor, mask_BT: Tensor
    ) -> Tensor:
        """With one query a sigmoid weight does not depend on the step: a running sum replaces the (T, T) weights."""
        gate_BHCT = self._logits(query_BQD, keys_BCTD).squeeze(2).sigmoid() * mask_BT[:, None, None, :]
        answer_BHTK = (gate_BHCT[..., None] * value_BHCTK).sum(2)
        num_BT = mask_BT.long()
        if self.config.mode == "prefix":
            answer_BHTK, num_BT = answer_BHTK.cumsum(2), num_BT.cumsum(1)
        if self.config.normalise == "mean":
            answer_BHTK = answer_BHTK / (num_BT.clamp(min=1) * keys_BCTD.shape[1])[:, None, :, None]
        return answer_BHTK

    def _logits(self, query_BQD: Tensor, keys_BCTD: Tensor) -> Tensor:
        query_BQHK, key_BCTHK = self._heads(self.query(query_BQD)), self._heads(self.key(keys_BCTD))
        return torch.einsum("bqhk,bcthk->bhqct", query_BQHK, key_BCTHK) / math.sqrt(query_BQHK.shape[-1]) + self.bias

    def _heads(self, values: Tensor) -> Tensor:
        return values.unflatten(-1, (self.config.num_heads, -1))


def allowed(mode: str, mask_BT: Tensor) -> Tensor:
    """Which items each step may read, (B, T, T), by the mode of `RankerConfig`."""
    every_TT = mask_BT.new_ones(mask_BT.shape[1], mask_BT.shape[1])
    rule_TT = {"full": every_TT, "gate": every_TT.tril().triu()}.get(mode, every_TT.tril())
    return rule_TT & mask_BT[:, None, :]


class HolisticAttention(nn.Module):
    """The user asks the own history, similar users ask the similar items, and both ask what came out.

        Z_self = Att(u, I)    Z_sim = Att(u', I')    Z_glob = Att(W_g [u; u'], [Z_self, Z_sim])
        X = MLP([I; Z_self; Z_sim; Z_glob])

    u and I are the projected semantic embeddings of user and items, u' and I' those of their neighbours.
    """

    def __init__(self, config: RankerConfig) -> None:
        super().__init__()
        self.config = config
        num_levels = 1 + config.use_similar
        self.self_attention = Attention(config)
        self.similar_attention = Attention(config) if config.use_similar else None
        self.global_attention = Attention(config) if config.use_global else None
        self.global_query = nn.Linear(num_levels * config.width, config.width, bias=False)
        self.mlp = mlp(config, 1 + num_levels + config.use_global)

    def forward(
        self, item_BTD: Tensor, near_item_BTD: Tensor, user_BQD: Tensor, near_user_BQD: Tensor, mask_BT: Tensor
    ) -> Tensor:
        users, answers = [user_BQD], [self.self_attention(self.ask(user_BQD, item_BTD), item_BTD[:, None], mask_BT)]
        if self.similar_attention is not None:
            query_BQD = self.ask(near_user_BQD, near_item_BTD)
            users.append(near_user_BQD)
            answers.append(self.similar_attention(query_BQD, near_item_BTD[:, None], mask_BT))
        enhanced = [item_BTD, *answers]
        if self.global_attention is not None:
            query_BQD = self.ask(self.global_query(torch.cat(users, -1)), item_BTD)
            enhanced.append(self.global_attention(query_BQD, torch.stack(answers, 1), mask_BT))
        return self.mlp(torch.cat(enhanced, -1))

    def ask(self, user_BQD: Tensor, item_BTD: Tensor) -> Tensor:
        """The query: the user, and in mode `cross` also the item of the step."""
        if self.config.mode != "cross":
            return user_BQD
        return torch.cat([user_BQD.expand(-1, item_BTD.shape[1], -1), item_BTD], -1)


def mlp(config: RankerConfig, num_inputs: int) -> nn.Sequential:
    """Several vectors of model width to one, through a hidden layer."""
    width = config.width
    hidden = nn.Linear(num_inputs * width, 2 * width)
    return nn.Sequential(hidden, nn.GELU(), nn.Dropout(config.dropout), _from_zero(config, nn.Linear(2 * width, width)))


def linear(config: RankerConfig, num_inputs: int) -> nn.Linear:
    """Several vectors of model width to one."""
    return _from_zero(config, nn.Linear(num_inputs * config.width, config.width))


def _from_zero(config: RankerConfig, last: nn.Linear) -> nn.Linear:
    """Beside a trained embedding, context begins with no say and has to earn it."""
    if config.item_representation == "sem+id":
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    return last
