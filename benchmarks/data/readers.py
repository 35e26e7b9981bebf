"""Read the data of benchmarks without Spark: a folder of the data contract, or LLM-ESR's file of ids.

The order is the data contract's (docs/data.md): by time, then by `row_number`, or by position in the file without it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.core.command import MOVIELENS
from grasp.progress import say
from grasp.settings import Settings
from spark_jobs.commands import fetch
from spark_jobs.source import movielens
from spark_jobs.source.contract import REQUIRED_COLUMNS, SourceError, SourceTable, find_table, require_table
from spark_jobs.source.parquet_files import table_files
from spark_jobs.source.sample import table_rows
from spark_jobs.source.text_files import text_lines
from spark_jobs.source.values import as_text
from spark_jobs.validation.clean_text import clean_text

ID_FILES = ("inter.txt", "inter.txt.gz")
MAX_NAME_CHARS = 60  # of a fact's name, as in ingestion
MOST_CATEGORIES = 0.05  # distinct ones per item; more are brands
SECONDS_OF_DAY = 24 * 60 * 60

Facts = dict[str, Any]  # of a description: `title`, and `attributes` with a text for each name


@dataclass(frozen=True)
class Source:
    """A data set. Items count from 1."""

    name: str
    files: tuple[Path, ...]
    item_ids: list[str]
    items: list[Facts] | None  # None for data without texts
    categories: list[str]  # one per item, empty where none is known
    user_ids: list[str]
    profiles: list[Facts]
    sequences: list[np.ndarray]  # items of each user, oldest first
    times: list[np.ndarray] | None  # of each item in `sequences`, unix seconds; None for data without times

    @cached_property
    def days(self) -> list[np.ndarray]:
        """The UTC day of each item in `sequences`, in days since 1970-01-01; 0 for data without times."""
        if self.times is None:
            return [np.zeros(len(items), np.int64) for items in self.sequences]
        return [(times // SECONDS_OF_DAY).astype(np.int64) for times in self.times]


def read(folder: Path) -> Source:
    """Read a folder. Raises `FileNotFoundError` without it, `SourceError` for a file in the wrong format."""
    found = [folder / name for name in ID_FILES if (folder / name).is_file()]
    return _read_ids(found[0]) if found else _read_contract(folder)


def movielens_folder(settings: Settings) -> Path:
    """MovieLens-100K as a folder of the data contract, fetched unless `make setup` or an earlier call did."""
    place = settings.home / "source" / "movielens-100k"
    if not place.exists():
        fetch.make_once(place, fetch.MOVIELENS, settings.home / "downloads", movielens.convert)
    return place


def source_folder(data: str, settings: Settings) -> Path:
    """`movielens` is fetched; anything else is a folder. Raises `FileNotFoundError` naming one that is missing."""
    if data == MOVIELENS:
        return movielens_folder(settings)
    folder = Path(data)
    if not folder.is_dir():
        raise FileNotFoundError(f"--data {folder} is not a folder; docs/data.md says where the public data comes from")
    return folder


def _read_ids(file: Path) -> Source:
    """`user item` per line, in time order; items are all numbers from 1 to the highest one."""
    sequences: dict[str, list[int]] = {}
    for number, line in enumerate(text_lines(file), start=1):
        parts = line.split()
        if len(parts) != 2 or not parts[1].isdigit() or parts[1] == "0":
            raise SourceError(f"{file}, line {number}: expected a user and an item, a number from 1, got {line!r}")
        sequences.setdefault(parts[0], []).append(int(parts[1]))
    num_items = max((max(items) for items in sequences.values()), default=0)
    return Source(
        file.parent.name,
        (file,),
        [str(item) for item in range(1, num_items + 1)],
        None,
        [""] * num_items,
        list(sequences),
        [{} for _ in sequences],
        [np.array(items, np.int64) for items in sequences.values()],
        None,
    )


def _read_contract(folder: Path) -> Source:
    interactions, items = require_table(folder, "interactions"), require_table(folder, "items")
    users = find_table(folder, "users")
    facts, lists = _facts_of(items), _lists_of(items)
    profiles = _facts_of(users) if users else {}
    item_index = {item_id: index for index, item_id in enumerate(facts, start=1)}
    sequences, times = _sequences(interactions, item_index)
    return Source(
        folder.name,
        tuple(file for table in (interactions, items, users) if table for file in table_files(table.path)),
        list(facts),
        list(facts.values()),
        main_categories([lists[item_id] for item_id in facts]),
        list(sequences),
        [profiles.get(user_id, {}) for user_id in sequences],
        list(sequences.values()),
        times,
    )


def _facts_of(table: SourceTable) -> dict[str, Facts]:
    """Title and attributes by id. Of rows with the same id, the first one counts."""
    key, result = REQUIRED_COLUMNS[table.name][0], dict[str, Facts]()
    for row in table_rows(table):
        values = {clean_text(name, MAX_NAME_CHARS): clean_text(as_text(row[name])) for name in row if name != key}
        known = {name: value for name, value in values.items() if name and value}
        title = known.pop("title", "") if table.name == "items" else ""
        result.setdefault(str(row[key]), {"title": title, "attributes": known})
    return result


def _lists_of(items: SourceTable) -> dict[str, list[str]]:
    """The first fact of each item that is a list: its categories."""
    result: dict[str, list[str]] = {}
    for row in table_rows(items):
        lists = [value for name, value in row.items() if isinstance(value, list)]
        result.setdefault(str(row["item_id"]), [as_text(each).strip() for each in lists[0]] if lists else [])
    return result


def main_categories(lists: Sequence[Sequence[str]]) -> list[str]:
    """One category for each item, empty when it has none: the first of its list that is no brand.

    In some catalogues, such as Beauty, a list begins with a brand, followed by categories from wide to narrow. Many
    different first values show that; a brand then is a value that never follows another one.
    """
    if len({values[0] for values in lists if values}) <= MOST_CATEGORIES * len(lists):
        return [values[0] if values else "" for values in lists]
    later = {value for values in lists for value in values[1:]}
    return [next((value for value in values if value in later), "") for values in lists]


def _sequences(table: SourceTable, item_index: Mapping[str, int]) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    """Items of each user in order, and their times. Equal rows (user, item and time) count once."""
    rows: dict[str, list[tuple[float, float, int]]] = {}
    num_left_out = 0
    for user_id, item_id, moment, place in _timed_rows(table):
        if item_id in item_index:
            rows.setdefault(user_id, []).append((moment, place, item_index[item_id]))
        else:
            num_left_out += 1
    if num_left_out:
        say(f"{table.path.name}: {num_left_out:,} interactions with items that are not among the items left out")
    ordered = {user_id: _in_order(of_user) for user_id, of_user in rows.items()}
    return (
        {user_id: np.array([item for _, item in of_user], np.int64) for user_id, of_user in ordered.items()},
        [np.array([moment for moment, _ in of_user]) for of_user in ordered.values()],
    )


def _timed_rows(table: SourceTable) -> Iterator[tuple[str, str, float, float]]:
    for position, row in enumerate(table_rows(table), start=1):
        place = float(str(row.get("row_number") or position))
        yield str(row["user_id"]), str(row["item_id"]), float(str(row["timestamp"])), place


def _in_order(rows: Sequence[tuple[float, float, int]]) -> list[tuple[float, int]]:
    return list(dict.fromkeys((moment, item) for moment, _, item in sorted(rows, key=lambda row: row[:2])))
