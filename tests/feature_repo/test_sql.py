"""Analysts see every table under its name, with its days; no statement can write a file or read a foreign one."""

# ruff: noqa: S608 - the tables' names are our own

import csv
import os
import subprocess
import sys
from dataclasses import replace

import duckdb
import pyarrow.parquet as pq
import pytest

from feature_repo.sql import HELP, connect, overview
from feature_repo.sql import run as run_sql
from grasp import tables
from spark_jobs.storage.shards import Shards, ShardWriter

DAY, NEXT = "1998-03-01", "1998-03-02"


# COPY inside a text that a function runs.
RUN_TEXT = (
    "json_execute_serialized_sql(json_serialize_sql($$WITH copied AS (COPY items TO '{lake}/copy.csv') FROM copied$$))"
)


def ask(settings, query):
    return connect(settings).sql(query).fetchall()


@pytest.mark.parametrize("table", tables.ALL, ids=lambda table: table.name)
def test_a_table_is_a_view_of_its_columns_day_and_version(two_days, table):
    columns = [row[0] for row in ask(two_days.settings, f"DESCRIBE {table.name}")]
    assert columns == [*table.column_names, "day", *(["version"] if table.versioned_by else [])]
    assert {str(row[0]) for row in ask(two_days.settings, f"SELECT DISTINCT day FROM {table.name}")} == {DAY, NEXT}


def test_an_empty_lake_has_the_same_views_without_rows(settings, two_days):
    empty = settings.model_copy(update={"lake": settings.home / "nothing"})
    for table in tables.ALL:
        assert ask(empty, f"SELECT count(*) FROM {table.name}") == [(0,)]
        described = f"SELECT column_name, column_type FROM (DESCRIBE {table.name})"
        assert ask(empty, described) == ask(settings, described)


def test_another_version_of_a_table_is_not_mixed_in(two_days, settings_with):
    assert ask(settings_with(num_neighbours=3), "SELECT count(*) FROM item_features") == [(0,)]
    assert ask(two_days.settings, "SELECT count(*) FROM item_features") == [(8,)]


def test_times_are_utc_and_lists_are_lists(two_days):
    query = f"SELECT event_timestamp::VARCHAR, len(semantic_embedding) FROM user_features WHERE day = '{DAY}' LIMIT 1"
    assert ask(two_days.settings, query) == [("1998-03-01 23:59:59+00", 4)]


def test_the_overview_explains_every_table(two_days):
    text = overview(two_days.settings)
    for table in tables.ALL:
        assert f"{table.meaning} (2 days, {DAY} to {NEXT})" in text


def run(environment, *arguments, typed=""):
    command = [sys.executable, "-m", "feature_repo.sql", *arguments]
    return subprocess.run(command, env=environment, input=typed, capture_output=True, text=True)


def test_a_query_on_the_command_line_is_answered(two_days, environment):
    result = run(environment, "SELECT count(*) AS num_items FROM items WHERE day = '1998-03-02'")
    assert result.returncode == 0
    assert "num_items" in result.stdout
    assert "4" in result.stdout


def test_a_wrong_query_says_what_is_wrong(two_days, environment):
    result = run(environment, "SELECT * FROM itms")
    assert result.returncode == 1
    assert "Table with name itms does not exist" in result.stderr


def test_a_pipe_ends_at_the_first_wrong_statement_and_names_it(two_days, environment):
    typed = "SELECT 66; SELECT 67;\n.tables\n\nSELECT *\nFROM itms;\nSELECT 77;\n"
    result = run(environment, typed=typed)
    assert result.returncode == 1
    assert result.stderr.startswith("error in line 4, statement 3: ")
    assert "Table with name itms does not exist" in result.stderr
    assert result.stdout.count(tables.ITEMS.meaning) == 1, ".tables was asked for once"
    assert "67" in result.stdout
    assert "77" not in result.stdout


@pytest.mark.parametrize("leave", [".quit", ".exit", "quit", "exit", "exit;"])
def test_statements_after_the_end_are_not_read(two_days, environment, leave):
    result = run(environment, typed=f"SELECT count(*)\nFROM items;\n{leave}\nSELECT 77;\n")
    assert result.returncode == 0
    assert "8" in result.stdout
    assert "77" not in result.stdout


def test_a_command_is_an_argument_too(two_days, environment):
    result = run(environment, ".tables")
    assert result.returncode == 0
    assert tables.ITEMS.meaning in result.stdout


def test_an_unknown_command_is_answered_with_the_known_ones(two_days, environment):
    result = run(environment, ".schema")
    assert result.returncode == 1
    assert result.stderr == f"error: no command .schema. {HELP}\n"


@pytest.mark.parametrize("form", ["table", "csv"])
@pytest.mark.parametrize("num_rows", [3, 100_000])
def test_a_reader_that_has_enough_ends_it_quietly(two_days, environment, form, num_rows):
    """A few rows fail when Python flushes at the end, many while they are written."""
    command = [sys.executable, "-m", "feature_repo.sql", f"FROM range({num_rows})", "--format", form]
    ours, theirs = os.pipe()
    os.close(ours)
    with os.fdopen(theirs, "w") as closed:
        result = subprocess.run(command, env=environment, stdout=closed, stderr=subprocess.PIPE, text=True)
    assert (result.returncode, result.stderr) == (0, "")


def test_a_pipe_gets_answers_only_and_needs_no_last_semicolon(two_days, environment):
    said = run(environment, typed="SELECT 7 AS seven;\nSELECT 8 AS eight").stdout
    assert said.startswith("┌"), "no overview and no prompt"
    assert "seven" in said
    assert "eight" in said
    assert "grasp>" not in said


def test_a_person_gets_the_overview_and_a_prompt(two_days, environment):
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "feature_repo.sql"]
    with os.fdopen(ours, "w") as terminal:
        process = subprocess.Popen(command, env=environment, stdin=theirs, stdout=subprocess.PIPE, text=True)
        os.close(theirs)
        terminal.write(".help\n.schema\nSELECT * FROM itms;\nSELECT 77;\nexit\n")
        terminal.flush()
        shown, _ = process.communicate(timeout=60)
    assert tables.ITEMS.meaning in shown
    assert "grasp> " in shown
    assert shown.count(HELP) == 3, "at the start, asked for, and for an unknown command"
    assert "itms does not exist" in shown, "an error does not end it"
    assert "77" in shown


def test_a_column_that_an_older_day_lacks_is_null_there(two_days):
    file = two_days.folder(tables.GENERATION_METRICS, DAY) / "part-00000.parquet"
    pq.write_table(pq.read_table(file, partitioning=None).drop_columns(["failed_by_history"]), file)
    query = "SELECT DISTINCT day::VARCHAR, failed_by_history IS NULL FROM generation_metrics ORDER BY 1"
    assert ask(two_days.settings, query) == [(DAY, True), (NEXT, False)]


def test_a_process_of_an_older_program_may_log_on_the_same_day(two_days):
    folder = two_days.folder(tables.SERVED_REQUESTS, NEXT)
    rows = pq.read_table(folder / "part-00000.parquet", partitioning=None)
    pq.write_table(rows.drop_columns(["scores"]).slice(0, 1), folder / "part-0-older.parquet")
    query = f"SELECT count(*), count(scores) FROM served_requests WHERE day = '{NEXT}'"
    assert ask(two_days.settings, query) == [(11, 10)]


def test_an_unfinished_file_is_not_read(two_days):
    (two_days.folder(tables.SERVED_REQUESTS, NEXT) / ".part-1.parquet").write_bytes(b"PAR1 half")
    assert ask(two_days.settings, f"SELECT count(*) FROM served_requests WHERE day = '{NEXT}'") == [(10,)]


@pytest.mark.parametrize("table", [tables.ITEM_GENERATION, tables.USER_GENERATION, tables.TEXT_EMBEDDING])
def test_the_files_that_the_jobs_add_to_a_ledger_are_read(two_days, table):
    rows, folder = two_days.rows(table, NEXT), two_days.folder(table, NEXT)
    with ShardWriter(Shards(table, folder, "0a1b2c3d4e5f"), task=0) as writer:
        for row in rows:
            writer.add(row)
    (folder / "part-00000.parquet").unlink()
    assert ask(two_days.settings, f"SELECT count(*) FROM {table.name} WHERE day = '{NEXT}'") == [(len(rows),)]


def test_the_start_opens_no_file_of_the_request_log(two_days, capsys):
    """Four workers write more than ten thousand files a day."""
    for table in (tables.SERVED_REQUESTS, tables.OUTCOMES):
        (two_days.folder(table, DAY) / "part-00000.parquet").write_text("no parquet")
    connection = connect(two_days.settings)
    assert capsys.readouterr().err == ""
    query = f"SELECT count(*) FROM served_requests WHERE day = '{NEXT}'"
    assert connection.sql(query).fetchall() == [(10,)], "files of other days are not opened either"


def test_a_lake_is_read_below_a_folder_of_any_name(small_lake, settings_with, tmp_path):
    settings = settings_with(lake=str(tmp_path / "it's #1" / "lake"))
    replace(small_lake, settings=settings).write_day(DAY)
    for table in tables.ALL:
        assert ask(settings, f"SELECT DISTINCT day::VARCHAR FROM {table.name}") == [(DAY,)]


def test_a_table_that_cannot_be_read_is_named_and_the_others_answer(two_days, capsys):
    (two_days.folder(tables.QUARANTINE, NEXT) / "part-00000.parquet").write_text("no parquet")
    assert ask(two_days.settings, "SELECT count(*) FROM items") == [(8,)]
    said = capsys.readouterr().err
    assert said.startswith("warning: quarantine is left out, it cannot be read: ")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT * FROM read_text('/etc/hostname')",
        "SELECT * FROM glob('/etc/*')",
        "COPY items TO '{home}/copy.csv'",
        "COPY items TO '{lake}/copy.csv'",
        "EXPLAIN ANALYZE COPY items TO '{lake}/copy.csv'",
        "EXPLAIN (ANALYZE) COPY items TO '{lake}/copy.csv'",
        "PREPARE later AS COPY items TO '{lake}/copy.csv'",
        "SELECT 1; COPY items TO '{lake}/copy.csv'",
        "COPY (PIVOT items ON day USING count(*)) TO '{lake}/copy.csv'",
        "EXPLAIN ANALYZE COPY (PIVOT items ON day USING count(*)) TO '{lake}/copy.csv'",
        "PREPARE later AS PIVOT items ON day USING count(*)",
        "WITH copied AS (COPY items TO '{lake}/copy.csv') FROM copied",
        "CREATE TABLE t AS WITH copied AS (/**/COPY/**/items TO '{lake}/copy.csv') FROM copied",
        f"FROM {RUN_TEXT}",
        f'FROM "query" /**/ ($outer$FROM {RUN_TEXT}$outer$)',
        "EXPORT DATABASE '{lake}/copy'",
        "ATTACH '{lake}/copy.db'",
        "INSTALL httpfs",
        "UPDATE EXTENSIONS",
        "LOAD httpfs",
        "SET enable_external_access = true",
        "SET allowed_directories = ['/']",
        "SELECT * FROM settings",
    ],
)
def test_no_statement_reads_or_writes_elsewhere(two_days, statement):
    settings = two_days.settings
    before = sorted(settings.home.glob("**/*"))
    with pytest.raises(duckdb.Error):
        for result in run_sql(connect(settings), statement.format(home=settings.home, lake=settings.lake)):
            result.fetchall()
    assert sorted(settings.home.glob("**/*")) == before


@pytest.mark.parametrize(
    "statement",
    [
        "EXPLAIN SELECT 1",
        "PIVOT items ON day USING count(*)",
        "EXPLAIN ANALYZE PIVOT items ON day USING count(*)",
        "/* é */ CREATE TABLE t AS PIVOT items ON day USING count(*)",
        "WITH days AS (PIVOT items ON day USING count(*)) FROM days",
        "CREATE TABLE t AS FROM items",
        "DESCRIBE items",
        "SELECT 'COPY' AS \"copy\" -- COPY",
    ],
)
def test_what_only_reads_is_answered(two_days, statement):
    for result in run_sql(connect(two_days.settings), statement):
        result.fetchall()


def test_tables_and_columns_carry_their_meaning(two_days):
    connection = connect(two_days.settings)
    shown = connection.sql("SELECT view_name, comment FROM duckdb_views() WHERE NOT internal").fetchall()
    assert {(table.name, table.meaning) for table in tables.ALL} <= set(shown)
    query = "SELECT column_name, comment FROM duckdb_columns() WHERE table_name = 'item_features'"
    meanings = {column.name: column.meaning for column in tables.ITEM_FEATURES.columns}
    assert meanings.items() <= dict(connection.sql(query).fetchall()).items()


def test_attributes_have_types(two_days):
    attributes = [("Age", "30"), ("since", "1998-01-31"), ("score", "2.5"), ("zip_code", "01234"), ("age", "x")]
    two_days.change(tables.USERS, NEXT, 0, attributes=attributes)
    query = f"SELECT * EXCLUDE (day) FROM user_attributes WHERE day = '{NEXT}' AND user_id = 'u1'"
    result = connect(two_days.settings).sql(query)
    types = dict(zip(result.columns, map(str, result.types), strict=True))
    assert types == {
        "user_id": "VARCHAR",
        "Age": "BIGINT",
        "score": "DOUBLE",
        "since": "DATE",
        "zip_code": "VARCHAR",
    }
    ((_, age, score, since, zip_code),) = result.fetchall()
    assert (age, score, str(since), zip_code) == (30, 2.5, "1998-01-31", "01234")


def test_a_pipe_gets_every_row_and_column(two_days, environment):
    columns = ", ".join(f"range AS a_long_name_of_column_{number}" for number in range(40))
    said = run(environment, f"SELECT {columns} FROM range(300)").stdout
    assert "a_long_name_of_column_20 " in said
    assert all(f" {number} " in said for number in range(300))


def test_a_pipe_may_make_tables_and_explain(two_days, environment):
    typed = "CREATE TABLE t AS FROM items; INSERT INTO t FROM items; SELECT count(*) FROM t; EXPLAIN FROM t"
    for form in ("table", "csv"):
        result = run(environment, "--format", form, typed=typed)
        assert result.returncode == 0, result.stderr
        assert "error" not in result.stdout
        assert "16" in result.stdout


def test_csv_has_every_row_and_is_read_back(two_days, environment):
    query = "SELECT range AS number, 'a,\"b\n' AS text, [1, 2] AS list, NULL AS nothing FROM range(3000)"
    said = run(environment, query, "--format", "csv").stdout
    header, *rows = csv.reader(said.splitlines(keepends=True))
    assert header == ["number", "text", "list", "nothing"]
    assert len(rows) == 3000
    assert rows[2999] == ["2999", 'a,"b\n', "[1, 2]", ""]
