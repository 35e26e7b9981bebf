"""What fresh features add to the scores of a request, from the files of its release and the user's row in the lake.

Nothing of serving's own computation is used: the counts are read from the item table, all items have an addition, and a
new moment is compared with the text vectors of all moments.

Shape suffixes:  W windows of `TAKER_DAYS`  N items, counted from 1 where they are numbers  S semantic size
                 M moments of the release  H items of a history, newest first
"""

# ruff: noqa: N802, N803 - the shape suffixes above

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from grasp.manifest import Manifest
from grasp.moments import (
    HISTORY_LENGTH,
    NUM_NEAREST,
    SIMILARITY_DIGITS,
    Moments,
    VoteRule,
    centred,
    contexts,
    similarity,
)
from grasp.tables import TAKER_DAYS
from serving.ranking.items import ItemSide
from serving.ranking.moments import MomentRows, load_moments
from training.model.fresh_score import FreshScore


class OfflineFresh:
    """The additions of one release, for items in a given order with their vectors."""

    def __init__(
        self,
        place: Path,
        manifest: Manifest,
        items: ItemSide,
        fresh: FreshScore,
        *,
        item_ids: Sequence[str],
        vectors_NS: np.ndarray,
    ) -> None:
        self._place, self._manifest, self._items, self._fresh = place, manifest, items, fresh
        self._item_ids, self._vectors_NS = item_ids, vectors_NS
        self._number_of = {item_id: number for number, item_id in enumerate(item_ids, 1)}

    def added(
        self, user_id: str, row: Mapping[str, Any], history: Sequence[int] | np.ndarray, votes_from: str | None
    ) -> np.ndarray:
        """What is added to every item's score, (N,). `history` are numbers of items, oldest first."""
        added_N = self._of_takers_N.copy()
        if not self._fresh.reads_votes:
            return added_N
        searched = votes_from == "recent_items"
        numbers, weights = self._searched_votes(user_id, history) if searched else self._stored_votes(row)
        with torch.inference_mode():
            added_N[numbers - 1] += self._fresh.of_votes(torch.from_numpy(weights)).numpy()
        return added_N

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

    def _stored_votes(self, row: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the voted items and their weights, from the user's row."""
        ids, weights = row.get("neighbour_item_ids") or [], row.get("neighbour_item_weights") or []
        weight_of = dict(zip(ids, weights, strict=True))
        known = [item_id for item_id in ids if item_id in self._number_of]
        numbers = np.array([self._number_of[item_id] for item_id in known], np.int64)
        return numbers, np.array([weight_of[item_id] for item_id in known], np.float32)

    def _searched_votes(self, user_id: str, history: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The same of a new moment among those of the release."""
        rule = VoteRule(**(self._manifest.vote_rule or {}))
        newest_H = np.asarray(history)[: -HISTORY_LENGTH - 1 : -1]
        new = contexts(newest_H[None], self._centred_NS)
        similarity_M = similarity(new, self._voting.contexts, rule.text_share)[0]
        later_first = np.lexsort((-np.arange(len(similarity_M)), -similarity_M.round(SIMILARITY_DIGITS)))
        user = self._rows.number_of.get(user_id, -1)
        found = self._voting.count(np.sort(later_first[:NUM_NEAREST]), similarity_M, user, rule)
        return found.items, found.weights

    @cached_property
    def _rows(self) -> MomentRows:
        return load_moments(self._place / "moments", self._items)

    @cached_property
    def _centred_NS(self) -> np.ndarray:
        return centred(self._vectors_NS)

    @cached_property
    def _voting(self) -> Moments:
        numbers_N = np.array([0, *(self._number_of.get(item_id, 0) for item_id in self._items.ids)])
        of_moments = contexts(numbers_N[self._rows.history_MH], self._centred_NS)
        return Moments(of_moments, self._rows.user_M, numbers_N[self._rows.item_M])
