"""Ask the online store for users, never longer than the limit, and remember the last good rows for when it fails."""

import asyncio
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from serving.features import StoreError, UserRow
from serving.follower import Served

NUM_THREADS = 8
NUM_FAILURES = 8  # one after another, and the store is left alone for a while
REST_SECONDS = 1.0
PROBE_USER = "-"  # asked for when only the store's answer counts, not what it is

Problem = Literal["store_timeout", "store_error"]
Rows = list[UserRow | StoreError | None]  # as `UserFeatures.rows` gives them

log = logging.getLogger("grasp.serving")


@dataclass(frozen=True)
class Found:
    """What is known of a user: None when the store knows nothing, or failed and no earlier row is kept."""

    row: UserRow | None
    problem: Problem | None = None

    @property
    def is_last_good(self) -> bool:
        return self.row is not None and self.problem is not None


class LastGood:
    """The rows of the users seen last, a bounded number of them. A row is about thirty kilobytes at 384 dimensions."""

    def __init__(self, num_users: int) -> None:
        self._num_users = num_users
        self._rows: OrderedDict[tuple[str, str], UserRow] = OrderedDict()
        self._lock = threading.Lock()

    def keep(self, version: str, user_id: str, row: UserRow | None) -> None:
        """Remember what the store said; a user whom it no longer knows is forgotten here as well."""
        with self._lock:
            self._rows.pop((version, user_id), None)
            if row is not None:
                self._rows[version, user_id] = row
            while len(self._rows) > self._num_users:
                self._rows.popitem(last=False)

    def get(self, version: str, user_id: str) -> UserRow | None:
        with self._lock:
            return self._rows.get((version, user_id))


class Lookup:
    """One online read per request, in threads of its own: a late answer is a named fallback, and kept for next time.

    A store that failed many times in a row is not asked for a second, so that what waits for it does not pile up.
    """

    def __init__(
        self, timeout_seconds: float, num_last_good: int, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._timeout_seconds = timeout_seconds
        self._monotonic = monotonic
        self._num_failures, self._retry_at = 0, 0.0  # failures since the last answer
        self._last_good = LastGood(num_last_good)
        self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="lookup")

    def get(self, served: Served, user_id: str) -> Found:
        (found,) = self._wait(self._submit(served, [user_id]), self._deadline(), served, [user_id])
        return found

    async def get_async(self, served: Served, user_id: str) -> Found:
        """The same for a route of the event loop: no further thread waits for the one that asks."""
        answer = self._submit(served, [user_id])
        try:
            async with asyncio.timeout(self._timeout_seconds):
                (row,) = await asyncio.wrap_future(answer)
        except (TimeoutError, StoreError) as error:
            return self._without(error, served, [user_id])[0]
        return self._found(row, served, user_id)

    def get_many(self, asked: Sequence[tuple[Served, str]]) -> list[Found]:
        """For each release and user what is found, all within one limit of time.

        All users of a release are one read: one by one they would share the limit, and the last ones come too late.
        """
        deadline = self._deadline()
        groups: dict[str, tuple[Served, list[str]]] = {}
        for served, user_id in asked:
            groups.setdefault(served.release_id, (served, []))[1].append(user_id)
        answers = [(self._submit(*group), *group) for group in groups.values()]
        found = {
            (served.release_id, user_id): each
            for answer, served, user_ids in answers
            for user_id, each in zip(user_ids, self._wait(answer, deadline, served, user_ids), strict=True)
        }
        return [found[served.release_id, user_id] for served, user_id in asked]

    def probe(self, served: Served) -> Problem | None:
        """Whether the store of a release answers in time."""
        return self.get(served, PROBE_USER).problem

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _deadline(self) -> float:
        return time.monotonic() + self._timeout_seconds

    def _submit(self, served: Served, user_ids: list[str]) -> Future[Rows]:
        return self._threads.submit(self._ask, served, user_ids)

    def _ask(self, served: Served, user_ids: list[str]) -> Rows:
        if self._monotonic() < self._retry_at:
            raise StoreError("the online store failed again and again; it is left alone for a moment")
        try:
            rows = served.users.rows(user_ids)
        except StoreError:
            self._num_failures += 1
            if self._num_failures >= NUM_FAILURES:
                self._retry_at = self._monotonic() + REST_SECONDS
            raise
        self._num_failures = 0
        for user_id, row in zip(user_ids, rows, strict=True):
            if not isinstance(row, StoreError):
                self._last_good.keep(served.release.manifest.feature_version, user_id, row)
        return rows

    def _wait(self, answer: Future[Rows], deadline: float, served: Served, user_ids: list[str]) -> list[Found]:
        try:
            rows = answer.result(max(deadline - time.monotonic(), 0))
        except (TimeoutError, StoreError) as error:
            answer.cancel()
            return self._without(error, served, user_ids)
        return [self._found(row, served, user_id) for user_id, row in zip(user_ids, rows, strict=True)]

    def _found(self, row: UserRow | StoreError | None, served: Served, user_id: str) -> Found:
        return self._without(row, served, [user_id])[0] if isinstance(row, StoreError) else Found(row)

    def _without(self, error: TimeoutError | StoreError, served: Served, user_ids: list[str]) -> list[Found]:
        """What is known of users without the store's answer."""
        problem: Problem
        if isinstance(error, TimeoutError):
            log.warning("the online store took longer than %.0f ms", self._timeout_seconds * 1000)
            problem = "store_timeout"
        else:
            log.warning("%s", error)
            problem = "store_error"
        version = served.release.manifest.feature_version
        return [Found(self._last_good.get(version, user_id), problem) for user_id in user_ids]
