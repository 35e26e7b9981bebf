"""Ask the online store for users, wait no longer than the limit, and remember the last good rows for when it fails."""

import asyncio
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, Protocol

from serving.lookup.online_store import StoreError, UserFeatures, UserRow

NUM_THREADS = 8
NUM_FAILURES = 8  # one after another, and the store is left alone for a while
REST_SECONDS = 1.0
PROBE_USER = "-"  # asked for when only the store's answer counts, not what it is

Problem = Literal["store_timeout", "store_error"]
Rows = list[UserRow | StoreError | None]  # as `UserFeatures.rows` gives them

log = logging.getLogger("grasp.serving")


class Served(Protocol):
    """What a lookup needs to know of the release that answers."""

    @property
    def release_id(self) -> str: ...

    @property
    def feature_version(self) -> str: ...

    @property
    def users(self) -> UserFeatures: ...


@dataclass(frozen=True)
class Found:
    """What is known of a user: None when the store knows nothing, or failed and no earlier row is kept."""

    row: UserRow | None
    problem: Problem | None = None

    @property
    def is_last_good(self) -> bool:
        return self.row is not None and self.problem is not None


class LastGood:
    """The rows of the users seen last, a bounded number of them. A row is about fifteen kilobytes at 384 dimensions."""

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

    async def get(self, served: Served, user_id: str) -> Found:
        """What is found of one user; the event loop goes on with other requests meanwhile."""
        answer = self._submit(served, [user_id])
        with suppress(TimeoutError):
            async with asyncio.timeout(self._timeout_seconds):
                await asyncio.wrap_future(answer)
        # An answer that is there by now counts: the loop may have come back to it later than the store was.
        (found,) = self._wait(answer, time.monotonic(), served, [user_id])
        return found

    def get_many(self, asked: Sequence[tuple[Served, str]]) -> list[Found]:
        """For each release and user what is found, all within one limit of time.

        All users of a release are one read: one by one they would share the limit, and the last ones come too late.
        """
        deadline = time.monotonic() + self._timeout_seconds
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
        (found,) = self.get_many([(served, PROBE_USER)])
        return found.problem

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _submit(self, served: Served, user_ids: list[str]) -> Future[Rows | StoreError]:
        return self._threads.submit(self._ask, served, user_ids)

    def _ask(self, served: Served, user_ids: list[str]) -> Rows | StoreError:
        if self._monotonic() < self._retry_at:
            return StoreError("the online store failed again and again; it is left alone for a moment")
        try:
            rows = served.users.rows(user_ids)
        except StoreError as error:
            log.warning("%s", error)  # here, once a failure: what is answered while the store is left alone is none
            self._num_failures += 1
            if self._num_failures >= NUM_FAILURES:
                self._retry_at = self._monotonic() + REST_SECONDS
            return error
        self._num_failures = 0
        for user_id, row in zip(user_ids, rows, strict=True):
            if not isinstance(row, StoreError):
                self._last_good.keep(served.feature_version, user_id, row)
        return rows

    def _wait(
        self, answer: Future[Rows | StoreError], deadline: float, served: Served, user_ids: list[str]
    ) -> list[Found]:
        try:
            rows = answer.result(max(deadline - time.monotonic(), 0))
        except TimeoutError:
            answer.cancel()
            log.warning("the online store took longer than %.0f ms", self._timeout_seconds * 1000)
            return [self._earlier(served, user_id, "store_timeout") for user_id in user_ids]
        if isinstance(rows, StoreError):
            return [self._earlier(served, user_id, "store_error") for user_id in user_ids]
        return [self._found(row, served, user_id) for user_id, row in zip(user_ids, rows, strict=True)]

    def _found(self, row: UserRow | StoreError | None, served: Served, user_id: str) -> Found:
        if isinstance(row, StoreError):
            log.warning("%s", row)
            return self._earlier(served, user_id, "store_error")
        return Found(row)

    def _earlier(self, served: Served, user_id: str, problem: Problem) -> Found:
        """What is known of a user without the store's answer."""
        return Found(self._last_good.get(served.feature_version, user_id), problem)
