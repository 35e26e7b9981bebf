"""Rank the items of one release for a user, with reasons. Item side and model are in memory.

A *row* is an item's place in the item side. A *history* is the rows of a user's items, oldest first.

Shape suffixes:  N items   T sequence length   D width of a state   S semantic size   Q sampled states
                 R recommended rows   H distinct items of the history   E evidence of a row
"""

# ruff: noqa: N803, N815 - the shape suffixes above

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from grasp.manifest import Manifest
from grasp.moments import VoteRule
from grasp.tables import MAX_SEQUENCE_LENGTH
from grasp.versions import file_sha256
from serving.lookup.online_store import UserRow
from serving.ranking.candidates import NO_ADDITIONS, Additions, Candidates, indexed_candidates
from serving.ranking.items import ItemSide, load_items, withdrawn_items
from serving.ranking.moments import MOMENTS_FOLDER, ReleaseMoments, load_moments
from serving.ranking.reasons import MIN_PEOPLE, NOT_FRESH, FreshReason, lifted_by, often, popular_reason
from serving.ranking.votes import NO_VOTES, UserVotes, VotesFallback, stored_votes
from training.model.artefact import LoadedRanker, load_ranker
from training.model.enhancers.id_embeddings import UserVectors
from training.model.inference import InferenceRanker
from training.model.ranker import Ranker

StageTimer = Callable[[str], AbstractContextManager[None]]  # times its block under a stage's name

NUM_REASONS = 2  # items of the history that a reason names, at most
NUM_EXPLAINING = 32  # latest items of the history that it chooses from
NUM_CATEGORIES = 3  # that a reason names
SIMILAR_QUANTILE, NUM_COMPARED = 0.95, 1000  # a reason needs a similarity that this share of pairs does not reach
CLEARLY_MORE = 0.5  # standard deviations by which its item's loss exceeds the mean of the history's items
NUM_SAMPLED = 64  # states that an index is checked with before it is used

log = logging.getLogger("grasp.serving")


def untimed(name: str) -> AbstractContextManager[None]:  # noqa: ARG001 - a `StageTimer`
    return nullcontext()


def no_categories(row: int) -> list[str]:  # noqa: ARG001 - replaced by those of the release's catalogue
    return []


@dataclass(frozen=True)
class Evidence:
    """An item of the user's history that explains a recommendation."""

    item_id: str
    title: str
    score_loss: float  # estimate of how much the score would fall without this item in the history
    similarity: float  # cosine of the two items' semantic embeddings
    is_neighbour: bool  # one of the recommended item's nearest neighbours
    shared_categories: list[str]  # categories of both items


@dataclass(frozen=True)
class Recommendation:
    item_id: str
    title: str
    score: float  # from the model; for a popular item its number of users (`ItemSide.hotness_N`)
    reason: str
    evidence: list[Evidence] = field(default_factory=list)
    fresh: FreshReason = NOT_FRESH


@dataclass(frozen=True)
class _EncodedHistory:
    """What the model computes from a history."""

    items_T: torch.Tensor  # the latest items of the history, as many as the model reads; item = row + 1
    state_D: torch.Tensor
    without_TD: torch.Tensor | None  # estimate of the state without each item; None if not asked for or not given
    added: Additions  # by the history kernel


@dataclass(frozen=True)
class UserState:
    """What the model makes of a user and of the items of a request. All scores follow from it."""

    encoded: _EncodedHistory
    votes: UserVotes
    voted: Additions  # what the votes add

    @property
    def added(self) -> Additions:
        return self.encoded.added + self.voted


class ReleaseRanker:
    """Ranks the items of one release. All methods are safe to call from several threads."""

    def __init__(
        self,
        manifest: Manifest,
        items: ItemSide,
        model: Ranker | None,
        index_from: int | None = None,
        moments: ReleaseMoments | None = None,
    ) -> None:
        """Without `moments` the stored votes count."""
        self.manifest = manifest
        self.items = items
        self.model = model
        self.stage: StageTimer = untimed
        self.categories_of: Callable[[int], Sequence[str]] = no_categories
        self._moments = moments
        self._often = often(items)
        self._names_votes = (manifest.vote_rule or {}).get("min_voters", 0) >= MIN_PEOPLE
        if model:
            model.attach_items(torch.from_numpy(items.semantic_NS), torch.from_numpy(items.neighbour_NS))
            self._frozen = InferenceRanker(model)
            candidate_ND = self._frozen.candidate_ND[1:]
            takers_N = _takers_scores(items, model)
            is_large = index_from is not None and len(candidate_ND) >= index_from
            self._candidates = (
                indexed_candidates(candidate_ND, self._sampled_states(), takers_N)
                if is_large
                else Candidates(candidate_ND, takers_N=takers_N)
            )
        self._shown_N = None if items.available_N.all() else items.available_N  # None: all rows may be shown
        self._average_item_S = items.semantic_NS[items.available_N].mean(0)
        self._least_similarity = _least_similarity(items)

    def rows_of(self, item_ids: Iterable[str]) -> list[int]:
        """Rows of the items, in order; items that the release lacks are left out."""
        return [self.items.row_of[item_id] for item_id in item_ids if item_id in self.items.row_of]

    def fits(self, user: UserRow) -> bool:
        """Whether the user's vectors have the width of the items' vectors."""
        width = self.items.semantic_NS.shape[1]
        return len(user.semantic_embedding) == width == len(user.neighbour_embedding)

    def seen(self, user: UserRow | None, recent_item_ids: Sequence[str]) -> list[int]:
        """Rows of the user's sequence followed by the recent items, oldest first."""
        return self.rows_of([*(user.sequence if user else []), *recent_item_ids])

    def taken(self, user: UserRow | None, recent_item_ids: Sequence[str]) -> list[int]:
        """Rows of all items that the user ever took, of the recent ones, and of other items with the same titles."""
        earlier = self.rows_of(user.earlier_item_ids) if user else []
        return self.items.with_copies([*earlier, *self.seen(user, recent_item_ids)])

    def history(self, user: UserRow | None, recent_item_ids: Sequence[str]) -> list[int]:
        """The latest seen rows, at most as many as a training sequence has."""
        return self.seen(user, recent_item_ids)[-MAX_SEQUENCE_LENGTH:]

    def state_of(self, user: UserRow, recent_item_ids: Sequence[str] = (), *, is_explained: bool = False) -> UserState:
        """What the model makes of the user, once for all that an answer says; `is_explained` for one with reasons.

        Raises `ValueError` without a model or a history.
        """
        return self._state_of(user, self.history(user, recent_item_ids), is_explained)

    def recommend(
        self,
        user: UserRow | None,
        k: int,
        recent_item_ids: Sequence[str] = (),
        exclude_seen: bool = True,
        mask_N: np.ndarray | None = None,
        *,
        state: UserState | None = None,
    ) -> list[Recommendation]:
        """The k best items for a user, each title once.

        Popular items without a user, without a history or without a model. `mask_N` marks the rows that may be shown,
        None means all. `state` is what `state_of` gave; it is computed when it is not given.
        """
        hidden = self.taken(user, recent_item_ids) if exclude_seen else []
        if user is None or self.model is None or not self.history(user, recent_item_ids):
            return self.popular(k, hidden, mask_N)
        state = state or self.state_of(user, recent_item_ids, is_explained=True)
        encoded, added, voted = state.encoded, state.added, state.voted
        shown_N = self._shown_N if mask_N is None else mask_N & self.items.available_N

        def find(num: int) -> list[tuple[int, float]]:
            return self._candidates.best(num, encoded.state_D, added, hidden, shown_N)

        with self.stage("scoring"):
            best = self.items.once_each(find, k + bool(len(voted.row_L)))  # the next one says what votes lifted
        with self.stage("post"):
            return self._with_reasons(best[:k], encoded, self._fresh_reasons(best, k, voted))

    def _with_reasons(
        self, best: list[tuple[int, float]], encoded: _EncodedHistory, fresh: Sequence[FreshReason]
    ) -> list[Recommendation]:
        evidence = self._evidence([row for row, _ in best], encoded)
        return [
            Recommendation(self.items.ids[row], self.items.title(row), score, _reason(found, lately), found, lately)
            for (row, score), found, lately in zip(best, evidence, fresh, strict=True)
        ]

    def _fresh_reasons(self, best: list[tuple[int, float]], k: int, voted: Additions) -> list[FreshReason]:
        """Of the first k of `best`, the reasons from what was taken lately."""
        value_of = dict(zip(voted.row_L.tolist(), voted.value_L.tolist(), strict=True)) if self._names_votes else {}
        lifts = lifted_by([value_of.get(row, 0.0) for row, _ in best[:k]], [score for _, score in best])
        return [FreshReason(self._often_taken(row), lift) for (row, _), lift in zip(best, lifts, strict=False)]

    def _often_taken(self, row: int) -> int | None:
        """The takers of the last 7 days if they are many and add to the score."""
        takers_N, takers = self._candidates.takers_N, int(self.items.takers_7d_N[row])
        return takers if takers_N is not None and takers >= self._often and takers_N[row] > 0 else None

    def scores_of(
        self,
        user: UserRow,
        item_ids: Sequence[str],
        recent_item_ids: Sequence[str] = (),
        *,
        state: UserState | None = None,
    ) -> list[float | None]:
        """The model's scores of the items, in order; None for an item that the release lacks.

        `state` is what `state_of` gave. Raises `ValueError` without a model or a history.
        """
        state = state or self.state_of(user, recent_item_ids)
        with self.stage("scoring"):
            row_R = np.unique(np.array(self.rows_of(item_ids), dtype=np.int64))
            score_R = self._candidates.scores_of(row_R, state.encoded.state_D, state.added)
            score_of = dict(zip(row_R.tolist(), score_R.tolist(), strict=True))
            return [score_of.get(self.items.row_of.get(item_id, -1)) for item_id in item_ids]

    def popular(
        self,
        k: int,
        excluded: Sequence[int] = (),
        mask_N: np.ndarray | None = None,
        first_R: Sequence[int] | np.ndarray = (),
    ) -> list[Recommendation]:
        """The k items that most users took lately, without the excluded rows; the rows of `first_R` come first.

        `mask_N` marks the rows that may be shown.
        """
        excluded_N = np.zeros(len(self.items.ids), dtype=bool) if mask_N is None else ~mask_N
        excluded_N[list(excluded)] = True
        return [
            Recommendation(self.items.ids[row], self.items.title(row), hotness, popular_reason(self.items, row))
            for row, hotness in self.items.popular(k, excluded_N, first_R)
        ]

    def score(self, user: UserRow, history: Sequence[int]) -> np.ndarray:
        """Scores of all items, (N,), equal to the model's offline scores for the same inputs.

        Raises `ValueError` without a model or a history.
        """
        state = self._state_of(user, history)
        with self.stage("scoring"):
            return self._candidates.scores(state.encoded.state_D, state.added)

    def warm_up(self) -> None:
        """Pay first-call costs before the first request. Raises `ValueError` when scores are not finite."""
        history = list(self.items.row_of.values())[:MAX_SEQUENCE_LENGTH]
        self.items.popular(1, np.zeros(len(self.items.ids), dtype=bool))
        if self.model is None:
            return
        encoded = self._encode_vectors(history, self._average_item_S, self._average_item_S)
        if not np.isfinite(self._candidates.scores(encoded.state_D, encoded.added)).all():
            raise ValueError(f"model {self.manifest.model} gives scores that are not finite: do not serve it")
        if self._moments is not None:
            self._moments.votes("", encoded.state_D.numpy())

    def _state_of(self, user: UserRow, history: Sequence[int], is_explained: bool = False) -> UserState:
        encoded = self._encode(history, user, is_explained)
        votes = self._votes(user, encoded.state_D)
        return UserState(encoded, votes, self._voted(votes))

    def _votes(self, user: UserRow, state_D: torch.Tensor) -> UserVotes:
        """The votes of the release's moments if the model reads them and they can be had, else the stored ones."""
        if self.model is None or not self.model.fresh.reads_state_votes:
            return self._stored_votes(user)
        if self._moments is None:
            return self._stored_votes(user, "no_moments")
        try:
            with self.stage("moments"):
                found = self._moments.votes(user.user_id, state_D.numpy())
        except Exception:
            log.exception("the moments of %s could not be searched: the stored votes count", self.manifest.release_id)
            return self._stored_votes(user, "moments_error")
        return UserVotes(found.items, found.weights, "moments")

    def _stored_votes(self, user: UserRow, fallback: VotesFallback | None = None) -> UserVotes:
        """The votes of the user's features, none if the model does not read them."""
        if self.model is None or not self.model.fresh.reads_votes:
            return replace(NO_VOTES, fallback=fallback)
        return stored_votes(user, self.items, fallback)

    def _encode(self, history: Sequence[int], user: UserRow, is_explained: bool = False) -> _EncodedHistory:
        if self.model is None:
            raise ValueError(f"release {self.manifest.release_id} has no model")
        if not history:
            raise ValueError(f"user {user.user_id} has no item that is in release {self.manifest.release_id}")
        return self._encode_vectors(history, user.semantic_embedding, user.neighbour_embedding, is_explained)

    @torch.inference_mode()
    def _encode_vectors(
        self, history: Sequence[int], semantic_S: np.ndarray, neighbour_S: np.ndarray, is_explained: bool = False
    ) -> _EncodedHistory:
        items_T = torch.tensor(history)[-self._frozen.config.max_length :] + 1
        users = UserVectors(*(torch.from_numpy(each.astype(np.float32))[None] for each in (semantic_S, neighbour_S)))
        with self.stage("attention"):
            view_VTD = self._frozen.views(items_T, users)
            added = self._added(items_T)
        with self.stage("backbone"):
            if is_explained:
                state_D, without_TD = self._frozen.state_and_without(view_VTD, NUM_EXPLAINING)
            else:
                state_D, without_TD = self._frozen.state(view_VTD), None
        return _EncodedHistory(items_T, state_D, without_TD, added)

    def _added(self, items_T: torch.Tensor) -> Additions:
        if self._frozen.kernel is None:
            return NO_ADDITIONS
        item_L, value_L = self._frozen.kernel.sparse_scores(items_T)
        return Additions(item_L - 1, value_L)

    @torch.inference_mode()
    def _voted(self, votes: UserVotes) -> Additions:
        """What votes add to the scores of the voted rows."""
        if self.model is None or not len(votes.row_V):
            return NO_ADDITIONS
        fresh = self.model.fresh
        of_votes = fresh.of_state_votes if votes.source == "moments" else fresh.of_votes
        return Additions(torch.from_numpy(votes.row_V), of_votes(torch.from_numpy(votes.weight_V)))

    def _sampled_states(self) -> torch.Tensor:
        """States (Q, D) of made-up users, each with a random item and, before it, that item's neighbours."""
        rows = np.random.default_rng(0).permutation(np.flatnonzero(self.items.available_N))[:NUM_SAMPLED]
        vectors = self.items.semantic_NS, self.items.neighbour_NS
        histories = [[*self.rows_of(self.items.neighbour_ids[row]), int(row)] for row in rows]
        encoded = [self._encode_vectors(history, *(each[history[-1]] for each in vectors)) for history in histories]
        return torch.stack([each.state_D for each in encoded])

    def _losses(self, encoded: _EncodedHistory, row_R: Sequence[int]) -> tuple[np.ndarray, np.ndarray] | None:
        """The latest distinct rows of the history, (H,), and how much each recommended row's score falls without them.

        The second is (H, R); a row that occurs several times in the history is taken out everywhere.
        """
        if encoded.without_TD is None:
            return None
        lost_TD = encoded.state_D.numpy() - encoded.without_TD.numpy()
        loss_TR = lost_TD @ self._candidates.candidate_ND.numpy()[row_R].T
        if self._frozen.kernel is not None:
            loss_TR += self._frozen.kernel.losses(encoded.items_T, [row + 1 for row in row_R])[-len(loss_TR) :]
        seen_T = encoded.items_T.numpy()[-len(loss_TR) :] - 1
        if len(set(seen_T.tolist())) == len(seen_T):
            return seen_T, loss_TR
        seen_H, place_T = np.unique(seen_T, return_inverse=True)
        loss_HR = np.zeros((len(seen_H), len(row_R)), dtype=np.float32)
        np.add.at(loss_HR, place_T, loss_TR)
        return seen_H, loss_HR

    def _evidence(self, recommended: Sequence[int], encoded: _EncodedHistory) -> list[list[Evidence]]:
        """For each recommended row, the similar items of the history without which its score would fall most.

        An item is evidence only if few pairs of items are as similar, and if the score falls clearly more without it
        than without another item of the history.
        """
        found = self._losses(encoded, recommended) if recommended else None
        if found is None:
            return [[] for _ in recommended]
        seen_H, loss_HR = found
        similarity_HR = self.items.semantic_NS[seen_H] @ self.items.semantic_NS[recommended].T
        least_R = np.maximum(loss_HR.mean(0) + CLEARLY_MORE * loss_HR.std(0), 0)
        is_evidence_HR = (similarity_HR >= self._least_similarity) & ((loss_HR > least_R) | (len(seen_H) == 1))
        is_evidence_HR &= seen_H[:, None] != recommended
        evidence: list[list[Evidence]] = [[] for _ in recommended]
        rank_F, place_F = np.nonzero(is_evidence_HR.T)
        loss_F = loss_HR[place_F, rank_F]
        for each in np.lexsort((-loss_F, rank_F)).tolist():
            rank, place = rank_F[each], place_F[each]
            if len(evidence[rank]) < NUM_REASONS:
                similarity = float(similarity_HR[place, rank])
                evidence[rank].append(
                    self._evidence_of(recommended[rank], int(seen_H[place]), float(loss_F[each]), similarity)
                )
        return evidence

    def _evidence_of(self, row: int, seen: int, loss: float, similarity: float) -> Evidence:
        of_seen = self.categories_of(seen)
        return Evidence(
            item_id=self.items.ids[seen],
            title=self.items.title(seen),
            score_loss=loss,
            similarity=similarity,
            is_neighbour=self.items.ids[seen] in self.items.neighbour_ids[row],
            shared_categories=[each for each in self.categories_of(row) if each in of_seen],
        )


@torch.no_grad()
def _takers_scores(items: ItemSide, model: Ranker) -> torch.Tensor | None:
    """What recent takers add to the score of each item, (N,), once for all requests; None where it is nothing."""
    if items.takers_WN is None or not model.fresh.reads_takers:
        return None
    scores_N: torch.Tensor = model.fresh.of_takers(torch.from_numpy(items.takers_WN))
    return scores_N


def _least_similarity(items: ItemSide) -> float:
    """The cosine that a reason needs, from a sample of pairs of items."""
    rows = np.random.default_rng(0).permutation(np.flatnonzero(items.available_N))[:NUM_COMPARED]
    vector_RS = items.semantic_NS[rows]
    cosines = (vector_RS @ vector_RS.T)[np.triu_indices(len(rows), 1)]
    return float(np.quantile(cosines, SIMILAR_QUANTILE)) if len(cosines) else 1.0


def _reason(evidence: Sequence[Evidence], fresh: FreshReason) -> str:
    texts = [*([_of_history(evidence)] if evidence else []), *fresh.texts()]
    return "; ".join(texts) if texts else "ranked by your whole history"


def _of_history(evidence: Sequence[Evidence]) -> str:
    shared = list(dict.fromkeys(category for each in evidence for category in each.shared_categories))[:NUM_CATEGORIES]
    named = f" ({', '.join(shared)})" if shared else ""
    return f"similar to {' and '.join(each.title for each in evidence)} in your history{named}"


def load_release_ranker(
    folder: Path, manifest: Manifest, index_from: int | None = None, online_moments: bool = True
) -> ReleaseRanker:
    """Check a release folder and load its ranker. Raises `ValueError` naming the file or version that does not fit.

    From `index_from` items on, an index searches the catalogue if its recall is high enough; None means no index.
    Without `online_moments` the moments of the release are not loaded, so only stored votes count.
    """
    torch.set_num_threads(1)  # more threads make one small request slower, and many requests much slower
    check_files(folder, manifest)
    loaded = _load_model(folder / "model", manifest) if manifest.model else None
    vocabulary = loaded.vocabulary if loaded else ()
    items = load_items(folder / "items", manifest.feature_version, vocabulary, withdrawn_items(folder / "withdrawn"))
    reads_moments = online_moments and loaded is not None and loaded.ranker.fresh.reads_state_votes
    moments = _load_moments(folder / MOMENTS_FOLDER, manifest, items) if reads_moments else None
    ranker = ReleaseRanker(manifest, items, loaded.ranker if loaded else None, index_from, moments)
    ranker.warm_up()
    return ranker


def _load_moments(folder: Path, manifest: Manifest, items: ItemSide) -> ReleaseMoments | None:
    """The moments of a release; None if it has none, as on the first days."""
    if manifest.vote_rule is None or not folder.is_dir():
        return None
    return ReleaseMoments(load_moments(folder, items, manifest.day), VoteRule(**manifest.vote_rule))


def check_files(folder: Path, manifest: Manifest) -> None:
    """Compare every file with its checksum in the manifest. Raises `ValueError` naming the first that differs."""
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
                f"{folder}: the model has {name} {actual}, the release {expected}: they do not belong together"
            )
    return loaded
