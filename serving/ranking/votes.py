"""The votes that count for a user: those of moments that the model finds similar, or those stored with the features.

Shape suffix:  V voted items
"""

# ruff: noqa: N815 - the shape suffix above

from dataclasses import dataclass
from typing import Literal

import numpy as np

from serving.lookup.online_store import UserRow
from serving.ranking.items import ItemSide

VotesFrom = Literal["moments", "stored"]
VotesFallback = Literal["no_moments", "moments_error"]


@dataclass(frozen=True, eq=False)
class UserVotes:
    """The items of the release that users with similar recent choices took lately, and the weights of their votes."""

    row_V: np.ndarray
    weight_V: np.ndarray  # float32; of `moments` sums of votes, of `stored` shares of all votes
    source: VotesFrom | None = None  # None if no votes count
    fallback: VotesFallback | None = None  # why the model's moments do not vote


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
