"""The command that a report names: what anyone would type to make it again."""

from pathlib import Path

import pytest

from benchmarks.core.invocation import command, of_report, write_again
from benchmarks.quality import measure as quality
from benchmarks.serving import measure as serving
from grasp.settings import ROOT

LEFT_OUT = {"cache", "only"}


@pytest.mark.parametrize(
    ("typed", "named"),
    [
        (["--data", "movielens", "--out", "docs/x"], "--data movielens --out docs/x"),
        (["--data", "/srv/data/beauty", "--out", str(ROOT / "docs/x")], "--data $GRASP_DATA/beauty --out docs/x"),
        (["--out", "/elsewhere/x", "--data", "beauty"], "--data $GRASP_DATA/beauty --out DIR"),
        (
            ["--data", "movielens", "--out", "x", "--cache", "/y", "--workers", "2", "--no-milvus", "--soak-rate", "9"],
            "--data movielens --out x --soak-rate 9.0 --no-milvus",
        ),
    ],
)
def test_it_names_what_differs_from_the_defaults_and_no_path_of_this_machine(typed, named):
    given = serving.parser().parse_args(typed)

    assert command(serving.parser(), given, left_out=LEFT_OUT) == f"python -m benchmarks.serving {named}"


def test_a_report_that_is_made_again_keeps_its_command(tmp_path):
    assert of_report("python -m benchmarks.x", tmp_path) == "python -m benchmarks.x --out DIR"
    assert of_report("python -m benchmarks.x", ROOT / "docs/x") == "python -m benchmarks.x --out docs/x"
    (tmp_path / "summary.json").write_text('{"command": "python -m benchmarks.x --out docs/x --seeds 3"}')
    assert of_report("python -m benchmarks.x", tmp_path) == "python -m benchmarks.x --out docs/x --seeds 3"


def test_a_report_is_written_again_by_its_folder_alone(tmp_path, capsys):
    def write(folder: Path) -> None:
        if not folder.is_dir():
            raise FileNotFoundError(f"no rows in {folder}")
        (folder / "report.md").write_text("it")

    write_again("benchmarks.x", write, "rows.jsonl", "report.md", [str(tmp_path)])

    assert (tmp_path / "report.md").read_text() == "it"
    assert f"report: {tmp_path / 'report.md'}" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=f"error: no rows in {tmp_path / 'nowhere'}"):
        write_again("benchmarks.x", write, "rows.jsonl", "report.md", [str(tmp_path / "nowhere")])


def test_a_default_that_depends_on_the_data_is_not_named(tmp_path):
    given = quality.parse(["--data", str(tmp_path / "fashion"), "--out", "x", "--minutes", "5"])

    assert given.command == "python -m benchmarks.quality --data $GRASP_DATA/fashion --out x"
    assert (given.validation_users, given.out) == (0, Path("x"))
