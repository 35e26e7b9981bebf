"""LLMInit: item embeddings that begin as whitened principal components of the semantic vectors, then train freely."""

from torch import Tensor

from training.model.enhancers.ids import Ids


class LlmInit(Ids):
    """As in github.com/Hugo-Chinn/AlphaFuse, models/backbone_SASRec.py; the backbone is unchanged."""

    def start_from(self, item_NS: Tensor, user_NS: Tensor, num_taken_N: Tensor) -> None:
        self.start_from_components(item_NS)
