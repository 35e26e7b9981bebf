"""Encode descriptions and keep the Milvus collections equal to the latest day.

Reads:   item_description, user_description
Writes:  item_embedding, user_embedding; then one Milvus collection each, behind an alias

Parquet is the truth and is written first. A text that was encoded on this day or before is not encoded again, and a
row whose text did not change keeps its `computed_at`. Milvus then gets what differs from what it holds, so a run that
died between the two is mended by the next one. A collection follows the latest day only; a back-fill of an earlier
day leaves it alone.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
from pyspark.errors import PythonException
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from grasp import partitions, tables
from grasp.progress import say
from grasp.settings import Settings
from grasp.tables import Table
from grasp.versions import collection
from spark_jobs.embedding_table import embedding_batches
from spark_jobs.encoder import Encoder, load_encoder, require_sound
from spark_jobs.lake import Lake, run
from spark_jobs.openai_encoder import EncoderServer, load_server_encoder
from spark_jobs.vectors import READ_BACK_TOLERANCE, WRITE_BATCH, VectorStore, open_vectors

ENTITIES = {
    "item": (tables.ITEM_DESCRIPTION, tables.ITEM_EMBEDDING),
    "user": (tables.USER_DESCRIPTION, tables.USER_EMBEDDING),
}
TEXTS_PER_PARTITION = 256  # about ten seconds of encoding on one core
NUM_READ_BACK = 16
NUM_PROBED, MIN_RECALL = 10, 0.95  # neighbours of each vector that is read back, before an alias moves
VECTOR_DDL = "description_hash string, semantic_embedding array<float>"

MakeEncoder = Callable[[], Encoder]
Encode = Callable[[Iterator[pd.DataFrame]], Iterator[pd.DataFrame]]


def new_texts(descriptions: DataFrame, earlier: DataFrame) -> DataFrame:
    """Each text that has no vector yet, once: equal texts must get the very same vector, so that they tie."""
    texts = descriptions.select("description_hash", "description").dropDuplicates(["description_hash"])
    return texts.join(earlier, "description_hash", "left_anti")


def encode_texts(batches: Iterator[pd.DataFrame], make_encoder: Callable[[], Encoder]) -> Iterator[pd.DataFrame]:
    """Runs in a Spark worker. The encoder is made with the first batch, so an empty partition loads no model."""
    for batch in batches:
        vectors = make_encoder().encode(batch["description"].tolist())
        require_sound(vectors, [f"the description with hash {each}" for each in batch["description_hash"]])
        yield pd.DataFrame(
            {"description_hash": batch["description_hash"], "semantic_embedding": list(vectors.astype(np.float32))}
        )


def embed(key: str, descriptions: DataFrame, earlier: DataFrame, new_vectors: DataFrame, now: object) -> DataFrame:
    """Give every description its vector: the earlier one of the same text, or a new one."""
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


def write_embeddings(lake: Lake, entity: str, day: str, make_encoder: MakeEncoder) -> None:
    """Fill one day of the embedding table; raises `ValueError` when the encoder fails or gives an unsound vector."""
    source, target = ENTITIES[entity]
    (key,) = target.key
    descriptions, earlier = lake.read(source, day), lake.read_latest(target, day)
    num_carried = descriptions.join(earlier, [key, "description_hash"], "left_semi").count()
    texts = new_texts(descriptions, earlier)
    num_texts = texts.count()
    new_vectors = lake.spark.createDataFrame([], VECTOR_DDL)
    if num_texts:
        encode: Encode = partial(encode_texts, make_encoder=make_encoder)
        num_partitions = -(-num_texts // TEXTS_PER_PARTITION)
        new_vectors = texts.repartition(num_partitions, "description_hash").mapInPandas(encode, VECTOR_DDL)
    with worker_errors():
        lake.write(target, embed(key, descriptions, earlier, new_vectors, lake.settings.clock()), day)
    say(f"{target.name} {day}: {num_texts} texts encoded, {num_carried} rows carried over")


def real_encoder(settings: Settings) -> MakeEncoder:
    """Makes the encoder once per worker process. Captures no settings, so that no secret travels to a worker."""
    if settings.encoder_url:
        return partial(load_server_encoder, EncoderServer.of(settings))
    return partial(load_encoder, settings.encoder, settings.encoder_batch_size)


@contextmanager
def worker_errors() -> Iterator[None]:
    """Raise what a Spark worker raised as `ValueError` with its own last line instead of Spark's pages of context."""
    try:
        yield
    except PythonException as error:
        lines = [line for line in str(error).splitlines() if ": " in line and not line.startswith((" ", "\t"))]
        raise ValueError(lines[-1] if lines else str(error)) from error


def follow(store: VectorStore, name: str, partition: Path, table: Table) -> None:
    """Make a collection equal to a partition, writing only what differs; the alias, the table's name, moves last."""
    batches = embedding_batches(partition, table, WRITE_BATCH)
    first = next(batches, None)
    if first is None:
        say(f"Milvus {name}: the day has no vector, left as it is")
        return
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


def require_recall(
    store: VectorStore, name: str, partition: Path, table: Table, sample: Mapping[str, np.ndarray]
) -> None:
    """Before readers are sent to a new collection: it must find what an exact search of the partition finds.

    Ties count as found: what counts is how near the k found ones are, not who they are. Raises `ValueError` below
    `MIN_RECALL`.
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
            f"{MIN_RECALL:g}: the alias {table.name} stays where it is; drop the collection and run the job again"
        )


def main(lake: Lake, day: str, make_encoder: MakeEncoder | None = None) -> None:
    for entity in ENTITIES:
        write_embeddings(lake, entity, day, make_encoder or real_encoder(lake.settings))
    version = lake.versions.embedding
    with open_vectors(lake.settings) as store:
        for entity, (_, table) in ENTITIES.items():
            latest = lake.days(table)[-1]
            if latest > day:
                say(f"Milvus {collection(entity, version)} follows {latest}, left as it is")
                continue
            partition = partitions.require_partition(lake.root, table, version, day)
            follow(store, collection(entity, version), partition, table)


if __name__ == "__main__":
    run(main)
