import json

from training import train
from training.data.training_set import training_set_folder, write_training_set
from training.evaluation.fresh_features import MomentWindow
from training.fitting import training_loop
from training.fitting.fresh_calibration import CHOICES
from training.fitting.recipes import RECIPES
from training.fitting.training_loop import fit
from training.model.artefact import RankerMetadata, load_ranker
from training.train import inputs_fingerprint, save_model


def test_equal_weights_are_saved_under_an_equal_name(training_set, tiny, tmp_path):
    metadata = RankerMetadata("", "ranker_v1", "v1", "sasrec_grasp", "1998-04-22", "1998-02-28", 0, {})
    fitted = fit(training_set, tiny("sasrec_grasp"), 0, lambda *_: None)
    other = fit(training_set, tiny("sasrec_grasp"), 1, lambda *_: None)

    folder = save_model(fitted, training_set, tmp_path, metadata)

    assert folder == save_model(fitted, training_set, tmp_path, metadata)
    assert folder.name.startswith("sasrec-grasp-1998-02-28-")
    assert save_model(other, training_set, tmp_path, metadata) != folder
    assert load_ranker(folder).metadata.name == folder.name
    assert len(list(tmp_path.iterdir())) == 2  # nothing half-made stays


def test_a_changed_training_set_recipe_or_seed_is_trained_again(frames, tiny, tmp_path):
    write_training_set(tmp_path, frames, "x", "1998-02-28")
    before = inputs_fingerprint(tmp_path, tiny("sasrec"), 0, "1998-02-28")

    assert inputs_fingerprint(tmp_path, tiny("sasrec"), 0, "1998-02-28") == before
    assert inputs_fingerprint(tmp_path, tiny("sasrec"), 1, "1998-02-28") != before
    assert inputs_fingerprint(tmp_path, tiny("gru4rec"), 0, "1998-02-28") != before
    assert inputs_fingerprint(tmp_path, tiny("sasrec"), 0, "1998-02-28", MomentWindow(7)) != before
    frames["items"]["popularity"] += 1
    write_training_set(tmp_path, frames, "x", "1998-02-28")
    assert inputs_fingerprint(tmp_path, tiny("sasrec"), 0, "1998-02-28") != before


def test_the_command_trains_tracks_and_then_skips(frames, tiny, settings, monkeypatch, capsys):
    for variable, value in settings.variables().items():
        monkeypatch.setenv(variable, value)
    config, windows = tiny("sasrec_grasp"), []
    monkeypatch.setenv("GRASP_MOMENT_DAYS", "7")
    monkeypatch.setitem(RECIPES, "sasrec_grasp", lambda: config)
    monkeypatch.setattr(training_loop, "fit", lambda *given: windows.append(given[-1]) or fit(*given))
    write_training_set(training_set_folder(settings, "1998-04-22"), frames, "x", "1998-02-28")

    train.main(["--day", "1998-04-22", "--cutoff", "1998-02-28"])
    train.main(["--day", "1998-04-22", "--cutoff", "1998-02-28"])

    home = settings.home / "training" / "1998-04-22"
    name = json.loads((home / "candidate.json").read_text())["model"]
    metadata = load_ranker(home / name).metadata
    assert metadata.recipe == "sasrec_grasp"
    assert metadata.fresh["chosen"] in CHOICES
    assert metadata.fresh["gains"].keys() == CHOICES.keys()
    assert metadata.fresh["gains"]["none"]["mean"] == 0
    assert [window.num_days for window in windows] == [7]
    assert f"{name} was trained from these inputs already" in capsys.readouterr().out
    import mlflow

    runs = mlflow.search_runs(experiment_names=["ranker"], output_format="list")
    assert [run.data.tags["model"] for run in runs] == [name]
