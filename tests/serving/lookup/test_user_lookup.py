"""The last good rows, the time limit, and a store that keeps failing."""

import asyncio
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest

from serving.lookup.breaker import NUM_FAILURES, REST_SECONDS
from serving.lookup.online_store import StoreError, UserRow
from serving.lookup.user_lookup import MAX_READS, NUM_THREADS, LastGoodRows, LookupResult, UserLookup


def test_the_latest_users_are_kept(user):
    kept = LastGoodRows(2)
    for user_id in ("a", "b", "a", "c"):
        kept.keep("v1", user_id, replace(user, user_id=user_id))

    assert [kept.get("v1", user_id) is not None for user_id in "abc"] == [True, False, True]


def test_a_user_whom_the_store_no_longer_knows_is_forgotten(user):
    kept = LastGoodRows(2)
    kept.keep("v1", "u1", user)
    kept.keep("v1", "u1", None)

    assert kept.get("v1", "u1") is None


def test_rows_of_two_feature_versions_are_not_mixed(user):
    kept = LastGoodRows(2)
    kept.keep("v1", "u1", user)

    assert kept.get("v2", "u1") is None


def test_keeping_no_rows_is_possible(user):
    kept = LastGoodRows(0)
    kept.keep("v1", "u1", user)

    assert kept.get("v1", "u1") is None


@dataclass
class FailingStore:
    """Fails while `is_broken` is set; records its reads."""

    row: UserRow
    is_broken: bool = True
    asked: list[list[str]] = field(default_factory=list)

    def rows(self, user_ids: Sequence[str]) -> list[UserRow]:
        self.asked.append(list(user_ids))
        if self.is_broken:
            raise StoreError("nobody there")
        return [self.row for _ in user_ids]


def release_with(store: Any, release_id: str = "r1") -> Any:
    """A release with this user store."""

    return SimpleNamespace(release_id=release_id, users=store, feature_version="v1")


def get(lookup: UserLookup, release: Any, user_id: str) -> LookupResult:
    return asyncio.run(lookup.get(release, user_id))


def test_a_store_that_keeps_failing_is_not_asked_for_a_moment(user, caplog):
    store, now = FailingStore(user), [100.0]
    release = release_with(store)
    lookup = UserLookup(20, 10, lambda: now[0])

    problems = [get(lookup, release, "u1").problem for _ in range(NUM_FAILURES + 3)]

    assert problems == ["store_error"] * (NUM_FAILURES + 3)
    assert len(store.asked) == NUM_FAILURES
    assert caplog.text.count("nobody there") == len(caplog.records) == NUM_FAILURES  # not a line for every request
    store.is_broken = False
    now[0] += REST_SECONDS
    assert get(lookup, release, "u1").row == user
    lookup.close()


def test_only_failures_in_a_row_stop_the_lookups(user):
    store = FailingStore(user)
    release = release_with(store)
    lookup = UserLookup(20, 10, lambda: 100.0)

    for number in range(4 * NUM_FAILURES):
        store.is_broken = number % NUM_FAILURES != 0
        get(lookup, release, "u1")

    assert len(store.asked) == 4 * NUM_FAILURES
    lookup.close()


@dataclass
class SlowStore:
    """Answers only once `may_answer` is set; counts its reads."""

    row: UserRow
    may_answer: threading.Event = field(default_factory=threading.Event)
    num_reads: int = 0

    def rows(self, user_ids: Sequence[str]) -> list[UserRow]:
        self.num_reads += 1
        self.may_answer.wait()
        return [self.row for _ in user_ids]


@dataclass
class MixedStore:
    """Has rows of some users; a value may be an error instead of a row."""

    has: dict[str, UserRow | StoreError]
    asked: list[list[str]] = field(default_factory=list)

    def rows(self, user_ids: Sequence[str]) -> list[UserRow | StoreError | None]:
        self.asked.append(list(user_ids))
        return [self.has.get(user_id) for user_id in user_ids]


def test_many_users_are_one_read_per_release_in_the_order_asked(user):
    first, second = (MixedStore({"a": replace(user, source=name)}) for name in ("first", "second"))
    one, other = release_with(first, "r1"), release_with(second, "r2")
    lookup = UserLookup(20, 10)

    found = lookup.get_many([(one, "a"), (other, "a"), (one, "b"), (one, "a")])

    assert [each.row and each.row.source for each in found] == ["first", "second", None, "first"]
    assert (first.asked, second.asked) == ([["a", "b", "a"]], [["a"]])
    lookup.close()


def test_a_damaged_row_among_many_affects_only_its_user(user):
    store = MixedStore({"good": user, "damaged": user})
    release, asked = release_with(store), ["good", "damaged", "never seen", "stranger"]
    lookup = UserLookup(20, 10, lambda: 100.0)
    get(lookup, release, "damaged")
    store.has |= {"damaged": StoreError("lacks a value"), "never seen": StoreError("lacks a value")}

    for _ in range(2 * NUM_FAILURES):
        found = lookup.get_many([(release, user_id) for user_id in asked])

    assert found == [
        LookupResult(user),
        LookupResult(user, "store_error"),
        LookupResult(None, "store_error"),
        LookupResult(None),
    ]
    lookup.close()


@pytest.mark.parametrize(
    ("make", "seconds", "problem"), [("slow", 0.05, "store_timeout"), ("failing", 20, "store_error")]
)
def test_when_the_store_fails_each_of_many_users_gets_the_last_good_row(user, make, seconds, problem):
    slow, known = SlowStore(user), release_with(MixedStore({"seen": user}))
    release = release_with(slow if make == "slow" else FailingStore(user))
    lookup = UserLookup(seconds, 10)
    assert any(get(lookup, known, "seen").row for _ in range(100))  # a busy machine may be late as well

    found = lookup.get_many([(release, "stranger"), (release, "seen")])

    slow.may_answer.set()
    assert found == [LookupResult(None, problem), LookupResult(user, problem)]
    lookup.close()


def test_a_store_that_fails_or_is_late_is_a_named_problem_with_the_last_good_row(user):
    slow, failing = SlowStore(user), FailingStore(user)
    release = release_with(slow)
    lookup = UserLookup(0.05, 10)

    assert get(lookup, release, "u1") == LookupResult(None, "store_timeout")
    slow.may_answer.set()
    lookup.close()

    lookup = UserLookup(20, 10)
    assert get(lookup, release, "u1") == LookupResult(user)
    release.users = failing
    assert get(lookup, release, "u1") == LookupResult(user, "store_error")
    lookup.close()


def test_an_answer_that_arrived_while_the_event_loop_was_busy_is_not_late(user):
    store = SlowStore(user)
    lookup = UserLookup(0.2, 10)

    async def ask_and_be_busy() -> LookupResult:
        asked = asyncio.create_task(lookup.get(release_with(store), "u1"))
        await asyncio.sleep(0)
        store.may_answer.set()
        time.sleep(0.5)
        return await asked

    assert asyncio.run(ask_and_be_busy()) == LookupResult(user)
    lookup.close()


def get_at_once(lookup: UserLookup, release: Any, num: int) -> list[LookupResult]:
    async def ask() -> list[LookupResult]:
        return await asyncio.gather(*(lookup.get(release, "u1") for _ in range(num)))

    return asyncio.run(ask())


def test_a_store_that_hangs_gives_every_one_of_many_requests_a_named_problem_each_time(user):
    store, now = SlowStore(user), [100.0]
    release = release_with(store)
    lookup = UserLookup(0.2, 10, lambda: now[0])

    assert get_at_once(lookup, release, 12) == [LookupResult(None, "store_timeout")] * 12
    assert store.num_reads == NUM_THREADS
    started = time.monotonic()
    assert get_at_once(lookup, release, 12) == [LookupResult(None, "store_timeout")] * 12
    assert time.monotonic() - started < 0.15  # a store that is left alone is not waited for

    store.may_answer.set()
    now[0] += REST_SECONDS
    assert any(get(lookup, release, "u1") == LookupResult(user) for _ in range(100))
    lookup.close()


def test_one_request_at_a_time_tries_a_store_that_hangs(user):
    store, now = FailingStore(user), [100.0]
    release = release_with(store)
    lookup = UserLookup(20, 10, lambda: now[0])
    get_at_once(lookup, release, NUM_FAILURES)
    now[0] += REST_SECONDS

    found = get_at_once(lookup, release, 12)

    assert [each.problem for each in found] == ["store_error"] * 12
    assert len(store.asked) == NUM_FAILURES + 1
    lookup.close()


def test_only_so_many_reads_wait(user):
    store = SlowStore(user)
    release = release_with(store)
    lookup = UserLookup(20, 10)

    async def ask() -> LookupResult:
        waiting = [asyncio.create_task(lookup.get(release, "u1")) for _ in range(MAX_READS)]
        await asyncio.sleep(0.05)
        found = await asyncio.wait_for(lookup.get(release, "u1"), 10)
        store.may_answer.set()
        assert await asyncio.gather(*waiting) == [LookupResult(user)] * MAX_READS
        return found

    assert asyncio.run(ask()) == LookupResult(None, "store_timeout")
    lookup.close()


def test_a_lookup_that_is_closed_while_requests_wait_answers_them(user):
    store = SlowStore(user)
    lookup = UserLookup(0.3, 10)

    async def ask() -> list[LookupResult]:
        waiting = [asyncio.create_task(lookup.get(release_with(store), "u1")) for _ in range(12)]
        await asyncio.sleep(0.05)
        lookup.close()
        return await asyncio.gather(*waiting)

    assert asyncio.run(ask()) == [LookupResult(None, "store_timeout")] * 12
    store.may_answer.set()


def test_an_emptied_store_is_a_named_problem_and_throws_no_good_row_away(user, caplog):
    store = MixedStore({f"u{number}": user for number in range(5)})
    release = release_with(store)
    lookup = UserLookup(20, 10)
    lookup.know("v1", ["u0", "u1", "u2"])
    get(lookup, release, "u1")
    everybody, store.has = store.has, {}

    for _ in range(2):
        assert get(lookup, release, "u1") == LookupResult(user, "store_empty")
    assert get(lookup, release, "stranger") == LookupResult(None, "store_empty")
    assert lookup.probe(release) == "store_empty"
    assert caplog.text.count("it was emptied") == 1

    store.has = everybody
    assert lookup.probe(release) is None
    assert get(lookup, release, "u1") == LookupResult(user)
    assert get(lookup, release, "stranger") == LookupResult(None)
    lookup.close()


def test_a_probe_sees_a_store_that_was_empty_from_the_start(user):
    lookup = UserLookup(20, 10)
    lookup.know("v1", ["u0", "u1"])

    assert lookup.probe(release_with(MixedStore({}))) == "store_empty"
    lookup.close()


def test_a_user_who_was_erased_is_forgotten_although_a_row_was_kept(user):
    store = MixedStore({"u0": user, "u1": user, "u2": user})
    release = release_with(store)
    lookup = UserLookup(20, 10)
    lookup.know("v1", store.has)
    get(lookup, release, "u1")

    del store.has["u1"]

    assert get(lookup, release, "u1") == LookupResult(None)
    release.users = FailingStore(user)
    assert get(lookup, release, "u1") == LookupResult(None, "store_error")
    lookup.close()


def test_a_store_that_comes_back_empty_is_seen_by_its_first_answer(user):
    store = MixedStore({"u0": user, "u1": user})
    failing = FailingStore(user)
    release = release_with(failing)
    lookup = UserLookup(20, 10)
    lookup.know("v1", ["u0", "u1"])
    get(lookup, release, "never seen")

    store.has = {}
    release.users = store

    assert get(lookup, release, "never seen") == LookupResult(None, "store_empty")
    lookup.close()


def test_a_store_that_lacks_the_users_of_a_release_that_was_left_is_not_emptied(user):
    """A release of a wrong source was loaded; restoring a day cleared its users and put the day's users online."""
    store = MixedStore({"wrong 1": user, "wrong 2": user})
    release = release_with(store)
    lookup = UserLookup(20, 10)
    lookup.know("v1", ["wrong 1", "wrong 2"])
    assert get(lookup, release, "wrong 1") == LookupResult(user)

    store.has = {"right 1": user, "right 2": user}
    assert lookup.probe(release) == "store_empty"
    lookup.know("v1", ["right 1", "right 2"])

    assert lookup.probe(release) is None
    assert get(lookup, release, "wrong 1") == LookupResult(None)
    lookup.close()
