"""What a backbone reads and is compared with; each family of models one file, any of them over any backbone."""

from training.enhancers.alphafuse import AlphaFuse
from training.enhancers.grasp import Grasp
from training.enhancers.ids import Ids
from training.enhancers.llm_esr import LlmEsr
from training.enhancers.llm_init import LlmInit
from training.enhancers.rlmrec import RlmRecContrastive, RlmRecGenerative

ENHANCERS: dict[str, type[Ids]] = {
    "none": Ids,
    "llm_init": LlmInit,
    "rlmrec_contrastive": RlmRecContrastive,
    "rlmrec_generative": RlmRecGenerative,
    "llm_esr": LlmEsr,
    "alphafuse": AlphaFuse,
    "grasp": Grasp,
}
