"""Tell a store that was emptied from one that does not know a user."""

import logging
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from grasp import partitions, tables

NUM_KNOWN = 5  # users of each feature version, read together

log = logging.getLogger("grasp.serving")


class KnownUsers:
    """A few users of each feature version that its store has to know. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users: dict[str, list[str]] = {}
        self._emptied: set[str] = set()

    def add(self, version: str, user_ids: Iterable[str]) -> None:
        """Remember users whom the store knows, the first `NUM_KNOWN`."""
        with self._lock:
            kept = self._users.setdefault(version, [])
            for user_id in user_ids:
                if len(kept) < NUM_KNOWN and user_id not in kept:
                    kept.append(user_id)

    def of(self, version: str) -> list[str]:
        with self._lock:
            return list(self._users.get(version, []))

    def is_emptied(self, version: str) -> bool:
        return version in self._emptied

    def note(self, version: str, rows: Sequence[object]) -> None:
        """Take note of what the store gave for the known users, None for a user it lacks.

        A store that lacks most of them was emptied; one user alone may have been erased.
        """
        is_emptied = sum(row is None for row in rows) * 2 > len(rows)
        with self._lock:
            was_emptied = version in self._emptied
            (self._emptied.add if is_emptied else self._emptied.discard)(version)
        if is_emptied and not was_emptied:
            log.error("the online store lacks most known users of %s: it was emptied; `grasp materialise` fills it", version)
        elif was_emptied and not is_emptied:
            log.info("the online store knows the users of %s again", version)


def some_users(lake: Path, version: str, day: str) -> list[str]:
    """A few users of a day's features. None where the lake cannot be read: then those who ask have to do."""
    place = partitions.partition_path(lake, tables.USER_FEATURES, version, day)
    try:
        for file in sorted(place.glob("*.parquet")):
            for batch in pq.ParquetFile(file).iter_batches(NUM_KNOWN, columns=["user_id"]):
                return [str(user_id) for user_id in batch["user_id"].to_pylist()]
    except (OSError, pa.ArrowInvalid) as error:
        log.warning("the users of %s cannot be read from the lake: %s", day, type(error).__name__)
    return []
