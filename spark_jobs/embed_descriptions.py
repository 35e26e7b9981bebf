"""Encode descriptions and add the new ones to the Milvus collections.

Reads:   item_description, user_description; the releases on disk
Writes:  text_embedding, item_embedding, user_embedding; then one Milvus collection of items and one of users

Parquet is the source of truth and is written first. No text is encoded twice (`vectors/text_embeddings.py`). A row
whose text did not change keeps its `computed_at`. Then the missing texts are added to Milvus, so the next run repairs
what a crash left behind.

This job runs before the quality gate, so it must not change what a release searches: a collection keeps the texts of
every release on disk, and a search passes over all others. A text that no release and no later day has is deleted.
"""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from grasp import partitions, tables
from grasp.manifest import MANIFEST_FILE, read_manifest
from grasp.progress import say
from grasp.settings import Settings
from grasp.tables import Table
from grasp.versions import collection, description_hash
from spark_jobs.job import run
from spark_jobs.models.encoder import load_encoder
from spark_jobs.models.encoder_http import EncoderServer, load_server_encoder
from spark_jobs.storage.lake import Lake
from spark_jobs.vectors.embedding_table import embedding_batches
from spark_jobs.vectors.milvus import READ_BACK_TOLERANCE, WRITE_BATCH, Text, VectorStore, open_vector_store
from spark_jobs.vectors.milvus_collection import rows_of_releases, update_collection
from spark_jobs.vectors.text_embeddings import EncoderFactory, TextEmbeddings

ENTITIES = {
    "item": (tables.ITEM_DESCRIPTION, tables.ITEM_EMBEDDING),
    "user": (tables.USER_DESCRIPTION, tables.USER_EMBEDDING),
}
NUM_PROBED, MIN_RECALL = 10, 0.95  # neighbours per vector read back; the job fails below this recall


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


def update_texts(store: VectorStore, name: str, partition: Path, table: Table, kept: AbstractSet[Text] | None) -> int:
    """Add a day's texts to a collection; delete those that are neither of the day nor in `kept` (None deletes nothing).

    Returns the number of vectors written.
    """
    batches = embedding_batches(partition, table, WRITE_BATCH)
    rows = ((list(map(Text, batch.ids, batch.hashes)), batch.vectors) for batch in batches)
    update = update_collection(store, name, rows, kept)
    if update.num_added:
        require_recall(store, name, partition, table, update.sample)
    return update.num_added


def require_recall(
    store: VectorStore, name: str, partition: Path, table: Table, sample: Mapping[Text, np.ndarray]
) -> None:
    """Raise `ValueError` unless the collection finds what an exact search finds, with a recall of `MIN_RECALL`.

    Similarities are compared, not ids, so ties and texts of other days count as found.
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
            f"{MIN_RECALL:g}: drop the collection and run the job again"
        )


def released_texts(releases: Path, name: str) -> set[Text]:
    """The texts of all releases on disk whose items are searched in the collection `name`.

    Raises `ValueError`, `OSError` or `KeyError` for a release that cannot be read.
    """
    found: set[Text] = set()
    for file in sorted(releases.glob(f"[!.]*/{MANIFEST_FILE}")):
        if read_manifest(file).collections.get("item") == name:
            for part in sorted((file.parent / "items").glob("*.parquet")):
                rows = pq.ParquetFile(part).read(columns=["item_id", "description"])
                hashes = map(description_hash, rows["description"].to_pylist())
                found.update(map(Text, rows["item_id"].to_pylist(), hashes))
    return found


def texts_to_keep(lake: Lake, name: str, table: Table, day: str) -> set[Text] | None:
    """Texts that readers other than this day's jobs need: of the releases, and of the table's last day.

    None if a release cannot be read, because then nothing may be deleted.
    """
    kept = rows_of_releases(name, partial(released_texts, lake.settings.releases, name))
    if kept is None:
        return None
    latest = lake.days(table)[-1]
    if latest > day:
        partition = partitions.require_partition(lake.root, table, lake.versions.embedding, latest)
        for batch in embedding_batches(partition, table, WRITE_BATCH):
            kept.update(map(Text, batch.ids, batch.hashes))
    return kept


def main(lake: Lake, day: str, make_encoder: EncoderFactory | None = None) -> None:
    embed_day(lake, day, make_encoder)


def embed_day(lake: Lake, day: str, make_encoder: EncoderFactory | None = None) -> int:
    """The whole job; returns the number of vectors written to Milvus."""
    num_added = 0
    for entity in ENTITIES:
        write_embeddings(lake, entity, day, make_encoder or encoder_factory(lake.settings))
    version = lake.versions.embedding
    with open_vector_store(lake.settings) as store:
        for entity, (_, table) in ENTITIES.items():
            name = collection(entity, version)
            partition = partitions.require_partition(lake.root, table, version, day)
            num_added += update_texts(store, name, partition, table, texts_to_keep(lake, name, table, day))
    return num_added


if __name__ == "__main__":
    run(main)
