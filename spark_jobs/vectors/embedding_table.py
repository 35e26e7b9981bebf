"""One day of `item_embedding` or `user_embedding` as NumPy, read from its parquet files without Spark.

Driver and workers read the same files: every Spark worker can access the lake's folder.
"""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

from grasp import partitions
from grasp.tables import Table


class Embeddings(NamedTuple):
    """Vectors, float32 [num_ids, dimension], with their ids and the hashes of the encoded descriptions."""

    ids: list[str]
    vectors: np.ndarray
    hashes: list[str]


def embedding_batches(partition: Path, table: Table, batch_size: int) -> Iterator[Embeddings]:
    """The rows of a partition in file order, at most `batch_size` at a time."""
    (key,) = table.key
    columns = [key, "semantic_embedding", "description_hash"]
    for batch in ds.dataset(partition, format="parquet").to_batches(columns=columns, batch_size=batch_size):
        if batch.num_rows:
            ids, vectors, hashes = batch.columns
            yield Embeddings(ids.to_pylist(), as_matrix(vectors, table.name), hashes.to_pylist())


def as_matrix(vectors: pa.Array, name: str) -> np.ndarray:
    """A list column as float32 [num_rows, dimension]; raises `ValueError` if the lengths differ."""
    lengths = vectors.value_lengths().unique().to_pylist()
    if len(lengths) > 1:
        raise ValueError(f"{name} holds vectors of different lengths {sorted(map(str, lengths))}; write the day again")
    dimension = lengths[0] if lengths else 0
    return vectors.flatten().to_numpy(zero_copy_only=False).astype(np.float32).reshape(len(vectors), dimension)


def read_embeddings(partition: Path, table: Table) -> Embeddings:
    """The whole partition, ordered by id. The last one read stays cached in the process."""
    content = partitions.read_content(partition)
    return _read(partition, table, content.hash if content else "")


@lru_cache(maxsize=1)
def _read(partition: Path, table: Table, _content_hash: str) -> Embeddings:
    batches = list(embedding_batches(partition, table, batch_size=65_536))
    if not batches:
        return Embeddings([], np.empty((0, 0), np.float32), [])
    ids = [each for batch in batches for each in batch.ids]
    hashes = [each for batch in batches for each in batch.hashes]
    vectors = np.concatenate([batch.vectors for batch in batches])
    order = sorted(range(len(ids)), key=ids.__getitem__)
    return Embeddings([ids[i] for i in order], vectors[order], [hashes[i] for i in order])
