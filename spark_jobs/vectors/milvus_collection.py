"""Bring a Milvus collection up to a day: add what it lacks, then delete what nobody needs any more."""

from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import chain

import numpy as np

from grasp.progress import say
from spark_jobs.vectors.milvus import Text, VectorStore

NUM_READ_BACK = 16

Rows = tuple[list[Text], np.ndarray]  # some rows of a collection and their vectors


@dataclass(frozen=True)
class Update:
    """How many vectors were written, and a sample of the collection that was read back."""

    num_added: int
    sample: dict[Text, np.ndarray]


def update_collection(
    store: VectorStore, name: str, batches: Iterable[Rows], kept: AbstractSet[Text] | None, *, checks_old: bool = True
) -> Update:
    """Add the rows that are missing; delete those that are neither given nor in `kept` (None deletes nothing).

    Some vectors are read back. `checks_old` says that a row which was there before has the given vector.
    """
    rest = iter(batches)
    first = next(rest, None)
    if first is None:
        say(f"Milvus {name}: unchanged, because the day has no vectors")
        return Update(0, {})
    store.ensure_collection(name, first[1].shape[1])
    held, given, num_added = store.texts(name), set[Text](), 0
    sample: dict[Text, np.ndarray] = {}
    for texts, vectors in chain([first], rest):
        new = [i for i, each in enumerate(texts) if each not in held]
        store.add(name, [texts[i] for i in new], vectors[new])
        given.update(texts)
        num_added += len(new)
        if len(sample) < NUM_READ_BACK:
            sample |= {texts[i]: vectors[i] for i in (new[-2:] or ([0] if checks_old else []))}
    gone: AbstractSet[Text] = frozenset() if kept is None else held - given - kept
    store.delete(name, sorted(gone))
    num_held = len((held | given) - gone)
    store.require_equal(name, num_held, sample)
    say(f"Milvus {name}: {num_added} vectors added, {len(gone)} deleted, {num_held} held")
    return Update(num_added, sample)


def rows_of_releases(name: str, read: Callable[[], set[Text]]) -> set[Text] | None:
    """The rows that `read` finds in the releases on disk; None if one cannot be read: nothing may be deleted then."""
    try:
        return read()
    except (OSError, ValueError, KeyError) as error:
        say(f"Milvus {name}: nothing is deleted, because a release cannot be read: {error}")
        return None
