"""Tell a store that was emptied from one that does not know a user."""

import logging
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from grasp import partitions, tables

NUM_KNOWN = 5  # users of each feature version, read together

T = TypeVar("T")

log = logging.getLogger("grasp.serving")


class KnownUsers:
    """A few users of each feature version that its store has to know. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users: dict[str, list[str]] = {}
        self._emptied: set[str] = set()

    def replace(self, version: str, user_ids: Iterable[str]) -> None:
        """Remember these users alone: whom the release before knew, a restored day may have cleared."""
        with self._lock:
            self._users[version] = _first(user_ids)

    def add(self, version: str, user_ids: Iterable[str]) -> None:
        """Remember users whom the store knows as well, while there are fewer than `NUM_KNOWN`."""
        with self._lock:
            self._users[version] = _first([*self._users.get(version, []), *user_ids])

    def of(self, version: str) -> list[str]:
        with self._lock:
            return list(self._users.get(version, []))

    def is_emptied(self, version: str) -> bool:
        return version in self._emptied

    def note(self, version: str, rows: Sequence[object]) -> None:
        """Take note of what the store gave for the known users, None for a user it lacks.

        A store that lacks most of them was emptied, and is filled again once it lacks at most one. One may be erased.
        """
        num_missing = sum(row is None for row in rows)
        with self._lock:
            was_emptied = version in self._emptied
            is_emptied = num_missing > 1 if was_emptied and len(rows) > 1 else 2 * num_missing > len(rows)
            (self._emptied.add if is_emptied else self._emptied.discard)(version)
        if is_emptied and not was_emptied:
            log.error("the online store lacks most known users of %s, so it was emptied: fill it again", version)
        elif was_emptied and not is_emptied:
            log.info("the online store knows the users of %s again", version)


def _first(user_ids: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(user_ids))[:NUM_KNOWN]


def some_users(lake: Path, version: str, day: str) -> list[str]:
    """A few users of a day's features, from all parts of it. None where the lake cannot be read: those who ask will do.

    They are spread because a store that is being filled again holds only a part of the day.
    """
    place = partitions.partition_path(lake, tables.USER_FEATURES, version, day)
    found: list[str] = []
    try:
        for file in _spread(sorted(place.glob("*.parquet"))):
            parquet = pq.ParquetFile(file)
            for group in _spread(range(parquet.num_row_groups)):
                user_ids = parquet.read_row_group(group, columns=["user_id"])["user_id"]
                found += [user_ids[row].as_py() for row in _spread(range(len(user_ids)))]
    except (OSError, pa.ArrowInvalid) as error:
        log.warning("the users of %s cannot be read from the lake: %s", day, type(error).__name__)
    return _spread(found)


def _spread(things: Sequence[T]) -> list[T]:
    """At most `NUM_KNOWN` of them, at equal distances."""
    num = min(NUM_KNOWN, len(things))
    return [things[len(things) * place // num] for place in range(num)]
