"""What the daily refresh knows of any day: every interaction, and from them what was taken lately.

`training_set.py` makes a log, from the training events or from all interactions. A log is asked *as of* a day and
answers with that day and earlier ones, as the features of that day do (`takers_1d` ... and the moments in
`grasp/tables.py`). Who asks for an event asks as of the day before it.

Shape suffixes:  E events of the log  W windows of `TAKER_DAYS`  A items that were taken lately
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from grasp.moments import HISTORY_LENGTH
from grasp.tables import TAKER_DAYS


@dataclass(frozen=True, eq=False)
class EventLog:
    """Interactions in the order of their days. Items count from 1."""

    user_E: np.ndarray
    item_E: np.ndarray
    day_E: np.ndarray  # days since 1970-01-01
    history_EH: np.ndarray  # the items that the user took before, newest first; 0 for none

    def between(self, first_day: int, last_day: int) -> slice:
        """The events of these days, both included."""
        begin, end = np.searchsorted(self.day_E, [first_day, last_day + 1])
        return slice(int(begin), int(end))

    def takers(self, day: int) -> tuple[np.ndarray, np.ndarray]:
        """The items that were taken in the last days, ascending, and their takers, as of the end of `day`.

        (A,) and (W, A). Takers are distinct users; `TAKER_DAYS` are the windows.
        """
        recent, num_users = self.between(day - TAKER_DAYS[-1] + 1, day), int(self.user_E.max(initial=0)) + 1
        # Of each pair of item and user the latest event, which comes first when the order is turned round.
        pair, place = np.unique((self.item_E[recent] * num_users + self.user_E[recent])[::-1], return_index=True)
        latest = self.day_E[recent][::-1][place]
        item_A, place = np.unique(pair // num_users, return_inverse=True)
        takers_WA = [np.bincount(place[latest > day - days], minlength=len(item_A)) for days in TAKER_DAYS]
        return item_A, np.stack(takers_WA)

    @cached_property
    def is_moment(self) -> np.ndarray:
        """Whether something was taken before each event, (E,)."""
        has_history: np.ndarray = self.history_EH[:, 0] > 0
        return has_history


def event_log(sequences: Sequence[np.ndarray], days: Sequence[np.ndarray]) -> EventLog:
    """The log of each user's items, oldest first, and their days. Items that are 0, which are unknown, are left out."""
    known = [items > 0 for items in sequences]
    sequences = [items[kept] for items, kept in zip(sequences, known, strict=True)]
    user_E = np.repeat(np.arange(len(sequences)), [len(items) for items in sequences])
    item_E, day_E = (
        np.concatenate([np.zeros(0, np.int64), *each])
        for each in (sequences, [of_user[kept] for of_user, kept in zip(days, known, strict=True)])
    )
    history_EH = np.zeros((len(item_E), HISTORY_LENGTH), np.int64)
    for place in range(min(HISTORY_LENGTH, len(item_E) - 1)):
        later, earlier = slice(place + 1, None), slice(0, len(item_E) - place - 1)
        is_same = user_E[later] == user_E[earlier]
        history_EH[later, place] = np.where(is_same, item_E[earlier], 0)
    order = np.argsort(day_E, kind="stable")
    return EventLog(user_E[order], item_E[order], day_E[order], history_EH[order])
