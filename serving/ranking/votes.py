"""The votes that count for a user: those stored with the user's features, or those for a moment of the request.

Shape suffix:  V voted items
"""

# ruff: noqa: N815 - the shape suffix above

from dataclasses import dataclass
from typing import Literal

import numpy as np

from serving.lookup.online_store import UserRow
from serving.ranking.items import ItemSide

VotesFrom = Literal["recent_items", "stored"]
VotesFallback = Literal["moments_error"]


@dataclass(frozen=True, eq=False)
class UserVotes:
    """The items of the release that users with similar recent choices took lately, and their shares of the votes."""

    row_V: np.ndarray
    weight_V: np.ndarray  # float32
    source: VotesFrom | None = None  # None if the model reads no votes
    fallback: VotesFallback | None = None  # why the stored votes stand in for those of the recent items


NO_VOTES = UserVotes(np.zeros(0, np.int64), np.zeros(0, np.float32))


def stored_votes(user: UserRow, items: ItemSide, fallback: VotesFallback | None = None) -> UserVotes:
    """The votes of the user's features; items that the release lacks are left out."""
    weights = user.neighbour_item_weights.tolist()
    pairs = [
        (items.row_of[item_id], weight)
        for item_id, weight in zip(user.neighbour_item_ids, weights, strict=True)
        if item_id in items.row_of
    ]
    rows, kept = zip(*pairs, strict=True) if pairs else ((), ())
    return UserVotes(np.array(rows, np.int64), np.array(kept, np.float32), "stored", fallback)
