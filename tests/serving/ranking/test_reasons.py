"""When what was taken lately is a reason."""

from dataclasses import replace

import numpy as np
import pytest

from serving.ranking.items import ItemSide
from serving.ranking.reasons import FreshReason, lifted_by, often, popular_reason


def item_side(takers_7d: list[int], withdrawn: tuple[int, ...] = ()) -> ItemSide:
    num = len(takers_7d)
    ids = [f"i{row}" for row in range(num)]
    return ItemSide(
        ids=ids,
        titles=ids,
        neighbour_ids=[[] for _ in ids],
        popularity_N=np.arange(num) + 100,
        semantic_NS=np.zeros((num, 1), np.float32),
        neighbour_NS=np.zeros((num, 1), np.float32),
        available_N=~np.isin(np.arange(num), withdrawn),
        row_of={item_id: row for row, item_id in enumerate(ids)},
        copies_of={},
        takers_WN=np.array([takers_7d] * 5),
    )


@pytest.mark.parametrize(
    ("takers_7d", "least"),
    [
        (list(range(201)), 198),  # the last of two hundred that one in a hundred reaches
        ([0] * 199 + [2], 3),  # nobody is named by a number of one or two
        ([5] * 200, 5),
        ([], np.inf),
    ],
)
def test_often_is_what_one_item_in_a_hundred_reaches_and_three_people_at_least(takers_7d, least):
    assert often(item_side(takers_7d)) == least


def test_withdrawn_items_do_not_count():
    assert often(item_side([4, 4, 4, 90], withdrawn=(3,))) == 4
    assert often(replace(item_side([9, 9]), takers_WN=None)) == 3


def test_votes_are_a_reason_where_the_item_would_stand_lower_without_them():
    assert lifted_by([1.0, 1.0, 0.0, -1.0], [9.0, 8.5, 7.0, 6.0, 5.5]) == [1.0, None, None, None]
    assert lifted_by([0.0, 1.5], [9.0, 8.5, 7.5]) == [None, 1.5]  # would not be in the answer
    assert lifted_by([9.0], [9.0]) == [None]  # nothing else could be in the answer
    assert lifted_by([1.0], [9.0, 8.0]) == [None]  # as good as the next one without
    assert lifted_by([], []) == []


def test_a_reason_says_what_it_rests_on():
    votes = "people whose recent choices resemble yours took this in the last days"
    assert FreshReason(12, 0.5).texts() == [votes, "taken often this week, by 12 people"]
    assert FreshReason(votes=0.5).texts() == [votes]
    assert FreshReason().texts() == []


def test_a_popular_item_is_explained_by_the_last_days_if_at_least_three_people_took_it():
    items = item_side([2, 3])

    assert popular_reason(items, 0) == "popular: 100 users"
    assert popular_reason(items, 1) == "taken by 3 people in the last 7 days"
    assert popular_reason(replace(items, takers_WN=None), 1) == "popular: 101 users"


@pytest.mark.parametrize(("num", "reason"), [(0, "fewer than 3 users"), (2, "fewer than 3 users"), (3, "3 users")])
def test_no_number_of_one_or_two_is_a_reason(num, reason):
    items = replace(item_side([2]), popularity_N=np.array([num]))

    assert popular_reason(items, 0) == f"popular: {reason}"
