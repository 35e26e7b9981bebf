"""LLM-ESR: a semantic and a collaborative view of the sequence, with self-distillation from similar users.

Follows github.com/liuqidong07/LLM-ESR, models/DualLLMSRS.py and models/LLMESR.py, with these differences:

- Over a causal backbone the cross attention between the views is causal too.
- Positions are added before the cross attention and again in the backbone.
- The teacher of the self-distillation is the mean of the similar users' last states. These are stored from the last
  batch with that user (for a long sequence, of a piece). Computing them anew would make training eleven times as long.

Shape suffixes:  B batch  T sequence length  U users  N items  S semantic size  C components
                 D model width  K similar users
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.data.nearest import nearest_rows
from training.model.attention import attention_mask
from training.model.config import PADDING, RankerConfig
from training.model.enhancers.id_embeddings import IdEmbeddings, UserVectors
from training.model.semantic_adapter import SemanticAdapter

NUM_SIMILAR_USERS = 10
DISTILLATION_WEIGHT = 0.1
NUM_HEADS = 2  # of the cross attention


class LlmEsr(IdEmbeddings):
    semantic_NC: Tensor

    def __init__(self, config: RankerConfig) -> None:
        super().__init__(config)
        self.adapter = SemanticAdapter(config, config.width)
        self.position = nn.Embedding(config.max_length + 2, config.width, padding_idx=0)
        nn.init.normal_(self.position.weight[1:], std=0.02)
        self.semantic_attention = nn.MultiheadAttention(config.width, NUM_HEADS, config.dropout, batch_first=True)
        self.collaborative_attention = nn.MultiheadAttention(config.width, NUM_HEADS, config.dropout, batch_first=True)
        self.register_buffer("semantic_NC", torch.zeros(0, config.num_components), persistent=False)
        # For training only: similar users (U, K), their last states (U, 2 D), and which states are known.
        self._similar_UK = torch.zeros(0, NUM_SIMILAR_USERS, dtype=torch.long)
        self._state_UD = torch.zeros(0, 2 * config.width)
        self._has_state_U = torch.zeros(0, dtype=torch.bool)

    def initialise_from(self, item_NS: Tensor, user_NS: Tensor, num_interactions_N: Tensor) -> None:
        self.adapter.initialise_from(item_NS)
        self.initialise_from_components(item_NS)
        num_similar = min(NUM_SIMILAR_USERS, len(user_NS) - 1)
        self._similar_UK, _ = nearest_rows(user_NS, user_NS, num_similar, same_rows=True)
        self._state_UD = torch.zeros(len(user_NS), 2 * self.config.width)
        self._has_state_U = torch.zeros(len(user_NS), dtype=torch.bool)

    def attach_items(self, semantic_NS: Tensor, neighbour_NS: Tensor) -> None:
        super().attach_items(semantic_NS, neighbour_NS)
        with torch.no_grad():
            self.semantic_NC = F.pad(self.adapter.to_components(semantic_NS.float()), (0, 0, 1, 0))

    def views(self, items_BT: Tensor, users: UserVectors) -> list[Tensor]:
        mask_BT = items_BT > PADDING
        is_step_BT = items_BT != PADDING  # MASK has a position too
        position_BTD = self.position(is_step_BT.cumsum(1) * is_step_BT)
        semantic_BTD, id_BTD = self.semantic(items_BT) + position_BTD, self.id_embeddings(items_BT) + position_BTD
        rule = "prefix" if self.config.backbone_is_causal else "full"
        # A step without allowed keys would give NaN, so it reads itself and is zeroed below.
        allowed_BTT = attention_mask(rule, mask_BT) | torch.eye(mask_BT.shape[1], dtype=torch.bool)
        forbidden = (~allowed_BTT).repeat_interleave(NUM_HEADS, 0)

        def read(attention: nn.MultiheadAttention, query_BTD: Tensor, keys_BTD: Tensor) -> Tensor:
            answer_BTD, _ = attention(query_BTD, keys_BTD, keys_BTD, attn_mask=forbidden, need_weights=False)
            return answer_BTD * mask_BT[..., None]

        return [
            read(self.semantic_attention, id_BTD, semantic_BTD),
            read(self.collaborative_attention, semantic_BTD, id_BTD),
        ]

    def candidate_vectors(self, items_N: Tensor) -> Tensor:
        return torch.cat([self.semantic(items_N), self.id_embeddings(items_N)], -1)

    def semantic(self, items: Tensor) -> Tensor:
        known = items.clamp(min=PADDING)
        if self.training:
            unique_N, known = known.unique(return_inverse=True)
            projected = self.adapter(self.semantic_NC[unique_N])[known]
        else:
            projected = self.adapter(self.semantic_NC[known])
        # Scaled to the initial length of item embeddings, because the score adds both views.
        return self.config.width**-0.5 * projected * (items > PADDING)[..., None]

    def auxiliary_loss(self, items_N: Tensor, state_BD: Tensor, user_B: Tensor) -> Tensor | None:
        """0.1 * mean squared distance to the mean of the similar users' last states."""
        similar_BK = self._similar_UK[user_B]
        has_state_BK1 = self._has_state_U[similar_BK][..., None]
        teacher_BD = (self._state_UD[similar_BK] * has_state_BK1).sum(1) / has_state_BK1.sum(1).clamp(min=1)
        has_teacher_B = has_state_BK1.any(1).squeeze(-1)
        self._state_UD[user_B], self._has_state_U[user_B] = state_BD.detach(), True
        if not has_teacher_B.any():
            return None
        return DISTILLATION_WEIGHT * F.mse_loss(state_BD[has_teacher_B], teacher_BD[has_teacher_B])
