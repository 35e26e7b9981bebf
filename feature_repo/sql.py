"""Every table and feature view as SQL: `grasp sql [QUERY] [--format table|csv]`, or `make sql`.

DuckDB in memory reads the lake's parquet. Each view has its table's name, its columns with their meaning, and `day`. A
versioned table shows the current version, in the column `version`. `item_attributes` and `user_attributes` give each
attribute a typed column.

Statements read files below the lake alone and write none. A table that cannot be read is left out with a warning.
"""

import argparse
import csv
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from feature_repo.reading_statements import require_reading
from grasp import partitions, tables
from grasp.environment import prepare
from grasp.partitions import FINISHED_FILES
from grasp.preflight import require_models
from grasp.settings import Settings, SettingsError
from grasp.tables import Table
from grasp.versions import Versions

if TYPE_CHECKING:
    import duckdb

DUCKDB_TYPES = {
    "string": "VARCHAR",
    "int": "INTEGER",
    "bigint": "BIGINT",
    "float": "FLOAT",
    "double": "DOUBLE",
    "boolean": "BOOLEAN",
    "timestamp": "TIMESTAMPTZ",
    "array<float>": "FLOAT[]",
    "array<bigint>": "BIGINT[]",
    "array<string>": "VARCHAR[]",
    "map<string,string>": "MAP(VARCHAR, VARCHAR)",
    "map<string,bigint>": "MAP(VARCHAR, BIGINT)",
}
NUM_TYPED_ROWS = 10_000  # of the latest day: their attributes decide the types
EVERYTHING = 2**31 - 1
BATCH = 1000  # rows of CSV written at once
PROMPT, CONTINUED = "grasp> ", "  ...> "
HELP = "SQL ends with a semicolon; .tables lists the tables, .help shows this line, .quit leaves."
LEAVING = {".quit", ".exit", "quit", "exit"}
TABLE, CSV = "table", "csv"


def connect(settings: Settings) -> "duckdb.DuckDBPyConnection":
    """A database in memory with one view per table, times in UTC. A table without days is an empty view.

    It may read files below the lake only, and these limits cannot be lifted. A table that cannot be read has no view;
    a warning on standard error names it.
    """
    import duckdb

    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute("SET python_enable_replacements = false")
    connection.execute(f"SET allowed_directories = [{_quoted(f'{settings.lake}/')}]")
    connection.execute("SET enable_external_access = false")
    versions = Versions(settings)
    for table in tables.ALL:
        _add(table.name, partial(_add_view, connection, settings, table, versions.of(table.versioned_by)))
    for table in (tables.ITEMS, tables.USERS):
        name = attributes_view(table)
        _add(name, partial(_add_attributes, connection, table, name))
    connection.execute("SET lock_configuration = true")
    return connection


def _add(name: str, add: Callable[[], None]) -> None:
    import duckdb

    try:
        add()
    except duckdb.Error as error:
        problem = str(error).strip().splitlines()[0]
        sys.stderr.write(f"warning: {name} is left out, it cannot be read: {problem}\n")


def _add_view(connection: "duckdb.DuckDBPyConnection", settings: Settings, table: Table, version: str | None) -> None:
    """A view of all days. A column that a day's files lack, such as one that was added later, is null there."""
    folders = [
        partitions.partition_path(settings.lake, table, version, day)
        for day in partitions.days(settings.lake, table, version)
    ]
    source, present = _source(connection, table, folders)
    columns = [(column.name, DUCKDB_TYPES[column.type], column.meaning) for column in table.columns]
    columns.append(("day", "DATE", "the UTC day of the row's partition"))
    values = [f"{_name(name) if name in present else 'NULL'}::{kind} AS {_name(name)}" for name, kind, _ in columns]
    if version:
        values.append(f"{_quoted(version)} AS version")
        columns.append(("version", "VARCHAR", f"the {table.versioned_by} version"))
    connection.execute(f"CREATE VIEW {table.name} AS SELECT {', '.join(values)} FROM {source}")  # noqa: S608 - our own
    _comment(connection, table.name, table.meaning, {name: meaning for name, _, meaning in columns})


def _source(connection: "duckdb.DuckDBPyConnection", table: Table, folders: Iterable[Path]) -> tuple[str, set[str]]:
    """What a view reads, and the columns that it finds there, `day` included."""
    samples = [file for folder in folders for file in sorted(folder.glob(FINISHED_FILES))[:1]]
    if not samples:
        return "(SELECT 1 WHERE false)", set()
    files = _list(f"{file.parent}/{FINISHED_FILES}" for file in samples)
    if table.appended:
        # Thousands of small files, which may differ within a day. With a schema, DuckDB opens only what a query needs.
        day = "regexp_extract(filename, '/day=([^/]*)/[^/]*$', 1)::DATE"
        return (
            f"(SELECT *, {day} AS day FROM read_parquet({files}, schema = {_schema(table)}, filename = true))",  # noqa: S608
            {*table.column_names, "day"},
        )
    present, is_mixed = _columns_of(connection, [str(file) for file in samples])
    # By name costs a look into every file, so only where days differ. The files of one day are alike.
    return f"read_parquet({files}, union_by_name = {is_mixed}, hive_partitioning = true)", present


def _schema(table: Table) -> str:
    """The table's columns as `read_parquet` takes them: found by name, null in a file that lacks them."""
    columns = [
        f"{_quoted(column.name)}: {{name: {_quoted(column.name)}, type: {_quoted(DUCKDB_TYPES[column.type])}, "
        "default_value: NULL}"
        for column in table.columns
    ]
    return f"MAP {{{', '.join(columns)}}}"


def _columns_of(connection: "duckdb.DuckDBPyConnection", files: Sequence[str]) -> tuple[set[str], bool]:
    """The columns that any of the files has, `day` included, and whether the files differ."""
    source = f"read_parquet({_list(files)}, union_by_name = true, hive_partitioning = true)"
    found = connection.execute(f"""
        SELECT count(DISTINCT columns) FROM (
            SELECT list_sort(list(concat_ws(' ', name, type))) AS columns FROM parquet_schema({_list(files)})
            GROUP BY file_name
        )
    """).fetchall()  # noqa: S608 - our own names
    return set(connection.sql(f"FROM {source}").columns), found != [(1,)]


def attributes_view(table: Table) -> str:
    """`item_attributes` for `items`, `user_attributes` for `users`."""
    return f"{table.key[0].removesuffix('_id')}_attributes"


def _add_attributes(connection: "duckdb.DuckDBPyConnection", table: Table, view: str) -> None:
    """A view with one column per attribute. Its type is the narrowest that fits the latest day's first values."""
    (key,) = table.key
    known = connection.execute(f"""
        WITH latest AS (
            SELECT attributes FROM {table.name} WHERE day = (SELECT max(day) FROM {table.name}) LIMIT {NUM_TYPED_ROWS}
        ),
        entries AS (SELECT unnest(map_entries(attributes), recursive := true) FROM latest)
        SELECT
            key,
            bool_and(coalesce(try_cast(value AS BIGINT)::VARCHAR = value, false)),
            bool_and(try_cast(value AS DOUBLE) IS NOT NULL AND NOT regexp_matches(value, '^-?0[0-9]')),
            bool_and(try_cast(value AS DATE) IS NOT NULL)
        FROM entries WHERE value IS NOT NULL GROUP BY key ORDER BY key
    """).fetchall()  # noqa: S608 - our own names
    columns = {key: key, "day": "day"}
    for name, is_whole, is_number, is_date in known:
        kind = "BIGINT" if is_whole else "DOUBLE" if is_number else "DATE" if is_date else "VARCHAR"
        if name.lower() not in columns:  # DuckDB's names ignore case
            columns[name.lower()] = f"try_cast(attributes[{_quoted(name)}] AS {kind}) AS {_name(name)}"
    connection.execute(f"CREATE VIEW {view} AS SELECT {', '.join(columns.values())} FROM {table.name}")  # noqa: S608
    meanings = {column.name: column.meaning for column in table.columns if column.name == key}
    _comment(connection, view, f"The attributes of `{table.name}`, one typed column each.", meanings)


def _comment(connection: "duckdb.DuckDBPyConnection", view: str, meaning: str, columns: dict[str, str]) -> None:
    connection.execute(f"COMMENT ON VIEW {view} IS {_quoted(meaning)}")
    for name, column_meaning in columns.items():
        connection.execute(f"COMMENT ON COLUMN {view}.{_name(name)} IS {_quoted(column_meaning)}")


def _name(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def _list(texts: Iterable[str]) -> str:
    return f"[{', '.join(map(_quoted, texts))}]"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def overview(settings: Settings) -> str:
    """Each table with its meaning and its days, one a line."""
    lines = []
    versions = Versions(settings)
    for table in tables.ALL:
        days = partitions.days(settings.lake, table, versions.of(table.versioned_by))
        span = f"{len(days)} days, {days[0]} to {days[-1]}" if days else "no day yet"
        lines.append(f"{table.name:<26}{table.meaning} ({span})")
    lines += [
        f"{attributes_view(table):<26}The attributes of `{table.name}`, one typed column each."
        for table in (tables.ITEMS, tables.USERS)
    ]
    return "\n".join(lines)


def run(connection: "duckdb.DuckDBPyConnection", query: str) -> Iterator["duckdb.DuckDBPyRelation | None"]:
    """Run each statement of the query and yield its result; None if it has none.

    Raises `duckdb.Error` for a wrong statement, and before anything runs for one that could write a file.
    """
    statements = connection.extract_statements(query)
    for statement in statements:
        require_reading(connection, statement)
    for statement in statements:
        yield connection.sql(statement)


def answers(
    settings: Settings, connection: "duckdb.DuckDBPyConnection", text: str
) -> Iterator["duckdb.DuckDBPyRelation | str | None"]:
    """The results of statements as `run` yields them, or what a command such as `.tables` says."""
    import duckdb

    command = _without_semicolon(text)
    if not command.startswith("."):
        yield from run(connection, text)
    elif command == ".tables":
        yield overview(settings)
    elif command == ".help":
        yield HELP
    else:
        raise duckdb.InvalidInputException(f"no command {command}. {HELP}")


def _without_semicolon(text: str) -> str:
    return text.strip().removesuffix(";").rstrip()


def show(result: "duckdb.DuckDBPyRelation | str | None", form: str) -> None:
    """Write a result to standard output, as CSV or as a table. A terminal's table has the rows and columns that fit."""
    if result is None:
        _show("done")
    elif isinstance(result, str):
        _show(result)
    elif form == CSV:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(result.columns)
        for batch in result.project("CAST(COLUMNS(*) AS VARCHAR)").to_arrow_reader(BATCH):
            writer.writerows(zip(*(column.to_pylist() for column in batch.columns), strict=True))
    elif sys.stdout.isatty():
        result.show()
    else:
        result.show(max_rows=EVERYTHING, max_width=EVERYTHING, max_col_width=EVERYTHING)


def prompt(settings: Settings, connection: "duckdb.DuckDBPyConnection", form: str) -> None:
    """Read and answer statements until `.quit` or the end of the input.

    A person sees an error and goes on. With a pipe there is no prompt, the last statement needs no semicolon, and the
    first error ends the program.
    """
    import readline  # noqa: F401 - gives input() history and arrow keys

    import duckdb

    is_typed = sys.stdin.isatty()
    statement, number, first_line = "", 1, 1
    for line_number in count(1):
        try:
            line = input((CONTINUED if statement else PROMPT) if is_typed else "")
        except EOFError:
            if is_typed or not statement.strip():
                return
            line = ";"
        if not statement and _without_semicolon(line) in LEAVING:
            return
        first_line = first_line if statement else line_number
        is_command = not statement and line.strip().startswith(".")
        statement = f"{statement}\n{line}" if statement else line
        if not statement.strip():
            statement = ""
        elif is_command or statement.rstrip().endswith(";"):
            try:
                for result in answers(settings, connection, statement):
                    show(result, form)
                    number += not is_command
            except duckdb.Error as error:
                if not is_typed:
                    sys.exit(f"error in line {first_line}, statement {number}: {error}")
                _show(f"error: {error}")
            statement = ""


def _show(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="grasp sql", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("query", nargs="?", help="statements; without them a prompt opens, or a pipe is read")
    parser.add_argument("--format", choices=(TABLE, CSV), default=TABLE, help="how results are written")
    arguments = parser.parse_args()
    try:
        settings = Settings.load()
        versions = Versions(settings)
        _ = (versions.embedding, versions.feature)  # a missing model folder is an error that says so
    except (SettingsError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    import duckdb

    connection = connect(settings)
    try:
        if arguments.query:
            for result in answers(settings, connection, arguments.query):
                show(result, arguments.format)
        else:
            if sys.stdin.isatty():
                _show(overview(settings))
                _show(f"\n{HELP}")
            prompt(settings, connection, arguments.format)
        sys.stdout.flush()
    except duckdb.Error as error:
        sys.exit(f"error: {error}")
    except BrokenPipeError:  # the reader, such as `head`, has enough; Python's own flush at the end must not fail
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    prepare(require_models)
    main()
