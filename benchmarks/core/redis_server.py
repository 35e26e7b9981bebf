"""A temporary Redis, and the production feature store on it."""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from grasp.processes import end_with_parent
from grasp.settings import ROOT

PRODUCTION_FILE = ROOT / "feature_repo" / "feature_store.production.yaml"
START_SECONDS = 30


class RedisServer:
    """A `redis-server` on a port of the loopback interface. It keeps nothing on disk: a restart finds it empty."""

    def __init__(self, folder: Path) -> None:
        """Raises `FileNotFoundError` when the Debian package redis-server is missing."""
        program = shutil.which("redis-server")
        if program is None:
            raise FileNotFoundError("redis-server is not installed: `apt-get install -y redis-server` (Debian, Ubuntu)")
        self._folder, self._port = folder, free_port()
        self._command = [program, "--port", str(self._port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    @property
    def pid(self) -> int:
        """Process id. Raises `ProcessLookupError` while it does not run."""
        if self._process is None:
            raise ProcessLookupError("the Redis does not run")
        return self._process.pid

    def start(self) -> None:
        """Raises `TimeoutError` when it does not answer."""
        self._process = subprocess.Popen(
            self._command,
            cwd=self._folder,
            stdout=subprocess.DEVNULL,
            preexec_fn=end_with_parent,  # noqa: PLW1509 - one system call, no lock
        )
        wait_for_port(self._port)

    def kill(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None


@contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """Address of a Redis that runs as long as the block. Raises as `RedisServer` and its `start` do."""
    server = RedisServer(folder)
    server.start()
    try:
        yield server.address
    finally:
        server.kill()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def wait_for_port(port: int, seconds: float = START_SECONDS) -> None:
    """Wait until something listens there; raises `TimeoutError`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise TimeoutError(f"nothing listens on 127.0.0.1:{port} after {seconds:g} s")


def production_without_spark(file: Path, **changed: object) -> Path:
    """Write the production configuration with DuckDB instead of Spark, which starts slowly. `changed` replaces keys."""
    configuration = yaml.safe_load(PRODUCTION_FILE.read_text())
    file.write_text(yaml.safe_dump(configuration | {"offline_store": {"type": "duckdb"}} | changed))
    return file
