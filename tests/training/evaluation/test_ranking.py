import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from training.evaluation.baselines import distinct_user_popularity
from training.evaluation.metrics import bootstrap_interval, event_groups, event_metrics, ndcg_and_hit_rate
from training.evaluation.negatives import draw_negatives
from training.evaluation.ranking import (
    BATCH_SIZE,
    MISSED,
    Event,
    Ranks,
    Scorer,
    evaluation_events,
    rank_events,
    ranker_scorer,
)
from training.fitting.training_loop import new_ranker


def event(history: list[int], target: int, user: int = 0) -> Event:
    return Event(user, np.array(history), target)


def giving(*rows: list[float]) -> Scorer:
    """A scorer that gives these rows, one per event of a single batch."""
    return lambda _: np.array(rows)


def only(num_greater: int, num_tied: int = 0) -> Ranks:
    return Ranks(np.array([num_greater]), np.array([num_tied]))


def test_without_ties_ndcg_is_one_over_log_of_the_rank():
    ndcg, hr = ndcg_and_hit_rate(Ranks(np.array([0, 2, 9, 10]), np.zeros(4, int)), 10)

    assert ndcg == pytest.approx([1, 1 / 2, 1 / math.log2(11), 0])
    assert hr.tolist() == [1, 1, 1, 0]


def test_ties_count_as_the_mean_over_their_orders():
    ndcg, hr = ndcg_and_hit_rate(only(1, 1), 2)  # rank 2 or 3 with equal chance

    assert ndcg == pytest.approx(0.5 / math.log2(3))
    assert hr == pytest.approx(0.5)


def test_a_constant_scorer_gains_nothing_by_its_ties():
    events = [event([1, 2, 2], 5), event([7], 9, user=1)]
    negatives = draw_negatives(events, 300)

    found = rank_events(lambda batch: np.zeros((len(batch), 300)), events, [negatives])
    ndcg, hr = ndcg_and_hit_rate(found.sampled[0], 10)

    assert hr == pytest.approx([10 / 101] * 2)
    assert ndcg == pytest.approx([sum(1 / math.log2(r + 1) for r in range(1, 11)) / 101] * 2)
    assert found.unfiltered.num_tied.tolist() == [299, 299]
    assert found.filtered.num_tied.tolist() == [297, 298]  # a repeated history item counts once


def test_only_the_filtered_ranks_exclude_the_history():
    found = rank_events(giving([9.0, 8.0, 1.0, 1.0, 0.0, 1.0]), [event([1, 6, 1], 3)])

    assert (found.filtered.num_greater.tolist(), found.filtered.num_tied.tolist()) == ([1], [1])
    assert (found.unfiltered.num_greater.tolist(), found.unfiltered.num_tied.tolist()) == ([2], [2])


def test_a_target_that_repeats_is_ranked_although_it_is_in_the_history():
    found = rank_events(giving([9.0, 8.0, 1.0]), [event([1, 3], 3)])

    assert (found.filtered.num_greater.tolist(), found.filtered.num_tied.tolist()) == ([1], [0])


def test_ranks_agree_with_counting_one_by_one_across_batches():
    random = np.random.default_rng(0)
    scores = random.integers(0, 5, size=(600, 40)).astype(np.float32)
    scores[:, 6] = 9  # the best item, unless it is in the history
    histories = [random.integers(1, 41, size=random.integers(1, 12)).tolist() for _ in range(600)]
    events = [event(items, int(random.integers(1, 41)), user) for user, items in enumerate(histories)]
    negatives = draw_negatives(events, 40, 10)

    found = rank_events(lambda batch: scores[[each.user for each in batch]], events, [negatives], num_top=1)

    for row, each in enumerate(events):
        own, among = scores[each.user, each.target - 1], {*range(1, 41)} - {each.target, *each.history.tolist()}
        for ranks, items in ((found.filtered, among), (found.sampled[0], negatives[row])):
            others = [scores[each.user, item - 1] for item in items]
            counted = sum(other > own for other in others), sum(other == own for other in others)
            assert (ranks.num_greater[row], ranks.num_tied[row]) == counted
        assert (found.top[row, 0] == 7) == (7 not in each.history)


def test_histories_of_like_length_are_scored_together():
    lengths = np.random.default_rng(0).permutation(np.repeat([1, 50], BATCH_SIZE))
    asked = []

    def score(batch):
        asked.append({len(each.history) for each in batch})
        return np.zeros((len(batch), 60))

    rank_events(score, [event([1] * length, 2) for length in lengths])

    assert asked == [{1}, {50}]


def test_an_unknown_item_is_missed_however_few_items_there_are():
    found = rank_events(lambda _: np.zeros((1, 3)), [event([1], 0)], [np.array([[2, 3]])])

    assert found.filtered.num_greater.tolist() == [MISSED]
    for ranks in (found.filtered, found.unfiltered, found.sampled[0]):
        assert all(values.tolist() == [0] for values in event_metrics(ranks).values())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_finite_is_refused(bad):
    with pytest.raises(ValueError, match="1 of 3 scores are not finite"):
        rank_events(giving([0.0, bad, 1.0]), [event([2], 1)])


def test_the_best_items_are_not_of_the_history_and_stop_when_none_are_left():
    found = rank_events(
        giving([9.0, 8.0, 1.0, 7.0], [1.0, 2.0, 3.0, 4.0]), [event([1, 3], 1), event([1, 2, 4], 3)], num_top=2
    )

    assert found.top.tolist() == [[2, 4], [3, 0]]


def test_the_scores_a_scorer_owns_are_left_as_they_are():
    scores = np.array([[1.0, 2.0, 3.0]])

    rank_events(lambda _: scores, [event([1], 3)], num_top=1)

    assert scores.tolist() == [[1.0, 2.0, 3.0]]


def test_fewer_items_than_places_is_no_error():
    assert ndcg_and_hit_rate(only(1, 1), 20)[1].tolist() == [1]


def test_the_interval_resamples_users_not_events():
    # One user has nine of ten events, all hits: resampling events would give an interval of about 0.1.
    values, users = np.array([1.0] * 9 + [0.0]), np.array([5] * 9 + [2])

    found = bootstrap_interval(values, users)

    assert found.mean == pytest.approx(0.9)
    assert (found.low, found.high) == (0.0, 1.0)


def test_the_interval_of_no_difference_is_zero_and_repeatable():
    values, users = np.random.default_rng(0).random(50), np.arange(50) % 7

    assert bootstrap_interval(values - values, users).high == 0
    assert bootstrap_interval(values, users) == bootstrap_interval(values, users)
    assert bootstrap_interval(values, users).low < values.mean() < bootstrap_interval(values, users).high


def test_an_interval_over_no_events_is_nan():
    assert math.isnan(bootstrap_interval(np.array([]), np.array([])).low)


def test_an_event_has_the_history_up_to_it(training_set):
    found = evaluation_events(training_set, "test")

    assert [(event.user, event.history.tolist(), event.target) for event in found] == [
        (0, [1, 2, 3, 4, 5], 0),  # the unknown item is a target ...
        (0, [1, 2, 3, 4, 5], 6),  # ... but no model can read it as history
    ]
    assert [(event.history.tolist(), event.target) for event in evaluation_events(training_set, "validation")] == [
        ([1, 2, 3, 4], 5),
        ([2, 3], 1),
    ]


def test_an_event_knows_its_day(training_set):
    assert [event.day for event in evaluation_events(training_set, "validation")] == [10285, 10285]  # 1998-02-28
    assert [event.day for event in evaluation_events(training_set, "test")] == [10286, 10286]


def test_the_history_of_a_day_that_is_asked_as_a_whole_ends_before_it(training_set):
    by_day = replace(training_set, days=[np.array([1, 1, 2, 2, 3, 3, 3]), np.arange(3), np.arange(2)])

    found = evaluation_events(replace(by_day, history_excludes_day=True), "test")

    assert [(event.history.tolist(), event.target, event.day) for event in found] == [
        ([1, 2, 3, 4], 0, 3),
        ([1, 2, 3, 4], 6, 3),
    ]
    assert evaluation_events(by_day, "test")[0].history.tolist() == [1, 2, 3, 4, 5]


def test_popularity_ranks_items_by_number_of_users(training_set):
    found = rank_events(distinct_user_popularity(training_set), [event([1], 2), event([1], 6)])

    assert found.filtered.num_greater.tolist() == [0, 4]
    assert found.filtered.num_tied.tolist() == [0, 0]


def test_a_ranker_scores_with_or_without_its_kernel(training_set, tiny):
    ranker = new_ranker(training_set, tiny("sasrec_grasp").with_switches(kernel_length=2))
    ranker.kernel.weights_K.copy_(torch.tensor([1.0, 2.0, 3.0]))
    events = [event([1, 2, 3], 4, user=1), event([2], 3, user=0)]

    asked = [ranker_scorer(ranker, training_set.item_ids, training_set)(events)]
    asked += [
        ranker_scorer(ranker, training_set.item_ids, training_set, with_kernel=chosen)(events)
        for chosen in (True, False)
    ]

    kernel_BN = ranker.kernel(torch.tensor([[1, 2, 3], [0, 0, 2]]), 6)[:, 1:].numpy()
    assert (asked[0] == asked[1]).all()
    assert asked[1] - asked[2] == pytest.approx(kernel_BN, abs=1e-5)
    assert kernel_BN.any(1).all()


def test_groups_cover_every_event_once(training_set):
    events = evaluation_events(training_set, "test")
    found = event_groups(training_set, events)

    assert found["overall"].all()
    assert (found["head items"] ^ found["tail items"]).all()
    assert (found["head users"] ^ found["tail users"]).all()
    assert found["tail items"].tolist() == [True, True]


def test_a_target_in_the_history_is_a_repeat(training_set):
    found = event_groups(training_set, [event([1, 2], 2), event([1, 2], 3), event([1, 2], 0)])

    assert found["repeat"].tolist() == [True, False, False]
    assert found["non-repeat"].tolist() == [False, True, True]
