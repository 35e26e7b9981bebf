"""What is done to a running service before it is measured, with a service that is only played."""

import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from benchmarks.serving.running_service import ENCODER_SECONDS, environment_of, load_encoders, stop
from grasp.settings import Settings
from serving.answers.search import ENCODER_LOADED


@dataclass
class PlayedService:
    """Two workers that take turns: each says in the log that its encoder is loaded when it is first asked."""

    settings: Settings
    log: Path
    status: int = 200
    asked: list[float] = field(default_factory=list)

    def get(self, path: str, timeout_seconds: float) -> tuple[int, str]:
        assert path.startswith("/v1/search?q=")
        self.asked.append(timeout_seconds)
        if len(self.asked) in (1, 3):  # the second search meets the worker of the first one
            with self.log.open("a") as log:
                log.write(f"{ENCODER_LOADED}\n")
        return self.status, "what it says"


@pytest.fixture
def play(settings_with, tmp_path):
    def start(status=200, **changed):
        log = tmp_path / "service.log"
        log.touch()
        return PlayedService(settings_with(serving_workers=2, **changed), log, status)

    return start


def test_a_service_of_its_own_inherits_neither_tokens_nor_where_others_keep_their_metrics(settings, monkeypatch):
    for name in ("GRASP_TOKENS_READ", "PROMETHEUS_MULTIPROC_DIR", "SOMETHING_ELSE"):
        monkeypatch.setenv(name, "of this process")

    inherited = environment_of(settings)

    assert [name for name, value in inherited.items() if value == "of this process"] == ["SOMETHING_ELSE"]


def test_every_worker_is_searched_with_patience_until_it_has_its_encoder(play):
    service = play()

    load_encoders(service)

    assert service.asked == [ENCODER_SECONDS] * 3


def test_a_service_without_search_is_not_asked(play):
    service = play(search=False)

    load_encoders(service)

    assert service.asked == []


def test_a_service_that_cannot_search_is_named(play):
    with pytest.raises(ValueError, match="status 503, what it says"):
        load_encoders(play(status=503))


DEAF = """
import signal, subprocess
signal.signal(signal.SIGTERM, signal.SIG_IGN)
worker = subprocess.Popen(["sleep", "300"])
print(worker.pid, flush=True)
worker.wait()
"""


def test_a_service_that_does_not_end_is_killed_with_its_workers():
    with subprocess.Popen([sys.executable, "-c", DEAF], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        worker = psutil.Process(int(process.stdout.readline()))

        stop(process, seconds=0.2)

        deadline = time.monotonic() + 10
        while worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
            time.sleep(0.05)
        left = worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE
        if left:
            worker.kill()
        assert not left
