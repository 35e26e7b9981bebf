"""The item side of a release in memory: title, popularity, recent takers and frozen vectors of every item.

Shape suffixes:  N items of the release   S semantic size   R rows that may be among the top k
                 W windows of `TAKER_DAYS`
"""

# ruff: noqa: N802, N803, N815 - the shape suffixes above

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from grasp.tables import TAKER_DAYS

_COLUMNS = [
    "item_id",
    "title",
    "popularity",
    "semantic_embedding",
    "neighbour_embedding",
    "neighbour_ids",
    "feature_version",
]
_TAKERS = [f"takers_{days}d" for days in TAKER_DAYS]  # missing in earlier feature definitions


@dataclass(frozen=True)
class ItemSide:
    """Every item of a release, one row each.

    Not `available` are withdrawn items, and those that the model knows but the release lacks: never recommended.
    """

    ids: list[str]
    titles: list[str]
    neighbour_ids: list[list[str]]
    popularity_N: np.ndarray  # distinct users
    semantic_NS: np.ndarray  # float32, unit rows
    neighbour_NS: np.ndarray  # float32, mean of the neighbours' semantic vectors
    available_N: np.ndarray
    row_of: dict[str, int]  # of the items that the release has
    copies_of: dict[int, list[int]]  # all rows of one title, for each row whose title another row has too
    takers_WN: np.ndarray | None = None  # distinct users of the last days; None in earlier feature definitions

    def title(self, row: int) -> str:
        """The title, or the id where the source has no title."""
        return self.titles[row] or f"item {self.ids[row]}"

    @cached_property
    def takers_7d_N(self) -> np.ndarray:
        return self._takers_N(7)

    @cached_property
    def hotness_N(self) -> np.ndarray:
        """What orders popular items: takers of the last 7 days, then those of 30 days, then all users.

        It is the number of takers of the last 7 days plus a fraction below 1 that orders equal numbers. If nobody took
        anything in 30 days, or the release does not count takers, it is the number of all users.
        """
        month_N = self._takers_N(30)
        if not month_N.any():
            return self.popularity_N.astype(np.float64)
        pairs_N = month_N.astype(np.int64) * (int(self.popularity_N.max()) + 1) + self.popularity_N.astype(np.int64)
        _, place_N = np.unique(pairs_N, return_inverse=True)
        hotness_N: np.ndarray = self.takers_7d_N + place_N / (place_N.max() + 1)
        return hotness_N

    def _takers_N(self, days: int) -> np.ndarray:
        return np.zeros(len(self.ids)) if self.takers_WN is None else self.takers_WN[TAKER_DAYS.index(days)]

    def similarities(self, row: int) -> np.ndarray:
        """Cosine of one item's semantic embedding with that of every item, (N,)."""
        return self.semantic_NS @ self.semantic_NS[row]

    def with_copies(self, rows: Iterable[int]) -> list[int]:
        """The rows, and those of the same titles."""
        return [each for row in rows for each in self.copies_of.get(row, (row,))]

    def once_each(self, find: Callable[[int], list[tuple[int, float]]], k: int) -> list[tuple[int, float]]:
        """The k best rows of different titles; `find(num)` gives the `num` best rows."""
        num = k
        while True:
            found = find(num)
            best_of: dict[int, tuple[int, float]] = {}
            for row, score in found:
                best_of.setdefault(self.copies_of.get(row, (row,))[0], (row, score))
            if len(best_of) >= k or len(found) < num:
                return list(best_of.values())[:k]
            num *= 2

    def similar(self, item_id: str, k: int) -> list[tuple[int, float]]:
        """The k rows nearest to an item, each title once and the item's not; ties by row. `KeyError`: unknown item."""
        row = self.row_of[item_id]
        scores_N = np.where(self.available_N, self.similarities(row), -np.inf)
        scores_N[self.with_copies([row])] = -np.inf
        return self.once_each(lambda num: top(scores_N, num), k)

    def popular(
        self, k: int, excluded: np.ndarray, first_R: Sequence[int] | np.ndarray = ()
    ) -> list[tuple[int, float]]:
        """The k hottest items with their hotness, each title once; the rows of `first_R` before all others.

        `excluded` marks rows that must not be shown.
        """
        order_N = np.where(excluded | ~self.available_N, -np.inf, self.hotness_N)
        order_N[np.asarray(first_R, np.int64)] += self.hotness_N.max() + 1
        best = self.once_each(lambda num: top(order_N, num), k)
        return [(row, float(self.hotness_N[row])) for row, _ in best]


def top(scores_N: np.ndarray, k: int) -> list[tuple[int, float]]:
    """Rows of the k largest finite scores, largest first, ties by row. Scores must not be NaN."""
    if k < len(scores_N):  # sort only the scores that reach the k-th largest
        least = np.partition(scores_N, len(scores_N) - k)[len(scores_N) - k]
        row_R = np.flatnonzero(scores_N >= least)
    else:
        row_R = np.arange(len(scores_N))
    row_R = row_R[np.isfinite(scores_N[row_R])]
    row_R = row_R[np.argsort(-scores_N[row_R], kind="stable")[:k]]
    return list(zip(row_R.tolist(), scores_N[row_R].tolist(), strict=True))


def load_items(
    folder: Path, feature_version: str, vocabulary: Sequence[str] = (), withdrawn: Collection[str] = ()
) -> ItemSide:
    """Read the item side. Rows follow the model's vocabulary, then come the items that are new since training.

    Raises `ValueError` naming the folder when an item repeats, vectors differ in width, or a row has another
    feature version.
    """
    files = sorted(folder.glob("*.parquet"))
    if not files:
        raise ValueError(f"{folder} holds no parquet file: the release has no item side")
    try:
        parts = [pq.ParquetFile(file).read(columns=[*_COLUMNS, *_TAKERS]) for file in files]
        table = pa.concat_tables(parts).combine_chunks()
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{folder} cannot be read as item features: {error}") from error
    missing = set(_COLUMNS) - set(table.column_names)
    if missing:
        raise ValueError(f"{folder} lacks the columns {', '.join(sorted(missing))}")
    return _in_model_order(folder, table.sort_by("item_id"), feature_version, vocabulary, withdrawn)


def withdrawn_items(folder: Path) -> set[str]:
    """Ids of the items that must not be recommended; none for a release that is older than this folder."""
    files = sorted(folder.glob("*.parquet"))
    return {item_id for file in files for item_id in pq.ParquetFile(file).read(["item_id"])["item_id"].to_pylist()}


def _in_model_order(
    folder: Path, table: pa.Table, feature_version: str, vocabulary: Sequence[str], withdrawn: Collection[str]
) -> ItemSide:
    found = table["item_id"].to_pylist()
    position = {item_id: index for index, item_id in enumerate(found)}
    if not found or len(position) != len(found):
        raise ValueError(f"{folder} holds {len(found)} rows for {len(position)} items; one row per item is needed")
    versions = set(table["feature_version"].to_pylist())
    if versions != {feature_version}:
        raise ValueError(f"{folder} holds feature versions {sorted(map(str, versions))}, not {feature_version}")
    known = set(vocabulary)
    ids = [*vocabulary, *(item_id for item_id in found if item_id not in known)]
    source_N = np.array([position.get(item_id, -1) for item_id in ids])
    there_N = source_N >= 0
    titles, neighbours = table["title"].to_pylist(), table["neighbour_ids"].to_pylist()
    semantic, neighbour = (_matrix(folder, table, name) for name in ("semantic_embedding", "neighbour_embedding"))
    title_of_row = [(titles[index] or "") if index >= 0 else "" for index in source_N]
    # An item that the release lacks keeps its row, filled with zeros, so that rows match the model's vocabulary.
    return ItemSide(
        ids=ids,
        titles=title_of_row,
        neighbour_ids=[(neighbours[index] or []) if index >= 0 else [] for index in source_N],
        popularity_N=np.where(there_N, table["popularity"].to_numpy()[source_N], 0),
        semantic_NS=np.where(there_N[:, None], semantic[source_N], np.float32(0)),
        neighbour_NS=np.where(there_N[:, None], neighbour[source_N], np.float32(0)),
        available_N=there_N & ~np.array([item_id in withdrawn for item_id in ids]),
        row_of={item_id: row for row, item_id in enumerate(ids) if there_N[row]},
        copies_of=_copies(title_of_row),
        takers_WN=_takers(folder, table, source_N),
    )


def _takers(folder: Path, table: pa.Table, source_N: np.ndarray) -> np.ndarray | None:
    """`ItemSide.takers_WN`; an item that the release lacks has no takers. Raises `ValueError` for a missing number."""
    if not set(_TAKERS) <= set(table.column_names):
        return None
    for name in _TAKERS:
        if table[name].null_count:
            raise ValueError(f"{folder}: {name} lacks a number")
    return np.stack([np.where(source_N >= 0, table[name].to_numpy()[source_N], 0) for name in _TAKERS])


def _copies(titles: Sequence[str]) -> dict[int, list[int]]:
    """`ItemSide.copies_of`; case does not matter, and an item without a title has no copies."""
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, title in enumerate(titles):
        rows_of[title.strip().casefold()].append(row)
    rows_of.pop("", None)
    return {row: rows for rows in rows_of.values() if len(rows) > 1 for row in rows}


def _matrix(folder: Path, table: pa.Table, name: str) -> np.ndarray:
    """A column of lists as a float32 matrix. Raises `ValueError` unless all are present, finite and of one width."""
    column = table[name].combine_chunks()
    widths = pc.unique(pc.list_value_length(column)).to_pylist()
    if len(widths) != 1 or not widths[0]:
        raise ValueError(f"{folder}: {name} has vectors of widths {widths}; one width is needed")
    matrix = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32).reshape(-1, widths[0])
    if not np.isfinite(matrix).all():
        raise ValueError(f"{folder}: {name} holds values that are not finite")
    return matrix
