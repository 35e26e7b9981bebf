"""One user's features over HTTP: from the service and from Feast's own server, same Redis, same columns, same values.

    python -m benchmarks.serving.lookup [--users 2000] [--requests 1000]

Both are one process on the loopback interface and answer one client, which keeps its connections and asks them in
turns for the same users. It is a socket and no more: the standard library's client takes 0.4 ms of its own for an
answer. `feast serve` runs as it comes, but for its access log and for its habit of starting the worker anew after a
thousand requests, which would count against its p99. Ours is the service as in production, with its log and its
limits, but for a deadline so late that what a busy machine holds up counts with all of its time, as at Feast's;
`GET /v1/users/{id}/features` answers with the row as it is, vectors included, and Feast's server is asked for the same
columns.
"""

import argparse
import json
import re
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.core.redis_server import free_port, production_without_spark, redis_server, wait_for_port
from benchmarks.data.made_up_features import write_day
from benchmarks.serving.place import running_service
from feature_repo.materialise import materialise
from feature_repo.store import open_store
from grasp import tables
from grasp.days import end_of
from grasp.environment import process_environment
from grasp.feature_store import configuration
from grasp.manifest import Manifest
from grasp.settings import Settings
from grasp.versions import Versions, feast_project, feature_service
from serving.lookup.online_store import COLUMNS, FeastUserFeatures
from serving.releases.publication import choose_model, publish

DAY = "2026-01-05"
NUM_ITEMS = 100
NUM_WARM_UP = 50
START_SECONDS = 300
DEADLINE_MS = 30_000
FEATURES = [f"{tables.USER_FEATURES.name}:{name}" for name in COLUMNS]  # what Feast is asked for
FLOATS = ("semantic_embedding", "neighbour_embedding", "neighbour_similarities")
Ask = Callable[[str], Any]
LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
CLIENT_SECONDS = 60


def compare(settings: Settings, num_users: int, num_requests: int) -> dict[str, Any]:
    """p50 and p99 in milliseconds over HTTP and in this process, by name. Raises `ValueError` when answers differ."""
    with tempfile.TemporaryDirectory(dir=settings.home) as home, ExitStack() as running:
        place = Path(home)
        address = running.enter_context(redis_server(place))
        file = production_without_spark(place / "store.yaml")
        own = {"home": place, "lake": place / "lake", "releases": place / "releases"}
        changed = own | {
            "redis": address,
            "feature_store_yaml": file,
            "now": end_of(DAY),
            "lookup_timeout_ms": DEADLINE_MS,
        }
        at = settings.model_copy(update=changed)
        write_day(at, DAY, num_users, NUM_ITEMS)
        materialise(at, Versions(at).feature, DAY)
        publish(at, DAY, choose_model(at, None, None))
        chosen = [f"u{number}" for number in np.random.default_rng(0).integers(num_users, size=num_requests)]
        inside = measure(_in_process(at), chosen)
        asks = {"ours": running.enter_context(_our_server(at)), "feast": running.enter_context(_feast_server(at))}
        for user_id in chosen[:5]:
            _require_equal(asks["ours"](user_id), asks["feast"](user_id))
        over_http = measure(asks, chosen)
    return {
        "num_users": num_users,
        "num_requests": num_requests,
        "http_ms": over_http,
        "in_process_ms": inside,
        "times_faster_at_p50": over_http["feast"]["p50"] / over_http["ours"]["p50"],
        "p99_over_feast": over_http["ours"]["p99"] / over_http["feast"]["p99"],
    }


def measure(asks: dict[str, Ask], user_ids: list[str]) -> dict[str, dict[str, float]]:
    """Milliseconds of each, asked in turns."""
    for ask in asks.values():
        for user_id in user_ids[:NUM_WARM_UP]:
            ask(user_id)
    taken: dict[str, list[float]] = {name: [] for name in asks}
    for user_id in user_ids:
        for name, ask in asks.items():
            started = time.perf_counter()
            ask(user_id)
            taken[name].append(1000 * (time.perf_counter() - started))
    return {
        name: {"p50": float(np.quantile(each, 0.5)), "p99": float(np.quantile(each, 0.99))}
        for name, each in taken.items()
    }


def open_users(settings: Settings) -> FeastUserFeatures:
    versions = Versions(settings)
    service = feature_service(versions.feature)
    return FeastUserFeatures(settings, Manifest(DAY, versions.feature, versions.embedding, {}, service, None))


def _in_process(settings: Settings) -> dict[str, Ask]:
    version = Versions(settings).feature
    store = open_store(settings, version)
    return {
        "ours": open_users(settings).get,
        "feast": lambda user_id: store.get_online_features(FEATURES, [{"user_id": user_id}]).to_dict(),
    }


@contextmanager
def _our_server(settings: Settings) -> Iterator[Ask]:
    """The service with one worker, as it is started in production. An earlier row that stands in is no answer here."""
    with running_service(settings, 1) as service:
        client = Client(service.settings.port)

        def ask(user_id: str) -> bytes:
            content = client.ask("GET", f"/v1/users/{user_id}/features")
            if b'"store_problem":null' not in content:
                raise ValueError(f"the online store failed, or took longer than {DEADLINE_MS:,} ms")
            return content

        yield ask


@contextmanager
def _feast_server(settings: Settings) -> Iterator[Ask]:
    """`feast serve` over the project of the settings' feature version."""
    version = Versions(settings).feature
    repository = settings.home / "feast-repository"
    repository.mkdir()
    config = yaml.safe_load(configuration(settings)) | {"project": feast_project(version)}
    (repository / "feature_store.yaml").write_text(yaml.safe_dump(config))
    port = free_port()
    command = ["feast", "-c", str(repository), "serve", "--host", "127.0.0.1", "--port", str(port)]
    with _server(settings, [*command, "--no-access-log", "--max-requests", "0"], port) as client:

        def ask(user_id: str) -> Any:
            body = json.dumps({"features": FEATURES, "entities": {"user_id": [user_id]}})
            return client.ask("POST", "/get-online-features", body)

        yield ask


@contextmanager
def _server(settings: Settings, command: list[str], port: int) -> Iterator["Client"]:
    with (
        (settings.home / f"server-{port}.log").open("w") as log,
        subprocess.Popen(command, env=process_environment(settings), stdout=log, stderr=log) as server,
    ):
        try:
            wait_for_port(port, START_SECONDS)
            yield Client(port)
        finally:
            server.terminate()


class Client:
    """One connection that is kept. It reads answers that say how long they are, as both servers' do."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), CLIENT_SECONDS)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, method: str, path: str, body: str = "") -> bytes:
        """The body of the answer. Raises `ValueError` for any status but 200."""
        content = body.encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        self._socket.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        said = self._more()
        while b"\r\n\r\n" not in said:
            said += self._more()
        head_said, _, answer = said.partition(b"\r\n\r\n")
        length = LENGTH.search(head_said)
        while length and len(answer) < int(length[1]):
            answer += self._more()
        if not length or not head_said.startswith(b"HTTP/1.1 200 "):
            raise ValueError(f"{method} {path}: {(head_said + answer)[:300].decode(errors='replace')}")
        return answer

    def _more(self) -> bytes:
        received = self._socket.recv(1 << 16)
        if not received:
            raise ValueError("the server closed the connection")
        return received


def _require_equal(ours: bytes, feasts: bytes) -> None:
    """Both answers hold the same value in every column, floats within what a float of four bytes tells apart."""
    row, answer = json.loads(ours), json.loads(feasts)
    names = answer["metadata"]["feature_names"]
    names = names["val"] if isinstance(names, dict) else names
    values = {name: result["values"][0] for name, result in zip(names, answer["results"], strict=True)}
    if values.keys() != {"user_id", *COLUMNS}:
        raise ValueError(f"Feast's server answers with the columns {', '.join(values)}")
    for name, value in values.items():
        if name in FLOATS:
            is_equal = np.allclose(row[name], value, rtol=0, atol=1e-6)
        elif name == "computed_at":
            is_equal = datetime.fromisoformat(row[name]).timestamp() == value
        else:
            is_equal = row[name] == value
        if not is_equal:
            raise ValueError(f"{name} differs: {row[name]} and {value}")


def main() -> None:
    summary = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving.lookup", description=summary)
    parser.add_argument("--users", type=int, default=2000, help="made up, and put online")
    parser.add_argument("--requests", type=int, default=1000, help="of each server")
    arguments = parser.parse_args()
    print(json.dumps(compare(Settings.load(), arguments.users, arguments.requests), indent=1))


if __name__ == "__main__":
    main()
