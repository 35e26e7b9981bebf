"""The benchmark command: which systems it compares, what it measures, and that no finished row is computed again."""

import json
import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest

from benchmarks.data.datasets import COMMON_INPUTS, Inputs
from benchmarks.quality import measure as quality
from benchmarks.quality.matrix import ABLATIONS, AS_GRASP, TRIALS, chosen_entries, matrix, trained_entry, with_trial
from benchmarks.quality.measure import main
from benchmarks.quality.protocol import TestProtocol, cross_category_share
from benchmarks.quality.results import Results
from training.data.training_set import training_sequences
from training.evaluation.ranking import Event
from training.fitting.kernel_calibration import KERNEL_WEIGHT_GRID
from training.fitting.recipes import RECIPE_VERSION, recipe
from training.model.ranker import Ranker, RankerConfig


@pytest.mark.parametrize("data", ["beauty", "fashion", "movielens-100k"])
def test_no_two_jobs_are_the_same_training_and_every_row_is_named_once(data):
    jobs = matrix(data, num_seeds=3)
    rows = [row.row_id for job in jobs for row in job.rows]
    trainings = [
        json.dumps([asdict(job.config) | {"name": ""}, asdict(job.inputs), job.row.seed]) for job in jobs if job.config
    ]

    assert len(set(rows)) == len(rows)
    assert len(set(trainings)) == len(trainings)


def test_every_job_and_trial_describes_a_ranker():
    for job in matrix("beauty", 1):
        for settings in TRIALS:
            if job.config:
                config = with_trial(job.config, settings)
                Ranker(RankerConfig(20, 384, config.backbone, enhancer=config.enhancer, **dict(config.ranker)))


def test_every_strong_system_of_a_main_table_is_shown_with_the_kernel_and_without():
    for data in ("beauty", "fashion", "movielens-100k"):
        for job in matrix(data, num_seeds=2):
            is_rival = job.config and job.row.section == "ablations" and job.row.enhancer != "grasp"
            is_main = job.config and job.row.section in ("main", "backbones") and "legacy" not in job.row.model
            is_strong = is_main or is_rival
            assert ({"none", "kernel"} <= set(job.additions)) == bool(is_strong), job.row.row_id
            if is_strong:
                assert dict(job.config.ranker)["kernel_length"] == 5


def test_additions_are_rows_of_one_training():
    [job] = [job for job in matrix("beauty", 3) if job.row.row_id == "sasrec_llm_esr__seed=2"]

    assert [row.row_id for row in job.rows] == [
        "sasrec_llm_esr__seed=2",
        "sasrec_llm_esr__+kernel__seed=2",
        "sasrec_llm_esr__+max_cosine__seed=2",
        "sasrec_llm_esr__+star__seed=2",
    ]


def test_every_ablation_turns_its_own_switches_and_nothing_else():
    every = [job for job in matrix("beauty", 1) if job.row.section == "ablations"]
    jobs = [job for job in every if job.inputs == COMMON_INPUTS]

    assert [job.row.ablation for job in every if job not in jobs] == ["user_text_without_last"]
    expected = {("sasrec_grasp", name) for name in ABLATIONS} | {
        (model, "as_grasp") for model in ("sasrec_llm_init", "sasrec_alphafuse")
    }
    assert {(job.row.model, job.row.ablation) for job in jobs} == expected
    as_grasp = {name: getattr(recipe("sasrec_grasp"), name) for name in AS_GRASP}
    for job in jobs:
        switches = ABLATIONS.get(job.row.ablation, as_grasp)
        as_it_is, switched = (
            _switches(config) for config in (trained_entry(job.row.model, 0, "main").config, job.config)
        )
        changed = {switch: value for switch, value in switched.items() if value != as_it_is[switch]}
        assert changed, job.row.row_id
        assert changed.items() <= switches.items(), job.row.row_id


def _switches(config):
    """All that a recipe says, the ranker's switches with their defaults."""
    ranker = RankerConfig(20, 384, config.backbone, enhancer=config.enhancer, **dict(config.ranker))
    return asdict(ranker) | asdict(replace(config, ranker=()))


@pytest.mark.parametrize(("additions", "is_taught"), [(("none", "kernel"), False), (("takers", "kernel"), True)])
def test_a_ranker_that_is_scored_without_takers_is_trained_without_them(additions, is_taught):
    config = trained_entry("sasrec_grasp", 0, "main", additions=additions).config

    assert recipe("sasrec_grasp").takers_offset
    assert config.takers_offset == (recipe("sasrec_grasp").takers_offset if is_taught else ())


def test_other_backbones_keep_the_settings_that_trials_over_sasrec_chose():
    found = {job.row.model: job.tuned_as for job in matrix("beauty", 1) if job.row.section == "backbones"}

    assert found == {
        "gru4rec": "sasrec",
        "gru4rec_llm_esr": "sasrec_llm_esr",
        "gru4rec_grasp": "sasrec_grasp",
        "bert4rec": "sasrec",
        "bert4rec_llm_esr": "sasrec_llm_esr",
        "bert4rec_grasp": "sasrec_grasp",
    }


def test_grasp_is_corrupted_for_every_seed_and_not_shown_with_its_kernel():
    rows = [row.row_id for job in matrix("beauty", 2) for row in job.rows if row.corruption == 1]

    assert rows == [
        "sasrec_grasp__no_kernel__corruption=1__seed=0",
        "sasrec_grasp__no_kernel__corruption=1__seed=1",
        "sasrec_llm_esr__corruption=1__seed=0",
        "sasrec_alphafuse__corruption=1__seed=0",
    ]


def test_every_trained_system_but_a_published_one_has_the_same_trials():
    jobs = [*matrix("beauty", 1), *matrix("fashion", 1)]

    assert {job.row.model for job in jobs if job.config and not job.tuned_as} == {
        "sasrec_legacy",
        "gru4rec_legacy",
        "bert4rec_legacy",
    }


def test_jobs_are_chosen_by_model_and_by_section():
    jobs = matrix("beauty", 1)

    assert chosen_entries(jobs) == jobs
    assert [job.row.model for job in chosen_entries(jobs, models="star,knn")] == ["knn", "star"]
    corrupted = chosen_entries(jobs, models="sasrec_grasp", sections="corruption")
    assert [job.row.row_id for job in corrupted] == [
        "sasrec_grasp__no_kernel__seed=0",
        "sasrec_grasp__no_kernel__corruption=0.2__seed=0",
        "sasrec_grasp__no_kernel__corruption=1__seed=0",
    ]
    with pytest.raises(ValueError, match="no model stars; there are"):
        chosen_entries(jobs, models="star,stars")
    with pytest.raises(ValueError, match="no section side; there are"):
        chosen_entries(jobs, sections="side")


def test_alphafuse_trains_half_of_its_width():
    config = with_trial(trained_entry("sasrec_alphafuse", 0, "main").config, {"width": 32, "dropout": 0.1})
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


@pytest.fixture
def two_trials(monkeypatch):
    trials = ({"width": 8, "dropout": 0.1}, {"width": 16, "dropout": 0.1})
    monkeypatch.setattr("benchmarks.quality.matrix.TRIALS", trials)
    monkeypatch.setattr(quality, "TRIALS", trials)


def run(folder, tmp_path, models: str, num_seeds: int = 1, *more: str) -> Results:
    out = tmp_path / "out"
    options = ["--seeds", str(num_seeds), "--max-epochs", "1", "--threads", "1", "--validation-users", "30"]
    places = ["--data", str(folder), "--out", str(out), "--cache", str(tmp_path / "cache")]
    main([*places, *options, "--models", models, *more])
    return Results(out)


def test_a_run_measures_what_is_wanted_and_a_second_one_nothing(folder, tmp_path, monkeypatch, two_trials):
    first = run(folder, tmp_path, "popularity,sasrec")

    rows = {row.row.row_id: row for row in first.rows()}
    assert set(rows) == {
        "popularity__seed=0",
        "sasrec__seed=0",
        "sasrec__+kernel__seed=0",
        "sasrec__+max_cosine__seed=0",
        "sasrec__+star__seed=0",
    }
    trials = [json.loads(file.read_text()) for file in (tmp_path / "out" / "trials").iterdir()]
    best = max(trials, key=lambda trial: trial["validation_ndcg_at_10"])
    assert len(trials) == 2
    for row_id in ("sasrec__seed=0", "sasrec__+kernel__seed=0"):
        info = rows[row_id].info
        assert best["settings"].items() <= info.chosen["settings"].items()
        assert info.validation_ndcg_at_10 == best["validation_ndcg_at_10"]
    assert rows["sasrec__seed=0"].info.num_trials == 2
    assert rows["sasrec__seed=0"].num_events["overall"] == 40
    assert "sasrec" in (tmp_path / "out" / "report.md").read_text()
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["figures"] == {}

    def never(*_: object) -> None:
        raise AssertionError("a finished row was computed again")

    monkeypatch.setattr(quality, "fit", never)
    monkeypatch.setattr(TestProtocol, "test", never)
    assert len(run(folder, tmp_path, "popularity,sasrec").rows()) == 5


def test_the_kernel_is_in_its_own_row_alone(folder, tmp_path, two_trials):
    rows = {row.row.row_id: row for row in run(folder, tmp_path, "sasrec").rows()}
    plain, with_kernel = rows["sasrec__seed=0"], rows["sasrec__+kernel__seed=0"]

    # Everyone goes on by three items: transitions know that, one epoch does not.
    assert with_kernel.value("filtered", "ndcg@10") > 2 * plain.value("filtered", "ndcg@10")
    assert plain.info.chosen["added"] is None
    chosen = with_kernel.info.chosen["added"]
    assert chosen.keys() == {"semantic", "transition", "cooccurrence"}
    assert all(chosen[kind] in KERNEL_WEIGHT_GRID[kind] for kind in chosen)
    assert any(chosen.values())
    assert with_kernel.info.num_trials == 5 * 4 * 4 + 1  # choices of weights, and the trials that were not taken


def test_the_best_trial_is_the_row_of_the_first_seed(folder, tmp_path, monkeypatch, two_trials):
    trained_seeds, fit = [], quality.fit

    def counted(training_set, config, seed, progress):
        trained_seeds.append(seed)
        return fit(training_set, config, seed, progress)

    monkeypatch.setattr(quality, "fit", counted)
    first = run(folder, tmp_path, "sasrec", num_seeds=2)
    assert trained_seeds == [0, 0, 1]

    # Another process knows what the trials found, but has not got their weights: it trains them again, to the same.
    (tmp_path / "out" / "results.jsonl").unlink()
    shutil.rmtree(tmp_path / "out" / "ranks")
    again = run(folder, tmp_path, "sasrec", num_seeds=2)
    assert trained_seeds == [0, 0, 1, 0, 1]
    assert [row.metrics for row in again.rows()] == [row.metrics for row in first.rows()]


def test_what_differs_from_a_trial_is_trained_for_itself(folder, tmp_path, monkeypatch, two_trials):
    given = quality.parse(["--data", str(folder), "--out", str(tmp_path / "out"), "--max-epochs", "1"])
    given.cache = tmp_path / "cache"
    benchmark = quality.QualityBenchmark(folder, given)
    jobs = [
        trained_entry("sasrec_grasp", 0, "main"),
        trained_entry("sasrec_grasp", 0, "neighbours", ablation="k=5", inputs=Inputs(k=5)),
        trained_entry("sasrec_grasp", 0, "corruption", inputs=Inputs(corruption=1.0)),
        trained_entry("sasrec_grasp", 0, "ablations", ablation="no_similar", switches={"use_similar": False}),
        trained_entry("sasrec_grasp", 1, "main"),
    ]
    num_trained, fit = [], quality.fit
    monkeypatch.setattr(quality, "fit", lambda *given: num_trained.append(1) or fit(*given))
    seen = []
    for job in jobs:
        benchmark.run(job, jobs)
        seen.append(len(num_trained))

    assert seen == [2, 3, 4, 5, 6]  # the first one is a trial


@pytest.mark.parametrize("protocol", ["shuffled-ties", "global-time"])
def test_every_system_is_measured_by_the_protocol_that_is_named(dated_folder, tmp_path, two_trials, protocol):
    models = "popularity,star,sasrec,sasrec_grasp"
    results = run(dated_folder, tmp_path, models, 1, "--protocol", protocol, "--sections", "main")

    rows = {row.row.row_id: row for row in results.rows()}
    assert {f"popularity__{protocol}__seed=0", f"sasrec_grasp__+kernel__{protocol}__seed=0"} <= rows.keys()
    assert f"sasrec__+star__{protocol}__seed=0" in rows
    info = rows[f"sasrec__{protocol}__seed=0"].info
    assert (info.recipe["name"], info.recipe_version) == ("sasrec", RECIPE_VERSION)
    assert info.recipe["ranker"].items() >= info.chosen["settings"].items()
    report = (tmp_path / "out" / "report.md").read_text()
    assert report.startswith(f"# Quality on dated, {protocol}\n")
    assert f"- Protocol: {protocol}, " in report
    groups = {name: int(mask.sum()) for name, mask in results.groups().items()}
    if protocol == "global-time":
        assert (groups["cold users"], groups["cold items"]) == (4, 3)  # user 40 and the late one, two events each
        assert "## By days since the cut" in report
        assert len(set(results.units("overall"))) < groups["overall"]
    else:
        assert groups["overall"] == 40
    with pytest.raises(SystemExit, match="holds rows of the data"):
        run(dated_folder, tmp_path, "popularity")


def test_by_global_time_a_model_is_chosen_at_one_cut_and_trained_anew_at_the_next(
    dated_folder, tmp_path, monkeypatch, two_trials
):
    seen, fit, refit = [], quality.fit, quality.refit

    def fitted(training_set, *given):
        seen.append(("fit", sum(map(len, training_sequences(training_set)))))
        return fit(training_set, *given)

    def refitted(training_set, *given):
        seen.append(("refit", sum(map(len, training_sequences(training_set)))))
        return refit(training_set, *given)

    monkeypatch.setattr(quality, "fit", fitted)
    monkeypatch.setattr(quality, "refit", refitted)
    run(dated_folder, tmp_path, "sasrec", 1, "--protocol", "global-time")

    (_, before), _, (_, after) = seen
    assert [name for name, _ in seen] == ["fit", "fit", "refit"]  # two trials; the best one is made anew
    assert before < after


def test_ids_without_times_have_no_other_protocol(folder, tmp_path):
    with pytest.raises(SystemExit, match="has no times: it can only be measured with --protocol published"):
        run(folder, tmp_path, "popularity", 1, "--protocol", "global-time")


def test_other_data_in_the_same_report_is_refused(folder, tmp_path):
    run(folder, tmp_path, "popularity")
    with (folder / "inter.txt").open("a") as file:
        file.write("\n42 1")
    with pytest.raises(SystemExit, match="holds rows of the data"):
        run(folder, tmp_path, "popularity")


def test_a_folder_that_is_not_there_is_named(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="nowhere is not a folder"):
        main(["--data", str(tmp_path / "nowhere"), "--out", str(tmp_path), "--cache", str(tmp_path)])


def test_a_wrong_model_is_refused_before_the_data_are_read(tmp_path):
    with pytest.raises(SystemExit, match="no model stars"):
        main(["--data", str(tmp_path), "--out", str(tmp_path / "out"), "--models", "stars"])
