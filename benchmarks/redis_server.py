"""A Redis of one's own for a while, and the production feature store on it."""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from grasp.settings import ROOT

PRODUCTION_FILE = ROOT / "feature_repo" / "feature_store.production.yaml"
START_SECONDS = 30


@contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """Address of a `redis-server` on a free port of the loopback interface, without persistence.

    Raises `FileNotFoundError` when the Debian package redis-server is missing, `TimeoutError` when it does not answer.
    """
    program = shutil.which("redis-server")
    if program is None:
        raise FileNotFoundError("redis-server is not installed (Debian package redis-server)")
    port = free_port()
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL) as server:
        try:
            wait_for_port(port)
            yield f"127.0.0.1:{port}"
        finally:
            server.terminate()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def wait_for_port(port: int, seconds: float = START_SECONDS) -> None:
    """Return once something listens there; raises `TimeoutError`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise TimeoutError(f"nothing listens on 127.0.0.1:{port} after {seconds:g} s")


def production_without_spark(file: Path, **changed: object) -> Path:
    """Write the production configuration with DuckDB for Spark, which is slow to start; `changed` replaces keys."""
    configuration = yaml.safe_load(PRODUCTION_FILE.read_text())
    file.write_text(yaml.safe_dump(configuration | {"offline_store": {"type": "duckdb"}} | changed))
    return file
