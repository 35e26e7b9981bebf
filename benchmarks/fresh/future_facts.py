"""Whether fresh features know anything of the day of an event, or of a later one.

For several days events are planted in the log, on the day itself and on the days after it: of many users, half of them
with the very items that are asked for. Takers and votes of that day's events must be what they were, and so must what
takers add to the loss of that day's training targets. A mean of item vectors stands for the state of a ranker, because
every ranker's state comes from the items alone. The same events asked a few days later must see what was planted;
otherwise the check could not fail.

Shape suffixes:  P planted events
"""

# ruff: noqa: N803 - names carry the shape suffixes above

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from benchmarks.data.datasets import BenchmarkData
from training.data.event_log import EventLog, event_log
from training.data.training_set import TrainingSet
from training.evaluation.fresh_features import FreshFeatures
from training.evaluation.ranking import Event, evaluation_events
from training.evaluation.state_votes import StateVotes
from training.fitting.recipes import TAKERS_OFFSET
from training.fitting.takers_offset import TakersOffset

TRAIN = "train"  # the split of training targets
NUM_DAYS = 5  # of each split, over the whole of it
NUM_PLANTED = 2000  # events for each of these days
PLANTED_DAYS = 3  # the day itself and the ones after it
MAX_EVENTS = 500  # compared of each day


def check(data: BenchmarkData) -> dict[str, Any]:
    """Values of features that planted events changed, `num_different`, of all that were compared, `num_values`.

    `num_different_later` counts the same for the events asked a few days later.
    """
    random = np.random.default_rng(0)
    found = {"num_days": 0, "num_events": 0, "num_planted": 0}
    found |= {"num_values": 0, "num_different": 0, "num_different_later": 0}
    trained = data.cut.fitting if data.cut else data.training_set
    for split, training_set in ((TRAIN, trained), ("validation", data.choosing), ("test", data.training_set)):
        events = [event for event in evaluation_events(training_set, split) if len(event.history)]
        before = Known(training_set, split)
        for day in _spread(np.unique([event.day for event in events])):
            asked = [event for event in events if event.day == day][:MAX_EVENTS]
            later = [replace(event, day=int(day) + PLANTED_DAYS + 1) for event in asked]
            after = Known(_with_planted(training_set, split, asked, random), split)
            num_values, num_different = compare(before, after, asked)
            found["num_days"] += 1
            found["num_events"] += len(asked)
            found["num_planted"] += NUM_PLANTED
            found["num_values"] += num_values
            found["num_different"] += num_different
            found["num_different_later"] += compare(before, after, later)[1]
    return found


class Known:
    """All that is known of the events of a split."""

    def __init__(self, training_set: TrainingSet, split: str) -> None:
        self._training_set, self._split = training_set, split
        self._features = FreshFeatures(training_set, split)
        self._state_votes = StateVotes(self._features, self._states)

    def values(self, events: Sequence[Event]) -> list[np.ndarray]:
        """Takers and votes of events of one day; for training targets also what takers add to every item's score."""
        takers = [each for event in events for each in self._features.takers(event)]
        voted = [*self._features.votes(events), *self._state_votes.votes(events)]
        votes = [each for found in voted for each in (found.items, found.weights)]
        return [*takers, *votes, *([self._offset(events[0].day)] if self._split == TRAIN else [])]

    def _states(self, histories: Sequence[np.ndarray], users: Sequence[int] | None = None) -> np.ndarray:  # noqa: ARG002
        return np.stack([self._training_set.item_semantic[history - 1].mean(0) for history in histories])

    def _offset(self, day: int) -> np.ndarray:
        num_items = len(self._training_set.item_ids)
        log, weights_W = self._training_set.log(TRAIN), torch.tensor(TAKERS_OFFSET)
        offset = TakersOffset(log, np.array([day]), num_items, weights_W)
        return offset.of_negatives(torch.tensor([day]), torch.arange(1, num_items + 1)).numpy()


def _spread(days: np.ndarray) -> np.ndarray:
    """Some of the days, the first and the last one among them."""
    places = np.unique(np.linspace(0, len(days) - 1, min(NUM_DAYS, len(days))).round().astype(int))
    return days[places]


def _with_planted(
    training_set: TrainingSet, split: str, asked: Sequence[Event], random: np.random.Generator
) -> TrainingSet:
    """The training set whose log of a split holds further events, from the day of the asked ones on."""
    log, day = training_set.log(split), asked[0].day
    users = random.integers(len(training_set.user_ids), size=NUM_PLANTED)
    items = random.integers(1, len(training_set.item_ids) + 1, NUM_PLANTED)
    items[::2] = random.choice([event.target for event in asked], len(items[::2]))
    days = day + random.integers(PLANTED_DAYS, size=NUM_PLANTED)
    return replace(training_set, logs={**training_set.logs, split: with_events(log, users, items, days)})


def with_events(log: EventLog, user_P: np.ndarray, item_P: np.ndarray, day_P: np.ndarray) -> EventLog:
    """The log with further events, each after those that its user has on the same day."""
    pairs = ((log.user_E, user_P), (log.item_E, item_P), (log.day_E, day_P))
    users, items, days = (np.concatenate(pair) for pair in pairs)
    order = np.lexsort((days, users))  # stable: events of a user on one day keep their order
    ends = np.cumsum(np.bincount(users))[:-1]
    return event_log(np.split(items[order], ends), np.split(days[order], ends))


def compare(one: Known, other: Known, events: Sequence[Event]) -> tuple[int, int]:
    """How many values are known of the events, and how many of them differ."""
    num_values = num_different = 0
    for before, after in zip(one.values(events), other.values(events), strict=True):
        num_values += before.size
        is_alike = before.shape == after.shape
        num_different += int((before != after).sum()) if is_alike else max(before.size, after.size)
    return num_values, num_different
