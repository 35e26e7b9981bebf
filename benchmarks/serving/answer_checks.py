"""Checks of a load's answers: whether each is of one release, and whether it says truly where it comes from.

Also how much the workers' memory grew during a soak.
"""

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from benchmarks.serving.load import OK, Answer, mark_of

TAKE_UP_SECONDS = 30.0  # after a switch, until no worker may answer from the release before
SETTLE_SECONDS = 10.0  # after a change, while answers may still be like those before
BASELINE_SECONDS = 300.0  # until caches are full; at most a sixth of the time
WINDOW_SECONDS = 60.0  # at the baseline and at the end, whose median memory counts; at most a tenth of the time
NUM_THINNED = 60  # points of the memory curve that a measurement keeps

NONE = ""  # no fallback, no store problem
TIMEOUT, EMPTY = "store_timeout", "store_empty"
STORE_PROBLEMS = frozenset({"store_error", TIMEOUT})
SLOW = frozenset({"last_good", TIMEOUT})  # fallbacks when a lookup took too long


@dataclass(frozen=True)
class ReleasePeriod:
    """The time for which a release was in force. Moments are seconds of `time.monotonic()`."""

    number: int
    release_id: str
    begins: float  # before the command that put it in force was given
    ends: float = math.inf  # after the command that replaced it


@dataclass(frozen=True)
class Allowed:
    """What answers may say. `searches` are pairs of backend and fallback."""

    fallbacks: frozenset[str]
    store_problems: frozenset[str]
    searches: frozenset[tuple[str, str]]


@dataclass(frozen=True)
class Step:
    """An event at a share of the time, and what answers may say from then on."""

    share: float
    name: str
    fallbacks: frozenset[str] = frozenset({NONE})
    store_problems: frozenset[str] = frozenset({NONE})


REDIS_KILLED, REDIS_BACK, RESTORED = "Redis killed", "Redis back, empty", "features restored"
CORRUPT, ROLLED_BACK, MILVUS_STOPPED = "corrupt release", "rolled back", "Milvus gone"
STEPS = (
    Step(0.0, "calm"),
    Step(0.30, REDIS_KILLED, STORE_PROBLEMS | {"last_good"}, STORE_PROBLEMS),
    # unknown_user: who is not yet there while the store is filled again.
    Step(0.40, REDIS_BACK, frozenset({"last_good", EMPTY, "unknown_user"}), frozenset({EMPTY, NONE})),
    Step(0.50, RESTORED),
    Step(0.60, CORRUPT),
    Step(0.70, ROLLED_BACK),
    Step(0.80, MILVUS_STOPPED),
)


@dataclass(frozen=True)
class Phase:
    """The time between two steps. Moments are seconds of `time.monotonic()`."""

    name: str
    allowed: Allowed
    begins: float  # before the step that begins it
    done: float  # after that step


@dataclass(frozen=True)
class SearchAnswer:
    """What a search said."""

    sent: float
    done: float
    status: int
    backend: str
    fallback: str


def is_of_one(answer: Answer, history: Sequence[ReleasePeriod]) -> bool:
    """Whether an answer names a release that was in force and all of its titles are of that release."""
    return any(
        answer.release == each.release_id
        and answer.marks == (mark_of(each.number),)
        and each.begins <= answer.done
        and answer.sent <= each.ends + TAKE_UP_SECONDS
        for each in history
    )


def slowest_take_up(answers: Sequence[Answer], history: Sequence[ReleasePeriod]) -> float:
    """Seconds from the end of a switch to the last request that was still answered from the release before."""
    slowest = 0.0
    for before, after in pairwise(history):
        late = [
            answer.sent - before.ends
            for answer in answers
            if answer.release == before.release_id and before.ends < answer.sent < after.ends
        ]
        slowest = max([slowest, *late])
    return slowest


def allowed_between(phases: Sequence[Phase], sent: float, done: float) -> list[Allowed]:
    """What an answer may say that was asked at `sent` and came at `done`; around a change, of both phases."""
    ends = [after.done + SETTLE_SECONDS for after in phases[1:]] + [float("inf")]
    return [phase.allowed for phase, end in zip(phases, ends, strict=True) if phase.begins <= done and sent <= end]


def is_true(answer: Answer, phases: Sequence[Phase], release_id: str, timeout_seconds: float) -> bool:
    """Whether an answer comes from that release and names the right fallback. Other statuses than 200 claim nothing.

    A store that works may still be slow: an answer that took at least the lookup's limit may say so in any phase.
    """
    if answer.status != OK:
        return True
    was_slow = (
        answer.fallback in SLOW and answer.store_problem == TIMEOUT and answer.done - answer.sent >= timeout_seconds
    )
    return answer.release == release_id and (
        was_slow
        or any(
            answer.fallback in each.fallbacks and answer.store_problem in each.store_problems
            for each in allowed_between(phases, answer.sent, answer.done)
        )
    )


def is_true_search(found: SearchAnswer, phases: Sequence[Phase]) -> bool:
    possible = allowed_between(phases, found.sent, found.done)
    return found.status != OK or any((found.backend, found.fallback) in each.searches for each in possible)


def labels(answers: Sequence[Answer], phases: Sequence[Phase]) -> dict[str, dict[str, int]]:
    """How often each fallback was named in each phase. A request belongs to the phase in which it was sent."""
    found: dict[str, Counter[str]] = {phase.name: Counter() for phase in phases}
    for answer in answers:
        name = [phase.name for phase in phases if phase.begins <= answer.sent] or [phases[0].name]
        label = answer.fallback or "none"
        found[name[-1]][label if answer.status == OK else f"status {answer.status}"] += 1
    return {name: dict(count) for name, count in found.items()}


def memory_growth(samples: Sequence[tuple[float, Mapping[int, float]]], seconds: float) -> float | None:
    """The largest share by which a worker's memory grew from the baseline to the end.

    Samples are seconds since the start, and megabytes by process. None when a worker was not there all the time.
    """
    window = min(WINDOW_SECONDS, seconds / 10)
    begins = min(BASELINE_SECONDS, seconds / 6)
    first = [found for moment, found in samples if begins <= moment < begins + window]
    last = [found for moment, found in samples if moment >= seconds - window]
    workers = {pid for moment, found in samples if moment >= begins for pid in found}
    if not first or not last or not workers:
        return None
    if any(pid not in found for pid in workers for found in (*first, *last)):
        return None
    return max(
        statistics.median(found[pid] for found in last) / statistics.median(found[pid] for found in first) - 1
        for pid in workers
    )


def thinned(samples: Sequence[tuple[float, Mapping[int, float]]]) -> list[tuple[float, float]]:
    """A few dozen points of the memory curve: seconds, and megabytes of all workers together."""
    step = max(1, len(samples) // NUM_THINNED)
    return [(round(moment, 1), round(sum(found.values()), 1)) for moment, found in samples[::step]]
