"""The configuration of a ranker. Where the paper is open, each interpretation is a field."""

from dataclasses import dataclass
from typing import Literal, get_args, get_origin, get_type_hints

PADDING = 0
MASK = -1  # the item to predict in a BERT4Rec sequence; no item has this index

Backbone = Literal["sasrec", "gru4rec", "bert4rec"]


@dataclass(frozen=True)
class RankerConfig:
    """Everything about a ranker except its weights."""

    num_items: int  # known in training, without padding
    semantic_size: int
    backbone: Backbone = "sasrec"
    variant: Literal["strong", "legacy"] = "strong"  # legacy: as in LLM-ESR's code
    width: int = 64
    num_blocks: int = 2
    num_heads: int = 1
    max_length: int = 100
    dropout: float = 0.2
    enhancer: str = "grasp"  # a key of ENHANCERS in training/model/enhancers
    score: Literal["dot", "cosine"] = "dot"
    temperature: float = 0.07  # for cosine scores
    num_components: int = 128  # whitened components of a semantic vector
    # --- GRASP
    context_width: int = 64  # of attention and projected vectors; attention is cheaper if it is below width
    # Which items step t may read: itself and earlier ones (prefix), all (full; leaks the future), only itself (gate),
    # or as prefix, with the item of step t added to the query (cross).
    mode: Literal["prefix", "full", "gate", "cross"] = "prefix"
    activation: Literal["sigmoid", "softmax"] = "sigmoid"
    normalise: Literal["sum", "mean"] = "sum"  # of attention weights; a plain softmax is a mean
    sigmoid_bias: Literal["log_length", "zero"] = "log_length"  # initial bias: -log(max_length) or 0
    item_representation: Literal["sem", "sem+id", "dual"] = "sem+id"
    candidate: Literal["mlp", "linear"] = "mlp"  # from own and neighbour vectors to the candidate vector
    use_attention: bool = True  # False: all items have equal weights
    use_similar: bool = True  # False: no neighbour embeddings
    use_global: bool = True  # False: no second attention over the results of the first
    global_keys: Literal["stack", "mean"] = "stack"  # those results as separate keys, or their mean
    # The query: the user's description, or the mean of the items seen so far, which leaks nothing.
    user_text: Literal["described", "mean_of_prefix_items"] = "described"
    num_lenders: int = 0  # nearest items by meaning whose embeddings a rare item borrows; 0: no borrowing
    lent_only: float = 0.0  # share of items that use only borrowed embeddings in a training step
    kernel_length: int = 0  # number of latest items that the history kernel reads; 0: no kernel
    kernel_neighbours: int = 100  # stored per item and kind of similarity
    # --- AlphaFuse
    null_width: int = 64  # number of last coordinates in which a trained vector is added

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            if get_origin(kind) is Literal and getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} {getattr(self, name)!r} is not one of {', '.join(get_args(kind))}")
        for name in ("width", "context_width"):
            if getattr(self, name) % self.num_heads:
                raise ValueError(f"{name} {getattr(self, name)} is not a multiple of num_heads {self.num_heads}")
        if self.num_items < 1 or self.semantic_size < 1:
            raise ValueError(f"num_items {self.num_items} and semantic_size {self.semantic_size} must be positive")
        if self.enhancer == "alphafuse" and not 0 < self.null_width <= self.width <= self.semantic_size:
            raise ValueError(
                f"alphafuse needs 0 < null_width {self.null_width} <= width {self.width} "
                f"<= semantic_size {self.semantic_size}"
            )

    @property
    def is_causal(self) -> bool:
        """Whether the state of a step depends on no later item."""
        reads_ahead = self.enhancer == "grasp" and self.mode == "full"
        return self.backbone_is_causal and not reads_ahead

    @property
    def backbone_is_causal(self) -> bool:
        """Whether the backbone is causal. LLM-ESR's SASRec is not: its code does not use its causal mask."""
        return self.backbone == "gru4rec" or (self.backbone == "sasrec" and self.variant == "strong")
