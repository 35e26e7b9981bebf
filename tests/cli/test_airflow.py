"""`make airflow`, really: few processes, a refresh that is late is told, and nothing is left after TERM."""

import os
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from grasp.environment import process_environment
from grasp.settings import ROOT

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def wait_for(what: Callable[[], object], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 180
    while not what():
        assert process.poll() is None, log.read_text()[-2000:]
        assert time.monotonic() < deadline, log.read_text()[-2000:]
        time.sleep(0.5)


def test_a_late_refresh_is_told_and_nothing_is_left_after_term(settings_with, webhook, tmp_path, ends_soon):
    java = Path(os.environ.get("GRASP_HOME", ROOT / ".grasp")) / "java"
    for table in ("interactions", "items"):
        (tmp_path / f"{table}.tsv").touch()
    # Every run is late after a third of a second. By the clock of 1998 its day is not over, so it does nothing.
    settings = settings_with(
        source=tmp_path, alert_webhook=webhook.url, refresh_deadline_hours=0.0001, airflow_port=free_port()
    )
    environment = process_environment(settings) | {
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": free_port(),
        "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": free_port(),
    }
    if "JAVA_HOME" not in environment and java.exists():
        environment["JAVA_HOME"] = str(java)
    log = tmp_path / "airflow.log"
    with log.open("wb") as output:
        command = ["make", "-o", "setup", "airflow", f"GRASP={sys.executable} -m cli.main"]  # what is set up stays
        process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
    try:
        wait_for(lambda: webhook.received, process, log)
        (alert,) = webhook.received
        assert (alert["event"], alert["dag"]) == ("late", "daily_refresh")
        with closing(sqlite3.connect(f"file:{settings.home}/airflow/airflow.db?mode=ro", uri=True)) as metadata:
            assert metadata.execute("SELECT content FROM dag_run_note").fetchall() == [(f"day {alert['day']}",)]
        started = psutil.Process(process.pid).children(recursive=True)
        assert len(started) < 16 + len(os.sched_getaffinity(0)), [each.cmdline() for each in started]
    finally:
        process.terminate()
        process.wait(timeout=60)
    assert all(ends_soon(each.pid) for each in started)
