"""A made-up day of the feature tables and the catalogue, as wide as real ones, for what measures the online store."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from grasp import partitions, tables
from grasp.days import end_of, start_of
from grasp.partitions import Content
from grasp.settings import Settings
from grasp.tables import Table
from grasp.versions import Versions

WIDTH = 384  # of all-MiniLM-L6-v2
SEQUENCE_LENGTH = 50
NUM_NEIGHBOURS = 10
ROW_GROUP = 10_000
TEXT = "Watches drama, comedy and crime of the eighties and nineties, and rates what has a slow and quiet end highest."
ARROW_TYPES: dict[str, pa.DataType] = {
    "string": pa.string(),
    "bigint": pa.int64(),
    "timestamp": pa.timestamp("us", "UTC"),
    "array<float>": pa.list_(pa.float32()),
    "array<string>": pa.list_(pa.string()),
    "array<bigint>": pa.list_(pa.int64()),
    "map<string,string>": pa.map_(pa.string(), pa.string()),
}


def write_day(settings: Settings, day: str, num_users: int, num_items: int) -> None:
    """Users u0, u1, ... and items i0, i1, ...; other vectors and texts each day."""
    of_items = ((table, "item", num_items) for table in (tables.ITEM_FEATURES, tables.ITEMS))
    for table, entity, num in ((tables.USER_FEATURES, "user", num_users), *of_items):
        version = Versions(settings).of(table.versioned_by)
        folder = partitions.partition_path(settings.lake, table, version, day)
        folder.mkdir(parents=True)
        pq.write_table(_rows(settings, table, entity, day, num), folder / "part-0.parquet", row_group_size=ROW_GROUP)
        partitions.write_content(folder, Content(num, f"{num}:{day}"))


def _rows(settings: Settings, table: Table, entity: str, day: str, num: int) -> pa.Table:
    versions = Versions(settings)
    noon = int(start_of(day).timestamp()) + 12 * 3600
    each_row: dict[str, Any] = {
        "event_timestamp": end_of(day),
        "computed_at": end_of(day),
        "sequence": [f"i{number}" for number in range(SEQUENCE_LENGTH)],
        "sequence_times": [noon + number for number in range(SEQUENCE_LENGTH)],
        "num_interactions": SEQUENCE_LENGTH,
        "popularity": SEQUENCE_LENGTH,
        "is_tail": 0,
        "title": "A made-up title",
        "attributes": [("kind", "Made up")],
        "neighbour_ids": [f"{entity[0]}{number}" for number in range(NUM_NEIGHBOURS)],
        "neighbour_similarities": [0.9 - 0.01 * number for number in range(NUM_NEIGHBOURS)],
        "description": f"{TEXT} {day}",
        "source": "llm",
        "prompt_version": versions.prompt(entity),
        "model_revision": "made-up",
        "embedding_version": versions.embedding,
        "feature_version": versions.feature,
    }
    random = np.random.default_rng(int(noon))
    columns = {}
    for column in table.columns:
        kind = ARROW_TYPES[column.type]
        if column.name.endswith("_embedding"):
            vectors = random.normal(size=(num, WIDTH)).astype(np.float32)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            offsets = np.arange(0, num * WIDTH + 1, WIDTH, dtype=np.int32)
            columns[column.name] = pa.ListArray.from_arrays(offsets, vectors.reshape(-1)).cast(kind)
        elif column.name == table.key[0]:
            columns[column.name] = pa.array([f"{entity[0]}{number}" for number in range(num)])
        else:
            columns[column.name] = pa.array([each_row[column.name]] * num, kind)
    return pa.table(columns)
