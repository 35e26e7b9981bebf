"""Read users from the online store within a time limit, and fall back to their last good rows when it fails."""

import asyncio
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Literal, Protocol

from serving.lookup.breaker import Breaker
from serving.lookup.known_users import KnownUsers
from serving.lookup.online_store import StoreError, UserRow, UserStore

NUM_THREADS = 8
MAX_READS = 64  # running and waiting together; further requests are answered without a read
PROBE_USER = "-"  # read to test whether the store answers; the answer itself is ignored

StoreProblem = Literal["store_timeout", "store_error", "store_empty"]
StoreRows = list[UserRow | StoreError | None]  # as `UserStore.rows` gives them
Read = Future[StoreRows | StoreError | None]

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
    problem: StoreProblem | None = None

    @property
    def is_last_good(self) -> bool:
        return self.row is not None and self.problem is not None


def first_problem(results: Sequence[LookupResult]) -> StoreProblem | None:
    """The first problem of a read of many users, None if it has none."""
    return next((each.problem for each in results if each.problem), None)


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
    """One online read per request, in threads of its own. A store that fails, hangs or was emptied is a named problem.

    A late read counts as a failure; its row is still kept as the last good one. A store that keeps failing or being
    late is left alone for a moment (`Breaker`), and at most `MAX_READS` reads run and wait, so a store that hangs holds
    no request longer than the time limit.
    """

    def __init__(
        self, timeout_seconds: float, num_last_good: int, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._timeout_seconds = timeout_seconds
        self._breaker = Breaker(monotonic)
        self._last_problem: StoreProblem = "store_error"
        self._places = threading.BoundedSemaphore(MAX_READS)
        self._last_good = LastGoodRows(num_last_good)
        self._known = KnownUsers()
        self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="lookup")

    def know(self, version: str, user_ids: Sequence[str]) -> None:
        """Name the users whom the store of a feature version has to know by now, so that an emptied store is seen."""
        self._known.replace(version, user_ids)

    async def get(self, release: ReleaseWithUsers, user_id: str) -> LookupResult:
        """Look one user up; the event loop serves other requests meanwhile."""
        read = self._submit(release, [user_id])
        if isinstance(read, Future):
            # `wait` cancels nothing, so an answer that arrives while the loop is busy still counts.
            await asyncio.wait([asyncio.wrap_future(read)], timeout=self._timeout_seconds)
        (found,) = self._results(read, release, [user_id])
        return found

    def get_many(self, asked: Sequence[tuple[ReleaseWithUsers, str]]) -> list[LookupResult]:
        """Look many users up, each in its release, all within one time limit.

        All users of a release are one read: reads one after another would exceed the limit.
        """
        groups: dict[str, tuple[ReleaseWithUsers, list[str]]] = {}
        for release, user_id in asked:
            groups.setdefault(release.release_id, (release, []))[1].append(user_id)
        reads = [(self._submit(*group), *group) for group in groups.values()]
        wait([read for read, _, _ in reads if isinstance(read, Future)], self._timeout_seconds)
        found = {
            (release.release_id, user_id): each
            for read, release, user_ids in reads
            for user_id, each in zip(user_ids, self._results(read, release, user_ids), strict=True)
        }
        return [found[release.release_id, user_id] for release, user_id in asked]

    def probe(self, release: ReleaseWithUsers) -> StoreProblem | None:
        """The problem of a release's store; None when it answers in time and was not emptied."""
        version = release.feature_version
        known = self._known.of(version)
        read = self._submit(release, known or [PROBE_USER], is_probe=True)
        if isinstance(read, Future):
            wait([read], self._timeout_seconds)
        rows = self._rows(read)
        if isinstance(rows, str):
            return rows
        if known:
            self._known.note(version, rows)
        return "store_empty" if self._known.is_emptied(version) else None

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _submit(self, release: ReleaseWithUsers, user_ids: list[str], is_probe: bool = False) -> Read | StoreProblem:
        """Begin a read, or say why the store is not asked. The rows of a probe are not kept."""
        if not self._breaker.may_ask():
            return self._last_problem
        if not self._places.acquire(blocking=False):
            return "store_timeout"
        return self._threads.submit(self._ask, release, user_ids, time.monotonic() + self._timeout_seconds, is_probe)

    def _ask(
        self, release: ReleaseWithUsers, user_ids: list[str], deadline: float, is_probe: bool
    ) -> StoreRows | StoreError | None:
        """Read, in a thread of the pool. None when the read would begin after its time limit."""
        try:
            if time.monotonic() > deadline:
                return None
            rows = release.users.rows(user_ids)
            if not is_probe:
                self._look_for_emptied(release, user_ids, rows)
        except StoreError as error:
            log.warning("%s", error)  # once per failure, not for every request during the rest
            if time.monotonic() <= deadline:  # a later one was counted by the request that waited
                self._last_problem = "store_error"
                self._breaker.failed()
            return error
        finally:
            self._places.release()
        if time.monotonic() <= deadline:
            self._breaker.succeeded()
        if not is_probe:
            self._keep(release.feature_version, user_ids, rows)
        return rows

    def _look_for_emptied(self, release: ReleaseWithUsers, user_ids: list[str], rows: StoreRows) -> None:
        """See whether everybody is gone, when a user with a kept row is, or a store that failed lacks one."""
        version = release.feature_version
        lacking = [user_id for user_id, row in zip(user_ids, rows, strict=True) if row is None]
        if not lacking or self._known.is_emptied(version):
            return
        if self._breaker.is_failing or any(self._last_good.get(version, user_id) for user_id in lacking):
            known = self._known.of(version)
            self._known.note(version, release.users.rows(known) if known else [])

    def _keep(self, version: str, user_ids: list[str], rows: StoreRows) -> None:
        """Remember the store's answers, but not that an emptied store lacks a user."""
        for user_id, row in zip(user_ids, rows, strict=True):
            if isinstance(row, StoreError) or (row is None and self._known.is_emptied(version)):
                continue
            self._last_good.keep(version, user_id, row)
            if row is not None:
                self._known.add(version, [user_id])

    def _rows(self, read: Read | StoreProblem) -> StoreRows | StoreProblem:
        """What a read gave by now, or why it gave nothing."""
        if isinstance(read, str):
            return read
        rows = read.result() if read.done() and not read.cancelled() else None
        if isinstance(rows, StoreError):
            return "store_error"
        if rows is None:
            log.warning("the online store took longer than %.0f ms", self._timeout_seconds * 1000)
            if read.running():  # one that has not begun waits for other late ones, which are counted
                self._last_problem = "store_timeout"
                self._breaker.failed()
            return "store_timeout"
        return rows

    def _results(self, read: Read | StoreProblem, release: ReleaseWithUsers, user_ids: list[str]) -> list[LookupResult]:
        rows = self._rows(read)
        if isinstance(rows, str):
            return [self._fall_back(release, user_id, rows) for user_id in user_ids]
        return [self._result(row, release, user_id) for user_id, row in zip(user_ids, rows, strict=True)]

    def _result(self, row: UserRow | StoreError | None, release: ReleaseWithUsers, user_id: str) -> LookupResult:
        if isinstance(row, StoreError):
            log.warning("%s", row)
            return self._fall_back(release, user_id, "store_error")
        if row is None and self._known.is_emptied(release.feature_version):
            return self._fall_back(release, user_id, "store_empty")
        return LookupResult(row)

    def _fall_back(self, release: ReleaseWithUsers, user_id: str, problem: StoreProblem) -> LookupResult:
        """The user's last good row, if one is kept."""
        return LookupResult(self._last_good.get(release.feature_version, user_id), problem)
