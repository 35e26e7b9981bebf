from dataclasses import replace

import numpy as np
import pytest
import torch

from grasp.moments import VoteRule
from training.data.event_log import event_log
from training.data.training_set import TrainingSet
from training.evaluation.fresh_features import FreshFeatures, MomentWindow
from training.evaluation.ranking import Event, evaluation_events
from training.evaluation.state_votes import StateVotes
from training.fitting import fresh_calibration
from training.fitting.fresh_calibration import (
    CHOICES,
    STATE_VOTES,
    STORED_VOTES,
    TAKERS,
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


def test_the_hottest_and_the_voted_items_are_candidates_with_their_features(training_set: TrainingSet, monkeypatch):
    """Item 5 alone is among the best; 2, 3 and 4 were taken lately, and users who took 2 and then 3 vote for 3."""
    monkeypatch.setattr(fresh_calibration, "NUM_BEST", 1)
    rows = [([2, 3], [DAY - 3, DAY - 2]), ([2, 3, 4], [DAY - 9, DAY - 8, DAY - 1])]
    log = event_log(*([np.array(each) for each in column] for column in zip(*rows, strict=True)))
    data = replace(training_set, logs={"validation": log})
    features = FreshFeatures(data, "validation", MomentWindow(rule=VoteRule(min_voters=2)))
    number_N = np.array([[1, 2, 3, 4, 5, 0.5]], np.float32)  # the score of an item is its number
    by_state = StateVotes(features, flat.states)

    found = candidates_of(lambda _: number_N, features, by_state, [Event(2, np.array([2]), 1, DAY)])

    feature_of = dict(zip(found.score_EC[0].tolist(), found.feature_ECF[0].tolist(), strict=True))
    assert list(feature_of) == [1, 3, 4, 5]  # the target; neither the history nor item 6
    assert feature_of[1] == feature_of[5] == [0] * 7
    share, votes = share_of(features, 3), sum(np.exp(-15 * 0.004 * age) for age in (1, 7))
    assert feature_of[3] == pytest.approx([0, *np.log1p([1, 1, 2, 2]), np.log1p(1000 * share), np.log1p(30 * votes)])
    assert feature_of[4] == pytest.approx([*np.log1p([1] * 5), 0, 0])


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


def noise(seed: int, num_events: int = 60, num_candidates: int = 30) -> Candidates:
    """Features that say nothing of the target; every event has a user of its own."""
    random = np.random.default_rng(seed)
    scores = random.random((num_events, num_candidates), np.float32)
    values = random.integers(0, 3, (num_events, num_candidates, 7)).astype(np.float32)
    return Candidates(torch.from_numpy(scores), torch.from_numpy(values), np.arange(num_events), num_candidates)


def test_users_are_judged_by_weights_that_were_not_fitted_to_them():
    """Fitted to the same users, weights of noise would seem to gain .05."""
    found = [cross_fitted(noise(seed)) for seed in range(10)]

    for name in list(CHOICES)[1:]:
        assert np.mean([each[name].mean() - each["none"].mean() for each in found]) < 0.02


def test_no_user_is_in_both_halves():
    """With every event there twice, the weights that judge a user still come from the other users alone."""
    once = noise(0)
    twice = Candidates(
        once.score_EC.repeat(2, 1), once.feature_ECF.repeat(2, 1, 1), np.tile(once.user_E, 2), once.num_items
    )

    of_two, of_one = cross_fitted(twice), cross_fitted(once)
    assert {name: each.tolist() for name, each in of_two.items()} == {
        name: [*each] * 2 for name, each in of_one.items()
    }


def test_a_target_is_judged_behind_the_items_that_it_ties_with():
    ties = Candidates(torch.zeros(4, 30), torch.zeros(4, 30, 7), np.arange(4), 30)

    assert {float(value) for values in cross_fitted(ties).values() for value in values} == {0.0}


SURE, SURER, WITHIN_NOISE = [0.1, 0.2, 0.1, 0.2], [0.2, 0.3, 0.3, 0.3], [0.3, -0.2, 0.2, -0.2]
WORSE = [-0.1, -0.2, 0.0, 0.0]


@pytest.mark.parametrize(
    ("takers", "stored", "by_state", "chosen", "votes"),
    [
        (SURE, SURE, SURE, "takers", set()),
        (SURE, SURER, SURE, "takers and stored votes", {STORED_VOTES}),
        (SURE, SURE, SURER, "takers and state votes", {STATE_VOTES}),
        (SURE, SURER, SURER, "takers and state votes", {STORED_VOTES, STATE_VOTES}),
        (WITHIN_NOISE, WITHIN_NOISE, WITHIN_NOISE, "none", None),
        (WORSE, SURE, WORSE, "takers and stored votes", {STORED_VOTES}),
        (SURER, SURE, SURE, "takers", set()),  # better than nothing, but worse than less
    ],
)
def test_more_features_are_read_only_if_they_are_surely_better(takers, stored, by_state, chosen, votes):
    values = dict(zip(CHOICES, map(np.array, ([0] * 4, takers, stored, by_state)), strict=True))

    assert choose(values, np.arange(4)) == (chosen, set() if votes is None else {*TAKERS, *votes})


def test_a_ranker_with_takers_in_its_loss_reads_them_in_any_case(training_set: TrainingSet):
    data, fresh = made_up(training_set, is_in_fashion=False), FreshScore()
    fresh.takers_weight_W[2] = 1.0

    choice = calibrate_fresh(fresh, flat, FreshFeatures(data, "validation"), data)

    assert choice.chosen == "takers"
    assert choose(dict.fromkeys(CHOICES, np.zeros(4)), np.arange(4), with_takers=True) == ("takers", {*TAKERS})


def test_the_events_of_one_user_count_as_one_when_a_choice_is_sure():
    gain = np.array([0.1] * 10 + [-0.05] * 10)
    values = dict(zip(CHOICES, (np.zeros(20), gain, gain, gain), strict=True))

    assert choose(values, np.arange(20))[0] == "takers"
    assert choose(values, np.repeat([0, 1], 10))[0] == "none"
