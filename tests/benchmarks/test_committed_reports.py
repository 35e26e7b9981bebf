"""A committed report says what its committed rows or measurements say, and nothing else."""

import shutil
from pathlib import Path

import pytest

from benchmarks.descriptions import report as descriptions_report
from benchmarks.generation import report as generation_report
from benchmarks.quality import report
from benchmarks.serving import report as serving_report
from benchmarks.training_speed import report as speed_report
from grasp.settings import ROOT

DESCRIPTIONS = "python -m benchmarks.descriptions --out docs/benchmarks/descriptions"
GENERATION = "python -m benchmarks.generation --out docs/benchmarks/generation"
SERVING = "python -m benchmarks.serving --data $GRASP_DATA/beauty --out docs/benchmarks/serving"
WRITE_AGAIN = {
    "quality-": report.write,
    "training-speed": speed_report.write,
    "generation": lambda folder: generation_report.write(folder, GENERATION),
    "serving": lambda folder: serving_report.write(folder, SERVING),
    "descriptions": lambda folder: descriptions_report.write(folder, DESCRIPTIONS),
}
REPORTS = [
    pytest.param(folder, write, id=folder.name)
    for name, write in WRITE_AGAIN.items()
    for folder in sorted((ROOT / "docs" / "benchmarks").glob(f"{name}*/"))
]

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize(("folder", "write"), REPORTS)
def test_the_report_is_made_again_from_what_was_measured(folder, write, tmp_path):
    copied = shutil.copytree(folder, tmp_path / folder.name)
    for file in filter(Path.exists, written(copied)):
        file.unlink()

    write(copied)

    for now, before in zip(written(copied), written(folder), strict=True):
        assert now.read_text() == before.read_text(), f"write the report of {folder} again"


def written(folder: Path) -> tuple[Path, Path]:
    """The report of a folder, in it or beside it, and its figures."""
    beside = descriptions_report.report_file(folder)
    return beside if folder.name == "descriptions" else folder / "report.md", folder / "summary.json"
