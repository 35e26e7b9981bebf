"""A training set small enough to read: three users, six items, one item that nobody knew at the cutoff."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest

from grasp.days import end_of
from training.dataset import TrainingSet, arrange, split_events

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
    events = split_events(interactions_of(SEQUENCES, NUM_BEFORE), end_of(CUTOFF))
    items = features_of("item_id", ["1", "2", "3", "4", "5", "6"], "popularity", [6, 5, 4, 3, 2, 1])
    users = features_of("user_id", ["a", "b", "c"], "num_interactions", [5, 3, 2])
    return {"users": users, "items": items, "events": events}


@pytest.fixture
def training_set(frames: dict[str, pd.DataFrame]) -> TrainingSet:
    return arrange(frames)
