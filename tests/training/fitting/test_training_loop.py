from dataclasses import replace

import numpy as np
import pytest
import torch

from training.data.training_set import to_training_set, training_sequences
from training.evaluation.ranking import evaluation_events
from training.fitting import training_loop
from training.fitting.batches import build_batch, cut_into_pieces, group_by_length, mask_items
from training.fitting.training_loop import (
    KERNEL_NDCG,
    SAMPLED_NDCG,
    TrainingRun,
    deterministic,
    fit,
    new_ranker,
    refit,
    validate,
)
from training.model.config import MASK


def test_training_sequences_hold_training_items_only(training_set):
    assert [items.tolist() for items in training_sequences(training_set)] == [[1, 2, 3, 4], [2, 3], [4, 5]]


def test_pieces_hold_every_training_target_once(training_set):
    for seed in range(5):
        pieces = cut_into_pieces(training_sequences(training_set), 2, 3, np.random.default_rng(seed))
        targets = sorted((user, int(item)) for user, items in pieces for item in items[1:])

        assert targets == [(0, 2), (0, 3), (0, 4), (1, 3), (2, 5)]
        assert all(2 <= len(items) <= 3 for _, items in pieces)


def test_a_whole_sequence_is_one_piece_where_it_fits():
    sequences = [np.array([1, 2, 3]), np.array([4]), np.array([], np.int64)]
    pieces = cut_into_pieces(sequences, 200, 200, np.random.default_rng(0))

    assert [(user, items.tolist()) for user, items in pieces] == [(0, [1, 2, 3])]


def test_batches_pad_on_the_left_and_hold_every_piece_once():
    pieces = [(user, np.arange(1, user + 2)) for user in range(5)]

    found = list(group_by_length(pieces, 2, np.random.default_rng(0)))

    assert sorted(user for users, _ in found for user in users) == [0, 1, 2, 3, 4]
    assert all((items[:, -1] > 0).all() for _, items in found)
    assert sum((items == 0).sum() for _, items in found) <= 2  # similar lengths share a batch


@pytest.mark.parametrize(
    ("targets", "valid"), [("all", [[True, True], [False, True]]), ("last", [[False, True], [False, True]])]
)
def test_the_targets_of_a_batch_are_the_next_items(training_set, tiny, targets, valid):
    sequences = training_sequences(training_set)
    config = tiny("sasrec", targets=targets)

    items, days = [[2, 3, 4], [0, 4, 5]], [[7, 8, 9], [0, 5, 6]]
    found = build_batch(training_set, sequences, np.array([0, 2]), np.stack([items, days], -1), config)

    assert found.items_BT.tolist() == [[2, 3], [0, 4]]
    assert found.target_BT.tolist() == [[3, 4], [4, 5]]
    assert found.day_BT.tolist() == [[8, 9], [5, 6]]
    assert found.valid_BT.tolist() == valid
    assert found.known_BT.tolist() == [[1, 2, 3, 4], [0, 0, 4, 5]]  # not the piece: all that user trains on
    assert torch.equal(found.semantic_BS, torch.from_numpy(training_set.user_semantic[[0, 2]]))
    assert torch.equal(found.neighbour_BS, torch.from_numpy(training_set.user_neighbour[[0, 2]]))


def test_a_batch_of_bert4rec_hides_its_targets(training_set, tiny):
    given = np.array([[2, 3, 4], [0, 4, 5]] * 20)
    users = np.array([0, 2] * 20)

    steps = np.stack([given, given + 10], -1)
    found = build_batch(training_set, training_sequences(training_set), users, steps, tiny("bert4rec"))

    assert found.target_BT.tolist() == given.tolist()
    assert found.day_BT.tolist() == (given + 10).tolist()
    assert torch.equal(found.items_BT == MASK, found.valid_BT)
    assert torch.equal(found.items_BT[~found.valid_BT], found.target_BT[~found.valid_BT])


def test_bert4rec_hides_an_item_of_every_sequence_and_no_padding():
    items_BT = torch.tensor([[0, 0, 1], [1, 2, 3]] * 20)
    hidden_BT = mask_items(items_BT, 0.3)

    assert hidden_BT.any(1).all()
    assert not (hidden_BT & (items_BT == 0)).any()
    assert hidden_BT[:, -1].sum() >= 20


@pytest.mark.parametrize("loss", ["cross_entropy", "sampled_softmax", "bce", "gbce"])
@pytest.mark.parametrize("name", ["sasrec_grasp", "bert4rec", "gru4rec_grasp"])
def test_every_loss_fits_and_the_same_seed_gives_the_same_weights(training_set, tiny, name, loss):
    config = tiny(name, loss=loss, num_negatives=3)
    seen = []
    first = fit(training_set, config, 0, lambda epoch, found: seen.append((epoch, found["loss"])))
    second = fit(training_set, config, 0, lambda *_: None)
    other = fit(training_set, config, 1, lambda *_: None)
    weights, again, others = (fitted.ranker.enhancer.item.weight for fitted in (first, second, other))

    assert [epoch for epoch, _ in seen] == [1, 2]
    assert all(np.isfinite(value) for _, value in seen)
    assert torch.equal(weights, again)
    assert not torch.equal(weights, others)
    assert first.metrics.keys() >= {"ndcg@1", "hr@20"}


def test_a_second_training_takes_the_epochs_and_the_added_weights_of_the_first(training_set, tiny):
    config = tiny("sasrec", max_epochs=30, patience=3).with_switches(kernel_length=2)
    chosen = fit(training_set, config, 0, lambda *_: None)
    chosen.ranker.kernel.weights_K.copy_(torch.tensor([1.0, 2.0, 3.0]))
    chosen.ranker.fresh.takers_weight_W.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5]))
    chosen.ranker.fresh.vote_weight.fill_(0.6)

    again = refit(training_set, config, 0, chosen)

    for key, weights in chosen.ranker.state_dict().items():
        assert torch.equal(weights, again.ranker.state_dict()[key]), key  # on the same events it is the same training
    assert (again.best_epoch, again.metrics) == (chosen.best_epoch, chosen.metrics)
    assert again.wall_seconds > chosen.wall_seconds


def test_a_second_training_needs_no_validation_target(frames, training_set, tiny):
    chosen = fit(training_set, tiny("sasrec_grasp"), 0, lambda *_: None)
    events = frames["events"].replace({"split": "validation"}, "train")
    later = to_training_set(frames | {"events": events})

    again = refit(later, tiny("sasrec_grasp"), 0, chosen)

    assert not torch.equal(again.ranker.enhancer.item.weight, chosen.ranker.enhancer.item.weight)


def test_the_loss_falls(training_set, tiny):
    losses = []
    config = tiny("sasrec_grasp", max_epochs=20, patience=20, learning_rate=0.02)
    fit(training_set, config, 0, lambda _, found: losses.append(found["loss"]))

    assert losses[-1] < 0.5 * losses[0]


def test_early_stopping_keeps_the_best_epoch(training_set, tiny):
    seen = {}
    config = tiny("sasrec", max_epochs=30, patience=3)
    fitted = fit(training_set, config, 0, lambda epoch, found: seen.update({epoch: found["ndcg@10"]}))

    assert fitted.metrics["ndcg@10"] == max(seen.values())
    assert fitted.num_epochs == min(fitted.best_epoch + 3, 30)
    assert validate(fitted.ranker, training_set)["ndcg@10"] == pytest.approx(fitted.metrics["ndcg@10"])


def test_the_weights_are_those_of_the_best_epoch_not_the_last(training_set, tiny, monkeypatch):
    figures = iter([0.1, 0.3, 0.2, 0.3, 0.1])  # an equal value is no improvement
    kept = {}

    def given(ranker, *_, **__):
        kept[len(kept) + 1] = ranker.enhancer.item.weight.detach().clone()
        return {"ndcg@10": next(figures)}

    monkeypatch.setattr(training_loop, "validate", given)
    fitted = fit(training_set, tiny("sasrec", max_epochs=30, patience=3), 0, lambda *_: None)

    assert (fitted.best_epoch, fitted.num_epochs) == (2, 5)
    assert fitted.metrics == fitted.metrics_without_kernel == {"ndcg@10": 0.3}
    assert torch.equal(fitted.ranker.enhancer.item.weight, kept[2])
    assert not torch.equal(kept[2], kept[5])


def test_the_best_epoch_is_that_of_the_protocol_a_recipe_is_selected_by(training_set, tiny, monkeypatch):
    figures = iter([(0.3, 0.1), (0.2, 0.3), (0.1, 0.2)])  # in the full ranking, among sampled items
    asked = []

    def given(*_, negatives, **__):
        asked.append(negatives)
        return dict(zip(("ndcg@10", SAMPLED_NDCG), next(figures), strict=True))

    monkeypatch.setattr(training_loop, "validate", given)
    monkeypatch.setattr(training_loop, "_negatives", lambda _: np.array([[1]]))
    fitted = fit(training_set, tiny("sasrec", max_epochs=3, selection="sampled"), 0, lambda *_: None)

    assert fitted.best_epoch == 2
    assert all(negatives is asked[0] and negatives is not None for negatives in asked)


def test_the_best_epoch_is_the_one_that_is_best_with_the_kernel_where_the_recipe_says_so(
    training_set, tiny, monkeypatch
):
    figures = {False: iter([0.3, 0.2, 0.1]), True: iter([0.1, 0.3, 0.2, 0.25])}  # the last one with the final weights
    seen = []

    def given(*_, with_kernel=True, **__):
        return {"ndcg@10": next(figures[with_kernel])}

    monkeypatch.setattr(training_loop, "validate", given)
    config = tiny("sasrec", max_epochs=3, selection="with_kernel").with_switches(kernel_length=2)
    fitted = fit(training_set, config, 0, lambda _, found: seen.append(found[KERNEL_NDCG]))

    assert (seen, fitted.best_epoch) == ([0.1, 0.3, 0.2], 2)
    assert fitted.metrics == {"ndcg@10": 0.25}
    assert fitted.metrics_without_kernel["ndcg@10"] == 0.2


def test_without_a_kernel_the_best_epoch_is_that_of_the_ranker_alone(training_set, tiny, monkeypatch):
    figures = iter([0.1, 0.3, 0.2])
    monkeypatch.setattr(training_loop, "validate", lambda *_, **__: {"ndcg@10": next(figures)})

    fitted = fit(training_set, tiny("sasrec", max_epochs=3, selection="with_kernel"), 0, lambda *_: None)

    assert (fitted.best_epoch, fitted.metrics["ndcg@10"]) == (2, 0.3)


def test_validation_ranks_among_the_negatives_it_is_given(training_set, tiny):
    ranker = fit(training_set, tiny("sasrec"), 0, lambda *_: None).ranker
    targets = np.array([event.target for event in evaluation_events(training_set, "validation")])

    alone = validate(ranker, training_set, negatives=targets[:, None])  # the only negative is the target itself
    assert alone[SAMPLED_NDCG] == pytest.approx((1 + 1 / np.log2(3)) / 2)
    assert SAMPLED_NDCG not in validate(ranker, training_set)


def test_metrics_are_given_with_the_calibrated_kernel_and_without(training_set, tiny):
    seen = {}
    config = tiny("sasrec", max_epochs=5).with_switches(kernel_length=2)
    fitted = fit(training_set, config, 0, lambda epoch, found: seen.update({epoch: found["ndcg@10"]}))

    assert fitted.metrics == validate(fitted.ranker, training_set)
    assert fitted.ranker.kernel.weights_K.any()
    fitted.ranker.kernel.weights_K.zero_()
    assert fitted.metrics_without_kernel == validate(fitted.ranker, training_set)
    assert fitted.metrics_without_kernel["ndcg@10"] == max(seen.values())
    assert fitted.metrics != fitted.metrics_without_kernel


def test_no_epoch_is_chosen_by_the_kernel(training_set, tiny):
    """The weights equal those of the same ranker without a kernel."""
    alone = fit(training_set, tiny("sasrec"), 0, lambda *_: None)
    beside = fit(training_set, tiny("sasrec").with_switches(kernel_length=2), 0, lambda *_: None)

    assert (beside.best_epoch, beside.metrics_without_kernel) == (alone.best_epoch, alone.metrics)
    for key, weights in alone.ranker.state_dict().items():
        assert torch.equal(weights, beside.ranker.state_dict()[key]), key


def test_the_reported_time_includes_initialisation_and_calibration(training_set, tiny, monkeypatch):
    class Clock:
        now = 0.0

        def monotonic(self) -> float:
            return self.now

        def process_time(self) -> float:
            return 2 * self.now

    clock = Clock()

    def taking(seconds, function):
        def slow(*given, **named):
            clock.now += seconds
            return function(*given, **named)

        return slow

    monkeypatch.setattr(training_loop, "time", clock)
    for owner, name, seconds in (
        (training_loop, "new_ranker", 1),
        (TrainingRun, "run_epoch", 10),
        (training_loop, "calibrate_kernel", 100),
        (training_loop, "calibrate_fresh", 1000),
    ):
        monkeypatch.setattr(owner, name, taking(seconds, getattr(owner, name)))
    fitted = fit(training_set, tiny("sasrec").with_switches(kernel_length=2), 0, lambda *_: None)

    assert (fitted.wall_seconds, fitted.cpu_seconds, fitted.fresh_cpu_seconds) == (1121, 2242, 2000)


@pytest.mark.parametrize("name", ["sasrec", "gru4rec_grasp"])
def test_the_evaluated_weights_are_the_running_mean_over_all_steps(training_set, tiny, name):
    torch.manual_seed(0)
    training = TrainingRun(training_set, tiny(name, averaging=0.9, batch_size=1), np.random.default_rng(0))
    trained, step = training._ranker, training._optimiser.step
    expected = {key: weights.detach().clone() for key, weights in trained.named_parameters()}
    num_steps = 0

    def followed():
        nonlocal num_steps
        step()
        num_steps += 1
        for key, weights in trained.named_parameters():
            kept = min(0.9, (1 + num_steps) / (10 + num_steps))  # the initial weights fade out fast
            expected[key] = kept * expected[key] + (1 - kept) * weights.detach()

    training._optimiser.step = followed
    for _ in range(2):
        training.run_epoch()

    assert num_steps > 4
    for key, weights in training.evaluated_ranker.named_parameters():
        torch.testing.assert_close(weights, expected[key])
    assert not torch.allclose(training.evaluated_ranker.enhancer.item.weight, trained.enhancer.item.weight)
    for key, values in trained.named_buffers():
        assert torch.equal(values, dict(training.evaluated_ranker.named_buffers())[key]), key


def test_without_averaging_the_trained_weights_are_evaluated(training_set, tiny):
    training = TrainingRun(training_set, tiny("sasrec"), np.random.default_rng(0))

    assert training.evaluated_ranker is training._ranker


@pytest.mark.parametrize("averaging", [0.0, 0.9])
def test_the_fitted_ranker_has_the_evaluated_weights(training_set, tiny, averaging):
    config = tiny("sasrec_grasp", max_epochs=1, averaging=averaging)
    fitted = fit(training_set, config, 0, lambda *_: None)
    with deterministic(0) as random:
        training = TrainingRun(training_set, config, random)
        training.run_epoch()

    expected = dict(training.evaluated_ranker.named_parameters())
    assert all(torch.equal(weights, expected[key]) for key, weights in fitted.ranker.named_parameters())


def test_too_many_items_are_not_compared_with_each_other(training_set, tiny, monkeypatch, capsys):
    config = tiny("sasrec_grasp").with_switches(kernel_length=2, num_lenders=2)
    monkeypatch.setattr(training_loop, "MAX_COMPARED_ITEMS", 6)
    assert new_ranker(training_set, config).kernel is not None
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(training_loop, "MAX_COMPARED_ITEMS", 5)

    fitted = fit(training_set, config, 0, lambda *_: None)

    assert fitted.ranker.kernel is None
    assert (fitted.ranker.config.kernel_length, fitted.ranker.config.num_lenders) == (0, 0)
    assert fitted.metrics == fitted.metrics_without_kernel
    assert "6 items are too many to compare all pairs" in capsys.readouterr().out


def test_fitting_stops_after_the_epoch_that_exceeds_the_time_limit(training_set, tiny, monkeypatch):
    class Clock:
        """A clock that advances by half a minute per reading."""

        now = 1000.0

        def monotonic(self) -> float:
            self.now += 30
            return self.now

        def process_time(self) -> float:
            return 7.0

    monkeypatch.setattr(training_loop, "time", Clock())
    config = tiny("sasrec", max_epochs=30, patience=30, max_minutes=1.75)

    assert (
        fit(training_set, config, 0, lambda *_: None).num_epochs == 4
    )  # the fourth reading is the first after the limit


# Every kind of thing that is learnt or stored from sequences.
READERS = {
    "sasrec_grasp": {"kernel_length": 2, "num_lenders": 2},
    "sasrec_llm_esr": {},
    "sasrec_alphafuse": {},
    "bert4rec_rlmrec_contrastive": {},
}


@pytest.mark.parametrize("name", READERS)
def test_events_after_the_cutoff_change_no_weight(frames, tiny, name):
    without = frames | {"events": frames["events"][frames["events"]["split"] != "test"]}
    config = tiny(name).with_switches(**READERS[name])

    first = fit(to_training_set(frames), config, 0, lambda *_: None).ranker
    second = fit(to_training_set(without), config, 0, lambda *_: None).ranker

    for key, weights in first.state_dict().items():
        assert torch.equal(weights, second.state_dict()[key]), key


@pytest.mark.parametrize("name", READERS)
def test_planted_validation_items_choose_epoch_and_kernel_weights_at_most(frames, tiny, name):
    planted = frames["events"].copy()
    planted.loc[planted["split"] != "train", "item_id"] = "3"
    config = tiny(name, max_epochs=1).with_switches(**READERS[name])

    first = fit(to_training_set(frames), config, 0, lambda *_: None).ranker
    second = fit(to_training_set(frames | {"events": planted}), config, 0, lambda *_: None).ranker

    for key, weights in first.state_dict().items():
        assert key == "kernel.weights_K" or torch.equal(weights, second.state_dict()[key]), key


def test_without_a_validation_target_training_says_so(frames, tiny):
    events = frames["events"]
    training_set = to_training_set(frames | {"events": events[events["split"] == "train"]})

    with pytest.raises(ValueError, match="no validation target"):
        fit(training_set, tiny("sasrec"), 0, lambda *_: None)


def test_a_loss_that_is_not_finite_is_an_error_that_names_the_recipe(training_set, tiny):
    with pytest.raises(ValueError, match="the loss of recipe sasrec is not finite: lower its learning rate"):
        fit(training_set, tiny("sasrec", learning_rate=float("inf"), max_epochs=5), 0, lambda *_: None)


def test_items_borrow_by_how_often_they_were_taken_in_training(training_set, tiny):
    enhancer = new_ranker(training_set, tiny("sasrec_grasp").with_switches(num_lenders=2)).enhancer

    # 1 2 3 4, 2 3 and 4 5; item 6 has no interactions, which count as 0.5.
    assert enhancer.log_count_N[1:].exp().tolist() == pytest.approx([1, 2, 2, 2, 1, 0.5])
    assert enhancer.lenders_NM[1:].any()


def test_torch_settings_are_restored_after_fitting(training_set, tiny):
    fit(training_set, replace(tiny("sasrec"), max_epochs=1), 0, lambda *_: None)

    assert not torch.are_deterministic_algorithms_enabled()
