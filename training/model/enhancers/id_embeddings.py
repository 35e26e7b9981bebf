"""No enhancer: trained item embeddings alone. The others start from it and change what they must.

Shape suffixes:  B batch  T sequence length  N items, row 0 is padding  S semantic size  D model width
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from training.model.config import PADDING, RankerConfig
from training.model.semantic_adapter import whitening_map


@dataclass(frozen=True)
class UserVectors:
    """The frozen vectors of a batch of users, (B, S): of their own descriptions and the means of their neighbours'."""

    semantic_BS: Tensor
    neighbour_BS: Tensor


class IdEmbeddings(nn.Module):
    """Item embeddings as a backbone's input and as what its states are compared with."""

    def __init__(self, config: RankerConfig) -> None:
        super().__init__()
        self.config = config
        self.num_items = config.num_items  # grows when items are attached that are newer than the model
        self.item = nn.Embedding(config.num_items + 1, config.width, padding_idx=PADDING)
        nn.init.normal_(self.item.weight[1:], std=config.width**-0.5)

    def initialise_from(self, item_NS: Tensor, user_NS: Tensor, num_interactions_N: Tensor) -> None:
        """Before training: where to begin, by the frozen vectors of items and users and how often items were taken.

        One row per item and user; called before any items are attached.
        """

    @torch.no_grad()
    def initialise_from_components(self, item_NS: Tensor) -> None:
        """Begin as whitened principal components, of the length that random embeddings begin with."""
        weight_DS, bias_D = whitening_map(item_NS, self.config.width)
        self.item.weight[1:] = (item_NS @ weight_DS.T + bias_D) * self.config.width**-0.5

    def attach_items(self, semantic_NS: Tensor, neighbour_NS: Tensor) -> None:
        """Take the frozen vectors, row i for item i + 1."""
        self.num_items = len(semantic_NS)

    def views(self, items_BT: Tensor, users: UserVectors) -> list[Tensor]:
        """What the backbone reads, each (B, T, D); zero for padding, and nothing of its own for the item asked for."""
        return [self.id_embeddings(items_BT)]

    def combine_states(self, states: list[Tensor]) -> Tensor:
        """One state per step from those of the views."""
        return torch.cat(states, -1)

    def candidate_vectors(self, items_N: Tensor) -> Tensor:
        """What a state is compared with, (N, width of a state); zero for padding."""
        return self.id_embeddings(items_N)

    def auxiliary_loss(self, items_N: Tensor, state_BD: Tensor, user_B: Tensor) -> Tensor | None:
        """A further term of the loss, or None: over the items a batch trained with and its users' last states."""
        return None

    def id_embeddings(self, items: Tensor) -> Tensor:
        """Trained item embeddings; zero for padding, the mask and items newer than the model."""
        is_known = (items > PADDING) & (items <= self.config.num_items)
        embedded: Tensor = self.item(items * is_known)
        return embedded

    def clear_cache(self) -> None:
        """Drop what was computed from weights that have changed since."""
