"""How fast the service answers, and what it survives.

    python -m benchmarks.serving --data FOLDER --out docs/benchmarks/serving [--only recommend,open_loop]

Reads:   a folder of the data contract, or `movielens` for the one of `make setup`
Writes:  measurements.jsonl, report.md with a plot, and summary.json in --out; a lake, a ranker and releases of its own
         below GRASP_HOME

The service runs as in production, in processes of its own with a Redis of its own. wrk, a compiled tool, asks it from
the same machine. Every measurement is one line of measurements.jsonl and is never made again: delete its line to
measure again.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.core import command
from benchmarks.core.machine import machine
from benchmarks.core.redis_server import RedisServer
from benchmarks.core.store import Conditions, Measurements, PlannedMeasurement
from benchmarks.data import datasets
from benchmarks.data.datasets import BenchmarkData
from benchmarks.data.readers import source_folder
from benchmarks.serving import milvus_server, rates, release
from benchmarks.serving.fresh_costs import fresh_costs
from benchmarks.serving.load import bodies_of, require_wrk
from benchmarks.serving.report import KINDS, REPORT
from benchmarks.serving.running_service import (
    RunningService,
    load_encoders,
    put_online,
    running_service,
    temporary_redis,
)
from benchmarks.serving.soak import soak
from benchmarks.serving.switch import switch
from grasp.settings import Settings
from spark_jobs.models.encoder import Encoder, load_encoder

NUM_ASKED_USERS = 4000  # more than the rows that a worker keeps for a store that fails
WITHOUT_WRK = {"fresh"}  # kinds of measurements that ask no running service


class ServiceBenchmark:
    """The release that is asked, made when it is first needed, and what is measured of the service that holds it."""

    def __init__(self, settings: Settings, data: BenchmarkData, given: argparse.Namespace) -> None:
        self._settings, self._data, self._given = settings, data, given
        self._folder = settings.home / "benchmarks" / "serving" / data.checksum[:12]
        users = data.training_set.user_ids
        chosen = np.random.default_rng(0).permutation(len(users))[:NUM_ASKED_USERS]
        self.bodies = bodies_of([users[row] for row in chosen])

    @cached_property
    def _released(self) -> tuple[release.ReleaseContent, Path]:
        """What is released, and the ranker's folder; the first release is in force afterwards."""
        given, settings = self._given, release.settings_of(self._settings, self._folder)
        content = release.release_content(given.data, self._data, given.cache, settings.hidden_attributes)
        release.write_lake(settings, content)
        model = release.train(settings, content, given.epochs)
        release.publish_marked(settings, content, model, release.FIRST)
        return content, model

    @contextmanager
    def service(self, num_workers: int, **changed: Any) -> Iterator[tuple[RunningService, RedisServer]]:
        """The service, and its Redis, which holds the day's features."""
        _ = self._released
        with temporary_redis(release.settings_of(self._settings, self._folder, **changed)) as (redis, settings):
            put_online(settings, release.DAY)
            with running_service(settings, num_workers) as service:
                yield service, redis

    def recommend(self) -> dict[str, Any]:
        with self.service(1) as (service, _):
            found = rates.one_client(service, self.bodies, self._given.closed_seconds)
        return found | {"num_items": len(self._data.training_set.item_ids)}

    def open_loop(self) -> dict[str, Any]:
        with self.service(self._given.workers) as (service, _):
            return rates.fixed_rate(service, self.bodies, self._given.rate, self._given.open_seconds)

    def highest_rate(self) -> dict[str, Any]:
        with self.service(self._given.workers) as (service, _):
            return rates.highest_rate(service, self.bodies, self._given.rate_seconds)

    def switch(self) -> dict[str, Any]:
        content, model = self._released
        with self.service(self._given.workers) as (service, _):
            return switch(service, content, model, self.bodies, self._given.switch_seconds)

    def soak(self, rate: Callable[[], float]) -> dict[str, Any]:
        """`rate` is a function because it depends on what was measured before."""
        per_second, (content, _) = rate(), self._released
        with ExitStack() as running:
            changed: dict[str, Any] = {}
            stop_milvus = None
            if self._given.milvus:
                folder = running.enter_context(tempfile.TemporaryDirectory(prefix="milvus-"))
                server = milvus_server.milvus_server(self._settings.home, Path(folder))
                uri, stop_milvus = running.enter_context(server)
                changed = {"milvus_uri": uri}
                milvus_server.fill(self._settings.model_copy(update=changed), content)
            service, redis = running.enter_context(self.service(self._given.workers, **changed))
            load_encoders(service)
            seconds = 60 * self._given.soak_minutes
            return soak(service, redis, self.bodies, per_second, seconds, stop_milvus=stop_milvus)


def planned(
    benchmark: ServiceBenchmark, measurements: Measurements, given: argparse.Namespace
) -> list[PlannedMeasurement]:
    """In this order: the soak needs the highest rate."""
    soak_rate = partial(rate_of_soak, measurements, given.soak_rate)
    listed: list[tuple[str, str, Callable[[], dict[str, Any]]]] = [
        ("what takers, votes and moments cost", "fresh", fresh_costs),
        (f"recommend, {given.closed_seconds:g} s", "recommend", benchmark.recommend),
        (f"{given.rate:g} a second for {given.open_seconds:g} s", "open_loop", benchmark.open_loop),
        (f"highest rate, {given.rate_seconds:g} s each", "highest_rate", benchmark.highest_rate),
        (f"switch, {given.switch_seconds:g} s", "switch", benchmark.switch),
        (soak_name(given), "soak", partial(benchmark.soak, soak_rate)),
    ]
    return [PlannedMeasurement(*each) for each in listed]


def soak_name(given: argparse.Namespace) -> str:
    """A soak without Milvus is another measurement."""
    return f"soak, {given.soak_minutes:g} minutes{'' if given.milvus else ' without Milvus'}"


def rate_of_soak(measurements: Measurements, given: float | None) -> float:
    """The given rate, or half of the highest that held. Raises `ValueError` when none was measured."""
    if given:
        return given
    found = [each["highest_rate"] for each in measurements.of("highest_rate")]
    if not found or not found[-1]:
        raise ValueError("no rate held yet: measure highest_rate first, or give --soak-rate")
    return float(found[-1]) / 2


def measure(
    given: argparse.Namespace, settings: Settings, open_encoder: Callable[[Path, int], Encoder] = load_encoder
) -> None:
    """Make the wanted measurements that are missing, and write the report."""
    if set(given.only) - WITHOUT_WRK:
        require_wrk()
    given.data = source_folder(given.data, settings)
    data = datasets.load(given.data, cache=given.cache, settings=settings, open_encoder=open_encoder)
    measurements, conditions = Measurements(given.out), Conditions(data.checksum, 1, machine())
    measurements.require(conditions)
    every = planned(ServiceBenchmark(settings, data, given), measurements, given)
    measurements.make_missing(every, given.only, conditions)
    REPORT.write(given.out, given.command)


def parser() -> argparse.ArgumentParser:
    result = command.new_parser("benchmarks.serving", __doc__, KINDS, has_data=True)
    result.add_argument("--epochs", type=int, default=release.NUM_EPOCHS, help="of the ranker that is served")
    result.add_argument("--workers", type=int, default=2, help="processes of the service under a load")
    result.add_argument("--closed-seconds", type=float, default=60.0, help="of one client that waits for each answer")
    result.add_argument("--rate", type=float, default=250.0, help="requests a second of the open loop")
    result.add_argument("--open-seconds", type=float, default=60.0, help="of the open loop")
    result.add_argument("--rate-seconds", type=float, default=20.0, help="for which a rate has to hold")
    result.add_argument("--switch-seconds", type=float, default=210.0, help="of load while releases are switched")
    result.add_argument("--soak-minutes", type=float, default=30.0, help="of the soak")
    result.add_argument("--soak-rate", type=float, help="requests a second (default: half of the highest that held)")
    result.add_argument("--no-milvus", dest="milvus", action="store_false", help="run the soak without a Milvus server")
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    command.run(command.parse(parser(), arguments), measure)
