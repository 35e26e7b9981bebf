"""The protocols of the benchmark: which events train, which are asked for, and what is known before them.

    published      leave-one-out in the order of the file, as papers have it: the last item of a user with at least
                   three tests; the one before it validates, for the users who are drawn for validation
    shuffled-ties  the same, with a user's events of equal time in a random order: a file may order them by product
                   number, of which no shop knows anything
    global-time    days before the cut train, later ones test. The cut stands where 90 % of all events are over; another
                   at 80 % has the days between to validate on. Of a user, all events of the first day after the cut are
                   asked for, and the history ends before that day: the order within a day helps nobody

By global time everything is chosen at the first cut, and then made anew at the second from all that is known by then,
as a shop retrains. With the weights of the first cut, the test would ask models that are weeks old.
For any later day, too, everything can be made anew from what is known before it (`known_before`): the same test events
then show what retraining is worth.

The random order is drawn once for a whole report (`order_seed`), not for each row: all systems and seeds then have the
same events, and differences stay paired by user. As each user's order is a draw of its own, resampling users also
covers the chance of the order. Another order is another report.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from benchmarks.data.readers import Source
from spark_jobs.source.contract import SourceError

Protocol = Literal["published", "shuffled-ties", "global-time"]
NUM_VALIDATION_USERS = 2048
SPLIT_SEED = 0  # of the users drawn for validation, whatever the seed of a run
MIN_ITEMS = 3  # of a user who has targets when one is left out
SHARES_BEFORE_CUTS = (0.8, 0.9)  # of all events


@dataclass(frozen=True)
class Part:
    """Events that may be read, and the split of each: `train`, `validation` or `test`."""

    source: Source
    splits: list[np.ndarray]

    @property
    def train(self) -> list[np.ndarray]:
        return training_items(self.source.sequences, self.splits)


@dataclass(frozen=True)
class PartsByTime:
    """Users and items are numbered by their first day, so that those known at a cut are the first ones of all."""

    choosing: Part  # known at the first cut, with validation targets
    fitting: Part  # known at the second cut, or before a later day
    asked: Part  # all users and items, with test targets
    every_event: Source  # what the daily refresh comes to know, day by day
    test_day: int  # the first one after the second cut


def training_items(sequences: Sequence[np.ndarray], splits: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The items of each user that models may read."""
    return [items[part == "train"] for items, part in zip(sequences, splits, strict=True)]


def leave_one_out(source: Source, validation_users: int | None) -> Part:
    return Part(source, split(source.sequences, validation_users))


def split(sequences: list[np.ndarray], validation_users: int | None) -> list[np.ndarray]:
    """Leave-one-out: the split of each item of each sequence."""
    splits = [np.full(len(items), "train", dtype=object) for items in sequences]
    eligible = np.array([user for user, items in enumerate(sequences) if len(items) >= MIN_ITEMS], np.int64)
    for user in eligible:
        splits[user][-1] = "test"
    for user in _drawn(eligible, validation_users):
        splits[user][-2] = "validation"
    return splits


def _drawn(eligible: np.ndarray, validation_users: int | None) -> np.ndarray:
    if validation_users is None or validation_users >= len(eligible):
        return eligible
    return np.random.default_rng(SPLIT_SEED).choice(eligible, validation_users, replace=False)


def with_shuffled_ties(source: Source, order_seed: int) -> Source:
    """The same events, those of a user at one time in an order drawn for this user."""
    orders = [
        np.lexsort((np.random.default_rng([order_seed, user]).random(len(times)), times))
        for user, times in enumerate(_times(source))
    ]
    sequences = [items[order] for items, order in zip(source.sequences, orders, strict=True)]
    return replace(source, sequences=sequences)


def by_time(source: Source, validation_users: int | None, fitting_day: int | None = None) -> PartsByTime:
    """Cut the events at two days. Raises `ValueError` when there are too few days for that.

    `fitting` is what is known before `fitting_day`, by default before the second cut. The day changes nothing else.
    Raises `ValueError` for a day before the second cut.
    """
    _times(source)
    source = _numbered_by_first_day(source)
    every_day = np.sort(np.concatenate(source.days))
    first_cut, second_cut = (int(every_day[int(share * len(every_day))]) for share in SHARES_BEFORE_CUTS)
    if not every_day[0] < first_cut < second_cut:
        raise ValueError(f"{source.name} has too few days to be cut at two of them: give another --protocol")
    fitting_day = second_cut if fitting_day is None else fitting_day
    if fitting_day < second_cut:
        raise ValueError(f"fitting_day {fitting_day} is before the second cut, {second_cut}")
    known = _known(source, first_cut)
    choosing = _splits(known, first_cut, second_cut, "validation")
    _keep_targets(known, choosing, validation_users)
    asked = _splits(source, second_cut, int(every_day[-1]) + 1, "test")
    return PartsByTime(
        _split_events(known, choosing),
        known_before(source, fitting_day),
        _split_events(source, asked),
        source,
        second_cut,
    )


def known_before(source: Source, day: int) -> Part:
    """All that is known before a day, as training events. Users and items are numbered by their first day."""
    known = _known(source, day)
    return _split_events(known, _splits(known, day, day, "test"))


def _times(source: Source) -> list[np.ndarray]:
    if source.times is None:
        raise SourceError(f"{source.files[0]} has no times: it can only be measured with --protocol published")
    return source.times


def _numbered_by_first_day(source: Source) -> Source:
    first_day = np.full(len(source.item_ids), np.iinfo(np.int64).max)
    for items, days in zip(source.sequences, source.days, strict=True):
        np.minimum.at(first_day, items - 1, days)
    items = np.argsort(first_day, kind="stable")
    users = np.argsort([days[0] for days in source.days], kind="stable")
    number = np.empty(len(items), np.int64)
    number[items] = np.arange(1, len(items) + 1)
    return replace(
        source,
        item_ids=[source.item_ids[item] for item in items],
        items=[(source.items or [])[item] for item in items],
        categories=[source.categories[item] for item in items],
        user_ids=[source.user_ids[user] for user in users],
        profiles=[source.profiles[user] for user in users],
        sequences=[number[source.sequences[user] - 1] for user in users],
        times=[_times(source)[user] for user in users],
    )


def _known(source: Source, cut: int) -> Source:
    """The users and items that were seen before the day `cut`, with all events of these users."""
    num_users = sum(int(days[0] < cut) for days in source.days)
    pairs = zip(source.sequences, source.days, strict=True)
    num_items = max(int(items[days < cut].max(initial=0)) for items, days in pairs)
    return replace(
        source,
        item_ids=source.item_ids[:num_items],
        items=(source.items or [])[:num_items],
        categories=source.categories[:num_items],
        user_ids=source.user_ids[:num_users],
        profiles=source.profiles[:num_users],
        sequences=source.sequences[:num_users],
        times=_times(source)[:num_users],
    )


def _splits(source: Source, cut: int, end: int, target: str) -> list[np.ndarray]:
    """`train` before the day `cut`, `target` for a user's first day from it until `end`, nothing for other events."""
    result = []
    for days in source.days:
        splits = np.where(days < cut, "train", "").astype(object)
        between = days[(days >= cut) & (days < end)]
        splits[np.isin(days, between[:1])] = target
        result.append(splits)
    return result


def _keep_targets(known: Source, splits: list[np.ndarray], validation_users: int | None) -> None:
    """Leave the validation targets of drawn users, and of them those that are known: others can choose nothing."""
    for items, part in zip(known.sequences, splits, strict=True):
        part[(part == "validation") & (items > len(known.item_ids))] = ""
    eligible = np.flatnonzero([(part == "validation").any() for part in splits])
    for user in np.setdiff1d(eligible, _drawn(eligible, validation_users)):
        splits[user][splits[user] == "validation"] = ""


def _split_events(source: Source, splits: list[np.ndarray]) -> Part:
    """The events that have a split."""
    sequences, times, kept = (
        [each[part != ""] for each, part in zip(of_users, splits, strict=True)]
        for of_users in (source.sequences, _times(source), splits)
    )
    return Part(replace(source, sequences=sequences, times=times), kept)
