"""AlphaFuse: frozen whitened semantic vectors, with a trained vector in the coordinates of smallest variance.

The trained vector is added to the last `null_width` coordinates and starts at zero (github.com/Hugo-Chinn/AlphaFuse).
There is no adapter; scores are cosines.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.model.config import PADDING, RankerConfig
from training.model.enhancers.id_embeddings import IdEmbeddings
from training.model.semantic_adapter import whitening_map


class AlphaFuse(IdEmbeddings):
    frozen_ND: Tensor
    weight_DS: Tensor
    bias_D: Tensor

    def __init__(self, config: RankerConfig) -> None:
        super().__init__(config)
        self.item = nn.Embedding(config.num_items + 1, config.null_width, padding_idx=PADDING)
        nn.init.zeros_(self.item.weight)
        self.register_buffer("weight_DS", torch.zeros(config.width, config.semantic_size))
        self.register_buffer("bias_D", torch.zeros(config.width))
        self.register_buffer("frozen_ND", torch.zeros(0, config.width), persistent=False)

    def initialise_from(self, item_NS: Tensor, user_NS: Tensor, num_interactions_N: Tensor) -> None:
        weight_DS, bias_D = whitening_map(item_NS, self.config.width)
        self.weight_DS.copy_(weight_DS)
        self.bias_D.copy_(bias_D)

    def attach_items(self, semantic_NS: Tensor, neighbour_NS: Tensor) -> None:
        super().attach_items(semantic_NS, neighbour_NS)
        # Scaled to unit length on average, like the trained embeddings of other enhancers.
        whitened_ND = (semantic_NS.float() @ self.weight_DS.T + self.bias_D) * self.config.width**-0.5
        self.frozen_ND = F.pad(whitened_ND, (0, 0, 1, 0))

    def id_embeddings(self, items: Tensor) -> Tensor:
        trained = super().id_embeddings(items)
        frozen = self.frozen_ND[items.clamp(min=PADDING)]
        return frozen + F.pad(trained, (self.config.width - self.config.null_width, 0))
