"""Parquet: a file or a folder of files, each read by its own schema; columns of folders `name=value` are text.

Nothing is inferred across files: a column that only some files have is read from those, `007` stays `007`, and a
column whose type loses ids or times is refused by name.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import date
from decimal import Decimal
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import types

from grasp.files import files_below
from spark_jobs.source.contract import (
    BATCH_ROWS,
    REQUIRED_COLUMNS,
    SourceError,
    SourceRow,
    SourceTable,
    Split,
    TablePlan,
    require_columns,
)
from spark_jobs.source.values import as_fields, as_record

_MAX_ROWS_OF_A_FILE = 1 << 40
_NO_VALUE = b"\xff"  # no text, so the row is refused
_NO_PARTITION = "__HIVE_DEFAULT_PARTITION__"  # a null, in the name of a folder
_KEYS = ("user_id", "item_id")


def plan_parquet(table: SourceTable) -> TablePlan:
    """Read the files' footers, in the order of their names; raises `SourceError` naming file and column."""
    splits, columns = list[Split](), dict[str, None]()
    kind_of: dict[str, tuple[str, Path]] = {}
    files = table_files(table.path)
    is_by_day = _is_by_day(table, files)
    # Files of a day are numbered apart, so a day is the same in every delivery.
    num_files, num_rows = Counter[str | None](), Counter[str | None]()
    for path in files:
        file, folders = _open(path), _folder_values(table.path, path)
        day = folders["day"] if is_by_day else None
        rows_before = num_files[day] * _MAX_ROWS_OF_A_FILE
        num_files[day] += 1
        names = [*(name for name in file.schema_arrow.names if name not in folders), *folders]
        require_columns(table.name, path, names)
        _require_types(table, path, file.schema_arrow, folders, kind_of)
        columns |= dict.fromkeys(names)
        row = 0
        for group in range(file.num_row_groups):
            size = file.metadata.row_group(group).num_rows
            if size:
                name = str(path.relative_to(table.path.parent))
                splits.append(Split(str(path), name, row + 1, rows_before, group, day=day))
            row += size
        num_rows[day] += row
    days = {day: num for day, num in num_rows.items() if day} if is_by_day else None
    return TablePlan(table, tuple(columns), tuple(splits), num_rows.total(), days)


def read_parquet(plan: TablePlan, split: Split) -> Iterator[SourceRow]:
    """The rows of one row group."""
    path = Path(split.file)
    row = split.first_row
    for values in parquet_values(plan.table, path, [split.start]):
        fields = as_fields(values, REQUIRED_COLUMNS[plan.table.name])
        record = as_record({name: _shown(value) for name, value in values.items()} if fields is None else fields)
        yield SourceRow(split.name, row, split.rows_before + row, fields, record)
        row += 1


def parquet_values(table: SourceTable, path: Path, groups: Sequence[int]) -> Iterator[dict[str, object]]:
    """The values of each row by name, times as unix seconds, maps as objects. Text that is not UTF-8 is bytes.

    Raises `SourceError` for a damaged file.
    """
    file, folders = _open(path), _folder_values(table.path, path)
    stored = [name for name in file.schema_arrow.names if name not in folders]
    if table.name == "interactions":  # others are ignored
        stored = [name for name in stored if name in (*REQUIRED_COLUMNS[table.name], "row_number")]
    try:
        for batch in file.iter_batches(BATCH_ROWS, row_groups=groups, columns=stored):
            columns = [_values(batch.column(name)) for name in stored]
            for values in zip(*columns, strict=True) if stored else ([()] * batch.num_rows):
                yield dict(zip(stored, values, strict=True)) | folders
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{path} is damaged: {str(error).splitlines()[0]}") from error


def table_values(table: SourceTable) -> Iterator[dict[str, object]]:
    """`parquet_values` of every row of every file."""
    for path in table_files(table.path):
        yield from parquet_values(table, path, range(_open(path).num_row_groups))


def table_files(path: Path) -> list[Path]:
    """The files of a table, whatever their names end with; those that Spark calls hidden are no data."""
    if path.is_file():
        return [path]
    files = sorted(file for file in files_below(path) if not any(map(_is_hidden, file.relative_to(path).parts)))
    if not files:
        raise SourceError(f"{path} holds no parquet file")
    return files


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or (name.startswith("_") and "=" not in name)


def _open(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise SourceError(f"{path} is not a parquet file: {str(error).splitlines()[0]}") from error


def _folder_values(table: Path, file: Path) -> dict[str, str | None]:
    """Columns that are named in the path, such as `day=1998-02-20`."""
    pairs = [part.partition("=") for part in file.relative_to(table).parts[:-1]]
    return {name: None if value == _NO_PARTITION else unquote(value) for name, equals, value in pairs if equals}


def _is_by_day(table: SourceTable, files: Sequence[Path]) -> bool:
    """Whether interactions lie in folders by day. Items and users are states, whatever their folders are called."""
    days = (_folder_values(table.path, file).get("day") for file in files)
    return table.name == "interactions" and all(day is not None and _is_day(day) for day in days)


def _is_day(text: str) -> bool:
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def _require_types(
    table: SourceTable,
    path: Path,
    schema: pa.Schema,
    folders: dict[str, str | None],
    kind_of: dict[str, tuple[str, Path]],
) -> None:
    """Ids are text or whole numbers, the same in all files. Times are exact to a second."""
    for name in REQUIRED_COLUMNS[table.name]:
        if name in folders:
            kind = "text"
        elif name in _KEYS:
            kind = _id_kind(schema.field(name).type)
        else:
            kind = _time_kind(schema.field(name).type)
        if not kind:
            wanted = "text or whole numbers" if name in _KEYS else "whole unix seconds, float64, or a timestamp"
            found = schema.field(name).type
            raise SourceError(f"{path}: {name} is {found}, which does not hold it exactly; write {wanted}")
        first, where = kind_of.setdefault(name, (kind, path))
        if name in _KEYS and first != kind:
            raise SourceError(f"{path}: {name} is {kind}, but in {where} it is {first}; write one type")


def _plain_type(data_type: pa.DataType) -> pa.DataType:
    return data_type.value_type if types.is_dictionary(data_type) else data_type


def _is_text(data_type: pa.DataType) -> bool:
    is_text = (types.is_string, types.is_large_string, types.is_string_view, types.is_binary, types.is_large_binary)
    return any(check(data_type) for check in is_text)


def _id_kind(data_type: pa.DataType) -> str:
    plain = _plain_type(data_type)
    if _is_text(plain):
        return "text"
    whole = types.is_integer(plain) or (types.is_decimal(plain) and plain.scale == 0)
    return "a whole number" if whole else ""


def _time_kind(data_type: pa.DataType) -> str:
    plain = _plain_type(data_type)
    checks = (_is_text, types.is_integer, types.is_float64, types.is_decimal, types.is_timestamp, types.is_date)
    return str(plain) if any(check(plain) for check in checks) else ""


def _values(column: pa.Array) -> list[object]:
    if types.is_date(column.type):
        column = column.cast(pa.timestamp("s"))
    if types.is_timestamp(column.type):
        micros = column.cast(pa.timestamp("us", column.type.tz), safe=False).cast(pa.int64()).to_pylist()
        return [None if each is None else f"{Decimal(each).scaleb(-6):f}" for each in micros]
    try:
        return list(column.to_pylist(maps_as_pydicts="strict"))
    except (UnicodeDecodeError, KeyError):
        return [_value(each) for each in column]


def _value(scalar: pa.Scalar) -> object:
    try:
        return scalar.as_py(maps_as_pydicts="strict")
    except UnicodeDecodeError:
        return scalar.as_buffer().to_pybytes() if hasattr(scalar, "as_buffer") else _NO_VALUE
    except KeyError:  # a map names something twice
        return _NO_VALUE


def _shown(value: object) -> str:
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)
