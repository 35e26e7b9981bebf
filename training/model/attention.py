"""GRASP's holistic attention: the user is the query, the items of the history are the keys, each with its own sigmoid.

Independent sigmoids allow weights near zero for all items, so wrong descriptions can be ignored (GRASP, arXiv
2511.20177). The paper gives no equations. This is a reconstruction; each open interpretation is a field of
`RankerConfig`.

Shape suffixes:  B batch  T sequence length, oldest first  W context width  H heads  K width of a head
                 D model width  C copies of the history used as keys (own, similar)  Q queries: 1 or T
"""

import math

import torch
from torch import Tensor, nn

from training.model.config import RankerConfig
from training.model.dropout import Dropout


class Attention(nn.Module):
    """Attention of queries over the history, `activation(Q K / sqrt(K) + bias) V` (reconstruction of GRASP's `Att`)."""

    def __init__(self, config: RankerConfig) -> None:
        super().__init__()
        width = config.context_width
        self.config = config
        self.query = nn.Linear(width * (2 if config.mode == "cross" else 1), width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        # A sum of sigmoids grows with the length; the bias -log(length) keeps it near 1 initially (arXiv 2409.04431).
        start = -math.log(config.max_length) if config.sigmoid_bias == "log_length" else 0.0
        self.bias = nn.Parameter(torch.tensor(start))

    def forward(self, query_BQW: Tensor, keys_BCTW: Tensor, mask_BT: Tensor) -> Tensor:
        """One result per step, (B, T, W); `mask_BT` is true where the history holds an item."""
        value_BHCTK = self._heads(self.value(keys_BCTW)).movedim(-2, 1)
        config = self.config
        steps_are_independent = (
            config.use_attention and config.activation == "sigmoid" and config.mode in {"prefix", "gate"}
        )
        if steps_are_independent and query_BQW.shape[1] == 1:
            result_BHTK = self._attend_in_linear_time(query_BQW, keys_BCTW, value_BHCTK, mask_BT)
        else:
            weights_BHTCT = self.weights(query_BQW, keys_BCTW, attention_mask(config.mode, mask_BT))
            result_BHTK = torch.einsum("bhqct,bhctk->bhqk", weights_BHTCT, value_BHCTK)
        return self.output(result_BHTK.movedim(1, -2).flatten(-2))

    def weights(self, query_BQW: Tensor, keys_BCTW: Tensor, allowed_BQT: Tensor) -> Tensor:
        """Attention weight of each item of each copy for each query, (B, H, Q, C, T)."""
        allowed_BHQCT = allowed_BQT[:, None, :, None, :]
        num_BHQCT = allowed_BHQCT.sum(-1, keepdim=True).clamp(min=1) * keys_BCTW.shape[1]
        if not self.config.use_attention:
            return (allowed_BHQCT / num_BHQCT).expand(-1, self.config.num_heads, -1, keys_BCTW.shape[1], -1)
        logit_BHQCT = self._logits(query_BQW, keys_BCTW)
        if self.config.activation == "sigmoid":
            weights_BHQCT = logit_BHQCT.sigmoid() * allowed_BHQCT
            return weights_BHQCT / num_BHQCT if self.config.normalise == "mean" else weights_BHQCT
        logit_BHQCT = logit_BHQCT.masked_fill(~allowed_BHQCT, torch.finfo(logit_BHQCT.dtype).min)
        weights_BHQCT = logit_BHQCT.flatten(-2).softmax(-1).view_as(logit_BHQCT) * allowed_BHQCT
        return weights_BHQCT * num_BHQCT if self.config.normalise == "sum" else weights_BHQCT

    def _attend_in_linear_time(
        self, query_BQW: Tensor, keys_BCTW: Tensor, value_BHCTK: Tensor, mask_BT: Tensor
    ) -> Tensor:
        """With one query, sigmoid weights do not depend on the step: a running sum replaces the (T, T) weights."""
        gate_BHCT = self._logits(query_BQW, keys_BCTW).squeeze(2).sigmoid() * mask_BT[:, None, None, :]
        result_BHTK = (gate_BHCT[..., None] * value_BHCTK).sum(2)
        num_BT = mask_BT.long()
        if self.config.mode == "prefix":
            result_BHTK, num_BT = result_BHTK.cumsum(2), num_BT.cumsum(1)
        if self.config.normalise == "mean":
            result_BHTK = result_BHTK / (num_BT.clamp(min=1) * keys_BCTW.shape[1])[:, None, :, None]
        return result_BHTK

    def _logits(self, query_BQW: Tensor, keys_BCTW: Tensor) -> Tensor:
        query_BQHK, key_BCTHK = self._heads(self.query(query_BQW)), self._heads(self.key(keys_BCTW))
        return torch.einsum("bqhk,bcthk->bhqct", query_BQHK, key_BCTHK) / math.sqrt(query_BQHK.shape[-1]) + self.bias

    def _heads(self, values: Tensor) -> Tensor:
        return values.unflatten(-1, (self.config.num_heads, -1))


def attention_mask(mode: str, mask_BT: Tensor) -> Tensor:
    """Which items each step may read, (B, T, T); `mode` as in `RankerConfig`."""
    every_TT = mask_BT.new_ones(mask_BT.shape[1], mask_BT.shape[1])
    rule_TT = {"full": every_TT, "gate": every_TT.tril().triu()}.get(mode, every_TT.tril())
    return rule_TT & mask_BT[:, None, :]


class HolisticAttention(nn.Module):
    """Three attentions: user over history, similar users over similar items, and both over the results of these two.

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
        self.global_attention = None
        if config.use_global:
            self.global_attention = Attention(config)
            self.global_query = nn.Linear(num_levels * config.context_width, config.context_width, bias=False)
        self.mlp = context_mlp(config, 1 + num_levels + config.use_global)

    def forward(
        self, item_BTW: Tensor, neighbour_BTW: Tensor, user_BQW: Tensor, user_neighbour_BQW: Tensor, mask_BT: Tensor
    ) -> Tensor:
        users, results = (
            [user_BQW],
            [self.self_attention(self.query_inputs(user_BQW, item_BTW), item_BTW[:, None], mask_BT)],
        )
        if self.similar_attention is not None:
            query_BQW = self.query_inputs(user_neighbour_BQW, neighbour_BTW)
            users.append(user_neighbour_BQW)
            results.append(self.similar_attention(query_BQW, neighbour_BTW[:, None], mask_BT))
        enhanced = [item_BTW, *results]
        if self.global_attention is not None:
            query_BQW = self.query_inputs(self.global_query(torch.cat(users, -1)), item_BTW)
            keys_BCTW = torch.stack(results, 1)
            if self.config.global_keys == "mean":
                keys_BCTW = keys_BCTW.mean(1, keepdim=True)
            enhanced.append(self.global_attention(query_BQW, keys_BCTW, mask_BT))
        return self.mlp(torch.cat(enhanced, -1))

    def query_inputs(self, user_BQW: Tensor, item_BTW: Tensor) -> Tensor:
        """The input of the query: the user, and in mode `cross` also the item of the step."""
        if self.config.mode != "cross":
            return user_BQW
        return torch.cat([user_BQW.expand(-1, item_BTW.shape[1], -1), item_BTW], -1)


def context_mlp(config: RankerConfig, num_inputs: int) -> nn.Sequential:
    """A map from several vectors of context width to one of model width, with a hidden layer."""
    hidden_size = 2 * config.context_width
    last = _zero_initialised(config, nn.Linear(hidden_size, config.width))
    hidden = nn.Linear(num_inputs * config.context_width, hidden_size)
    return nn.Sequential(hidden, nn.GELU(), Dropout(config.dropout), last)


def context_linear(config: RankerConfig, num_inputs: int) -> nn.Linear:
    """A linear map from several vectors of context width to one of model width."""
    return _zero_initialised(config, nn.Linear(num_inputs * config.context_width, config.width))


def _zero_initialised(config: RankerConfig, last: nn.Linear) -> nn.Linear:
    """Zero weights if the output is added to a trained embedding, so that training starts without context."""
    if config.item_representation == "sem+id":
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    return last
