"""What a row of a report is, and the lines of `results.jsonl` that it is kept as: one per protocol and group."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from training.evaluation.evaluate import Ranks, metrics

SAMPLED = "sampled"  # a protocol of its own when asked for: the mean over the draws sampled_0, sampled_1, ...
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

    @property
    def is_cut_short(self) -> bool:
        """Ended by a limit of time or epochs: the best epoch may still have been to come."""
        return self.patience is not None and self.num_epochs - self.best_epoch < self.patience


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
        draws = [found for name, found in self.metrics.items() if answers(name, protocol)]
        if not draws:
            raise KeyError(f"{self.row.row_id} has no protocol {protocol}, only {', '.join(self.metrics)}")
        return float(np.mean([found.get(group, {}).get(metric, np.nan) for found in draws]))


def answers(name: str, protocol: str) -> bool:
    return name == protocol or (protocol == SAMPLED and name.startswith(f"{SAMPLED}_"))


def to_records(
    row: Row, rankings: Mapping[str, Ranks], groups: Mapping[str, np.ndarray], info: Info
) -> list[dict[str, Any]]:
    """The lines of a row: one per protocol and group that has events."""
    values = {protocol: metrics(found) for protocol, found in rankings.items()}
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


def complete_rows(content: bytes, file: Path) -> tuple[list[list[dict[str, Any]]], int]:
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


def from_records(records: Sequence[Mapping[str, Any]]) -> FinishedRow:
    """A row from its lines."""
    first = records[0]
    found: dict[str, dict[str, dict[str, float]]] = {}
    for record in records:
        found.setdefault(record["protocol"], {})[record["group"]] = record["metrics"]
    row = Row(**{field.name: first[field.name] for field in fields(Row)})
    info = Info(**{field.name: first[field.name] for field in fields(Info) if field.name in first})
    return FinishedRow(row, info, {record["group"]: record["num_events"] for record in records}, found)
