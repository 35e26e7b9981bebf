"""What the documents tell people to type exists, and what they link to is there."""

import importlib.util
import re
import subprocess
from pathlib import Path

import pytest

from cli.main import app
from grasp.settings import OUTSIDE_SETTINGS, ROOT, Settings

DOCUMENTS = sorted([ROOT / "README.md", ROOT / "ARCHITECTURE.md", *(ROOT / "docs").glob("**/*.md")])
COMMAND_NAMES = {each.name or each.callback.__name__ for each in app.registered_commands}
COMMANDS = re.compile(r"```(?:bash|sh)\n(.*?)```", re.DOTALL)


def lines_of(document: Path) -> list[str]:
    blocks = COMMANDS.findall(document.read_text())
    return [line.split("#")[0].strip() for block in blocks for line in block.splitlines() if line.split("#")[0].strip()]


def targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_make_target_and_module_that_is_named_exists(document):
    for line in lines_of(document):
        for target in re.findall(r"(?:^|&& |\w=\S+ )make ([a-z]+)", line):
            assert target in targets(), f"{document.name}: make {target}"
        for command in re.findall(r"(?:^|[ /;(])grasp ([a-z][a-z-]*)", line):
            assert command in COMMAND_NAMES, f"{document.name}: grasp {command}"
        for module in re.findall(
            r"python -m ((?:grasp|spark_jobs|feature_repo|training|serving|benchmarks|cli)[.\w]*)", line
        ):
            assert importlib.util.find_spec(module), f"{document.name}: {module}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_setting_that_is_named_exists(document):
    known = {f"GRASP_{name.upper()}" for name in Settings.model_fields}
    known |= OUTSIDE_SETTINGS
    named = set(re.findall(r"\bGRASP_[A-Z_]*[A-Z]\b", document.read_text()))
    assert named <= known, f"{document.name}: {sorted(named - known)}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_into_the_project_leads_somewhere(document):
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", document.read_text()):
        assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_the_help_of_make_names_every_target():
    shown = subprocess.run(["make", "-C", str(ROOT), "help"], capture_output=True, text=True, check=True).stdout
    assert all(f"make {target}" in shown for target in targets() - {"help"})


def test_ci_runs_what_the_readme_says():
    ci = (ROOT / ".ci" / "run").read_text()
    assert "make test" in ci
    assert "make check" in ci
    assert "make test" in (ROOT / "README.md").read_text()
