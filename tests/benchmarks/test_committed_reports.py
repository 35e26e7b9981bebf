"""A committed report says what its committed rows say, and nothing else."""

import shutil

import pytest

from benchmarks import report
from benchmarks.results import RESULTS_FILE
from grasp.settings import ROOT

FOLDERS = sorted(file.parent for file in (ROOT / "docs" / "benchmarks").glob(f"quality-*/{RESULTS_FILE}"))

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_report_is_made_again_from_its_rows(folder, tmp_path):
    copied = shutil.copytree(folder, tmp_path / folder.name)
    for name in (report.REPORT_FILE, "summary.json"):
        (copied / name).unlink()

    report.write(copied)

    for name in (report.REPORT_FILE, "summary.json"):
        assert (copied / name).read_text() == (folder / name).read_text(), f"run python -m benchmarks.report {folder}"
