"""Analysts see every table under its name, with its days; a wrong statement only gives an error."""

# ruff: noqa: S608 - the tables' names are our own

import os
import subprocess
import sys

import pytest

from feature_repo.sql import connect, overview
from grasp import tables

DAY, NEXT = "1998-03-01", "1998-03-02"


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
    assert ask(two_days.settings, query) == [("1998-03-01 23:59:59.999999+00", 4)]


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


def test_statements_from_a_pipe_go_on_after_an_error(two_days, environment):
    typed = "SELECT * FROM itms;\n.tables\nSELECT count(*)\nFROM items;\n.quit\nSELECT 77;\n"
    result = run(environment, typed=typed)
    assert result.returncode == 0
    assert "Table with name itms does not exist" in result.stdout
    assert result.stdout.count("The catalogue as known on the day.") == 1, ".tables was asked for once"
    assert "8" in result.stdout
    assert "77" not in result.stdout


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
        terminal.write("SELECT 77;\n.quit\n")
        terminal.flush()
        shown, _ = process.communicate(timeout=60)
    assert "The catalogue as known on the day." in shown
    assert "grasp> " in shown
    assert "77" in shown
