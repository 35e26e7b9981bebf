"""A committed report says what its committed rows or measurements say, and nothing else."""

import shutil

import pytest

from benchmarks import generation_report, report, speed_report
from grasp.settings import ROOT

GENERATION = "python -m benchmarks.generation --out docs/benchmarks/generation"
WRITE_AGAIN = {
    "quality-": report.write,
    "training-speed": speed_report.write,
    "generation": lambda folder: generation_report.write(folder, GENERATION),
}
REPORTS = [
    pytest.param(folder, write, id=folder.name)
    for name, write in WRITE_AGAIN.items()
    for folder in sorted((ROOT / "docs" / "benchmarks").glob(f"{name}*"))
]

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize(("folder", "write"), REPORTS)
def test_the_report_is_made_again_from_what_was_measured(folder, write, tmp_path):
    copied = shutil.copytree(folder, tmp_path / folder.name)
    for name in ("report.md", "summary.json"):
        (copied / name).unlink()

    write(copied)

    for name in ("report.md", "summary.json"):
        assert (copied / name).read_text() == (folder / name).read_text(), f"write the report of {folder} again"
