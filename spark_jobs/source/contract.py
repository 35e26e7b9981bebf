"""The data contract: a folder with `interactions.*`, `items.*` and optionally `users.*` (docs/data.md).

Each table is planned first: its files are opened, checked and counted without Spark. Then its splits are read, each by
one Spark task. So every row has its number from the file itself, and the number of rows is known before they are read.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

EARLIEST = datetime(1990, 1, 1, tzinfo=UTC)  # earlier times are errors, for example 0 or a two-digit year
REQUIRED_COLUMNS = {
    "interactions": ("user_id", "item_id", "timestamp"),
    "items": ("item_id",),
    "users": ("user_id",),
}
BATCH_ROWS = 4096  # rows that a task holds at once
FORMATS = {".tsv": "tsv", ".tsv.gz": "tsv", ".jsonl": "jsonl", ".jsonl.gz": "jsonl", ".parquet": "parquet"}


class SourceError(ValueError):
    """The source violates the contract; the message names the file, what is missing and what is there."""


@dataclass(frozen=True)
class SourceTable:
    """One table of the source: a file, or a folder of parquet files."""

    name: str  # interactions, items or users
    path: Path
    format: str  # tsv, jsonl or parquet


@dataclass(frozen=True)
class Split:
    """The part of a file that one task reads: bytes `start` to `end` of a text, row group `start` of a parquet file."""

    file: str
    name: str  # of the file, as the quarantine shows it
    first_row: int  # number of its first line or row in the file, from 1
    rows_before: int  # a number that orders the files: position = rows_before + row number
    start: int = 0
    end: int | None = None  # None: the end of the file
    day: str | None = None  # of the folder, where each day has one


@dataclass(frozen=True)
class TablePlan:
    """What a table holds, found by looking at its files."""

    table: SourceTable
    columns: tuple[str, ...]
    splits: tuple[Split, ...]
    num_rows: int
    days: dict[str, int] | None = None  # rows by day, if every file of interactions lies in a folder day=YYYY-MM-DD


class SourceRow(NamedTuple):
    """A row of any format."""

    source_file: str
    source_row: int  # from 1
    position: int  # order in the whole table; in its day, where each day has a folder
    fields: dict[str, str] | None  # the values that are not empty, unchanged; None for a row that cannot be read
    record: str  # the row as JSON, for the quarantine


def find_table(folder: Path, name: str) -> SourceTable | None:
    """The file of a table, or None.

    Raises `FileNotFoundError` for a missing folder, `SourceError` for two files of one table or an unknown format.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder: run `grasp fetch` or set GRASP_SOURCE (docs/data.md)")
    found = sorted(folder.glob(f"{name}.*"))
    if not found:
        return None
    if len(found) > 1:
        raise SourceError(f"{folder} holds {name} twice: {', '.join(path.name for path in found)}; keep one")
    suffix = found[0].name.removeprefix(name)
    if suffix not in FORMATS:
        raise SourceError(f"{found[0]}: format {suffix} is not one of {', '.join(FORMATS)}")
    return SourceTable(name, found[0], FORMATS[suffix])


def require_table(folder: Path, name: str) -> SourceTable:
    """Like `find_table`, but raises `SourceError` for a missing table."""
    table = find_table(folder, name)
    if table is None:
        there = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
        raise SourceError(f"{folder} holds no {name} ({name}{', '.join(FORMATS)}); it holds {there}")
    return table


def require_columns(name: str, path: Path, columns: Iterable[str]) -> None:
    """Raise `SourceError` unless the file of table `name` has the required columns, each column once."""
    columns = tuple(columns)
    missing = [column for column in REQUIRED_COLUMNS[name] if column not in columns]
    if missing:
        there = ", ".join(repr(column)[1:-1] for column in columns if column) or "none"
        raise SourceError(f"{path}: column {', '.join(missing)} is missing; its columns are {there}")
    if len(set(columns)) != len(columns):
        raise SourceError(f"{path}: a column appears twice: {', '.join(columns)}")
