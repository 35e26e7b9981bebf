"""The semantic embeddings of all texts ever encoded, by hash of the text and version of the encoder.

A text is encoded only once, for whatever entity, prompt or day: equal texts must have identical vectors, so that they
tie. Each Spark task encodes a few hundred texts and stores them at once (`storage/shards.py`). A killed worker or
driver loses only the texts being encoded; the next run finds all others.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import cast

import pandas as pd
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from grasp import tables
from spark_jobs.models.encoder import Encoder, require_unit_vectors
from spark_jobs.storage.append_only import AppendOnly
from spark_jobs.storage.lake import Lake, cached
from spark_jobs.storage.shards import Shards, ShardWriter
from spark_jobs.storage.worker_errors import worker_errors

SHARD_TEXTS = 256  # texts per task, about ten seconds of encoding on one core

EncoderFactory = Callable[[], Encoder]


@dataclass(frozen=True)
class EncodeTask:
    """What every task of a run needs. It is sent to the workers, so it holds no secret."""

    shards: Shards
    make_encoder: EncoderFactory

    def __call__(self, batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        from pyspark import TaskContext

        context = cast("TaskContext", TaskContext.get())  # never None in a worker
        with ShardWriter(self.shards, context.partitionId(), SHARD_TEXTS) as shards:
            for batch in batches:
                self.encode(batch[~batch["description_hash"].isin(shards.finished)], shards)
        yield pd.DataFrame({"task": [context.partitionId()]})

    def encode(self, texts: pd.DataFrame, shards: ShardWriter) -> None:
        """Encode shard by shard. The encoder is created for the first shard, so an empty partition loads no model."""
        for start in range(0, len(texts), SHARD_TEXTS):
            part = texts.iloc[start : start + SHARD_TEXTS]
            vectors = self.make_encoder().encode(part["description"].tolist())
            require_unit_vectors(vectors, [f"the description with hash {each}" for each in part["description_hash"]])
            encoded_at = datetime.now(UTC)
            for text_hash, vector in zip(part["description_hash"], vectors, strict=True):
                shards.add({"description_hash": text_hash, "semantic_embedding": vector, "encoded_at": encoded_at})
            shards.flush()


class TextEmbeddings(AppendOnly):
    """The table `text_embedding` of the configured encoder."""

    def __init__(self, lake: Lake) -> None:
        super().__init__(lake, tables.TEXT_EMBEDDING)

    def encode(self, texts: DataFrame, day: str, make_encoder: EncoderFactory) -> tuple[DataFrame, int]:
        """The vectors of `texts` (columns `description_hash, description`), and how many had to be encoded.

        Raises `ValueError` if the encoder fails or gives a vector not of length 1; earlier vectors are kept.
        """
        with self.lock(), cached(self._located(texts)) as located:
            num_new = located.where(F.col("day").isNull()).count()
            days = {row.day for row in located.select("day").distinct().collect() if row.day}
            if num_new:
                new = located.where(F.col("day").isNull()).select("description_hash", "description")
                num_tasks = math.ceil(num_new / SHARD_TEXTS)
                with self.growing(day) as shards, worker_errors(ValueError):
                    task = EncodeTask(shards, make_encoder)
                    new.repartition(num_tasks, "description_hash").mapInPandas(task, "task int").collect()
                days.add(day)
        vectors = self.of_days(sorted(days)).select("description_hash", "semantic_embedding")
        wanted = texts.select("description_hash")
        return vectors.join(wanted, "description_hash", "left_semi").dropDuplicates(["description_hash"]), num_new

    def _located(self, texts: DataFrame) -> DataFrame:
        """Each text once, with a day on which it was encoded, or null."""
        days = self.rows().groupBy("description_hash").agg(F.min("day").alias("day"))
        return texts.dropDuplicates(["description_hash"]).join(days, "description_hash", "left")
