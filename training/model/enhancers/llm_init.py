"""LLMInit: item embeddings initialised with whitened principal components of the semantic vectors, trained freely."""

from torch import Tensor

from training.model.enhancers.id_embeddings import IdEmbeddings


class LlmInit(IdEmbeddings):
    """As in github.com/Hugo-Chinn/AlphaFuse, models/backbone_SASRec.py; the backbone is unchanged."""

    def initialise_from(self, item_NS: Tensor, user_NS: Tensor, num_interactions_N: Tensor) -> None:
        self.initialise_from_components(item_NS)
