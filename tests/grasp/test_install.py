"""Installing says how far it is every few seconds, not what pip says; a failure shows pip's error and its log."""

import subprocess
import sys
from pathlib import Path

import pytest

from grasp.settings import ROOT

SAYS = """#!/bin/sh
[ "$1" = check ] && exit 0
echo Collecting torch
echo "  Downloading torch.whl (1 GB)"
sleep 2.5
echo Collecting numpy
"""


@pytest.fixture
def install(tmp_path):
    """`install(pip)`: the script with this program as pip, in a virtual environment that is there already."""

    def run(pip: str) -> tuple[subprocess.CompletedProcess[str], Path]:
        venv = tmp_path / "venv"
        (venv / "bin").mkdir(parents=True)
        (venv / "bin" / "python").symlink_to(sys.executable)
        (venv / "bin" / "pip").write_text(pip)
        (venv / "bin" / "pip").chmod(0o755)
        command = ["bash", str(ROOT / "requirements" / "install.sh"), str(venv), "1"]
        environment = {"PATH": "/usr/bin:/bin", "GRASP_PYTHON": sys.executable}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
        return done, venv / "install.log"

    return run


def test_the_log_has_what_pip_says_and_the_terminal_how_far_it_is(install):
    done, log = install(SAYS)
    assert done.returncode == 0, done.stderr
    assert "Collecting" not in done.stdout
    assert "Downloading" not in done.stdout
    assert "[grasp] installing: 1 packages found, " in done.stdout
    assert done.stdout.count("[grasp] installing: ") <= 6, "no line a package"
    assert log.read_text().count("Collecting numpy") == 2


def test_a_failure_shows_the_error_of_pip_and_names_the_log(install):
    done, log = install("#!/bin/sh\necho Collecting torch\necho 'ERROR: no such package'\nexit 1\n")
    assert done.returncode == 1
    assert done.stderr == f"ERROR: no such package\nerror: pip failed; {log} has all that it said\n"
