"""Both DAGs, run once through Airflow on a slice of MovieLens, while the server answers."""

import gzip
import json
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cli.dag_run import StageTime, run_dag
from grasp.days import end_of, start_of
from grasp.environment import process_environment
from grasp.settings import ROOT, Settings

CUTOFF, LATEST = "1998-02-28", "1998-03-15"
NUM_USERS, NUM_ITEMS, LLM_BUDGET = 60, 200, 6


def read_tsv(file: Path) -> list[list[str]]:
    with gzip.open(file, "rt") as lines:
        return [line.rstrip("\n").split("\t") for line in lines]


def write_slice(source: Path, target: Path) -> None:
    """The 200 most popular items and 60 users who have both a past and a future around the cutoff; a row to refuse."""
    header, *rows = read_tsv(source / "interactions.tsv.gz")
    user, item, moment = (header.index(name) for name in ("user_id", "item_id", "timestamp"))
    rows = [row for row in rows if float(row[moment]) <= end_of(LATEST).timestamp()]
    items = {each for each, _ in Counter(row[item] for row in rows).most_common(NUM_ITEMS)}
    kept: dict[str, list[list[str]]] = defaultdict(list)
    for row in rows:
        if row[item] in items:
            kept[row[user]].append(row)
    cut = start_of(CUTOFF).timestamp() + 86_400

    def spans_the_cutoff(user_rows: list[list[str]]) -> bool:
        before = sum(float(row[moment]) < cut for row in user_rows)
        return 5 <= before < len(user_rows)

    both = sorted(each for each, own in kept.items() if spans_the_cutoff(own))
    past = sorted(each for each, own in kept.items() if len(own) >= 5 and each not in both)
    users = set([*both, *past][:NUM_USERS])
    chosen = [row for each in sorted(users) for row in kept[each]]
    damaged = list(chosen[-1])
    damaged[item] = "no such item"
    target.mkdir(parents=True)
    with (target / "interactions.tsv").open("w") as file:
        file.writelines("\t".join(row) + "\n" for row in [header, *chosen, damaged])
    with gzip.open(source / "items.jsonl.gz", "rt") as lines, (target / "items.jsonl").open("w") as file:
        file.writelines(line for line in lines if str(json.loads(line)["item_id"]) in items)
    header, *rows = read_tsv(source / "users.tsv.gz")
    with (target / "users.tsv").open("w") as file:
        file.writelines("\t".join(row) + "\n" for row in [header, *(row for row in rows if row[0] in users)])


@dataclass
class Run:
    """What happened: where it is, how long stages took, what the server said meanwhile."""

    settings: Settings
    times: dict[str, list[StageTime]] = field(default_factory=dict)
    answers: list[dict[str, object]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @property
    def log(self) -> Path:
        return self.settings.home / "logs" / "e2e.log"

    def refresh(self, day: str, **params: object) -> list[StageTime]:
        return run_dag(self.settings, "daily_refresh", {"day": day, **params}, self.log)

    def retrain(self, **params: object) -> list[StageTime]:
        conf = {"day": LATEST, "cutoff": CUTOFF, "recipe": "sasrec_grasp", **params}
        return run_dag(self.settings, "retrain", conf, self.log)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def post(url: str, body: dict[str, object]) -> dict[str, object]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})  # noqa: S310
    with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310 - loopback only
        return json.load(response)


def wait_until_ready(base: str, process: subprocess.Popen, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process.poll() is None, "the server ended"
        try:
            urllib.request.urlopen(f"{base}/readyz", timeout=5).close()  # noqa: S310
            return
        except OSError:  # it listens from the start, and answers once a release is loaded
            time.sleep(0.5)
    raise AssertionError("the server did not get ready")


def ask_until(run: Run, base: str, stop: threading.Event) -> None:
    """One request a second for as long as the refresh runs."""
    while not stop.wait(1):
        try:
            run.answers.append(post(f"{base}/v1/recommendations", {"user_id": "1", "k": 5}))
        except Exception as error:  # noqa: BLE001 - the test looks at all of them
            run.errors.append(repr(error))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, model_folders: tuple[Path, Path]) -> Iterator[Run]:
    home = tmp_path_factory.mktemp("e2e")
    source = model_folders[0].parents[1] / "source" / "movielens-100k"
    write_slice(source, home / "source")
    settings = Settings.load(
        {
            "GRASP_HOME": str(home),
            "GRASP_SOURCE": str(home / "source"),
            "GRASP_LLM": str(model_folders[0]),
            "GRASP_ENCODER": str(model_folders[1]),
            "GRASP_NOW": end_of(LATEST).isoformat(),
            # Both days count as fresh here, so that the first one is published and served while the second is made.
            "GRASP_MAX_FEATURE_AGE_HOURS": "720",
            "GRASP_LOOKUP_TIMEOUT_MS": "5000",  # busy cores may be slower than a service should be
            "GRASP_LLM_BUDGET": str(LLM_BUDGET),
            "GRASP_PORT": str(free_port()),
            "GRASP_AIRFLOW_PORT": str(free_port()),
            "GRASP_SPARK_MEMORY": "2g",
            "GRASP_TASK_RETRIES": "0",
        }
    )
    run = Run(settings)
    environment = process_environment(settings)
    subprocess.run(["airflow", "db", "migrate"], env=environment, check=True, capture_output=True)
    run.times["cutoff"] = run.refresh(CUTOFF)
    server = subprocess.Popen([sys.executable, "-m", "serving.http.app"], cwd=ROOT, env=environment)
    stop = threading.Event()
    base = f"http://127.0.0.1:{settings.port}"
    asking = threading.Thread(target=ask_until, args=(run, base, stop))
    try:
        wait_until_ready(base, server)
        asking.start()
        run.times["latest"] = run.refresh(LATEST)
        run.times["retrain"] = run.retrain(force=True)
        assert asking.is_alive()
    finally:
        stop.set()
        if asking.is_alive():
            asking.join()
        server.terminate()
        server.wait(timeout=30)
    yield run
