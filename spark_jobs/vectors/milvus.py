"""The port to Milvus: collections of semantic embeddings, written by one job at a time, read through an alias.

Milvus-Lite (a folder `*.db`, for one process at a time) and a Milvus server are spoken to in the same way. Ids are
other people's text and never enter a filter; neither Milvus-Lite nor servers before 2.5 take filter parameters, and
`MilvusClient.get` and `delete` by id paste ids unescaped. Every row therefore also carries the sha256 of its id, and
filters name only such hashes.
"""

import fcntl
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from grasp.settings import Settings
from spark_jobs.models.encoder import require_unit_vectors

if TYPE_CHECKING:
    from pymilvus import MilvusClient

WRITE_BATCH = 1_000  # rows: stays under a server's message limit even at dimension 4096
SEARCH_BATCH = 256  # queries
MAX_ROWS = 16_384  # most rows a server returns for one query, and the largest k
PAGE_ROWS = 12_000  # rows aimed at per page of a scan, with room below MAX_ROWS for an uneven split
MAX_ID_LENGTH = 512
READ_BACK_TOLERANCE = 1e-5


class VectorStore:
    """Collections of unit vectors by entity id. Errors of Milvus itself come as `pymilvus.MilvusException`."""

    def __init__(self, client: "MilvusClient") -> None:
        self._client = client

    def ensure_collection(self, name: str, dimension: int) -> None:
        """Make the collection unless it is there; raises `ValueError` when it has another dimension."""
        if self._client.has_collection(name):
            held = _dimension(self._client.describe_collection(name))
            if held != dimension:
                raise ValueError(f"Milvus collection {name} holds vectors of {held} numbers, not {dimension}")
            self._client.load_collection(name)
            return
        from pymilvus import DataType

        schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=MAX_ID_LENGTH)
        schema.add_field("id_hash", DataType.VARCHAR, max_length=64)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dimension)
        schema.add_field("description_hash", DataType.VARCHAR, max_length=64)
        index = self._client.prepare_index_params()
        # Exact: neighbours do not depend on an index build. On Lite any other index costs minutes to build.
        index.add_index("vector", index_type="FLAT", metric_type="COSINE")
        self._client.create_collection(name, schema=schema, index_params=index, consistency_level="Strong")

    def has_collection(self, name: str) -> bool:
        return bool(self._client.has_collection(name))

    def upsert(self, name: str, ids: Sequence[str], vectors: np.ndarray, hashes: Sequence[str]) -> None:
        """Write or overwrite rows; raises `ValueError` naming unsound vectors before anything is written."""
        require_unit_vectors(vectors, ids)
        for start in range(0, len(ids), WRITE_BATCH):
            part = slice(start, start + WRITE_BATCH)
            rows = [
                {"id": each, "id_hash": _id_hash(each), "vector": vector, "description_hash": description_hash}
                for each, vector, description_hash in zip(ids[part], vectors[part], hashes[part], strict=True)
            ]
            self._client.upsert(name, rows)

    def delete(self, name: str, ids: Sequence[str]) -> None:
        for start in range(0, len(ids), WRITE_BATCH):
            self._client.delete(name, filter=_is_one_of(ids[start : start + WRITE_BATCH]))

    def count(self, name: str) -> int:
        """Rows that a reader sees now. The collection's own statistics lag behind upserts, `count(*)` does not."""
        answer = self._client.query(name, filter="", output_fields=["count(*)"], consistency_level="Strong")
        return int(answer[0]["count(*)"])

    def hashes(self, name: str) -> dict[str, str]:
        """The description hash of every id the collection holds."""
        self._client.load_collection(name)
        total = self.count(name)
        found: dict[str, str] = {}
        for page in _pages(total):
            rows = self._client.query(
                name,
                filter=page,
                limit=MAX_ROWS,
                output_fields=["id", "description_hash"],
                consistency_level="Strong",
            )
            found.update((row["id"], row["description_hash"]) for row in rows)
        if len(found) != total:
            raise ValueError(
                f"Milvus collection {name} counts {total} rows but lists {len(found)}: is it being written?"
            )
        return found

    def read(self, name: str, ids: Sequence[str]) -> dict[str, np.ndarray]:
        """Vectors of the ids that the collection holds; for a few hundred ids, not for all."""
        rows = self._client.query(
            name, filter=_is_one_of(ids), output_fields=["id", "vector"], consistency_level="Strong"
        )
        return {row["id"]: np.asarray(row["vector"], dtype=np.float32) for row in rows}

    def require_equal(self, name: str, num_rows: int, sample: Mapping[str, np.ndarray]) -> None:
        """Raise `ValueError` unless the collection has `num_rows` rows and gives the sample's vectors back."""
        counted = self.count(name)
        if counted != num_rows:
            raise ValueError(f"Milvus collection {name} has {counted} rows instead of {num_rows}; run the job again")
        held = self.read(name, list(sample))
        for each, vector in sample.items():
            if each not in held or not np.allclose(held[each], vector, atol=READ_BACK_TOLERANCE):
                raise ValueError(
                    f"Milvus collection {name} does not give back what was written for {each}; "
                    "drop the collection and run the job again"
                )

    def has_alias(self, alias: str, collection: str) -> bool:
        return alias in self._client.list_aliases(collection)["aliases"]

    def switch_alias(self, alias: str, collection: str) -> bool:
        """Point the alias at the collection, in one step; returns False when it did already."""
        if self.has_alias(alias, collection):
            return False
        if self._client.has_collection(alias):  # true of an alias as well
            self._client.alter_alias(collection, alias)
        else:
            self._client.create_alias(collection, alias)
        return True

    def search(self, name: str, vectors: np.ndarray, k: int) -> list[list[tuple[str, float]]]:
        """For each vector the k nearest (id, cosine), nearest first; a vector finds itself, ties come in any order."""
        found: list[list[tuple[str, float]]] = []
        for start in range(0, len(vectors), SEARCH_BATCH):
            answer = self._client.search(
                name,
                data=list(vectors[start : start + SEARCH_BATCH]),
                limit=k,
                output_fields=["id"],
                search_params={"metric_type": "COSINE"},
                consistency_level="Strong",
            )
            found += [[(hit["id"], float(hit["distance"])) for hit in hits] for hits in answer]
        return found


@contextmanager
def open_vectors(settings: Settings) -> Iterator[VectorStore]:
    """The Milvus of these settings, closed again at the end with the lock of a Milvus-Lite folder released.

    Raises `ValueError` naming the folder when another process has it open, or the server when it does not answer.
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
        raise ValueError(f"Milvus at {settings.milvus_uri} refused: {error.message}") from error
    finally:
        client.close()
        if folder:
            from milvus_lite.server_manager import server_manager_instance

            server_manager_instance.release_server(str(folder))  # close() alone keeps the lock


def _lite_folder(settings: Settings) -> Path | None:
    """Milvus-Lite's folder, ready to be opened, or None for a server."""
    if not settings.milvus_uri.endswith(".db"):
        return None
    folder = Path(settings.milvus_uri).expanduser().resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file of Milvus-Lite 2 or something else: move it away or set GRASP_MILVUS_URI")
    if _is_locked(folder / "LOCK"):
        raise ValueError(
            f"Milvus-Lite folder {folder} is open in another process: another embed_descriptions or find_neighbours, "
            "a notebook, or `milvus-lite server`. Only one may have it open; wait for it or stop it, then run again"
        )
    return folder


def _is_locked(lock: Path) -> bool:
    """Asked before opening, because Milvus-Lite answers a taken lock with a traceback that does not name it."""
    if not lock.exists():
        return False
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _id_hash(entity_id: str) -> str:
    return hashlib.sha256(entity_id.encode()).hexdigest()


def _is_one_of(ids: Sequence[str]) -> str:
    return "id_hash in [" + ", ".join(f'"{_id_hash(each)}"' for each in ids) + "]"


def _pages(num_rows: int) -> list[str]:
    """Filters that split the rows evenly: sha256 spreads ids evenly over its first four digits."""
    if num_rows <= MAX_ROWS:
        return [""]
    num_pages = -(-num_rows // PAGE_ROWS)
    edges = [f"{65_536 * page // num_pages:04x}" for page in range(num_pages)] + ["g"]
    return [f'id_hash >= "{low}" and id_hash < "{high}"' for low, high in pairwise(edges)]


def _dimension(description: dict) -> int:
    return next(int(field["params"]["dim"]) for field in description["fields"] if field["name"] == "vector")
