"""Requests to generate a key again: small files beside the ledger's days, read without Spark.

A request is done when the key has a later answer, so request files are never removed.
"""

import uuid
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

REPLAY_DDL = "generation_key string, requested_at timestamp"
_FOLDER = "_replays"  # readers of parquet folders ignore it
_SCHEMA = pa.schema([("generation_key", pa.string()), ("requested_at", pa.timestamp("us", tz="UTC"))])


def replay_files(ledger: Path) -> list[Path]:
    """All request files of the ledger in this folder."""
    return sorted(ledger.glob(f"{_FOLDER}/*.parquet"))


def request_replay(ledger: Path, keys: Sequence[str], at: datetime) -> None:
    """Request a replay of these keys; `at` is wall-clock time, like `generated_at`."""
    folder = ledger / _FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{uuid.uuid4().hex}.parquet"
    temporary = file.with_name(f".{file.name}.tmp")
    rows = [{"generation_key": key, "requested_at": at} for key in keys]
    pq.write_table(pa.Table.from_pylist(rows, _SCHEMA), temporary)
    temporary.replace(file)
