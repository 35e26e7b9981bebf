"""What a load runs against: the service in processes of its own, and a Redis that can die and come back empty."""

import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from pydantic import SecretStr

from benchmarks.core.redis_server import RedisServer, free_port, production_without_spark
from benchmarks.serving.histograms import Buckets, bucket_counts
from benchmarks.serving.load import OK
from feature_repo.materialise import materialise
from grasp.environment import process_environment
from grasp.processes import end_with_parent
from grasp.settings import ROOT, Settings
from grasp.versions import Versions
from serving.answers.search import ENCODER_LOADED, LATE_MESSAGE
from serving.http.access import VARIABLES
from serving.telemetry.metrics import MULTIPROCESS_VARIABLE

START_SECONDS = 300  # a worker imports Feast and torch; much longer on a busy machine
STOP_SECONDS = 60  # the service itself takes up to thirty for what is under way
ANSWER_SECONDS = 10
ENCODER_SECONDS = 120  # for a worker's first search, which imports sentence-transformers and loads the encoder
LEAST_WORKER_MB = 100.0  # workers have torch in memory, the server's helper processes have not
# Access tokens, because this service is open, on the loopback interface; and the metrics folder, which Feast sets in
# the environment once it is imported.
NOT_INHERITED = frozenset({*VARIABLES.values(), MULTIPROCESS_VARIABLE})
LOADED = "is loaded, model"  # in the log of a worker
STAGE_METRIC = "grasp_stage_seconds"


@dataclass(frozen=True)
class RunningService:
    """A service that is ready to answer."""

    settings: Settings
    process: psutil.Process
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.settings.port}"

    def get(self, path: str, timeout_seconds: float = ANSWER_SECONDS) -> tuple[int, str]:
        """Status and body, whatever the status; 0 and the error when there is no answer."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=timeout_seconds) as answer:  # noqa: S310
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError as error:
            return 0, f"{type(error).__name__}: {error}"

    def worker_megabytes(self) -> dict[int, float]:
        """Resident memory of every worker, by process id."""
        found = {}
        started = self.process.children(recursive=True) if self.settings.serving_workers > 1 else [self.process]
        for process in started:
            try:
                megabytes = process.memory_info().rss / 1e6
            except psutil.NoSuchProcess:
                continue
            if megabytes >= LEAST_WORKER_MB:
                found[process.pid] = megabytes
        return found

    def stage_counts(self) -> Mapping[str, Buckets]:
        """The histogram of seconds of each stage of an answer, since the service started."""
        _, text = self.get("/metrics")
        return bucket_counts(text, STAGE_METRIC, "stage")


@contextmanager
def temporary_redis(settings: Settings) -> Iterator[tuple[RedisServer, Settings]]:
    """An empty Redis, and the settings with the production feature store on it."""
    settings.home.mkdir(parents=True, exist_ok=True)
    file = production_without_spark(settings.home / "store.yaml")
    server = RedisServer(settings.home)
    server.start()
    try:
        yield server, settings.model_copy(update={"redis": SecretStr(server.address), "feature_store_yaml": file})
    finally:
        server.kill()


@contextmanager
def running_service(settings: Settings, num_workers: int) -> Iterator[RunningService]:
    """The service as `python -m serving.http.app` starts it, on a free port; ready when the block begins.

    Raises `TimeoutError` with the end of its log when it does not become ready.
    """
    settings = settings.model_copy(update={"port": free_port(), "serving_workers": num_workers})
    log = settings.home / "service.log"
    environment = environment_of(settings)
    with log.open("w") as said, ExitStack() as ending:
        process = subprocess.Popen(
            [sys.executable, "-m", "serving.http.app"],
            cwd=ROOT,
            env=environment,
            stdout=said,
            stderr=said,
            preexec_fn=end_with_parent,  # noqa: PLW1509 - one system call, no lock
        )
        ending.callback(stop, process)
        service = RunningService(settings, psutil.Process(process.pid), log)
        _wait_until_ready(service, num_workers)
        yield service


def environment_of(settings: Settings) -> dict[str, str]:
    """The environment variables of the service."""
    return {name: value for name, value in process_environment(settings).items() if name not in NOT_INHERITED}


def _wait_until_ready(service: RunningService, num_workers: int) -> None:
    """Wait until the service is ready and all of its workers hold a release."""
    deadline = time.monotonic() + START_SECONDS
    last = "no answer"
    while time.monotonic() < deadline and service.process.is_running():
        status, last = service.get("/readyz")
        # Any worker may have answered, so the log is counted: each worker says that it has loaded the release.
        if status == OK and service.log.read_text().count(LOADED) >= num_workers:
            return
        time.sleep(0.2)
    tail = service.log.read_text()[-2000:]
    raise TimeoutError(f"the service is not ready after {START_SECONDS} s: {last}\n{tail}")


def load_encoders(service: RunningService) -> None:
    """Search until every worker has loaded its encoder, so that no measurement waits for one.

    Raises `ValueError` when searches are not answered.
    """
    settings = service.settings
    deadline = time.monotonic() + START_SECONDS
    while settings.search and service.log.read_text().count(ENCODER_LOADED) < settings.serving_workers:
        status, text = service.get("/v1/search?q=warm&k=1", ENCODER_SECONDS)
        if (status != OK and LATE_MESSAGE not in text) or time.monotonic() > deadline:
            raise ValueError(f"the service does not search: status {status}, {text}")


def stop(
    process: "subprocess.Popen[Any]", seconds: float = STOP_SECONDS, ask: Callable[[], object] | None = None
) -> None:
    """End a server by SIGTERM or by `ask`. One that does not end is killed with its workers."""
    workers = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    (ask or process.terminate)()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        for each in workers:  # they would outlive it
            with suppress(psutil.NoSuchProcess):
                each.kill()
        process.kill()
        process.wait()


def put_online(settings: Settings, day: str) -> None:
    """Materialise the day, whatever was online before."""
    materialise(settings, Versions(settings).feature, day, rollback=True)
