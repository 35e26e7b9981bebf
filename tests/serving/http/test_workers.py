"""The service as processes: two workers share metrics, follow a release under load, and stop without loss."""

import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter

import httpx
import psutil
import pyarrow.parquet as pq
import pytest

from grasp import partitions, tables
from grasp.environment import process_environment
from grasp.settings import ROOT
from grasp.versions import Versions
from serving.releases.manage import rollback

DAY, NEXT_DAY = "1998-03-01", "1998-03-02"
TOKEN = "all-roles-0123456789abcdef"
START_SECONDS = 300  # two workers that import torch, on a machine that has other things to do

pytestmark = pytest.mark.integration


@pytest.fixture
def running(settings_with, publish_day):
    """Settings, client and process of two workers over an empty online store on SQLite."""
    from feature_repo.materialise import open_for_writing

    first, second = publish_day(DAY, model=None), publish_day(NEXT_DAY, model=None)
    settings = settings_with(port=free_port(), serving_workers=2, lookup_timeout_ms=20_000)
    open_for_writing(settings, Versions(settings).feature, apply=True)
    environment = process_environment(settings) | {f"GRASP_TOKENS_{role}": TOKEN for role in ("SERVE", "OPERATE")}
    process = subprocess.Popen(
        [sys.executable, "-m", "serving.http.app"], cwd=ROOT, env=environment, stderr=subprocess.PIPE
    )
    said: list[bytes] = []
    reader = threading.Thread(target=lambda: said.extend(process.stderr or []), daemon=True)
    reader.start()
    headers = {"Authorization": f"Bearer {TOKEN}"}
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{settings.port}", headers=headers, timeout=60) as client:
            wait_until_ready(client, process, said)
            yield settings, client, process, (first, second), said
    finally:
        for each in [*workers_of(process), process] if process.poll() is None else []:
            each.kill()  # the workers as well: they outlive a parent that is killed
        process.wait()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def wait_until_ready(client: httpx.Client, process: subprocess.Popen, said: list[bytes], path: str = "/readyz") -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if client.get(path).status_code == 200:
                return
        except httpx.TransportError:
            pass  # it does not listen yet
        time.sleep(0.5)
    pytest.fail(b"".join(said[-40:]).decode())


def test_two_workers_follow_a_release_share_metrics_and_lose_no_row(running):
    settings, client, process, (first, second), said = running
    statuses, releases = Counter(), Counter()

    def ask(num: int) -> None:
        for number in range(num):
            response = httpx.post(
                f"{client.base_url}/v1/recommendations",
                json={"user_id": f"user {number}"},
                headers=dict(client.headers),
                timeout=60,
            )
            statuses[response.status_code] += 1
            releases[response.json()["release"]] += 1

    ask(10)
    assert set(releases) == {second}
    threads = [threading.Thread(target=ask, args=(30,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    rollback(settings, first)
    for thread in threads:
        thread.join()
    deadline = time.monotonic() + 60
    while first not in releases and time.monotonic() < deadline:
        ask(5)
    assert set(statuses) == {200}
    assert set(releases) == {first, second}

    text = client.get("/metrics").text
    counted = re.findall(r'^grasp_http_requests_total\{route="/v1/recommendations",status="200"\} (\S+)$', text, re.M)
    assert [float(each) for each in counted] == [sum(releases.values())]
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0 or process.returncode == -signal.SIGTERM

    day = settings.clock().date().isoformat()
    folder = partitions.partition_path(settings.lake, tables.SERVED_REQUESTS, None, day)
    logged = pq.read_table(folder, partitioning=None)["release_id"].to_pylist()
    assert Counter(logged) == releases
    assert TOKEN.encode() not in b"".join(said)
    assert not [each for each in said if b"user 1" in each]


def test_a_worker_that_is_stopped_for_a_while_is_not_killed(running):
    _, client, process, _, _ = running
    before = workers_of(process)

    for worker in before:
        worker.suspend()
    time.sleep(12)  # uvicorn by itself gives each of them five seconds
    for worker in before:
        worker.resume()

    assert client.get("/livez").status_code == 200
    assert workers_of(process) == before


def workers_of(process: subprocess.Popen) -> list[psutil.Process]:
    children = psutil.Process(process.pid).children()
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


def test_started_as_a_module_it_has_one_numeric_thread_too(settings_with):
    environment = process_environment(settings_with(port=free_port()))
    del environment["OMP_NUM_THREADS"]

    with (
        subprocess.Popen([sys.executable, "-m", "serving.http.app"], cwd=ROOT, env=environment) as server,
        httpx.Client(base_url=f"http://127.0.0.1:{environment['GRASP_PORT']}", timeout=60) as client,
    ):
        try:
            wait_until_ready(client, server, [], "/livez")
            found = psutil.Process(server.pid).environ()
        finally:
            server.kill()

    assert (found["OMP_NUM_THREADS"], found["GRASP_PORT"]) == ("1", environment["GRASP_PORT"])


def test_of_two_servers_started_together_the_second_ends_with_one_line(settings_with):
    environment = process_environment(settings_with(port=free_port(), serving_workers=2))
    command = [sys.executable, "-m", "serving.http.app"]
    servers = [
        subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    try:
        deadline = time.monotonic() + START_SECONDS
        while all(server.poll() is None for server in servers) and time.monotonic() < deadline:
            time.sleep(0.2)
        (ended,) = [server for server in servers if server.poll() is not None]
        (line,) = (ended.stderr or []).readlines()
        assert ended.returncode == 1
        assert (
            line == f"error: GRASP_PORT: 127.0.0.1:{environment['GRASP_PORT']} cannot be used: Address already in use\n"
        )
        (first,) = [server for server in servers if server is not ended]
        with httpx.Client(base_url=f"http://127.0.0.1:{environment['GRASP_PORT']}", timeout=60) as client:
            wait_until_ready(client, first, [], "/livez")
    finally:
        for server in servers:
            for each in [*workers_of(server), server] if server.poll() is None else []:
                each.kill()
            server.wait()


def test_without_tokens_it_refuses_other_addresses(settings_with):
    environment = process_environment(settings_with(host="0.0.0.0"))  # noqa: S104
    environment = {name: value for name, value in environment.items() if not name.startswith("GRASP_TOKENS_")}

    result = subprocess.run(
        [sys.executable, "-m", "serving.http.app"], cwd=ROOT, env=environment, capture_output=True, text=True
    )

    assert result.returncode == 1
    assert "GRASP_HOST=0.0.0.0 is reachable from other machines" in result.stderr
