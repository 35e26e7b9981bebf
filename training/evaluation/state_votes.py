"""State votes of events: the votes of recent moments that are similar to a ranker, as of the day before each event.

`grasp/moments.py` defines them. A moment's state is that after its last items, with no user's vectors: it says what
somebody had taken, not who. The state of each moment is computed once.

Shape suffixes:  Q asking events or histories  M moments of the log, in the order of days  D width of a state
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from grasp.moments import MAX_STATES, NO_VOTES, StateMoments, Votes, unit_states
from training.evaluation.fresh_features import FreshFeatures

if TYPE_CHECKING:
    from training.evaluation.ranking import Event

BATCH_SIZE = 1024  # histories of at most `HISTORY_LENGTH` items


class States(Protocol):
    """The states of a ranker after histories, oldest item first, (Q, D). Without users all of their vectors are 0."""

    def __call__(self, histories: Sequence[np.ndarray], users: Sequence[int] | None = None) -> np.ndarray: ...


class StateVotes:
    """The state votes of one split and ranker."""

    def __init__(self, features: FreshFeatures, states: States) -> None:
        self._features, self._states = features, states
        log = features.log
        self._row_M = np.flatnonzero(log.is_moment)
        self._day_M, self._user_M, self._item_M = (each[self._row_M] for each in (log.day_E, log.user_E, log.item_E))
        self._is_known_M = np.zeros(len(self._row_M), bool)
        self._state_MD: np.ndarray | None = None

    def votes(self, events: "Sequence[Event]") -> list[Votes]:
        """The votes for each event; their items count from 1."""
        if not events:
            return []
        user_Q = np.array([event.user for event in events])
        state_QD = unit_states(self._states([event.history for event in events], user_Q.tolist()))
        found, rows_of = [NO_VOTES] * len(events), defaultdict(list)
        for row, event in enumerate(events):
            if len(event.history):
                rows_of[self._features.known_day(event)].append(row)
        for day, rows in rows_of.items():
            voting = self._moments(day)
            every = voting.votes(state_QD[rows], user_Q[rows], self._features.window.rule.min_voters)
            for row, votes in zip(rows, every, strict=True):
                found[row] = votes
        return found

    def _moments(self, day: int) -> StateMoments:
        """The moments that are known at the end of a day."""
        begin, end = np.searchsorted(self._day_M, [day - self._features.window.num_days + 1, day + 1])
        recent = slice(max(begin, end - MAX_STATES), end)
        age_M = day - self._day_M[recent]
        return StateMoments(self._known_states(recent), age_M, self._user_M[recent], self._item_M[recent])

    def _known_states(self, recent: slice) -> np.ndarray:
        history_EH = self._features.log.history_EH
        missing = np.arange(len(self._row_M))[recent][~self._is_known_M[recent]]
        for start in range(0, len(missing), BATCH_SIZE):
            batch = missing[start : start + BATCH_SIZE]
            newest_first = [row[row > 0] for row in history_EH[self._row_M[batch]]]
            states = unit_states(self._states([items[::-1] for items in newest_first]))
            if self._state_MD is None:
                self._state_MD = np.zeros((len(self._row_M), states.shape[1]), np.float32)
            self._state_MD[batch] = states
        self._is_known_M[missing] = True
        return np.zeros((0, 0), np.float32) if self._state_MD is None else self._state_MD[recent]
