"""Benchmark data as a training set: leave-one-out, the same frozen vectors for every model.

The last item of a user with at least three items is the test target. The item before it is the validation target of
the users who are drawn for validation. All other items train. Whatever a model may read comes from these training
items: vectors of users, neighbours, popularity. Only the groups head and tail may look further, as published groupings
do (`Tail`).
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.data import readers
from benchmarks.data.readers import Source
from benchmarks.data.vectors import TextVectors, item_texts, neighbour_means, sequence_vectors, user_texts
from grasp.settings import Settings
from grasp.versions import digest, file_sha256, model_revision
from spark_jobs.models.encoder import Encoder, load_encoder
from training.data.cooccurrence import user_item_matrix
from training.data.training_set import TrainingSet

NUM_VALIDATION_USERS = 2048
SPLIT_SEED = 0  # of the users drawn for validation, whatever the seed of a run
MIN_ITEMS = 3  # of a user who has targets


@dataclass(frozen=True)
class Tail:
    """Tail users and items have fewer than these, as LLM-ESR and GRASP group.

    `items_before` counts a user's items before the test target. `users` counts an item's distinct users: with
    `counts_targets` among all interactions, as LLM-ESR does, otherwise without every user's last two items.
    """

    items_before: int = 9
    users: int = 4
    counts_targets: bool = False


@dataclass(frozen=True)
class Inputs:
    """What a system gets to read of users, items and their neighbours."""

    k: int = 10  # neighbours that are averaged, at most 50
    corruption: float = 0.0  # share of items, and of users, whose vectors are swapped at random
    without_last: bool = False  # users are described without their last training item, their newest training target


COMMON_INPUTS = Inputs()

LLM_ESR_FASHION = Tail(items_before=3, users=4, counts_targets=True)


@dataclass(frozen=True)
class BenchmarkData:
    """A data set that models can be trained and compared on."""

    name: str
    training_set: TrainingSet
    categories: list[str]  # main category of each item, empty where none is known
    has_texts: bool  # False: vectors were derived from sequences
    num_interactions: int
    checksum: str  # of source files, encoded texts, encoder and validation users


def load(
    folder: Path,
    *,
    cache: Path,
    validation_users: int | None = NUM_VALIDATION_USERS,
    inputs: Inputs = COMMON_INPUTS,
    seed: int = 0,
    tail: Tail | None = None,
    settings: Settings | None = None,
    open_encoder: Callable[[Path, int], Encoder] = load_encoder,
) -> BenchmarkData:
    """Read a folder of the data contract, or one with LLM-ESR's `inter.txt`, and build its training set.

    `validation_users` is how many users are drawn for validation, None takes all. `seed` is that of a corruption. By
    default `tail` is LLM-ESR's for a file without texts, and Beauty's for all others. The encoder of the settings (by
    default those of the environment) encodes each text once; `cache` keeps the vectors and their neighbours.
    """
    source = readers.read(folder)
    splits = split(source.sequences, validation_users)
    train = training_items(source.sequences, splits)
    texts: list[list[str]] = []
    if source.items is None:
        tail, origin = tail or LLM_ESR_FASHION, "sequence vectors"
        item_vectors, user_vectors = sequence_vectors(train, len(source.item_ids))
    else:
        settings = settings or Settings.load()
        described = [items[:-1] for items in train] if inputs.without_last else train
        texts, origin = descriptions(source, described, settings.hidden_attributes), model_revision(settings.encoder)
        encoder = partial(open_encoder, settings.encoder, settings.encoder_batch_size)
        item_vectors, user_vectors = map(TextVectors(cache / "texts" / origin, encoder).encode, texts)
    tail = tail or Tail()
    training_set = TrainingSet(
        item_ids=source.item_ids,
        item_semantic=item_vectors,
        item_neighbour=neighbour_means(source.item_ids, item_vectors, inputs.k, cache / "neighbours"),
        popularity=num_users(train, len(source.item_ids)),
        item_is_tail=tail_items(source, tail),
        user_ids=source.user_ids,
        user_semantic=user_vectors,
        user_neighbour=neighbour_means(source.user_ids, user_vectors, inputs.k, cache / "neighbours"),
        user_is_tail=np.array([len(items) - 1 < tail.items_before for items in source.sequences]),
        sequences=source.sequences,
        splits=splits,
    )
    files = [file_sha256(file) for file in source.files]
    return BenchmarkData(
        name=source.name,
        training_set=corrupt(training_set, inputs.corruption, seed),
        categories=source.categories,
        has_texts=source.items is not None,
        num_interactions=sum(map(len, source.sequences)),
        checksum=digest([files, digest(texts), origin, validation_users, SPLIT_SEED]),
    )


def descriptions(source: Source, train: Sequence[np.ndarray], hidden: Collection[str]) -> list[list[str]]:
    """The descriptions from facts of all items, and of all users by their `train` items."""
    return [item_texts(source.items or [], hidden), user_texts(source, train, hidden)]


def training_items(sequences: Sequence[np.ndarray], splits: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The items of each user that models may read."""
    return [items[part == "train"] for items, part in zip(sequences, splits, strict=True)]


def split(sequences: list[np.ndarray], validation_users: int | None) -> list[np.ndarray]:
    """Leave-one-out: the split of each item of each sequence."""
    splits = [np.full(len(items), "train", dtype=object) for items in sequences]
    eligible = np.array([user for user, items in enumerate(sequences) if len(items) >= MIN_ITEMS], np.int64)
    drawn = eligible
    if validation_users is not None and validation_users < len(eligible):
        drawn = np.random.default_rng(SPLIT_SEED).choice(eligible, validation_users, replace=False)
    for user in eligible:
        splits[user][-1] = "test"
    for user in drawn:
        splits[user][-2] = "validation"
    return splits


def num_users(sequences: list[np.ndarray], num_items: int) -> np.ndarray:
    """How many distinct users have each item, (N,)."""
    counts: np.ndarray = np.asarray(user_item_matrix(sequences, num_items).sum(0)).ravel().astype(np.int64)
    return counts


def tail_items(source: Source, tail: Tail) -> np.ndarray:
    """Which items are in the tail, (N,), independent of the number of validation users."""
    counted = source.sequences
    if not tail.counts_targets:
        counted = [items if len(items) < MIN_ITEMS else items[:-2] for items in source.sequences]
    return num_users(counted, len(source.item_ids)) < tail.users


def corrupt(training_set: TrainingSet, share: float, seed: int) -> TrainingSet:
    """Swap the vectors of a random share of items at random, own and neighbour vector together; users likewise."""
    if not 0 <= share <= 1:
        raise ValueError(f"corruption is a share from 0 to 1, got {share}")
    random = np.random.default_rng(seed)
    item = _shuffled(len(training_set.item_ids), share, random)
    user = _shuffled(len(training_set.user_ids), share, random)
    return replace(
        training_set,
        item_semantic=training_set.item_semantic[item],
        item_neighbour=training_set.item_neighbour[item],
        user_semantic=training_set.user_semantic[user],
        user_neighbour=training_set.user_neighbour[user],
    )


def _shuffled(num: int, share: float, random: np.random.Generator) -> np.ndarray:
    """0 .. num-1 with a random share of the positions shuffled."""
    order = np.arange(num)
    chosen = random.choice(num, round(share * num), replace=False)
    order[chosen] = random.permutation(chosen)
    return order
