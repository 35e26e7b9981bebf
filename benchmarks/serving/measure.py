"""How fast the service answers and what it survives; what is measured is never measured again.

    python -m benchmarks.serving --data FOLDER --out docs/benchmarks/serving [--only recommend,open_loop]

Reads:   a folder of the data contract, or `movielens` for the one of `make setup`
Writes:  measurements.jsonl, report.md with a plot, and summary.json in --out; a lake, a ranker and releases of its own
         below GRASP_HOME

Every measurement is one line: delete the line to measure again. The service runs as in production, in processes of its
own with a Redis of its own, and is asked by wrk, a compiled tool, beside it on the same machine.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.core import invocation
from benchmarks.core.machine import machine
from benchmarks.core.measurements import Conditions, Job, Measurements, chosen_kinds, measure_missing
from benchmarks.core.redis_server import RedisServer
from benchmarks.data import datasets
from benchmarks.data.datasets import BenchmarkData
from benchmarks.data.readers import MOVIELENS, source_folder
from benchmarks.serving import lookup as serving_lookup
from benchmarks.serving import materialise_speed, milvus_server
from benchmarks.serving import ranker as serving_ranker
from benchmarks.serving import rates as serving_load
from benchmarks.serving import release as serving_release
from benchmarks.serving import report as serving_report
from benchmarks.serving.fuzz import fuzz
from benchmarks.serving.load import bodies_of, require_wrk
from benchmarks.serving.place import RunningService, load_encoders, put_online, redis_of_its_own, running_service
from benchmarks.serving.soak import soak
from benchmarks.serving.switch import switch
from grasp.progress import say
from grasp.settings import Settings, SettingsError
from spark_jobs.models.encoder import Encoder, load_encoder
from spark_jobs.source.reader import SourceError

WITHOUT_WRK = {"added", "million", "materialise", "lookup", "fuzz"}
NUM_ASKED_USERS = 4000  # more than the rows that a worker keeps for when the store fails


class Bench:
    """The release that is asked, made when it is first needed, and the service that holds it."""

    def __init__(self, settings: Settings, data: BenchmarkData, given: argparse.Namespace) -> None:
        self._settings, self._data, self._given = settings, data, given
        self._place = settings.home / "benchmarks" / "serving" / data.checksum[:12]
        users = data.training_set.user_ids
        chosen = np.random.default_rng(0).permutation(len(users))[:NUM_ASKED_USERS]
        self.bodies = bodies_of([users[row] for row in chosen])

    @cached_property
    def _released(self) -> tuple[serving_release.Subject, Path]:
        """What is released, and the ranker's folder; the first release is in force afterwards."""
        given, settings = self._given, serving_release.settings_of(self._settings, self._place)
        of = serving_release.subject(given.data, self._data, given.cache, settings.hidden_attributes)
        serving_release.write_lake(settings, of)
        model = serving_release.train(settings, of, given.epochs)
        serving_release.publish_marked(settings, of, model, serving_release.FIRST)
        return of, model

    @contextmanager
    def service(self, num_workers: int, **changed: Any) -> Iterator[tuple[RunningService, RedisServer]]:
        """The service with a Redis that holds the day's features."""
        _ = self._released
        at = serving_release.settings_of(self._settings, self._place, **changed)
        with redis_of_its_own(at) as (redis, settings):
            put_online(settings, serving_release.DAY)
            with running_service(settings, num_workers) as service:
                yield service, redis

    def large_catalogue(self) -> dict[str, Any]:
        """A catalogue of copies of this data's items, as a ranker trained on it has them."""
        name = self._given.data.resolve().name
        factors = serving_ranker.trained_factors(self._data.training_set, name, self._place)
        return serving_ranker.large_catalogue(factors, self._given.catalogue_items)

    def recommend(self) -> dict[str, Any]:
        with self.service(1) as (service, _):
            found = serving_load.one_client(service, self.bodies, self._given.closed_seconds)
        return found | {"num_items": len(self._data.training_set.item_ids)}

    def open_loop(self) -> dict[str, Any]:
        with self.service(self._given.workers) as (service, _):
            return serving_load.fixed_rate(service, self.bodies, self._given.rate, self._given.open_seconds)

    def highest_rate(self) -> dict[str, Any]:
        with self.service(self._given.workers) as (service, _):
            return serving_load.highest_rate(service, self.bodies, self._given.rate_seconds)

    def switch(self) -> dict[str, Any]:
        of, model = self._released
        with self.service(self._given.workers) as (service, _):
            return switch(service, of, model, self.bodies, self._given.switch_seconds)

    def soak(self, rate: Callable[[], float]) -> dict[str, Any]:
        """`rate` is asked when it is the soak's turn: it depends on what was measured before."""
        per_second, (of, _) = rate(), self._released
        with ExitStack() as running:
            changed: dict[str, Any] = {}
            stop = None
            if self._given.milvus:
                folder = running.enter_context(tempfile.TemporaryDirectory(prefix="milvus-"))
                uri, stop = running.enter_context(milvus_server.milvus_server(self._settings.home, Path(folder)))
                changed = {"milvus_uri": uri}
                milvus_server.fill(self._settings.model_copy(update=changed), of)
            service, redis = running.enter_context(self.service(self._given.workers, **changed))
            load_encoders(service)
            return soak(service, redis, self.bodies, per_second, 60 * self._given.soak_minutes, stop_milvus=stop)

    def fuzz(self) -> dict[str, Any]:
        with self.service(1) as (service, _):
            load_encoders(service)
            return fuzz(service.url, self._given.examples)


def jobs(bench: Bench, measurements: Measurements, settings: Settings, given: argparse.Namespace) -> list[Job]:
    """In the order in which they are made; the soak needs the highest rate before."""
    online = partial(materialise_speed.compare, settings, given.materialise_users, given.materialise_rounds)
    lookup = partial(serving_lookup.compare, settings, given.lookup_users, given.lookup_requests)
    soak_rate = partial(rate_of_soak, measurements, given.soak_rate)
    return [
        Job("GRASP beside its backbone", "added", serving_ranker.added_costs),
        Job(f"large catalogue of {given.catalogue_items:,} items", "million", bench.large_catalogue),
        Job(f"{given.materialise_users:,} users put online", "materialise", online),
        Job(f"lookup over HTTP from the service, {given.lookup_requests} requests", "lookup", lookup),
        Job(f"recommend, {given.closed_seconds:g} s", "recommend", bench.recommend),
        Job(f"{given.rate:g} a second for {given.open_seconds:g} s", "open_loop", bench.open_loop),
        Job(f"highest rate, {given.rate_seconds:g} s each", "highest_rate", bench.highest_rate),
        Job(f"switch, {given.switch_seconds:g} s", "switch", bench.switch),
        Job(f"fuzz, {given.examples} examples", "fuzz", bench.fuzz),
        Job(soak_name(given), "soak", partial(bench.soak, soak_rate)),
    ]


def soak_name(given: argparse.Namespace) -> str:
    """A soak that loses no Milvus is another measurement than one that does."""
    return f"soak, {given.soak_minutes:g} minutes{'' if given.milvus else ' without Milvus'}"


def rate_of_soak(measurements: Measurements, given: float | None) -> float:
    """The given rate, or half of the highest that held. Raises `ValueError` when none was measured."""
    if given:
        return given
    found = [each["highest_rate"] for each in measurements.of("highest_rate")]
    if not found or not found[-1]:
        raise ValueError("no rate held yet: measure highest_rate first, or give --soak-rate")
    return float(found[-1]) / 2


def run_all(
    given: argparse.Namespace, settings: Settings, open_encoder: Callable[[Path, int], Encoder] = load_encoder
) -> None:
    """Make what is missing of the wanted measurements, each written as soon as it is made, and the report."""
    if set(given.only) - WITHOUT_WRK:
        require_wrk()
    given.data = source_folder(given.data, settings)
    data = datasets.load(given.data, cache=given.cache, settings=settings, open_encoder=open_encoder)
    measurements, conditions = Measurements(given.out), Conditions(data.checksum, 1, machine())
    measurements.require(conditions)
    every = jobs(Bench(settings, data, given), measurements, settings, given)
    measure_missing(every, given.only, measurements, conditions)
    serving_report.write(given.out, given.command)
    say(f"report: {given.out / serving_report.REPORT_FILE}")


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="python -m benchmarks.serving", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = serving_report.KINDS
    result.add_argument("--data", required=True, help=f"folder of the data contract, or {MOVIELENS}")
    result.add_argument("--out", type=Path, required=True, help="folder of the report")
    result.add_argument("--cache", type=Path, help="vectors of texts (default: below GRASP_HOME)")
    result.add_argument("--only", default=",".join(kinds), help=f"of {', '.join(kinds)}; the others another time")
    result.add_argument("--epochs", type=int, default=serving_release.NUM_EPOCHS, help="of the ranker that is served")
    result.add_argument("--workers", type=int, default=2, help="processes of the service under a load")
    result.add_argument("--closed-seconds", type=float, default=60.0, help="of one client that waits")
    result.add_argument("--rate", type=float, default=250.0, help="requests a second of the open loop")
    result.add_argument("--open-seconds", type=float, default=60.0, help="of the open loop")
    result.add_argument("--rate-seconds", type=float, default=20.0, help="that a rate has to hold")
    result.add_argument("--switch-seconds", type=float, default=210.0, help="of load while releases are switched")
    result.add_argument("--soak-minutes", type=float, default=30.0, help="of the soak")
    result.add_argument("--soak-rate", type=float, help="requests a second (default: half of the highest that held)")
    result.add_argument("--no-milvus", dest="milvus", action="store_false", help="no Milvus server that the soak loses")
    result.add_argument("--catalogue-items", type=int, default=serving_ranker.NUM_LARGE, help="of the large catalogue")
    result.add_argument("--examples", type=int, default=100, help="made-up requests of each operation, at most")
    result.add_argument("--materialise-users", type=int, default=10_000, help="of a day that is put online")
    result.add_argument("--materialise-rounds", type=int, default=3, help="days that are put online in each way")
    result.add_argument("--lookup-users", type=int, default=2000, help="of the lookup against Feast's server")
    result.add_argument("--lookup-requests", type=int, default=1000, help="of the lookup against Feast's server")
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    given = parser().parse_args(arguments)
    try:
        given.command = invocation.command(parser(), given, left_out={"cache", "only"})
        settings = Settings.load()
        given.only = chosen_kinds(given.only, serving_report.KINDS)
        given.cache = given.cache or settings.home / "benchmarks"
        run_all(given, settings)
    except (SettingsError, SourceError, FileNotFoundError, TimeoutError, ValueError) as error:
        sys.exit(f"error: {error}")
