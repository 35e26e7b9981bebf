"""What a ranker is: one flat, frozen configuration, every reading of the paper a switch of it."""

from dataclasses import dataclass
from typing import Literal, get_args, get_origin, get_type_hints

PADDING = 0
MASK = -1  # stands for "the item asked for" in a BERT4Rec sequence; no item has this index

Backbone = Literal["sasrec", "gru4rec", "bert4rec"]


@dataclass(frozen=True)
class RankerConfig:
    """Two rankers of one config differ in their weights only."""

    num_items: int  # items known in training, without padding
    semantic_size: int
    backbone: Backbone = "sasrec"
    variant: Literal["strong", "legacy"] = "strong"  # legacy: the backbone as in LLM-ESR's code
    width: int = 64
    num_blocks: int = 2
    num_heads: int = 1
    max_length: int = 100
    dropout: float = 0.2
    enhancer: str = "grasp"  # a name of training/model/enhancers/__init__.py; `Ranker` refuses others
    score: Literal["dot", "cosine"] = "dot"
    temperature: float = 0.07  # of cosine scores
    num_components: int = 128  # whitened ones of a semantic vector that are read
    # --- GRASP
    context_width: int = 64  # of the attention and of projected vectors, so that context costs less than the backbone
    # Which items step t may read: itself and earlier ones (prefix), all (full; leaks the future), itself alone (gate),
    # or prefix with a query that also knows the item of step t (cross).
    mode: Literal["prefix", "full", "gate", "cross"] = "prefix"
    activation: Literal["sigmoid", "softmax"] = "sigmoid"
    normalise: Literal["sum", "mean"] = "sum"  # of the activated values; a plain softmax is a mean
    sigmoid_bias: Literal["log_length", "zero"] = "log_length"  # start of the bias: -log(max_length) or 0
    item_representation: Literal["sem", "sem+id", "dual"] = "sem+id"
    candidate: Literal["mlp", "linear"] = "mlp"  # how own and neighbour vectors become what a state is compared with
    use_attention: bool = True  # False: every item weighs the same
    use_similar: bool = True  # False: no neighbour embeddings anywhere
    use_global: bool = True  # False: no second attention over the first one's answers
    global_keys: Literal["stack", "mean"] = "stack"  # those answers side by side, or their mean
    # Who asks: the user's description, or (free of any leak) the mean of the items seen so far.
    user_text: Literal["described", "mean_of_prefix_items"] = "described"
    num_lenders: int = 0  # nearest items by meaning that an item few have taken borrows its embedding from; 0: none
    lent_only: float = 0.0  # share of items that, at a step of training, have nothing but what they borrow
    kernel_length: int = 0  # latest items that the history kernel reads; 0: no kernel
    kernel_neighbours: int = 100  # stored for each item and kind of nearness
    # --- AlphaFuse
    null_width: int = 64  # coordinates, the last ones, in which a trained vector is added to the frozen one

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            if get_origin(kind) is Literal and getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} {getattr(self, name)!r} is none of {', '.join(get_args(kind))}")
        for name in ("width", "context_width"):
            if getattr(self, name) % self.num_heads:
                raise ValueError(f"{name} {getattr(self, name)} is not a multiple of num_heads {self.num_heads}")
        if self.num_items < 1 or self.semantic_size < 1:
            raise ValueError(f"num_items {self.num_items} and semantic_size {self.semantic_size} must be positive")
        if self.enhancer == "alphafuse" and not 0 < self.null_width <= self.width <= self.semantic_size:
            raise ValueError(
                f"alphafuse wants 0 < null_width {self.null_width} <= width {self.width} "
                f"<= semantic_size {self.semantic_size}"
            )

    @property
    def is_causal(self) -> bool:
        """Whether a step's state depends on no later item."""
        reads_ahead = self.enhancer == "grasp" and self.mode == "full"
        return self.backbone_is_causal and not reads_ahead

    @property
    def backbone_is_causal(self) -> bool:
        """LLM-ESR's SASRec has no causal mask (its code computes one and does not use it)."""
        return self.backbone == "gru4rec" or (self.backbone == "sasrec" and self.variant == "strong")
