"""Encode descriptions and update the Milvus collections to the latest day.

Reads:   item_description, user_description
Writes:  text_embedding, item_embedding, user_embedding; then one Milvus collection each, behind an alias

Parquet is the source of truth and is written first. No text is encoded twice (`vectors/text_embeddings.py`). A row
whose text did not change keeps its `computed_at`. Then the differences are written to Milvus, so the next run repairs
what a crash left behind. A collection holds the latest day; writing an earlier day again does not change it.
"""

from collections.abc import Mapping
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from grasp import partitions, tables
from grasp.progress import say
from grasp.settings import Settings
from grasp.tables import Table
from grasp.versions import collection
from spark_jobs.job import run
from spark_jobs.models.encoder import load_encoder
from spark_jobs.models.encoder_http import EncoderServer, load_server_encoder
from spark_jobs.storage.lake import Lake
from spark_jobs.vectors.embedding_table import embedding_batches
from spark_jobs.vectors.milvus import READ_BACK_TOLERANCE, WRITE_BATCH, VectorStore, open_vector_store
from spark_jobs.vectors.text_embeddings import EncoderFactory, TextEmbeddings

ENTITIES = {
    "item": (tables.ITEM_DESCRIPTION, tables.ITEM_EMBEDDING),
    "user": (tables.USER_DESCRIPTION, tables.USER_EMBEDDING),
}
NUM_READ_BACK = 16
NUM_PROBED, MIN_RECALL = 10, 0.95  # neighbours per vector read back; the alias moves only above this recall


def join_vectors(
    key: str, descriptions: DataFrame, earlier: DataFrame, new_vectors: DataFrame, now: object
) -> DataFrame:
    """Join every description with its vector: the earlier one of the same text, or one of `new_vectors`."""
    held = earlier.select("description_hash", "semantic_embedding").dropDuplicates(["description_hash"])
    unchanged = earlier.select(key, "description_hash", F.col("computed_at").alias("computed_before"))
    return (
        descriptions.select(key, "description_hash")
        .join(held.unionByName(new_vectors), "description_hash")
        .join(unchanged, [key, "description_hash"], "left")
        .select(
            key,
            "semantic_embedding",
            "description_hash",
            F.coalesce("computed_before", F.lit(now)).alias("computed_at"),
        )
    )


def write_embeddings(lake: Lake, entity: str, day: str, make_encoder: EncoderFactory) -> None:
    """Write one day of the embedding table; raises `ValueError` if the encoder fails or gives an invalid vector."""
    source, target = ENTITIES[entity]
    (key,) = target.key
    descriptions, earlier = lake.read(source, day), lake.read_latest(target, day)
    num_carried = descriptions.join(earlier, [key, "description_hash"], "left_semi").count()
    # The latest state has nearly all vectors; only the others are looked up in `text_embedding`.
    others = descriptions.join(earlier, "description_hash", "left_anti").select("description_hash", "description")
    vectors, num_encoded = TextEmbeddings(lake).encode(others, day, make_encoder)
    lake.write(target, join_vectors(key, descriptions, earlier, vectors, lake.settings.clock()), day)
    say(f"{target.name} {day}: {num_encoded} texts encoded, {num_carried} rows carried over")


def encoder_factory(settings: Settings) -> EncoderFactory:
    """A function that creates the encoder in a worker. It captures no settings, so no secret is sent to workers."""
    if settings.encoder_url:
        return partial(load_server_encoder, EncoderServer.of(settings))
    return partial(load_encoder, settings.encoder, settings.encoder_batch_size)


def update_collection(store: VectorStore, name: str, partition: Path, table: Table) -> int:
    """Make a collection equal to a partition by writing the differences, then move the alias (the table's name).

    Returns the number of vectors written.
    """
    batches = embedding_batches(partition, table, WRITE_BATCH)
    first = next(batches, None)
    if first is None:
        say(f"Milvus {name}: unchanged, because the day has no vectors")
        return 0
    store.ensure_collection(name, first.vectors.shape[1])
    held = store.hashes(name)
    gone, num_rows, num_upserted = set(held), 0, 0
    sample: dict[str, np.ndarray] = {}
    for batch in chain([first], batches):
        changed = [i for i, each in enumerate(batch.ids) if held.get(each) != batch.hashes[i]]
        store.upsert(name, [batch.ids[i] for i in changed], batch.vectors[changed], [batch.hashes[i] for i in changed])
        gone.difference_update(batch.ids)
        num_rows, num_upserted = num_rows + len(batch.ids), num_upserted + len(changed)
        if len(sample) < NUM_READ_BACK:
            sample |= {batch.ids[i]: batch.vectors[i] for i in (changed[-2:] or [0])}
    store.delete(name, sorted(gone))
    store.require_equal(name, num_rows, sample)
    if not store.has_alias(table.name, name):
        require_recall(store, name, partition, table, sample)
    switched = store.switch_alias(table.name, name)
    say(
        f"Milvus {name}: {num_upserted} vectors upserted, {len(gone)} deleted, {num_rows} held"
        + (f", alias {table.name} moved here" if switched else "")
    )
    return num_upserted


def require_recall(
    store: VectorStore, name: str, partition: Path, table: Table, sample: Mapping[str, np.ndarray]
) -> None:
    """Raise `ValueError` unless the collection finds what an exact search finds, with a recall of `MIN_RECALL`.

    Checked before readers are sent to a new collection. Similarities are compared, not ids, so ties count as found.
    """
    queries = np.stack(list(sample.values()))
    best = np.full((len(queries), NUM_PROBED), -np.inf, np.float32)
    for batch in embedding_batches(partition, table, WRITE_BATCH):
        cosines = np.concatenate([best, queries @ batch.vectors.T], axis=1)
        best = -np.partition(-cosines, NUM_PROBED - 1, axis=1)[:, :NUM_PROBED]
    least = best.min(axis=1)
    found = store.search(name, queries, NUM_PROBED)
    num_wanted = np.isfinite(best).sum()
    num_found = sum(
        similarity >= smallest - READ_BACK_TOLERANCE
        for hits, smallest in zip(found, least, strict=True)
        for _, similarity in hits
    )
    if num_found < MIN_RECALL * num_wanted:
        raise ValueError(
            f"Milvus collection {name} finds {num_found} of {num_wanted} nearest vectors, below a recall of "
            f"{MIN_RECALL:g}: the alias {table.name} was not moved; drop the collection and run the job again"
        )


def main(lake: Lake, day: str, make_encoder: EncoderFactory | None = None) -> None:
    embed_day(lake, day, make_encoder)


def embed_day(lake: Lake, day: str, make_encoder: EncoderFactory | None = None) -> int:
    """The whole job; returns the number of vectors written to Milvus."""
    num_upserted = 0
    for entity in ENTITIES:
        write_embeddings(lake, entity, day, make_encoder or encoder_factory(lake.settings))
    version = lake.versions.embedding
    with open_vector_store(lake.settings) as store:
        for entity, (_, table) in ENTITIES.items():
            latest = lake.days(table)[-1]
            if latest > day:
                say(f"Milvus {collection(entity, version)}: unchanged, because it holds the later day {latest}")
                continue
            partition = partitions.require_partition(lake.root, table, version, day)
            num_upserted += update_collection(store, collection(entity, version), partition, table)
    return num_upserted


if __name__ == "__main__":
    run(main)
