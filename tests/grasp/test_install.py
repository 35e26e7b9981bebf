"""Set-up of the virtual environment: a named Python is used or missed by name, and pip's output goes to a file."""

import subprocess
from pathlib import Path

import pytest

from grasp.settings import ROOT

# Like Python as far as the script goes: answers its questions, and makes an environment with the `pip` beside it.
PYTHON = """#!/bin/bash
[ "$1" = -m ] || exit 0
mkdir -p "$3/bin" && cp "$(dirname "$0")/pip" "$3/bin/pip" && cp "$0" "$3/bin/python"
"""
PIP = """#!/bin/bash
echo "Collecting $*"
[ "$*" != "{broken}" ] || { echo "ERROR: no such package"; exit 1; }
"""


@pytest.fixture
def programs(tmp_path) -> Path:
    """A folder with the programs that the script finds."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in (("python3", PYTHON), ("pip", PIP)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    for name in ("bash", "dirname", "mkdir", "tail", "cp", "cut", "grep", "sleep"):
        (folder / name).symlink_to(f"/usr/bin/{name}")
    return folder


SCRIPT = ROOT / "requirements" / "install.sh"


def install(programs: Path, script: Path = SCRIPT, **variables: str) -> subprocess.CompletedProcess[str]:
    home = programs.parent
    environment = {"PATH": str(programs), "GRASP_HOME": str(home / "grasp"), **variables}
    command = ["/usr/bin/bash", str(script), str(home / "venv")]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def test_a_named_python_that_is_not_there_is_an_error(programs):
    ended = install(programs, GRASP_PYTHON="/nowhere/python3.11")
    assert ended.returncode == 1
    assert ended.stderr == "error: GRASP_PYTHON=/nowhere/python3.11: no such program\n"
    assert ended.stdout == ""


def test_the_terminal_shows_a_line_a_step_and_a_file_has_the_rest(programs):
    ended = install(programs, GRASP_TORCH_INDEX="https://example.com/cpu")
    assert (ended.returncode, ended.stderr) == (0, "")
    lines = ended.stdout.splitlines()
    assert all(line.startswith("[grasp] ") for line in lines)
    assert len(lines) < 10
    log = programs.parent / "grasp" / "logs" / "install.log"
    assert str(log) in ended.stdout
    collected = log.read_text()
    assert "torch==2.13.0 --index-url https://example.com/cpu" in collected
    assert "base.txt" in collected
    assert "Collecting check" in collected


def test_a_step_that_fails_shows_the_last_lines_and_where_the_rest_is(programs):
    (programs / "pip").write_text(PIP.replace("{broken}", "check"))
    ended = install(programs)
    assert ended.returncode == 1
    *shown, last = ended.stderr.splitlines()
    assert shown[-1] == "ERROR: no such package"
    assert last.startswith("error: checking that the packages fit together: failed; all of it is in ")
    assert Path(last.split()[-1]).exists()


def test_a_step_that_takes_minutes_shows_how_far_it_is(programs):
    (programs / "pip").write_text(f"{PIP}case $* in *base.txt*) sleep 1 ;; esac\n")
    script = programs.parent / "install.sh"
    script.write_text(SCRIPT.read_text().replace("read -rt 60", "read -rt 0.3"))
    ended = install(programs, script)
    assert (ended.returncode, ended.stderr) == (0, "")
    beats = [line for line in ended.stdout.splitlines() if "..." in line]
    assert len(beats) in (2, 3)
    assert beats[0].startswith("[grasp]   ... 1 packages so far: Collecting install --progress-bar off")


@pytest.mark.parametrize(("variables", "fetch"), [(["DATA=shop"], "fetch --models"), ([], "fetch")])
def test_movielens_is_fetched_only_where_no_folder_is_named(variables, fetch):
    """What is fetched is tested with the command itself."""
    command = ["make", "-C", str(ROOT), "-n", "-B", "setup", *variables]
    shown = subprocess.run(command, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=True)
    assert [line.strip() for line in shown.stdout.splitlines() if "fetch" in line] == [f".venv/bin/grasp {fetch}"]
