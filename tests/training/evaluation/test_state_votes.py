from dataclasses import replace

import numpy as np
import pytest

from training.data.event_log import event_log
from training.data.training_set import TrainingSet
from training.evaluation.fresh_features import FreshFeatures
from training.evaluation.ranking import Event, RankerScorer
from training.evaluation.state_votes import StateVotes
from training.fitting.training_loop import new_ranker

DAY = 100


class NewestItem:
    """A ranker whose state is the newest item. It keeps what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[list[int], int | None]] = []

    def __call__(self, histories, users=None) -> np.ndarray:
        of_users = [None] * len(histories) if users is None else users
        self.asked += [(list(history), user) for history, user in zip(histories, of_users, strict=True)]
        return np.eye(9)[[history[-1] for history in histories]]


def state_votes(training_set: TrainingSet, *sequences: tuple[tuple[int, int], ...], **given: int):
    """Votes of users 1, 2, ... with these (item, day); user 0 took nothing."""
    items = [np.array([item for item, _ in each], np.int64) for each in ((), *sequences)]
    days = [np.array([day for _, day in each], np.int64) for each in ((), *sequences)]
    data = replace(training_set, logs={"test": event_log(items, days)})
    states = NewestItem()
    return StateVotes(FreshFeatures(data, "test", **given), states), states


def asked(day: int = DAY, user: int = 0, *history: int) -> Event:
    return Event(user, np.array(history or [2]), 1, day)


def weights(votes: StateVotes, event: Event) -> dict[int, float]:
    [found] = votes.votes([event])
    return dict(zip(found.items.tolist(), found.weights.tolist(), strict=True))


def walk(day: int) -> tuple[tuple[int, int], ...]:
    """Item 2, and item 5 the next day."""
    return (2, day - 1), (5, day)


def test_moments_up_to_the_day_before_vote_and_each_day_of_age_counts(training_set: TrainingSet):
    votes, _ = state_votes(training_set, *[walk(DAY - 3)] * 3)

    assert weights(votes, asked(DAY - 2)) == pytest.approx({5: 3.0})
    assert weights(votes, asked(DAY)) == pytest.approx({5: 3 * np.exp(-15 * 0.004 * 2)}, abs=1e-5)


def test_nothing_of_the_day_itself_or_later_votes(training_set: TrainingSet):
    votes, _ = state_votes(training_set, *[walk(DAY)] * 3, *[walk(DAY + 1)] * 3)

    assert weights(votes, asked(DAY)) == {}


def test_with_a_frozen_day_later_moments_do_not_vote(training_set: TrainingSet):
    votes, _ = state_votes(training_set, *[walk(DAY - 1)] * 3, frozen_day=DAY - 2)

    assert weights(votes, asked(DAY)) == {}


def test_moments_leave_the_window(training_set: TrainingSet):
    votes, _ = state_votes(training_set, *[walk(DAY - 30)] * 3)

    assert weights(votes, asked(DAY)) != {}
    assert weights(votes, asked(DAY + 1)) == {}


def test_an_item_needs_three_other_users(training_set: TrainingSet):
    votes, _ = state_votes(training_set, *[walk(DAY - 1)] * 3)

    assert weights(votes, asked(DAY, 0)) == pytest.approx({5: 3.0})
    assert weights(votes, asked(DAY, 1)) == {}


def test_a_moments_state_knows_its_last_items_and_no_user(training_set: TrainingSet):
    items = tuple((item, DAY - 20 + item) for item in (3, 1, 4, 1, 5, 6, 2, 7, 8, 6))
    in_order = tuple(sorted(items, key=lambda pair: pair[1]))
    votes, states = state_votes(training_set, in_order)

    votes.votes([asked(DAY, 0, 2)])

    assert states.asked[0] == ([2], 0)  # the event's own state
    histories = [[item for item, _ in in_order[:place]][-8:] for place in range(1, len(in_order))]
    assert states.asked[1:] == [(history, None) for history in histories]


def test_each_moment_is_put_through_the_ranker_once(training_set: TrainingSet):
    votes, states = state_votes(training_set, *[walk(DAY - 1)] * 3)

    votes.votes([asked(DAY), asked(DAY + 1)])
    votes.votes([asked(DAY + 2)])

    assert sum(user is None for _, user in states.asked) == 3


def test_no_event_has_no_votes_and_an_event_without_history_has_none(training_set: TrainingSet):
    votes, _ = state_votes(training_set, *[walk(DAY - 1)] * 3)

    assert votes.votes([]) == []
    [found, empty] = votes.votes([asked(DAY), Event(0, np.array([2]), 1, DAY - 50)])
    assert len(found.items) == 1
    assert not len(empty.items)


def test_the_states_of_a_scorer_are_those_that_it_scores_with(training_set: TrainingSet, tiny):
    ranker = new_ranker(training_set, tiny("sasrec_grasp"))
    scorer = RankerScorer(ranker, training_set.item_ids, training_set, with_kernel=False)
    events = [Event(0, np.array([1, 2]), 3), Event(1, np.array([3]), 2)]

    state_ED = scorer.states([event.history for event in events], [event.user for event in events])

    candidate_ND = ranker.candidate_vectors().detach().numpy()[1:]
    assert state_ED @ candidate_ND.T == pytest.approx(scorer(events), abs=1e-5)
