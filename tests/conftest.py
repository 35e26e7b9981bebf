"""What many tests share: settings of a temporary home, one Spark session for the whole run, a lake."""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import NoReturn

import prometheus_client  # noqa: F401 - before Feast: it decides at import whether several processes count together
import pytest
from pydantic import SecretStr

from grasp.environment import process_environment
from grasp.settings import ROOT, Settings

# `make test` runs under the settings of the working copy; the tests bring their own Airflow and Spark.
for _name in [name for name in os.environ if name.startswith(("AIRFLOW", "SPARK_", "PYSPARK_"))]:
    del os.environ[_name]

# A moment read by the local clock comes out wrong in this zone, in the tests' processes and in those they start.
os.environ.setdefault("TZ", "Asia/Kathmandu")
time.tzset()

# One Spark session runs thousands of small queries, most of them many times. It keeps what it compiled and forgets
# what it ran; without room, the JVM would spend a fifth of its time on throwing compiled code away.
LONG_SESSION = {
    "spark.sql.codegen.cache.maxEntries": "5000",
    "spark.driver.defaultJavaOptions": "-XX:ReservedCodeCacheSize=256m",
    "spark.sql.ui.retainedExecutions": "10",
    "spark.ui.retainedJobs": "10",
    "spark.ui.retainedStages": "10",
    "spark.ui.retainedTasks": "100",
}

FIXED_NOW = "1998-03-02T00:00:00Z"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first: the run of both DAGs takes as long as all other tests together, then whole reports."""
    items.sort(key=lambda item: ("tests/e2e/" not in item.nodeid, item.get_closest_marker("e2e") is None))


def make_settings(home: Path, **changed: object) -> Settings:
    """Settings of a throw-away home with a tiny model folder of each kind, so that versions have a name."""
    for name in ("llm", "encoder"):
        folder = home / "models" / f"tiny-{name}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text("{}")
    places: dict[str, object] = {
        "home": str(home),
        "now": FIXED_NOW,
        "llm": str(home / "models" / "tiny-llm"),
        "encoder": str(home / "models" / "tiny-encoder"),
    }
    return Settings(**(places | changed))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return make_settings(tmp_path)


@pytest.fixture
def settings_with(tmp_path: Path) -> Callable[..., Settings]:
    """`settings_with(num_neighbours=2)`: the same home, some settings changed."""
    return lambda **changed: make_settings(tmp_path, **changed)


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """One Spark session for the whole run: starting it costs about fifteen seconds."""
    ours = process_environment(make_settings(tmp_path_factory.mktemp("spark")))
    for name in ("PYSPARK_PYTHON", "SPARK_SUBMIT_OPTS", "SPARK_LOCAL_IP", "PYTHONPATH", "OMP_NUM_THREADS"):
        os.environ[name] = ours[name]
    os.environ["OMP_WAIT_POLICY"] = "passive"
    from pyspark.sql import SparkSession

    from spark_jobs.job import spark_session

    builder = SparkSession.builder.master("local[2]").config("spark.sql.shuffle.partitions", "2")
    for name, value in LONG_SESSION.items():
        builder.config(name, value)
    builder.config("spark.sql.warehouse.dir", str(tmp_path_factory.mktemp("warehouse"))).getOrCreate()
    session = spark_session("tests")
    yield session
    session.stop()


@pytest.fixture
def lake(spark: object, settings: Settings) -> object:
    from spark_jobs.storage.lake import Lake

    return Lake(spark, settings)


@pytest.fixture
def environment(settings: Settings) -> dict[str, str]:
    """Variables for a child process that works on the temporary home."""
    return process_environment(settings)


def _is_running(pid: int) -> bool:
    """False for a process that is gone or only waits to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def ends_soon() -> Callable[[int], bool]:
    """`ends_soon(pid)`: whether a process is gone within ten seconds."""

    def wait(pid: int) -> bool:
        deadline = time.monotonic() + 10
        while _is_running(pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        return not _is_running(pid)

    return wait


def _missing(reason: str) -> NoReturn:
    """Skip by name, or fail where everything is required (CI)."""
    if os.environ.get("GRASP_REQUIRE_ALL") == "1":
        pytest.fail(f"{reason}, and GRASP_REQUIRE_ALL=1")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def require_program() -> Callable[[str, str], str]:
    """`require_program("redis-server", "redis-server")`: path of a program from a Debian package."""

    def find(name: str, package: str) -> str:
        return shutil.which(name) or _missing(f"{name} is not installed (Debian package {package})")

    return find


@pytest.fixture(scope="session")
def missing() -> Callable[[str], NoReturn]:
    """`missing(reason)` skips what cannot run here, or fails it where everything has to run."""
    return _missing


@pytest.fixture(scope="session")
def redis(require_program: Callable[[str, str], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a real Redis on a free port, for the whole run; `on_redis` empties it."""
    from benchmarks.core.redis_server import redis_server

    require_program("redis-server", "redis-server")
    with redis_server(tmp_path_factory.mktemp("redis")) as address:
        yield address


@pytest.fixture(scope="session")
def empty_redis(redis: str) -> Callable[[], None]:
    from redis import Redis

    host, port = redis.split(":")
    return lambda: Redis(host=host, port=int(port)).flushall()


@pytest.fixture
def on_redis(redis: str, empty_redis: Callable[[], None], tmp_path: Path) -> Callable[..., Settings]:
    """`on_redis(settings)`: the same lake, with a home of its own and the production configuration on an empty Redis.

    Spark is left out, being slow to start; further arguments replace keys of the configuration.
    """
    from benchmarks.core.redis_server import production_without_spark

    def change(settings: Settings, **configuration: object) -> Settings:
        empty_redis()
        yaml = production_without_spark(tmp_path / "production.yaml", **configuration)
        home = tmp_path / "redis"
        return settings.model_copy(update={"home": home, "redis": SecretStr(redis), "feature_store_yaml": yaml})

    return change


@pytest.fixture(scope="session")
def model_folders() -> tuple[Path, Path]:
    """Folders of the real language model and encoder, as `make setup` leaves them under GRASP_HOME."""
    home = Path(os.environ.get("GRASP_HOME", ROOT / ".grasp")).resolve()
    folders = (home / "models" / "smollm2-135m-instruct", home / "models" / "all-minilm-l6-v2")
    missing = [str(folder) for folder in folders if not folder.is_dir()]
    return _missing(f"{', '.join(missing)} missing: run `make setup`") if missing else folders


class Webhook(HTTPServer):
    """Keeps what it is sent and answers with `status`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Received)
        self.received: list[dict] = []
        self.status = 204
        self.url = f"http://127.0.0.1:{self.server_port}/hook-secret"


class Received(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/hook-secret" and self.headers["Content-Type"] == "application/json":
            self.server.received.append(json.loads(body))
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing on the tests' output."""


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    """A real HTTP server for alerts."""
    server = Webhook()
    Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()
