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
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from grasp.files import write_json
from grasp.progress import say
from training.evaluate import CUTOFFS, Ranks, metrics

RESULTS_FILE = "results.jsonl"
GROUPS_FILE = "groups.parquet"
ABOUT_FILE = "about.json"
SAMPLED = "sampled"  # a protocol of its own when asked for: the mean over the draws sampled_0, sampled_1, ...
MAX_GREATER = max(CUTOFFS)  # a target with as many above it gains nothing at any k
MAX_TIED = np.iinfo(np.uint16).max
PLACES = 6  # decimals of a stored metric
READABLE = re.compile(r"[A-Za-z0-9_.,=+-]*")  # also the name of a file


Addition = Literal["none", "kernel", "max_cosine", "star"]  # at score level


@dataclass(frozen=True)
class Row:
    """One system of the matrix with one random seed. `section` says which table asked for it first."""

    model: str
    seed: int
    section: str
    backbone: str = ""  # nothing: a control without training
    enhancer: str = "none"
    addition: Addition = "none"
    corruption: float = 0.0  # share of descriptions and neighbours swapped before training
    ablation: str = ""  # the switch that differs from the model as it is, such as k=5

    def __post_init__(self) -> None:
        for name in ("model", "addition", "ablation"):
            value = getattr(self, name)
            if not READABLE.fullmatch(value) or "__" in value:
                raise ValueError(f"{name} {value!r} must do as a part of a file's name, without a double underscore")

    @property
    def row_id(self) -> str:
        """What makes a row the same work as another, whichever section asks for it."""
        parts = [
            self.model,
            f"+{self.addition}" if self.addition != "none" else "",
            self.ablation,
            f"corruption={self.corruption:g}" if self.corruption else "",
            f"seed={self.seed}",
        ]
        return "__".join(part for part in parts if part)


@dataclass(frozen=True)
class Info:
    """What a row cost and where it comes from. Counts are 0 and limits None for what was not trained."""

    wall_seconds: float
    cpu_seconds: float
    num_parameters: int
    num_epochs: int
    best_epoch: int
    validation_ndcg_at_10: float | None  # of the model as trained, whatever is added to the row
    num_trials: int  # settings tried on validation, the one that was kept included
    num_threads: int
    commit: str
    data_checksum: str
    coverage_at_10: float  # share of the catalogue that is in anyone's first ten
    cross_category_share_at_10: float | None  # None where items have no category
    time_limit_seconds: float | None = None
    patience: int | None = None
    num_validation_users: int | None = None
    attention_mass: dict[str, float] | None = None  # mean mass by kind of input, such as clean and corrupted
    chosen: dict[str, Any] | None = None  # what the trials settled on


@dataclass(frozen=True)
class About:
    """What the report's first lines say."""

    data: str  # name of the data set: beauty, fashion, movielens-100k
    num_users: int
    num_items: int
    num_interactions: int
    num_events: int  # test events
    command: str
    machine: dict[str, Any]
    wanted: tuple[str, ...] = ()  # ids of all rows of the matrix


@dataclass(frozen=True)
class FinishedRow:
    row: Row
    info: Info
    num_events: dict[str, int]  # by group
    metrics: dict[str, dict[str, dict[str, float]]]  # by protocol, group and metric

    def value(self, protocol: str, metric: str, group: str = "overall") -> float:
        """Mean of a metric over the events of a group; NaN for a group without events."""
        draws = [found for name, found in self.metrics.items() if _answers(name, protocol)]
        if not draws:
            raise KeyError(f"{self.row.row_id} has no protocol {protocol}, only {', '.join(self.metrics)}")
        return float(np.mean([found.get(group, {}).get(metric, np.nan) for found in draws]))


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
            self._write_ranks(row.row_id, rankings)
            records = _records(row, _stored(rankings), groups, info)
            file.write("".join(f"{json.dumps(record, allow_nan=False)}\n" for record in records).encode())
            file.flush()
            os.fsync(file.fileno())
            self._rows[row.row_id] = _finished(records)
        return self._rows[row.row_id]

    def per_event(self, row_id: str, protocol: str, metric: str) -> np.ndarray:
        """A metric of every test event (E,), such as `ndcg@10`; the protocol `sampled` is the mean over its draws."""
        ranks = self._read_ranks(row_id)
        draws = [metrics(found)[metric] for name, found in ranks.items() if _answers(name, protocol)]
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
        complete, end = _complete_rows(content, self.file)
        if end < len(content):
            say(f"{self.file}: the last row was cut short after {len(content) - end:,} bytes and does not count")
        self._rows = {records[0]["row_id"]: _finished(records) for records in complete}
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
        for protocol, found in _stored(rankings).items():
            columns[f"{protocol}_num_greater"] = found.num_greater
            columns[f"{protocol}_num_tied"] = found.num_tied
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


def _answers(name: str, protocol: str) -> bool:
    return name == protocol or (protocol == SAMPLED and name.startswith(f"{SAMPLED}_"))


def _stored(rankings: Mapping[str, Ranks]) -> dict[str, Ranks]:
    """Ranks in as few bits as the metrics need: beyond the largest k neither place nor ties matter."""
    return {
        protocol: Ranks(
            np.minimum(found.num_greater, MAX_GREATER).astype(np.uint8),
            np.where(found.num_greater < MAX_GREATER, np.minimum(found.num_tied, MAX_TIED), 0).astype(np.uint16),
        )
        for protocol, found in rankings.items()
    }


def _records(
    row: Row, rankings: Mapping[str, Ranks], groups: Mapping[str, np.ndarray], info: Info
) -> list[dict[str, Any]]:
    """The lines of a row: one per protocol and group that has events."""
    wide = {protocol: Ranks(*(_wide(found))) for protocol, found in rankings.items()}
    values = {protocol: metrics(found) for protocol, found in wide.items()}
    pairs = [(protocol, group) for protocol in rankings for group, mask in groups.items() if mask.any()]
    return [
        {"row_id": row.row_id, "line": number, "num_lines": len(pairs)}
        | asdict(row)
        | {"protocol": protocol, "group": group, "num_events": int(groups[group].sum())}
        | {
            "metrics": {
                name: round(float(value[groups[group]].mean()), PLACES) for name, value in values[protocol].items()
            }
        }
        | asdict(info)
        for number, (protocol, group) in enumerate(pairs, start=1)
    ]


def _wide(found: Ranks) -> tuple[np.ndarray, np.ndarray]:
    return found.num_greater.astype(np.int64), found.num_tied.astype(np.int64)


def _complete_rows(content: bytes, file: Path) -> tuple[list[list[dict[str, Any]]], int]:
    """The lines of every row that has all of them, and where the last such row ends.

    Only the end may be incomplete: raises `ValueError` when a line before it is damaged.
    """
    complete: list[list[dict[str, Any]]] = []
    pending: list[dict[str, Any]] = []
    lines = content.splitlines(keepends=True)
    place = end = 0
    for number, line in enumerate(lines, start=1):
        place += len(line)
        if number == len(lines) and not line.endswith(b"\n"):
            break
        pending.append(_parse(line, number, file))
        if pending[-1]["row_id"] != pending[0]["row_id"] or pending[-1]["line"] != len(pending):
            raise ValueError(f"{file} line {number} does not follow the one before it: restore the file")
        if len(pending) == pending[-1]["num_lines"]:
            complete.append(pending)
            pending, end = [], place
    return complete, end


def _parse(line: bytes, number: int, file: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{file} line {number} is damaged ({error}): restore the file") from error
    return record


def _finished(records: Sequence[Mapping[str, Any]]) -> FinishedRow:
    """A row from its lines."""
    first = records[0]
    found: dict[str, dict[str, dict[str, float]]] = {}
    for record in records:
        found.setdefault(record["protocol"], {})[record["group"]] = record["metrics"]
    row = Row(**{field.name: first[field.name] for field in fields(Row)})
    info = Info(**{field.name: first[field.name] for field in fields(Info) if field.name in first})
    return FinishedRow(row, info, {record["group"]: record["num_events"] for record in records}, found)


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
