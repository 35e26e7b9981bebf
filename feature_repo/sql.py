"""Every table and feature view as SQL: `grasp sql [QUERY]`, or `make sql`.

DuckDB in memory reads the lake's parquet. Each view has its table's name, its columns and `day`. A versioned table
shows the current version, in the column `version`. Nothing is written to the lake.
"""

import argparse
import sys
from typing import TYPE_CHECKING

from grasp import partitions, tables
from grasp.environment import prepare
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
PROMPT, CONTINUED = "grasp> ", "  ...> "
HELP = "SQL ends with a semicolon; .tables lists the tables, .quit leaves."


def connect(settings: Settings) -> "duckdb.DuckDBPyConnection":
    """A database in memory with one view per table, times in UTC. A table without days is an empty view."""
    import duckdb

    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    versions = Versions(settings)
    for table in tables.ALL:
        connection.execute(view(settings, table, versions.of(table.versioned_by)))
    return connection


def view(settings: Settings, table: Table, version: str | None) -> str:
    """The CREATE VIEW statement of a table."""
    source, day = _empty(table), "NULL::DATE"
    if partitions.days(settings.lake, table, version):
        files = partitions.table_path(settings.lake, table, version) / "day=*" / "*.parquet"
        source, day = f"read_parquet({_quoted(str(files))}, hive_partitioning = true)", "day::DATE"
    columns = [_column(column.name, column.type) for column in table.columns]
    columns.append(f"{day} AS day")
    if version:
        columns.append(f"{_quoted(version)} AS version")
    return f"CREATE VIEW {table.name} AS SELECT {', '.join(columns)} FROM {source}"  # noqa: S608 - our own names


def _column(name: str, kind: str) -> str:
    return f'"{name}"::{DUCKDB_TYPES[kind]} AS "{name}"'


def _empty(table: Table) -> str:
    nulls = ", ".join(f'NULL AS "{column.name}"' for column in table.columns)
    return f"(SELECT {nulls} WHERE false)"


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
    return "\n".join(lines)


def prompt(settings: Settings, connection: "duckdb.DuckDBPyConnection") -> None:
    """Read and answer statements until `.quit` or the end of the input; an error is shown and reading goes on.

    With a pipe there is no prompt, and the last statement needs no semicolon.
    """
    import readline  # noqa: F401 - gives input() history and arrow keys

    import duckdb

    is_typed = sys.stdin.isatty()
    statement = ""
    while True:
        try:
            line = input((CONTINUED if statement else PROMPT) if is_typed else "")
        except EOFError:
            if is_typed or not statement.strip():
                return
            line = ";"
        if not statement and line.strip() in {".quit", ".exit"}:
            return
        if not statement and line.strip() == ".tables":
            _show(overview(settings))
            continue
        statement = f"{statement}\n{line}" if statement else line
        if not statement.strip():
            statement = ""
        elif statement.rstrip().endswith(";"):
            try:
                _show(answer(connection, statement))
            except duckdb.Error as error:
                _show(f"error: {error}")
            statement = ""


def answer(connection: "duckdb.DuckDBPyConnection", statement: str) -> str:
    """The result as a text table; raises `duckdb.Error` for a wrong statement."""
    result = connection.sql(statement)
    return str(result).rstrip() if result is not None else "done"


def _show(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="grasp sql", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("query", nargs="?", help="one statement; without it a prompt opens, or a pipe is read")
    arguments = parser.parse_args()
    try:
        settings = Settings.load()
        versions = Versions(settings)
        _ = (versions.embedding, versions.feature)  # a missing model folder is an error that says so
    except (SettingsError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    import duckdb

    connection = connect(settings)
    if arguments.query:
        try:
            _show(answer(connection, arguments.query))
        except duckdb.Error as error:
            sys.exit(f"error: {error}")
        return
    if sys.stdin.isatty():
        _show(overview(settings))
        _show(f"\n{HELP}")
    prompt(settings, connection)


if __name__ == "__main__":
    prepare(require_models)
    main()
