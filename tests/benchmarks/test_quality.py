"""The benchmark command: which systems it compares, what it measures, and that no finished row is computed again."""

import json
from dataclasses import asdict

import numpy as np
import pytest

from benchmarks import quality
from benchmarks.matrix import TRIALS, chosen, matrix, trained, with_trial
from benchmarks.quality import cross_category_share, main
from benchmarks.results import Results
from training.evaluate import Event
from training.model import Ranker, RankerConfig


@pytest.mark.parametrize("data", ["beauty", "fashion", "movielens-100k"])
def test_no_two_jobs_are_the_same_training_and_every_row_is_named_once(data):
    jobs = matrix(data, num_seeds=3)
    rows = [row.row_id for job in jobs for row in job.rows]
    trainings = [
        json.dumps([asdict(job.config) | {"name": ""}, job.k, job.row.corruption, job.row.seed])
        for job in jobs
        if job.config
    ]

    assert len(set(rows)) == len(rows)
    assert len(set(trainings)) == len(trainings)


def test_every_job_and_trial_describes_a_ranker():
    for job in matrix("beauty", 1):
        for settings in TRIALS:
            if job.config:
                config = with_trial(job.config, settings)
                Ranker(RankerConfig(20, 384, config.backbone, enhancer=config.enhancer, **dict(config.ranker)))


def test_every_trained_system_but_a_published_one_has_the_same_trials():
    jobs = [*matrix("beauty", 1), *matrix("fashion", 1)]

    assert {job.row.model for job in jobs if job.config and not job.tuned_as} == {
        "sasrec_legacy",
        "gru4rec_legacy",
        "bert4rec_legacy",
    }


def test_a_model_that_is_none_is_named():
    assert [job.row.model for job in chosen(matrix("beauty", 1), "star,knn")] == ["knn", "star"]
    with pytest.raises(ValueError, match="no model stars; there are"):
        chosen(matrix("beauty", 1), "star,stars")


def test_alphafuse_trains_half_of_its_width():
    config = with_trial(trained("sasrec_alphafuse", 0, "main").config, {"width": 32, "dropout": 0.1})
    assert dict(config.ranker)["null_width"] == 16


def test_recommendations_from_outside_the_categories_of_the_history_are_counted():
    categories = ["skin", "skin", "hair", "", "nails"]
    events = [Event(0, np.array([1, 3]), 2), Event(1, np.array([4]), 5)]
    # Of the first, 2 is of a known category and 5 is not; of the second both are new; 4 has none and 0 is nothing.
    top = np.array([[2, 5, 4], [1, 3, 0]])

    assert cross_category_share(top, events, categories) == 3 / 4
    assert cross_category_share(top, events, [""] * 5) is None


@pytest.fixture
def folder(tmp_path):
    """LLM-ESR's file: 40 users with five of 130 items each."""
    place = tmp_path / "shop"
    place.mkdir()
    lines = [f"{user} {(user * 7 + step * 3) % 130 + 1}" for user in range(1, 41) for step in range(5)]
    (place / "inter.txt").write_text("\n".join([*lines, "41 130"]))
    return place


def run(folder, tmp_path, models: str) -> Results:
    out = tmp_path / "out"
    options = ["--seeds", "1", "--max-epochs", "1", "--threads", "1", "--validation-users", "30"]
    places = ["--data", str(folder), "--out", str(out), "--cache", str(tmp_path / "cache")]
    main([*places, *options, "--models", models])
    return Results(out)


def test_a_run_measures_what_is_wanted_and_a_second_one_nothing(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.matrix.TRIALS", ({"width": 8, "dropout": 0.1}, {"width": 16, "dropout": 0.1}))
    monkeypatch.setattr(quality, "TRIALS", ({"width": 8, "dropout": 0.1}, {"width": 16, "dropout": 0.1}))

    first = run(folder, tmp_path, "popularity,sasrec")

    rows = {row.row.row_id: row for row in first.rows()}
    assert set(rows) == {
        "popularity__seed=0",
        "sasrec__seed=0",
        "sasrec__+max_cosine__seed=0",
        "sasrec__+star__seed=0",
    }
    trials = json.loads((tmp_path / "out" / "trials.json").read_text())
    best = max(trials.values(), key=lambda trial: trial["validation_ndcg_at_10"])
    assert len(trials) == 2
    assert (
        rows["sasrec__seed=0"].info.chosen["settings"] | best["settings"]
        == rows["sasrec__seed=0"].info.chosen["settings"]
    )
    assert rows["sasrec__seed=0"].info.num_trials == len(quality.TRIALS)
    assert rows["sasrec__seed=0"].num_events["overall"] == 40
    assert "sasrec" in (tmp_path / "out" / "report.md").read_text()
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["figures"] == {}

    def never(*_: object) -> None:
        raise AssertionError("a finished row was computed again")

    monkeypatch.setattr(quality, "fit", never)
    monkeypatch.setattr(quality.Exam, "measure", never)
    assert len(run(folder, tmp_path, "popularity,sasrec").rows()) == 4


def test_other_data_in_the_same_report_is_refused(folder, tmp_path):
    run(folder, tmp_path, "popularity")
    with (folder / "inter.txt").open("a") as file:
        file.write("\n42 1")
    with pytest.raises(SystemExit, match="holds rows of the data"):
        run(folder, tmp_path, "popularity")


def test_a_folder_that_is_not_there_is_named(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="nowhere is no folder"):
        main(["--data", str(tmp_path / "nowhere"), "--out", str(tmp_path), "--cache", str(tmp_path)])
