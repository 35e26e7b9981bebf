"""What a training run is: one named, frozen configuration per recipe.

Recipes are functions: `sasrec()` is the backbone alone, `sasrec_grasp()` the same enhanced. Any backbone takes any
enhancer; `recipe("gru4rec_llm_esr")` builds those that have no function of their own.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, get_args

from training.model.config import Backbone
from training.model.enhancers import ENHANCERS

DEFAULT = "sasrec_grasp"


@dataclass(frozen=True)
class TrainConfig:
    """A backbone, what it reads and how it is fitted."""

    name: str
    backbone: Backbone = "sasrec"
    enhancer: str = "grasp"
    ranker: tuple[tuple[str, object], ...] = ()  # further switches of RankerConfig, by name
    loss: Literal["cross_entropy", "sampled_softmax", "bce", "gbce"] = "sampled_softmax"
    num_negatives: int = 2048  # of sampled_softmax and gbce, shared by a batch; bce has one per step
    calibration: float = 0.75  # t of gbce (gSASRec, arXiv 2308.07192)
    num_targets: int = 1  # next items that a step learns, of the softmax losses
    target_decay: float = 0.6  # what each further one counts, by the one before it
    targets: Literal["all", "last"] = "all"  # of a sequence; last: as LLM-ESR trains GRU4Rec
    mask_share: float = 0.3  # of a sequence that BERT4Rec has to guess
    shortest_piece: int = 5  # items; longer sequences are cut into pieces of this to max_length
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    averaging: float = 0.0  # share that a running mean of the weights keeps at a step; 0: the weights themselves count
    batch_size: int = 128  # sequences
    max_epochs: int = 30  # still rising slowly, but the demo should take minutes
    patience: int = 8  # epochs without a better validation NDCG@10
    # Whose NDCG@10 that is: the full ranking without the history; the same with the history kernel, as the ranker will
    # serve; or among a hundred items, as LLM-ESR's code has it.
    selection: Literal["filtered", "with_kernel", "sampled"] = "filtered"
    max_minutes: float = 30.0  # of fitting; the best epoch until then counts

    def with_switches(self, **switches: object) -> "TrainConfig":
        """The same recipe with further switches of `RankerConfig`."""
        return replace(self, ranker=tuple(sorted({**dict(self.ranker), **switches}.items())))


def plain(backbone: Backbone, enhancer: str) -> TrainConfig:
    """An enhancer over a backbone, both as they are by default."""
    return TrainConfig(backbone if enhancer == "none" else f"{backbone}_{enhancer}", backbone, enhancer)


def sasrec() -> TrainConfig:
    return plain("sasrec", "none")


def grasp(backbone: Backbone) -> TrainConfig:
    """What validation settled on (docs/decisions/grasp-on-beauty.md); `RankerConfig` has the paper's reading.

    The items seen so far speak for the user: a description has seen the targets too, and short histories give it away.
    """
    config = replace(plain(backbone, "grasp"), averaging=0.995, num_targets=5, selection="with_kernel")
    return config.with_switches(
        width=128,
        user_text="mean_of_prefix_items",
        normalise="mean",
        use_global=False,
        candidate="linear",
        context_width=32,
        num_components=256,
        num_lenders=5,
        lent_only=0.1,
        kernel_length=5,
    )


def sasrec_grasp() -> TrainConfig:
    return grasp("sasrec")


def sasrec_grasp_described() -> TrainConfig:
    """The user's description asks, as in the paper; on MovieLens no better with the history kernel, worse without."""
    return replace(sasrec_grasp(), name="sasrec_grasp_described").with_switches(user_text="described")


def alphafuse(backbone: Backbone) -> TrainConfig:
    """Width 128, of which 64 are trained, and cosine scores, as its authors have it."""
    config = TrainConfig(f"{backbone}_alphafuse", backbone, "alphafuse")
    return config.with_switches(width=128, null_width=64, score="cosine")


def legacy(backbone: Backbone) -> TrainConfig:
    """The backbone alone as in LLM-ESR's code and scripts: the rows that published figures are checked with."""
    config = TrainConfig(
        f"{backbone}_legacy",
        backbone,
        "none",
        loss="bce",
        targets="last" if backbone == "gru4rec" else "all",
        mask_share=0.6,
        shortest_piece=200,
        max_epochs=200,
        patience=20,
        selection="sampled",
    )
    return config.with_switches(variant="legacy", max_length=200, dropout=0.5)


def recipe(name: str) -> TrainConfig:
    """The recipe of that name, `backbone` or `backbone_enhancer`; raises `ValueError` that lists all."""
    if name not in RECIPES:
        raise ValueError(f"no recipe {name!r}; there are {', '.join(sorted(RECIPES))}")
    return RECIPES[name]()


RECIPES: dict[str, Callable[[], TrainConfig]] = {
    **{
        backbone if enhancer == "none" else f"{backbone}_{enhancer}": partial(plain, backbone, enhancer)
        for backbone in get_args(Backbone)
        for enhancer in ENHANCERS
    },
    **{f"{backbone}_alphafuse": partial(alphafuse, backbone) for backbone in get_args(Backbone)},
    **{f"{backbone}_grasp": partial(grasp, backbone) for backbone in get_args(Backbone)},
    **{f"{backbone}_legacy": partial(legacy, backbone) for backbone in get_args(Backbone)},
    **{build.__name__: build for build in (sasrec, sasrec_grasp, sasrec_grasp_described)},
}
