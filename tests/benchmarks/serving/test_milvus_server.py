"""The Milvus server of the benchmarks: one that does not stop is not waited for."""

import time
from pathlib import Path

import psutil

from benchmarks.serving.milvus_server import ENVIRONMENT, FINISHED, milvus_server

# Started as `python -c SERVER FOLDER PORT`; it neither reads its input nor ends, and has a process of its own.
DEAF = """#!/bin/sh
sleep 100 &
echo $$ $! > "$3/processes"
echo ready
wait
"""


def test_a_server_that_does_not_stop_is_killed_with_what_it_started(tmp_path: Path):
    environment = tmp_path / ENVIRONMENT
    (environment / "bin").mkdir(parents=True)
    (environment / FINISHED).touch()
    python = environment / "bin" / "python"
    python.write_text(DEAF)
    python.chmod(0o755)

    with milvus_server(tmp_path, tmp_path, stop_seconds=0.2) as (_, stop):
        processes = [psutil.Process(int(pid)) for pid in (tmp_path / "processes").read_text().split()]
        started = time.monotonic()
        stop()

    assert time.monotonic() - started < 90
    deadline = time.monotonic() + 10
    while any(map(runs, processes)) and time.monotonic() < deadline:
        time.sleep(0.05)
    left = [each for each in processes if runs(each)]
    for each in left:
        each.kill()
    assert not left


def runs(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
