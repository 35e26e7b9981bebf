"""Forecast what a day of `find_moments` will cost: comparisons, and CPU seconds from a measurement on the spot."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from grasp import tables
from grasp.moments import BLOCK_NUMBERS, HISTORY_LENGTH, Contexts, Moments, VoteRule, centred, contexts
from grasp.settings import Settings
from spark_jobs.find_moments import asking_moments, moments_since, read_active, read_past
from spark_jobs.storage.lake import Lake
from spark_jobs.vectors.embedding_table import embedding_batches
from spark_jobs.vectors.moment_collection import NUM_PROPOSED
from spark_jobs.vectors.moment_table import first_day_of_window

ASSUMED_WIDTH = 384  # numbers of a vector, where no vector is there to count them
# Of the measured block, at most. More would take longer and say the same.
MAX_MOMENTS, MAX_ASKING, MAX_ITEMS = 50_000, 160, 20_000
NUM_TAKEN_EACH = 5  # made-up moments of a user
FLOAT_BYTES = 4
BAG_BYTES = 2 * HISTORY_LENGTH * (4 + FLOAT_BYTES)  # item and weight of each step, by moment and by item


@dataclass(frozen=True)
class MomentCounts:
    """How much there is to compare, by the day's data or as given."""

    num_moments: int  # that vote
    num_asking: int  # users
    num_items: int
    width: int  # numbers of an item's vector


@dataclass(frozen=True)
class MomentForecast:
    is_on: bool  # GRASP_MOMENTS
    moment_days: int
    active_days: int
    num_moments: int
    num_asking: int
    is_exact: bool  # False: Milvus proposes which moments are compared; its own work is not in the seconds
    num_comparisons: int
    cpu_seconds: float
    memory_bytes: int  # in each Spark worker, or in the driver where Milvus proposes
    num_measured: int  # comparisons of the measured block
    measured_cpu_seconds: float
    width: int


def forecast_moments(settings: Settings, counts: MomentCounts) -> MomentForecast:
    is_exact = counts.num_moments <= settings.moment_exact_up_to
    num_each = counts.num_moments if is_exact else min(NUM_PROPOSED, counts.num_moments)
    num_comparisons = counts.num_asking * num_each
    num_measured, seconds = measure_block(counts, VoteRule.of(settings), is_exact=is_exact)
    return MomentForecast(
        settings.moments,
        settings.moment_days,
        settings.moment_active_days,
        counts.num_moments,
        counts.num_asking,
        is_exact,
        num_comparisons,
        seconds * num_comparisons / num_measured if num_measured else 0.0,
        memory_bytes(counts),
        num_measured,
        seconds,
        counts.width,
    )


def memory_bytes(counts: MomentCounts) -> int:
    """Memory for the vectors and bags of all moments, and for the vectors of all items, as they are and centred."""
    return FLOAT_BYTES * counts.width * (counts.num_moments + 2 * counts.num_items) + BAG_BYTES * counts.num_moments


def count_day(lake: Lake, day: str) -> MomentCounts:
    """What `find_moments` would compare, from its own frames. The day must be ingested; the setting may be off."""
    num_items = lake.read(tables.ITEMS, day).count()
    past = read_past(lake, day)
    num_moments = moments_since(past, first_day_of_window(lake.settings, day)).count()
    num_asking = asking_moments(past, read_active(lake, day)).count()
    return MomentCounts(num_moments, num_asking, num_items, width_of_vectors(lake, day))


def width_of_vectors(lake: Lake, day: str) -> int:
    for embedded in lake.days(tables.ITEM_EMBEDDING, until=day)[-1:]:
        for batch in embedding_batches(lake.partition(tables.ITEM_EMBEDDING, embedded), tables.ITEM_EMBEDDING, 1):
            return batch.vectors.shape[1]
    return ASSUMED_WIDTH


def measure_block(
    counts: MomentCounts, rule: VoteRule, *, is_exact: bool, clock: Callable[[], float] = time.process_time
) -> tuple[int, float]:
    """Comparisons of one made-up block and the CPU seconds that they took."""
    num_moments, num_items = min(counts.num_moments, MAX_MOMENTS), max(1, min(counts.num_items, MAX_ITEMS))
    if not num_moments or not counts.num_asking:
        return 0, 0.0
    num_asking = min(counts.num_asking, max(1, BLOCK_NUMBERS // num_moments), MAX_ASKING)
    random = np.random.default_rng(0)
    vectors = centred(random.standard_normal((num_items, counts.width), np.float32))

    def made_up(num: int) -> Contexts:
        return contexts(_popular(random, (num, HISTORY_LENGTH), num_items), vectors)

    users = random.integers(0, num_moments // NUM_TAKEN_EACH + 1, num_moments)
    moments = Moments(made_up(num_moments), users, _popular(random, (num_moments,), num_items))
    asking, nobody = made_up(num_asking), np.full(num_asking, -1)
    if is_exact:
        num_each, votes = num_moments, moments.votes(asking, nobody, rule)
    else:
        num_each = min(NUM_PROPOSED, num_moments)
        proposed = np.stack([random.permutation(num_moments)[:num_each] for _ in range(num_asking)])
        votes = moments.votes_of_proposed(asking, nobody, proposed, rule)
    started = clock()  # nothing is compared before the first votes are asked for
    for _ in votes:
        pass
    return num_asking * num_each, clock() - started


def _popular(random: np.random.Generator, shape: tuple[int, ...], num_items: int) -> np.ndarray:
    """Numbers of items from 1, a few of them drawn often: histories that share items take longer to compare."""
    return (num_items * random.random(shape) ** 3).astype(np.int64) + 1


def as_lines(forecast: MomentForecast) -> list[str]:
    holder = "each worker" if forecast.is_exact else "the driver"
    rows = [
        (f"moments of {forecast.moment_days} days", f"{forecast.num_moments:,}"),
        (f"users of {forecast.active_days} days, who ask", f"{forecast.num_asking:,}"),
        ("comparisons", f"{forecast.num_comparisons:,}"),
        ("CPU seconds", f"{forecast.cpu_seconds:,.0f}"),
        (f"GB of memory in {holder}", f"{forecast.memory_bytes / 1e9:,.1f}"),
    ]
    lines = ["recent moments", *(f"{name:<34}{value:>18}" for name, value in rows)]
    lines.append(
        f"measured here: {forecast.num_measured:,} comparisons of made-up moments, {forecast.width} numbers wide, took "
        f"{forecast.measured_cpu_seconds:.2f} CPU seconds"
    )
    if not forecast.is_exact:
        lines.append("more than GRASP_MOMENT_EXACT_UP_TO: Milvus proposes what is compared, its own work comes on top")
    if not forecast.is_on:
        lines.append("switched off: GRASP_MOMENTS=false")
    return lines
