"""The GRASP ranker: a sequence backbone over items, enriched by what a language model knows.

Frozen semantic embeddings of users and items, and the means over their nearest neighbours, enter through holistic
attention (GRASP, arXiv 2511.20177): the user asks, the items of the history answer, and each answer passes a sigmoid
of its own, so that an item the description was wrong about can be ignored altogether. The paper gives no equations;
this is a reconstruction, and each reading is a switch of `RankerConfig`.

Shape suffixes:  B batch  T sequence length, oldest first  S semantic size  D model width  N items, row 0 is padding
                 H heads  K width of a head  C copies of the history used as keys (own, similar)  Q queries: 1 or T
"""

# ruff: noqa: N803, N815 - the shape suffixes above

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from grasp.versions import file_sha256

PADDING = 0
MASK = -1  # stands for "the item asked for" in a BERT4Rec sequence; no item has this index

CONFIG_FILE, VOCABULARY_FILE, WEIGHTS_FILE = "config.json", "vocabulary.json", "model.safetensors"
CHECKSUMS_FILE = "checksums.json"


@dataclass(frozen=True)
class RankerConfig:
    """What a ranker is; two rankers of one config differ in their weights only."""

    num_items: int  # items known in training, without padding
    semantic_size: int
    backbone: Literal["sasrec", "gru4rec", "bert4rec"] = "sasrec"
    width: int = 64
    num_blocks: int = 2
    num_heads: int = 1
    max_length: int = 100
    dropout: float = 0.2
    enhancer: Literal["none", "grasp"] = "grasp"
    # Which items step t may read: itself and earlier ones (prefix), all (full; leaks the future), itself alone (gate),
    # or prefix with a query that also knows the item of step t (cross).
    mode: Literal["prefix", "full", "gate", "cross"] = "prefix"
    activation: Literal["sigmoid", "softmax"] = "sigmoid"
    normalise: Literal["sum", "mean"] = "sum"  # of the activated values; a plain softmax is a mean
    sigmoid_bias: Literal["log_length", "zero"] = "log_length"  # start of the bias: -log(max_length) or 0
    item_representation: Literal["sem", "sem+id", "dual"] = "sem+id"
    use_attention: bool = True  # False: every item weighs the same
    use_similar: bool = True  # False: no neighbour embeddings anywhere
    use_global: bool = True  # False: no second attention over the first one's answers
    # Who asks: the user's description, or (free of any leak) the mean of the items seen so far.
    user_text: Literal["described", "mean_of_prefix_items"] = "described"

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            if get_origin(kind) is Literal and getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} {getattr(self, name)!r} is none of {', '.join(get_args(kind))}")
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not a multiple of num_heads {self.num_heads}")
        if self.num_items < 1 or self.semantic_size < 1:
            raise ValueError(f"num_items {self.num_items} and semantic_size {self.semantic_size} must be positive")

    @property
    def is_causal(self) -> bool:
        """Whether a step's state depends on no later item."""
        return self.backbone != "bert4rec" and not (self.enhancer == "grasp" and self.mode == "full")


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
    width = config.width
    return nn.Sequential(
        nn.Linear(num_inputs * width, 2 * width), nn.GELU(), nn.Dropout(config.dropout), nn.Linear(2 * width, width)
    )


class Adapter(nn.Module):
    """Semantic size to model width by two linear maps without activation (LLM-ESR), applied as the one map they are."""

    def __init__(self, config: RankerConfig) -> None:
        super().__init__()
        self.first = nn.Linear(config.semantic_size, max(config.semantic_size // 2, config.width))
        self.second = nn.Linear(self.first.out_features, config.width)

    @torch.no_grad()
    def start_from(self, vectors_NS: Tensor) -> None:
        """Begin as the whitened principal components of the vectors the adapter will see, not as noise.

        Sentence vectors lie in a narrow cone: drawn at random, the map would begin with nearly one output for all.
        """
        centred_NS = vectors_NS - vectors_NS.mean(0)
        variance_S, axes_SS = torch.linalg.eigh(centred_NS.T @ centred_NS / len(vectors_NS))
        size = min(self.first.out_features, len(variance_S))
        variance, axes = variance_S.flip(0)[:size], axes_SS.flip(1)[:, :size]
        self.first.weight[:size] = (axes / variance.clamp(min=1e-2 * variance[0] + 1e-12).sqrt()).T
        self.first.bias.copy_(-self.first.weight @ vectors_NS.mean(0))
        nn.init.eye_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, semantic: Tensor) -> Tensor:
        weight_DS = self.second.weight @ self.first.weight
        return F.linear(semantic, weight_DS, self.second(self.first.bias))


class Block(nn.Module):
    """One pre-norm Transformer block."""

    def __init__(self, config: RankerConfig, hidden: int) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.attention_norm, self.feed_forward_norm = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.query_key_value = nn.Linear(config.width, 3 * config.width)
        self.output = nn.Linear(config.width, config.width)
        self.feed_forward = nn.Sequential(
            nn.Linear(config.width, hidden), nn.GELU(), nn.Dropout(config.dropout), nn.Linear(hidden, config.width)
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, step_BTD: Tensor, allowed_BHTT: Tensor) -> Tensor:
        query, key, value = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for part in self.query_key_value(self.attention_norm(step_BTD)).chunk(3, -1)
        )
        # No dropout on the weights: torch would leave its fused kernel, and an epoch would take twice as long.
        read_BHTK = F.scaled_dot_product_attention(query, key, value, allowed_BHTT)
        step_BTD = step_BTD + self.dropout(self.output(read_BHTK.transpose(1, 2).flatten(-2)))
        return step_BTD + self.dropout(self.feed_forward(self.feed_forward_norm(step_BTD)))


class TransformerBackbone(nn.Module):
    """SASRec (causal) or BERT4Rec (every step sees all others)."""

    def __init__(self, config: RankerConfig, *, is_causal: bool) -> None:
        super().__init__()
        self.is_causal = is_causal
        self.position = nn.Embedding(config.max_length + 2, config.width, padding_idx=0)  # padding, T, and the mask
        nn.init.normal_(self.position.weight[1:], std=0.02)
        hidden = config.width if is_causal else 4 * config.width
        self.blocks = nn.ModuleList(Block(config, hidden) for _ in range(config.num_blocks))
        self.norm = nn.LayerNorm(config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, step_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        # Counted over items alone, so that the amount of padding changes nothing.
        position_BT = mask_BT.cumsum(1) * mask_BT
        step_BTD = self.dropout(step_BTD * math.sqrt(step_BTD.shape[-1]) + self.position(position_BT))
        allowed_BTT = allowed("prefix" if self.is_causal else "full", mask_BT)
        # Padding reads itself: a row that may read nothing would be NaN.
        allowed_BTT = allowed_BTT | torch.eye(mask_BT.shape[1], dtype=torch.bool)
        for block in self.blocks:
            step_BTD = block(step_BTD, allowed_BTT[:, None])
        return self.norm(step_BTD)


class GruBackbone(nn.Module):
    """GRU4Rec. Without biases, zeros leave its zero state as it is: padding on the left is inert."""

    def __init__(self, config: RankerConfig) -> None:
        super().__init__()
        self.gru = nn.GRU(config.width, config.width, config.num_blocks, bias=False, batch_first=True)
        self.norm = nn.LayerNorm(config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, step_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        state_BTD, _ = self.gru(self.dropout(step_BTD) * mask_BT[..., None])
        return self.norm(state_BTD)


class Ranker(nn.Module):
    """Reads a user's sequence and vectors, gives a state; `state @ candidates().T` scores every item as the next one.

    Item indices are 1 to N in the order of the vocabulary; 0 is padding, on the left. `attach_items` must be called
    before anything else unless `config.enhancer` is `none`.
    """

    semantic_NS: Tensor
    near_NS: Tensor

    def __init__(self, config: RankerConfig) -> None:
        super().__init__()
        self.config = config
        self.num_items = config.num_items  # grows when items are attached that are newer than the model
        self.item = nn.Embedding(config.num_items + 1, config.width, padding_idx=PADDING)
        self.mask = nn.Parameter(torch.zeros(config.width))
        nn.init.normal_(self.item.weight[1:], std=config.width**-0.5)
        if config.enhancer == "grasp":
            self.item_adapter, self.user_adapter = Adapter(config), Adapter(config)
            self.holistic_attention = HolisticAttention(config)
            self.candidate_mlp = mlp(config, 1 + config.use_similar)
            for name in ("semantic_NS", "near_NS"):
                self.register_buffer(name, torch.zeros(0, config.semantic_size), persistent=False)
        self.backbone: nn.Module = (
            GruBackbone(config)
            if config.backbone == "gru4rec"
            else TransformerBackbone(config, is_causal=config.backbone == "sasrec")
        )
        self._projected: tuple[Tensor, Tensor] | None = None
        self.register_load_state_dict_post_hook(lambda *_: self._forget())

    def attach_items(self, semantic_NS: Tensor, neighbour_NS: Tensor) -> None:
        """Give the frozen item vectors, row i for item i + 1; rows after `config.num_items` are items newer than it.

        A newer item has no item embedding yet and is scored by its meaning alone.
        """
        for name, vectors in (("semantic", semantic_NS), ("neighbour", neighbour_NS)):
            if vectors.ndim != 2 or vectors.shape[1] != self.config.semantic_size:
                raise ValueError(f"{name} item vectors {tuple(vectors.shape)} need {self.config.semantic_size} columns")
            if len(vectors) < self.config.num_items or len(vectors) != len(semantic_NS):
                raise ValueError(f"{len(vectors)} {name} item vectors; the model knows {self.config.num_items} items")
            if not vectors.isfinite().all():
                raise ValueError(f"{name} item vectors hold values that are not finite")
        self.num_items = len(semantic_NS)
        if self.config.enhancer == "grasp":
            self.semantic_NS, self.near_NS = (F.pad(v.float(), (0, 0, 1, 0)) for v in (semantic_NS, neighbour_NS))
        self._forget()

    def forward(self, items_BT: Tensor, user_semantic_BS: Tensor, user_neighbour_BS: Tensor) -> Tensor:
        """The state after each step, (B, T, D); `dual` gives 2 D. Wants at most `max_length` items, and a MASK."""
        mask_BT = items_BT != PADDING
        id_BTD = self._ids(items_BT) + (items_BT == MASK)[..., None] * self.mask
        if self.config.enhancer == "none":
            return self._encode(id_BTD, mask_BT)
        semantic_BTD = self._enhance(items_BT, user_semantic_BS, user_neighbour_BS)
        if self.config.item_representation == "dual":  # one backbone for two views, as in LLM-ESR
            semantic_BTD = semantic_BTD + (items_BT == MASK)[..., None] * self.mask
            return torch.cat([self._encode(semantic_BTD, mask_BT), self._encode(id_BTD, mask_BT)], -1)
        return self._encode(semantic_BTD + id_BTD, mask_BT)

    def last_state(self, items_BT: Tensor, user_semantic_BS: Tensor, user_neighbour_BS: Tensor) -> Tensor:
        """What recommendations are made from, (B, D): the state after the latest items, padding on the left."""
        items_BT = items_BT[:, -self.config.max_length :]
        if self.config.backbone == "bert4rec":
            items_BT = F.pad(items_BT, (0, 1), value=MASK)
        return self(items_BT, user_semantic_BS, user_neighbour_BS)[:, -1]

    def candidates(self, items_N: Tensor | None = None) -> Tensor:
        """What a state is compared with, (N, D): all items, or those of `items_N`. Row 0 of all is padding, zero."""
        if items_N is None:
            items_N = torch.arange(self.num_items + 1)
        id_ND = self._ids(items_N)
        if self.config.enhancer == "none":
            return id_ND
        item_ND, near_ND = self._project(items_N)
        inputs = [item_ND, near_ND] if self.config.use_similar else [item_ND]
        semantic_ND = self.candidate_mlp(torch.cat(inputs, -1)) * (items_N != PADDING)[:, None]
        is_dual = self.config.item_representation == "dual"
        return torch.cat([semantic_ND, id_ND], -1) if is_dual else semantic_ND + id_ND

    def history_weights(self, items_BT: Tensor, user_semantic_BS: Tensor, user_neighbour_BS: Tensor) -> Tensor:
        """How much each item of the history counted in the last state, (B, T): own and similar level together.

        Padding weighs 0. Raises `ValueError` for a ranker without holistic attention.
        """
        if self.config.enhancer == "none":
            raise ValueError("this ranker has no holistic attention, so its history has no weights")
        attention, mask_BT = self.holistic_attention, items_BT > PADDING
        item_BTD, near_item_BTD = self._project(items_BT.clamp(min=PADDING))
        user_BQD, near_user_BQD = self._users(items_BT, user_semantic_BS, user_neighbour_BS)
        levels = [(attention.self_attention, user_BQD, item_BTD)]
        if attention.similar_attention is not None:
            levels.append((attention.similar_attention, near_user_BQD, near_item_BTD))
        weights_BT = torch.zeros(items_BT.shape)
        for level, query_BQD, keys_BTD in levels:
            last_BQD = attention.ask(query_BQD, keys_BTD)[:, -1:]
            weights_BT = weights_BT + level.weights(last_BQD, keys_BTD[:, None], mask_BT[:, None]).mean(1).flatten(1)
        return weights_BT

    def train(self, mode: bool = True) -> "Ranker":
        self._forget()
        return super().train(mode)

    def _encode(self, step_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        return self.backbone(step_BTD, mask_BT) * mask_BT[..., None]

    def _enhance(self, items_BT: Tensor, user_semantic_BS: Tensor, user_neighbour_BS: Tensor) -> Tensor:
        item_BTD, near_item_BTD = self._project(items_BT.clamp(min=PADDING))
        users = self._users(items_BT, user_semantic_BS, user_neighbour_BS)
        mask_BT = items_BT > PADDING  # the item asked for is no key
        return self.holistic_attention(item_BTD, near_item_BTD, *users, mask_BT)

    def _users(self, items_BT: Tensor, user_semantic_BS: Tensor, user_neighbour_BS: Tensor) -> tuple[Tensor, Tensor]:
        """The projected queries: one per user, or one per step where the items seen so far speak for the user."""
        if self.config.user_text == "described":
            return self.user_adapter(user_semantic_BS[:, None]), self.user_adapter(user_neighbour_BS[:, None])
        known_BT = items_BT.clamp(min=PADDING)
        num_BT = (known_BT != PADDING).cumsum(1).clamp(min=1)[..., None]
        semantic, near = (
            self.user_adapter(vectors_NS[known_BT].cumsum(1) / num_BT)
            for vectors_NS in (self.semantic_NS, self.near_NS)
        )
        return semantic, near

    def _ids(self, items: Tensor) -> Tensor:
        """Trained item embeddings; zero for padding, the mask and items newer than the model."""
        is_known = (items > PADDING) & (items <= self.config.num_items)
        if self.config.enhancer == "grasp" and self.config.item_representation == "sem":
            is_known = torch.zeros_like(is_known)
        return self.item(items * is_known)

    def _project(self, items: Tensor) -> tuple[Tensor, Tensor]:
        """Own and neighbour vectors of items in model width: computed once per item, and once for all in inference."""
        tables = self.semantic_NS, self.near_NS
        if self.training:
            unique, items = items.unique(return_inverse=True)
            item_ND, near_ND = (self.item_adapter(vectors_NS[unique]) for vectors_NS in tables)
            return item_ND[items], near_ND[items]
        if self._projected is None:
            with torch.no_grad():
                self._projected = self.item_adapter(tables[0]), self.item_adapter(tables[1])
        return self._projected[0][items], self._projected[1][items]

    def _forget(self) -> None:
        self._projected = None


@dataclass(frozen=True)
class Metadata:
    """Where a trained ranker comes from and what it must be served with."""

    name: str
    feature_service: str
    feature_version: str
    recipe: str
    day: str
    cutoff: str  # last day whose interactions it was trained with
    seed: int
    metrics: dict[str, float]  # of the validation


@dataclass(frozen=True)
class LoadedRanker:
    """A verified artefact; `vocabulary[i]` is the item of index i + 1. The items still have to be attached."""

    ranker: Ranker
    vocabulary: list[str]
    metadata: Metadata

    @property
    def config(self) -> RankerConfig:
        return self.ranker.config


def save_ranker(folder: Path, ranker: Ranker, vocabulary: list[str], metadata: Metadata) -> None:
    """Write weights, config, vocabulary and, last, the checksums that `load_ranker` verifies."""
    _check_vocabulary(vocabulary, ranker.config, folder / VOCABULARY_FILE)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: weights.contiguous() for name, weights in ranker.state_dict().items()}, folder / WEIGHTS_FILE)
    _write_json(folder / CONFIG_FILE, {"ranker": asdict(ranker.config), "metadata": asdict(metadata)})
    _write_json(folder / VOCABULARY_FILE, vocabulary)
    files = (CONFIG_FILE, VOCABULARY_FILE, WEIGHTS_FILE)
    _write_json(folder / CHECKSUMS_FILE, {name: file_sha256(folder / name) for name in files})


def load_ranker(folder: Path) -> LoadedRanker:
    """Read an artefact in evaluation mode; raises `ValueError` naming the file that is missing, changed or unfit."""
    checksums = _read_json(folder / CHECKSUMS_FILE)
    for name in (CONFIG_FILE, VOCABULARY_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name} is missing: the model artefact is incomplete")
        if not isinstance(checksums, dict) or checksums.get(name) != file_sha256(folder / name):
            raise ValueError(f"{folder / name} does not match its checksum: the model artefact is corrupt")
    try:
        content = _read_json(folder / CONFIG_FILE)
        config, metadata = RankerConfig(**content["ranker"]), Metadata(**content["metadata"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / CONFIG_FILE} does not describe a ranker: {error}") from error
    vocabulary = _read_json(folder / VOCABULARY_FILE)
    _check_vocabulary(vocabulary, config, folder / VOCABULARY_FILE)
    ranker = Ranker(config)
    try:
        ranker.load_state_dict(load_file(folder / WEIGHTS_FILE))
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"{folder / WEIGHTS_FILE} does not fit {CONFIG_FILE}: {error}") from error
    return LoadedRanker(ranker.eval().requires_grad_(False), vocabulary, metadata)


def _check_vocabulary(vocabulary: object, config: RankerConfig, file: Path) -> None:
    if not isinstance(vocabulary, list) or not all(isinstance(item_id, str) for item_id in vocabulary):
        raise ValueError(f"{file} is not a list of item ids")
    if len(set(vocabulary)) != len(vocabulary) or len(vocabulary) != config.num_items:
        raise ValueError(f"{file} holds {len(set(vocabulary))} distinct items, the config says {config.num_items}")


def _write_json(file: Path, value: object) -> None:
    file.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
