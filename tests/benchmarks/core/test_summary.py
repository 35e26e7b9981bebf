import json
import math
import subprocess

import pytest

from benchmarks.core import machine
from benchmarks.core.summary import Figure, Goal, table, write_summary


@pytest.mark.parametrize(
    ("value", "direction", "met"),
    [
        (1.0, "at least", True),
        (0.999, "at least", False),
        (1.0, "at most", True),
        (1.001, "at most", False),
        (None, "at least", False),
        (None, "at most", False),
    ],
)
def test_goals_know_their_direction(value, direction, met):
    assert Goal(1.0, direction).is_met(value) is met


def test_a_summary_holds_machine_command_commit_and_figures(tmp_path):
    write_summary(
        tmp_path,
        "python -m x",
        {
            "quick": Figure(9.5, Goal(10, "at most")),
            "unknown": Figure(math.nan, Goal(0)),
            "near": Figure(0.0499999, Goal(0.05)),
        },
    )

    found = json.loads((tmp_path / "summary.json").read_text())
    assert set(found) == {"machine", "command", "commit", "figures"}
    assert found["command"] == "python -m x"
    assert found["figures"]["quick"] == {"value": 9.5, "goal": 10, "met": True}
    assert found["figures"]["unknown"] == {"value": None, "goal": 0, "met": False}
    assert found["figures"]["near"]["met"] is False  # though it would round to its goal


def test_all_summaries_make_one_aligned_table(tmp_path):
    write_summary(tmp_path / "speed", "x", {"seconds": Figure(12, Goal(10, "at most"))})
    figures = {"ndcg": Figure(0.07, Goal(0.068)), "later": Figure(None, Goal(1.1)), "reported": Figure(1.25)}
    write_summary(tmp_path / "quality", "x", figures)

    assert table(tmp_path).splitlines() == [
        "report   figure    value  goal   met",
        "quality  ndcg      0.07   0.068  yes",
        "quality  later     -      1.1    no",
        "quality  reported  1.25   -      -",
        "speed    seconds   12     10     no",
        "1 of 3 goals met",
    ]


def test_no_summary_at_all_is_said(tmp_path):
    assert "no figures" in table(tmp_path)


def test_the_machine_is_described_without_its_name():
    found = machine.machine()

    assert set(found) == {"processor", "num_cores", "memory_gib", "python", "torch"}
    assert found["num_cores"] >= 1
    assert 0.1 < found["memory_gib"] < 100_000
    assert found["torch"] in machine.describe(found)


def test_the_processor_is_named_where_the_system_tells(tmp_path):
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\n")
    (tmp_path / "silent").write_text("processor\t: 0\n")

    assert machine.processor(tmp_path / "cpuinfo") == "Some CPU @ 2 GHz"
    assert machine.processor(tmp_path / "silent") == machine.platform.machine()


def git(folder, *arguments):
    author = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    subprocess.run(["git", "-C", folder, *author, *arguments], check=True, capture_output=True)


def test_a_commit_is_dirty_only_when_tracked_source_differs(tmp_path, monkeypatch):
    report = tmp_path / "docs" / "benchmarks" / "results.jsonl"
    report.parent.mkdir(parents=True)
    (tmp_path / "model.py").write_text("1")
    report.write_text("1")
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "x")
    monkeypatch.chdir("/")
    clean = machine.commit(tmp_path)

    (tmp_path / "new.py").write_text("2")
    report.write_text("a growing report")
    assert machine.commit(tmp_path) == clean
    assert len(clean) >= 7
    (tmp_path / "model.py").write_text("2")
    assert machine.commit(tmp_path) == f"{clean}-dirty"


def test_a_folder_without_git_has_no_commit(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))

    assert machine.commit(tmp_path) == "unknown"
