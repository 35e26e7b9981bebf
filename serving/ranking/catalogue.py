"""Item data that the ranker does not read: descriptions, neighbours and categories, in memory.

Shape suffix:  N items of the release, in the rows of `ItemSide`
"""

import difflib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from grasp.categories import categories_of
from serving.ranking.items import ItemSide

NUM_CLOSEST = 3  # categories that an error names
NUM_COMPARED = 200  # largest categories that it compares: 2 ms, during which nobody else is answered
_COLUMNS = ("item_id", "description", "source", "is_tail", "neighbour_ids", "neighbour_similarities")


class UnknownCategoryError(ValueError):
    """No item has the category; the message names the closest ones."""


class Catalogue:
    """Rows are those of the item side. An item that the release lacks has neither text nor category."""

    def __init__(self, items: ItemSide, features: pa.Table, attributes: dict[str, list[tuple[str, str]]]) -> None:
        self._features = features
        self._position_of = {item_id: index for index, item_id in enumerate(features["item_id"].to_pylist())}
        self._items = items
        self._categories_of: dict[int, list[str]] = {}
        rows_of: dict[str, list[int]] = defaultdict(list)
        spellings: dict[str, Counter[str]] = defaultdict(Counter)
        for item_id, pairs in attributes.items():
            row = items.row_of.get(item_id)
            if row is None:
                continue
            self._categories_of[row] = found = _categories(pairs)
            for category in found:
                rows_of[category.casefold()].append(row)
                spellings[category.casefold()][category] += 1
        self._rows_of = {folded: np.unique(rows) for folded, rows in rows_of.items()}
        names = {folded: counts.most_common(1)[0][0] for folded, counts in spellings.items()}
        sizes = [(names[folded], len(rows)) for folded, rows in self._rows_of.items()]
        self._by_size = sorted(sizes, key=lambda each: (-each[1], each[0]))

    def text(self, row: int) -> tuple[str, str]:
        """The description and its source, `llm` or `facts`."""
        return self._value(row, "description"), self._value(row, "source")

    def is_tail(self, row: int) -> bool:
        return bool(self._value(row, "is_tail"))

    def neighbours(self, row: int) -> list[tuple[int, float]]:
        """Rows and similarities of the neighbours that are in the release, nearest first."""
        pairs = zip(self._value(row, "neighbour_ids"), self._value(row, "neighbour_similarities"), strict=True)
        return [(self._items.row_of[each], similarity) for each, similarity in pairs if each in self._items.row_of]

    def categories(self, row: int) -> list[str]:
        return self._categories_of.get(row, [])

    def all_categories(self) -> Sequence[tuple[str, int]]:
        """Every category with its number of items, largest first."""
        return self._by_size

    def rows_in(self, category: str) -> np.ndarray:
        """The rows of a category, none of one that no item has; case does not matter."""
        return self._rows_of.get(category.casefold(), np.empty(0, np.int64))

    def in_categories(self, categories: Iterable[str]) -> np.ndarray:
        """Which rows have at least one of the categories, (N,) of bool; case does not matter.

        Raises `UnknownCategoryError`.
        """
        wanted_N = np.zeros(len(self._items.ids), dtype=bool)
        for category in categories:
            if category.casefold() not in self._rows_of:
                raise UnknownCategoryError(f"no category {category!r}; {self._closest(category)}")
            wanted_N[self._rows_of[category.casefold()]] = True
        return wanted_N

    def _closest(self, category: str) -> str:
        """The large categories that are spelt most like an unknown one; the largest if none is like it."""
        largest = [name for name, _ in self._by_size[:NUM_COMPARED]]
        if not largest:
            return "none of its items has one"
        folded = {name.casefold(): name for name in largest}
        found = difflib.get_close_matches(category.casefold(), folded, NUM_CLOSEST, cutoff=0.5)
        names = [folded[each] for each in found] or largest[:NUM_CLOSEST]
        verb = "is" if len(names) == 1 else "are"
        return f"the {'closest' if found else 'largest'} {verb} {', '.join(names)} (/v1/categories lists all)"

    def _value(self, row: int, column: str) -> Any:
        return self._features[column][self._position_of[self._items.ids[row]]].as_py()


def _categories(pairs: Iterable[tuple[str, str]]) -> list[str]:
    return list(dict.fromkeys(category for _, value in pairs for category in categories_of(value)))


def load_catalogue(folder: Path, items: ItemSide, hidden_attributes: Collection[str] = ()) -> Catalogue:
    """The catalogue of a release folder. Older releases hold no attributes, so their items have no categories."""
    features = _read(folder / "items", _COLUMNS)
    attributes = {}
    if (folder / "catalogue").is_dir():
        listed = _read(folder / "catalogue", ("item_id", "attributes"))
        for item_id, pairs in zip(listed["item_id"].to_pylist(), listed["attributes"].to_pylist(), strict=True):
            attributes[item_id] = [(name, value) for name, value in pairs or [] if name not in hidden_attributes]
    return Catalogue(items, features, attributes)


def _read(folder: Path, columns: Iterable[str]) -> pa.Table:
    """One contiguous table. Raises `ValueError` naming the folder when a column is missing."""
    tables = [pq.ParquetFile(file).read(columns=list(columns)) for file in sorted(folder.glob("*.parquet"))]
    table = pa.concat_tables(tables).combine_chunks() if tables else pa.table({})
    missing = set(columns) - set(table.column_names)
    if missing:
        raise ValueError(f"{folder} lacks the columns {', '.join(sorted(missing))}")
    return table
