"""`grasp`: its help names every command, a wrong setting ends it with one line, and modules need nothing prepared."""

import json
import os
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from cli.main import COMMANDS
from grasp.settings import ROOT

NOTHING_PREPARED = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}


def run(*arguments: str, cwd: Path = ROOT, **variables: str) -> subprocess.CompletedProcess[str]:
    """A program in a bare environment, as a new shell has it."""
    environment = {**NOTHING_PREPARED, **variables}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=60
    )


def test_the_help_groups_every_command():
    shown = run("-m", "cli.main", "--help").stdout
    assert all(f" {command.name} " in shown for command in COMMANDS)
    assert [shown.index(group) for group in ("Every day", "Releases", "Set up")] == sorted(
        shown.index(group) for group in ("Every day", "Releases", "Set up")
    )


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_command_starts_a_module_that_is_there(command):
    assert find_spec(command.module)


def test_arguments_and_questions_for_help_reach_the_module(tmp_path):
    shown = run("-m", "cli.main", "release", "rollback", "--help", GRASP_HOME=str(tmp_path))
    assert shown.returncode == 0
    assert shown.stdout.startswith("usage: grasp release rollback")


@pytest.mark.parametrize(
    ("arguments", "variables", "message"),
    [
        (["cli.main", "demo"], {"GRASP_PORTT": "1"}, "error: GRASP_PORTT is not a setting; did you mean GRASP_PORT?"),
        (
            ["cli.main", "sql"],
            {"GRASP_LAKE": "~nobody-of-this-name/lake"},
            "error: GRASP_LAKE: Could not determine home",
        ),
        (
            ["cli.main", "refresh", "--day", "1998-03-01"],
            {"GRASP_SOURCE": "/nonexistent"},
            "error: GRASP_SOURCE: /nonexistent is not a folder",
        ),
        (
            ["cli.main", "airflow"],
            {"GRASP_SOURCE": "/nonexistent"},
            "error: GRASP_SOURCE: /nonexistent is not a folder",
        ),
        (
            ["cli.main", "feast", "apply"],
            {"GRASP_FEATURE_STORE_YAML": "/no.yaml"},
            "error: GRASP_FEATURE_STORE_YAML: /no.yaml does not exist",
        ),
        (
            ["serving.http.app"],
            {"GRASP_FEATURE_STORE_YAML": "/no.yaml"},
            "error: GRASP_FEATURE_STORE_YAML: /no.yaml does not exist",
        ),
        (
            ["spark_jobs.ingest", "--day", "1998-03-01"],
            {"GRASP_SOURCE": "/nonexistent"},
            "error: GRASP_SOURCE: /nonexistent is not a folder",
        ),
        (
            ["feature_repo.materialise", "--day", "1998-03-01"],
            {"GRASP_LLM": "/nonexistent"},
            "error: GRASP_LLM: /nonexistent holds no model",
        ),
    ],
)
def test_what_is_wrong_ends_a_program_at_once_with_one_line(tmp_path, arguments, variables, message):
    ended = run("-m", *arguments, GRASP_HOME=str(tmp_path), **variables)
    assert ended.returncode == 1
    assert ended.stderr.startswith(message)
    assert ended.stderr.count("\n") == 1


def test_a_day_that_is_not_over_is_refused_before_airflow_starts(settings_with, tmp_path):
    for table in ("interactions", "items"):
        (tmp_path / f"{table}.tsv").touch()
    ended = run("-m", "cli.refresh", "--day", "2099-01-01", **settings_with(source=tmp_path).variables())
    assert ended.stderr.startswith("error: 2099-01-01 is after the clock")
    assert ended.stderr.count("\n") == 1
    assert not (tmp_path / "airflow").exists()


def test_a_module_that_is_started_by_itself_has_its_whole_environment(tmp_path):
    program = tmp_path / "shown.py"
    program.write_text(
        "import json, os, sys\n"
        "from grasp.environment import prepare\n"
        "if __name__ == '__main__':\n"
        "    prepare()\n"
        "    print(json.dumps([os.getpid(), sys.argv[1:], dict(os.environ)]))\n"
    )
    process = subprocess.Popen(
        [sys.executable, str(program), "an argument"],
        env={**NOTHING_PREPARED, "PYTHONPATH": str(ROOT), "GRASP_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"},
        stdout=subprocess.PIPE,
        text=True,
    )
    pid, arguments, environment = json.loads(process.communicate(timeout=60)[0])

    assert pid == process.pid, "it began again in its own place"
    assert arguments == ["an argument"]
    assert environment["PYSPARK_PYTHON"] == sys.executable
    assert environment["OMP_NUM_THREADS"] == "1"
    assert environment["GRASP_LAKE"] == str(tmp_path / "lake")
    assert environment["HF_HUB_OFFLINE"] == "0", "what is set already wins"


def test_a_folder_with_our_name_where_the_user_stands_hides_nothing(tmp_path):
    (tmp_path / "serving").mkdir()
    (tmp_path / "serving" / "__init__.py").write_text("raise SystemExit('theirs')")
    program = f"import sys; sys.path[0] = {str(ROOT)!r}; from cli.main import main; main()"
    shown = run("-c", program, "release", "list", "--help", cwd=tmp_path, GRASP_HOME=str(tmp_path))
    assert shown.stdout.startswith("usage: grasp release list")


def test_the_help_of_fetch_fetches_nothing(tmp_path):
    shown = run("-m", "cli.main", "fetch", "--help", GRASP_HOME=str(tmp_path))
    assert shown.stdout.startswith("usage: grasp fetch")


def test_a_port_that_is_taken_is_named(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        ended = run("-m", "serving.http.app", GRASP_HOME=str(tmp_path), GRASP_PORT=port)
    assert ended.returncode == 1
    assert ended.stderr == f"error: GRASP_PORT: 127.0.0.1:{port} cannot be used: Address already in use\n"
