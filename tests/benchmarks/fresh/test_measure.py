"""The command on a tiny shop: what it trains, weekly retraining, and that nothing finished is computed again."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.data import datasets
from benchmarks.fresh import entries, future_facts, weekly
from benchmarks.fresh.entries import entries_of
from benchmarks.fresh.measure import main, online_figures
from benchmarks.fresh.weekly import blocks_of
from benchmarks.quality import measure as quality
from benchmarks.quality.matrix import AS_GRASP
from benchmarks.quality.protocol import TestProtocol
from benchmarks.quality.results import Results
from training.data.training_set import training_sequences
from training.evaluation.ranking import Event, evaluation_events
from training.fitting.fresh_calibration import CHOICES

TAUGHT = ("takers", "fresh", "fresh_chosen", "takers_frozen", "fresh_frozen", "stored", "stored_permuted")
UNTAUGHT = ("kernel", "takers", "fresh")


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(entries, "SETTINGS", {"width": 8, "dropout": 0.1})
    monkeypatch.setattr(entries, "LLM_INIT_WIDTHS", (4, 8))


@pytest.fixture
def shop(dated_folder: Path) -> Path:
    """What is in fashion for a week is a user's last item. The figures are those of a folder of this name."""
    with (dated_folder / "interactions.tsv").open("a") as file:
        file.writelines(f"{user}\t{131 + (user + 6) // 7}\t{86_400 * (user + 6)}\n" for user in range(1, 41))
    return dated_folder.rename(dated_folder.with_name("beauty"))


def run(shop: Path, only: str, *more: str) -> Path:
    out = shop.parent / "out"
    places = ["--data", str(shop), "--out", str(out), "--cache", str(shop.parent / "cache"), "--serving", str(shop)]
    options = ["--seeds", "1", "--max-epochs", "1", "--threads", "1", "--validation-users", "30"]
    main([*places, *options, "--only", only, *more])
    return out


def rows_of(out: Path, place: str) -> set[str]:
    return {each.row.row_id for each in Results(out / place).rows()}


def test_by_global_time_grasp_and_its_rivals_are_shown_with_fresh_features(shop):
    out = run(shop, "global-time")

    grasp = {f"sasrec_grasp__+{addition}__global-time__seed=0" for addition in TAUGHT}
    others = {f"sasrec_grasp__+{addition}__no_takers_offset__global-time__seed=0" for addition in UNTAUGHT}
    others |= {"sasrec_llm_init__global-time__seed=0"}
    assert rows_of(out, "beauty-global-time") == grasp | others
    run(shop, "rivals")
    rivals = {
        f"{model}__+{addition}__{ablation}__global-time__seed=0"
        for model in ("sasrec", "sasrec_llm_init")
        for ablation, additions in (("as_grasp", ("takers", "fresh")), ("as_grasp,no_takers_offset", UNTAUGHT))
        for addition in additions
    }
    assert rows_of(out, "beauty-global-time") == grasp | others | rivals
    every = Results(out / "beauty-global-time").rows()
    rows = {each.row.addition: each.info for each in every if each.row.row_id in grasp}
    takers, fresh, frozen, permuted, chosen = (
        rows[name].chosen["added"] for name in ("takers", "fresh", "takers_frozen", "stored_permuted", "fresh_chosen")
    )
    assert takers == frozen
    assert takers["stored_votes"] == takers["state_votes"] == 0
    assert len(takers["takers"]) == 5
    assert any(takers["takers"])
    assert fresh.keys() == permuted.keys() == {"takers", "stored_votes", "state_votes", "kernel"}
    assert chosen["choice"] in CHOICES
    assert 0 < rows["takers"].fresh_cpu_seconds < rows["takers"].cpu_seconds
    assert rows["takers"].chosen["settings"]["width"] == 8
    assert rows["takers"].recipe["takers_offset"]
    assert (rows["takers"].num_trials, rows["fresh_chosen"].num_trials) == (1, 4)
    figures = json.loads((out / "summary.json").read_text())["figures"]
    assert figures["time_gain"]["value"] > 0
    assert figures["ids_time_gain"]["value"] > 0
    assert figures["train_seconds_over_today"]["value"] > 0
    assert figures["weekly_retraining_gain"] == {"value": None, "goal": None, "met": None}
    assert figures["time_gain_shuffled"] == {"value": None, "goal": 0.99, "met": False}
    report = (out / "report.md").read_text()
    assert report.startswith("# What fresh features are worth\n")
    assert "## beauty-global-time, by days since the cut" in report


def test_when_one_is_left_out_only_what_the_table_needs_is_trained(shop):
    out = run(shop, "shuffled-ties,published")

    untaught = {f"sasrec_grasp__+{addition}__no_takers_offset__{{}}seed=0" for addition in UNTAUGHT}
    assert rows_of(out, "beauty-shuffled-ties") == {each.format("shuffled-ties__") for each in untaught} | {
        f"sasrec_grasp__+{addition}__shuffled-ties__seed=0" for addition in ("takers", "fresh", "fresh_chosen")
    }
    assert rows_of(out, "beauty-published") == {each.format("") for each in untaught} | {
        "sasrec_grasp__+fresh__seed=0",
        "sasrec_grasp__+fresh_chosen__seed=0",
        "sasrec_llm_init__seed=0",
    }
    figures = json.loads((out / "summary.json").read_text())["figures"]
    assert figures["recipe_over_llm_init_published"]["value"] is None  # that is by global time
    assert figures["recipe_over_llm_init_published_leave_one_out"]["value"] is not None


def test_what_is_finished_is_not_computed_again(shop, monkeypatch):
    kinds = "shuffled-ties,future_facts"
    out = run(shop, kinds)
    before = [(out / "beauty-shuffled-ties" / name).read_text() for name in ("results.jsonl", "measurements.jsonl")]

    def never(*_: object, **__: object) -> None:
        raise AssertionError("something finished was computed again")

    monkeypatch.setattr(quality, "fit", never)
    monkeypatch.setattr(TestProtocol, "rank", never)
    monkeypatch.setattr(future_facts, "check", never)
    run(shop, kinds)

    after = [(out / "beauty-shuffled-ties" / name).read_text() for name in ("results.jsonl", "measurements.jsonl")]
    assert after == before


def test_after_the_time_nothing_further_is_trained(shop):
    out = run(shop, "global-time,shuffled-ties", "--minutes", "0")

    assert not list(out.glob("*/results.jsonl"))


def test_the_width_of_llm_init_as_published_is_chosen_where_that_is_asked(shop):
    out = run(shop, "published", "--llm-init-widths")

    assert "sasrec_llm_init__best_width__seed=0" in rows_of(out, "beauty-published")
    [row] = [each for each in Results(out / "beauty-published").rows() if each.row.ablation == "best_width"]
    trials = [json.loads(file.read_text()) for file in (out / "beauty-published" / "trials").iterdir()]
    best = max(trials, key=lambda trial: trial["validation_ndcg_at_10"])
    assert sorted(trial["settings"]["width"] for trial in trials) == [4, 8]
    assert row.info.chosen["settings"]["width"] == best["settings"]["width"]
    assert (row.info.num_trials, row.info.validation_ndcg_at_10) == (2, best["validation_ndcg_at_10"])
    figures = json.loads((out / "summary.json").read_text())["figures"]
    assert figures["recipe_over_llm_init_published_leave_one_out"]["value"] is not None


def test_rivals_differ_from_grasp_in_nothing_but_the_enhancer():
    every = {(each.row.model, each.row.ablation): each for each in entries_of("beauty", "global-time", 0)}

    grasp = every["sasrec_grasp", ""].config
    assert grasp.takers_offset
    assert every["sasrec_grasp", "no_takers_offset"].config == replace(grasp, takers_offset=())
    for model in ("sasrec", "sasrec_llm_init"):
        rival = every[model, "as_grasp"].config
        assert every[model, "as_grasp,no_takers_offset"].config == replace(rival, takers_offset=())
        for name in (*AS_GRASP, "takers_offset", "batch_size", "num_negatives", "backbone"):
            assert getattr(rival, name) == getattr(grasp, name), name
        own, others = dict(grasp.ranker), dict(rival.ranker)
        assert others == {name: own[name] for name in ("width", "dropout", "kernel_length")}
    published = every["sasrec_llm_init", ""].config
    assert (published.averaging, published.num_targets, published.selection) == (0.0, 1, "filtered")


@pytest.mark.parametrize(("data", "protocol"), [("movielens", "global-time"), ("movielens", "shuffled-ties")])
def test_movielens_has_grasp_alone(data, protocol):
    taught, untaught = entries_of(data, protocol, 2)

    for entry in (taught, untaught):
        assert (entry.row.model, entry.row.seed, entry.row.protocol) == ("sasrec_grasp", 2, protocol)
    assert taught.additions == ("takers", "fresh", "fresh_chosen")
    assert untaught.additions == UNTAUGHT


def test_the_test_is_cut_into_weeks_from_the_cut():
    events = [Event(0, np.zeros(0, int), 1, day) for day in (113, 100, 106, 107, 128)]

    assert {day: rows.tolist() for day, rows in blocks_of(events, 100).items()} == {100: [1, 2], 107: [0, 3], 128: [4]}


def trained_on(monkeypatch) -> list[tuple[int, int]]:
    """The number of training events and the epochs of every weekly training, filled as they come.

    The tiny test part lasts a week, so a block is two days here.
    """
    monkeypatch.setattr(weekly, "BLOCK_DAYS", 2)
    seen, train_epochs = [], weekly.train_epochs

    def train(training_set, config, seed, num_epochs):
        seen.append((sum(map(len, training_sequences(training_set))), num_epochs))
        return train_epochs(training_set, config, seed, num_epochs)

    monkeypatch.setattr(weekly, "train_epochs", train)
    return seen


def test_every_week_is_answered_by_weights_that_know_all_before_it(shop, monkeypatch):
    seen, answering, ranker_scorer = trained_on(monkeypatch), [], weekly.ranker_scorer

    def scorer(ranker, *given, **named):
        answering.append((ranker.fresh.takers_weight_W.tolist(), ranker.kernel.weights_K.tolist()))
        return ranker_scorer(ranker, *given, **named)

    monkeypatch.setattr(weekly, "ranker_scorer", scorer)
    out = run(shop, "global-time,weekly")

    results = Results(out / "beauty-global-time")
    rows = {each.row.row_id: each for each in results.rows()}
    row = rows["sasrec_grasp__+fresh__weekly__global-time__seed=0"]
    at_cut = rows["sasrec_grasp__+fresh__global-time__seed=0"]
    num_events = [num for num, _ in seen]
    assert len(seen) > 1
    assert num_events == sorted(set(num_events))  # each week knows more than the one before
    assert {num_epochs for _, num_epochs in seen} == {at_cut.info.best_epoch}
    assert row.info.chosen == at_cut.info.chosen
    assert row.info.fresh_cpu_seconds is None
    assert row.info.cpu_seconds != at_cut.info.cpu_seconds
    added = at_cut.info.chosen["added"]
    assert any(added["takers"])
    assert any(added["kernel"].values())
    assert answering == [(added["takers"], list(added["kernel"].values()))] * len(seen)
    # In the first week both know the same and have the same weights.
    data = datasets.load(shop, cache=shop.parent / "cache", protocol="global-time", validation_users=30)
    blocks = blocks_of(evaluation_events(data.training_set, "test"), data.cut.day)
    assert len(blocks) == len(seen)
    values = [results.per_event(each.row.row_id, "filtered", "ndcg@10") for each in (row, at_cut)]
    first_week = blocks[data.cut.day]
    np.testing.assert_allclose(*(each[first_week] for each in values), atol=1e-6)
    figures = json.loads((out / "summary.json").read_text())["figures"]
    assert figures["weekly_retraining_gain"]["value"] is not None
    assert "| trained weekly over fresh |" in (out / "report.md").read_text()


def test_an_interrupted_run_goes_on_with_the_next_week(shop, monkeypatch):
    run(shop, "global-time")
    seen, rank = trained_on(monkeypatch), TestProtocol.rank

    def stop_at_the_second(self, score, rows):
        if len(seen) == 2:
            raise KeyboardInterrupt
        return rank(self, score, rows)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TestProtocol, "rank", stop_at_the_second)
        run(shop, "weekly")
    num_first = seen[0][0]
    seen.clear()
    out = run(shop, "weekly")

    assert num_first not in [num for num, _ in seen]
    assert "sasrec_grasp__+fresh__weekly__global-time__seed=0" in rows_of(out, "beauty-global-time")


def test_weekly_retraining_needs_the_weights_of_the_cut(shop):
    with pytest.raises(SystemExit, match="is not measured yet: measure global-time before weekly"):
        run(shop, "weekly")


def test_the_figures_of_the_service_are_read_from_its_report(tmp_path):
    assert set(online_figures(tmp_path).values()) == {None}
    figures = {"added_online_p50_ms": {"value": 0.4, "goal": 1.0, "met": True}}
    (tmp_path / "summary.json").write_text(json.dumps({"figures": figures}))

    assert online_figures(tmp_path) == {"added_online_p50_ms": 0.4, "online_moment_search_ms": None}
