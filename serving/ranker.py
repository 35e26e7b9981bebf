"""One release, ready to answer: item side and model in memory, scores and reasons for a user.

Shape suffixes:  N items   T sequence length   D model width   S semantic size
"""

# ruff: noqa: N803 - the shape suffixes above

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from grasp.release import Manifest
from grasp.tables import MAX_SEQUENCE_LENGTH
from grasp.versions import file_sha256
from serving.features import UserRow
from serving.items import ItemSide, load_items, top
from training.artefact import LoadedRanker, load_ranker
from training.model import Ranker

Stage = Callable[[str], AbstractContextManager[None]]  # times what is done within it, by the stage's name

NUM_REASONS = 2  # items of the history that a reason names


def untimed(name: str) -> AbstractContextManager[None]:  # noqa: ARG001 - a `Stage`
    return nullcontext()


@dataclass(frozen=True)
class Evidence:
    """An item of the user's history that speaks for a recommendation."""

    item_id: str
    title: str
    weight: float  # attention of the ranker; equal shares for a ranker without it
    similarity: float  # cosine of the two items' semantic embeddings
    is_neighbour: bool  # one of the nearest items whose mean the score was computed from


@dataclass(frozen=True)
class Recommendation:
    item_id: str
    title: str
    score: float  # of the model, or the number of users for a popular item
    reason: str
    evidence: list[Evidence] = field(default_factory=list)


class Release:
    """What is in memory of one release. All methods may be called from several threads."""

    def __init__(self, manifest: Manifest, items: ItemSide, model: Ranker | None) -> None:
        self.manifest = manifest
        self.items = items
        self.model = model
        self.stage: Stage = untimed
        if model:
            model.attach_items(torch.from_numpy(items.semantic_NS), torch.from_numpy(items.neighbour_NS))
            with torch.inference_mode():
                self._candidate_ND = model.candidates()
        self._average_item_S = items.semantic_NS[items.available_N].mean(0)

    def known(self, item_ids: Iterable[str]) -> list[int]:
        """Rows of those items that the release has, in order."""
        return [self.items.row_of[item_id] for item_id in item_ids if item_id in self.items.row_of]

    def fits(self, user: UserRow) -> bool:
        """Whether the user's vectors are as wide as the items'."""
        width = self.items.semantic_NS.shape[1]
        return len(user.semantic_embedding) == width == len(user.neighbour_embedding)

    def history(self, user: UserRow | None, recent_item_ids: Sequence[str]) -> list[int]:
        """Rows of the user's sequence with the recent items after it, oldest first."""
        rows = self.known([*(user.sequence if user else []), *recent_item_ids])
        return rows[-MAX_SEQUENCE_LENGTH:]

    def recommend(
        self,
        user: UserRow | None,
        k: int,
        recent_item_ids: Sequence[str] = (),
        exclude_seen: bool = True,
        mask_N: np.ndarray | None = None,
    ) -> list[Recommendation]:
        """The k best items for a user; popular ones for None, for an empty history, or in a release without model.

        `mask_N` marks the rows that may be shown; all when None.
        """
        history = self.history(user, recent_item_ids)
        if user is None or not history or self.model is None:
            return self.popular(k, history if exclude_seen else [], mask_N)
        with self.stage("scoring"):
            scores_N, weights_T = self._read(self.model, history, user.semantic_embedding, user.neighbour_embedding)
        with self.stage("post"):
            hidden_N = ~self.items.available_N if mask_N is None else ~(self.items.available_N & mask_N)
            if exclude_seen:
                hidden_N[history] = True
            return self._explained(k, history, np.where(hidden_N, -np.inf, scores_N), weights_T)

    def _explained(
        self, k: int, history: list[int], scores_N: np.ndarray, weights_T: np.ndarray
    ) -> list[Recommendation]:
        best = top(scores_N, k)
        evidence = self._evidence([row for row, _ in best], history[-len(weights_T) :], weights_T)
        return [
            Recommendation(self.items.ids[row], self.items.title(row), score, _reason(found), found)
            for (row, score), found in zip(best, evidence, strict=True)
        ]

    def scores_of(
        self, user: UserRow, item_ids: Sequence[str], recent_item_ids: Sequence[str] = ()
    ) -> list[float | None]:
        """The model's scores of the items, in order; None for one that the release lacks. Raises as `score` does."""
        scores_N = self.score(user, self.history(user, recent_item_ids))
        rows = [self.items.row_of.get(item_id) for item_id in item_ids]
        return [None if row is None else float(scores_N[row]) for row in rows]

    def popular(self, k: int, excluded: Sequence[int] = (), mask_N: np.ndarray | None = None) -> list[Recommendation]:
        """The k items with most users, without the excluded rows, of those that may be shown (`mask_N`)."""
        excluded_N = np.zeros(len(self.items.ids), dtype=bool) if mask_N is None else ~mask_N
        excluded_N[list(excluded)] = True
        return [
            Recommendation(self.items.ids[row], self.items.title(row), users, f"popular: {users:.0f} users")
            for row, users in self.items.popular(k, excluded_N)
        ]

    def score(self, user: UserRow, history: Sequence[int]) -> np.ndarray:
        """Scores of all items, (N,), as the model gives them offline for the same inputs."""
        if self.model is None:
            raise ValueError(f"release {self.manifest.release_id} has no model")
        return self._read(self.model, history, user.semantic_embedding, user.neighbour_embedding)[0]

    def warm_up(self) -> None:
        """Pay first-call costs before the first request; raises `ValueError` for a model that scores nothing."""
        if self.model is None:
            return
        user_S = self._average_item_S.tolist()
        scores_N, _ = self._read(self.model, list(self.items.row_of.values())[:MAX_SEQUENCE_LENGTH], user_S, user_S)
        if not np.isfinite(scores_N).all():
            raise ValueError(f"model {self.manifest.model} gives scores that are not finite: do not serve it")

    def _read(
        self, model: Ranker, history: Sequence[int], semantic_S: Sequence[float], neighbour_S: Sequence[float]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores of all items (N,) and the weight of each item of the history that the model read (T,)."""
        items_BT = torch.tensor([history[-model.config.max_length :]]) + 1
        semantic_BS, neighbour_BS = torch.tensor([semantic_S]), torch.tensor([neighbour_S])
        with torch.inference_mode():
            scores_N = model.scores(items_BT, semantic_BS, neighbour_BS, self._candidate_ND)[0, 1:].numpy()
            if model.config.enhancer != "grasp":
                return scores_N, np.full(items_BT.shape[1], 1 / items_BT.shape[1])
            return scores_N, model.history_weights(items_BT, semantic_BS, neighbour_BS)[0].numpy()

    def _evidence(
        self, recommended: Sequence[int], history: Sequence[int], weights_T: np.ndarray
    ) -> list[list[Evidence]]:
        """For each recommended row the items of the history that count most, by attention times similarity.

        Only those count that are nearer to the recommended item than the average item is.
        """
        seen, position_T = np.unique(history, return_inverse=True)
        weights = np.bincount(position_T, weights_T)
        vectors = self.items.semantic_NS[list(recommended)]
        least = np.maximum(vectors @ self._average_item_S, 0)
        similarities = vectors @ self.items.semantic_NS[seen].T
        similarities = np.where(seen == np.array(recommended)[:, None], -1, similarities)
        values = np.where(similarities > least[:, None], similarities * weights, -np.inf)
        return [
            [
                Evidence(
                    item_id=self.items.ids[seen[index]],
                    title=self.items.title(seen[index]),
                    weight=float(weights[index]),
                    similarity=float(similarities[rank, index]),
                    is_neighbour=self.items.ids[seen[index]] in self.items.neighbour_ids[row],
                )
                for index, _ in top(values[rank], NUM_REASONS)
            ]
            for rank, row in enumerate(recommended)
        ]


def _reason(evidence: Sequence[Evidence]) -> str:
    if not evidence:
        return "ranked by your history as a whole"
    return f"similar to {' and '.join(each.title for each in evidence)} in your history"


def load_release(folder: Path, manifest: Manifest) -> Release:
    """Check and load a release folder; raises `ValueError` naming the file or version that does not fit."""
    torch.set_num_threads(1)  # more threads make one small request slower, and many requests much slower
    check_files(folder, manifest)
    loaded = _load_model(folder / "model", manifest) if manifest.model else None
    items = load_items(folder / "items", manifest.feature_version, loaded.vocabulary if loaded else ())
    release = Release(manifest, items, loaded.ranker if loaded else None)
    release.warm_up()
    return release


def check_files(folder: Path, manifest: Manifest) -> None:
    """Compare every file with the manifest's checksum; raises `ValueError` naming the first that differs."""
    for name, checksum in manifest.checksums.items():
        file = folder / name
        if not file.is_file():
            raise ValueError(f"{file} is missing: the release is incomplete; publish its day again or roll back")
        if file_sha256(file) != checksum:
            raise ValueError(f"{file} does not match its checksum: publish its day again or roll back")


def _load_model(folder: Path, manifest: Manifest) -> LoadedRanker:
    loaded = load_ranker(folder)
    for name, expected in (
        ("name", manifest.model),
        ("feature_version", manifest.feature_version),
        ("feature_service", manifest.feature_service),
    ):
        actual = getattr(loaded.metadata, name)
        if actual != expected:
            raise ValueError(
                f"{folder}: {name} of the model is {actual}, of the release {expected}: they cannot be mixed"
            )
    return loaded
