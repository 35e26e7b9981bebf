"""Reasons from what was taken, lately or ever. They name nobody, and none rests on fewer than `MIN_PEOPLE` people.

votes    without what the votes of similar users add to its score, the item would stand lower in the answer
takers   the item is among the most taken of the last 7 days, and this adds to its score
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from serving.ranking.items import ItemSide

MIN_PEOPLE = 3
OFTEN_SHARE = 0.01  # share of the items that were taken often: as often as its last one
OF_VOTES = "people whose recent choices resemble yours took this in the last days"


@dataclass(frozen=True)
class FreshReason:
    """What was taken lately, where it is a reason; None where it is not."""

    takers_7d: int | None = None  # people who took the item in the last 7 days, if it was taken often
    votes: float | None = None  # what the votes of similar users add to the score, if they lift the item

    def texts(self) -> list[str]:
        often = [] if self.takers_7d is None else [f"taken often this week, by {self.takers_7d} people"]
        return ([] if self.votes is None else [OF_VOTES]) + often


NOT_FRESH = FreshReason()


def often(items: ItemSide) -> float:
    """The takers of the last 7 days from which an item counts as taken often."""
    shown = items.takers_7d_N[items.available_N]
    return max(MIN_PEOPLE, float(np.quantile(shown, 1 - OFTEN_SHARE, method="higher"))) if len(shown) else np.inf


def lifted_by(votes: Sequence[float], scores: Sequence[float]) -> list[float | None]:
    """Of each item of an answer what votes add, None where it would keep its place without.

    `scores` are those of the answer, best first, and of the next item after it, if there is one.
    """
    next_scores = [*scores[1 : len(votes) + 1], -np.inf][: len(votes)]
    return [
        value if value > 0 and score - value < below else None
        for value, score, below in zip(votes, scores, next_scores, strict=False)
    ]


def popular_reason(items: ItemSide, row: int) -> str:
    takers, users = int(items.takers_7d_N[row]), int(items.popularity_N[row])
    if takers >= MIN_PEOPLE:
        return f"taken by {takers} people in the last 7 days"
    return f"popular: {users} users" if users >= MIN_PEOPLE else f"popular: fewer than {MIN_PEOPLE} users"
