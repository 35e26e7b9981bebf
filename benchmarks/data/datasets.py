"""Benchmark data as a training set: leave-one-out, the same frozen vectors for every model.

The last item of a user with three or more is the test target, the one before it the validation target of those drawn
for validation; all else trains, with the validation item of everyone else. All that a model may read comes from these
training items: vectors of users, neighbours, popularity. Only which events count as head and tail looks further, where
a published grouping does (`Tail`).
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

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
SPLIT_SEED = 0  # of the users drawn for validation: part of the protocol, whatever the seed of a run
MIN_ITEMS = 3  # of a user with a validation and a test target


@dataclass(frozen=True)
class Tail:
    """What counts as tail, as LLM-ESR and GRASP group: strictly fewer than these.

    `items_before` is how many items a user has before the test target. `users` is how many distinct users an item has:
    among all interactions, as LLM-ESR counts, or among those that are nobody's last two.
    """

    items_before: int = 9
    users: int = 4
    counts_targets: bool = False


@dataclass(frozen=True)
class Inputs:
    """What a system is given of users, items and their neighbours."""

    k: int = 10  # neighbours averaged, at most 50
    corruption: float = 0.0  # share of items and of users whose vectors are dealt out among them at random
    without_last: bool = False  # users are described without their last training item, the newest target they train


COMMON_INPUTS = Inputs()

# Texts of all items and of all users, from a source, the items that train and the hidden attributes.
Describe = Callable[[Source, Sequence[np.ndarray], Collection[str]], tuple[list[str], list[str]]]

LLM_ESR_FASHION = Tail(items_before=3, users=4, counts_targets=True)


@dataclass(frozen=True)
class BenchmarkData:
    """A data set that models can be trained and compared on."""

    name: str
    training_set: TrainingSet
    categories: list[str]  # main category of each item, empty where none is known
    has_texts: bool  # False: vectors were derived from sequences
    num_interactions: int
    checksum: str  # over the source files, the encoded texts, the encoder and who validates


def load(
    folder: Path,
    *,
    cache: Path,
    validation_users: int | None = NUM_VALIDATION_USERS,
    inputs: Inputs = COMMON_INPUTS,
    seed: int = 0,
    tail: Tail | None = None,
    settings: Settings | None = None,
    describe: Describe | None = None,
    open_encoder: Callable[[Path, int], Encoder] = load_encoder,
) -> BenchmarkData:
    """Read a folder of the data contract, or one with LLM-ESR's `inter.txt`, and build its training set.

    `validation_users` draws that many users for validation, None takes all; `seed` is that of a corruption. `tail` is
    LLM-ESR's for a file without texts, else that of Beauty, unless it is given. Texts are those built from facts unless
    `describe` has others; they are encoded by the encoder of the settings (by default those of the environment) once,
    and kept under `cache` with the neighbours.
    """
    source = readers.read(folder)
    splits = split(source.sequences, validation_users)
    train = training_items(source.sequences, splits)
    if source.items is None:
        found = _Vectors(*sequence_vectors(train, len(source.item_ids)), texts=[], origin="sequence vectors")
    else:
        described = [items[:-1] for items in train] if inputs.without_last else train
        settings, describe = settings or Settings.load(), describe or from_facts
        found = _of_texts(source, described, describe, settings=settings, cache=cache, open_encoder=open_encoder)
    grouping = tail or (LLM_ESR_FASHION if source.items is None else Tail())
    training_set = _training_set(source, splits, found, tail=grouping, k=inputs.k, cache=cache / "neighbours")
    return BenchmarkData(
        name=source.name,
        training_set=corrupt(training_set, inputs.corruption, seed),
        categories=source.categories,
        has_texts=source.items is not None,
        num_interactions=sum(map(len, source.sequences)),
        checksum=_checksum(source, found, validation_users),
    )


class _Vectors(NamedTuple):
    """Vectors of items and users, the texts that they were made from, and what made them."""

    items: np.ndarray
    users: np.ndarray
    texts: list[list[str]]
    origin: str


def _of_texts(
    source: Source,
    train: Sequence[np.ndarray],
    describe: Describe,
    *,
    settings: Settings,
    cache: Path,
    open_encoder: Callable[[Path, int], Encoder],
) -> _Vectors:
    """What the encoder of the settings makes of the descriptions; each text is encoded once and kept."""
    origin = model_revision(settings.encoder)
    encoder = partial(open_encoder, settings.encoder, settings.encoder_batch_size)
    texts = list(describe(source, train, settings.hidden_attributes))
    items, users = map(TextVectors(cache / "texts" / origin, encoder).encode, texts)
    return _Vectors(items, users, texts, origin)


def _training_set(
    source: Source, splits: list[np.ndarray], found: _Vectors, *, tail: Tail, k: int, cache: Path
) -> TrainingSet:
    """With the neighbours of the vectors, which are kept under `cache`."""
    return TrainingSet(
        item_ids=source.item_ids,
        item_semantic=found.items,
        item_neighbour=neighbour_means(source.item_ids, found.items, k, cache),
        popularity=num_users(training_items(source.sequences, splits), len(source.item_ids)),
        item_is_tail=tail_items(source, tail),
        user_ids=source.user_ids,
        user_semantic=found.users,
        user_neighbour=neighbour_means(source.user_ids, found.users, k, cache),
        user_is_tail=np.array([len(items) - 1 < tail.items_before for items in source.sequences]),
        sequences=source.sequences,
        splits=splits,
    )


def _checksum(source: Source, found: _Vectors, validation_users: int | None) -> str:
    files = [file_sha256(file) for file in source.files]
    return digest([files, digest(found.texts), found.origin, validation_users, SPLIT_SEED])


def from_facts(source: Source, train: Sequence[np.ndarray], hidden: Collection[str]) -> tuple[list[str], list[str]]:
    """The deterministic descriptions of all items and of all users, as far as `train` items tell."""
    return item_texts(source.items or [], hidden), user_texts(source, train, hidden)


def training_items(sequences: Sequence[np.ndarray], splits: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The items of each user that models may know."""
    return [items[part == "train"] for items, part in zip(sequences, splits, strict=True)]


def split(sequences: list[np.ndarray], validation_users: int | None) -> list[np.ndarray]:
    """Leave-one-out: which split each item of each sequence belongs to."""
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
    """Which items are in the tail, (N,); the same however many users validate."""
    counted = source.sequences
    if not tail.counts_targets:
        counted = [items if len(items) < MIN_ITEMS else items[:-2] for items in source.sequences]
    return num_users(counted, len(source.item_ids)) < tail.users


def corrupt(training_set: TrainingSet, share: float, seed: int) -> TrainingSet:
    """Deal the vectors of a random share of items out among them, own and neighbour vector together; users alike."""
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
    """0 .. num-1 with a random share of the places shuffled among themselves."""
    order = np.arange(num)
    chosen = random.choice(num, round(share * num), replace=False)
    order[chosen] = random.permutation(chosen)
    return order
