"""Read a table of the source, whatever its format, with the columns of `SourceRow`: `plan_table`, then `read_table`."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession

from spark_jobs.source.contract import BATCH_ROWS, SourceError, SourceRow, SourceTable, Split, TablePlan
from spark_jobs.source.parquet_files import plan_parquet, read_parquet
from spark_jobs.source.text_files import plan_text, read_text

DDL = "source_file string, source_row bigint, position bigint, fields map<string,string>, record string"
SCHEMA = pa.schema(
    {
        "source_file": pa.string(),
        "source_row": pa.int64(),
        "position": pa.int64(),
        "fields": pa.map_(pa.string(), pa.string()),
        "record": pa.string(),
    }
)
MARKER = "complete.json"


def plan_table(table: SourceTable) -> TablePlan:
    """Check and count the table's files; raises `SourceError` for what breaks the contract as a whole."""
    return plan_parquet(table) if table.format == "parquet" else plan_text(table)


def read_split(plan: TablePlan, split: Split) -> Iterator[SourceRow]:
    """The rows of one split of the plan."""
    return read_parquet(plan, split) if plan.table.format == "parquet" else read_text(plan, split)


def read_table(spark: SparkSession, plan: TablePlan) -> DataFrame:
    """All rows of a table; one task reads one split."""
    if not plan.splits:
        return spark.createDataFrame([], DDL)

    def read(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for number in batch.column(0).to_pylist():
                for rows in _batches(read_split(plan, plan.splits[number])):
                    yield _as_batch(rows)

    return spark.range(0, len(plan.splits), 1, len(plan.splits)).mapInArrow(read, DDL)


def _batches(rows: Iterator[SourceRow]) -> Iterator[list[SourceRow]]:
    batch: list[SourceRow] = []
    for row in rows:
        batch.append(row)
        if len(batch) == BATCH_ROWS:
            yield batch
            batch = []
    if batch:
        yield batch


def _as_batch(rows: list[SourceRow]) -> pa.RecordBatch:
    columns = dict(zip(SCHEMA.names, zip(*rows, strict=True), strict=True))
    columns["fields"] = [None if fields is None else list(fields.items()) for fields in columns["fields"]]
    return pa.record_batch([pa.array(columns[field.name], field.type) for field in SCHEMA], schema=SCHEMA)


@dataclass(frozen=True)
class Completeness:
    """Of what the source says that it holds all there is."""

    days: frozenset[str] | None = None  # of interactions; None: it does not say
    tables: frozenset[str] = frozenset()  # items, users


def completeness(folder: Path, interactions: TablePlan) -> Completeness:
    """What the file `complete.json` says, or folders `day=YYYY-MM-DD` of interactions.

    The file looks like `{"interactions": ["1998-02-11", "1998-02-20"], "items": true, "users": true}`: first and last
    day. Each part may be left out. Raises `SourceError` for anything else.
    """
    marker = folder / MARKER
    of_folders = None if interactions.days is None else frozenset(interactions.days)
    if not marker.exists():
        return Completeness(of_folders)
    try:
        said = json.loads(marker.read_text())
        unknown = set(said) - {"interactions", "items", "users"}
        if unknown or not all(said.get(name, True) is True for name in ("items", "users")):
            raise ValueError(f"unknown {', '.join(sorted(unknown)) or 'value'}")
        days = _days_between(*said["interactions"]) if "interactions" in said else of_folders
    except (ValueError, TypeError, AttributeError) as error:
        wanted = '{"interactions": ["FIRST-DAY", "LAST-DAY"], "items": true, "users": true}'
        raise SourceError(f"{marker} is not {wanted} or a part of it: {error}") from error
    return Completeness(days, frozenset(said) - {"interactions"})


def _days_between(first: str, last: str) -> frozenset[str]:
    start, end = date.fromisoformat(first), date.fromisoformat(last)
    if start > end:
        raise ValueError(f"{first} is after {last}")
    return frozenset((start + timedelta(number)).isoformat() for number in range((end - start).days + 1))
