"""A data set of a few users, split leave-one-out, and folders of planted measurements."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.core.store import Conditions, Measurement, Measurements
from benchmarks.data.datasets import BenchmarkData
from training.data.training_set import TrainingSet

NUM_ITEMS, NUM_USERS = 12, 8
MACHINE = {"processor": "Some CPU", "num_cores": 2, "memory_gib": 8.0, "python": "3.11", "torch": "2"}


def split_last_two(sequences: list[list[int]]) -> BenchmarkData:
    random = np.random.default_rng(0)
    items, users = (random.normal(size=(2, num, 6)).astype(np.float32) for num in (NUM_ITEMS, len(sequences)))
    training_set = TrainingSet(
        item_ids=[str(item) for item in range(1, NUM_ITEMS + 1)],
        item_semantic=items[0],
        item_neighbour=items[1],
        popularity=np.ones(NUM_ITEMS, int),
        item_is_tail=np.zeros(NUM_ITEMS, bool),
        user_ids=[f"u{user}" for user in range(len(sequences))],
        user_semantic=users[0],
        user_neighbour=users[1],
        user_is_tail=np.zeros(len(sequences), bool),
        sequences=[np.array(each) for each in sequences],
        splits=[np.array(["train"] * (len(each) - 2) + ["validation", "test"]) for each in sequences],
        days=[np.arange(len(each)) for each in sequences],
    )
    return BenchmarkData("small", training_set, [""] * NUM_ITEMS, True, sum(map(len, sequences)), "checksum")


@pytest.fixture
def sequences() -> list[list[int]]:
    random = np.random.default_rng(1)
    return [(1 + random.permutation(NUM_ITEMS)[:6]).tolist() for _ in range(NUM_USERS)]


@pytest.fixture
def data_of() -> Callable[[list[list[int]]], BenchmarkData]:
    """`data_of(sequences)`: items of each user, the last one tests, the one before it validates."""
    return split_last_two


@pytest.fixture
def store_measurements() -> Callable[[Path, Mapping[str, Any]], Measurements]:
    """`store_measurements(folder, {kind: found})`: one measurement of each kind, as a benchmark stores them."""

    def store(folder: Path, by_kind: Mapping[str, Any]) -> Measurements:
        measurements = Measurements(folder)
        for kind, found in by_kind.items():
            measurements.add(Measurement(kind, kind, found, Conditions("d1", 2, MACHINE), "abc1234"))
        return measurements

    return store
