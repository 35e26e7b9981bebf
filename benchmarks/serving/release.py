"""Releases of benchmark data, made without Spark: the day's tables, a ranker, and their publication.

The ranker is the default recipe after a few epochs, because the time of an answer depends on shapes, not on quality.
Titles begin with a mark of their release ("r1|A title"), so that an answer that mixes two releases can be seen.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.data import readers
from benchmarks.data.datasets import BenchmarkData, descriptions
from benchmarks.data.protocols import training_items
from benchmarks.data.vectors import nearest
from benchmarks.serving.load import mark_of
from grasp import partitions, tables
from grasp.days import end_of, start_of
from grasp.manifest import Manifest
from grasp.partitions import Content
from grasp.progress import say
from grasp.settings import Settings
from grasp.tables import MAX_NEIGHBOUR_ITEMS, MAX_SEQUENCE_LENGTH, TAKER_DAYS, Table
from grasp.versions import Versions, digest, feature_service, file_sha256
from serving.releases.publication import choose_model, publish
from training.fitting.recipes import DEFAULT, RECIPES
from training.fitting.training_loop import fit
from training.model.artefact import CHECKSUMS_FILE, RankerMetadata
from training.train import progress_lines, save_model

DAY = "2026-01-05"
FIRST = 1  # number of the release that every measurement finds in force
NUM_EPOCHS = 2
NUM_NEIGHBOURS = 10
ARROW_TYPES: dict[str, pa.DataType] = {
    "string": pa.string(),
    "bigint": pa.int64(),
    "timestamp": pa.timestamp("us", "UTC"),
    "array<float>": pa.list_(pa.float32()),
    "array<string>": pa.list_(pa.string()),
    "array<bigint>": pa.list_(pa.int64()),
    "map<string,string>": pa.map_(pa.string(), pa.string()),
}
SECONDS_BETWEEN = 600  # a user's interactions: benchmark data has an order but no times, so times are made up
DAYS_OF_TAKERS = 365  # made up as well: an item's users took it evenly over a year


@dataclass(frozen=True)
class ReleaseContent:
    """The data, the titles of its items, all texts, and the folder where neighbours are cached."""

    data: BenchmarkData
    item_facts: list[readers.Facts]
    item_texts: list[str]
    user_texts: list[str]
    neighbours: Path


def release_content(folder: Path, data: BenchmarkData, cache: Path, hidden_attributes: Sequence[str]) -> ReleaseContent:
    """Titles and texts of loaded data, from the folder it was loaded from. Raises `ValueError` without texts."""
    source = readers.read(folder)
    if source.items is None:
        raise ValueError(f"{folder} has no texts: a release needs titles and descriptions")
    train = training_items(source.sequences, data.training_set.splits)
    of_items, of_users = descriptions(source, train, hidden_attributes)
    return ReleaseContent(data, source.items, of_items, of_users, cache / "neighbours")


def settings_of(settings: Settings, folder: Path, **changed: Any) -> Settings:
    """Settings of a service below `folder`, whose clock stands an hour after the end of the features' day."""
    own = {
        "home": folder,
        "lake": folder / "lake",
        "releases": folder / "releases",
        "milvus_uri": f"{folder}/milvus.db",
    }
    clock = end_of(DAY) + timedelta(hours=1)
    return settings.model_copy(update=own | {"now": clock, "max_feature_age_hours": 48.0} | changed)


def write_lake(settings: Settings, content: ReleaseContent) -> None:
    """Write the day's catalogue and users unless they are there. Item features are written for each release."""
    if partitions.read_content(_partition(settings, tables.USER_FEATURES)) is None:
        _write(settings, tables.ITEMS, _catalogue(content))
        _write(settings, tables.USER_FEATURES, _users(settings, content))


def train(settings: Settings, content: ReleaseContent, num_epochs: int = NUM_EPOCHS) -> Path:
    """Folder of the ranker, which is trained once for each recipe. Raises `ValueError` when the loss is not finite."""
    versions = Versions(settings)
    config = replace(RECIPES[DEFAULT](), max_epochs=num_epochs)
    target = settings.home / "training" / f"{DEFAULT}-{num_epochs}-{versions.feature}-{digest(asdict(config))[:8]}"
    found = sorted(target.glob(f"*/{CHECKSUMS_FILE}"))
    if found:
        return found[0].parent
    target.mkdir(parents=True, exist_ok=True)
    say(f"training {DEFAULT} for {num_epochs} epochs")
    torch.set_num_threads(settings.num_threads)
    fitted = fit(content.data.training_set, config, 0, progress_lines(config))
    service = feature_service(versions.feature)
    metadata = RankerMetadata("", service, versions.feature, config.name, DAY, DAY, 0, fitted.metrics, {})
    return save_model(fitted, content.data.training_set, target, metadata)


def publish_marked(settings: Settings, content: ReleaseContent, model: Path, number: int) -> Manifest:
    """Put a release in force whose titles carry the mark of this number. Equal numbers give equal releases."""
    _write(settings, tables.ITEM_FEATURES, _items(settings, content, number))
    return publish(settings, DAY, choose_model(settings, model, None))


def _partition(settings: Settings, table: Table) -> Path:
    version = Versions(settings).of(table.versioned_by)
    return partitions.partition_path(settings.lake, table, version, DAY)


def _write(settings: Settings, table: Table, columns: Mapping[str, Sequence[Any] | pa.Array]) -> None:
    """Replace the day of a table. Its content hash is that of its file: pyarrow writes equal rows alike."""
    arrays = {}
    for column in table.columns:
        given = columns[column.name]
        arrays[column.name] = given if isinstance(given, pa.Array) else pa.array(given, ARROW_TYPES[column.type])
    target = _partition(settings, table)
    staged = target.with_name(f".staged-{target.name}")
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    file, rows = staged / "part-0.parquet", pa.table(arrays)
    pq.write_table(rows, file)
    partitions.write_content(staged, Content(rows.num_rows, f"{rows.num_rows}:{file_sha256(file)[:16]}"))
    partitions.put_in_place(staged, target)


def _catalogue(content: ReleaseContent) -> dict[str, Sequence[Any]]:
    return {
        "item_id": content.data.training_set.item_ids,
        "title": [each["title"] for each in content.item_facts],
        "attributes": [list(each["attributes"].items()) for each in content.item_facts],
    }


def _items(settings: Settings, content: ReleaseContent, number: int) -> dict[str, Any]:
    data = content.data.training_set
    return {
        "item_id": data.item_ids,
        "title": [f"{mark_of(number)}|{each['title']}" for each in content.item_facts],
        "popularity": data.popularity.tolist(),
        **{f"takers_{days}d": (data.popularity * days // DAYS_OF_TAKERS).tolist() for days in TAKER_DAYS},
        "first_seen_day": [DAY] * len(data.item_ids),
        "is_tail": data.item_is_tail.astype(int).tolist(),
        **_shared(settings, "item", content.item_texts),
        **_vectors(data.item_ids, data.item_semantic, data.item_neighbour, content.neighbours),
    }


def _users(settings: Settings, content: ReleaseContent) -> dict[str, Any]:
    """The users' features at the end of the day, with the items that are targets in training and test."""
    data = content.data.training_set
    newest = [items[-MAX_SEQUENCE_LENGTH:] for items in data.sequences]
    begins = int(start_of(DAY).timestamp())
    return {
        "user_id": data.user_ids,
        "sequence": [[data.item_ids[item - 1] for item in items] for items in newest],
        "sequence_times": [[begins + SECONDS_BETWEEN * place for place in range(len(items))] for items in newest],
        "earlier_item_ids": [
            sorted({data.item_ids[item - 1] for item in items[:-MAX_SEQUENCE_LENGTH]}) for items in data.sequences
        ],
        "num_interactions": [len(items) for items in data.sequences],
        "gap_days": [0] * len(data.user_ids),
        **_neighbour_items(data.item_ids, len(data.user_ids)),
        "is_tail": data.user_is_tail.astype(int).tolist(),
        **_shared(settings, "user", content.user_texts),
        **_vectors(data.user_ids, data.user_semantic, data.user_neighbour, content.neighbours),
    }


def _neighbour_items(item_ids: Sequence[str], num_users: int) -> dict[str, Any]:
    """As many as a row may hold, equal weights: the time of a lookup depends on their number."""
    num = min(MAX_NEIGHBOUR_ITEMS, len(item_ids))
    of_user = [[item_ids[(user + place) % len(item_ids)] for place in range(num)] for user in range(num_users)]
    return {"neighbour_item_ids": of_user, "neighbour_item_weights": [[1 / num] * num] * num_users}


def _shared(settings: Settings, entity: str, texts: Sequence[str]) -> dict[str, Any]:
    """Columns that both feature tables have."""
    versions, num = Versions(settings), len(texts)
    return {
        "event_timestamp": [end_of(DAY)] * num,
        "computed_at": [end_of(DAY)] * num,
        "description": texts,
        "source": ["facts"] * num,
        "prompt_version": [versions.prompt(entity)] * num,
        "model_revision": [versions.llm] * num,
        "embedding_version": [versions.embedding] * num,
        "feature_version": [versions.feature] * num,
    }


def _vectors(ids: Sequence[str], own: np.ndarray, mean: np.ndarray, cache: Path) -> dict[str, Any]:
    near = nearest(ids, own, cache)[:, :NUM_NEIGHBOURS]
    rows = [of_one[of_one >= 0] for of_one in near]
    return {
        "semantic_embedding": _lists(own),
        "neighbour_embedding": _lists(mean),
        "neighbour_ids": [[ids[row] for row in of_one] for of_one in rows],
        "neighbour_similarities": [(own[of_one] @ own[place]).tolist() for place, of_one in enumerate(rows)],
    }


def _lists(matrix: np.ndarray) -> pa.Array:
    """A matrix as a column of lists of four-byte floats."""
    num, width = matrix.shape
    offsets = np.arange(0, num * width + 1, width, dtype=np.int32)
    return pa.ListArray.from_arrays(offsets, np.ascontiguousarray(matrix, np.float32).reshape(-1))
