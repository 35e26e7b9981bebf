from dataclasses import replace

import numpy as np
import pytest
import torch

from training.data.event_log import event_log
from training.data.training_set import TrainingSet
from training.evaluation.fresh_features import FreshFeatures
from training.fitting.fresh_calibration import calibrate_fresh, candidates_of, fit_weights
from training.model.fresh_score import FreshScore

NUM_ITEMS, NUM_USERS, DAY = 40, 120, 10_000


def made_up(training_set: TrainingSet, *, is_in_fashion: bool) -> TrainingSet:
    """Every user has an old item and, on a day of their own, a target: what was taken the day before, or anything."""
    random = np.random.default_rng(0)
    days = DAY + random.permutation(NUM_USERS)
    hot = random.integers(1, NUM_ITEMS, NUM_USERS * 2)  # of each day
    first = random.integers(1, NUM_ITEMS, NUM_USERS)
    target = hot[days - DAY] if is_in_fashion else random.integers(1, NUM_ITEMS, NUM_USERS)
    target = np.where(target == first, NUM_ITEMS, target)
    takers = [(np.full(NUM_USERS, 0) + hot[:NUM_USERS], DAY + np.arange(NUM_USERS) - 1)] * 3
    items = [np.array([1]) for _ in range(NUM_USERS)] + [each for each, _ in takers]
    of_days = [np.array([DAY - 99]) for _ in range(NUM_USERS)] + [each for _, each in takers]
    vectors = np.eye(NUM_ITEMS, dtype=np.float32)
    return replace(
        training_set,
        item_ids=[str(item) for item in range(NUM_ITEMS)],
        item_semantic=vectors,
        sequences=[np.array(pair) for pair in zip(first, target, strict=True)],
        splits=[np.array(["train", "validation"], object)] * NUM_USERS,
        days=[np.array([DAY - 99, day]) for day in days],
        logs={"validation": event_log(items, of_days)},
    )


def flat(events) -> np.ndarray:
    """A ranker that knows nothing: a little noise, so that there are no ties."""
    rows = [np.random.default_rng(event.user).random(NUM_ITEMS, np.float32) / 10 for event in events]
    return np.stack(rows)


def test_takers_that_tell_the_target_get_a_weight(training_set: TrainingSet):
    data, fresh = made_up(training_set, is_in_fashion=True), FreshScore()

    choice = calibrate_fresh(fresh, flat, FreshFeatures(data, "validation"), data)

    assert choice.chosen == "takers"
    assert fresh.reads_takers
    assert not fresh.reads_votes
    assert choice.gains["takers"].low > 0.3
    assert choice.gains["none"].mean == 0


def test_where_they_say_nothing_every_weight_stays_zero(training_set: TrainingSet):
    data, fresh = made_up(training_set, is_in_fashion=False), FreshScore()

    choice = calibrate_fresh(fresh, flat, FreshFeatures(data, "validation"), data)

    assert choice.chosen == "none"
    assert not fresh.reads_takers
    assert not fresh.reads_votes


def test_the_target_is_the_first_candidate_and_the_history_is_none(training_set: TrainingSet):
    from training.evaluation.ranking import evaluation_events

    data = made_up(training_set, is_in_fashion=True)
    events = evaluation_events(data, "validation")

    found = candidates_of(flat, FreshFeatures(data, "validation"), events)

    assert found.score_EC[:, 0].tolist() == pytest.approx(
        [float(flat([event])[0, event.target - 1]) for event in events]
    )
    assert (found.score_EC > -1e8).sum(1).tolist() == [NUM_ITEMS - 1] * len(events)


def test_weights_are_never_below_zero_and_zero_beyond_the_asked_features(training_set: TrainingSet):
    from training.evaluation.ranking import evaluation_events

    data = made_up(training_set, is_in_fashion=False)
    found = candidates_of(flat, FreshFeatures(data, "validation"), evaluation_events(data, "validation"))

    weights_F = fit_weights(found, 2)

    assert (weights_F >= 0).all()
    assert not weights_F[2:].any()
    assert torch.equal(fit_weights(found, 0), torch.zeros(6))
