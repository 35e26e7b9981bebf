"""What a training run is: one named, frozen configuration per recipe."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

DEFAULT = "sasrec_grasp"


@dataclass(frozen=True)
class TrainConfig:
    """A backbone, what it reads and how it is fitted."""

    name: str
    backbone: Literal["sasrec", "gru4rec", "bert4rec"] = "sasrec"
    enhancer: Literal["none", "grasp"] = "grasp"
    ranker: tuple[tuple[str, object], ...] = ()  # further switches of RankerConfig, by name
    loss: Literal["cross_entropy", "sampled_softmax", "bce", "gbce"] = "cross_entropy"
    num_negatives: int = 256  # of sampled_softmax and gbce; bce has one
    calibration: float = 0.75  # t of gbce (gSASRec, arXiv 2308.07192)
    mask_share: float = 0.3  # of a sequence that BERT4Rec has to guess
    shortest_piece: int = 5  # items; longer sequences are cut into pieces of this to max_length
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    batch_size: int = 128
    max_epochs: int = 30  # still rising slowly, but the demo should take minutes
    patience: int = 8  # epochs without a better validation NDCG@10


def sasrec() -> TrainConfig:
    return TrainConfig("sasrec", "sasrec", "none")


def sasrec_grasp() -> TrainConfig:
    return TrainConfig("sasrec_grasp", "sasrec", "grasp")


def sasrec_grasp_prefix_text() -> TrainConfig:
    """The control without any leak: the items seen so far speak for the user, no description does."""
    return replace(sasrec_grasp(), name="sasrec_grasp_prefix_text", ranker=(("user_text", "mean_of_prefix_items"),))


def gru4rec() -> TrainConfig:
    return TrainConfig("gru4rec", "gru4rec", "none")


def gru4rec_grasp() -> TrainConfig:
    return TrainConfig("gru4rec_grasp", "gru4rec", "grasp")


def bert4rec() -> TrainConfig:
    return TrainConfig("bert4rec", "bert4rec", "none")


def bert4rec_grasp() -> TrainConfig:
    return replace(bert4rec(), name="bert4rec_grasp", enhancer="grasp")


RECIPES: dict[str, Callable[[], TrainConfig]] = {
    recipe.__name__: recipe
    for recipe in (
        sasrec,
        sasrec_grasp,
        sasrec_grasp_prefix_text,
        gru4rec,
        gru4rec_grasp,
        bert4rec,
        bert4rec_grasp,
    )
}
