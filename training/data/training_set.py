"""The training set as training, evaluation and benchmarks read it: vectors, sequences and splits by row number.

`training/build_training_set.py` builds it from the lake.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet

from grasp.files import write_json
from grasp.settings import Settings
from training.data.event_log import EventLog, event_log

INPUTS_FILE = "inputs.json"
KNOWN_SPLITS = {
    "validation": ("train",),
    "test": ("train", "validation"),
}  # evaluated split -> splits known before it

TIMESTAMP = pa.timestamp("us", "UTC")
VECTOR_COLUMNS = {"semantic_embedding": pa.list_(pa.float32()), "neighbour_embedding": pa.list_(pa.float32())}
_AS_OF = {"is_tail": pa.int64(), **VECTOR_COLUMNS, "event_timestamp": TIMESTAMP}
SCHEMAS = {
    "users": pa.schema({"user_id": pa.string(), "num_interactions": pa.int64(), **_AS_OF}),
    "items": pa.schema({"item_id": pa.string(), "popularity": pa.int64(), **_AS_OF}),
    "events": pa.schema(
        {
            "user_id": pa.string(),
            "item_id": pa.string(),
            "event_time": TIMESTAMP,
            "row_number": pa.int64(),
            "split": pa.string(),
        }
    ),
    "log": pa.schema({"user_id": pa.string(), "item_id": pa.string(), "event_time": TIMESTAMP}),
}


def training_set_folder(settings: Settings, day: str) -> Path:
    return settings.home / "training" / day / "training_set"


def write_training_set(target: Path, frames: dict[str, pd.DataFrame], inputs: str, cutoff: str) -> None:
    """Write the tables and, last, the fingerprint of their inputs."""
    target.mkdir(parents=True, exist_ok=True)
    (target / INPUTS_FILE).unlink(missing_ok=True)
    for name, schema in SCHEMAS.items():
        rows = pa.Table.from_pandas(frames[name][schema.names], schema, preserve_index=False)
        pyarrow.parquet.write_table(rows.replace_schema_metadata(None), target / f"{name}.parquet")
    write_json(target / INPUTS_FILE, {"fingerprint": inputs, "cutoff": cutoff})


@dataclass(frozen=True)
class TrainingSet:
    """A training set in memory. Item indices start at 1; 0 is padding or an item unknown at the cutoff."""

    item_ids: list[str]
    item_semantic: np.ndarray  # (N, S), row i holds item i + 1
    item_neighbour: np.ndarray
    popularity: np.ndarray  # (N,) number of distinct users before the cutoff
    item_is_tail: np.ndarray  # (N,)
    user_ids: list[str]
    user_semantic: np.ndarray  # (U, S)
    user_neighbour: np.ndarray
    user_is_tail: np.ndarray  # (U,)
    sequences: list[np.ndarray]  # items of each user, oldest first, all splits
    splits: list[np.ndarray]  # split of each item in `sequences`
    days: list[np.ndarray]  # UTC day of each item in `sequences`, in days since 1970-01-01; 0 where no time is known
    history_excludes_day: bool = False  # an event's history ends before its day, whose events are all asked for at once
    # By evaluated split: all that the daily refresh comes to know, users in the rows of `user_ids`, newer ones after
    # them. Of a split without a log only the training events are known: nobody's held-out target is read.
    logs: Mapping[str, EventLog] = field(default_factory=dict)

    def log(self, split: str) -> EventLog:
        """What may be known when events of `split` are asked for, each as of the day before."""
        return self.logs.get(split) or self._training_log

    @cached_property
    def _training_log(self) -> EventLog:
        is_training = [splits == "train" for splits in self.splits]
        return event_log(
            *(
                [each[kept] for each, kept in zip(rows, is_training, strict=True)]
                for rows in (self.sequences, self.days)
            )
        )


def known_sequences(training_set: TrainingSet, split: str) -> list[np.ndarray]:
    """Each user's items (from 1) that are known before `split`, which is `validation` or `test`."""
    known = KNOWN_SPLITS[split]
    return [
        sequence[np.isin(splits, known) & (sequence > 0)]
        for sequence, splits in zip(training_set.sequences, training_set.splits, strict=True)
    ]


def training_sequences(training_set: TrainingSet) -> list[np.ndarray]:
    """Each user's items of the training split, oldest first: what is known before validation."""
    return known_sequences(training_set, "validation")


def training_steps(training_set: TrainingSet) -> list[np.ndarray]:
    """Each user's training items with their days, (T, 2), oldest first."""
    known = [
        np.isin(splits, KNOWN_SPLITS["validation"]) & (items > 0)
        for items, splits in zip(training_set.sequences, training_set.splits, strict=True)
    ]
    rows = zip(training_set.sequences, training_set.days, known, strict=True)
    return [np.stack([items, days], axis=1)[kept] for items, days, kept in rows]


def require_training_set(target: Path, cutoff: str) -> None:
    """Raises `FileNotFoundError` if there is no training set and `ValueError` if it has another cutoff."""
    if not (target / INPUTS_FILE).is_file():
        raise FileNotFoundError(f"no training set in {target}: run python -m training.build_training_set")
    built_for = json.loads((target / INPUTS_FILE).read_text())["cutoff"]
    if built_for != cutoff:
        raise ValueError(
            f"{target} was built for the cutoff {built_for}, not {cutoff}: run python -m training.build_training_set"
        )


def load_training_set(target: Path) -> TrainingSet:
    """Read a training set from its folder."""
    return to_training_set(
        {name: pyarrow.parquet.read_table(target / f"{name}.parquet").to_pandas() for name in SCHEMAS}
    )


def to_training_set(frames: dict[str, pd.DataFrame]) -> TrainingSet:
    """Number users and items, stack their vectors, and group the events into one sequence per user."""
    users, items, events = frames["users"], frames["items"], frames["events"]
    item_index = pd.Index(items["item_id"]).get_indexer(events["item_id"]) + 1
    user_index = pd.Index(users["user_id"]).get_indexer(events["user_id"])
    ends = np.cumsum(np.bincount(user_index, minlength=len(users)))[:-1]
    # Events are written in order of time; a stable sort keeps that order within each user.
    order = np.argsort(user_index, kind="stable")
    return TrainingSet(
        items["item_id"].tolist(),
        _stack(items, "semantic_embedding"),
        _stack(items, "neighbour_embedding"),
        items["popularity"].to_numpy(),
        items["is_tail"].to_numpy(dtype=bool),
        users["user_id"].tolist(),
        _stack(users, "semantic_embedding"),
        _stack(users, "neighbour_embedding"),
        users["is_tail"].to_numpy(dtype=bool),
        np.split(item_index[order], ends),
        np.split(events["split"].to_numpy()[order], ends),
        np.split(_days(events["event_time"])[order], ends),
        logs={"test": _log(frames)},
    )


def _log(frames: dict[str, pd.DataFrame]) -> EventLog:
    """The log of all interactions; users without features are numbered after those with."""
    log, known = frames["log"], pd.Index(frames["users"]["user_id"])
    users = known.append(pd.Index(log["user_id"].unique()).difference(known))
    user_index, item_index = (
        index.get_indexer(log[f"{name}_id"])
        for name, index in (("user", users), ("item", pd.Index(frames["items"]["item_id"])))
    )
    order, ends = np.argsort(user_index, kind="stable"), np.cumsum(np.bincount(user_index, minlength=len(users)))[:-1]
    return event_log(*(np.split(each[order], ends) for each in (item_index + 1, _days(log["event_time"]))))


def _days(event_time: pd.Series) -> np.ndarray:
    days: np.ndarray = ((event_time - pd.Timestamp(0, tz="UTC")) // pd.Timedelta(days=1)).to_numpy(np.int64)
    return days


def pad_left(sequences: Sequence[np.ndarray]) -> np.ndarray:
    """Sequences as rows (B, T), zeros on the left; further dimensions stay as they are."""
    padded = np.zeros((len(sequences), max(len(each) for each in sequences), *sequences[0].shape[1:]), np.int64)
    for row, each in zip(padded, sequences, strict=True):
        row[len(row) - len(each) :] = each
    return padded


def _stack(frame: pd.DataFrame, column: str) -> np.ndarray:
    vectors: np.ndarray = np.stack([np.asarray(vector, np.float32) for vector in frame[column]])
    if not np.isfinite(vectors).all():
        raise ValueError(f"{column} of {frame.columns[0].removesuffix('_id')}s holds values that are not finite")
    return vectors
