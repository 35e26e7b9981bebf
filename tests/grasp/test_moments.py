"""What a moment is, how alike two are, and how they vote: by hand, on a handful of items."""

import math

import numpy as np
import pytest

from grasp.moments import (
    NUM_ID_PLACES,
    NUM_NEAREST,
    Moments,
    StateMoments,
    VoteRule,
    centred,
    contexts,
    dense_vectors,
    hashed_ids,
    moment_hash,
    nearest,
    similarity,
    unit_states,
)
from grasp.tables import MAX_NEIGHBOUR_ITEMS

# Without their mean, (1, 1), the items 1, 2, 3 are (2, -1), (-1, 2), (-1, -1).
VECTORS = centred(np.array([[3, 0], [0, 3], [0, 0]], np.float32))
BY_IDS = VoteRule(sharpness=math.log(4), text_share=0.0, min_voters=1)


def history(*items: int) -> np.ndarray:
    """One history, newest first."""
    return np.array([[*items, *[0] * (8 - len(items))]])


def of(*histories: tuple[int, ...], vectors: np.ndarray = VECTORS):
    return contexts(np.concatenate([history(*each) for each in histories]), vectors)


def bank(*moments: tuple[tuple[int, ...], int, int], vectors: np.ndarray = VECTORS) -> Moments:
    """Moments as (history, user, item taken next)."""
    histories, users, items = zip(*moments, strict=True)
    return Moments(of(*histories, vectors=vectors), np.array(users), np.array(items))


def ask(moments: Moments, rule: VoteRule, *items: int, user: int = -1, vectors: np.ndarray = VECTORS):
    (votes,) = moments.votes(of(items, vectors=vectors), np.array([user]), rule)
    return dict(zip(votes.items.tolist(), votes.weights.tolist(), strict=True))


def test_items_are_compared_without_their_mean():
    assert VECTORS.tolist() == [[0, 0], [2, -1], [-1, 2], [-1, -1]]


def test_an_older_item_counts_eight_tenths_of_the_next_newer_one():
    found = of((2, 1))
    # (-1, 2) + .8 * (2, -1) = (.6, 1.2)
    assert found.text_QS[0] == pytest.approx(np.array([1, 2]) / math.sqrt(5))
    assert found.bag_QN.toarray()[0] == pytest.approx(np.array([0, 0.8, 1, 0]) / math.sqrt(1.64))
    assert of((1, 2)).text_QS[0] == pytest.approx(np.array([1.2, 0.6]) / math.sqrt(1.8))


def test_an_item_taken_twice_counts_twice_and_the_lengths_are_one():
    found = of((1, 3, 1))
    assert found.bag_QN.toarray()[0] == pytest.approx(np.array([0, 1.64, 0, 0.8]) / math.hypot(1.64, 0.8))
    assert np.linalg.norm(found.text_QS[0]) == pytest.approx(1)


def test_similarity_is_the_share_of_texts_and_the_rest_of_ids():
    asking, known = of((1,)), of((2,), (3,), (1,))
    of_text = [(-2 - 2) / 5, (-2 + 1) / math.sqrt(10), 1]
    assert similarity(asking, known, 1.0)[0] == pytest.approx(of_text)
    assert similarity(asking, known, 0.0)[0] == pytest.approx([0, 0, 1])
    mixed = [0.7 * text + 0.3 * ids for text, ids in zip(of_text, [0, 0, 1], strict=True)]
    assert similarity(asking, known, 0.7)[0] == pytest.approx(mixed)


def test_weights_are_shares_of_all_votes():
    """The first moment is the same as the asking one, the second has nothing in common: 4 ** (0 - 1) of a vote."""
    moments = bank(((1,), 0, 2), ((3,), 1, 3))
    assert ask(moments, BY_IDS, 1) == pytest.approx({2: 0.8, 3: 0.2})
    assert list(ask(moments, BY_IDS, 3)) == [3, 2]


def test_votes_for_one_item_are_added():
    moments = bank(((1,), 0, 2), ((3,), 1, 3), ((2,), 2, 2), ((2,), 3, 1))
    assert ask(moments, BY_IDS, 1) == pytest.approx({2: 5 / 7, 1: 1 / 7, 3: 1 / 7}, abs=1e-6)


def test_without_sharpness_all_moments_count_alike():
    moments = bank(((1,), 0, 2), ((3,), 1, 3), ((2,), 2, 3), ((2,), 3, 1))
    assert ask(moments, VoteRule(0.0, 0.7, 1), 1) == {3: 0.5, 1: 0.25, 2: 0.25}


def test_a_user_does_not_vote_for_itself():
    moments = bank(((1,), 0, 2), ((3,), 1, 3))
    assert ask(moments, BY_IDS, 1, user=0) == {3: 1.0}
    assert ask(moments, BY_IDS, 1, user=1) == {2: 1.0}


def test_an_item_needs_enough_different_users():
    moments = bank(((1,), 0, 2), ((1,), 0, 2), ((1,), 1, 2), ((1,), 0, 3), ((1,), 1, 3), ((1,), 2, 3))
    rule = VoteRule(0.0, 0.7, 3)
    assert ask(moments, rule, 1) == {3: 0.5}, "its share is of all votes, those for the other item included"
    assert ask(moments, rule, 1, user=2) == {}, "without the asking user, two are left"
    assert ask(moments, VoteRule(0.0, 0.7, 2), 1) == {2: 0.5, 3: 0.5}


def test_who_takes_two_items_votes_for_both():
    moments = bank(((1,), 0, 2), ((1,), 5, 2), ((1,), 5, 3))
    assert ask(moments, VoteRule(0.0, 0.7, 1), 1) == pytest.approx({2: 2 / 3, 3: 1 / 3}, abs=1e-6)


def many_items(num: int) -> np.ndarray:
    return centred(np.random.default_rng(0).standard_normal((num, 4), np.float32))


def test_at_most_two_hundred_items_are_kept_the_first_of_equal_ones():
    num = MAX_NEIGHBOUR_ITEMS + 40
    vectors = many_items(num)
    moments = bank(*(((1,), user, item) for user, item in enumerate(range(num, 0, -1))), vectors=vectors)
    found = ask(moments, VoteRule(20.0, 0.7, 1), 1, vectors=vectors)
    assert list(found) == list(range(1, MAX_NEIGHBOUR_ITEMS + 1))


def test_only_the_nearest_moments_vote():
    near, far = [((1,), user, 2) for user in range(NUM_NEAREST)], ((3,), NUM_NEAREST, 3)
    rule = VoteRule(0.0, 0.0, 1)
    assert ask(bank(*near[1:], far), rule, 1).keys() == {2, 3}
    assert ask(bank(far, *near), rule, 1) == {2: 1.0}


def test_nobody_votes_where_there_is_nobody():
    nobody = Moments(contexts(np.zeros((0, 8), np.int64), VECTORS), np.zeros(0, np.int64), np.zeros(0, np.int64))
    assert ask(nobody, BY_IDS, 1) == {}
    assert list(nobody.votes(of((1,)).rows(slice(0, 0)), np.zeros(0, np.int64), BY_IDS)) == []


def test_unknown_items_count_for_nothing():
    assert of((0, 2)).bag_QN.toarray()[0] == pytest.approx([0, 0, 1, 0])
    moments = bank(((1,), 0, 2), ((1,), 1, 0), ((0,), 2, 3))
    assert ask(moments, BY_IDS, 1) == pytest.approx({2: 4 / 9, 3: 1 / 9}, abs=1e-6), "nothing is voted for as item 0"
    assert ask(moments, BY_IDS, 0) == {}, "a moment without a known item is like no other"


def test_many_asking_moments_are_answered_in_order_whatever_is_computed_at_once(monkeypatch):
    vectors, random = many_items(30), np.random.default_rng(1)
    moments = Moments(
        contexts(random.integers(0, 31, (300, 8)), vectors), random.integers(0, 40, 300), random.integers(1, 31, 300)
    )
    asking, users = contexts(random.integers(0, 31, (50, 8)), vectors), random.integers(-1, 40, 50)
    together = list(moments.votes(asking, users, VoteRule()))
    monkeypatch.setattr("grasp.moments.BLOCK_NUMBERS", 900)
    for one, other in zip(moments.votes(asking, users, VoteRule()), together, strict=True):
        assert one.items.tolist() == other.items.tolist()
        assert one.weights == pytest.approx(other.weights, abs=2e-6)


def test_the_votes_of_what_an_index_proposes_are_those_of_the_nearest_among_it():
    moments = bank(((1,), 0, 2), ((3,), 1, 3), ((2,), 2, 1))
    proposed = np.array([[2, 0, -1], [1, -1, -1], [-1, -1, -1]])
    found = list(moments.votes_of_proposed(of((1,), (1,), (1,)), np.array([-1, -1, -1]), proposed, BY_IDS))
    assert [each.items.tolist() for each in found] == [[2, 1], [3], []]
    assert found[0].weights == pytest.approx([0.8, 0.2])


def test_when_all_are_proposed_the_votes_are_the_same():
    vectors, random = many_items(30), np.random.default_rng(2)
    num = NUM_NEAREST + 100
    moments = Moments(
        contexts(random.integers(0, 31, (num, 8)), vectors), random.integers(0, 40, num), random.integers(1, 31, num)
    )
    asking, users = contexts(random.integers(0, 31, (9, 8)), vectors), random.integers(-1, 40, 9)
    proposed = np.stack([random.permutation(num) for _ in range(9)])
    expected = moments.votes(asking, users, VoteRule())
    for one, other in zip(moments.votes_of_proposed(asking, users, proposed, VoteRule()), expected, strict=True):
        assert one.items.tolist() == other.items.tolist()
        assert one.weights == pytest.approx(other.weights, abs=2e-6)


def test_an_id_is_kept_at_the_same_place_whatever_other_items_there_are():
    few, many = hashed_ids(["a", "b"]).toarray(), hashed_ids(["x", "b", "a", "ü"]).toarray()
    assert few.shape == (3, NUM_ID_PLACES)
    assert not few[0].any()
    assert (np.abs(few[1:]).sum(1) == 1).all()
    assert few[1].tolist() == many[3].tolist()
    assert few[2].tolist() == many[2].tolist()
    signs = hashed_ids([str(number) for number in range(1000)]).sum(1)
    assert 400 < (signs > 0).sum() < 600


def test_the_inner_product_of_dense_vectors_is_about_the_similarity():
    num = 200
    vectors, random = many_items(num), np.random.default_rng(3)
    places = hashed_ids([str(item) for item in range(1, num + 1)])
    some = contexts(random.integers(1, 20, (60, 8)), vectors)
    for text_share in (0.0, 0.7, 1.0):
        dense = dense_vectors(some, places, text_share)
        assert dense.shape == (60, 4 + NUM_ID_PLACES)
        assert np.linalg.norm(dense, axis=1) == pytest.approx(1, abs=1e-5)
        error = dense @ dense.T - similarity(some, some, text_share)
        assert np.abs(error).mean() < 0.08, text_share
    assert not dense_vectors(of((0,)), hashed_ids(["a", "b", "c"]), 0.7).any()


@pytest.mark.parametrize(
    "changed",
    [
        {"user_id": "v"},
        {"microseconds": 6},
        {"row_number": 2},
        {"history": [("b", "h"), ("a", "h")]},
        {"history": [("a", "other"), ("b", "h")]},
        {"text_share": 0.6},
    ],
)
def test_a_moment_of_another_vector_has_another_name(changed):
    same = {
        "user_id": "u",
        "microseconds": 5,
        "row_number": 1,
        "history": [("a", "h"), ("b", "h")],
        "text_share": 0.7,
    }
    assert moment_hash(**same) == moment_hash(**same)
    assert moment_hash(**same) != moment_hash(**(same | changed))


@pytest.mark.parametrize("num_values", [3, 100_000])
def test_the_nearest_of_many_are_those_that_sorting_finds_and_the_later_of_equal_ones(num_values):
    similarity_M = np.random.default_rng(2).integers(0, num_values, 50_000).astype(np.float32) / num_values

    by_sorting = sorted(range(50_000), key=lambda place: (-round(float(similarity_M[place]), 5), -place))[:NUM_NEAREST]

    assert nearest(similarity_M).tolist() == sorted(by_sorting)
    assert nearest(similarity_M[:20]).tolist() == list(range(20))


def states(*rows: tuple[float, float]) -> np.ndarray:
    return unit_states(np.array(rows))


def test_states_have_length_one_in_half_precision():
    assert states((3, 4), (0, 0)).tolist() == [[float(np.float16(0.6)), float(np.float16(0.8))], [0, 0]]


def of_states(moments: StateMoments, *state: float, user: int = -1, min_voters: int = 1) -> dict[int, float]:
    (votes,) = moments.votes(states(state), np.array([user]), min_voters)
    return dict(zip(votes.items.tolist(), votes.weights.tolist(), strict=True))


def test_a_vote_by_state_falls_with_distance_and_age():
    moments = StateMoments(
        states((1, 0), (1, 0), (0, 1)), np.array([0, 10, 0]), np.array([1, 2, 3]), np.array([5, 6, 7])
    )

    found = of_states(moments, 2, 0)

    assert found == pytest.approx({5: 1.0, 6: math.exp(-15 * 0.004 * 10)}, abs=1e-6)  # e^-15 rounds to nothing


def test_votes_by_state_add_up_and_are_no_shares():
    moments = StateMoments(states(*[(1, 0)] * 4), np.zeros(4), np.array([1, 2, 3, 3]), np.array([5, 5, 6, 6]))

    assert of_states(moments, 1, 0) == {5: 2.0, 6: 2.0}
    assert of_states(moments, 1, 0, min_voters=2) == {5: 2.0}
    assert of_states(moments, 1, 0, user=1) == {6: 2.0, 5: 1.0}


def test_without_moments_nobody_votes_by_state():
    none = np.zeros(0, np.int64)

    assert of_states(StateMoments(np.zeros((0, 0), np.float32), none, none, none), 1, 0) == {}
