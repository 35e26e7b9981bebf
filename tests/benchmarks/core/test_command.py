"""The command line that a report names, and the options that benchmarks share."""

from pathlib import Path

import pytest

from benchmarks.core import command
from benchmarks.quality import measure as quality
from benchmarks.serving import measure as serving
from grasp.settings import ROOT


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
    assert command.parse(serving.parser(), typed).command == f"python -m benchmarks.serving {named}"


def test_a_default_that_depends_on_the_data_is_not_named(tmp_path):
    given = quality.parse(["--data", str(tmp_path / "fashion"), "--out", "x", "--minutes", "5"])

    assert given.command == "python -m benchmarks.quality --data $GRASP_DATA/fashion --out x"
    assert (given.validation_users, given.out) == (0, Path("x"))


def test_an_unknown_kind_of_measurement_is_named(capsys):
    parser = command.new_parser("benchmarks.x", "", ["curve", "positions"])

    assert parser.parse_args(["--out", "x", "--only", "positions"]).only == ("positions",)
    assert parser.parse_args(["--out", "x"]).only == ("curve", "positions")
    with pytest.raises(SystemExit):
        parser.parse_args(["--out", "x", "--only", "curve,race"])
    assert "no measurement race; there are curve, positions" in capsys.readouterr().err
