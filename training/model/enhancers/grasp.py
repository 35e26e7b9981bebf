"""GRASP: semantic vectors of users, items and their neighbours as context of the trained item embeddings.

Semantic vectors are inputs only: holistic attention adds them to the sequence, a small map adds them to the candidates.
No loss pulls towards them, so training can unlearn wrong ones. Item embeddings are initialised with whitened semantic
vectors. A rare item borrows the embeddings of its lenders, the items nearest to it by semantic vector.

    X_t = MLP([I; Z_self; Z_sim; Z_glob])_t + i_t
    c_x = MLP_c([P E_x; P E'_x])            + i_x
    i_x = (1 - g_x) e_x + g_x mean of e over the lenders of x,   g_x = sigmoid(b - log interactions of x)

In each training step a random share of items (`lent_only`) uses only borrowed embeddings. This trains the lenders to
stand in for other items, as they must for rare and new ones.

Shape suffixes:  B batch  T sequence length  N items, row 0 is padding  S semantic size  C components
                 W context width  D model width  M lenders  Q queries: 1 or T
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.data.nearest import nearest_rows
from training.model.attention import HolisticAttention, attention_mask, context_linear, context_mlp
from training.model.config import PADDING, RankerConfig
from training.model.enhancers.id_embeddings import IdEmbeddings, UserVectors
from training.model.semantic_adapter import SemanticAdapter

HALF_BORROWED_AT = 3.0  # interactions of an item that initially borrows half of its embedding
LEAST_COUNT = 0.5  # interactions that an item without any is given


@dataclass(frozen=True)
class IndexedItems:
    """Item sequences and their distinct items, so that each item is computed once per batch."""

    items_BT: Tensor
    mask_BT: Tensor  # true for items; false for padding and MASK
    unique_N: Tensor  # distinct items; MASK counts as padding
    place_BT: Tensor  # index of each item in `unique_N`

    @classmethod
    def from_items(cls, items_BT: Tensor) -> "IndexedItems":
        unique_N, place_BT = items_BT.clamp(min=PADDING).unique(return_inverse=True)
        return cls(items_BT, items_BT > PADDING, unique_N, place_BT)


class Grasp(IdEmbeddings):
    own_NC: Tensor
    neighbour_NC: Tensor
    lenders_NM: Tensor
    log_count_N: Tensor

    def __init__(self, config: RankerConfig) -> None:
        super().__init__(config)
        # Item embeddings start with length 1, projected vectors with unit variance. Without this factor, projected
        # vectors would dominate the sum, and an optimiser step would move them eight times as far.
        self.scale = config.width**-0.5
        self.item_adapter, self.user_adapter = (SemanticAdapter(config, config.context_width) for _ in range(2))
        self.holistic_attention = HolisticAttention(config)
        self.candidate = (context_mlp if config.candidate == "mlp" else context_linear)(config, 1 + config.use_similar)
        for name in ("own_NC", "neighbour_NC"):
            self.register_buffer(name, torch.zeros(0, config.num_components), persistent=False)
        if config.num_lenders:
            num_lenders = min(config.num_lenders, config.num_items)
            self.register_buffer("lenders_NM", torch.zeros(config.num_items + 1, num_lenders, dtype=torch.int32))
            self.register_buffer("log_count_N", torch.zeros(config.num_items + 1))
            self.borrow_bias = nn.Parameter(torch.tensor(math.log(HALF_BORROWED_AT)))
            self._attached_lenders_NM = self.lenders_NM
        self._projected: tuple[Tensor, Tensor] | None = None

    def initialise_from(self, item_NS: Tensor, user_NS: Tensor, num_interactions_N: Tensor) -> None:
        self.initialise_from_components(item_NS)
        self.item_adapter.initialise_from(item_NS)
        self.user_adapter.initialise_from(user_NS)
        if self.config.num_lenders:
            self.set_lenders(item_NS, num_interactions_N)

    def attach_items(self, semantic_NS: Tensor, neighbour_NS: Tensor) -> None:
        super().attach_items(semantic_NS, neighbour_NS)
        with torch.no_grad():
            self.own_NC, self.neighbour_NC = (
                F.pad(self.item_adapter.to_components(vectors_NS.float()), (0, 0, 1, 0))
                for vectors_NS in (semantic_NS, neighbour_NS)
            )
        if self.config.num_lenders:
            components_NC, num_known = self._components(semantic_NS), self.config.num_items
            newer_NM = _lenders(components_NC[num_known:], components_NC[:num_known], self.lenders_NM.shape[1])
            # Without newer items keep the buffer itself, so that later writes by `set_lenders` or a loaded state show.
            self._attached_lenders_NM = torch.cat([self.lenders_NM, newer_NM]) if len(newer_NM) else self.lenders_NM
        self.clear_cache()

    def set_lenders(self, item_NS: Tensor, num_interactions_N: Tensor) -> None:
        """Store the lenders of each item, by semantic vector, and the number of interactions in training."""
        own_NC = self._components(item_NS)
        self.lenders_NM[1:] = _lenders(own_NC, own_NC, self.lenders_NM.shape[1], same_rows=True)
        self.log_count_N[1:] = num_interactions_N.float().clamp(min=LEAST_COUNT).log()

    def _components(self, item_NS: Tensor) -> Tensor:
        """Whitened components. An item with a zero vector stays zero: it has no lenders and lends to no item."""
        return self.item_adapter.to_components(item_NS.float()) * item_NS.any(1, keepdim=True)

    def views(self, items_BT: Tensor, users: UserVectors) -> list[Tensor]:
        history = IndexedItems.from_items(items_BT)
        semantic_BTD = self._semantic_view(history, users)
        id_BTD = F.embedding(history.place_BT, self.id_embeddings(history.unique_N))
        # Two views share one backbone, as in LLM-ESR.
        return [semantic_BTD, id_BTD] if self.config.item_representation == "dual" else [semantic_BTD + id_BTD]

    def candidate_vectors(self, items_N: Tensor) -> Tensor:
        item_NW, neighbour_NW = self.project(items_N)
        inputs = [item_NW, neighbour_NW] if self.config.use_similar else [item_NW]
        semantic_ND = self.scale * self.candidate(torch.cat(inputs, -1)) * (items_N != PADDING)[:, None]
        id_ND = self.id_embeddings(items_N)
        is_dual = self.config.item_representation == "dual"
        return torch.cat([semantic_ND, id_ND], -1) if is_dual else semantic_ND + id_ND

    def id_embeddings(self, items_N: Tensor) -> Tensor:
        """Item embeddings with the borrowed share, (N, D). `items_N` should be distinct, to save time."""
        if self.config.item_representation == "sem":
            return torch.zeros(len(items_N), self.config.width)
        if not self.config.num_lenders:
            return super().id_embeddings(items_N)
        lenders_NM = self._attached_lenders_NM[items_N].long()
        is_known_N1 = (items_N <= self.config.num_items)[:, None]
        own_N1 = items_N[:, None] * is_known_N1
        num_lenders_N1 = (lenders_NM != PADDING).sum(-1, keepdim=True)
        borrowed_N1 = torch.sigmoid(self.borrow_bias - self.log_count_N[own_N1])
        only_borrowed_N1 = ~is_known_N1
        if self.training and self.config.lent_only:
            only_borrowed_N1 = only_borrowed_N1 | (torch.rand(borrowed_N1.shape) < self.config.lent_only)
        borrowed_N1 = borrowed_N1.masked_fill(only_borrowed_N1, 1) * (num_lenders_N1 > 0)
        lender_share_NM = (borrowed_N1 / num_lenders_N1.clamp(min=1)).expand_as(lenders_NM)
        # One weighted lookup for item and lenders, because each lookup has a gradient as large as the whole table.
        rows_NM, weights_NM = torch.cat([own_N1, lenders_NM], 1), torch.cat([1 - borrowed_N1, lender_share_NM], 1)
        return F.embedding_bag(
            rows_NM, self.item.weight, per_sample_weights=weights_NM, mode="sum", padding_idx=PADDING
        )

    def history_weights(self, items_BT: Tensor, users: UserVectors) -> Tensor:
        """Attention weight of each item in the last state, (B, T): sum of own and similar level; padding has 0."""
        attention, history = self.holistic_attention, IndexedItems.from_items(items_BT)
        keys: Sequence[Tensor] = [vectors_NW[history.place_BT] for vectors_NW in self.project(history.unique_N)]
        weights_BT = torch.zeros(items_BT.shape)
        levels = (attention.self_attention, attention.similar_attention)
        for level, query_BQW, keys_BTW in zip(levels, self.user_queries(history, users), keys, strict=True):
            if level is not None:
                last_BQW = attention.query_inputs(query_BQW, keys_BTW)[:, -1:]
                weights_BHQCT = level.weights(
                    last_BQW, keys_BTW[:, None], attention_mask(self.config.mode, history.mask_BT)[:, -1:]
                )
                weights_BT = weights_BT + weights_BHQCT.mean(1).flatten(1)
        return weights_BT

    def clear_cache(self) -> None:
        self._projected = None

    def _semantic_view(self, history: IndexedItems, users: UserVectors) -> Tensor:
        item_BTW, neighbour_BTW = (vectors_NW[history.place_BT] for vectors_NW in self.project(history.unique_N))
        enhanced_BTD = self.holistic_attention(
            item_BTW, neighbour_BTW, *self.user_queries(history, users), history.mask_BT
        )
        return self.scale * enhanced_BTD * (history.items_BT != PADDING)[..., None]

    def user_queries(self, history: IndexedItems, users: UserVectors) -> tuple[Tensor, Tensor]:
        """Own and neighbour queries, (B, Q, W): one per user from descriptions, or one per step from items so far."""
        if self.config.user_text == "described":
            reduced = (
                self.user_adapter.to_components(each[:, None]) for each in (users.semantic_BS, users.neighbour_BS)
            )
            own, neighbour = (self.user_adapter(vectors_B1C) for vectors_B1C in reduced)
            return own, neighbour
        # The adapter is linear, so the mean of the mapped items is the mapped mean.
        mask_BT1 = history.mask_BT[..., None]
        num_BT1 = mask_BT1.cumsum(1).clamp(min=1)
        own, neighbour = (
            (self.user_adapter(vectors_NC[history.unique_N])[history.place_BT] * mask_BT1).cumsum(1) / num_BT1
            for vectors_NC in (self.own_NC, self.neighbour_NC)
        )
        return own, neighbour

    def project(self, items_N: Tensor) -> tuple[Tensor, Tensor]:
        """Own and neighbour vectors in context width, (N, W) each. In inference computed once and cached."""
        if self.training:
            return self.item_adapter(self.own_NC[items_N]), self.item_adapter(self.neighbour_NC[items_N])
        if self._projected is None:
            with torch.no_grad():
                self._projected = self.item_adapter(self.own_NC), self.item_adapter(self.neighbour_NC)
        return self._projected[0][items_N], self._projected[1][items_N]


def _lenders(query_NC: Tensor, known_NC: Tensor, num: int, *, same_rows: bool = False) -> Tensor:
    """The nearest known items, (N, M), from 1; 0 if no further item has a cosine above 0."""
    rows_NM, cosines_NM = nearest_rows(query_NC, known_NC, num, same_rows=same_rows)
    return ((rows_NM + 1) * (cosines_NM > 0)).int()
