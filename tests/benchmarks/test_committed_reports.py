"""A committed report says what its committed rows or measurements say, and nothing else."""

import json
import shutil
from pathlib import Path

import pytest

from benchmarks.core.report import Writer
from benchmarks.descriptions.report import REPORT as DESCRIPTIONS
from benchmarks.fresh.report import REPORT as FRESH
from benchmarks.generation.report import REPORT as GENERATION
from benchmarks.quality.report import REPORT as QUALITY
from benchmarks.serving.report import REPORT as SERVING
from benchmarks.training_speed.report import REPORT as TRAINING_SPEED
from grasp.settings import ROOT

WRITERS = {
    "quality-": QUALITY,
    "training-speed": TRAINING_SPEED,
    "generation": GENERATION,
    "serving": SERVING,
    "descriptions": DESCRIPTIONS,
    "fresh": FRESH,
}
REPORTS = [
    pytest.param(folder, writer, id=folder.name)
    for name, writer in WRITERS.items()
    for folder in sorted((ROOT / "docs" / "benchmarks").glob(f"{name}*/"))
]

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize(("folder", "writer"), REPORTS)
def test_the_report_is_made_again_from_what_was_measured(folder: Path, writer: Writer, tmp_path):
    copied = shutil.copytree(folder, tmp_path / folder.name)
    summary = copied / "summary.json"
    summary.write_text(json.dumps({"command": json.loads(summary.read_text())["command"]}))
    for file in (writer.file_of(copied), *copied.glob("*.svg")):
        file.unlink(missing_ok=True)

    writer.write(copied)

    for now, before in zip(written(copied, writer), written(folder, writer), strict=True):
        assert now.read_bytes() == before.read_bytes(), f"write the report of {folder} again"


def written(folder: Path, writer: Writer) -> list[Path]:
    """The report of a folder, in it or beside it, its figures and its plots."""
    return [writer.file_of(folder), folder / "summary.json", *sorted(folder.glob("*.svg"))]
