"""The store of finished rows behind one report: append-only, so that a row is never computed twice.

    results.jsonl          one line per row, protocol and group: the metrics, what the row cost and where it comes from
    ranks/<row id>.parquet per test event the target's rank in every protocol, so that any interval can be recomputed
    groups.parquet         which test events belong to which group, the same for all rows
    about.json             the data set, the machine, the command and the rows that are wanted

A row is one system trained once. Its ranks are written first, its lines then in one append under a lock, each saying
how many there are: what a crash left of a row is known as such, passed over by readers and cut off by the next `add`.
Every test event is of another user (leave-one-out), so drawing events again is drawing users again.
"""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import IO

import numpy as np

from benchmarks.quality.rows import About, FinishedRow, Info, Row, answers, complete_rows, from_records, to_records
from grasp.files import write_json
from grasp.progress import say
from training.evaluation.evaluate import CUTOFFS, Ranks, metrics

RESULTS_FILE = "results.jsonl"
GROUPS_FILE = "groups.parquet"
ABOUT_FILE = "about.json"
MAX_GREATER = max(CUTOFFS)  # a target with as many above it gains nothing at any k
MAX_TIED = np.iinfo(np.uint16).max


class OtherDataError(ValueError):
    """A row of other data than the store's: the two cannot stand in one table."""


class Results:
    """The rows of one report folder. Several processes may add to it at the same time."""

    def __init__(self, folder: Path, data_checksum: str | None = None) -> None:
        """Raises `OtherDataError` when the store holds rows of another data set than `data_checksum`."""
        self.folder = folder
        self.file = folder / RESULTS_FILE
        self._rows: dict[str, FinishedRow] = {}
        self._read_ranks = cache(self._read_ranks_file)
        if self.file.exists():
            with self._locked("rb", fcntl.LOCK_SH) as file:
                self._load(file)
        if data_checksum:
            self._require_same_data(data_checksum)

    def finished(self, row_id: str) -> bool:
        return row_id in self._rows

    def rows(self) -> list[FinishedRow]:
        """All finished rows, in the order in which they were finished."""
        return list(self._rows.values())

    def commits(self) -> str:
        """The sources that the rows come from."""
        return ", ".join(sorted({each.info.commit for each in self.rows()}))

    def add(self, row: Row, rankings: Mapping[str, Ranks], groups: Mapping[str, np.ndarray], info: Info) -> FinishedRow:
        """Store a finished row: the ranks of every protocol (`filtered`, `unfiltered`, `sampled_0`, ...) and group.

        Ranks and the masks of the groups are (E,). Raises `ValueError` for a row that is there already or has other
        events, `OtherDataError` for one of other data.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._locked("a+b", fcntl.LOCK_EX) as file:
            file.truncate(self._load(file))
            if self.finished(row.row_id):
                raise ValueError(f"{row.row_id} is finished already: {self.file} keeps the first result")
            self._require_same_data(info.data_checksum)
            self._require_same_groups(groups)
            capped = _capped(rankings)
            self._write_ranks(row.row_id, capped)
            records = to_records(row, capped, groups, info)
            file.write("".join(f"{json.dumps(record, allow_nan=False)}\n" for record in records).encode())
            file.flush()
            os.fsync(file.fileno())
            self._rows[row.row_id] = from_records(records)
        return self._rows[row.row_id]

    def per_event(self, row_id: str, protocol: str, metric: str) -> np.ndarray:
        """A metric of every test event (E,), such as `ndcg@10`; the protocol `sampled` is the mean over its draws."""
        ranks = self._read_ranks(row_id)
        draws = [metrics(found)[metric] for name, found in ranks.items() if answers(name, protocol)]
        if not draws:
            raise KeyError(f"{row_id} has no protocol {protocol}, only {', '.join(ranks)}")
        return np.mean(draws, axis=0)

    def groups(self) -> dict[str, np.ndarray]:
        """Which test events belong to each group: masks (E,)."""
        return _read_columns(self.folder / GROUPS_FILE)

    def describe(self, about: About) -> None:
        """Keep what the report says first; replaces what an earlier run said."""
        write_json(self.folder / ABOUT_FILE, asdict(about))

    def about(self) -> About | None:
        file = self.folder / ABOUT_FILE
        if not file.exists():
            return None
        found = json.loads(file.read_text())
        return About(**found | {"wanted": tuple(found["wanted"])})

    @contextmanager
    def _locked(self, mode: str, kind: int) -> Iterator[IO[bytes]]:
        with self.file.open(mode) as file:
            fcntl.flock(file, kind)  # given up when the file is closed, by a crash too
            file.seek(0)
            yield file

    def _load(self, file: IO[bytes]) -> int:
        """Read the rows anew; returns where the last complete one ends."""
        content = file.read()
        complete, end = complete_rows(content, self.file)
        if end < len(content):
            say(f"{self.file}: the last row was cut short after {len(content) - end:,} bytes and does not count")
        self._rows = {records[0]["row_id"]: from_records(records) for records in complete}
        return end

    def _require_same_data(self, checksum: str) -> None:
        for each in self._rows.values():
            if each.info.data_checksum != checksum:
                raise OtherDataError(
                    f"{self.file} holds rows of the data {each.info.data_checksum}, these are {checksum}: "
                    "give another folder, or delete this one to start anew"
                )

    def _require_same_groups(self, groups: Mapping[str, np.ndarray]) -> None:
        file = self.folder / GROUPS_FILE
        if not self._rows:
            _write_columns(file, groups)
            return
        known = self.groups()
        if known.keys() != groups.keys() or any(not np.array_equal(known[name], groups[name]) for name in known):
            raise ValueError(f"the row's events or groups are not those of {file}: rows of one store are compared")

    def _write_ranks(self, row_id: str, rankings: Mapping[str, Ranks]) -> None:
        columns = {}
        for protocol, found in rankings.items():
            columns[f"{protocol}_num_greater"] = found.num_greater.astype(np.uint8)
            columns[f"{protocol}_num_tied"] = found.num_tied.astype(np.uint16)
        _write_columns(self._ranks_file(row_id), columns)
        self._read_ranks.cache_clear()

    def _ranks_file(self, row_id: str) -> Path:
        return self.folder / "ranks" / f"{row_id}.parquet"

    def _read_ranks_file(self, row_id: str) -> dict[str, Ranks]:
        columns = _read_columns(self._ranks_file(row_id))
        protocols = [name.removesuffix("_num_greater") for name in columns if name.endswith("_num_greater")]
        return {
            name: Ranks(*(columns[f"{name}_{part}"].astype(np.int64) for part in ("num_greater", "num_tied")))
            for name in protocols
        }


def _capped(rankings: Mapping[str, Ranks]) -> dict[str, Ranks]:
    """Ranks as far as metrics need them: beyond the largest k neither place nor ties matter."""
    return {
        protocol: Ranks(
            np.minimum(found.num_greater, MAX_GREATER),
            np.where(found.num_greater < MAX_GREATER, np.minimum(found.num_tied, MAX_TIED), 0),
        )
        for protocol, found in rankings.items()
    }


def _write_columns(file: Path, columns: Mapping[str, np.ndarray]) -> None:
    """A parquet file that is there as a whole or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    pq.write_table(pa.table(dict(columns)), temporary, compression="zstd", compression_level=19, write_statistics=False)
    temporary.replace(file)


def _read_columns(file: Path) -> dict[str, np.ndarray]:
    import pyarrow.parquet as pq

    table = pq.read_table(file)
    return {name: table.column(name).to_numpy() for name in table.column_names}
