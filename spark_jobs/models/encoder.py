"""The encoder that turns descriptions into unit vectors, loaded once per Spark worker."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Protocol

import numpy as np

NORM_TOLERANCE = 1e-3


class Encoder(Protocol):
    def encode(self, texts: list[str]) -> np.ndarray:
        """Unit vectors in the order of the texts, float32 [len(texts), dimension]."""


class SentenceEncoder:
    """A sentence-transformers folder on one CPU thread, because Spark already runs one worker per core."""

    def __init__(self, folder: Path, batch_size: int) -> None:
        if not (folder / "modules.json").is_file():  # without it, any language model would load
            raise ValueError(f"GRASP_ENCODER={folder} is not a sentence-transformers folder: modules.json is missing")
        import torch
        from safetensors import SafetensorError
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging

        torch.set_num_threads(1)
        logging.disable_progress_bar()
        self._batch_size = batch_size
        try:
            self._model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise ValueError(
                f"GRASP_ENCODER={folder} holds no usable sentence-transformers encoder: {error}"
            ) from error

    def encode(self, texts: list[str]) -> np.ndarray:
        vectors = self._model.encode(
            texts, batch_size=self._batch_size, normalize_embeddings=True, show_progress_bar=False
        )
        return np.asarray(vectors, dtype=np.float32)


@cache
def load_encoder(folder: Path, batch_size: int) -> Encoder:
    """The encoder of this process: loaded once per Spark worker, not once per partition."""
    return SentenceEncoder(folder, batch_size)


def require_unit_vectors(vectors: np.ndarray, ids: Sequence[str]) -> None:
    """Raise `ValueError` naming the ids whose vector is not finite or not of length 1."""
    norms = np.linalg.norm(np.asarray(vectors, dtype=np.float64), axis=1)
    unsound = np.flatnonzero(~(np.abs(norms - 1) <= NORM_TOLERANCE))  # also true of NaN and infinity
    if unsound.size:
        named = ", ".join(f"{ids[i]} (length {norms[i]:.4g})" for i in unsound[:5])
        more = f" and {unsound.size - 5} more" if unsound.size > 5 else ""
        raise ValueError(f"vectors must be finite and of length 1; these are not: {named}{more}")
