"""A declared report becomes the same Markdown and the same figures every time."""

import json
from pathlib import Path

import pytest

from benchmarks.core.report import Bullets, Folded, Origin, Plot, Report, Section, Table, Writer
from benchmarks.core.summary import Figure, Goal
from grasp.settings import ROOT

MACHINE = {"processor": "Some CPU", "num_cores": 2, "memory_gib": 8.0, "python": "3.11", "torch": "2"}
WANTED = """\
# A report

- Machine: Some CPU, 2 cores, 8 GiB, Python 3.11, torch 2; it was busy.
- Command: `python -m benchmarks.x --out docs/x --seeds 3`
- Source: commit abc.
- Data: three users.

| figure | value | goal | met |
| --- | --- | --- | --- |
| ndcg | 0.5 | at least 0.4 | yes |
| seconds | – | at most 9 | no |
| share | 0.25 | – | – |

A note.

## First

| a | b |
| --- | --- |
| 1 | 2 |

- one
- two

![a curve](curve.svg)

<details>
<summary>More</summary>

Text.

</details>
"""


def build(folder: Path, command: str) -> Report:
    if not folder.is_dir():
        raise FileNotFoundError(f"no rows in {folder}")
    parts = [
        Table(["a", "b"], [["1", "2"]]),
        Bullets(["one", "two"]),
        Plot("curve.svg", "a curve", lambda file: file.write_text("<svg/>")),
        Folded("More", ["Text."]),
    ]
    return Report(
        "A report",
        Origin(MACHINE, command, "abc", "; it was busy"),
        facts=["Data: three users."],
        figures={"ndcg": Figure(0.5, Goal(0.4)), "seconds": Figure(None, Goal(9, "at most")), "share": Figure(0.25)},
        notes=["A note."],
        sections=[None, Section("First", parts)],
    )


def test_a_report_has_its_origin_its_figures_and_the_sections_that_were_measured(tmp_path):
    Writer("benchmarks.x", build).write(tmp_path, "python -m benchmarks.x --out docs/x --seeds 3")

    assert (tmp_path / "report.md").read_text() == WANTED
    assert (tmp_path / "curve.svg").read_text() == "<svg/>"
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["machine"], summary["commit"]) == (MACHINE, "abc")
    assert summary["figures"]["ndcg"] == {"value": 0.5, "goal": 0.4, "met": True}


def test_a_report_is_written_again_by_its_folder_alone_and_keeps_its_command(tmp_path, capsys):
    writer = Writer("benchmarks.x", build)
    writer.write(tmp_path, "python -m benchmarks.x --out docs/x --seeds 3")

    writer.main([str(tmp_path)])

    assert (tmp_path / "report.md").read_text() == WANTED
    assert f"report: {tmp_path / 'report.md'}" in capsys.readouterr().out


def test_a_folder_without_measurements_is_one_line_for_the_user(tmp_path):
    with pytest.raises(SystemExit, match=f"error: no rows in {tmp_path / 'nowhere'}"):
        Writer("benchmarks.x", build).main([str(tmp_path / "nowhere")])


def test_without_a_summary_the_command_is_the_one_that_makes_the_folder(tmp_path):
    writer = Writer("benchmarks.x", build, file_of=lambda folder: tmp_path / "beside.md")
    writer.write(tmp_path)

    assert "`python -m benchmarks.x --out DIR`" in (tmp_path / "beside.md").read_text()
    assert writer._command_before(ROOT / "docs/x") == "python -m benchmarks.x --out docs/x"
