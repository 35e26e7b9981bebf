"""The encoder over HTTP: any OpenAI-compatible embeddings endpoint (vLLM, text-embeddings-inference, a vendor).

If the server needs a key, set `GRASP_ENCODER_API_KEY` in each worker's environment; `language_model_http.py` says how.
The `openai` client retries with backoff and honours Retry-After. There is no budget: no text is encoded twice
(`vectors/text_embeddings.py`), and one text costs almost nothing.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np

from grasp.settings import Settings
from spark_jobs.models.chat_completions import read_failure
from spark_jobs.models.encoder import Encoder
from spark_jobs.models.language_model_http import api_key

KEY_VARIABLE = "GRASP_ENCODER_API_KEY"


@dataclass(frozen=True)
class EncoderServer:
    """Address, model and retry settings of an embeddings server. Holds no key."""

    url: str
    model: str
    batch_size: int
    timeout_seconds: float = 60
    max_attempts: int = 5

    @classmethod
    def of(cls, settings: Settings) -> "EncoderServer":
        return cls(
            settings.encoder_url,
            settings.encoder_model,
            settings.encoder_batch_size,
            settings.llm_timeout_seconds,
            settings.llm_max_attempts,
        )


@cache
def load_server_encoder(server: EncoderServer) -> Encoder:
    """The encoder of this process, one client for all partitions."""
    return OpenAIEncoder(server)


class OpenAIEncoder:
    def __init__(self, server: EncoderServer) -> None:
        from openai import OpenAI

        self._server = server
        self._client = OpenAI(
            api_key=api_key(KEY_VARIABLE),
            base_url=server.url,
            timeout=server.timeout_seconds,
            max_retries=server.max_attempts - 1,
        )

    def encode(self, texts: list[str]) -> np.ndarray:
        """Unit vectors in the order of the texts; raises `ValueError` when the server gives none."""
        size = self._server.batch_size
        parts = [self._encode_batch(texts[start : start + size]) for start in range(0, len(texts), size)]
        vectors = np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)

    def _encode_batch(self, texts: list[str]) -> np.ndarray:
        from openai import OpenAIError
        from openai.types import CreateEmbeddingResponse

        server = self._server
        try:
            answer = self._client.embeddings.create(model=server.model, input=texts, encoding_format="float")
        except OpenAIError as error:  # its text may quote the key
            raise ValueError(f"GRASP_ENCODER_URL gave no vectors: {read_failure(error).failure}") from None
        if not isinstance(answer, CreateEmbeddingResponse):  # for example a web page, when the address lacks /v1
            raise ValueError("GRASP_ENCODER_URL gave no vectors: its answer is not JSON")
        if answer.model != server.model:
            raise ValueError(f"GRASP_ENCODER_URL was asked for {server.model} and answered by {answer.model}")
        vectors = {entry.index: entry.embedding for entry in answer.data}
        if sorted(vectors) != list(range(len(texts))):
            raise ValueError(f"GRASP_ENCODER_URL gave {len(answer.data)} vectors for {len(texts)} texts")
        return np.asarray([vectors[place] for place in range(len(texts))], dtype=np.float32)
