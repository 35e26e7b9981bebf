"""RLMRec: item embeddings with an auxiliary loss that aligns them with the semantic vectors (arXiv 2310.15950).

Formulas and weights follow github.com/HKUDS/RLMRec, encoder/models/general_cf/lightgcn_{plus,gene}.py. There the loss
runs over a graph, here over the items of a batch.

Shape suffixes:  N items  S semantic size  D model width
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.model.config import RankerConfig
from training.model.enhancers.id_embeddings import IdEmbeddings

CONTRASTIVE_WEIGHT, CONTRASTIVE_TEMPERATURE = 1e-2, 0.2
GENERATIVE_WEIGHT, MASK_SHARE = 0.1, 0.1
MAX_ITEMS = 1024  # of a batch that enter the auxiliary loss


class _Aligned(IdEmbeddings):
    """Item embeddings and the semantic vectors they are aligned with; the latter are needed in training only."""

    semantic_NS: Tensor

    def __init__(self, config: RankerConfig) -> None:
        super().__init__(config)
        self.register_buffer("semantic_NS", torch.zeros(0, config.semantic_size), persistent=False)

    def attach_items(self, semantic_NS: Tensor, neighbour_NS: Tensor) -> None:
        super().attach_items(semantic_NS, neighbour_NS)
        self.semantic_NS = F.pad(semantic_NS.float(), (0, 0, 1, 0))

    def auxiliary_loss(self, items_N: Tensor, state_BD: Tensor, user_B: Tensor) -> Tensor | None:
        chosen_N = items_N[torch.randperm(len(items_N))[:MAX_ITEMS]]
        return self.alignment(self.item(chosen_N), self.semantic_NS[chosen_N])

    def alignment(self, id_ND: Tensor, semantic_NS: Tensor) -> Tensor:
        raise NotImplementedError


class RlmRecContrastive(_Aligned):
    """InfoNCE: pulls each embedding towards its own projected vector and away from those of other items."""

    def __init__(self, config: RankerConfig) -> None:
        super().__init__(config)
        self.projection = _mlp(config.semantic_size, config.width)

    def alignment(self, id_ND: Tensor, semantic_NS: Tensor) -> Tensor:
        return CONTRASTIVE_WEIGHT * info_nce(id_ND, self.projection(semantic_NS), CONTRASTIVE_TEMPERATURE)


class RlmRecGenerative(_Aligned):
    """Reconstructs semantic vectors from embeddings, by 1 - cosine (AlphaFuse's port, github.com/Hugo-Chinn/AlphaFuse).

    The original masks whole nodes of a graph and reconstructs them from neighbours. A sequence model has no graph, so a
    share of the coordinates is masked instead.
    """

    def __init__(self, config: RankerConfig) -> None:
        super().__init__(config)
        self.reconstruction = _mlp(config.width, config.semantic_size)

    def alignment(self, id_ND: Tensor, semantic_NS: Tensor) -> Tensor:
        rebuilt_NS = self.reconstruction(F.dropout(id_ND, MASK_SHARE, self.training))
        return GENERATIVE_WEIGHT * (1 - F.cosine_similarity(rebuilt_NS, semantic_NS, dim=-1).mean())


def info_nce(query_NK: Tensor, key_NK: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of matching query row i with key row i, by cosine."""
    cosine_NN = F.normalize(query_NK, dim=-1) @ F.normalize(key_NK, dim=-1).T
    return F.cross_entropy(cosine_NN / temperature, torch.arange(len(cosine_NN)))


def _mlp(inputs: int, outputs: int) -> nn.Sequential:
    hidden = (inputs + outputs) // 2
    return nn.Sequential(nn.Linear(inputs, hidden), nn.LeakyReLU(), nn.Linear(hidden, outputs))
