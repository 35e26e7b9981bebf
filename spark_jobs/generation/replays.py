"""Requests to generate a key again, whatever it was answered: small files beside the ledger's days, read without Spark.

A request is over when the key is answered after it; nothing has to be taken back.
"""

import uuid
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

DDL = "generation_key string, requested_at timestamp"
_FOLDER = "_replays"  # readers of parquet folders pass over it
_SCHEMA = pa.schema([("generation_key", pa.string()), ("requested_at", pa.timestamp("us", tz="UTC"))])


def files(ledger: Path) -> list[Path]:
    """Every request file of the ledger in this folder."""
    return sorted(ledger.glob(f"{_FOLDER}/*.parquet"))


def request(ledger: Path, keys: Sequence[str], at: datetime) -> None:
    """Add a request; `at` is by the clock of `generated_at`, the wall clock."""
    folder = ledger / _FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{uuid.uuid4().hex}.parquet"
    temporary = file.with_name(f".{file.name}.tmp")
    rows = [{"generation_key": key, "requested_at": at} for key in keys]
    pq.write_table(pa.Table.from_pylist(rows, _SCHEMA), temporary)
    temporary.replace(file)
