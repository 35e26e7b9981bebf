import numpy as np
import pytest

from training.data.cooccurrence import (
    cooccurrence,
    cosine,
    item_cosine,
    item_counts,
    transitions,
    user_item_matrix,
)
from training.data.training_set import known_sequences

SEQUENCES = [np.array([1, 2, 1, 3]), np.array([2, 1]), np.array([], np.int64), np.array([4])]


def test_an_item_counts_once_per_user_however_often_it_is_taken():
    assert user_item_matrix(SEQUENCES, 5).toarray().tolist() == [
        [1, 1, 1, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 0, 0, 0],
        [0, 0, 0, 1, 0],
    ]
    assert item_counts(SEQUENCES, 5).tolist() == [3, 2, 1, 1, 0]


def test_common_users_are_counted_without_the_item_itself():
    both = cooccurrence(user_item_matrix(SEQUENCES, 5))

    assert both.toarray().tolist() == [
        [0, 2, 1, 0, 0],
        [2, 0, 1, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0],
    ]


def test_cosine_divides_by_the_counts_of_both():
    both = cooccurrence(user_item_matrix(SEQUENCES, 5))

    assert item_cosine(SEQUENCES, 5)[0, [1, 2]].toarray() == pytest.approx(np.array([[2 / 2, 1 / np.sqrt(2)]]))
    # Item 1 was taken three times, by two users.
    by_occurrence = cosine(both, item_counts(SEQUENCES, 5))
    assert by_occurrence[0, 1] == pytest.approx(2 / np.sqrt(3 * 2))
    assert np.isfinite(by_occurrence.toarray()).all()


def test_transitions_run_from_an_item_to_the_next_within_one_user():
    assert transitions(SEQUENCES, 5).toarray().tolist() == [
        [0, 1, 1, 0, 0],
        [2, 0, 0, 0, 0],
        [0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0],
    ]


def test_transitions_over_more_steps_leave_out_what_lies_between():
    expected = np.zeros((5, 5))
    expected[0, 0] = expected[1, 2] = 1  # 1 and 3 come two steps after 1 and 2; the other sequences are too short

    assert (transitions(SEQUENCES, 5, steps=2).toarray() == expected).all()
    assert transitions(SEQUENCES, 5, steps=3).toarray()[0].tolist() == [0, 0, 1, 0, 0]
    assert transitions(SEQUENCES, 5, steps=4).nnz == 0


def test_no_sequences_give_no_counts():
    assert transitions([], 3).nnz == 0
    assert item_cosine([np.array([2])], 3).nnz == 0


def test_only_what_comes_before_the_split_is_known(training_set):
    assert [items.tolist() for items in known_sequences(training_set, "validation")] == [[1, 2, 3, 4], [2, 3], [4, 5]]
    assert [items.tolist() for items in known_sequences(training_set, "test")] == [[1, 2, 3, 4, 5], [2, 3, 1], [4, 5]]
