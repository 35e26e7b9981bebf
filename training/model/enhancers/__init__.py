"""Enhancers: they produce the inputs of the backbone and the candidate vectors. Each works with every backbone."""

from training.model.enhancers.alphafuse import AlphaFuse
from training.model.enhancers.grasp import Grasp
from training.model.enhancers.id_embeddings import IdEmbeddings
from training.model.enhancers.llm_esr import LlmEsr
from training.model.enhancers.llm_init import LlmInit
from training.model.enhancers.rlmrec import RlmRecContrastive, RlmRecGenerative

ENHANCERS: dict[str, type[IdEmbeddings]] = {
    "none": IdEmbeddings,
    "llm_init": LlmInit,
    "rlmrec_contrastive": RlmRecContrastive,
    "rlmrec_generative": RlmRecGenerative,
    "llm_esr": LlmEsr,
    "alphafuse": AlphaFuse,
    "grasp": Grasp,
}
