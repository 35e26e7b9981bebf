"""Nearest neighbours by cosine, through a port with an exact and a Milvus backend that give the same answer.

The contract of both: an entity is never its own neighbour, told by its id and not by its place in the answer;
entities with the same text are neighbours like any others; order is by similarity, descending, and by id, ascending,
among similarities that are equal when rounded to six digits; a catalogue of fewer than k others gives fewer.

A backend only proposes candidates. Similarities are computed here, in double precision and one by one, so that equal
vectors tie exactly whatever searched them, and more candidates are asked for until a tie cannot hide a better id.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np

from grasp.tables import Table
from spark_jobs.vectors.embedding_table import read_embeddings
from spark_jobs.vectors.milvus import MAX_ROWS, VectorStore

SIMILARITY_DIGITS = 6
SEARCH_ERROR = 2e-6  # most by which a backend's float32 similarity and its rounding may be off
SPARE_CANDIDATES = 8  # room for ties before a second search is needed
BLOCK_NUMBERS = 4_000_000  # numbers gathered at once when candidates are compared


class NeighbourBackend(Protocol):
    def search(self, ids: Sequence[str], vectors: np.ndarray, k: int) -> tuple[list[list[str]], list[list[float]]]:
        """For each query, an id of the catalogue with its vector [num_queries, dimension], neighbours and cosines."""


class Catalogue:
    """Everything that may be a neighbour: unique ids in ascending order and their unit vectors [num_ids, dimension]."""

    def __init__(self, ids: Sequence[str], vectors: np.ndarray) -> None:
        order = sorted(range(len(ids)), key=ids.__getitem__)
        self.ids = [ids[i] for i in order]
        self.vectors = np.ascontiguousarray(vectors[order], dtype=np.float32)
        self.position = {each: position for position, each in enumerate(self.ids)}


class ExactBackend:
    """Compares every query with the whole catalogue (FAISS, inner product): up to about 200,000 vectors."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._index: tuple[int, object, np.ndarray] | None = None

    def search(self, ids: Sequence[str], vectors: np.ndarray, k: int) -> tuple[list[list[str]], list[list[float]]]:
        index, kept = self._index_for(k)

        def propose(queries: np.ndarray, num: int) -> np.ndarray:
            _, found = index.search(queries, num)  # type: ignore[attr-defined]
            return np.where(found < 0, -1, kept[found])

        return _nearest(self._catalogue, propose, ids, vectors, k=k, most=len(kept))

    def _index_for(self, k: int) -> tuple[object, np.ndarray]:
        """FAISS index and the catalogue positions in it.

        Of entities with the very same vector only the first k + 1 by id can be among anyone's k: leaving the others
        out keeps a catalogue with thousands of equal descriptions from being searched in ever wider rounds.
        """
        import faiss

        if self._index is None or self._index[0] != k:
            seen: Counter[bytes] = Counter()
            kept = []
            for position, vector in enumerate(self._catalogue.vectors):
                content = hashlib.blake2b(vector.tobytes(), digest_size=16).digest()
                seen[content] += 1
                if seen[content] <= k + 1:
                    kept.append(position)
            faiss.omp_set_num_threads(1)
            index = faiss.IndexFlatIP(self._catalogue.vectors.shape[1])
            index.add(self._catalogue.vectors[kept])
            self._index = (k, index, np.asarray(kept, dtype=np.int64))
        return self._index[1], self._index[2]


@lru_cache(maxsize=1)
def exact_backend(partition: Path, table: Table, _content_hash: str) -> ExactBackend:
    """The index over one day's vectors, made once per Spark worker and again when the day's content changes."""
    embeddings = read_embeddings(partition, table)
    return ExactBackend(Catalogue(embeddings.ids, embeddings.vectors))


class MilvusBackend:
    """Searches a Milvus collection that holds exactly the catalogue; the caller has made sure of that."""

    def __init__(self, store: VectorStore, collection: str, catalogue: Catalogue) -> None:
        self._store, self._collection, self._catalogue = store, collection, catalogue

    def search(self, ids: Sequence[str], vectors: np.ndarray, k: int) -> tuple[list[list[str]], list[list[float]]]:
        position = self._catalogue.position

        def propose(queries: np.ndarray, num: int) -> np.ndarray:
            found = np.full((len(queries), num), -1, dtype=np.int64)
            for row, hits in enumerate(self._store.search(self._collection, queries, num)):
                found[row, : len(hits)] = [position[each] for each, _ in hits]
            return found

        # A tie of more entities than Milvus returns at once is cut as Milvus pleases.
        most = min(len(self._catalogue.ids), MAX_ROWS)
        return _nearest(self._catalogue, propose, ids, vectors, k=k, most=most)


def _nearest(
    catalogue: Catalogue,
    propose: Callable[[np.ndarray, int], np.ndarray],
    ids: Sequence[str],
    vectors: np.ndarray,
    *,
    k: int,
    most: int,
) -> tuple[list[list[str]], list[list[float]]]:
    """Ask `propose(queries, num)` for catalogue positions [num_queries, num] until each query's k are certain."""
    queries = np.ascontiguousarray(vectors, dtype=np.float32)
    own = np.array([catalogue.position[each] for each in ids], dtype=np.int64)
    neighbour_ids: list[list[str]] = [[] for _ in ids]
    similarities: list[list[float]] = [[] for _ in ids]
    pending, num = np.arange(len(ids)), min(k + 1 + SPARE_CANDIDATES, most)
    while pending.size:
        unsettled = []
        for rows in _blocks(pending, num * queries.shape[1]):
            found, similarity, certain = _rank(catalogue, propose(queries[rows], num), queries[rows], own[rows], k)
            certain |= num >= most
            for row, positions, values, done in zip(rows, found, similarity, certain, strict=True):
                if not done:
                    unsettled.append(row)
                    continue
                real = np.isfinite(values)
                neighbour_ids[row] = [catalogue.ids[position] for position in positions[real]]
                similarities[row] = values[real].tolist()
        pending, num = np.array(unsettled, dtype=np.int64), min(num * 4, most)
    return neighbour_ids, similarities


def _rank(
    catalogue: Catalogue, found: np.ndarray, queries: np.ndarray, own: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The best k candidates of each query: positions, similarities (-inf where there is none), and whether certain."""
    # A product and a sum, not a matrix product: its result for a pair must not depend on the pair's place.
    cosine = (catalogue.vectors[found].astype(np.float64) * queries[:, None, :].astype(np.float64)).sum(axis=-1)
    similarity = np.round(np.clip(cosine, -1, 1), SIMILARITY_DIGITS)
    similarity[found < 0] = -np.inf
    edge = similarity.min(axis=1)  # nothing that was not proposed is nearer than this
    similarity[found == own[:, None]] = -np.inf
    order = np.lexsort((found, -similarity))[:, :k]  # positions ascend with ids
    best = np.take_along_axis(similarity, order, axis=1)
    certain = edge < best[:, -1] - SEARCH_ERROR
    return np.take_along_axis(found, order, axis=1), best, certain


def _blocks(rows: np.ndarray, numbers_per_row: int) -> list[np.ndarray]:
    size = max(1, BLOCK_NUMBERS // numbers_per_row)
    return [rows[start : start + size] for start in range(0, len(rows), size)]
