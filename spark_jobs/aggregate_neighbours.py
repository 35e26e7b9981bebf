"""Summarise each item's and user's neighbours as one vector: the mean of their semantic embeddings.

Reads:   item_neighbours, user_neighbours, item_embedding, user_embedding
Writes:  item_neighbour_features, user_neighbour_features

Mean pooling follows the paper (arXiv 2511.20177). Every worker reads the day's vectors once from parquet and gathers
them with NumPy in Arrow batches. Exploding the vectors into rows would create billions of rows.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from grasp import partitions, tables
from grasp.progress import say
from spark_jobs.job import run
from spark_jobs.storage.lake import Lake
from spark_jobs.vectors.embedding_table import Embeddings, read_embeddings

ENTITIES = {
    "item": (tables.ITEM_EMBEDDING, tables.ITEM_NEIGHBOURS, tables.ITEM_NEIGHBOUR_FEATURES),
    "user": (tables.USER_EMBEDDING, tables.USER_NEIGHBOURS, tables.USER_NEIGHBOUR_FEATURES),
}

Pool = Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]


def mean_pool(neighbour_ids: Sequence[Sequence[str]], position: Mapping[str, int], vectors: np.ndarray) -> np.ndarray:
    """Mean of each row's neighbours, float32 [num_rows, dimension]; zeros for a row without neighbours.

    `position` maps an id to its row in `vectors`. Raises `ValueError` naming a neighbour without a vector.
    """
    pooled = np.zeros((len(neighbour_ids), vectors.shape[1]), dtype=np.float32)
    for row, ids in enumerate(neighbour_ids):
        missing = [each for each in ids if each not in position]
        if missing:
            raise ValueError(
                f"neighbour {missing[0]} has no semantic embedding: run find_neighbours for this day again"
            )
        if ids:
            pooled[row] = vectors[[position[each] for each in ids]].mean(axis=0, dtype=np.float64)
    return pooled


def pool_batches(
    batches: Iterator[pa.RecordBatch], key: str, load: Callable[[], Embeddings]
) -> Iterator[pa.RecordBatch]:
    """Runs in a Spark worker: adds the pooled vector to each row of entity, neighbour ids and similarities."""
    embeddings = load()
    position = {each: i for i, each in enumerate(embeddings.ids)}
    for batch in batches:
        pooled = mean_pool(batch.column("neighbour_ids").to_pylist(), position, embeddings.vectors)
        offsets = pa.array(np.arange(len(pooled) + 1) * pooled.shape[1], pa.int32())
        columns = {
            key: batch.column(key),
            "neighbour_embedding": pa.ListArray.from_arrays(offsets, pa.array(pooled.ravel())),
            "neighbour_ids": batch.column("neighbour_ids"),
            "neighbour_similarities": batch.column("neighbour_similarities"),
        }
        yield pa.RecordBatch.from_pydict(columns)


def aggregate(
    key: str, neighbours: DataFrame, entities: DataFrame, load: Callable[[], Embeddings], ddl: str
) -> DataFrame:
    """One row per entity: the mean vector of its neighbours, their ids and similarities, nearest first.

    `load` returns the neighbours' vectors; it is called in a worker.
    """
    nearest_first = F.array_sort(F.collect_list(F.struct("rank", "neighbour_id", "similarity")))
    lists = (
        entities.select(key)
        .join(neighbours.groupBy(key).agg(nearest_first.alias("nearest")), key, "left")
        .select(
            key,
            F.coalesce("nearest.neighbour_id", F.array().cast("array<string>")).alias("neighbour_ids"),
            F.coalesce("nearest.similarity", F.array().cast("array<float>")).alias("neighbour_similarities"),
        )
    )
    pool: Pool = partial(pool_batches, key=key, load=load)
    return lists.mapInArrow(pool, ddl)


def main(lake: Lake, day: str) -> None:
    for source, neighbours, target in ENTITIES.values():
        (key,) = target.key
        partition = partitions.require_partition(lake.root, source, lake.versions.embedding, day)
        load = partial(read_embeddings, partition, source)
        rows = aggregate(key, lake.read(neighbours, day), lake.read(source, day), load, target.ddl)
        changed = lake.write(target, rows, day)
        say(f"{target.name} {day}: neighbours averaged{'' if changed else ', unchanged'}")


if __name__ == "__main__":
    run(main)
