import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from training import dataset, train
from training.dataset import arrange
from training.model import Metadata, RankerConfig, load_ranker
from training.recipes import DEFAULT, RECIPES
from training.train import Loss, batches, fit, inputs_fingerprint, mask_items, pieces_of, save

TINY = (("width", 8), ("num_blocks", 1), ("max_length", 5), ("dropout", 0.0))


def tiny(name: str, **changed: object):
    given = {"max_epochs": 2, "batch_size": 2, "shortest_piece": 2, **changed}
    return replace(RECIPES[name](), ranker=TINY, **given)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_describes_a_ranker_of_its_name(name):
    config = RECIPES[name]()
    ranker = RankerConfig(10, 4, config.backbone, enhancer=config.enhancer, **dict(config.ranker))

    assert config.name == name
    assert (ranker.width, ranker.max_length) == (64, 100)
    assert (config.batch_size, config.learning_rate) == (128, 1e-3)
    assert DEFAULT in RECIPES


def test_pieces_hold_training_items_only_and_every_training_target_once(training_set):
    for seed in range(5):
        pieces = pieces_of(training_set, 2, 3, np.random.default_rng(seed))
        targets = sorted((user, int(item)) for user, items in pieces for item in items[1:])

        assert targets == [(0, 2), (0, 3), (0, 4), (1, 3), (2, 5)]
        assert all(len(items) <= 3 for _, items in pieces)


def test_batches_pad_on_the_left_and_hold_every_piece_once():
    pieces = [(user, np.arange(1, user + 2)) for user in range(5)]

    found = list(batches(pieces, 2, np.random.default_rng(0)))

    assert sorted(user for users, _ in found for user in users) == [0, 1, 2, 3, 4]
    assert all((items[:, -1] > 0).all() for _, items in found)
    assert sum((items == 0).sum() for _, items in found) <= 2  # like lengths lie together


def test_bert4rec_hides_an_item_of_every_sequence_and_no_padding():
    items_BT = torch.tensor([[0, 0, 1], [1, 2, 3]] * 20)
    hidden_BT = mask_items(items_BT, 0.3)

    assert hidden_BT.any(1).all()
    assert not (hidden_BT & (items_BT == 0)).any()
    assert hidden_BT[:, -1].sum() >= 20


@pytest.mark.parametrize("loss", ["cross_entropy", "sampled_softmax", "bce", "gbce"])
@pytest.mark.parametrize("name", ["sasrec_grasp", "bert4rec", "gru4rec_grasp"])
def test_every_loss_fits_and_the_same_seed_gives_the_same_weights(training_set, name, loss):
    config = tiny(name, loss=loss, num_negatives=3)
    seen = []
    first = fit(training_set, config, 0, lambda epoch, found: seen.append((epoch, found["loss"])))
    second = fit(training_set, config, 0, lambda *_: None)
    other = fit(training_set, config, 1, lambda *_: None)

    assert [epoch for epoch, _ in seen] == [1, 2]
    assert all(np.isfinite(value) for _, value in seen)
    assert torch.equal(first.ranker.item.weight, second.ranker.item.weight)
    assert not torch.equal(first.ranker.item.weight, other.ranker.item.weight)
    assert first.metrics.keys() >= {"ndcg@1", "hr@20"}


def test_cross_entropy_of_equal_scores_is_the_log_of_the_number_of_items(training_set):
    ranker = fit(training_set, tiny("sasrec"), 0, lambda *_: None).ranker
    loss = Loss(tiny("sasrec"), training_set)

    found = loss(ranker, torch.zeros(3, 8), torch.tensor([1, 2, 3]), torch.tensor([0, 0, 1]))

    assert found.item() == pytest.approx(np.log(6))


def test_a_users_own_training_items_are_no_negatives(training_set):
    loss = Loss(tiny("sasrec", loss="bce"), training_set)
    key = torch.tensor([[0 * 7 + 1, 0 * 7 + 6], [1 * 7 + 2, 1 * 7 + 1]])

    # User b's item 1 is the validation target: training must not know it.
    assert loss._is_known(key).tolist() == [[True, False], [True, False]]


def test_early_stopping_keeps_the_best_epoch(training_set):
    seen = {}
    config = replace(tiny("sasrec"), max_epochs=30, patience=3)
    fitted = fit(training_set, config, 0, lambda epoch, found: seen.update({epoch: found["ndcg@10"]}))

    assert fitted.metrics["ndcg@10"] == max(seen.values())
    assert fitted.num_epochs == min(fitted.epoch + 3, 30)
    assert train.validate(fitted.ranker, training_set)["ndcg@10"] == pytest.approx(fitted.metrics["ndcg@10"])


def test_events_after_the_cutoff_change_no_weight(frames):
    without = frames | {"events": frames["events"][frames["events"]["split"] != "test"]}

    first = fit(arrange(frames), tiny("sasrec_grasp"), 0, lambda *_: None).ranker
    second = fit(arrange(without), tiny("sasrec_grasp"), 0, lambda *_: None).ranker

    for name, weights in first.state_dict().items():
        assert torch.equal(weights, second.state_dict()[name]), name


def test_without_a_validation_target_training_says_so(frames):
    events = frames["events"]
    with pytest.raises(ValueError, match="no validation target"):
        train.validate(None, arrange(frames | {"events": events[events["split"] == "train"]}))


def test_equal_weights_are_saved_under_an_equal_name(training_set, tmp_path):
    metadata = Metadata("", "ranker_v1", "v1", "sasrec_grasp", "1998-04-22", "1998-02-28", 0, {})
    fitted = fit(training_set, tiny("sasrec_grasp"), 0, lambda *_: None)
    other = fit(training_set, tiny("sasrec_grasp"), 1, lambda *_: None)

    folder = save(fitted, training_set, tmp_path, metadata)

    assert folder == save(fitted, training_set, tmp_path, metadata)
    assert folder.name.startswith("sasrec-grasp-1998-02-28-")
    assert save(other, training_set, tmp_path, metadata) != folder
    assert load_ranker(folder).metadata.name == folder.name
    assert len(list(tmp_path.iterdir())) == 2  # nothing half-made stays


def test_a_changed_training_set_recipe_or_seed_is_trained_again(frames, tmp_path):
    dataset.write(tmp_path, frames, "x", "1998-02-28")
    before = inputs_fingerprint(tmp_path, tiny("sasrec"), 0, "1998-02-28")

    assert inputs_fingerprint(tmp_path, tiny("sasrec"), 0, "1998-02-28") == before
    assert inputs_fingerprint(tmp_path, tiny("sasrec"), 1, "1998-02-28") != before
    assert inputs_fingerprint(tmp_path, tiny("gru4rec"), 0, "1998-02-28") != before
    frames["items"]["popularity"] += 1
    dataset.write(tmp_path, frames, "x", "1998-02-28")
    assert inputs_fingerprint(tmp_path, tiny("sasrec"), 0, "1998-02-28") != before


def test_the_command_trains_tracks_and_then_skips(frames, settings, monkeypatch, capsys):
    for variable, value in settings.variables().items():
        monkeypatch.setenv(variable, value)
    config = tiny("sasrec_grasp")
    monkeypatch.setitem(RECIPES, "sasrec_grasp", lambda: config)
    dataset.write(dataset.folder(settings, "1998-04-22"), frames, "x", "1998-02-28")

    train.main(["--day", "1998-04-22", "--cutoff", "1998-02-28"])
    train.main(["--day", "1998-04-22", "--cutoff", "1998-02-28"])

    home = settings.home / "training" / "1998-04-22"
    name = json.loads((home / "candidate.json").read_text())["model"]
    assert load_ranker(home / name).metadata.recipe == "sasrec_grasp"
    assert f"{name} was trained from these inputs already" in capsys.readouterr().out
    import mlflow

    runs = mlflow.search_runs(experiment_names=["ranker"], output_format="list")
    assert [run.data.tags["model"] for run in runs] == [name]
