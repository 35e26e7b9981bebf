"""Fresh features of events, as of the day before each: takers of the items, stored votes of recent similar moments.

Training computes them from the log of interactions, because the tables of the daily refresh hold only the days that
were refreshed. The definitions are those of the tables (`spark_jobs/build_features.py`, `spark_jobs/find_moments.py`).

Shape suffixes:  E events  N items; column i is item i + 1
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from grasp.moments import HISTORY_LENGTH, NO_VOTES, Contexts, Moments, VoteRule, Votes, centred, contexts
from grasp.settings import Settings
from training.data.event_log import EventLog
from training.data.training_set import TrainingSet

if TYPE_CHECKING:
    from training.evaluation.ranking import Event


@dataclass(frozen=True)
class MomentWindow:
    """Which moments vote, and how (the settings `GRASP_MOMENT_*`)."""

    num_days: int = 30
    rule: VoteRule = field(default_factory=VoteRule)

    @classmethod
    def of(cls, settings: Settings) -> "MomentWindow":
        """Without moments (`GRASP_MOMENTS=false`) the window is empty, and nobody votes."""
        return cls(settings.moment_days if settings.moments else 0, VoteRule.of(settings))


DEFAULT_WINDOW = MomentWindow()


class FreshFeatures:
    """The features of the events of one split. What was computed is kept: events of one day share most of it."""

    def __init__(
        self,
        training_set: TrainingSet,
        split: str,
        window: MomentWindow = DEFAULT_WINDOW,
        frozen_day: int | None = None,
    ) -> None:
        """With a `frozen_day` nothing is known after it, as when the daily refresh stopped then."""
        self.log: EventLog = training_set.log(split)
        self.window = window
        self._vectors_NS = training_set.item_semantic
        self._frozen_day = frozen_day
        self._takers: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._votes: dict[tuple[int, int, int], Votes] = {}

    def known_day(self, event: "Event") -> int:
        """The last day whose interactions the features of an event know."""
        return event.day - 1 if self._frozen_day is None else min(event.day - 1, self._frozen_day)

    def takers(self, event: "Event") -> tuple[np.ndarray, np.ndarray]:
        """The items that were taken lately and their takers, as `EventLog.takers` gives them."""
        day = self.known_day(event)
        if day not in self._takers:
            self._takers[day] = self.log.takers(day)
        return self._takers[day]

    def votes(self, events: Sequence["Event"]) -> list[Votes]:
        """The stored votes for each event, which no ranker changes; their items count from 1."""
        missing: dict[int, dict[tuple[int, int, int], Event]] = defaultdict(dict)
        for event in events:
            if _key(event) not in self._votes:
                missing[self.known_day(event)][_key(event)] = event
        for day, asking in missing.items():
            self._votes |= self._votes_on(day, asking)
        return [self._votes[_key(event)] for event in events]

    def _votes_on(self, day: int, asking: "Mapping[tuple[int, int, int], Event]") -> dict[tuple[int, int, int], Votes]:
        log, recent = self.log, self.log.between(day - self.window.num_days + 1, day)
        chosen = np.arange(len(log.day_E))[recent][log.is_moment[recent]]
        if not len(chosen):
            return dict.fromkeys(asking, NO_VOTES)
        voting = Moments(self._contexts.rows(chosen), log.user_E[chosen], log.item_E[chosen])
        history_EH = np.zeros((len(asking), HISTORY_LENGTH), np.int64)
        for row, event in zip(history_EH, asking.values(), strict=True):
            latest = event.history[: -HISTORY_LENGTH - 1 : -1]
            row[: len(latest)] = latest
        users = np.array([event.user for event in asking.values()])
        found = voting.votes(contexts(history_EH, self._centred), users, self.window.rule)
        return dict(zip(asking, found, strict=True))

    @cached_property
    def _centred(self) -> np.ndarray:
        return centred(self._vectors_NS)

    @cached_property
    def _contexts(self) -> Contexts:
        """Of all events of the log."""
        return contexts(self.log.history_EH, self._centred)


def _key(event: "Event") -> tuple[int, int, int]:
    return event.user, event.day, len(event.history)
