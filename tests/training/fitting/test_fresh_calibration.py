from dataclasses import replace

import numpy as np
import pytest
import torch

from grasp.moments import VoteRule
from training.data.event_log import event_log
from training.data.training_set import TrainingSet
from training.evaluation.fresh_features import FreshFeatures, MomentWindow
from training.evaluation.ranking import Event, evaluation_events
from training.fitting import fresh_calibration
from training.fitting.fresh_calibration import (
    Candidates,
    calibrate_fresh,
    calibration_events,
    candidates_of,
    choose,
    cross_fitted,
    fit_weights,
)
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
    data = made_up(training_set, is_in_fashion=True)
    events = evaluation_events(data, "validation")

    found = candidates_of(flat, FreshFeatures(data, "validation"), events)

    assert found.score_EC[:, 0].tolist() == pytest.approx(
        [float(flat([event])[0, event.target - 1]) for event in events]
    )
    assert (found.score_EC > -1e8).sum(1).tolist() == [NUM_ITEMS - 1] * len(events)


def test_the_hottest_and_the_voted_items_are_candidates_with_their_features(training_set: TrainingSet, monkeypatch):
    """Item 5 alone is among the best; 2, 3 and 4 were taken lately, and users who took 2 and then 3 vote for 3."""
    monkeypatch.setattr(fresh_calibration, "NUM_BEST", 1)
    rows = [([2, 3], [DAY - 3, DAY - 2]), ([2, 3, 4], [DAY - 9, DAY - 8, DAY - 1])]
    log = event_log(*([np.array(each) for each in column] for column in zip(*rows, strict=True)))
    data = replace(training_set, logs={"validation": log})
    features = FreshFeatures(data, "validation", MomentWindow(rule=VoteRule(min_voters=2)))
    number_N = np.array([[1, 2, 3, 4, 5, 0.5]], np.float32)  # the score of an item is its number

    found = candidates_of(lambda _: number_N, features, [Event(2, np.array([2]), 1, DAY)])

    feature_of = dict(zip(found.score_EC[0].tolist(), found.feature_ECF[0].tolist(), strict=True))
    assert list(feature_of) == [1, 3, 4, 5]  # the target; neither the history nor item 6
    assert feature_of[1] == feature_of[5] == [0] * 6
    assert feature_of[3] == pytest.approx([0, *np.log1p([1, 1, 2, 2]), np.log1p(1000 * share_of(features, 3))])
    assert feature_of[4] == pytest.approx([*np.log1p([1] * 5), 0])


def share_of(features: FreshFeatures, item: int) -> float:
    [voted] = features.votes([Event(2, np.array([2]), 1, DAY)])
    assert voted.items.tolist() == [item]
    return float(voted.weights[0])


def test_of_many_events_a_fixed_sample_is_fitted_to(training_set: TrainingSet, monkeypatch):
    monkeypatch.setattr(fresh_calibration, "MAX_CALIBRATION_EVENTS", 20)
    data = made_up(training_set, is_in_fashion=True)

    once, again = ([event.user for event in calibration_events(data)] for _ in range(2))

    assert len(set(once)) == 20
    assert once == again != list(range(20))


def test_weights_are_never_below_zero_and_zero_beyond_the_asked_features(training_set: TrainingSet):
    data = made_up(training_set, is_in_fashion=False)
    found = candidates_of(flat, FreshFeatures(data, "validation"), evaluation_events(data, "validation"))

    weights_F = fit_weights(found, 2)

    assert (weights_F >= 0).all()
    assert not weights_F[2:].any()
    assert torch.equal(fit_weights(found, 0), torch.zeros(6))


def noise(seed: int, num_events: int = 60, num_candidates: int = 30) -> Candidates:
    """Features that say nothing of the target; every event has a user of its own."""
    random = np.random.default_rng(seed)
    scores = random.random((num_events, num_candidates), np.float32)
    values = random.integers(0, 3, (num_events, num_candidates, 6)).astype(np.float32)
    return Candidates(torch.from_numpy(scores), torch.from_numpy(values), np.arange(num_events), num_candidates)


def test_users_are_judged_by_weights_that_were_not_fitted_to_them():
    """Fitted to the same users, weights of noise would seem to gain .05."""
    gains = [cross_fitted(noise(seed), 6).mean() - cross_fitted(noise(seed), 0).mean() for seed in range(10)]

    assert np.mean(gains) < 0.01


def test_no_user_is_in_both_halves():
    """With every event there twice, the weights that judge a user still come from the other users alone."""
    once = noise(0)
    twice = Candidates(
        once.score_EC.repeat(2, 1), once.feature_ECF.repeat(2, 1, 1), np.tile(once.user_E, 2), once.num_items
    )

    assert cross_fitted(twice, 6).tolist() == [*cross_fitted(once, 6)] * 2


@pytest.mark.parametrize(
    ("takers", "both", "chosen"),
    [
        ([0.1, 0.2, 0.1, 0.2], [0.1, 0.2, 0.1, 0.2], "takers"),
        ([0.1, 0.2, 0.1, 0.2], [0.2, 0.3, 0.3, 0.3], "takers and votes"),
        ([0.3, -0.2, 0.2, -0.2], [0.3, -0.2, 0.2, -0.2], "none"),  # a gain within noise
        ([-0.1, -0.2, 0.0, 0.0], [0.1, 0.2, 0.1, 0.1], "takers and votes"),
        ([0.3, 0.2, 0.3, 0.2], [0.2, 0.1, 0.2, 0.1], "takers"),  # better than nothing, but worse than less
    ],
)
def test_more_features_are_read_only_if_they_are_surely_better(takers, both, chosen):
    values = {"none": np.zeros(4), "takers": np.array(takers), "takers and votes": np.array(both)}

    assert choose(values, np.arange(4)) == chosen


def test_the_events_of_one_user_count_as_one_when_a_choice_is_sure():
    gain = np.array([0.1] * 10 + [-0.05] * 10)
    values = {"none": np.zeros(20), "takers": gain, "takers and votes": gain}

    assert choose(values, np.arange(20)) == "takers"
    assert choose(values, np.repeat([0, 1], 10)) == "none"
