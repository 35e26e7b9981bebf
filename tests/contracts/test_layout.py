"""The map in ARCHITECTURE.md names every folder, and the tests' folders mirror the code's."""

import re
from pathlib import Path

import pytest

from grasp.settings import ROOT

MAPPED = ("benchmarks", "cli", "dags", "docs", "feature_repo", "grasp", "serving", "spark_jobs", "tests", "training")
OF_ONE_LEVEL = ("docs", "tests")  # below: raw measurements of a report, and what mirrors the code
WITHOUT_A_MIRROR = (Path("contracts"), Path("e2e"))


def folders(top: Path) -> list[Path]:
    """`top` and every folder below it that holds a file, relative to the project; compiled files do not count."""
    files = [file.relative_to(ROOT) for file in top.rglob("*") if file.is_file()]
    kept = [file for file in files if not any(part.startswith((".", "__pycache__")) for part in file.parts)]
    return sorted({folder for file in kept for folder in file.parents if folder.parts})


CODE = {folder for top in MAPPED if top not in OF_ONE_LEVEL for folder in folders(ROOT / top)}


@pytest.mark.parametrize("top", MAPPED)
def test_the_map_names_every_folder(top):
    page = (ROOT / "ARCHITECTURE.md").read_text()
    found = [folder for folder in folders(ROOT / top) if top not in OF_ONE_LEVEL or len(folder.parts) <= 2]
    assert found
    missing = [f"{folder}/" for folder in found if not re.search(rf"(?<![\w/]){folder}/(?!\w)", page)]
    assert missing == [], "write each folder's full path, with a slash at its end, into ARCHITECTURE.md"


def test_tests_lie_where_the_code_lies():
    tested = {file.parent.relative_to(ROOT / "tests") for file in (ROOT / "tests").rglob("test_*.py")}
    assert tested
    assert sorted(tested - CODE - set(WITHOUT_A_MIRROR)) == [], "no such folder in the code"
