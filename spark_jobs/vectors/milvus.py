"""Vectors in Milvus: a row is one text of an entity, or one moment. It never changes; it is added and later deleted.

Readers may therefore search while a job writes: they drop rows of texts that are not theirs. One job at a time writes.

The same code works with Milvus-Lite (a folder `*.db`, one process at a time) and with a Milvus server. Ids come from
outside and must not enter a filter: Milvus-Lite and servers before 2.5 have no filter parameters, and
`MilvusClient.get` and `delete` do not escape ids. The primary key of a row is therefore a sha256 of its text, and
filters use only these keys.
"""

import fcntl
import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from grasp.settings import Settings
from grasp.tables import MAX_ID_BYTES
from spark_jobs.models.encoder import require_unit_vectors

if TYPE_CHECKING:
    from pymilvus import MilvusClient

WRITE_BATCH = 1_000  # rows: below a server's message limit even at dimension 4096
SEARCH_BATCH = 256  # queries
MAX_HITS = 65_536  # of one batch of queries, so that an answer stays below a server's message limit
MAX_ROWS = 16_384  # a server's limit of rows per query, and of k
PAGE_ROWS = 12_000  # mean rows per page of a scan; pages are uneven but must stay below MAX_ROWS
READ_BACK_TOLERANCE = 1e-5


class Text(NamedTuple):
    """A row: the text that an entity has or had, by its hash. Of a moment: its event day and `moment_hash`."""

    id: str
    description_hash: str


class VectorStore:
    """Collections of unit vectors by text. Errors of Milvus are raised as `pymilvus.MilvusException`."""

    def __init__(self, client: "MilvusClient") -> None:
        self._client = client

    def ensure_collection(self, name: str, dimension: int) -> None:
        """Create the collection if it does not exist; raises `ValueError` if it has another dimension."""
        if self._client.has_collection(name):
            held = _dimension(self._client.describe_collection(name))
            if held != dimension:
                raise ValueError(f"Milvus collection {name} holds vectors of {held} numbers, not {dimension}")
            self._client.load_collection(name)
            return
        from pymilvus import DataType

        schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("key", DataType.VARCHAR, is_primary=True, max_length=64)
        schema.add_field("id", DataType.VARCHAR, max_length=MAX_ID_BYTES)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dimension)
        schema.add_field("description_hash", DataType.VARCHAR, max_length=64)
        index = self._client.prepare_index_params()
        # Exact search, so neighbours do not depend on how an index was built. On Lite other indexes take minutes.
        index.add_index("vector", index_type="FLAT", metric_type="COSINE")
        self._client.create_collection(name, schema=schema, index_params=index, consistency_level="Strong")

    def has_collection(self, name: str) -> bool:
        return bool(self._client.has_collection(name))

    def add(self, name: str, texts: Sequence[Text], vectors: np.ndarray) -> None:
        """Add rows; some may be there already. Raises `ValueError`, before any write, for a vector not of length 1."""
        require_unit_vectors(vectors, [each.id for each in texts])
        for start in range(0, len(texts), WRITE_BATCH):
            part = slice(start, start + WRITE_BATCH)
            rows = [
                {"key": _key(text), "id": text.id, "vector": vector, "description_hash": text.description_hash}
                for text, vector in zip(texts[part], vectors[part], strict=True)
            ]
            self._client.upsert(name, rows)

    def delete(self, name: str, texts: Sequence[Text]) -> None:
        for start in range(0, len(texts), WRITE_BATCH):
            self._client.delete(name, filter=_is_one_of(texts[start : start + WRITE_BATCH]))

    def count(self, name: str) -> int:
        """The current number of rows. The collection's statistics lag behind writes, `count(*)` does not."""
        answer = self._client.query(name, filter="", output_fields=["count(*)"], consistency_level="Strong")
        return int(answer[0]["count(*)"])

    def texts(self, name: str) -> set[Text]:
        """All rows of the collection, without their vectors."""
        self._client.load_collection(name)
        total = self.count(name)
        found: set[Text] = set()
        for page in _pages(total):
            rows = self._client.query(
                name, filter=page, limit=MAX_ROWS, output_fields=["id", "description_hash"], consistency_level="Strong"
            )
            found.update(_text(row) for row in rows)
        if len(found) != total:
            raise ValueError(
                f"Milvus collection {name} counts {total} rows but lists {len(found)}: is another job writing to it?"
            )
        return found

    def read(self, name: str, texts: Collection[Text]) -> dict[Text, np.ndarray]:
        """Vectors of those texts that are in the collection; for a few hundred texts at most."""
        if not texts:
            return {}
        rows = self._client.query(
            name,
            filter=_is_one_of(texts),
            output_fields=["id", "description_hash", "vector"],
            consistency_level="Strong",
        )
        return {_text(row): np.asarray(row["vector"], dtype=np.float32) for row in rows}

    def require_equal(self, name: str, num_rows: int, sample: Mapping[Text, np.ndarray]) -> None:
        """Raise `ValueError` unless the collection has `num_rows` rows and returns the sample's vectors."""
        counted = self.count(name)
        if counted != num_rows:
            raise ValueError(f"Milvus collection {name} has {counted} rows instead of {num_rows}; run the job again")
        held = self.read(name, sample)
        for text, vector in sample.items():
            if text not in held or not np.allclose(held[text], vector, atol=READ_BACK_TOLERANCE):
                raise ValueError(
                    f"Milvus collection {name} does not return the vector that was written for {text.id}; "
                    "drop the collection and run the job again"
                )

    def search(self, name: str, vectors: np.ndarray, k: int) -> list[list[tuple[Text, float]]]:
        """The k nearest (text, cosine) of each vector, nearest first. A vector finds itself; ties are in any order."""
        found: list[list[tuple[Text, float]]] = []
        step = max(1, min(SEARCH_BATCH, MAX_HITS // k))
        for start in range(0, len(vectors), step):
            answer = self._client.search(
                name,
                data=list(vectors[start : start + step]),
                limit=k,
                output_fields=["id", "description_hash"],
                search_params={"metric_type": "COSINE"},
                consistency_level="Strong",
            )
            # Not `hit["id"]`: with servers before 2.4 that is the primary key.
            found += [[(_text(hit["entity"]), float(hit["distance"])) for hit in hits] for hits in answer]
        return found


def propose(
    store: VectorStore, name: str, vectors: np.ndarray, num: int, place_of: Callable[[Text], int | None]
) -> np.ndarray:
    """Places of the nearest rows of each vector, nearest first, int64 [num_vectors, num]; -1 where none are left.

    `place_of` is the place of a row that is the reader's own, and None for any other row, which is passed over.
    """
    found = np.full((len(vectors), num), -1, dtype=np.int64)
    pending, limit = np.arange(len(vectors)), num
    while pending.size:
        too_few = []
        answer = store.search(name, vectors[pending], limit)
        for row, hits in zip(pending.tolist(), answer, strict=True):
            places = [place for text, _ in hits if (place := place_of(text)) is not None][:num]
            found[row, : len(places)] = places
            if len(places) < num and len(hits) == limit < MAX_ROWS:
                too_few.append(row)
        pending, limit = np.array(too_few, dtype=np.int64), min(limit * 4, MAX_ROWS)
    return found


@contextmanager
def open_vector_store(settings: Settings) -> Iterator[VectorStore]:
    """Open the configured Milvus; at the end close it and release the lock of a Milvus-Lite folder.

    Raises `ValueError` if another process has the folder open, or if the server does not answer.
    """
    from pymilvus import MilvusClient
    from pymilvus.exceptions import MilvusException

    folder = _lite_folder(settings)
    uri = str(folder) if folder else settings.milvus_uri
    try:
        client = MilvusClient(uri=uri, token=settings.milvus_token.get_secret_value())
    except MilvusException as error:
        raise ValueError(f"cannot open Milvus at GRASP_MILVUS_URI={settings.milvus_uri}: {error.message}") from error
    try:
        yield VectorStore(client)
    except MilvusException as error:
        raise ValueError(f"Milvus at {settings.milvus_uri} failed: {error.message}") from error
    finally:
        client.close()
        if folder:
            from milvus_lite.server_manager import server_manager_instance

            server_manager_instance.release_server(str(folder))  # close() alone keeps the lock


def is_server(settings: Settings) -> bool:
    """Whether Milvus is a server, which others than the jobs may search too."""
    return not settings.milvus_uri.endswith(".db")


def _lite_folder(settings: Settings) -> Path | None:
    """The folder of Milvus-Lite, checked and ready to open; None for a server."""
    if is_server(settings):
        return None
    folder = Path(settings.milvus_uri).expanduser().resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file, not a Milvus-Lite folder: move it away or set GRASP_MILVUS_URI")
    if _is_locked(folder / "LOCK"):
        raise ValueError(
            f"Milvus-Lite folder {folder} is open in another process: another embed_descriptions or find_neighbours, "
            "a notebook, or `milvus-lite server`. Only one may have it open; wait for it or stop it, then run again"
        )
    return folder


def _is_locked(lock: Path) -> bool:
    """Checked before opening, because the error of Milvus-Lite itself does not name the folder."""
    if not lock.exists():
        return False
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _text(row: Mapping[str, str]) -> Text:
    return Text(row["id"], row["description_hash"])


def _key(text: Text) -> str:
    return hashlib.sha256("\0".join(text).encode()).hexdigest()


def _is_one_of(texts: Collection[Text]) -> str:
    return "key in [" + ", ".join(f'"{_key(each)}"' for each in texts) + "]"


def _pages(num_rows: int) -> list[str]:
    """Filters for pages of similar size: the first four digits of a sha256 are uniformly distributed."""
    if num_rows <= MAX_ROWS:
        return [""]
    num_pages = -(-num_rows // PAGE_ROWS)
    edges = [f"{65_536 * page // num_pages:04x}" for page in range(num_pages)] + ["g"]
    return [f'key >= "{low}" and key < "{high}"' for low, high in pairwise(edges)]


def _dimension(description: dict) -> int:
    return next(int(field["params"]["dim"]) for field in description["fields"] if field["name"] == "vector")
