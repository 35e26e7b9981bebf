"""Data sets of a few users, split leave-one-out or with days, and folders of planted measurements."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.core.store import Conditions, Measurement, Measurements
from benchmarks.data import datasets
from benchmarks.data.datasets import BenchmarkData
from grasp.settings import Settings
from training.data.training_set import TrainingSet

NUM_ITEMS, NUM_USERS = 12, 8
MACHINE = {"processor": "Some CPU", "num_cores": 2, "memory_gib": 8.0, "python": "3.11", "torch": "2"}
SECONDS_OF_DAY = 86_400


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


class FakeEncoder:
    """A vector for each text."""

    def encode(self, texts: list[str]) -> np.ndarray:
        raw = np.stack([np.random.default_rng(list(text.encode())).normal(size=8) for text in texts])
        return (raw / np.linalg.norm(raw, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def dated_folder(tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data contract's files: forty users with six of 140 items each, two of them at one time, and a late user."""
    options = {"settings": settings, "open_encoder": lambda *_: FakeEncoder()}
    monkeypatch.setattr(datasets, "load", partial(datasets.load, **options))
    place = tmp_path / "dated"
    place.mkdir()
    lines = [
        f"{user}\t{(user * 7 + step * 3) % 130 + 1}\t{SECONDS_OF_DAY * (user + 3 * (step // 2))}"
        for user in range(1, 41)
        for step in range(6)
    ]
    lines += [f"new\t{item}\t{SECONDS_OF_DAY * 46}" for item in (140, 3)]
    (place / "interactions.tsv").write_text("\n".join(["user_id\titem_id\ttimestamp", *lines]) + "\n")
    items = "".join(f"{json.dumps({'item_id': item, 'title': f'thing {item}'})}\n" for item in range(1, 141))
    (place / "items.jsonl").write_text(items)
    return place
