"""How long an answer takes: for one client that waits, at a fixed rate, and the highest rate that holds."""

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.serving.histograms import quantile, since
from benchmarks.serving.load import Load, closed_loop, open_loop
from benchmarks.serving.running_service import RunningService

LIMIT_MS = 60.0  # highest p99 of a rate that holds
WARM_UP_RATE, WARM_UP_SECONDS = 20.0, 5.0
FIRST_RATE, GROWTH, NUM_REFINEMENTS = 100.0, 1.25, 2
LOWEST_RATE, HIGHEST_RATE = 5.0, 20_000.0
QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


def one_client(service: RunningService, bodies: Sequence[str], seconds: float) -> dict[str, Any]:
    """Times over HTTP of one client on one connection, and of the service's own stages meanwhile."""
    warm_up(service, bodies)
    before = service.stage_counts()
    load = closed_loop(service.url, bodies, seconds)
    stages = {stage: since(before.get(stage, {}), now) for stage, now in service.stage_counts().items()}
    return load.summary() | {
        "stage_milliseconds": {
            stage: {name: 1000 * quantile(buckets, share) for name, share in QUANTILES.items()}
            for stage, buckets in stages.items()
            if buckets.get(float("inf"))
        }
    }


def fixed_rate(service: RunningService, bodies: Sequence[str], rate: float, seconds: float) -> dict[str, Any]:
    """Times of an open loop."""
    warm_up(service, bodies)
    return open_loop(service.url, bodies, rate, seconds).summary() | {
        "rate": rate,
        "num_workers": service.settings.serving_workers,
    }


def highest_rate(service: RunningService, bodies: Sequence[str], seconds: float) -> dict[str, Any]:
    """The highest rate that holds for so many seconds, and all rates that were tried."""
    warm_up(service, bodies)
    tried: list[dict[str, Any]] = []

    def attempt(rate: float) -> bool:
        load = open_loop(service.url, bodies, rate, seconds)
        tried.append(load.summary() | {"rate": rate, "holds": holds(load)})
        return holds(load)

    found = {"highest_rate": search_highest(attempt), "limit_ms": LIMIT_MS, "tried": tried}
    return found | {"num_workers": service.settings.serving_workers}


def holds(load: Load) -> bool:
    """Every request is answered, and 99 of 100 within the limit from when they were due."""
    found = load.summary()["milliseconds"]
    return load.num_errors == 0 and found is not None and found["p99"] < LIMIT_MS


def search_highest(attempt: Callable[[float], bool], first: float = FIRST_RATE) -> float:
    """The highest rate for which `attempt` is true, 0 for none.

    The search goes up, or down, by a factor until the answer changes, then halves the interval.
    """
    low, high, rate = 0.0, 0.0, first
    while not (low and high) and LOWEST_RATE <= rate <= HIGHEST_RATE:
        if attempt(rate):
            low = rate
        else:
            high = rate
        rate = rate / GROWTH if not low else rate * GROWTH
    for _ in range(NUM_REFINEMENTS if low and high else 0):
        middle = round((low + high) / 2)
        low, high = (middle, high) if attempt(middle) else (low, middle)
    return low


def warm_up(service: RunningService, bodies: Sequence[str]) -> None:
    """Have every worker answer for a while."""
    open_loop(service.url, bodies, WARM_UP_RATE, WARM_UP_SECONDS)
