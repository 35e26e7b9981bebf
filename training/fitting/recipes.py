"""Recipes: named, frozen configurations of training runs.

A recipe is a function: `sasrec()` is the backbone alone, `sasrec_grasp()` the backbone with GRASP. Every backbone works
with every enhancer; `recipe("gru4rec_llm_esr")` also builds combinations without a function of their own.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, get_args

from training.model.config import Backbone
from training.model.enhancers import ENHANCERS

DEFAULT = "sasrec_grasp"
# Raise it with any change of what a recipe computes: measured rows of another version then count as stale.
# tests/training/fitting/test_recipe_version.py fails when a result has changed and the version has not.
RECIPE_VERSION = 2


TAKERS_OFFSET = (0.0, 0.0, 0.5, 0.5, 1.0)  # of the windows of `TAKER_DAYS`: docs/decisions/fresh-features.md


@dataclass(frozen=True)
class TrainConfig:
    """Backbone, enhancer, loss and training schedule of one run."""

    name: str
    backbone: Backbone = "sasrec"
    enhancer: str = "grasp"
    ranker: tuple[tuple[str, object], ...] = ()  # other fields of RankerConfig: (name, value)
    loss: Literal["cross_entropy", "sampled_softmax", "bce", "gbce"] = "sampled_softmax"
    num_negatives: int = 2048  # for sampled_softmax and gbce, shared by a batch; bce has one per step
    calibration: float = 0.75  # t in gbce (gSASRec, arXiv 2308.07192)
    num_targets: int = 1  # number of next items per step that the softmax losses learn
    target_decay: float = 0.6  # weight of a target relative to the one before it
    targets: Literal["all", "last"] = "all"  # trained steps of a sequence; last: as LLM-ESR trains GRU4Rec
    mask_share: float = 0.3  # share of a sequence that BERT4Rec has to predict
    shortest_piece: int = 5  # items; longer sequences are cut into pieces of shortest_piece to max_length
    # Weights of log(1 + takers) of each window in the softmax losses (`takers_offset.py`); empty: no such part.
    takers_offset: tuple[float, ...] = ()
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    averaging: float = 0.0  # decay of the running mean of the weights; 0: no mean
    batch_size: int = 128  # sequences
    max_epochs: int = 30  # metrics still improve slowly, but the demo should take minutes
    patience: int = 8  # epochs without a better validation NDCG@10
    # The validation NDCG@10 that selects the epoch: filtered, without the history kernel; filtered with the kernel, as
    # in serving; or among a hundred sampled items, as in LLM-ESR's code.
    selection: Literal["filtered", "with_kernel", "sampled"] = "filtered"
    max_minutes: float = 30.0  # then training stops after the epoch and the best epoch is kept

    def with_switches(self, **switches: object) -> "TrainConfig":
        """The same recipe with other values for fields of `RankerConfig`."""
        return replace(self, ranker=tuple(sorted({**dict(self.ranker), **switches}.items())))


def plain(backbone: Backbone, enhancer: str) -> TrainConfig:
    """A backbone with an enhancer, both with their defaults."""
    return TrainConfig(backbone if enhancer == "none" else f"{backbone}_{enhancer}", backbone, enhancer)


def sasrec() -> TrainConfig:
    return plain("sasrec", "none")


def grasp(backbone: Backbone) -> TrainConfig:
    """Settings chosen by validation (docs/decisions/grasp-on-beauty.md). `RankerConfig` defaults to the paper.

    The query is the mean of the items seen so far. A user's description is written from the targets too and leaks them,
    which hurts on short histories.
    """
    schedule = {"averaging": 0.995, "num_targets": 5, "selection": "with_kernel", "takers_offset": TAKERS_OFFSET}
    config = replace(plain(backbone, "grasp"), **schedule)  # type: ignore[arg-type]
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
    """The query is the user's description, as in the paper. On MovieLens no better with the kernel, worse without."""
    return replace(sasrec_grasp(), name="sasrec_grasp_described").with_switches(user_text="described")


def alphafuse(backbone: Backbone) -> TrainConfig:
    """AlphaFuse with the authors' settings: width 128, of which 64 are trained, and cosine scores."""
    config = TrainConfig(f"{backbone}_alphafuse", backbone, "alphafuse")
    return config.with_switches(width=128, null_width=64, score="cosine")


def legacy(backbone: Backbone) -> TrainConfig:
    """The backbone alone, as in LLM-ESR's code and scripts. Its results are checked against the published figures."""
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
    """The recipe of that name, `backbone` or `backbone_enhancer`. Raises `ValueError` that lists all names."""
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
