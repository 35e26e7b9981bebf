"""The voting moments in Milvus: one row a moment, which proposes whose moments are near.

The vector of a moment is about what makes moments similar (`grasp.moments.dense_vectors`). Milvus therefore only
proposes; the similarity of what it proposes is computed exactly. The id of a row is the day of the moment, and its hash
names the moment, so no id of a user or an item is in the collection or in a filter.

A reader passes over rows that are not its own. A row is deleted when neither this day's window, nor that of the table's
last day, nor a release on disk has the moment.

Shape suffixes:  Q asking moments  M voting moments  K places of hashed ids  P proposed moments
"""

# ruff: noqa: N803 - the shape suffixes above

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from grasp import partitions, tables
from grasp.manifest import MANIFEST_FILE, read_manifest
from grasp.moments import NUM_NEAREST, Contexts, VoteRule, dense_vectors, hashed_ids, moment_hash, nearest, similarity
from grasp.progress import say
from grasp.versions import collection, description_hash
from spark_jobs.storage.lake import Lake
from spark_jobs.vectors.embedding_table import read_embeddings
from spark_jobs.vectors.milvus import WRITE_BATCH, Text, VectorStore, propose
from spark_jobs.vectors.milvus_collection import Rows, rows_of_releases, update_collection
from spark_jobs.vectors.moment_table import MomentFiles, VotingMoments, files_of_window, load_moments

NUM_PROPOSED = 2 * NUM_NEAREST  # for each asking moment
NUM_PROBED, MIN_RECALL = 32, 0.9  # asking moments compared with all; the job fails below this recall
SEARCHED_AT_ONCE = 1_024  # asking moments


def moment_rows(rows: pa.Table, hash_of: Mapping[str, str], text_share: float) -> list[Text]:
    """The name of each moment in the collection; `hash_of` is the description hash of each item."""
    microseconds = rows["event_time"].cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_pylist()
    days = rows["event_time"].cast(pa.timestamp("us", "UTC")).cast(pa.date32()).to_pylist()
    columns = (rows["user_id"].to_pylist(), rows["row_number"].to_pylist(), rows["history_item_ids"].to_pylist())
    return [
        Text(
            day.isoformat(),
            moment_hash(user, at, number, [(item, hash_of.get(item, "")) for item in history], text_share),
        )
        for day, at, user, number, history in zip(days, microseconds, *columns, strict=True)
    ]


class MomentCollection:
    """The collection of one day's voting moments."""

    def __init__(self, store: VectorStore, lake: Lake, files: MomentFiles) -> None:
        self.name = collection("moments", lake.versions.embedding)
        self._store, self._lake, self._rule = store, lake, VoteRule.of(lake.settings)
        self._voting = load_moments(files)
        self._hashed_NK = hashed_ids(self._voting.item_ids.to_pylist())
        self._texts = texts_of(files, self._rule.text_share)
        self._place = {text: place for place, text in enumerate(self._texts)}

    def update(self, day: str) -> None:
        """Add the moments that are missing, and delete those that nobody needs any more."""
        # A vector that was written before is not checked: the mean of all items has moved since. Recall shows how far.
        update_collection(self._store, self.name, self._rows(), self._rows_to_keep(day), checks_old=False)

    def _rows(self) -> Iterator[Rows]:
        contexts = self._voting.moments.contexts
        for start in range(0, len(self._texts), WRITE_BATCH):
            block = slice(start, start + WRITE_BATCH)
            vectors, is_known = self._dense(contexts.rows(block))
            yield [text for text, known in zip(self._texts[block], is_known, strict=True) if known], vectors[is_known]

    def _dense(self, of: Contexts) -> tuple[np.ndarray, np.ndarray]:
        """The vector of each moment, and whether it has one: a moment without a known item has zeros."""
        vectors = dense_vectors(of, self._hashed_NK, self._rule.text_share)
        return vectors, np.asarray(vectors.any(axis=1))

    def _rows_to_keep(self, day: str) -> set[Text] | None:
        """Moments that others than this day's job need; None if a release cannot be read."""
        share = self._rule.text_share
        kept = rows_of_releases(self.name, partial(released_moments, self._lake.settings.releases, self.name))
        latest = self._lake.days(tables.MOMENTS)[-1]
        has_vectors = partitions.read_content(self._lake.partition(tables.ITEM_EMBEDDING, latest))
        if kept is None or latest <= day or not has_vectors:
            return kept
        return kept | set(texts_of(files_of_window(self._lake, latest), share))

    def votes(self, asking: pa.Table) -> Iterator[pa.RecordBatch]:
        """Rows of `user_neighbour_items`. Raises `ValueError` if Milvus proposes too few of the nearest moments."""
        self.require_recall(asking)
        for start in range(0, len(asking), SEARCHED_AT_ONCE):
            block = asking.slice(start, SEARCHED_AT_ONCE)
            proposed_QP = self.propose(self._voting.contexts(block["history_item_ids"]))
            yield self._voting.votes(block, self._rule, proposed_QP)

    def propose(self, asking: Contexts) -> np.ndarray:
        """Places of moments that are near each asking one, int64 [num_asking, NUM_PROPOSED]; -1 for none."""
        vectors, is_known = self._dense(asking)
        proposed_QP = np.full((len(asking), NUM_PROPOSED), -1, np.int64)
        proposed_QP[is_known] = propose(self._store, self.name, vectors[is_known], NUM_PROPOSED, self._place.get)
        return proposed_QP

    def require_recall(self, asking: pa.Table) -> None:
        """Raise `ValueError` unless Milvus proposes enough of the nearest moments, measured on some of the users."""
        probed = np.unique(np.linspace(0, len(asking) - 1, min(NUM_PROBED, len(asking))).astype(np.int64))
        contexts = self._voting.contexts(asking["history_item_ids"].take(pa.array(probed)))
        contexts = contexts.rows(np.flatnonzero(contexts.is_known_Q))
        num_found, num_wanted = count_found(self._voting, contexts, self.propose(contexts), self._rule.text_share)
        if num_found < MIN_RECALL * num_wanted:
            raise ValueError(
                f"Milvus collection {self.name} proposes {num_found:,} of {num_wanted:,} nearest moments, below a "
                f"recall of {MIN_RECALL:g}: set GRASP_MOMENT_EXACT_UP_TO to {len(self._texts)} to compare all"
            )
        recall = num_found / max(num_wanted, 1)
        say(f"Milvus {self.name}: recall {recall:.3f} of the nearest moments, measured on {len(contexts)} users")


def count_found(voting: VotingMoments, asking: Contexts, proposed_QP: np.ndarray, text_share: float) -> tuple[int, int]:
    """How many of the nearest moments were proposed, and how many there are.

    Similarities are compared, not places, so an equally near moment counts as found. A moment without a known item does
    not count: it is near to none.
    """
    num_found, num_wanted, is_known_M = 0, 0, voting.moments.contexts.is_known_Q
    for row, proposed_P in enumerate(proposed_QP):
        similarity_M = similarity(asking.rows(slice(row, row + 1)), voting.moments.contexts, text_share)[0]
        near = nearest(similarity_M)
        near = near[is_known_M[near]]
        least = similarity_M[near].min(initial=np.inf)
        num_found += min(len(near), int((similarity_M[proposed_P[proposed_P >= 0]] >= least).sum()))
        num_wanted += len(near)
    return num_found, num_wanted


def texts_of(files: MomentFiles, text_share: float) -> list[Text]:
    embeddings = read_embeddings(files.embedding, tables.ITEM_EMBEDDING)
    return moment_rows(files.read(), dict(zip(embeddings.ids, embeddings.hashes, strict=True)), text_share)


def released_moments(releases: Path, name: str) -> set[Text]:
    """The moments of all releases on disk whose vectors are in the collection `name`.

    Raises `ValueError`, `OSError` or `KeyError` for a release that cannot be read.
    """
    found: set[Text] = set()
    for file in sorted(releases.glob(f"[!.]*/{MANIFEST_FILE}")):
        manifest = read_manifest(file)
        if manifest.vote_rule is None or collection("moments", manifest.embedding_version) != name:
            continue
        hash_of: dict[str, str] = {}
        for part in sorted((file.parent / "items").glob("*.parquet")):
            items = pq.ParquetFile(part).read(columns=["item_id", "description"])
            hashes = map(description_hash, items["description"].to_pylist())
            hash_of |= dict(zip(items["item_id"].to_pylist(), hashes, strict=True))
        for part in sorted((file.parent / "moments").glob("*.parquet")):
            rows = pq.ParquetFile(part).read(columns=list(tables.MOMENTS.column_names))
            found.update(moment_rows(rows, hash_of, manifest.vote_rule["text_share"]))
    return found
