import math

import numpy as np
import pytest

from training.evaluate import (
    MISSED,
    UNKNOWN,
    Event,
    Ranks,
    gains,
    groups,
    interval,
    metrics,
    popularity_scorer,
    questions,
    rank_events,
    ranks,
)


def only(num_greater: int, num_tied: int = 0) -> Ranks:
    return Ranks(np.array([num_greater]), np.array([num_tied]))


def test_without_ties_the_gain_is_one_over_log_of_the_rank():
    ndcg, hr = gains(Ranks(np.array([0, 2, 9, 10]), np.zeros(4, int)), 10)

    assert ndcg == pytest.approx([1, 1 / 2, 1 / math.log2(11), 0])
    assert hr.tolist() == [1, 1, 1, 0]


def test_ties_count_as_the_mean_over_their_orders():
    ndcg, hr = gains(only(1, 1), 2)  # place 2 or 3, with equal chance

    assert ndcg == pytest.approx(0.5 / math.log2(3))
    assert hr == pytest.approx(0.5)


def test_a_constant_scorer_gains_nothing_by_its_ties():
    found = ranks(np.zeros((1, 101)), np.array([7]), np.zeros((1, 101), bool))
    ndcg, hr = gains(found, 10)

    assert hr == pytest.approx(10 / 101)
    assert ndcg == pytest.approx(sum(1 / math.log2(r + 1) for r in range(1, 11)) / 101)


def test_history_is_left_out_but_the_target_never_is():
    scores = np.array([[9.0, 8.0, 1.0, 1.0, 0.0]])
    excluded = np.array([[True, False, True, False, False]])

    found = ranks(scores, np.array([2]), excluded)

    assert (found.num_greater.tolist(), found.num_tied.tolist()) == ([1], [1])


def test_an_unknown_item_is_missed_however_few_items_there_are():
    found = ranks(np.zeros((1, 3)), np.array([UNKNOWN]), np.zeros((1, 3), bool))

    assert found.num_greater.tolist() == [MISSED]
    assert all(values.tolist() == [0] for values in metrics(found).values())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_finite_is_refused(bad):
    with pytest.raises(ValueError, match="1 of 3 scores are not finite"):
        ranks(np.array([[0.0, bad, 1.0]]), np.array([0]), np.zeros((1, 3), bool))


def test_fewer_items_than_places_is_no_error():
    assert gains(only(1, 1), 20)[1].tolist() == [1]


def test_the_interval_draws_users_not_events():
    # One user holds nine of ten events, all hits: by events the mean would be sure to about 0.1.
    values, users = np.array([1.0] * 9 + [0.0]), np.array([5] * 9 + [2])

    found = interval(values, users)

    assert found.mean == pytest.approx(0.9)
    assert (found.low, found.high) == (0.0, 1.0)


def test_the_interval_of_no_difference_is_zero_and_repeatable():
    values, users = np.random.default_rng(0).random(50), np.arange(50) % 7

    assert interval(values - values, users).high == 0
    assert interval(values, users) == interval(values, users)
    assert interval(values, users).low < values.mean() < interval(values, users).high


def test_an_interval_over_nothing_is_no_number():
    assert math.isnan(interval(np.array([]), np.array([])).low)


def test_questions_know_the_sequence_up_to_the_event(training_set):
    found = questions(training_set, "test")

    assert [(event.user, event.history.tolist(), event.target) for event in found] == [
        (0, [1, 2, 3, 4, 5], 0),  # the unknown item is a target ...
        (0, [1, 2, 3, 4, 5], 6),  # ... but no model can read it as history
    ]
    assert [(event.history.tolist(), event.target) for event in questions(training_set, "validation")] == [
        ([1, 2, 3, 4], 5),
        ([2, 3], 1),
    ]


def test_popularity_ranks_what_most_users_had_first(training_set):
    found = rank_events(popularity_scorer(training_set), [Event(0, np.array([1]), 2), Event(0, np.array([1]), 6)])

    assert found.num_greater.tolist() == [0, 4]
    assert found.num_tied.tolist() == [0, 0]


def test_groups_cover_every_event_once(training_set):
    events = questions(training_set, "test")
    found = groups(training_set, events)

    assert found["overall"].all()
    assert (found["head items"] ^ found["tail items"]).all()
    assert (found["head users"] ^ found["tail users"]).all()
    assert found["tail items"].tolist() == [True, True]
