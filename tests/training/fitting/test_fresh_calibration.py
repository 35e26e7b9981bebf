from dataclasses import replace

import numpy as np
import pytest
import torch

from training.data.event_log import event_log
from training.data.training_set import TrainingSet
from training.evaluation.fresh_features import FreshFeatures
from training.evaluation.ranking import evaluation_events
from training.evaluation.state_votes import StateVotes
from training.fitting.fresh_calibration import (
    STATE_VOTES,
    STORED_VOTES,
    TAKERS,
    Candidates,
    calibrate_fresh,
    candidates_of,
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


class Flat:
    """A ranker that knows nothing: a little noise, so that there are no ties. Its state is the newest item."""

    def __call__(self, events) -> np.ndarray:
        rows = [np.random.default_rng(event.user).random(NUM_ITEMS, np.float32) / 10 for event in events]
        return np.stack(rows)

    def states(self, histories, users=None) -> np.ndarray:
        return np.eye(NUM_ITEMS + 1, dtype=np.float32)[[history[-1] for history in histories]]


flat = Flat()


def found_candidates(data: TrainingSet) -> Candidates:
    features = FreshFeatures(data, "validation")
    events = evaluation_events(data, "validation")
    return candidates_of(flat, features, StateVotes(features, flat.states), events)


def test_takers_that_tell_the_target_get_a_weight(training_set: TrainingSet):
    data, fresh = made_up(training_set, is_in_fashion=True), FreshScore()

    choice = calibrate_fresh(fresh, flat, FreshFeatures(data, "validation"), data)

    assert choice.chosen == "takers"
    assert fresh.reads_takers
    assert not fresh.reads_votes
    assert not fresh.reads_state_votes
    assert choice.gains["takers"].low > 0.3
    assert choice.gains["none"].mean == 0


def test_where_they_say_nothing_every_weight_stays_zero(training_set: TrainingSet):
    data, fresh = made_up(training_set, is_in_fashion=False), FreshScore()

    choice = calibrate_fresh(fresh, flat, FreshFeatures(data, "validation"), data)

    assert choice.chosen == "none"
    assert not fresh.reads_takers
    assert not fresh.reads_votes
    assert not fresh.reads_state_votes


def test_the_target_is_the_first_candidate_and_the_history_is_none(training_set: TrainingSet):
    data = made_up(training_set, is_in_fashion=True)
    events = evaluation_events(data, "validation")

    found = found_candidates(data)

    assert found.score_EC[:, 0].tolist() == pytest.approx(
        [float(flat([event])[0, event.target - 1]) for event in events]
    )
    assert (found.score_EC > -1e8).sum(1).tolist() == [NUM_ITEMS - 1] * len(events)


def test_weights_are_never_below_zero(training_set: TrainingSet):
    assert (fit_weights(found_candidates(made_up(training_set, is_in_fashion=False))) >= 0).all()


def test_no_event_gives_no_weight(training_set: TrainingSet):
    found = found_candidates(made_up(training_set, is_in_fashion=True))

    assert torch.equal(fit_weights(found, np.zeros(NUM_USERS, bool)), torch.zeros(7))


def test_each_kind_of_votes_is_fitted_beside_takers_alone():
    """Two features that say the same: a joint search would give the second no weight."""
    random = np.random.default_rng(0)
    score_EC = torch.from_numpy(random.random((200, 30), np.float32))
    feature_ECF = torch.zeros(200, 30, 7)
    feature_ECF[:, 0, [STORED_VOTES, STATE_VOTES]] = 0.3  # the target's

    weights_F = fit_weights(Candidates(score_EC, feature_ECF, np.arange(200), 30))

    assert weights_F[STORED_VOTES] == weights_F[STATE_VOTES] > 0
    assert not weights_F[list(TAKERS)].any()


def test_votes_that_say_what_takers_say_get_no_weight():
    random = np.random.default_rng(0)
    score_EC = torch.from_numpy(random.random((200, 30), np.float32))
    feature_ECF = torch.zeros(200, 30, 7)
    feature_ECF[:, 0] = 3.0  # the target's: takers alone put it first

    weights_F = fit_weights(Candidates(score_EC, feature_ECF, np.arange(200), 30))

    assert weights_F[list(TAKERS)].any()
    assert not weights_F[[STORED_VOTES, STATE_VOTES]].any()


def followers(training_set: TrainingSet) -> TrainingSet:
    """Users take an item, and the next day its successor, as three others did the day before; fashion says nothing."""
    random = np.random.default_rng(0)
    days = DAY + np.arange(NUM_USERS)
    first = random.integers(1, NUM_ITEMS, NUM_USERS)
    data = made_up(training_set, is_in_fashion=False)
    pairs = [np.array([item, item % NUM_ITEMS + 1]) for item in range(1, NUM_ITEMS + 1)]
    taken = [(pair, np.array([day - 2, day - 1])) for day in days[::20] for pair in pairs for _ in range(3)]
    own = [np.array([0])] * NUM_USERS  # unknown items, so that the log's users are others
    return replace(
        data,
        sequences=[np.array([item, item % NUM_ITEMS + 1]) for item in first],
        days=[np.array([DAY - 99, day]) for day in days],
        logs={"validation": event_log([*own, *(pair for pair, _ in taken)], [*own, *(each for _, each in taken)])},
    )


def test_state_votes_that_tell_the_target_are_chosen_and_the_stored_ones_stand_by(training_set: TrainingSet):
    data, fresh = followers(training_set), FreshScore()

    choice = calibrate_fresh(fresh, flat, FreshFeatures(data, "validation"), data)

    assert choice.chosen == "takers and state votes"
    assert fresh.reads_state_votes
    assert fresh.reads_votes
    assert choice.gains["takers and state votes"].low > 0.3
