"""Search items by meaning: encode the query, then find the nearest descriptions in Milvus or in memory.

A configured Milvus server is searched first. When it is down or slow, and with Milvus-Lite (which only the jobs may
open), the vectors of the release are searched in memory. A query is only encoded; it enters no filter and no log.

A collection also holds texts of other releases and of days that are not published. A hit counts only if it is the text
that the item has in the release, so a release finds the same items whatever the jobs have added since.

A query that is a category lists its items first. Only memory knows them, so Milvus is not asked.

Shape suffixes:  N items of the release  R some of their rows  S semantic size
"""

# ruff: noqa: N803 - the shape suffix above

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from grasp.settings import Settings
from grasp.versions import description_hash
from serving.ranking.items import top
from serving.rollout.follower import LoadedRelease
from serving.schemas import SearchBackend, SearchFallback

if TYPE_CHECKING:
    from pymilvus import MilvusClient

NUM_PROBED, MIN_COSINE = 3, 0.99  # the encoder must reproduce the vectors of so many descriptions, this closely
ABOVE_ANY_COSINE = 3.0  # more than two cosines can differ by
NUM_SPARE = 100  # hits beyond k, because some may not be texts of the release
REPEATS_FACTOR = 10  # so many times as many hits are asked for, once, when titles repeat among them
ENCODER_LOADED = "the search encoder is loaded"  # logged once per worker that is searched
LATE_MESSAGE = "the search took too long, for example because the encoder is being loaded; try again"
RETRY_SECONDS = 10.0  # a server that failed is not asked for this long
NUM_THREADS = 2  # one search encodes while another waits for Milvus
ANSWER_SECONDS = 30.0  # a search that waits longer, usually for the encoder to be loaded, fails

Hit = tuple[str, str, float]  # item id, description hash, cosine

log = logging.getLogger("grasp.serving")


class SearchError(RuntimeError):
    """No encoder, or not the one that the release was made with; the message says which."""


class SearchLateError(SearchError):
    """The search took too long; a later one will find the encoder loaded."""


class Encoder(Protocol):
    def encode(self, texts: list[str]) -> np.ndarray:
        """Unit vectors, float32 [len(texts), dimension]. Raises `SearchError`."""


class FolderEncoder:
    """The sentence-transformers folder that the jobs encode with, on one thread."""

    def __init__(self, folder: Path) -> None:
        if not (folder / "modules.json").is_file():  # without it any model would load, with an arbitrary pooling
            raise SearchError(f"GRASP_ENCODER={folder} is not a sentence-transformers folder: modules.json is missing")
        from safetensors import SafetensorError

        try:
            from sentence_transformers import SentenceTransformer

            self._model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise SearchError(f"GRASP_ENCODER={folder} holds no usable encoder: {error}") from error

    def encode(self, texts: list[str]) -> np.ndarray:
        return np.asarray(
            self._model.encode(texts, normalize_embeddings=True, show_progress_bar=False), dtype=np.float32
        )


class ServerEncoder:
    """An OpenAI-compatible embeddings server; the environment variable `GRASP_ENCODER_API_KEY` holds its key."""

    def __init__(self, settings: Settings) -> None:
        from openai import OpenAI

        self._model = settings.encoder_model
        # Never empty: without a key the client would send OPENAI_API_KEY, which may belong to another server.
        key = os.environ.get("GRASP_ENCODER_API_KEY", "").strip() or "none"
        timeout = settings.search_timeout_ms / 1000
        self._client = OpenAI(api_key=key, base_url=settings.encoder_url, timeout=timeout, max_retries=1)

    def encode(self, texts: list[str]) -> np.ndarray:
        from openai import OpenAIError

        try:
            answer = self._client.embeddings.create(model=self._model, input=texts, encoding_format="float")
        except OpenAIError as error:
            raise SearchError(f"GRASP_ENCODER_URL gave no vectors: {type(error).__name__}") from error
        vectors = np.array([each.embedding for each in sorted(answer.data, key=lambda each: each.index)], np.float32)
        if len(vectors) != len(texts):
            raise SearchError(f"GRASP_ENCODER_URL gave {len(vectors)} vectors for {len(texts)} texts")
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)


def open_encoder(settings: Settings) -> Encoder:
    return ServerEncoder(settings) if settings.encoder_url else FolderEncoder(settings.encoder)


class MilvusSearch:
    """Search the collections of a Milvus server within a time limit."""

    def __init__(
        self,
        settings: Settings,
        connect: Callable[[], "MilvusClient"] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        from pymilvus.exceptions import MilvusException  # here, so that the first search does not wait for the import

        self._failures = (MilvusException, OSError)
        self._settings = settings
        self._timeout_seconds = settings.search_timeout_ms / 1000
        self._connect = connect or self._real_client
        self._monotonic = monotonic
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="milvus")
        self._retry_at, self._problem = 0.0, ""

    def search(self, collection: str, vector_S: np.ndarray, k: int) -> list[Hit]:
        """The k nearest texts, nearest first. Raises `TimeoutError` or `ConnectionError`."""
        if self._monotonic() < self._retry_at:
            raise ConnectionError(self._problem)
        answer = self._threads.submit(self._ask, collection, vector_S, k)
        try:
            return answer.result(self._timeout_seconds)
        except TimeoutError:
            answer.cancel()
            self._back_off(f"Milvus took longer than {self._timeout_seconds * 1000:.0f} ms")
            raise
        except ConnectionError as error:
            self._back_off(str(error))
            raise

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    @cached_property
    def _client(self) -> "MilvusClient":
        return self._connect()

    def _real_client(self) -> "MilvusClient":
        from pymilvus import MilvusClient

        settings = self._settings
        return MilvusClient(
            uri=settings.milvus_uri, token=settings.milvus_token.get_secret_value(), timeout=self._timeout_seconds
        )

    def _ask(self, collection: str, vector_S: np.ndarray, k: int) -> list[Hit]:
        try:
            (hits,) = self._client.search(
                collection,
                data=[vector_S.tolist()],
                limit=k,
                output_fields=["id", "description_hash"],
                search_params={"metric_type": "COSINE"},
                timeout=self._timeout_seconds,
            )
        except self._failures as error:
            raise ConnectionError(f"Milvus did not answer: {type(error).__name__}") from error
        # Not `hit["id"]`: with servers before 2.4 that is the primary key.
        return [(hit["entity"]["id"], hit["entity"]["description_hash"], float(hit["distance"])) for hit in hits]

    def _back_off(self, problem: str) -> None:
        log.warning("%s; it is not asked again for %.0f s", problem, RETRY_SECONDS)
        self._problem, self._retry_at = problem, self._monotonic() + RETRY_SECONDS


@dataclass(frozen=True)
class SearchHits:
    pairs: list[tuple[int, float]]  # rows of the release and cosines, nearest first
    backend: SearchBackend
    fallback: SearchFallback | None = None


class Search:
    """Search the items of a release. The first search loads the encoder, so other workers do not pay for one.

    Searches run in threads of their own, so waiting for the encoder takes no thread from recommendations.
    """

    def __init__(
        self,
        settings: Settings,
        open_encoder: Callable[[Settings], Encoder] = open_encoder,
        milvus: MilvusSearch | None = None,
        answer_seconds: float = ANSWER_SECONDS,
    ) -> None:
        self._settings = settings
        self._answer_seconds = answer_seconds
        self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="search")
        self._open_encoder = open_encoder
        self._encoder: Encoder | None = None
        self._lock = threading.Lock()
        self._checked: str | None = None  # id of the release that the encoder was last checked against
        is_server = "://" in settings.milvus_uri
        self._milvus = milvus or (MilvusSearch(settings) if is_server else None)

    async def find(self, release: LoadedRelease, query: str, k: int) -> SearchHits:
        """The k items whose descriptions are nearest to the query. Raises `SearchError`."""
        if not self._settings.search:
            raise SearchError("search is switched off (GRASP_SEARCH)")
        answer = self._threads.submit(copy_context().run, self._find, release, query, k)  # with the request id
        try:
            async with asyncio.timeout(self._answer_seconds):
                return await asyncio.wrap_future(answer)  # on a timeout this cancels a search that has not started
        except TimeoutError as error:
            raise SearchLateError(LATE_MESSAGE) from error

    def _find(self, release: LoadedRelease, query: str, k: int) -> SearchHits:
        vector_S = self._encoder_of(release).encode([query])[0]
        category_R = release.catalogue.rows_in(query.strip())
        if self._milvus is None or len(category_R):
            return SearchHits(_in_memory(release, vector_S, k, category_R), "memory")
        try:
            num_texts, found = _in_milvus(self._milvus, release, vector_S, k, k + NUM_SPARE)
            if len(found) < k <= num_texts:
                _, found = _in_milvus(self._milvus, release, vector_S, k, REPEATS_FACTOR * (k + NUM_SPARE))
        except TimeoutError:
            return SearchHits(_in_memory(release, vector_S, k), "memory", "milvus_timeout")
        except ConnectionError:
            return SearchHits(_in_memory(release, vector_S, k), "memory", "milvus_error")
        if num_texts < min(k, int(release.items.available_N.sum())):
            return SearchHits(_in_memory(release, vector_S, k), "memory", "milvus_incomplete")
        return SearchHits(found, "milvus")

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._milvus:
            self._milvus.close()

    def _encoder_of(self, release: LoadedRelease) -> Encoder:
        """The encoder, checked against the release."""
        with self._lock:
            if self._encoder is None:
                self._encoder = self._open_encoder(self._settings)
                log.info(ENCODER_LOADED)
            if self._checked != release.release_id:
                _require_same_encoder(self._encoder, release)
                self._checked = release.release_id
            return self._encoder


def _require_same_encoder(encoder: Encoder, release: LoadedRelease) -> None:
    """Raise `SearchError` unless the encoder reproduces the vectors of some descriptions."""
    items = release.items
    rows = list(items.row_of.values())[:NUM_PROBED]
    vectors = encoder.encode([release.catalogue.text(row)[0] for row in rows])
    held = items.semantic_NS[rows]
    if vectors.shape != held.shape or (vectors * held).sum(1).min() < MIN_COSINE:
        raise SearchError(f"GRASP_ENCODER is not the encoder that release {release.release_id} was made with")


def _in_milvus(
    milvus: MilvusSearch, release: LoadedRelease, vector_S: np.ndarray, k: int, num_hits: int
) -> tuple[int, list[tuple[int, float]]]:
    """The number of the release's texts among the nearest hits, and the k items that these give, each title once."""
    pairs = _of_release(release, milvus.search(release.manifest.collections["item"], vector_S, num_hits))
    return len(pairs), release.items.once_each(lambda num: pairs[:num], k)


def _of_release(release: LoadedRelease, hits: list[Hit]) -> list[tuple[int, float]]:
    """Rows and cosines of the hits that are texts of the release, without items that were withdrawn."""
    rows = [(release.items.row_of.get(item_id), text_hash, cosine) for item_id, text_hash, cosine in hits]
    return [
        (row, cosine)
        for row, text_hash, cosine in rows
        if row is not None
        and release.items.available_N[row]
        and description_hash(release.catalogue.text(row)[0]) == text_hash
    ]


def _in_memory(
    release: LoadedRelease, vector_S: np.ndarray, k: int, first_R: Sequence[int] | np.ndarray = ()
) -> list[tuple[int, float]]:
    """The k nearest items and their cosines; the rows of `first_R` before all others."""
    items = release.items
    cosine_N = items.semantic_NS @ vector_S
    order_N = np.where(items.available_N, cosine_N, -np.inf)
    order_N[np.asarray(first_R, np.int64)] += ABOVE_ANY_COSINE
    return [(row, float(cosine_N[row])) for row, _ in items.once_each(lambda num: top(order_N, num), k)]
