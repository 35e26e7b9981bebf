"""Read users from the online store within a time limit, and fall back to their last good rows when it fails."""

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

from serving.lookup.online_store import StoreError, UserRow, UserStore

NUM_THREADS = 8
NUM_FAILURES = 8  # after this many failures in a row the store is not asked for REST_SECONDS
REST_SECONDS = 1.0
PROBE_USER = "-"  # read to test whether the store answers; the answer itself is ignored

Problem = Literal["store_timeout", "store_error"]
StoreRows = list[UserRow | StoreError | None]  # as `UserStore.rows` gives them

log = logging.getLogger("grasp.serving")


class ReleaseWithUsers(Protocol):
    """The part of a loaded release that a lookup needs."""

    @property
    def release_id(self) -> str: ...

    @property
    def feature_version(self) -> str: ...

    @property
    def users(self) -> UserStore: ...


@dataclass(frozen=True)
class LookupResult:
    """A user's row; None when the store has no row, or failed and no last good row is kept."""

    row: UserRow | None
    problem: Problem | None = None

    @property
    def is_last_good(self) -> bool:
        return self.row is not None and self.problem is not None


class LastGoodRows:
    """The rows of the latest `num_users` users. A row takes about 15 kB at 384 dimensions."""

    def __init__(self, num_users: int) -> None:
        self._num_users = num_users
        self._rows: OrderedDict[tuple[str, str], UserRow] = OrderedDict()
        self._lock = threading.Lock()

    def keep(self, version: str, user_id: str, row: UserRow | None) -> None:
        """Remember the store's answer; None removes the user."""
        with self._lock:
            self._rows.pop((version, user_id), None)
            if row is not None:
                self._rows[version, user_id] = row
            while len(self._rows) > self._num_users:
                self._rows.popitem(last=False)

    def get(self, version: str, user_id: str) -> UserRow | None:
        with self._lock:
            return self._rows.get((version, user_id))


class UserLookup:
    """One online read per request, in threads of its own.

    A late read counts as a failure; its row is still kept as the last good one. After `NUM_FAILURES` failures in a row
    the store is not asked for `REST_SECONDS`, so that waiting requests do not pile up.
    """

    def __init__(
        self, timeout_seconds: float, num_last_good: int, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._timeout_seconds = timeout_seconds
        self._monotonic = monotonic
        self._num_failures, self._retry_at = 0, 0.0  # failures since the last good answer
        self._last_good = LastGoodRows(num_last_good)
        self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="lookup")

    async def get(self, release: ReleaseWithUsers, user_id: str) -> LookupResult:
        """Look one user up; the event loop serves other requests meanwhile."""
        answer = self._submit(release, [user_id])
        with suppress(TimeoutError):
            async with asyncio.timeout(self._timeout_seconds):
                await asyncio.wrap_future(answer)
        # The event loop may come back late, so an answer that has arrived by now still counts.
        (found,) = self._wait(answer, time.monotonic(), release, [user_id])
        return found

    def get_many(self, asked: Sequence[tuple[ReleaseWithUsers, str]]) -> list[LookupResult]:
        """Look many users up, each in its release, all within one time limit.

        All users of a release are one read: reads one after another would exceed the limit.
        """
        deadline = time.monotonic() + self._timeout_seconds
        groups: dict[str, tuple[ReleaseWithUsers, list[str]]] = {}
        for release, user_id in asked:
            groups.setdefault(release.release_id, (release, []))[1].append(user_id)
        answers = [(self._submit(*group), *group) for group in groups.values()]
        found = {
            (release.release_id, user_id): each
            for answer, release, user_ids in answers
            for user_id, each in zip(user_ids, self._wait(answer, deadline, release, user_ids), strict=True)
        }
        return [found[release.release_id, user_id] for release, user_id in asked]

    def probe(self, release: ReleaseWithUsers) -> Problem | None:
        """The problem of a release's store; None when it answers in time."""
        (found,) = self.get_many([(release, PROBE_USER)])
        return found.problem

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _submit(self, release: ReleaseWithUsers, user_ids: list[str]) -> Future[StoreRows | StoreError]:
        return self._threads.submit(self._ask, release, user_ids)

    def _ask(self, release: ReleaseWithUsers, user_ids: list[str]) -> StoreRows | StoreError:
        if self._monotonic() < self._retry_at:
            return StoreError(f"the online store failed {NUM_FAILURES} times in a row and is not asked for a moment")
        try:
            rows = release.users.rows(user_ids)
        except StoreError as error:
            log.warning("%s", error)  # once per failure, not for every request during the rest
            self._num_failures += 1
            if self._num_failures >= NUM_FAILURES:
                self._retry_at = self._monotonic() + REST_SECONDS
            return error
        self._num_failures = 0
        for user_id, row in zip(user_ids, rows, strict=True):
            if not isinstance(row, StoreError):
                self._last_good.keep(release.feature_version, user_id, row)
        return rows

    def _wait(
        self, answer: Future[StoreRows | StoreError], deadline: float, release: ReleaseWithUsers, user_ids: list[str]
    ) -> list[LookupResult]:
        try:
            rows = answer.result(max(deadline - time.monotonic(), 0))
        except TimeoutError:
            answer.cancel()
            log.warning("the online store took longer than %.0f ms", self._timeout_seconds * 1000)
            return [self._fall_back(release, user_id, "store_timeout") for user_id in user_ids]
        if isinstance(rows, StoreError):
            return [self._fall_back(release, user_id, "store_error") for user_id in user_ids]
        return [self._result(row, release, user_id) for user_id, row in zip(user_ids, rows, strict=True)]

    def _result(self, row: UserRow | StoreError | None, release: ReleaseWithUsers, user_id: str) -> LookupResult:
        if isinstance(row, StoreError):
            log.warning("%s", row)
            return self._fall_back(release, user_id, "store_error")
        return LookupResult(row)

    def _fall_back(self, release: ReleaseWithUsers, user_id: str, problem: Problem) -> LookupResult:
        """The user's last good row, if one is kept."""
        return LookupResult(self._last_good.get(release.feature_version, user_id), problem)
