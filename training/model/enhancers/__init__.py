"""What a backbone reads and is compared with; each family of models one file, any of them over any backbone."""

from training.model.enhancers.alphafuse import AlphaFuse
from training.model.enhancers.grasp import Grasp
from training.model.enhancers.ids import Ids
from training.model.enhancers.llm_esr import LlmEsr
from training.model.enhancers.llm_init import LlmInit
from training.model.enhancers.rlmrec import RlmRecContrastive, RlmRecGenerative

ENHANCERS: dict[str, type[Ids]] = {
    "none": Ids,
    "llm_init": LlmInit,
    "rlmrec_contrastive": RlmRecContrastive,
    "rlmrec_generative": RlmRecGenerative,
    "llm_esr": LlmEsr,
    "alphafuse": AlphaFuse,
    "grasp": Grasp,
}
