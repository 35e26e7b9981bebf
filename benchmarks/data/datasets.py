"""Benchmark data as a training set, split by one of the protocols, the same frozen vectors for every model.

Whatever a model may read comes from the events that train: vectors of users, neighbours, popularity. When one is left
out, the groups head and tail may look further, as published groupings do (`Tail`).
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.data import readers
from benchmarks.data.protocols import (
    MIN_ITEMS,
    NUM_VALIDATION_USERS,
    SPLIT_SEED,
    Part,
    Protocol,
    by_time,
    leave_one_out,
    with_shuffled_ties,
)
from benchmarks.data.readers import Source
from benchmarks.data.vectors import TextVectors, item_texts, neighbour_means, sequence_vectors, user_texts
from grasp.settings import Settings
from grasp.versions import digest, file_sha256, model_revision
from spark_jobs.models.encoder import Encoder, load_encoder
from training.data.cooccurrence import user_item_matrix
from training.data.event_log import EventLog, event_log
from training.data.training_set import TrainingSet


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
class Cut:
    """What global time adds: models are chosen at an earlier cut, and fitted to what is known at the test's."""

    day: int  # the first one of the test, in days since 1970-01-01
    choosing: TrainingSet  # known at the earlier cut, with the validation targets
    fitting: TrainingSet  # known at the cut of the test, or later; its users and items are the first ones of all


@dataclass(frozen=True)
class BenchmarkData:
    """A data set that models can be trained and compared on."""

    name: str
    training_set: TrainingSet  # with the test targets
    categories: list[str]  # main category of each item, empty where none is known
    has_texts: bool  # False: vectors were derived from sequences
    num_interactions: int
    checksum: str  # of source files, encoded texts, encoder, validation users and protocol
    cut: Cut | None = None  # None where one is left out

    @property
    def choosing(self) -> TrainingSet:
        """The training set on which epochs and settings are chosen."""
        return self.cut.choosing if self.cut else self.training_set


def load(
    folder: Path,
    *,
    cache: Path,
    validation_users: int | None = NUM_VALIDATION_USERS,
    inputs: Inputs = COMMON_INPUTS,
    seed: int = 0,
    tail: Tail | None = None,
    protocol: Protocol = "published",
    order_seed: int = 0,
    fitting_day: int | None = None,
    settings: Settings | None = None,
    open_encoder: Callable[[Path, int], Encoder] = load_encoder,
) -> BenchmarkData:
    """Read a folder of the data contract, or one with LLM-ESR's `inter.txt`, and build its training set.

    `validation_users` is how many users are drawn for validation, None takes all. `seed` is that of a corruption,
    `order_seed` that of shuffled ties. By global time `fitting_day` may be a day after the cut: `Cut.fitting` is then
    all that is known before it. By default `tail` is LLM-ESR's for a file without texts, and Beauty's for all
    others. The encoder of the settings (by default those of the environment) encodes each text once; `cache` keeps the
    vectors and their neighbours. Raises `SourceError` for a protocol that needs times and data without them.
    """
    source = readers.read(folder)
    num_interactions = sum(map(len, source.sequences))
    tail = tail or (LLM_ESR_FASHION if source.items is None else Tail())
    settings = None if source.items is None else settings or Settings.load()
    build = _Builder(inputs, seed, tail, cache, settings, open_encoder)
    cut, drawn_by = None, list[object]([validation_users, SPLIT_SEED])
    if protocol == "global-time":
        parts = by_time(source, validation_users, fitting_day)
        known, source, drawn_by = parts.fitting, parts.asked.source, [*drawn_by, protocol]
        texts = build.texts(known)
        choosing = build.by_time(parts.choosing, build.texts(parts.choosing))
        choosing = replace(choosing, logs={"validation": log_of(parts.every_event, len(choosing.item_ids))})
        cut = Cut(parts.test_day, choosing, build.by_time(known, texts))
        training_set = build.with_newer(cut.fitting, parts.asked)
        training_set = replace(training_set, logs={"test": log_of(parts.every_event, len(training_set.item_ids))})
    else:
        if protocol == "shuffled-ties":
            source, drawn_by = with_shuffled_ties(source, order_seed), [*drawn_by, protocol, order_seed]
        known = leave_one_out(source, validation_users)
        texts = build.texts(known)
        training_set = build.leave_one_out(known, texts)
    return BenchmarkData(
        name=source.name,
        training_set=training_set,
        categories=source.categories,
        has_texts=source.items is not None,
        num_interactions=num_interactions,
        checksum=digest([[file_sha256(file) for file in source.files], digest(texts), build.origin, *drawn_by]),
        cut=cut,
    )


@dataclass(frozen=True)
class _Builder:
    """Builds training sets from parts of a source, with the same kind of vectors."""

    inputs: Inputs
    seed: int
    tail: Tail
    cache: Path
    settings: Settings | None  # None for data without texts
    open_encoder: Callable[[Path, int], Encoder]

    @property
    def origin(self) -> str:
        return model_revision(self.settings.encoder) if self.settings else "sequence vectors"

    def texts(self, part: Part) -> list[list[str]]:
        """The texts of items and users; none for data without texts."""
        if self.settings is None:
            return []
        described = [items[:-1] for items in part.train] if self.inputs.without_last else part.train
        return descriptions(part.source, described, self.settings.hidden_attributes)

    def leave_one_out(self, part: Part, texts: list[list[str]]) -> TrainingSet:
        num_before = np.array([len(items) - 1 for items in part.source.sequences])
        return self._training_set(part, texts, tail_items(part.source, self.tail), num_before)

    def by_time(self, part: Part, texts: list[list[str]]) -> TrainingSet:
        """Head and tail are those before the cut."""
        is_tail = num_users(part.train, len(part.source.item_ids)) < self.tail.users
        num_before = np.array([len(items) for items in part.train])
        return replace(self._training_set(part, texts, is_tail, num_before), history_excludes_day=True)

    def _training_set(
        self, part: Part, texts: list[list[str]], item_is_tail: np.ndarray, num_before: np.ndarray
    ) -> TrainingSet:
        source, train = part.source, part.train
        item_vectors, user_vectors = (
            map(self._encode, texts) if texts else sequence_vectors(train, len(source.item_ids))
        )
        training_set = TrainingSet(
            item_ids=source.item_ids,
            item_semantic=item_vectors,
            item_neighbour=self._neighbour_means(source.item_ids, item_vectors),
            popularity=num_users(train, len(source.item_ids)),
            item_is_tail=item_is_tail,
            user_ids=source.user_ids,
            user_semantic=user_vectors,
            user_neighbour=self._neighbour_means(source.user_ids, user_vectors),
            user_is_tail=num_before < self.tail.items_before,
            sequences=source.sequences,
            splits=part.splits,
            days=source.days,
        )
        return corrupt(training_set, self.inputs.corruption, self.seed)

    def with_newer(self, fitting: TrainingSet, asked: Part) -> TrainingSet:
        """The events that are asked for. Newer items have their text's vector; of newer users nothing is known."""
        source = asked.source
        semantic = self._encode(self.texts(asked)[0])
        neighbour = self._neighbour_means(source.item_ids, semantic)
        num_items = len(fitting.item_ids)
        num_newer_items, num_newer_users = len(semantic) - num_items, len(source.user_ids) - len(fitting.user_ids)
        nothing_US = np.zeros((num_newer_users, semantic.shape[1]), np.float32)
        return replace(
            fitting,
            item_ids=source.item_ids,
            item_semantic=np.concatenate([fitting.item_semantic, semantic[num_items:]]),
            item_neighbour=np.concatenate([fitting.item_neighbour, neighbour[num_items:]]),
            popularity=np.append(fitting.popularity, np.zeros(num_newer_items, np.int64)),
            item_is_tail=np.append(fitting.item_is_tail, np.ones(num_newer_items, bool)),
            user_ids=source.user_ids,
            user_semantic=np.concatenate([fitting.user_semantic, nothing_US]),
            user_neighbour=np.concatenate([fitting.user_neighbour, nothing_US]),
            user_is_tail=np.append(fitting.user_is_tail, np.ones(num_newer_users, bool)),
            sequences=source.sequences,
            splits=asked.splits,
            days=source.days,
        )

    def _encode(self, texts: list[str]) -> np.ndarray:
        assert self.settings is not None
        encoder = partial(self.open_encoder, self.settings.encoder, self.settings.encoder_batch_size)
        return TextVectors(self.cache / "texts" / self.origin, encoder).encode(texts)

    def _neighbour_means(self, ids: list[str], vectors: np.ndarray) -> np.ndarray:
        return neighbour_means(ids, vectors, self.inputs.k, self.cache / "neighbours")


def log_of(source: Source, num_items: int) -> EventLog:
    """What a daily refresh comes to know of the first `num_items` items, whoever takes them."""
    known = [items <= num_items for items in source.sequences]
    return event_log(
        *([each[kept] for each, kept in zip(rows, known, strict=True)] for rows in (source.sequences, source.days))
    )


def descriptions(source: Source, train: Sequence[np.ndarray], hidden: Collection[str]) -> list[list[str]]:
    """The descriptions from facts of all items, and of all users by their `train` items."""
    return [item_texts(source.items or [], hidden), user_texts(source, train, hidden)]


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
