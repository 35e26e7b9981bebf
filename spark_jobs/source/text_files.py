"""TSV and JSON lines, plain or gzip: bytes are split at line ends, and each line is read as UTF-8 or not at all.

A TSV file has a header line and no quotes: every tab separates two columns. Blank lines have a number but are no rows.
"""

import codecs
import gzip
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from spark_jobs.source.contract import (
    REQUIRED_COLUMNS,
    SourceError,
    SourceRow,
    SourceTable,
    Split,
    TablePlan,
    require_columns,
)
from spark_jobs.source.values import as_fields, as_record, json_values

SPLIT_BYTES = 32 << 20  # a plain file is divided into parts of this size; a gzip file cannot be divided

_LINES_TO_LOOK_AT = 100  # a JSON line may leave out columns, so one line is not enough


def plan_text(table: SourceTable, split_bytes: int = SPLIT_BYTES) -> TablePlan:
    """Count the rows and divide the file; raises `SourceError` for a missing column or a corrupt gzip file."""
    columns = text_columns(table)
    require_columns(table.name, table.path, columns)
    num_header_lines = _num_header_lines(table)
    ends, end, num_rows = [(0, 1)], 0, 0
    for number, line in enumerate(raw_lines(table.path), start=1):
        if end - ends[-1][0] >= split_bytes and table.path.suffix != ".gz":
            ends.append((end, number))
        end += len(line)
        num_rows += number > num_header_lines and not _is_blank(line)
    stops = [start for start, _ in ends[1:]] + [None]
    splits = tuple(
        Split(str(table.path), table.path.name, number, 0, start, stop)
        for (start, number), stop in zip(ends, stops, strict=True)
    )
    return TablePlan(table, columns, splits, num_rows)


def read_text(plan: TablePlan, split: Split) -> Iterator[SourceRow]:
    """The rows of one split."""
    num_header_lines = _num_header_lines(plan.table)
    values_of = line_reader(plan.table, plan.columns)
    for number, raw in enumerate(raw_lines(plan.table.path, split.start, split.end), start=split.first_row):
        row = number - num_header_lines
        if row < 1 or _is_blank(raw):
            continue
        line = decoded(raw, number)
        values = None if line is None else values_of(line)
        fields = None if values is None else as_fields(values, REQUIRED_COLUMNS[plan.table.name])
        record = as_record({"line": _without_end(raw).decode(errors="backslashreplace")} if fields is None else fields)
        yield SourceRow(split.name, row, split.rows_before + row, fields, record)


def line_reader(table: SourceTable, columns: tuple[str, ...]) -> Callable[[str], dict[str, object] | None]:
    """Reads the values of one line; None for a line of a wrong form."""
    if table.format == "jsonl":
        return json_values

    def values_of(line: str) -> dict[str, object] | None:
        parts = line.split("\t")
        return dict(zip(columns, parts, strict=True)) if len(parts) == len(columns) else None

    return values_of


def raw_lines(path: Path, start: int = 0, end: int | None = None) -> Iterator[bytes]:
    """The lines from byte `start`, where one begins, to byte `end`, with their line ends.

    Raises `SourceError` for a corrupt gzip file.
    """
    with _opened(path) as file:
        file.seek(start)
        at = start
        for line in file:
            if end is not None and at >= end:
                return
            yield line
            at += len(line)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with path.open("rb") as file:
            yield cast("BinaryIO", gzip.GzipFile(fileobj=file)) if path.suffix == ".gz" else file
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise SourceError(f"{path} is not a complete gzip file: {error}") from error


def decoded(line: bytes, number: int) -> str | None:
    """Line `number` of a file as text, without its end; None if its bytes are not UTF-8."""
    content = _without_end(line)
    try:
        return (content.removeprefix(codecs.BOM_UTF8) if number == 1 else content).decode()
    except UnicodeDecodeError:
        return None


def text_lines(path: Path) -> Iterator[str]:
    """Every line of a text file; raises `SourceError` for a corrupt gzip file and for a line that is not UTF-8."""
    for number, raw in enumerate(raw_lines(path), start=1):
        line = decoded(raw, number)
        if line is None:
            raise SourceError(f"{path}, line {number} is not UTF-8")
        yield line


def text_columns(table: SourceTable) -> tuple[str, ...]:
    """The header of a TSV file, or every key of the first JSON lines."""
    if table.format == "tsv":
        return tuple(next(text_lines(table.path), "").split("\t"))
    columns: dict[str, None] = {}
    for raw, number in zip(raw_lines(table.path), range(1, _LINES_TO_LOOK_AT + 1), strict=False):
        columns |= dict.fromkeys(json_values(decoded(raw, number) or "") or {})  # unreadable lines are counted later
    return tuple(columns)


def _num_header_lines(table: SourceTable) -> int:
    return 1 if table.format == "tsv" else 0


def _without_end(line: bytes) -> bytes:
    return line.rstrip(b"\r\n")


def _is_blank(line: bytes) -> bool:
    return not line.strip(b" \r\n")  # a line of tabs is a row without values
