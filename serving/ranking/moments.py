"""The moments of a release in memory: what its users took lately, and the model's state after what came before it.

The state of a request is compared with theirs, and the nearest vote. `grasp/moments.py` says when two are alike and how
they vote. Of more than `EXACT_UP_TO` moments an index proposes some, and those are compared exactly. It takes any of
more than `NUM_PROPOSED` equally near moments, not the latest.

Shape suffixes:  M moments, oldest first  D width of a state  P proposed moments  V nearest moments  Q sampled states
"""

# ruff: noqa: N803, N815 - the shape suffixes above

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from grasp.days import parse_day
from grasp.moments import STATE_AGE_COST, VoteRule, Votes, nearest, state_votes
from serving.ranking.candidates import Index
from serving.ranking.items import ItemSide

MOMENTS_FOLDER, ROWS_FILE, STATES_FILE = "moments", "moments.parquet", "states.npy"  # row i of both is one moment
EXACT_UP_TO = 20_000  # more are searched by an index
NUM_PROPOSED = 2000  # moments that an index proposes, four times as many as vote
NUM_SAMPLED, MIN_RECALL = 32, 0.98  # of the states that an index is checked with before it is used
BLOCK = 20_000  # moments whose states are in float32 at once
SAME = 1e-6  # difference of two similarities that are equal but for rounding

_COLUMNS = ("user_id", "item_id", "event_time")

log = logging.getLogger("grasp.serving")


@dataclass(frozen=True, eq=False)
class MomentRows:
    """The moments of a release. Items are rows of the item side, counted from 1; 0 is one that the release lacks."""

    user_M: np.ndarray  # a number for each user
    item_M: np.ndarray  # the item taken next
    state_MD: np.ndarray  # float16, length 1: after the items before it
    age_M: np.ndarray  # in days, on the day of the release
    number_of: Mapping[str, int]  # of each user

    def __len__(self) -> int:
        return len(self.user_M)


def load_moments(folder: Path, items: ItemSide, day: str) -> MomentRows:
    """Read the moments of a release of a day. Raises `ValueError` naming a file that does not hold them."""
    try:
        table = pq.ParquetFile(folder / ROWS_FILE).read(columns=list(_COLUMNS))
        state_MD = np.load(folder / STATES_FILE)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{folder} cannot be read as moments: {error}") from error
    missing = set(_COLUMNS) - set(table.column_names)
    if missing:
        raise ValueError(f"{folder / ROWS_FILE} lacks the columns {', '.join(sorted(missing))}")
    if state_MD.dtype != np.float16 or state_MD.ndim != 2 or len(state_MD) != len(table):
        raise ValueError(f"{folder / STATES_FILE} does not hold a float16 state for each of {len(table)} moments")
    users = table["user_id"].combine_chunks().dictionary_encode()
    return MomentRows(
        user_M=users.indices.to_numpy().astype(np.int64),
        item_M=item_numbers(table["item_id"].combine_chunks(), items),
        state_MD=state_MD,
        age_M=ages(table["event_time"], day),
        number_of={user_id: number for number, user_id in enumerate(users.dictionary.to_pylist())},
    )


def ages(event_times: pa.ChunkedArray, day: str) -> np.ndarray:
    """Days from each time to `day`."""
    taken_M = event_times.to_numpy().astype("datetime64[D]")
    return (np.datetime64(parse_day(day)) - taken_M).astype(np.int64)


def item_numbers(item_ids: pa.Array, items: ItemSide) -> np.ndarray:
    """Rows of the items, counted from 1; 0 for an item that the release lacks."""
    known = pa.array(list(items.row_of), pa.string())
    row_of_known = np.array([0, *(row + 1 for row in items.row_of.values())])
    place = pc.fill_null(pc.index_in(item_ids.cast(pa.string()), value_set=known), -1)
    numbers: np.ndarray = row_of_known[place.to_numpy(zero_copy_only=False) + 1]
    return numbers


class StateSearch(Protocol):
    def nearest(self, state_D: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The nearest moments to a state of length 1, ascending, and their similarities."""


class ExactSearch:
    """Compares all moments."""

    def __init__(self, state_MD: np.ndarray, cost_M: np.ndarray) -> None:
        """`cost_M` is what its age takes from each similarity."""
        # By columns the product takes about half the time.
        self._state_MD, self._cost_M = torch.from_numpy(np.asarray(state_MD, np.float32, order="F")), cost_M

    def nearest(self, state_D: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        similarity_M = torch.mv(self._state_MD, torch.from_numpy(state_D)).numpy() - self._cost_M
        near_V = nearest(similarity_M)
        return near_V, similarity_M[near_V]


class IndexedSearch:
    """Compares the moments that an index proposes. A last coordinate tells the index what age costs."""

    def __init__(self, state_MD: np.ndarray, cost_M: np.ndarray) -> None:
        self._state_MD, self._cost_M = torch.from_numpy(state_MD), cost_M
        self._index = Index(np.concatenate([state_MD, -cost_M[:, None].astype(state_MD.dtype)], axis=1))

    def nearest(self, state_D: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        proposed_P = np.sort(self._index.search(np.append(state_D, np.float32(1)), NUM_PROPOSED))
        state_PD = self._state_MD[torch.from_numpy(proposed_P)].float()
        similarity_P = torch.mv(state_PD, torch.from_numpy(state_D)).numpy() - self._cost_M[proposed_P]
        near_V = nearest(similarity_P)
        return proposed_P[near_V], similarity_P[near_V]


class ReleaseMoments:
    """Finds the votes for a state among the moments of a release. Safe to use from several threads."""

    def __init__(self, rows: MomentRows, rule: VoteRule, exact_up_to: int = EXACT_UP_TO) -> None:
        self._user_M, self._item_M, self._number_of, self._rule = rows.user_M, rows.item_M, rows.number_of, rule
        cost_M = (STATE_AGE_COST * rows.age_M).astype(np.float32)
        search = indexed_search if len(rows) > exact_up_to else ExactSearch
        self._search: StateSearch = search(rows.state_MD, cost_M)

    def __len__(self) -> int:
        return len(self._user_M)

    def votes(self, user_id: str, state_D: np.ndarray) -> Votes:
        """What users other than `user_id` vote for, with the sums of their votes; items are rows."""
        length = np.linalg.norm(state_D)
        near_V, similarity_V = self._search.nearest(state_D / length if length else state_D)
        user, min_voters = self._number_of.get(user_id, -1), self._rule.min_voters
        found = state_votes(self._user_M[near_V], self._item_M[near_V], similarity_V, user, min_voters)
        return Votes(found.items - 1, found.weights)


def indexed_search(state_MD: np.ndarray, cost_M: np.ndarray) -> StateSearch:
    """A search by an index, or one that compares all moments when the recall of the index is below `MIN_RECALL`."""
    started = time.perf_counter()
    searched = IndexedSearch(state_MD, cost_M)
    seconds = time.perf_counter() - started
    asking = np.unique(np.linspace(0, len(state_MD) - 1, NUM_SAMPLED).astype(np.int64))
    found = recall(searched, state_MD, cost_M, state_MD[asking].astype(np.float32))
    summary = f"index of {len(state_MD):,} moments built in {seconds:.1f} s, recall {found:.4f} of the nearest"
    if found < MIN_RECALL:
        log.warning("%s is below %.2f: every request is compared with all of them instead", summary, MIN_RECALL)
        return ExactSearch(state_MD, cost_M)
    log.info("%s over %d of their states", summary, len(asking))
    return searched


def recall(searched: StateSearch, state_MD: np.ndarray, cost_M: np.ndarray, state_QD: np.ndarray) -> float:
    """Share of the nearest moments that a search finds, averaged over states.

    Similarities are compared, not moments, so an equally near moment counts as found.
    """
    starts = range(0, len(state_MD), BLOCK)
    blocks = [state_QD @ state_MD[start : start + BLOCK].astype(np.float32).T for start in starts]
    shares = []
    for state_D, similarity_M in zip(state_QD, np.concatenate(blocks, axis=1) - cost_M, strict=True):
        expected_V = similarity_M[nearest(similarity_M)]
        _, found_V = searched.nearest(state_D)
        shares.append(np.count_nonzero(found_V >= expected_V.min() - SAME) / len(expected_V))
    return float(np.mean(shares))
