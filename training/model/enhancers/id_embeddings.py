"""Trained item embeddings alone. This is the enhancer `none` and the base class of all others.

Shape suffixes:  B batch  T sequence length  N items, row 0 is padding  S semantic size  D model width
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from training.model.config import PADDING, RankerConfig
from training.model.semantic_adapter import whitening_map


@dataclass(frozen=True)
class UserVectors:
    """Frozen vectors of a batch of users, (B, S): of their descriptions, and the means of their neighbours' vectors."""

    semantic_BS: Tensor
    neighbour_BS: Tensor


class IdEmbeddings(nn.Module):
    """Item embeddings, both as input of the backbone and as candidate vectors."""

    def __init__(self, config: RankerConfig) -> None:
        super().__init__()
        self.config = config
        self.num_items = config.num_items  # larger if newer items than those of training are attached
        self.item = nn.Embedding(config.num_items + 1, config.width, padding_idx=PADDING)
        nn.init.normal_(self.item.weight[1:], std=config.width**-0.5)

    def initialise_from(self, item_NS: Tensor, user_NS: Tensor, num_interactions_N: Tensor) -> None:
        """Initialise before training, from the frozen vectors of all items and users and each item's interactions.

        Called once, before any items are attached.
        """

    @torch.no_grad()
    def initialise_from_components(self, item_NS: Tensor) -> None:
        """Set item embeddings to whitened principal components, scaled to the length of random embeddings."""
        weight_DS, bias_D = whitening_map(item_NS, self.config.width)
        self.item.weight[1:] = (item_NS @ weight_DS.T + bias_D) * self.config.width**-0.5

    def attach_items(self, semantic_NS: Tensor, neighbour_NS: Tensor) -> None:
        """Take the frozen vectors of the items; row i holds item i + 1."""
        self.num_items = len(semantic_NS)

    def views(self, items_BT: Tensor, users: UserVectors) -> list[Tensor]:
        """Inputs of the backbone, (B, T, D) each. They are zero for padding and contain no item vector for MASK."""
        return [self.id_embeddings(items_BT)]

    def combine_states(self, states: list[Tensor]) -> Tensor:
        """Combine the states of the views into one state per step."""
        return torch.cat(states, -1)

    def candidate_vectors(self, items_N: Tensor) -> Tensor:
        """The vectors that states are multiplied with, (N, state width); zero for padding."""
        return self.id_embeddings(items_N)

    def auxiliary_loss(self, items_N: Tensor, state_BD: Tensor, user_B: Tensor) -> Tensor | None:
        """Another term of the loss, or None, from the target items and last states of a batch."""
        return None

    def id_embeddings(self, items: Tensor) -> Tensor:
        """Trained item embeddings; zero for padding, MASK and items newer than the model."""
        is_known = (items > PADDING) & (items <= self.config.num_items)
        embedded: Tensor = self.item(items * is_known)
        return embedded

    def clear_cache(self) -> None:
        """Drop cached results of weights that may have changed."""
