"""What finding recent moments costs beside the other jobs of a usual day.

    python -m benchmarks.fresh.moments_job --out DIR [--users 200000 --items 100000]

Reads:   the model folders of `make setup`, which name the versions; no model is loaded
Writes:  measurements.jsonl in --out

A made-up shop (`made_up_shop.py`) is brought up to the day before, with a state of `user_features` from before the
window. Then all Spark jobs of the day run through their `main`, without a language model: descriptions from facts,
made-up unit vectors, all neighbours compared, Milvus-Lite. CPU seconds are those of driver, JVM and workers. One
session runs all jobs, so its start counts for none of them.

The measurement is one line of measurements.jsonl and is never made again: delete its line to measure again.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from zlib import crc32

import numpy as np

from benchmarks.core import command
from benchmarks.core.machine import machine
from benchmarks.core.spark import local_spark
from benchmarks.core.store import Conditions, Measurements, PlannedMeasurement
from benchmarks.core.summary import Found
from benchmarks.fresh.made_up_shop import Size, write_day, write_items
from grasp import tables
from grasp.days import plus_days
from grasp.environment import prepare
from grasp.moments import VoteRule
from grasp.progress import say
from grasp.settings import Settings
from grasp.tables import MAX_SEQUENCE_LENGTH, Table

DAY = "2026-01-05"
KIND = "moments_job"
WIDTH = 384  # numbers of a vector
NUM_TIMED = 200  # users whose search is timed
NEIGHBOUR_FEATURES = {
    "item": (tables.ITEM_EMBEDDING, tables.ITEM_NEIGHBOUR_FEATURES),
    "user": (tables.USER_EMBEDDING, tables.USER_NEIGHBOUR_FEATURES),
}


class MadeUpEncoder:
    """A unit vector for each text, always the same for the same text."""

    def encode(self, texts: list[str]) -> np.ndarray:
        vectors = np.stack([np.random.default_rng(crc32(text.encode())).standard_normal(WIDTH) for text in texts])
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def make_encoder() -> MadeUpEncoder:
    return MadeUpEncoder()


def share_of_moments(found: Found) -> float:
    """CPU seconds of `find_moments` over those of all jobs of the day."""
    seconds = found["cpu_seconds"]
    return float(seconds["find_moments"] / sum(seconds.values()))


def measure_day(settings: Settings, size: Size) -> dict[str, Any]:
    """CPU and wall seconds of each job on a usual day, and milliseconds of a search among the day's moments."""
    with tempfile.TemporaryDirectory(dir=settings.home) as home, local_spark(settings) as spark:
        from spark_jobs.storage.lake import Lake

        folder = Path(home)
        own = {"lake": folder / "lake", "source": folder / "source", "milvus_uri": str(folder / "milvus.db")}
        lake = Lake(spark, settings.model_copy(update={**own, "home": folder, "llm_budget": 0, "now": None}))
        write_items(lake.settings.source, size)
        num_rows = [write_day(lake.settings.source, size, number, DAY) for number in range(size.num_days - 1)]
        prepare_day_before(lake)
        num_rows.append(write_day(lake.settings.source, size, size.num_days - 1, DAY))
        cpu, wall = measure_jobs(lake)
        return {
            "num_users": size.num_users,
            "num_items": size.num_items,
            "num_days": size.num_days,
            "num_interactions": sum(num_rows),
            "num_interactions_of_window": sum(num_rows[-lake.settings.moment_days :]),
            "num_moments": sum(lake.num_rows(tables.MOMENTS, day) or 0 for day in lake.days(tables.MOMENTS)),
            "num_asking": lake.num_rows(tables.USER_NEIGHBOUR_ITEMS, DAY),
            "cpu_seconds": cpu,
            "wall_seconds": wall,
            "search_ms": measure_search(lake),
        }


def jobs(names: Sequence[str] = ()) -> dict[str, Callable[..., None]]:
    """The `main` of every job by its name, in the order of the DAG."""
    from spark_jobs import (
        aggregate_neighbours,
        build_features,
        describe_items,
        describe_users,
        embed_descriptions,
        find_moments,
        find_neighbours,
        ingest,
    )

    found: dict[str, Callable[..., None]] = {
        "ingest": ingest.main,
        "describe_items": describe_items.main,
        "describe_users": describe_users.main,
        "embed_descriptions": partial(embed_descriptions.main, make_encoder=make_encoder),
        "find_neighbours": find_neighbours.main,
        "aggregate_neighbours": aggregate_neighbours.main,
        "find_moments": find_moments.main,
        "build_features": build_features.main,
    }
    return {name: found[name] for name in names or found}


def prepare_day_before(lake: Any) -> None:
    """Everything that the day reads of earlier days. Neighbours are not searched: each entity is its own mean."""
    from pyspark.sql import functions as F

    before = plus_days(DAY, -1)
    for main in jobs(("ingest", "describe_items", "describe_users", "embed_descriptions")).values():
        main(lake, before)
    write_state(lake, plus_days(DAY, -lake.settings.moment_days))
    nothing = lake.spark.createDataFrame([], tables.USER_NEIGHBOUR_ITEMS.ddl)
    lake.write(tables.USER_NEIGHBOUR_ITEMS, nothing, before)
    for source, target in NEIGHBOUR_FEATURES.values():
        own = F.col("semantic_embedding").alias("neighbour_embedding")
        lists = (F.array().alias("neighbour_ids"), F.array().alias("neighbour_similarities"))
        lake.write(target, lake.read(source, before).select(*source.key, own, *lists), before)
    jobs(("build_features",))["build_features"](lake, before)


def write_state(lake: Any, day: str) -> None:
    """`user_features` of an earlier day with what `find_moments` reads of it."""
    from pyspark.sql import functions as F

    table: Table = tables.USER_FEATURES
    steps = F.array_sort(F.collect_list(F.struct("event_time", "row_number", "item_id")))
    users = lake.read_until(tables.INTERACTIONS, day).groupBy("user_id").agg(steps.alias("steps"))
    last = F.slice("steps", F.greatest(F.size("steps") - MAX_SEQUENCE_LENGTH + 1, F.lit(1)), MAX_SEQUENCE_LENGTH)
    known = {
        "user_id": F.col("user_id"),
        "sequence": F.transform(last, lambda step: step["item_id"]),
        "sequence_times": F.transform(last, lambda step: F.unix_seconds(step["event_time"])),
    }
    lake.write(table, users.select(*(known.get(name, F.lit(None)).alias(name) for name in table.column_names)), day)


def measure_jobs(lake: Any) -> tuple[dict[str, float], dict[str, float]]:
    """CPU and wall seconds of each job of the day."""
    cpu: dict[str, float] = {}
    wall: dict[str, float] = {}
    for name, main in jobs().items():
        before, started = cpu_seconds(), time.perf_counter()
        main(lake, DAY)
        cpu[name], wall[name] = round(cpu_seconds() - before, 2), round(time.perf_counter() - started, 2)
        say(f"{DAY} {name}: {cpu[name]:.1f} CPU seconds in {wall[name]:.1f} s")
    return cpu, wall


def cpu_seconds() -> float:
    """CPU seconds of this process and of all below it: the JVM and Python workers, those that ended included."""
    import psutil

    own, total = psutil.Process(), 0.0
    for process in (own, *own.children(recursive=True)):
        with _may_have_ended():
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


@contextmanager
def _may_have_ended() -> Iterator[None]:
    """A process that ended meanwhile is counted with its parent's children."""
    import psutil

    try:
        yield
    except psutil.NoSuchProcess:
        return


def measure_search(lake: Any) -> dict[str, float]:
    """Milliseconds of a user's search and count on one thread: one by one (median), and in a block (mean)."""
    from spark_jobs.vectors.moment_table import files_of_window, load_moments

    voting, rule = load_moments(files_of_window(lake, DAY)), VoteRule.of(lake.settings)
    moments = voting.moments
    asking = moments.contexts.rows(np.linspace(0, len(moments) - 1, min(NUM_TIMED, len(moments))).astype(np.int64))
    nobody = np.full(len(asking), -1)
    alone = []
    for row in range(len(asking)):
        one = slice(row, row + 1)
        started = time.perf_counter()
        list(moments.votes(asking.rows(one), nobody[one], rule))
        alone.append(time.perf_counter() - started)
    started = time.perf_counter()
    list(moments.votes(asking, nobody, rule))
    together = time.perf_counter() - started
    return {"alone_p50": 1000 * median(alone), "in_block_mean": 1000 * together / len(asking)}


def parser() -> argparse.ArgumentParser:
    result = command.new_parser("benchmarks.fresh.moments_job", __doc__)
    result.add_argument("--users", type=int, default=200_000)
    result.add_argument("--items", type=int, default=100_000)
    result.add_argument("--days", type=int, default=400, help="days of history")
    result.add_argument("--a-day", type=int, default=6_000, help="interactions of a day, about")
    return result


def measure(given: argparse.Namespace, settings: Settings) -> None:
    size = Size(given.users, given.items, given.days, given.a_day)
    name = f"moments job, {size.num_users:,} users, {size.num_items:,} items, {size.num_a_day:,} a day"
    planned = [PlannedMeasurement(name, KIND, partial(measure_day, settings, size))]
    Measurements(given.out).make_missing(planned, [KIND], Conditions("made up", 1, machine()))
    found = Measurements(given.out).by_kind()[KIND][-1]
    say(f"moments_job_share {share_of_moments(found):.3f}; searches {found['search_ms']}")


if __name__ == "__main__":
    prepare()
    command.run(command.parse(parser(), None), measure)
