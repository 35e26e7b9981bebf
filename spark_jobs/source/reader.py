"""Read the data contract: a folder with `interactions.*`, `items.*` and optionally `users.*` (docs/data.md).

Every table is read with the same columns, whatever its format: `source_file`, `source_row` (from 1), `position` (order
in the whole table), `fields` (the row's non-empty values as a map of text; null for an unreadable line) and `record`
(the row as JSON, for the quarantine).
"""

import gzip
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from pyspark.errors import AnalysisException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

REQUIRED_COLUMNS = {
    "interactions": ("user_id", "item_id", "timestamp"),
    "items": ("item_id",),
    "users": ("user_id",),
}
FORMATS = {".tsv": "tsv", ".tsv.gz": "tsv", ".jsonl": "jsonl", ".jsonl.gz": "jsonl", ".parquet": "parquet"}

_LINES_TO_LOOK_AT = 100  # a JSON line may leave out columns, so one line is not enough
_MAX_ROWS_OF_A_FILE = 1 << 40


class SourceError(ValueError):
    """The source violates the contract; the message names the file, what is missing and what is there."""


@dataclass(frozen=True)
class SourceTable:
    """One table of the source: a file, or a folder of parquet files."""

    name: str  # interactions, items or users
    path: Path
    format: str  # tsv, jsonl or parquet


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


def text_lines(path: Path) -> Iterator[str]:
    """Lines of a text file, plain or gzip, without line ends; raises `SourceError` for a corrupt gzip file."""
    try:
        with path.open("rb") as file:
            raw = gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file
            for line in io.TextIOWrapper(raw, "utf-8-sig", errors="replace", newline="\n"):
                yield line.rstrip("\r\n")
    except (gzip.BadGzipFile, EOFError) as error:
        raise SourceError(f"{path} is not a complete gzip file: {error}") from error


def read_table(spark: SparkSession, table: SourceTable) -> DataFrame:
    """All rows of a table, with the columns listed above; raises `SourceError` for a missing column."""
    if table.format == "parquet":
        return _read_parquet(spark, table)
    columns = _text_columns(table)
    _require_columns(table, columns)
    lines = _read_lines(spark, table)
    fields = _tsv_fields(columns) if table.format == "tsv" else _jsonl_fields()
    rows = lines.withColumn("fields", _without_empty(fields))
    line = F.to_json(F.create_map(F.lit("line"), F.col("value")))
    record = F.coalesce(F.to_json("fields"), line).alias("record")
    return rows.select("source_file", "source_row", F.col("source_row").alias("position"), "fields", record)


def _text_columns(table: SourceTable) -> tuple[str, ...]:
    """The header of a TSV file, or every key of the first JSON lines."""
    lines = text_lines(table.path)
    if table.format == "tsv":
        return tuple(next(lines, "").split("\t"))
    columns: dict[str, None] = {}
    for line, _ in zip(lines, range(_LINES_TO_LOOK_AT), strict=False):
        try:
            row = json.loads(line) if line else {}
        except json.JSONDecodeError:
            continue  # an unreadable line is quarantined later
        columns |= dict.fromkeys(row) if isinstance(row, dict) else {}
    return tuple(columns)


def _require_columns(table: SourceTable, columns: tuple[str, ...]) -> None:
    missing = [name for name in REQUIRED_COLUMNS[table.name] if name not in columns]
    if missing:
        there = ", ".join(repr(name)[1:-1] for name in columns if name) or "none"
        raise SourceError(f"{table.path}: column {', '.join(missing)} is missing; its columns are {there}")
    if len(set(columns)) != len(columns):
        raise SourceError(f"{table.path}: a column appears twice: {', '.join(columns)}")


def _read_lines(spark: SparkSession, table: SourceTable) -> DataFrame:
    """Lines with their line number. Blank lines are counted but left out.

    Spark splits plain files and reorders the splits by size. The line number is computed from the split's start and
    the counter within it. A gzip file is never split.
    """
    lines = spark.read.option("lineSep", "\n").text(str(table.path))
    located = lines.select(
        F.regexp_replace("value", "\r$", "").alias("value"),
        F.lit(table.path.name).alias("source_file"),
        F.col("_metadata.file_block_start").alias("split"),
        F.monotonically_increasing_id().alias("counter"),
    )
    if table.path.suffix == ".gz":
        numbered = located.withColumn("line", F.col("counter") + 1)
    else:
        numbered = located.join(F.broadcast(_split_starts(spark, located)), "split")
        numbered = numbered.withColumn("line", F.col("counter") - F.col("first_counter") + F.col("first_line"))
    num_header_lines = 1 if table.format == "tsv" else 0
    rows = numbered.withColumn("source_row", F.col("line") - num_header_lines)
    return rows.where((F.col("source_row") > 0) & (F.trim("value") != ""))


def _split_starts(spark: SparkSession, located: DataFrame) -> DataFrame:
    """Counter and line number of the first line of each split."""
    splits = located.groupBy("split").agg(F.min("counter").alias("counter"), F.count("*").alias("num_lines")).collect()
    starts, line = [], 1
    for row in sorted(splits, key=lambda row: row.split):
        starts.append((row.split, row.counter, line))
        line += row.num_lines
    return spark.createDataFrame(starts, "split bigint, first_counter bigint, first_line bigint")


def _tsv_fields(columns: tuple[str, ...]) -> Column:
    """TSV has no quotes: every tab separates columns. Null if the number of columns is wrong."""
    parts = F.split("value", "\t", -1)
    fields = F.map_from_arrays(F.array(*map(F.lit, columns)), parts)
    return F.when(F.size(parts) == len(columns), fields)


def _jsonl_fields() -> Column:
    """Values as text, lists joined with ', ', nested objects as JSON. Null for a line that is not a JSON object."""
    raw = F.from_json("value", T.MapType(T.StringType(), T.StringType()))
    return F.transform_values(
        raw,
        lambda _, value: F.when(
            value.startswith("["),
            F.coalesce(F.array_join(F.from_json(value, T.ArrayType(T.StringType())), ", "), value),
        ).otherwise(value),
    )


def _without_empty(fields: Column) -> Column:
    trimmed = F.transform_values(fields, lambda _, value: F.trim(value))
    return F.map_filter(trimmed, lambda _, value: value.isNotNull() & (value != ""))


def _read_parquet(spark: SparkSession, table: SourceTable) -> DataFrame:
    """Rows of one or more parquet files in order of their names, so later files can be added."""
    _require_parquet(table.path)
    try:
        rows = spark.read.parquet(str(table.path))
    except AnalysisException as error:
        hint = "write times with microseconds (pandas: coerce_timestamps='us')"
        raise SourceError(f"{table.path} cannot be read: {str(error).splitlines()[0]}; {hint}") from error
    _require_columns(table, tuple(rows.columns))
    texts = [_as_text(field).alias(field.name) for field in rows.schema]
    names = F.array(*(F.lit(name) for name in rows.columns))
    located = rows.select(
        F.map_from_arrays(names, F.array(*texts)).alias("all_fields"),
        F.col("_metadata.file_path").alias("file_path"),
        (F.col("_metadata.row_index") + 1).alias("source_row"),
    )
    return (
        located.join(F.broadcast(_numbered_files(spark, table, located)), "file_path")
        .withColumn("fields", _without_empty(F.col("all_fields")))
        .select(
            "source_file",
            "source_row",
            (F.col("file_index") * _MAX_ROWS_OF_A_FILE + F.col("source_row")).alias("position"),
            "fields",
            F.to_json("fields").alias("record"),
        )
    )


def _numbered_files(spark: SparkSession, table: SourceTable, located: DataFrame) -> DataFrame:
    """Parquet files ordered by name, each with its path below the source folder."""
    paths = sorted(row.file_path for row in located.select("file_path").distinct().collect())
    folder = f"/{table.path.name}/"
    names = [unquote(path).rpartition(folder) for path in paths]
    files = [
        (path, f"{folder[1:]}{name[2]}" if name[1] else table.path.name, index)
        for index, (path, name) in enumerate(zip(paths, names, strict=True))
    ]
    return spark.createDataFrame(files, "file_path string, source_file string, file_index bigint")


def _require_parquet(path: Path) -> None:
    """Check the magic bytes PAR1, because Spark's own message for another file is a page long."""
    files = [path] if path.is_file() else sorted(path.glob("**/[!._]*.parquet"))
    if not files:
        raise SourceError(f"{path} holds no .parquet file")
    for file in files:
        with file.open("rb") as opened:
            if opened.read(4) != b"PAR1":
                raise SourceError(f"{file} is not a parquet file")


def _as_text(field: T.StructField) -> Column:
    """A parquet value as text: times as unix seconds, lists joined with ', '."""
    column = F.col(f"`{field.name}`")
    if isinstance(field.dataType, T.TimestampType | T.TimestampNTZType | T.DateType):
        return (F.unix_micros(column.cast("timestamp")) / F.lit(1_000_000)).cast("decimal(20,6)").cast("string")
    if isinstance(field.dataType, T.ArrayType):
        return F.array_join(column.cast("array<string>"), ", ")
    if isinstance(field.dataType, T.StructType | T.MapType):
        return F.to_json(column)
    return column.cast("string")
