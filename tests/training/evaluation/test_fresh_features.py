from dataclasses import replace

import numpy as np
import pytest
import torch

from grasp.moments import VoteRule
from training.data.event_log import event_log
from training.data.training_set import TrainingSet
from training.evaluation.fresh_features import DEFAULT_WINDOW, FreshFeatures, MomentWindow
from training.evaluation.ranking import Event, with_fresh
from training.evaluation.state_votes import StateVotes
from training.model.fresh_score import FreshScore

DAY = 10_000
ANYBODY = MomentWindow(rule=VoteRule(min_voters=1))


def set_of(training_set: TrainingSet, *rows: tuple[int, int, int]) -> TrainingSet:
    """The training set with a log of (user, item, day) for its test; each user's rows oldest first."""
    of_user = [[(item, day) for user, item, day in rows if user == each] for each in range(5)]
    items, days = ([np.array([row[place] for row in rows], np.int64) for rows in of_user] for place in (0, 1))
    return replace(training_set, logs={"test": event_log(items, days)})


def voted(features: FreshFeatures, event: Event) -> dict[int, float]:
    [votes] = features.votes([event])
    return dict(zip(votes.items.tolist(), votes.weights.tolist(), strict=True))


def test_an_event_knows_the_day_before_it_and_nothing_of_its_own(training_set: TrainingSet):
    rows = [(1, 2, DAY - 1), (1, 3, DAY - 1)]
    later = [(2, 2, DAY), (2, 3, DAY), (3, 2, DAY + 1), (3, 4, DAY + 1)]
    event = Event(0, np.array([2]), 3, DAY)
    known, planted = (FreshFeatures(set_of(training_set, *each), "test", ANYBODY) for each in (rows, [*rows, *later]))

    assert known.takers(event)[0].tolist() == [2, 3]
    for before, after in zip(known.takers(event), planted.takers(event), strict=True):
        assert before.tolist() == after.tolist()
    assert voted(known, event) == voted(planted, event) == {3: 1.0}


def test_frozen_features_know_nothing_after_their_day(training_set: TrainingSet):
    rows = [(1, 2, DAY - 9), (1, 3, DAY - 9), (2, 2, DAY - 5), (2, 5, DAY - 5)]
    event = Event(0, np.array([2]), 3, DAY)
    fresh = FreshFeatures(set_of(training_set, *rows), "test", ANYBODY)
    frozen = FreshFeatures(set_of(training_set, *rows), "test", ANYBODY, frozen_day=DAY - 6)

    assert fresh.takers(event)[0].tolist() == [2, 3, 5]
    assert frozen.takers(event)[0].tolist() == [2, 3]
    assert set(voted(fresh, event)) == {3, 5}
    assert set(voted(frozen, event)) == {3}


def test_nobody_votes_for_oneself(training_set: TrainingSet):
    rows = [(0, 2, DAY - 2), (0, 4, DAY - 1), (1, 2, DAY - 2), (1, 3, DAY - 1)]

    features = FreshFeatures(set_of(training_set, *rows), "test", ANYBODY)

    assert voted(features, Event(0, np.array([2]), 3, DAY)) == {3: 1.0}
    assert voted(features, Event(1, np.array([2]), 3, DAY)) == {4: 1.0}


def test_similar_moments_have_more_votes(training_set: TrainingSet):
    rows = [(1, 2, DAY - 2), (1, 3, DAY - 1), (2, 5, DAY - 2), (2, 4, DAY - 1)]

    found = voted(FreshFeatures(set_of(training_set, *rows), "test", ANYBODY), Event(0, np.array([2]), 3, DAY))

    assert found[3] > 0.9 > found.get(4, 0)


def test_an_empty_window_has_no_votes(training_set: TrainingSet, settings):
    rows = [(1, 2, DAY - 2), (1, 3, DAY - 1)]
    window = MomentWindow.of(settings.model_copy(update={"moments": False}))

    assert voted(FreshFeatures(set_of(training_set, *rows), "test", window), Event(0, np.array([2]), 3, DAY)) == {}


def test_benchmarks_measure_the_window_and_the_rule_of_the_settings(settings):
    assert MomentWindow.of(settings) == DEFAULT_WINDOW


def test_without_a_log_only_training_events_are_known(training_set: TrainingSet):
    is_training = np.concatenate(training_set.splits) == "train"
    items = np.concatenate(training_set.sequences)[is_training]

    log = training_set.log("validation")

    assert sorted(log.item_E.tolist()) == sorted(items.tolist())
    assert len(log.item_E) < len(np.concatenate(training_set.sequences))


def ones(events):
    return np.ones((len(events), 6), np.float32)


def state_votes(features: FreshFeatures) -> StateVotes:
    """Of a ranker whose state is the newest item."""
    return StateVotes(features, lambda histories, users=None: np.eye(9)[[history[-1] for history in histories]])


def test_what_is_added_is_takers_and_votes_times_their_weights(training_set: TrainingSet):
    rows = [(1, 2, DAY - 1), (1, 3, DAY - 1), (2, 3, DAY - 1)]
    features, fresh = FreshFeatures(set_of(training_set, *rows), "test", ANYBODY), FreshScore()
    fresh.takers_weight_W[0], fresh.vote_weight = torch.tensor(2.0), torch.tensor(3.0)
    event = Event(0, np.array([2]), 3, DAY)

    [score_N] = with_fresh(ones, fresh, features, state_votes(features))([event])

    added = [0, 2 * np.log(2), 2 * np.log(3) + float(fresh.of_votes(torch.tensor([1.0]))), 0, 0, 0]
    assert score_N == pytest.approx(1 + np.array(added), abs=1e-5)


def test_weights_of_zero_leave_the_scorer_as_it_is(training_set: TrainingSet):
    features = FreshFeatures(training_set, "test")

    assert with_fresh(ones, FreshScore(), features, state_votes(features)) is ones


@pytest.mark.parametrize("of_stored", [0.0, 3.0])
def test_state_votes_take_the_place_of_stored_ones(training_set: TrainingSet, of_stored):
    rows = [(user, item, day) for user in (1, 2, 3) for item, day in ((2, DAY - 2), (4, DAY - 1))]
    features, fresh = FreshFeatures(set_of(training_set, *rows), "test"), FreshScore()
    fresh.vote_weight, fresh.state_vote_weight = torch.tensor(of_stored), torch.tensor(2.0)
    event = Event(0, np.array([2]), 3, DAY)

    [score_N] = with_fresh(ones, fresh, features, state_votes(features))([event])

    assert score_N == pytest.approx([1, 1, 1, 1 + 2 * np.log(1 + 30 * 3), 1, 1], abs=1e-4)
