"""Maps from semantic vectors to the width of a model.

Shape suffixes:  N items or users  S semantic size  C components
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.model.config import RankerConfig

SMALLEST_VARIANCE = 1e-2  # relative to the largest; axes below it are noise, which whitening would amplify


@torch.no_grad()
def whitening_map(vectors_NS: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Weight (size, S) and bias (size,) of the map onto the first principal components, scaled to unit variance.

    Sentence vectors lie in a narrow cone: without whitening, a few directions dominate (AlphaFuse,
    github.com/Hugo-Chinn/AlphaFuse). If S is smaller than `size`, the remaining components are zero.
    """
    centre_S = vectors_NS.mean(0)
    centred_NS = vectors_NS - centre_S
    variance_S, axes_SS = torch.linalg.eigh(centred_NS.T @ centred_NS / len(vectors_NS))
    variance, axes = variance_S.flip(0)[:size], axes_SS.flip(1)[:, :size]
    weight = torch.zeros(size, vectors_NS.shape[1])
    weight[: len(variance)] = (axes / variance.clamp(min=SMALLEST_VARIANCE * variance[0] + 1e-12).sqrt()).T
    return weight, -weight @ centre_S


class SemanticAdapter(nn.Module):
    """A frozen linear map onto whitened components, then a trained linear map to `width`.

    LLM-ESR trains two linear maps, which together are one map of rank `width`. Freezing the first on the components of
    largest variance keeps that rank. The catalogue is reduced only once (`to_components`), not in every step, so a
    vector of 4,096 numbers costs as much as one of 384.
    """

    weight_CS: Tensor
    bias_C: Tensor

    def __init__(self, config: RankerConfig, width: int) -> None:
        super().__init__()
        self.register_buffer("weight_CS", torch.eye(config.num_components, config.semantic_size))
        self.register_buffer("bias_C", torch.zeros(config.num_components))
        self.map = nn.Linear(config.num_components, width)

    @torch.no_grad()
    def initialise_from(self, vectors_NS: Tensor) -> None:
        """Fit the frozen map to these vectors. The trained map initially passes on the largest components."""
        weight_CS, bias_C = whitening_map(vectors_NS, len(self.bias_C))
        self.weight_CS.copy_(weight_CS)
        self.bias_C.copy_(bias_C)
        nn.init.eye_(self.map.weight)
        nn.init.zeros_(self.map.bias)

    def to_components(self, semantic: Tensor) -> Tensor:
        """Semantic vectors (..., S) to whitened components (..., C)."""
        return F.linear(semantic, self.weight_CS, self.bias_C)

    def forward(self, components: Tensor) -> Tensor:
        """Whitened components (..., C) to (..., width)."""
        return self.map(components)
