"""A training set small enough to read: three users, six items, and one item unknown at the cutoff.

Beside it small rankers and recipes that fit it.
"""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest
import torch

from grasp.days import end_of
from training.build_training_set import assign_splits
from training.data.training_set import TrainingSet, to_training_set
from training.fitting.recipes import TrainConfig, recipe
from training.model.config import RankerConfig
from training.model.ranker import Ranker

CUTOFF = "1998-02-28"
SEQUENCES = {"a": ["1", "2", "3", "4", "5", "new", "6"], "b": ["2", "3", "1"], "c": ["4", "5"]}
NUM_BEFORE = {"a": 5, "b": 3, "c": 2}


def interactions_of(sequences: dict[str, list[str]], num_before: dict[str, int]) -> pd.DataFrame:
    """One interaction a minute, the last one before the cutoff at its very end, later ones on the days after it."""
    rows = [
        (user, item, end_of(CUTOFF) + timedelta(minutes=place - num_before[user] + 1), place)
        for user, items in sequences.items()
        for place, item in enumerate(items)
    ]
    return pd.DataFrame(rows, columns=["user_id", "item_id", "event_time", "row_number"])


def features_of(key: str, ids: list[str], count_name: str, counts: list[int], size: int = 4) -> pd.DataFrame:
    random = np.random.default_rng(len(ids))
    vectors = random.normal(size=(2, len(ids), size)).astype(np.float32)
    return pd.DataFrame(
        {
            key: ids,
            count_name: counts,
            "is_tail": [int(count < 2) for count in counts],
            "semantic_embedding": list(vectors[0]),
            "neighbour_embedding": list(vectors[1]),
            "event_timestamp": datetime(1998, 2, 28, 23, 59, 59, 999999, UTC),
        }
    )


@pytest.fixture
def frames() -> dict[str, pd.DataFrame]:
    interactions = interactions_of(SEQUENCES, NUM_BEFORE)
    events = assign_splits(interactions, end_of(CUTOFF))
    items = features_of("item_id", ["1", "2", "3", "4", "5", "6"], "popularity", [6, 5, 4, 3, 2, 1])
    users = features_of("user_id", ["a", "b", "c"], "num_interactions", [5, 3, 2])
    return {"users": users, "items": items, "events": events, "log": interactions}


@pytest.fixture
def training_set(frames: dict[str, pd.DataFrame]) -> TrainingSet:
    return to_training_set(frames)


def tiny_recipe(name: str, **changed: object) -> TrainConfig:
    """The recipe of that name, reduced so that three users train in no time."""
    small = {"max_epochs": 2, "batch_size": 2, "shortest_piece": 2, "selection": "filtered"}  # six items, not a hundred
    config = replace(recipe(name), **(small | changed))
    return config.with_switches(width=4, context_width=6, null_width=2, num_blocks=1, max_length=5, dropout=0.0)


@pytest.fixture
def tiny() -> Callable[..., TrainConfig]:
    """`tiny("sasrec_grasp", max_epochs=1)`: a recipe for the training set above."""
    return tiny_recipe


SMALL = RankerConfig(
    num_items=12,
    semantic_size=10,
    num_components=9,
    width=8,
    context_width=8,
    null_width=4,
    max_length=5,
    num_blocks=1,
    kernel_neighbours=4,
    dropout=0.0,
)


def small_vectors(num_items: int, size: int = SMALL.semantic_size) -> torch.Tensor:
    """Semantic and neighbour vectors of items, (2, N, S): the first ones do not depend on the number."""
    return torch.randn(14, 2, size, generator=torch.Generator().manual_seed(2))[:num_items].transpose(0, 1)


def small_ranker(num_attached: int = 12, **changed: object) -> Ranker:
    """A ranker with items attached and no parameter left at zero, because zeros would hide errors."""
    torch.manual_seed(0)
    config = replace(SMALL, **changed)  # type: ignore[arg-type]
    ranker = Ranker(config).eval()
    vectors = small_vectors(num_attached, config.semantic_size)
    ranker.enhancer.initialise_from(vectors[0, :12], torch.randn(3, config.semantic_size), torch.arange(12))
    for parameter in ranker.parameters():
        if parameter.ndim < 2 or not parameter.any():
            torch.nn.init.normal_(parameter)
    with torch.no_grad():
        ranker.enhancer.item.weight[0] = 0
    ranker.attach_items(vectors[0], vectors[1])
    if ranker.kernel is not None:
        sequences = [np.array(items) for items in ([1, 2, 3, 4], [2, 3, 7], [5, 6, 9, 12], [6, 12])]
        ranker.kernel.initialise_from(vectors[0, :12].numpy(), sequences)
        ranker.kernel.weights_K.copy_(torch.tensor([1.0, 2.0, 3.0]))
    return ranker


@pytest.fixture
def make_ranker() -> Callable[..., Ranker]:
    """`make_ranker(backbone="gru4rec")`: twelve items, width 8, at most five steps, no dropout."""
    return small_ranker


@pytest.fixture
def item_vectors() -> Callable[..., torch.Tensor]:
    """`item_vectors(12)`: what `make_ranker` attaches."""
    return small_vectors
