"""The finished rows of one report's folder. No row is computed twice.

    results.jsonl          one line per row, ranking and group: metrics, cost and origin of the row
    ranks/<row id>.parquet the target's rank of each test event in every ranking, for intervals
    groups.parquet         the groups of each test event, the same for all rows; by global time also its user and item
    about.json             the data set, the machine, the command and the planned rows

A row is one system trained once. Its ranks are written before its lines, so a crash leaves no row without ranks. When
one is left out, each test event is of another user, so resampling events is resampling users.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np

from benchmarks.core.store import JsonLines, Record
from benchmarks.data.protocols import Protocol
from benchmarks.quality.rows import COLD_ITEMS, FinishedRow, Row, RowInfo, from_lines, of_ranking, to_lines
from grasp.files import replacing
from training.evaluation.metrics import CUTOFFS, event_metrics
from training.evaluation.ranking import Ranks

RESULTS_FILE = "results.jsonl"
GROUPS_FILE = "groups.parquet"
MAX_GREATER = max(CUTOFFS)  # with as many items above it, a target counts at no cut-off
MAX_TIED = np.iinfo(np.uint16).max


class OtherDataError(ValueError):
    """A row of another data set: it cannot be compared with the rows that are there."""


class OtherRecipesError(ValueError):
    """A trained row of another recipe version: it is stale, or the new ones are."""


class Results:
    """The rows of one report's folder. Several processes may add to it at the same time."""

    def __init__(self, folder: Path, data_checksum: str | None = None, recipe_version: int | None = None) -> None:
        """Raises `OtherDataError` when the folder holds rows of another data set than `data_checksum`.

        Raises `OtherRecipesError` when it holds trained rows of another recipe version than `recipe_version`.
        """
        self.folder = folder
        self._lines = JsonLines(folder / RESULTS_FILE)
        self.file = self._lines.file
        self._rows = _by_id(self._lines.read())
        self._read_ranks = cache(self._read_ranks_file)
        if data_checksum:
            self._require_same_data(data_checksum)
        if recipe_version:
            self._require_same_recipes(recipe_version)

    def finished(self, row_id: str) -> bool:
        return row_id in self._rows

    def rows(self) -> list[FinishedRow]:
        """All finished rows, oldest first."""
        return list(self._rows.values())

    @property
    def protocol(self) -> Protocol:
        """The protocol of all rows; rows of another one are other data."""
        return self.rows()[0].row.protocol

    def commits(self) -> str:
        """The commits at which the rows were computed."""
        return ", ".join(sorted({each.info.commit for each in self.rows()}))

    def add(
        self,
        row: Row,
        rankings: Mapping[str, Ranks],
        groups: Mapping[str, np.ndarray],
        info: RowInfo,
        units: Mapping[str, np.ndarray] | None = None,
    ) -> FinishedRow:
        """Store a row: ranks (E,) of every ranking (`filtered`, `unfiltered`, `sampled_0`, ...), groups as masks (E,).

        `units` are the `user` and the `item` of each event (E,), where a user has several events.
        Raises `ValueError` when the row is there already or has other events, `OtherDataError` for other data.
        """
        with self._lines.locked_for_appending() as (records, append):
            self._rows = _by_id(records)
            if self.finished(row.row_id):
                raise ValueError(f"{row.row_id} is finished already: {self.file} keeps the first result")
            self._require_same_data(info.data_checksum)
            self._require_same_groups({**groups, **(units or {})})
            capped = _capped(rankings)
            self._write_ranks(row.row_id, capped)
            lines = to_lines(row, capped, groups, info)
            append(lines)
            self._rows[row.row_id] = from_lines(lines)
        return self._rows[row.row_id]

    def per_event(self, row_id: str, ranking: str, metric: str) -> np.ndarray:
        """A metric of every test event (E,), such as `ndcg@10`; for `sampled` the mean over its draws."""
        draws = of_ranking(self._read_ranks(row_id), ranking, row_id)
        return np.mean([event_metrics(ranks)[metric] for ranks in draws], axis=0)

    def groups(self) -> dict[str, np.ndarray]:
        """The test events of each group as a mask (E,)."""
        return {name: column for name, column in self._columns().items() if column.dtype == bool}

    def units(self, group: str) -> np.ndarray:
        """What is resampled for an interval over a group's events, one number for each: its item if the items are new,
        otherwise its user.
        """
        mask, columns = self.groups()[group], self._columns()
        return columns.get("item" if group == COLD_ITEMS else "user", np.arange(len(mask)))[mask]

    def _columns(self) -> dict[str, np.ndarray]:
        return _read_columns(self.folder / GROUPS_FILE)

    def _require_same_data(self, checksum: str) -> None:
        for each in self._rows.values():
            if each.info.data_checksum != checksum:
                raise OtherDataError(
                    f"{self.file} holds rows of the data {each.info.data_checksum}, these are {checksum}: "
                    "give another folder, or delete this one to start anew"
                )

    def _require_same_recipes(self, version: int) -> None:
        for each in self._rows.values():
            if each.row.backbone and each.info.recipe_version != version:
                raise OtherRecipesError(
                    f"{self.file} holds {each.row.row_id} of recipe version {each.info.recipe_version}, now it is "
                    f"{version}: give another folder, or delete this one to train everything anew"
                )

    def _require_same_groups(self, groups: Mapping[str, np.ndarray]) -> None:
        file = self.folder / GROUPS_FILE
        if not self._rows:
            _write_columns(file, groups)
            return
        known = self._columns()
        if known.keys() != groups.keys() or any(not np.array_equal(known[name], groups[name]) for name in known):
            raise ValueError(f"the row's events or groups are not those of {file}: rows of one folder are compared")

    def _write_ranks(self, row_id: str, rankings: Mapping[str, Ranks]) -> None:
        columns = {}
        for ranking, ranks in rankings.items():
            columns[f"{ranking}_num_greater"] = ranks.num_greater.astype(np.uint8)
            columns[f"{ranking}_num_tied"] = ranks.num_tied.astype(np.uint16)
        _write_columns(self._ranks_file(row_id), columns)
        self._read_ranks.cache_clear()

    def _ranks_file(self, row_id: str) -> Path:
        return self.folder / "ranks" / f"{row_id}.parquet"

    def _read_ranks_file(self, row_id: str) -> dict[str, Ranks]:
        columns = _read_columns(self._ranks_file(row_id))
        names = [name.removesuffix("_num_greater") for name in columns if name.endswith("_num_greater")]
        return {
            name: Ranks(*(columns[f"{name}_{part}"].astype(np.int64) for part in ("num_greater", "num_tied")))
            for name in names
        }


def _by_id(records: list[Record]) -> dict[str, FinishedRow]:
    return {lines[0]["row_id"]: from_lines(lines) for lines in records}


def _capped(rankings: Mapping[str, Ranks]) -> dict[str, Ranks]:
    """Ranks as far as metrics need them: beyond the largest cut-off neither rank nor ties matter."""
    return {
        ranking: Ranks(
            np.minimum(ranks.num_greater, MAX_GREATER),
            np.where(ranks.num_greater < MAX_GREATER, np.minimum(ranks.num_tied, MAX_TIED), 0),
        )
        for ranking, ranks in rankings.items()
    }


def _write_columns(file: Path, columns: Mapping[str, np.ndarray]) -> None:
    """Replace a parquet file as a whole."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with replacing(file) as handle:
        table = pa.table(dict(columns))
        pq.write_table(table, handle, compression="zstd", compression_level=19, write_statistics=False)


def _read_columns(file: Path) -> dict[str, np.ndarray]:
    import pyarrow.parquet as pq

    table = pq.read_table(file)
    return {name: table.column(name).to_numpy() for name in table.column_names}
