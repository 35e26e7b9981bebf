"""The moments of a release in memory: what its users took lately, and had taken before.

A request's recent items make a new moment, which is compared with them. `grasp/moments.py` says what a moment is,
when two are alike and how they vote. No vector is kept per moment, because the text of a moment is a weighted sum of
vectors of items:

    text(m) . text(q) = sum over the items i of m of weight_mi * (vector_i . text(q))

So a search takes one product for each item that any moment names, and at most eight numbers of each moment. If moments
name so many items that the products take long, the leading axes of the vectors propose moments, and those are compared
exactly.

Shape suffixes:  M moments, oldest first  H items of a history, newest first  S semantic size  V nearest moments
                 P compared moments  U items that moments name, row 0 is no item  D distinct items of the new moment
                 A axes
"""

# ruff: noqa: N803, N815 - the shape suffixes above

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from scipy import sparse

from grasp.moments import HISTORY_DECAY, HISTORY_LENGTH, Contexts, Moments, VoteRule, Votes, contexts, nearest
from serving.ranking.items import ItemSide

MAX_MOMENTS = 500_000  # the latest ones that a release carries and a worker holds, 100 bytes each
BLOCK = 20_000  # moments that are prepared at once when a release is loaded
MAX_NUMBERS = 12_000_000  # of the vectors of all named items; above it axes propose
NUM_AXES, NUM_PROPOSED = 64, 2000
NUM_AXES_SAMPLED = 20_000  # vectors from which the axes are computed
_COLUMNS = ("user_id", "event_time", "row_number", "item_id", "history_item_ids")


@dataclass(frozen=True, eq=False)
class MomentRows:
    """The moments of a release. Items are rows of the item side, counted from 1; 0 is one that the release lacks."""

    user_M: np.ndarray  # a number for each user
    item_M: np.ndarray  # the item taken next
    history_MH: np.ndarray  # the items before it, 0 for none
    number_of: Mapping[str, int]  # of each user

    def __len__(self) -> int:
        return len(self.user_M)


def load_moments(folder: Path, items: ItemSide) -> MomentRows:
    """Read the moments of a release folder. Raises `ValueError` naming a folder that holds no table of them."""
    files = sorted(folder.glob("*.parquet"))
    try:
        parts = [pq.ParquetFile(file).read(columns=list(_COLUMNS)) for file in files]
        table = pa.concat_tables(parts) if parts else pa.table({})
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{folder} cannot be read as moments: {error}") from error
    missing = set(_COLUMNS) - set(table.column_names)
    if missing:
        raise ValueError(f"{folder} lacks the columns {', '.join(sorted(missing))}")
    by_time = table.sort_by([(name, "ascending") for name in ("event_time", "user_id", "row_number")])
    latest = by_time.slice(max(0, len(by_time) - MAX_MOMENTS)).combine_chunks()
    users = latest["user_id"].combine_chunks().dictionary_encode()
    known = _KnownItems(items)
    return MomentRows(
        user_M=users.indices.to_numpy().astype(np.int64),
        item_M=known.numbers(latest["item_id"].combine_chunks()),
        history_MH=_histories(latest["history_item_ids"].combine_chunks(), known),
        number_of={user_id: number for number, user_id in enumerate(users.dictionary.to_pylist())},
    )


class _KnownItems:
    """The items of a release by id."""

    def __init__(self, items: ItemSide) -> None:
        self._ids = pa.array(list(items.row_of), pa.string())
        self._rows = np.array([0, *(row + 1 for row in items.row_of.values())])

    def numbers(self, item_ids: pa.Array) -> np.ndarray:
        """Rows of the items, counted from 1; 0 for an item that the release lacks."""
        place = pc.fill_null(pc.index_in(item_ids.cast(pa.string()), value_set=self._ids), -1)
        numbers: np.ndarray = self._rows[place.to_numpy(zero_copy_only=False) + 1]
        return numbers


def _histories(item_ids: pa.ListArray, known: _KnownItems) -> np.ndarray:
    """A column of lists as `MomentRows.history_MH`."""
    length_M = pc.fill_null(pc.list_value_length(item_ids), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    moment = np.repeat(np.arange(len(length_M)), length_M)
    place = np.arange(len(moment)) - np.repeat(np.cumsum(length_M) - length_M, length_M)
    is_read = place < HISTORY_LENGTH
    history_MH = np.zeros((len(length_M), HISTORY_LENGTH), np.int64)
    history_MH[moment[is_read], place[is_read]] = known.numbers(item_ids.flatten())[is_read]
    return history_MH


class ReleaseMoments:
    """Finds the votes for a new moment among the moments of a release. Safe to use from several threads."""

    def __init__(self, rows: MomentRows, items: ItemSide, rule: VoteRule) -> None:
        self._user_M, self._item_M, self._number_of, self._rule = rows.user_M, rows.item_M, rows.number_of, rule
        self._vector_NS = items.semantic_NS
        # Rows of items that the release lacks are zeros and do not count.
        self._mean_S = (self._vector_NS.sum(0, dtype=np.float64) / len(items.row_of)).astype(np.float32)
        named_U = np.unique(np.append(rows.history_MH, 0))
        self._place_N = np.zeros(len(items.ids) + 1, np.int32)  # of each item in U; 0 for one that no moment names
        self._place_N[named_U] = np.arange(len(named_U))
        self._row_U = named_U - 1
        vector_US = np.concatenate([np.zeros((1, len(self._mean_S)), np.float32), self._centred(named_U[1:] - 1)])
        text, ids = [], []
        for start in range(0, len(rows), BLOCK):
            bag_MU = contexts(self._place_N[rows.history_MH[start : start + BLOCK]], vector_US).bag_QN
            norm_M = np.linalg.norm(bag_MU @ vector_US, axis=1)
            text.append(sparse.diags(rule.text_share / np.where(norm_M > 0, norm_M, np.inf)) @ bag_MU)
            ids.append((1 - rule.text_share) * bag_MU)
        self._text_MU = sparse.csr_matrix(sparse.vstack(text), dtype=np.float32)
        self._ids_MU = sparse.csc_matrix(sparse.vstack(ids), dtype=np.float32)  # by item
        self._axes_SA = _leading_axes(vector_US) if vector_US.size > MAX_NUMBERS else None
        multiplied = vector_US if self._axes_SA is None else vector_US @ self._axes_SA
        self._multiplied_U = np.asfortranarray(multiplied)  # by columns a product takes half as long

    def __len__(self) -> int:
        return len(self._user_M)

    def votes(self, user_id: str, history: Sequence[int]) -> Votes:
        """The votes of other users for the one who took the rows of `history`, oldest first; items are rows."""
        newest_H = np.array(history[: -HISTORY_LENGTH - 1 : -1], np.int64)
        if not len(newest_H):
            return Votes(np.zeros(0, np.int64), np.zeros(0, np.float32))
        chosen_V, similarity_V = self._nearest(newest_H)
        no_contexts = Contexts(np.zeros((0, 0), np.float32), sparse.csr_matrix((0, 0)))
        voting = Moments(no_contexts, self._user_M[chosen_V], self._item_M[chosen_V])
        user = self._number_of.get(user_id, -1)
        found = voting.count(np.arange(len(chosen_V)), similarity_V, user, self._rule)
        return Votes(found.items - 1, found.weights)

    def _nearest(self, newest_H: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The nearest moments, ascending, and their similarities to a new one."""
        # As `contexts` does for many moments at once, which would take longer than the comparison for one.
        row_D, place_H = np.unique(newest_H, return_inverse=True)
        weight_D = np.bincount(place_H, HISTORY_DECAY ** np.arange(len(newest_H))).astype(np.float32)
        text_S = _unit(weight_D @ self._centred(row_D))
        product_U = self._multiplied_U @ (text_S if self._axes_SA is None else text_S @ self._axes_SA)
        similarity_M = self._text_MU @ product_U
        self._add_ids(similarity_M, row_D, _unit(weight_D))
        if self._axes_SA is None:
            chosen_V = nearest(similarity_M)
            return chosen_V, similarity_M[chosen_V]
        place_P = nearest(similarity_M, NUM_PROPOSED)
        text_PU = self._text_MU[place_P]
        named, missing_U = np.unique(text_PU.indices), np.zeros_like(product_U)
        missing_U[named] = self._centred(self._row_U[named]) @ text_S - product_U[named]
        similarity_P = similarity_M[place_P] + text_PU @ missing_U
        near_V = nearest(similarity_P)
        return place_P[near_V], similarity_P[near_V]

    def _add_ids(self, similarity_M: np.ndarray, row_D: np.ndarray, weight_D: np.ndarray) -> None:
        """Add what comes from items that a moment and the new one both have."""
        for place, weight in zip(self._place_N[row_D + 1], weight_D, strict=True):
            if place:
                of_item = slice(*self._ids_MU.indptr[place : place + 2])
                np.add.at(similarity_M, self._ids_MU.indices[of_item], weight * self._ids_MU.data[of_item])

    def _centred(self, rows: np.ndarray) -> np.ndarray:
        """Vectors of some rows without the mean of all."""
        centred: np.ndarray = self._vector_NS[rows] - self._mean_S
        return centred


def _unit(vector: np.ndarray) -> np.ndarray:
    """The vector scaled to length 1; zeros stay."""
    length = np.linalg.norm(vector)
    return vector / length if length else vector


def _leading_axes(vector_US: np.ndarray) -> np.ndarray:
    """The axes of largest variance, (S, A)."""
    sample = vector_US[:: max(1, len(vector_US) // NUM_AXES_SAMPLED)]
    axes_SA: np.ndarray = np.linalg.eigh(sample.T @ sample).eigenvectors[:, -NUM_AXES:]
    return np.ascontiguousarray(axes_SA)
