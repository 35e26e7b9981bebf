from collections import defaultdict

import numpy as np
import pytest

from grasp.tables import TAKER_DAYS
from training.data.event_log import EventLog, event_log

DAY = 10_000


def log_of(*rows: tuple[int, int, int]) -> EventLog:
    """A log of (user, item, day); each user's rows oldest first."""
    num_users = max(user for user, _, _ in rows) + 1
    of_user = [[(item, day) for user, item, day in rows if user == each] for each in range(num_users)]
    items, days = ([np.array([row[place] for row in rows], np.int64) for rows in of_user] for place in (0, 1))
    return event_log(items, days)


def takers(log: EventLog, day: int) -> dict[int, list[int]]:
    """The numbers of takers of each window, by item."""
    item_A, takers_WA = log.takers(day)
    return {int(item): takers_WA[:, place].tolist() for place, item in enumerate(item_A)}


def test_takers_are_distinct_users_of_the_last_days_the_day_itself_included():
    log = log_of((0, 1, DAY - 2), (0, 1, DAY), (1, 1, DAY - 6), (2, 2, DAY - 30), (2, 1, DAY - 29))

    assert takers(log, DAY) == {1: [1, 1, 2, 2, 3]}
    assert takers(log, DAY - 1) == {1: [0, 1, 2, 2, 3], 2: [0, 0, 0, 0, 1]}


def test_takers_know_nothing_after_the_day():
    past = [(0, 1, DAY - 3), (1, 2, DAY - 1)]

    assert takers(log_of(*past, (0, 2, DAY + 1), (2, 1, DAY + 5)), DAY) == takers(log_of(*past), DAY)


def test_takers_equal_a_count_by_hand_on_random_events():
    random = np.random.default_rng(0)
    rows = sorted(
        (int(random.integers(20)), int(random.integers(1, 8)), int(random.integers(DAY - 60, DAY + 5)))
        for _ in range(400)
    )
    rows.sort(key=lambda row: (row[0], row[2]))
    wanted: dict[int, list[int]] = defaultdict(lambda: [0] * len(TAKER_DAYS))
    for place, days in enumerate(TAKER_DAYS):
        for item in {item for user, item, day in rows if DAY - 30 < day <= DAY}:
            users = {user for user, taken, day in rows if taken == item and DAY - days < day <= DAY}
            wanted[item][place] = len(users)

    assert takers(log_of(*rows), DAY) == wanted


def test_without_recent_events_nothing_was_taken():
    item_A, takers_WA = log_of((0, 1, DAY)).takers(DAY + 100)

    assert item_A.tolist() == []
    assert takers_WA.shape == (len(TAKER_DAYS), 0)


def test_the_history_of_an_event_is_what_its_user_took_before_newest_first():
    log = log_of(*((0, item, DAY + item) for item in range(1, 12)), (1, 5, DAY), (1, 6, DAY))

    of_first = log.history_EH[log.user_E == 0]
    assert of_first[0].tolist() == [0] * 8
    assert of_first[2].tolist() == [2, 1, 0, 0, 0, 0, 0, 0]
    assert of_first[10].tolist() == [10, 9, 8, 7, 6, 5, 4, 3]
    assert log.history_EH[log.user_E == 1].tolist() == [[0] * 8, [5, *[0] * 7]]


@pytest.mark.parametrize("num_events", range(11))
def test_a_log_may_have_few_events(num_events: int):
    log = event_log([np.arange(1, num_events + 1)], [np.arange(num_events)])

    assert (log.history_EH > 0).sum(1).tolist() == [min(place, 8) for place in range(num_events)]


def test_unknown_items_are_left_out():
    log = event_log([np.array([1, 0, 2])], [np.array([DAY, DAY, DAY + 1])])

    assert log.item_E.tolist() == [1, 2]
    assert log.history_EH[1].tolist() == [1, *[0] * 7]


@pytest.mark.parametrize("days", [[DAY + 5, DAY - 4, DAY], [DAY, DAY, DAY]])
def test_events_are_in_the_order_of_their_days(days: list[int]):
    log = log_of(*((user, 1, day) for user, day in enumerate(days)))

    assert log.day_E.tolist() == sorted(days)
    assert log.user_E.tolist() == np.argsort(days, kind="stable").tolist()
