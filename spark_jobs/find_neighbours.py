"""Find every item's and user's nearest neighbours by semantic embedding.

Reads:   item_embedding, user_embedding
Writes:  item_neighbours, user_neighbours

The neighbours of a day are searched only among the vectors of that day, so nothing from later days can appear. The
exact backend searches block by block in Spark workers. The Milvus backend searches from the driver, because
Milvus-Lite allows one process, and only if the collection holds all of the day's vectors. It passes over others.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame

from grasp import partitions, tables
from grasp.progress import say
from grasp.tables import Table
from grasp.versions import collection
from spark_jobs.job import run
from spark_jobs.storage.lake import Lake
from spark_jobs.vectors.embedding_table import read_embeddings
from spark_jobs.vectors.milvus import Text, VectorStore, open_vector_store
from spark_jobs.vectors.nearest_neighbours import MilvusBackend, VectorSet, load_exact_backend

ENTITIES = {
    "item": (tables.ITEM_EMBEDDING, tables.ITEM_NEIGHBOURS),
    "user": (tables.USER_EMBEDDING, tables.USER_NEIGHBOURS),
}
QUERIES_PER_BLOCK = 1_000

Search = Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]


def neighbour_rows(
    key: str, ids: list[str], neighbour_ids: list[list[str]], similarities: list[list[float]]
) -> pa.RecordBatch:
    """One row per neighbour: entity, neighbour, similarity, and rank from 1."""
    counts = [len(each) for each in neighbour_ids]
    return pa.RecordBatch.from_pydict(
        {
            key: [entity for entity, count in zip(ids, counts, strict=True) for _ in range(count)],
            "neighbour_id": [each for row in neighbour_ids for each in row],
            "similarity": pa.array([each for row in similarities for each in row], pa.float32()),
            "rank": pa.array([rank for count in counts for rank in range(1, count + 1)], pa.int32()),
        },
        schema=pa.schema(
            [(key, pa.string()), ("neighbour_id", pa.string()), ("similarity", pa.float32()), ("rank", pa.int32())]
        ),
    )


def search_blocks(
    blocks: Iterator[pa.RecordBatch], partition: Path, table: Table, content_hash: str, k: int
) -> Iterator[pa.RecordBatch]:
    """Runs in a Spark worker. Each input row is the index of the first query of a block."""
    for batch in blocks:
        for start in batch.column(0).to_pylist():
            embeddings, backend = read_embeddings(partition, table), load_exact_backend(partition, table, content_hash)
            block = slice(start, start + QUERIES_PER_BLOCK)
            ids = embeddings.ids[block]
            yield neighbour_rows(table.key[0], ids, *backend.search(ids, embeddings.vectors[block], k))


def find_exactly(lake: Lake, source: Table, target: Table, partition: Path) -> DataFrame:
    content = partitions.read_content(partition)
    num_rows, content_hash = (content.num_rows, content.hash) if content else (0, "")
    num_blocks = max(1, -(-num_rows // QUERIES_PER_BLOCK))
    search: Search = partial(
        search_blocks, partition=partition, table=source, content_hash=content_hash, k=lake.settings.num_neighbours
    )
    blocks = lake.spark.range(0, num_rows, QUERIES_PER_BLOCK, numPartitions=num_blocks)
    return blocks.mapInArrow(search, target.ddl)


def find_in_milvus(lake: Lake, store: VectorStore, entity: str, day: str, partition: Path) -> DataFrame:
    """Search the collection; raises `ValueError` unless it holds all of this day's vectors."""
    source, target = ENTITIES[entity]
    name = collection(entity, lake.versions.embedding)
    ids, vectors, hashes = read_embeddings(partition, source)
    hash_of = dict(zip(ids, hashes, strict=True))
    held = store.texts(name) if store.has_collection(name) else set()
    if not held.issuperset(Text(*each) for each in hash_of.items()):
        raise ValueError(
            f"Milvus collection {name} does not hold all of {source.name} of {day}: run embed_descriptions again, "
            "or set GRASP_NEIGHBOUR_BACKEND=exact"
        )
    if not ids:
        return lake.spark.createDataFrame([], target.ddl)
    backend = MilvusBackend(store, name, VectorSet(ids, vectors), hash_of)
    found = backend.search(ids, np.asarray(vectors), lake.settings.num_neighbours)
    return lake.spark.createDataFrame(pa.Table.from_batches([neighbour_rows(source.key[0], ids, *found)]))


def main(lake: Lake, day: str) -> None:
    version = lake.versions.embedding
    paths = {
        entity: partitions.require_partition(lake.root, source, version, day)
        for entity, (source, _) in ENTITIES.items()
    }
    # The vectors of an earlier day may have been deleted from its collection.
    is_latest = all(lake.days(source)[-1] == day for source, _ in ENTITIES.values())
    if lake.settings.neighbour_backend == "exact" or not is_latest:
        found = {entity: find_exactly(lake, *ENTITIES[entity], path) for entity, path in paths.items()}
    else:
        with open_vector_store(lake.settings) as store:
            found = {entity: find_in_milvus(lake, store, entity, day, path) for entity, path in paths.items()}
    for entity, rows in found.items():
        _, target = ENTITIES[entity]
        changed = lake.write(target, rows, day)
        say(f"{target.name} {day}: {lake.settings.num_neighbours} neighbours each{'' if changed else ', unchanged'}")


if __name__ == "__main__":
    run(main)
