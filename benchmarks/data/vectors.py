"""Frozen vectors of items and users, the same for every model of a benchmark.

Texts are the project's descriptions from facts, without a language model. Each text is encoded once and kept. Data
without texts has vectors derived from its training sequences. A user's vector knows training items only.

Shape suffixes:  N items  U users  S semantic size
"""

# ruff: noqa: N803 - names carry the shape suffixes above

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from scipy.sparse import csr_matrix, identity

from benchmarks.data.readers import Facts, Source
from grasp.categories import categories_of
from grasp.files import replacing
from grasp.versions import digest
from spark_jobs.aggregate_neighbours import mean_pool
from spark_jobs.generation.prompts import ITEM, NUM_FAVOURITES, NUM_RECENT, USER
from spark_jobs.models.encoder import Encoder, require_unit_vectors
from spark_jobs.vectors.nearest_neighbours import ExactBackend, VectorSet
from training.data.cooccurrence import item_cosine
from training.evaluation.baselines import unit_rows

MAX_NEIGHBOURS = 50  # searched and kept once; fewer are a part of them
SEQUENCE_SIZE = 64  # of vectors derived from sequences
SPARE_DIRECTIONS = 16  # of the subspace iteration
NUM_ITERATIONS = 7  # few, so that small groups of items outside the leading space also keep a direction
TEXTS_AT_ONCE = 1024  # between two writes; an interrupted run loses no more


class TextVectors:
    """Unit vectors of texts. Each text is encoded once and kept in `folder` by its hash."""

    def __init__(self, folder: Path, open_encoder: Callable[[], Encoder]) -> None:
        self._folder, self._open_encoder = folder, open_encoder

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors in the order of the texts, float32 (len(texts), S)."""
        keys = [hashlib.sha256(text.encode()).hexdigest() for text in texts]
        known = self._read()
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
        if missing:
            known |= self._encode(missing)
        return np.stack([known[key] for key in keys])

    def _read(self) -> dict[str, np.ndarray]:
        known: dict[str, np.ndarray] = {}
        for file in sorted(self._folder.glob("*.npz")):
            with np.load(file) as part:
                known |= dict(zip(part["keys"].tolist(), part["vectors"], strict=True))
        return known

    def _encode(self, missing: dict[str, str]) -> dict[str, np.ndarray]:
        from tqdm import tqdm

        with _threads_kept():
            encoder = self._open_encoder()
        # Long texts first: batches hold little padding, and the shown time left is too high rather than too low.
        items = sorted(missing.items(), key=lambda item: (-len(item[1]), item[0]))
        encoded: dict[str, np.ndarray] = {}
        with tqdm(total=len(items), desc="encoding texts", unit="text", disable=None) as bar:
            for start in range(0, len(items), TEXTS_AT_ONCE):
                keys, texts = zip(*items[start : start + TEXTS_AT_ONCE], strict=True)
                vectors = encoder.encode(list(texts))
                require_unit_vectors(vectors, keys)
                self._keep(keys, vectors)
                encoded |= dict(zip(keys, vectors, strict=True))
                bar.update(len(keys))
        return encoded

    def _keep(self, keys: Sequence[str], vectors: np.ndarray) -> None:
        with replacing(self._folder / f"{digest(keys)[:16]}.npz") as handle:
            np.savez(handle, keys=np.array(keys), vectors=vectors)


def item_texts(items: Sequence[Facts], hidden: Collection[str]) -> list[str]:
    """The deterministic description of every item."""
    return [ITEM.to_facts_description(ITEM.to_input(facts, hidden)) for facts in items]


def user_texts(source: Source, train: Sequence[np.ndarray], hidden: Collection[str]) -> list[str]:
    """The deterministic description of every user."""
    return [USER.to_facts_description(USER.to_input(facts, hidden)) for facts in user_facts(source, train, hidden)]


def user_facts(source: Source, train: Sequence[np.ndarray], hidden: Collection[str]) -> list[Facts]:
    """The facts of users' descriptions: profile, newest titles and favourite values of `train` items."""
    items = source.items or []
    values = [_category_values(facts, hidden) for facts in items]
    return [
        _user_facts(profile, sequence, items, values) for profile, sequence in zip(source.profiles, train, strict=True)
    ]


def _user_facts(profile: Facts, sequence: np.ndarray, items: Sequence[Facts], values: Sequence[set[str]]) -> Facts:
    """The same facts as `spark_jobs.describe_users` collects."""
    newest = [items[item - 1]["title"] for item in sequence[::-1][:NUM_RECENT]]
    count = Counter(value for item in sequence for value in values[item - 1])
    favourites = sorted(count, key=lambda value: (-count[value], value))[:NUM_FAVOURITES]
    attributes = profile.get("attributes", {})
    return {"attributes": attributes, "recent": [title for title in newest if title], "favourites": favourites}


def _category_values(facts: Facts, hidden: Collection[str]) -> set[str]:
    """Attribute values that read like a category (`spark_jobs.generation.attributes.attribute_values`)."""
    shown = [text for name, text in facts["attributes"].items() if name not in hidden]
    return {category for text in shown for category in categories_of(text)}


def sequence_vectors(train: Sequence[np.ndarray], num_items: int) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of items (N, S) and users (U, S) from training sequences, for data without texts.

    Items: truncated SVD of the items' cosine by common users. Users: the mean of their items. All have length 1, but an
    item that nobody took with another one has zeros, and so has a user without other items. S is at most 64.
    """
    others_NN = item_cosine(train, num_items)
    factor_NS = _leading(others_NN + identity(num_items, format="csr"), min(SEQUENCE_SIZE, num_items - 1))
    is_alone_N = np.diff(others_NN.indptr) == 0
    item_NS = unit_rows(np.where(is_alone_N[:, None], 0, factor_NS))
    nothing_S = np.zeros(item_NS.shape[1])
    return item_NS, unit_rows(np.stack([item_NS[items - 1].mean(0) if len(items) else nothing_S for items in train]))


def _leading(matrix_NN: csr_matrix, size: int) -> np.ndarray:
    """Leading eigenvectors (N, S) of a positive semi-definite matrix, each times the root of its eigenvalue.

    Subspace iteration (Halko et al., arXiv 0909.4061) gives the same vectors every time. ARPACK would not: it draws at
    random for degenerate eigenvalues.
    """
    width = min(size + SPARE_DIRECTIONS, matrix_NN.shape[0])
    basis = np.random.default_rng(0).normal(size=(matrix_NN.shape[0], width))
    for _ in range(NUM_ITERATIONS):
        basis, _ = np.linalg.qr(matrix_NN @ basis)
    values, directions = np.linalg.eigh(basis.T @ (matrix_NN @ basis))
    leading: np.ndarray = basis @ directions[:, -size:] * np.sqrt(np.maximum(values[-size:], 0))
    return leading


def neighbour_means(ids: Sequence[str], vectors: np.ndarray, k: int, cache: Path) -> np.ndarray:
    """Mean of each row's `k` nearest others by cosine, float32 of the same shape; zeros for a row without neighbours.

    The search is production's exact one. A row of zeros has no neighbours and is no neighbour. `cache` keeps the rows.
    """
    if not 1 <= k <= MAX_NEIGHBOURS:
        raise ValueError(f"k must be 1 to {MAX_NEIGHBOURS}, got {k}")
    near = nearest(ids, vectors, cache)[:, :k]
    position = {each: row for row, each in enumerate(ids)}
    return mean_pool([[ids[row] for row in rows if row >= 0] for rows in near], position, vectors)


def nearest(ids: Sequence[str], vectors: np.ndarray, cache: Path) -> np.ndarray:
    """Rows of the nearest others, int32 (len(ids), 50): nearest first, ties by id, -1 when there are no more."""
    content = hashlib.sha256(digest(list(ids)).encode() + np.ascontiguousarray(vectors).tobytes()).hexdigest()
    file = cache / f"{content[:32]}.npz"
    if file.is_file():
        with np.load(file) as kept:
            return kept["near"]
    near = _search(ids, vectors)
    with replacing(file) as handle:
        np.savez(handle, near=near)
    return near


def _search(ids: Sequence[str], vectors: np.ndarray) -> np.ndarray:
    from tqdm import tqdm

    near = np.full((len(ids), MAX_NEIGHBOURS), -1, np.int32)
    rows = np.flatnonzero(vectors.any(axis=1)).tolist()
    position = {each: row for row, each in enumerate(ids)}
    backend = ExactBackend(VectorSet([ids[row] for row in rows], vectors[rows]))
    with _threads_kept():
        for block in tqdm(list(_blocks(rows)), desc="searching neighbours", unit="block", disable=None):
            found, _ = backend.search([ids[row] for row in block], vectors[block], MAX_NEIGHBOURS)
            for row, neighbours in zip(block, found, strict=True):
                near[row, : len(neighbours)] = [position[each] for each in neighbours]
    return near


def _blocks(rows: list[int]) -> Iterator[list[int]]:
    for start in range(0, len(rows), TEXTS_AT_ONCE):
        yield rows[start : start + TEXTS_AT_ONCE]


@contextmanager
def _threads_kept() -> Iterator[None]:
    """Encoder and index set torch to one thread, as Spark's workers need it; this sets it back."""
    import torch

    num_threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
