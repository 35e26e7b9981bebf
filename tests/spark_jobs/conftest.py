"""Shared fixtures: a scripted language model server, and rows of the ledger."""

import datetime
import hashlib
import json
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from grasp import partitions, tables
from grasp.settings import Settings
from grasp.tables import Table
from grasp.versions import Versions
from spark_jobs.storage.shards import Shards, ShardWriter

PROGRAM = Path(__file__).with_name("fault_server.py")
START = datetime.datetime(2026, 1, 1, tzinfo=UTC)
Row = dict[str, Any]


@pytest.fixture(scope="session")
def write_rows() -> Callable[..., None]:
    """`write_rows(lake, tables.ITEMS, [("1", "Heat", {})], DAY)`: a day that jobs read; Spark takes a second for one.

    The rows have the table's columns. `Lake.write` is tested elsewhere.
    """
    from pyspark.sql import types as T
    from pyspark.sql.pandas.types import to_arrow_schema

    def write(lake: Any, table: Table, rows: Sequence[tuple[Any, ...]], day: str) -> None:
        folder = partitions.partition_path(lake.root, table, lake.versions.of(table.versioned_by), day)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        named = [dict(zip(table.column_names, row, strict=True)) for row in rows]
        schema = to_arrow_schema(T.StructType.fromDDL(table.ddl), timezone="UTC")
        pq.write_table(pa.Table.from_pylist(named, schema), folder / "part-00000.parquet")
        content = hashlib.sha256(repr(rows).encode()).hexdigest()
        partitions.write_content(folder, partitions.Content(len(rows), f"{len(rows)}:{content}"))

    return write


class ModelServer:
    """The server process. `script` sets how it fails, `seen` returns its requests."""

    def __init__(self, *arguments: str, scheme: str = "http") -> None:
        command = [sys.executable, str(PROGRAM), *arguments]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        self.root = f"{scheme}://127.0.0.1:{int(self.process.stdout.readline())}"
        self.url = f"{self.root}/v1"

    def call(self, path: str, body: object = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(urllib.request.Request(self.root + path, data)) as answer:  # noqa: S310 - our own
            return json.load(answer)

    def script(self, **given: Any) -> None:
        """`prompts={key: [behaviour, ...]}`, `numbers=[behaviour, ...]`, `default=behaviour`."""
        self.call("/script", given)

    def seen(self) -> dict[str, Any]:
        seen: dict[str, Any] = self.call("/seen")
        return seen

    def num_requests(self) -> int:
        return sum(self.seen()["requests"].values())

    def stop(self) -> None:
        self.process.communicate()


@pytest.fixture(scope="session")
def _model_server() -> Iterator[ModelServer]:
    server = ModelServer()
    yield server
    server.stop()


@pytest.fixture
def model_server(_model_server: ModelServer) -> ModelServer:
    """A server that answers everything at once unless scripted."""
    _model_server.call("/forget", {})
    return _model_server


@pytest.fixture
def tls_model_server() -> Iterator[ModelServer]:
    """A server with a self-signed certificate."""
    server = ModelServer("--self-signed", scheme="https")
    yield server
    server.stop()


class LedgerRows:
    """Rows of one kind of ledger, of the settings' prompt and model: `accepted`, `refused` or never answered."""

    def __init__(self, settings: Settings, table: Table = tables.ITEM_GENERATION) -> None:
        self.settings, self.table = settings, table
        self.folder = partitions.table_path(settings.lake, table, None)
        self.key = next(name for name in table.column_names if name.endswith("_id"))

    def accepted(self, key: str, second: float = 0, **changed: object) -> Row:
        versions = Versions(self.settings)
        row = {
            "generation_key": key,
            self.key: f"of {key}",
            "prompt_version": versions.prompt(self.key.removesuffix("_id")),
            "model_revision": versions.llm,
            "output": f"text of {key}",
            "description": f"text of {key}",
            "refusal_reason": None,
            "error": None,
            "is_repair": False,
            "num_attempts": 1,
            "num_input_tokens": 100,
            "num_output_tokens": 20,
            "cost": 0.5,
            "seconds": 2.0,
            "generated_at": START + timedelta(seconds=second),
        }
        return row | changed

    def refused(self, key: str, second: float = 0, reason: str = "loop", **changed: object) -> Row:
        return self.accepted(key, second, **{"description": None, "refusal_reason": reason, **changed})

    def failed(self, key: str, second: float = 0, **changed: object) -> Row:
        nothing = {"num_input_tokens": 0, "num_output_tokens": 0, "cost": 0.0, "output": "", "description": None}
        return self.accepted(key, second, **{**nothing, "error": "timeout", "num_attempts": 3, **changed})

    def pay(self, day: str, *rows: Row) -> None:
        run = f"{len(list(self.folder.glob('*/*'))):012x}"
        with ShardWriter(Shards(self.table, self.folder / f"day={day}", run), task=0, max_rows=2) as writer:
            for row in rows:
                writer.add(row)


@pytest.fixture
def item_rows(settings: Settings) -> LedgerRows:
    return LedgerRows(settings)


@pytest.fixture
def rows_of(settings: Settings) -> Callable[[Table], LedgerRows]:
    return lambda table: LedgerRows(settings, table)
