"""A ranker for inference: everything that depends only on items and weights is computed once, in advance.

For GRASP this folds the projections of items and queries, and all linear maps up to the hidden layer of the MLP, into
one row per item. With sigmoid weights A over the prefix, a request only computes

    q_t = mean of the query rows up to t      A_ts = sigmoid(q_t . k_s + bias) for s <= t
    X = W_2 gelu(hidden rows + A value rows) + id rows

Rankers that cannot be folded run as in training. Scores equal those of the ranker up to rounding.

Shape suffixes:  T sequence length, oldest first, including MASK  N items, row 0 is padding
                 S semantic size  V views  D width of a state  W context width  M hidden width of GRASP's MLP
                 G levels times heads  K width of a head
"""

from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.model.attention import Attention
from training.model.backbones import GruBackbone, TransformerBackbone
from training.model.config import MASK, PADDING, RankerConfig
from training.model.enhancers.grasp import Grasp, IndexedItems
from training.model.enhancers.id_embeddings import IdEmbeddings, UserVectors
from training.model.ranker import Ranker


class ViewFunction(Protocol):
    """Computes the inputs of the backbone for one sequence."""

    def __call__(self, items_T: Tensor, users: UserVectors) -> Tensor:
        """Views (V, T, D)."""


class InferenceRanker:
    """From one sequence without padding to its last state. The ranker and its items must not change afterwards."""

    @torch.no_grad()
    def __init__(self, ranker: Ranker) -> None:
        self.config = ranker.config
        self.kernel = ranker.kernel
        self.candidate_ND = ranker.candidate_vectors()
        self._ranker = ranker
        self._views = _views_of(ranker.enhancer)

    @torch.inference_mode()
    def views(self, items_T: Tensor, users: UserVectors) -> Tensor:
        """Views (V, T, D) of the latest `max_length` items."""
        items_T = items_T[-self.config.max_length :]
        if self.config.backbone == "bert4rec":
            items_T = F.pad(items_T, (0, 1), value=MASK)
        view_VTD = self._views(items_T, users)
        if self.config.backbone == "bert4rec":
            view_VTD = torch.cat([view_VTD[:, :-1], view_VTD[:, -1:] + self._ranker.mask], 1)
        return view_VTD

    @torch.inference_mode()
    def state(self, view_VTD: Tensor) -> Tensor:
        """The state that candidate vectors are multiplied with, (D,)."""
        return self._combined(self._last_state(view_VTD)[:, None])[0]

    @torch.inference_mode()
    def state_and_without(self, view_VTD: Tensor, num: int) -> tuple[Tensor, Tensor | None]:
        """The state, (D,), and an estimate of what it would be without each of the `num` latest items, (num, D).

        The estimate is None for a backbone that has none (`TransformerBackbone.last_state_and_without`).
        """
        backbone = self._ranker.backbone
        if not isinstance(backbone, TransformerBackbone):
            return self.state(view_VTD), None
        num_items = view_VTD.shape[1] - (self.config.backbone == "bert4rec")
        if num_items == 1:
            state_D = self.state(view_VTD)
            return state_D, torch.zeros_like(state_D)[None]  # without its only item there is nothing to score with
        num_masks = view_VTD.shape[1] - num_items
        state_VD, without_VTD = backbone.last_state_and_without(view_VTD, min(num, num_items) + num_masks)
        return self._combined(state_VD[:, None])[0], self._combined(without_VTD[:, : without_VTD.shape[1] - num_masks])

    def _combined(self, state_VTD: Tensor) -> Tensor:
        """One state of the states of the views, (T, D)."""
        state_TD = self._ranker.enhancer.combine_states(list(state_VTD))
        return F.normalize(state_TD, dim=-1) / self.config.temperature if self.config.score == "cosine" else state_TD

    def _last_state(self, view_VTD: Tensor) -> Tensor:
        backbone = self._ranker.backbone
        if self.config.variant == "legacy":
            states_VTD: Tensor = backbone(view_VTD, torch.ones(view_VTD.shape[:2], dtype=torch.bool))
            return states_VTD[:, -1]
        return cast(TransformerBackbone | GruBackbone, backbone).last_state(view_VTD)


def _views_of(enhancer: IdEmbeddings) -> ViewFunction:
    if isinstance(enhancer, Grasp) and can_fold(enhancer.config):
        return FoldedGraspViews(enhancer)
    if type(enhancer).views is IdEmbeddings.views:
        return IdEmbeddingViews(enhancer)
    return UnfoldedViews(enhancer)


class UnfoldedViews:
    """The views of the enhancer itself, without folding."""

    def __init__(self, enhancer: IdEmbeddings) -> None:
        self._enhancer = enhancer

    def __call__(self, items_T: Tensor, users: UserVectors) -> Tensor:
        return torch.cat(self._enhancer.views(items_T[None], users))


class IdEmbeddingViews:
    """The views of an enhancer that reads only its item embeddings, computed in advance."""

    def __init__(self, enhancer: IdEmbeddings) -> None:
        self._id_ND = enhancer.id_embeddings(torch.arange(enhancer.num_items + 1))

    def __call__(self, items_T: Tensor, users: UserVectors) -> Tensor:  # noqa: ARG002 - a `ViewFunction`
        return self._id_ND[items_T.clamp(min=PADDING)][None]


def can_fold(config: RankerConfig) -> bool:
    """Whether GRASP can be folded: sigmoid attention over the prefix and one view, as in all recipes."""
    is_prefix = config.mode == "prefix" and config.activation == "sigmoid" and config.use_attention
    return is_prefix and not config.use_global and config.item_representation != "dual"


class FoldedGraspViews:
    """GRASP with one row per item: keys and values of each level and head, hidden layer and item embedding, and queries
    unless user descriptions are the queries. The row of padding also serves MASK: its queries and values are zero.
    """

    def __init__(self, enhancer: Grasp) -> None:
        config, attention = enhancer.config, enhancer.holistic_attention
        hidden, last = cast(nn.Linear, attention.mlp[0]), cast(nn.Linear, attention.mlp[-1])
        items_N = torch.arange(enhancer.num_items + 1)
        is_item_N1 = (items_N != PADDING)[:, None]
        self._enhancer = enhancer
        self._levels = [level for level in (attention.self_attention, attention.similar_attention) if level is not None]
        self._head_size = config.context_width // config.num_heads
        self._bias_G = torch.stack([level.bias for level in self._levels]).repeat_interleave(config.num_heads)
        self._last_MD = enhancer.scale * last.weight.T

        read_NW = enhancer.project(items_N)[: len(self._levels)]
        own_MW, *result_MW = hidden.weight.split(config.context_width, 1)
        pairs = list(zip(self._levels, read_NW, strict=True))
        parts = {
            "key": [level.key(keys_NW) for level, keys_NW in pairs],
            "value": [
                value_NM * is_item_N1
                for (level, keys_NW), map_MW in zip(pairs, result_MW, strict=True)
                for value_NM in self._values(level, keys_NW, map_MW)
            ],
            "hidden": [F.linear(read_NW[0], own_MW, hidden.bias)],
            "id": [enhancer.id_embeddings(items_N) + enhancer.scale * last.bias],
        }
        if config.user_text == "mean_of_prefix_items":
            inputs = enhancer.user_adapter(enhancer.own_NC), enhancer.user_adapter(enhancer.neighbour_NC)
            parts["query"] = [
                self._query(level, each) * is_item_N1 for level, each in zip(self._levels, inputs, strict=False)
            ]
        self._widths = {name: sum(part.shape[1] for part in each) for name, each in parts.items()}
        self._row_NX = torch.cat([part for each in parts.values() for part in each], 1)

        prefix_TT = torch.ones(config.max_length, config.max_length).tril()
        self._mean_TT = prefix_TT / prefix_TT.sum(1, keepdim=True)
        self._share_TT = self._mean_TT if config.normalise == "mean" else prefix_TT

    def __call__(self, items_T: Tensor, users: UserVectors) -> Tensor:
        row_TX = self._row_NX[items_T.clamp(min=PADDING)]
        part = dict(zip(self._widths, row_TX.split(list(self._widths.values()), 1), strict=True))
        key_TGK, value_TGM = (part[name].unflatten(1, (len(self._bias_G), -1)) for name in ("key", "value"))
        if "query" in part:
            query_TGK = (self._steps(self._mean_TT, items_T) @ part["query"]).unflatten(1, (len(self._bias_G), -1))
            hidden_TM = self._hidden_by_step_queries(part["hidden"], query_TGK, key_TGK, value_TGM, items_T)
        else:
            query_GK = self._user_query(items_T, users)
            hidden_TM = self._hidden_by_user_query(part["hidden"], query_GK, key_TGK, value_TGM, items_T)
        view_TD = torch.addmm(part["id"], F.gelu(hidden_TM), self._last_MD)
        return view_TD[None]

    def _hidden_by_step_queries(
        self, hidden_TM: Tensor, query_TGK: Tensor, key_TGK: Tensor, value_TGM: Tensor, items_T: Tensor
    ) -> Tensor:
        """Each step has its own query, and so its own weights."""
        logit_GTT = torch.baddbmm(self._bias_G[:, None, None], query_TGK.transpose(0, 1), key_TGK.permute(1, 2, 0))
        weights_GTT = logit_GTT.sigmoid_().mul_(self._steps(self._share_TT, items_T))
        for weights_TT, value_TM in zip(weights_GTT, value_TGM.unbind(1), strict=True):
            hidden_TM = torch.addmm(hidden_TM, weights_TT, value_TM)
        return hidden_TM

    def _hidden_by_user_query(
        self, hidden_TM: Tensor, query_GK: Tensor, key_TGK: Tensor, value_TGM: Tensor, items_T: Tensor
    ) -> Tensor:
        """One query, so weights do not depend on the step."""
        gate_TG = ((key_TGK * query_GK).sum(-1) + self._bias_G).sigmoid_()
        share_TT = self._steps(self._share_TT, items_T)
        result_TM = torch.bmm(gate_TG[:, None], value_TGM).squeeze(1)
        return torch.addmm(hidden_TM, share_TT, result_TM)

    def _user_query(self, items_T: Tensor, users: UserVectors) -> Tensor:
        levels = zip(
            self._levels, self._enhancer.user_queries(IndexedItems.from_items(items_T[None]), users), strict=False
        )
        return torch.cat([self._query(level, each_1QW[0]) for level, each_1QW in levels], 1).view(-1, self._head_size)

    def _query(self, level: Attention, user_QW: Tensor) -> Tensor:
        return level.query(user_QW) * self._head_size**-0.5

    def _values(self, level: Attention, keys_NW: Tensor, result_MW: Tensor) -> list[Tensor]:
        """What a weight of 1 adds to the hidden layer, (N, M) for each head."""
        map_MW = result_MW @ level.output.weight
        heads = zip(level.value(keys_NW).split(self._head_size, 1), map_MW.split(self._head_size, 1), strict=True)
        return [value_NK @ map_MK.T for value_NK, map_MK in heads]

    def _steps(self, share_TT: Tensor, items_T: Tensor) -> Tensor:
        """Share of each item at each step, (T, T). MASK has share 0 and reads the same items as the last item."""
        num_steps = len(items_T)
        if self._enhancer.config.backbone != "bert4rec":
            return share_TT[:num_steps, :num_steps]
        return F.pad(share_TT[[*range(num_steps - 1), num_steps - 2], : num_steps - 1], (0, 1))
