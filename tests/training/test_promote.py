import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from grasp.manifest import CURRENT_FILE, Manifest, release_folder
from training import promote, train
from training.data.training_set import to_training_set, training_set_folder, write_training_set
from training.evaluation.fresh_features import MomentWindow
from training.evaluation.metrics import Interval
from training.fitting.recipes import RECIPES
from training.fitting.training_loop import fit
from training.model.artefact import RankerMetadata, load_ranker
from training.promote import decide

DAY, CUTOFF = "1998-04-22", "1998-02-28"
ABOVE, AROUND, NOTHING = Interval(0.02, 0.01, 0.03), Interval(0.01, 0.0, 0.03), Interval(*[float("nan")] * 3)


@pytest.mark.parametrize(
    ("against", "promoted"),
    [
        ({"popularity": ABOVE}, True),
        ({"popularity": ABOVE, "current": ABOVE}, True),
        ({"popularity": AROUND}, False),
        ({"popularity": ABOVE, "current": AROUND}, False),
        ({"popularity": AROUND, "current": ABOVE}, False),
        ({"popularity": NOTHING}, False),
    ],
)
def test_only_what_beats_every_rival_beyond_noise_is_promoted(against, promoted):
    decision = decide(Path("/models/new"), against)

    assert decision.promoted is promoted
    assert decision.model == ("/models/new" if promoted else None)
    assert all(rival in decision.reason for rival in against)


@pytest.fixture
def trained(frames, settings, monkeypatch):
    """A home with a training set and a candidate; its settings are in the environment."""
    for variable, value in settings.variables().items():
        monkeypatch.setenv(variable, value)
    write_training_set(training_set_folder(settings, DAY), frames, "x", CUTOFF)
    home = settings.home / "training" / DAY
    (home / "candidate.json").write_text(json.dumps({"model": make_model(home, frames, seed=0).name}))
    return settings


def make_model(target: Path, frames, seed: int, feature_version: str = "v1") -> Path:
    config = replace(
        RECIPES["sasrec_grasp"](), max_epochs=1, ranker=(("width", 8), ("max_length", 5), ("dropout", 0.0))
    )
    training_set = to_training_set(frames)
    metadata = RankerMetadata("", "ranker", feature_version, "sasrec_grasp", DAY, CUTOFF, seed, {})
    return train.save_model(fit(training_set, config, seed, lambda *_: None), training_set, target, metadata)


def put_in_force(settings, model: Path | None, name: str | None) -> None:
    manifest = Manifest("1998-02-28", "v1", "e1", {}, "ranker", name)
    folder = release_folder(settings.releases, manifest)
    folder.mkdir(parents=True)
    if model:
        model.rename(folder / "model")
    (settings.releases / CURRENT_FILE).write_text(json.dumps(asdict(manifest)))


def run_promote(settings) -> dict:
    promote.main(["--day", DAY, "--cutoff", CUTOFF])
    return json.loads((settings.home / "training" / DAY / "decision.json").read_text())


def evaluation(settings) -> dict:
    return json.loads((settings.home / "training" / DAY / "evaluation.json").read_text())


def test_a_refusal_is_a_result_with_its_reports(trained, capsys):
    decision = run_promote(trained)  # two events of one user: NDCG cannot lie above popularity's on both

    found = evaluation(trained)
    assert decision["promoted"] is False
    assert decision["model"] is None
    assert found["num_events"] == 2
    assert found["num_unknown_items"] == 1
    assert found["decision"] == decision
    assert set(found["metrics"]) == {"popularity", "popular lately", found["candidate"]}
    assert found["metrics"]["popularity"]["overall"]["hr@20"]["mean"] == 0.5
    assert (trained.home / "training" / DAY / "evaluation.md").read_text().count("| popularity |") > 1
    assert "[grasp] promote 1998-04-22: refused" in capsys.readouterr().out


def test_the_model_in_force_is_a_rival(trained, frames, tmp_path):
    other = make_model(tmp_path, frames, seed=1)
    name = other.name
    put_in_force(trained, other, name)

    run_promote(trained)

    assert set(evaluation(trained)["differences"]) == {"popularity", "popular lately", name}


def test_a_model_of_other_features_is_named_as_not_comparable(trained, frames, tmp_path):
    other = make_model(tmp_path, frames, seed=1, feature_version="v2")
    put_in_force(trained, other, "old-model")

    decision = run_promote(trained)

    assert set(evaluation(trained)["differences"]) == {"popularity", "popular lately"}
    assert "old-model in force reads features of another version" in decision["reason"]


def test_a_model_of_an_earlier_version_is_named_as_not_comparable(trained, frames, tmp_path, monkeypatch):
    with monkeypatch.context() as earlier:
        earlier.setattr("training.model.artefact.FORMAT", 1)
        other = make_model(tmp_path, frames, seed=1)
    put_in_force(trained, other, other.name)

    decision = run_promote(trained)

    assert set(evaluation(trained)["differences"]) == {"popularity", "popular lately"}
    assert f"{other.name} in force cannot be compared" in decision["reason"]


def candidate_of(settings) -> Path:
    training = settings.home / "training" / DAY
    return training / json.loads((training / "candidate.json").read_text())["model"]


def test_the_candidate_itself_in_force_is_no_rival(trained):
    put_in_force(trained, None, candidate_of(trained).name)
    run_promote(trained)

    assert set(evaluation(trained)["differences"]) == {"popularity", "popular lately"}


def test_the_decision_that_put_a_model_in_force_stands(trained):
    candidate = candidate_of(trained)
    put_in_force(trained, None, candidate.name)
    decided = {"model": str(candidate), "promoted": True, "reason": "better than the model before it"}
    (trained.home / "training" / DAY / "decision.json").write_text(json.dumps(decided))

    assert run_promote(trained) == decided


def test_a_popular_release_in_force_is_no_rival_beside_popularity(trained):
    put_in_force(trained, None, None)
    run_promote(trained)

    assert set(evaluation(trained)["differences"]) == {"popularity", "popular lately"}


def test_a_model_in_force_with_a_smaller_catalogue_is_scored_on_all_items(trained, frames, tmp_path):
    smaller = {
        "users": frames["users"],
        "items": frames["items"].iloc[:5],
        "events": frames["events"][frames["events"]["split"] != "test"],
        "log": frames["log"],
    }
    loaded = load_ranker(make_model(tmp_path, smaller, seed=1))
    training_set = to_training_set(frames)

    events = promote.evaluation_events(training_set, "test")

    found = promote.evaluate_models(training_set, events, [loaded], MomentWindow())

    assert found[loaded.metadata.name]["ndcg@10"].shape == (2,)


def test_models_are_judged_with_what_was_taken_by_the_day_before(trained, frames, tmp_path):
    """The user has not had the items 4, 5 and 6. Two of them were taken by then, but not 6, the target."""
    events = frames["events"]
    is_had = ~((events["user_id"] == "a") & events["item_id"].isin(["4", "5"]))
    training_set = to_training_set(frames | {"events": events[is_had]})
    loaded = load_ranker(make_model(tmp_path, frames, seed=1))
    asked = promote.evaluation_events(training_set, "test")[-1:]
    found = []
    for weight in (50.0, -50.0):
        loaded.ranker.fresh.takers_weight_W.fill_(weight)
        metrics = promote.evaluate_models(training_set, asked, [loaded], MomentWindow())
        found.append({name: float(each["ndcg@10"][0]) for name, each in metrics.items()})

    assert [each[loaded.metadata.name] for each in found] == pytest.approx([0.5, 1])  # the last of three, the first
    assert [each["popular lately"] for each in found] == pytest.approx([0.5, 0.5])


def test_without_test_events_the_model_is_refused(trained, frames):
    events = frames["events"]
    only_before = frames | {"events": events[events["split"] != "test"]}
    write_training_set(training_set_folder(trained, DAY), only_before, "x", CUTOFF)

    assert "no test events" in run_promote(trained)["reason"]


def test_a_corrupt_candidate_is_an_error_that_names_the_file(trained, capsys):
    weights = next((trained.home / "training" / DAY).glob("sasrec-*/model.safetensors"))
    weights.write_bytes(b"x")

    with pytest.raises(SystemExit, match=r"model\.safetensors does not match its checksum"):
        promote.main(["--day", DAY, "--cutoff", CUTOFF])


def test_without_a_candidate_promotion_says_what_to_run(settings, monkeypatch):
    for variable, value in settings.variables().items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(SystemExit, match=r"python -m training\.train"):
        promote.main(["--day", DAY, "--cutoff", CUTOFF])
