"""What fresh features add to the scores of a request, from the files of its release and the user's row in the lake.

Nothing of serving's own computation is used: the counts are read from the item table, and all items have an addition.
The moments of the release get new states, from training's own scorer, and all of them are compared.

Rounding decides which of two moments is among the nearest if their similarities are equal but for `SAME`. Then an item
has two scores that may be served: with and without the votes of those moments.

Shape suffixes:  W windows of `TAKER_DAYS`  N items, counted from 1 where they are numbers  M moments of the release
                 D width of a state
"""

# ruff: noqa: N802 - the shape suffixes above

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from grasp.manifest import Manifest
from grasp.moments import StateMoments, VoteRule, Votes, nearest, unit_states
from grasp.tables import TAKER_DAYS
from training.model.fresh_score import FreshScore

BATCH_SIZE = 1024  # moments
SAME = 1e-4  # states have half precision

States = Callable[..., np.ndarray]  # of histories, oldest item first, and the numbers of their users if there are any


@dataclass(frozen=True, eq=False)
class Asking:
    """A served request."""

    user_id: str
    user: int  # the number by which `States` knows the user's vectors
    history: np.ndarray  # numbers of items, oldest first
    row: Mapping[str, Any]  # of `user_features`
    votes_from: str | None


class OfflineFresh:
    """The additions of one release, for items in a given order."""

    def __init__(
        self, place: Path, manifest: Manifest, fresh: FreshScore, item_ids: Sequence[str], states: States
    ) -> None:
        self._place, self._manifest, self._fresh, self._states = place, manifest, fresh, states
        self._item_ids = item_ids
        self._number_of = {item_id: number for number, item_id in enumerate(item_ids, 1)}

    def added(self, asking: Asking) -> tuple[np.ndarray, np.ndarray]:
        """The least and the most that may be added to every item's score, (N,) each."""
        if asking.votes_from == "moments":
            of_votes, found = self._fresh.of_state_votes, self._votes_of_moments(asking)
        else:
            of_votes, found = self._fresh.of_votes, [self._stored_votes(asking.row)] * 2
        low_N, high_N = self._of_takers_N.copy(), self._of_takers_N.copy()
        with torch.inference_mode():
            for added_N, votes in zip((low_N, high_N), found, strict=True):
                added_N[votes.items - 1] += of_votes(torch.from_numpy(votes.weights)).numpy()
        return low_N, high_N

    @cached_property
    def _of_takers_N(self) -> np.ndarray:
        names = [f"takers_{days}d" for days in TAKER_DAYS]
        table = pq.read_table(self._place / "items", partitioning=None)
        if not self._fresh.reads_takers or not set(names) <= set(table.column_names):
            return np.zeros(len(self._item_ids), np.float32)
        takers_of = {
            row["item_id"]: [row[name] for name in names] for row in table.select(["item_id", *names]).to_pylist()
        }
        takers_WN = np.array([takers_of[item_id] for item_id in self._item_ids]).T
        with torch.inference_mode():
            of_takers_N: np.ndarray = self._fresh.of_takers(torch.from_numpy(np.ascontiguousarray(takers_WN))).numpy()
        return of_takers_N

    def _stored_votes(self, row: Mapping[str, Any]) -> Votes:
        ids, weights = row.get("neighbour_item_ids") or [], row.get("neighbour_item_weights") or []
        weight_of = dict(zip(ids, weights, strict=True))
        known = [item_id for item_id in ids if item_id in self._number_of]
        numbers = np.array([self._number_of[item_id] for item_id in known], np.int64)
        return Votes(numbers, np.array([weight_of[item_id] for item_id in known], np.float32))

    def _votes_of_moments(self, asking: Asking) -> list[Votes]:
        """The votes of the moments that are certainly among the nearest, and of all that may be."""
        moments, number_of = self._moments
        state_D = self._states([asking.history], [asking.user])[0]
        similarity_M = moments.similarity(state_D[None] / np.linalg.norm(state_D))[0]
        near_V = nearest(similarity_M)
        least = similarity_M[near_V].min() if len(near_V) < len(moments) else -np.inf
        rule, user = VoteRule(**(self._manifest.vote_rule or {})), number_of.get(asking.user_id, -1)
        chosen = [np.flatnonzero(similarity_M > least + margin) for margin in (SAME, -SAME)]
        return [moments.count(each, similarity_M[each], user, rule.min_voters) for each in chosen]

    @cached_property
    def _moments(self) -> tuple[StateMoments, dict[str, int]]:
        """The moments of the release, and the number of each user."""
        rows = pq.read_table(self._place / "moments" / "moments.parquet", partitioning=None)
        user_ids, item_ids, histories = (rows[name].to_pylist() for name in ("user_id", "item_id", "history_item_ids"))
        number_of = {user_id: number for number, user_id in enumerate(dict.fromkeys(user_ids))}
        oldest_first = [
            np.array([self._number_of[each] for each in reversed(history) if each in self._number_of])
            for history in histories
        ]
        batches = [oldest_first[start : start + BATCH_SIZE] for start in range(0, len(rows), BATCH_SIZE)]
        state_MD = np.concatenate([unit_states(self._states(batch)) for batch in batches])
        user_M = np.array([number_of[user_id] for user_id in user_ids])
        item_M = np.array([self._number_of.get(item_id, 0) for item_id in item_ids])
        day = date.fromisoformat(self._manifest.day)
        age_M = np.array([(day - taken.date()).days for taken in rows["event_time"].to_pylist()])
        return StateMoments(state_MD, age_M, user_M, item_M), number_of
