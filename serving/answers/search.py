"""Search by meaning: the query goes through the encoder of the descriptions, its vector to Milvus or through memory.

A Milvus server is asked where one is configured. Milvus-Lite belongs to the jobs, so then, and whenever the server
is down or slow, the release's own vectors are searched. A query is data: it is encoded, and enters no filter or log.

Shape suffix:  S semantic size
"""

# ruff: noqa: N803 - the shape suffix above

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from grasp.settings import Settings
from serving.ranking.items import top
from serving.rollout.follower import LoadedRelease

if TYPE_CHECKING:
    from pymilvus import MilvusClient

NUM_PROBED, LEAST_COSINE = 3, 0.99  # of a description's vector in the release and by the encoder at hand
NUM_SPARE = 100  # hits beyond k, for those that the release does not have
ENCODER_LOADED = "the encoder of searches is loaded"  # said once by each worker that is searched
LATE_MESSAGE = "searches are not answered in time, as when the encoder is being loaded; ask again"
RETRY_SECONDS = 10.0  # a server that failed is left alone for as long
NUM_THREADS = 2  # of searches: one encodes while another waits for Milvus
ANSWER_SECONDS = 30.0  # a search that has waited for as long, as a rule for the encoder to be loaded, is not answered

SearchFallback = Literal["milvus_timeout", "milvus_error"]

log = logging.getLogger("grasp.serving")


class SearchError(RuntimeError):
    """There is no encoder, or another one than the release's; the message says which."""


class SearchLateError(SearchError):
    """There is no answer in time; a later search finds the encoder loaded."""


class Encoder(Protocol):
    def encode(self, texts: list[str]) -> np.ndarray:
        """Unit vectors, float32 [len(texts), dimension]; raises `SearchError`."""


class FolderEncoder:
    """The sentence-transformers folder that the jobs encode with, on one thread."""

    def __init__(self, folder: Path) -> None:
        if not (folder / "modules.json").is_file():  # else any language model would load, with pooling made up
            raise SearchError(f"GRASP_ENCODER={folder} is no sentence-transformers folder: modules.json is missing")
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
    """An OpenAI-compatible embeddings server; its key is `GRASP_ENCODER_API_KEY` in this process's environment."""

    def __init__(self, settings: Settings) -> None:
        from openai import OpenAI

        self._model = settings.encoder_model
        # Never empty: without a key the client would take OPENAI_API_KEY, which may be meant for someone else.
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
    """A server's collections, asked within a limit of time. Raises `TimeoutError` or `ConnectionError`."""

    def __init__(
        self,
        settings: Settings,
        connect: Callable[[], "MilvusClient"] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        from pymilvus.exceptions import MilvusException  # here: the first search should not wait for an import

        self._failures = (MilvusException, OSError)
        self._settings = settings
        self._timeout_seconds = settings.search_timeout_ms / 1000
        self._connect = connect or self._real_client
        self._monotonic = monotonic
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="milvus")
        self._retry_at, self._problem = 0.0, ""

    def search(self, collection: str, vector_S: np.ndarray, k: int) -> list[tuple[str, float]]:
        """Ids and cosines of the k nearest."""
        if self._monotonic() < self._retry_at:
            raise ConnectionError(self._problem)
        answer = self._threads.submit(self._ask, collection, vector_S, k)
        try:
            return answer.result(self._timeout_seconds)
        except TimeoutError:
            answer.cancel()
            self._rest(f"Milvus took longer than {self._timeout_seconds * 1000:.0f} ms")
            raise
        except ConnectionError as error:
            self._rest(str(error))
            raise

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    @cached_property
    def _client(self) -> "MilvusClient":
        return self._connect()

    def _real_client(self) -> "MilvusClient":
        from pymilvus import MilvusClient

        settings = self._settings
        return MilvusClient(uri=settings.milvus_uri, token=settings.milvus_token.get_secret_value(), timeout=self._timeout_seconds)

    def _ask(self, collection: str, vector_S: np.ndarray, k: int) -> list[tuple[str, float]]:
        try:
            (hits,) = self._client.search(
                collection,
                data=[vector_S.tolist()],
                limit=k,
                output_fields=["id"],
                search_params={"metric_type": "COSINE"},
                timeout=self._timeout_seconds,
            )
        except self._failures as error:
            raise ConnectionError(f"Milvus did not answer: {type(error).__name__}") from error
        return [(hit["id"], float(hit["distance"])) for hit in hits]

    def _rest(self, problem: str) -> None:
        log.warning("%s; not asked again for %.0f s", problem, RETRY_SECONDS)
        self._problem, self._retry_at = problem, self._monotonic() + RETRY_SECONDS


@dataclass(frozen=True)
class SearchHits:
    pairs: list[tuple[int, float]]  # rows of the release and cosines, nearest first
    backend: Literal["milvus", "memory"]
    fallback: SearchFallback | None = None


class Search:
    """Loads the encoder when it is first asked: a worker that is never searched does not pay for one.

    Searches have threads of their own, and wait for them in the event loop: however many wait for the encoder, none
    takes a thread that a recommendation needs.
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
        self._checked: str | None = None  # the release that the encoder was found to be that of
        is_server = "://" in settings.milvus_uri
        self._milvus = milvus or (MilvusSearch(settings) if is_server else None)

    async def find(self, release: LoadedRelease, query: str, k: int) -> SearchHits:
        """The k items whose descriptions are nearest to the query; raises `SearchError`."""
        if not self._settings.search:
            raise SearchError("search is switched off (GRASP_SEARCH)")
        answer = self._threads.submit(copy_context().run, self._find, release, query, k)  # its log names the request
        try:
            async with asyncio.timeout(self._answer_seconds):
                return await asyncio.wrap_future(answer)  # one that still waits for a thread is taken back
        except TimeoutError as error:
            raise SearchLateError(LATE_MESSAGE) from error

    def _find(self, release: LoadedRelease, query: str, k: int) -> SearchHits:
        vector_S = self._encoder_of(release).encode([query])[0]
        if self._milvus is None:
            return SearchHits(_in_memory(release, vector_S, k), "memory")
        row_of = release.items.row_of
        try:
            found = self._milvus.search(release.manifest.collections["item"], vector_S, k + NUM_SPARE)
        except TimeoutError:
            return SearchHits(_in_memory(release, vector_S, k), "memory", "milvus_timeout")
        except ConnectionError:
            return SearchHits(_in_memory(release, vector_S, k), "memory", "milvus_error")
        return SearchHits([(row_of[each], cosine) for each, cosine in found if each in row_of][:k], "milvus")

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._milvus:
            self._milvus.close()

    def _encoder_of(self, release: LoadedRelease) -> Encoder:
        """The encoder, once it has shown that it makes the release's vectors."""
        with self._lock:
            if self._encoder is None:
                self._encoder = self._open_encoder(self._settings)
                log.info(ENCODER_LOADED)
            if self._checked != release.release_id:
                _require_same(self._encoder, release)
                self._checked = release.release_id
            return self._encoder


def _require_same(encoder: Encoder, release: LoadedRelease) -> None:
    """Raise `SearchError` unless descriptions of the release get the vectors that they have there."""
    items = release.items
    rows = list(items.row_of.values())[:NUM_PROBED]
    vectors = encoder.encode([release.catalogue.text(row)[0] for row in rows])
    held = items.semantic_NS[rows]
    if vectors.shape != held.shape or (vectors * held).sum(1).min() < LEAST_COSINE:
        raise SearchError(f"GRASP_ENCODER is not the encoder that release {release.release_id} was made with")


def _in_memory(release: LoadedRelease, vector_S: np.ndarray, k: int) -> list[tuple[int, float]]:
    items = release.items
    return top(np.where(items.available_N, items.semantic_NS @ vector_S, -np.inf), k)
