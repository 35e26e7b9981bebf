"""Nearest neighbours by cosine. The exact and the Milvus backend give the same result.

- An entity is never its own neighbour. It is excluded by id, so another entity with the same text can be a neighbour.
- Neighbours are ordered by similarity, descending. Similarities that are equal after rounding to six digits are
  ordered by id.
- With fewer than k other entities, there are fewer than k neighbours.

A backend only proposes candidates. Similarities are computed here, pair by pair in double precision, so equal vectors
have exactly equal similarities in both backends. More candidates are requested until no tie can hide a smaller id.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np

from grasp.tables import Table
from spark_jobs.vectors.embedding_table import read_embeddings
from spark_jobs.vectors.milvus import MAX_ROWS, Text, VectorStore, propose

SIMILARITY_DIGITS = 6
SEARCH_ERROR = 2e-6  # bound for the error of a backend's float32 similarity, rounding included
SPARE_CANDIDATES = 8  # extra candidates, so that ties rarely need a second search
BLOCK_NUMBERS = 4_000_000  # floats gathered at once when candidates are compared


class NeighbourBackend(Protocol):
    def search(self, ids: Sequence[str], vectors: np.ndarray, k: int) -> tuple[list[list[str]], list[list[float]]]:
        """Neighbour ids and cosines of each query; `ids` are in the vector set, `vectors` [num_queries, dimension]."""


class VectorSet:
    """All possible neighbours: unique ids in ascending order and their unit vectors [num_ids, dimension]."""

    def __init__(self, ids: Sequence[str], vectors: np.ndarray) -> None:
        order = sorted(range(len(ids)), key=ids.__getitem__)
        self.ids = [ids[i] for i in order]
        self.vectors = np.ascontiguousarray(vectors[order], dtype=np.float32)
        self.position = {each: position for position, each in enumerate(self.ids)}


class ExactBackend:
    """Compares every query with all vectors (FAISS, inner product); for up to about 200,000 vectors."""

    def __init__(self, vector_set: VectorSet) -> None:
        self._vector_set = vector_set
        self._index: tuple[int, object, np.ndarray] | None = None

    def search(self, ids: Sequence[str], vectors: np.ndarray, k: int) -> tuple[list[list[str]], list[list[float]]]:
        index, kept = self._index_for(k)

        def propose(queries: np.ndarray, num: int) -> np.ndarray:
            _, found = index.search(queries, num)  # type: ignore[attr-defined]
            return np.where(found < 0, -1, kept[found])

        return _search_until_certain(self._vector_set, propose, ids, vectors, k=k, most=len(kept))

    def _index_for(self, k: int) -> tuple[object, np.ndarray]:
        """The FAISS index, and the positions of its vectors in the vector set.

        Among entities with equal vectors, only the first k + 1 by id can be neighbours. The index leaves out the rest;
        otherwise thousands of equal descriptions would need ever wider searches.
        """
        import faiss

        if self._index is None or self._index[0] != k:
            seen: Counter[bytes] = Counter()
            kept = []
            for position, vector in enumerate(self._vector_set.vectors):
                content = hashlib.blake2b(vector.tobytes(), digest_size=16).digest()
                seen[content] += 1
                if seen[content] <= k + 1:
                    kept.append(position)
            faiss.omp_set_num_threads(1)
            index = faiss.IndexFlatIP(self._vector_set.vectors.shape[1])
            index.add(self._vector_set.vectors[kept])
            self._index = (k, index, np.asarray(kept, dtype=np.int64))
        return self._index[1], self._index[2]


@lru_cache(maxsize=1)
def load_exact_backend(partition: Path, table: Table, _content_hash: str) -> ExactBackend:
    """The backend for one day's vectors, built once per Spark worker and content of the day."""
    embeddings = read_embeddings(partition, table)
    return ExactBackend(VectorSet(embeddings.ids, embeddings.vectors))


class MilvusBackend:
    """Searches a Milvus collection. The caller makes sure that it holds the vector set; other rows are passed over."""

    def __init__(self, store: VectorStore, collection: str, vector_set: VectorSet, hash_of: Mapping[str, str]) -> None:
        """`hash_of` is the description hash of each id in the vector set."""
        self._store, self._collection, self._vector_set, self._hash_of = store, collection, vector_set, hash_of

    def search(self, ids: Sequence[str], vectors: np.ndarray, k: int) -> tuple[list[list[str]], list[list[float]]]:
        def from_store(queries: np.ndarray, num: int) -> np.ndarray:
            return propose(self._store, self._collection, queries, num, self._position_of)

        # If more entities tie than Milvus can return at once, Milvus decides which are cut off.
        most = min(len(self._vector_set.ids), MAX_ROWS)
        return _search_until_certain(self._vector_set, from_store, ids, vectors, k=k, most=most)

    def _position_of(self, text: Text) -> int | None:
        """The position of a text of the vector set; None for any other text."""
        return self._vector_set.position[text.id] if self._hash_of.get(text.id) == text.description_hash else None


def _search_until_certain(
    vector_set: VectorSet,
    propose: Callable[[np.ndarray, int], np.ndarray],
    ids: Sequence[str],
    vectors: np.ndarray,
    *,
    k: int,
    most: int,
) -> tuple[list[list[str]], list[list[float]]]:
    """Call `propose(queries, num)` for positions [num_queries, num] with growing `num` until each top k is certain."""
    queries = np.ascontiguousarray(vectors, dtype=np.float32)
    own = np.array([vector_set.position[each] for each in ids], dtype=np.int64)
    neighbour_ids: list[list[str]] = [[] for _ in ids]
    similarities: list[list[float]] = [[] for _ in ids]
    pending, num = np.arange(len(ids)), min(k + 1 + SPARE_CANDIDATES, most)
    while pending.size:
        unsettled = []
        for rows in _blocks(pending, num * queries.shape[1]):
            found, similarity, certain = _rank(vector_set, propose(queries[rows], num), queries[rows], own[rows], k)
            certain |= num >= most
            for row, positions, values, done in zip(rows, found, similarity, certain, strict=True):
                if not done:
                    unsettled.append(row)
                    continue
                real = np.isfinite(values)
                neighbour_ids[row] = [vector_set.ids[position] for position in positions[real]]
                similarities[row] = values[real].tolist()
        pending, num = np.array(unsettled, dtype=np.int64), min(num * 4, most)
    return neighbour_ids, similarities


def _rank(
    vector_set: VectorSet, found: np.ndarray, queries: np.ndarray, own: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The best k candidates of each query: positions, similarities (-inf for none), and whether they are certain."""
    # Not a matrix product: there, the result for a pair can depend on its position.
    cosine = (vector_set.vectors[found].astype(np.float64) * queries[:, None, :].astype(np.float64)).sum(axis=-1)
    similarity = np.round(np.clip(cosine, -1, 1), SIMILARITY_DIGITS)
    similarity[found < 0] = -np.inf
    edge = similarity.min(axis=1)  # entities that were not proposed are not nearer than this
    similarity[found == own[:, None]] = -np.inf
    order = np.lexsort((found, -similarity))[:, :k]  # positions ascend with ids
    best = np.take_along_axis(similarity, order, axis=1)
    certain = edge < best[:, -1] - SEARCH_ERROR
    return np.take_along_axis(found, order, axis=1), best, certain


def _blocks(rows: np.ndarray, numbers_per_row: int) -> list[np.ndarray]:
    size = max(1, BLOCK_NUMBERS // numbers_per_row)
    return [rows[start : start + size] for start in range(0, len(rows), size)]
