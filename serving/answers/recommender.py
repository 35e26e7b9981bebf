"""Answer a request about a user: choose the release, look up features, and fall back when something is missing.

Shape suffixes:  N items of the release   S semantic size
"""

# ruff: noqa: N803 - the shape suffixes above

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from fastapi import HTTPException

from grasp.days import end_of
from grasp.settings import Settings
from serving.lookup.online_store import UserRow
from serving.lookup.user_lookup import LookupResult, StoreProblem, UserLookup
from serving.ranking.catalogue import UnknownCategoryError
from serving.ranking.items import ItemSide
from serving.ranking.release_ranker import ReleaseRanker, UserState
from serving.ranking.votes import NO_VOTES, UserVotes
from serving.releases.buckets import Bucket
from serving.rollout.follower import LoadedRelease, LoadedReleases, ReleaseFollower
from serving.schemas import (
    BatchRequest,
    BatchResponse,
    Fallback,
    Filters,
    ItemScore,
    RecommendationRequest,
    RecommendationResponse,
    ScoresRequest,
    ScoresResponse,
)
from serving.telemetry.metrics import Metrics

SCORED = (None, "last_good", "stale_features", "recent_items_only")  # fallbacks with which the model scores the items

log = logging.getLogger("grasp.serving")


@dataclass(frozen=True)
class ReleaseChoice:
    """The release that answers a user, and the user's bucket in the experiment."""

    release: LoadedRelease
    experiment: str | None = None
    bucket: Bucket | None = None


@dataclass(frozen=True)
class AnswerInputs:
    """All that an answer about a user is computed from."""

    choice: ReleaseChoice
    user: UserRow | None  # made from the recent items with the fallback `recent_items_only`
    known_at: datetime  # end of the features' day
    age_hours: float
    is_stale: bool
    fallback: Fallback | None
    store_problem: StoreProblem | None
    state: UserState | None  # with which the model scores the items; None where popularity does

    @property
    def votes(self) -> UserVotes:
        return self.state.votes if self.state else NO_VOTES


class Recommender:
    """Answers from the loaded releases. Each answer comes from one release."""

    def __init__(self, settings: Settings, follower: ReleaseFollower, lookup: UserLookup, metrics: Metrics) -> None:
        self._settings = settings
        self._follower = follower
        self._lookup = lookup
        self._metrics = metrics

    async def recommend(self, request: RecommendationRequest, request_id: str) -> RecommendationResponse:
        choice = self._choose(self.loaded(), request.user_id, request.release)
        return self._answer(choice, await self._look_up(choice, request.user_id), request, request_id)

    def recommend_batch(self, batch: BatchRequest, request_id: str) -> BatchResponse:
        """One answer per user. Each has its own request id, which outcomes refer to."""
        loaded = self.loaded()
        choices = [self._choose(loaded, user_id, batch.release) for user_id in batch.user_ids]
        with self._metrics.stage("lookup"):
            asked = [(each.release, user_id) for each, user_id in zip(choices, batch.user_ids, strict=True)]
            results = self._lookup.get_many(asked)
        shared = batch.model_dump(exclude={"user_ids", "is_shown"})
        requests = [RecommendationRequest(user_id=user_id, **shared) for user_id in batch.user_ids]
        answers = [
            self._answer(*each, f"{request_id}.{place}")
            for place, each in enumerate(zip(choices, results, requests, strict=True))
        ]
        return BatchResponse(request_id=request_id, answers=answers)

    async def scores(self, request: ScoresRequest, request_id: str) -> ScoresResponse:
        choice = self._choose(self.loaded(), request.user_id, request.release)
        result = await self._look_up(choice, request.user_id)
        inputs = self._inputs(choice, result, request.user_id, request.recent_item_ids)
        if inputs.state and inputs.user:
            ranker = choice.release.ranker
            scores = ranker.scores_of(inputs.user, request.item_ids, request.recent_item_ids, state=inputs.state)
        else:
            items = choice.release.items
            rows = [items.row_of.get(item_id) for item_id in request.item_ids]
            scores = [None if row is None else float(items.hotness_N[row]) for row in rows]
        pairs = zip(request.item_ids, scores, strict=True)
        return ScoresResponse(
            **_answer_fields(inputs, request.user_id, request_id),
            scores=[ItemScore(item_id=item_id, score=score) for item_id, score in pairs],
        )

    def loaded(self) -> LoadedReleases:
        """The loaded releases. Raises 503 with the reason before the first one."""
        if self._follower.loaded is None:
            raise HTTPException(503, self._follower.problem)
        return self._follower.loaded

    def age_hours(self, known_at: datetime) -> float:
        """Age of features that know what happened up to `known_at`."""
        return (self._settings.clock() - known_at).total_seconds() / 3600

    def is_stale(self, known_at: datetime) -> bool:
        """Whether the refresh that replaces these features is overdue by more than GRASP_MAX_FEATURE_AGE_HOURS."""
        return self.age_hours(known_at) > self._settings.stale_after_hours

    def _choose(self, loaded: LoadedReleases, user_id: str, release_id: str | None) -> ReleaseChoice:
        if release_id is None:
            release, bucket = loaded.for_user(user_id)
            return ReleaseChoice(release, loaded.experiment.name if loaded.experiment else None, bucket)
        named = loaded.named(release_id)
        if named is None:
            available = ", ".join(each.release_id for each in loaded)
            raise HTTPException(404, f"release {release_id!r} is not loaded; there are {available}")
        return ReleaseChoice(named)

    async def _look_up(self, choice: ReleaseChoice, user_id: str) -> LookupResult:
        with self._metrics.stage("lookup"):
            return await self._lookup.get(choice.release, user_id)

    def _answer(
        self, choice: ReleaseChoice, result: LookupResult, request: RecommendationRequest, request_id: str
    ) -> RecommendationResponse:
        inputs = self._inputs(choice, result, request.user_id, request.recent_item_ids, is_explained=True)
        ranker, recent = choice.release.ranker, request.recent_item_ids
        mask_N = self._allowed(choice.release, request)
        if inputs.state:
            items = ranker.recommend(
                inputs.user, request.k, recent, request.exclude_seen, mask_N=mask_N, state=inputs.state
            )
        else:
            hidden = ranker.taken(inputs.user, recent) if request.exclude_seen else []
            first_R = _of_their_categories(choice.release, recent)
            items = ranker.popular(request.k, hidden, mask_N=mask_N, first_R=first_R)
        return RecommendationResponse(
            **_answer_fields(inputs, request.user_id, request_id),
            items=items,
            num_unknown_recent_items=len(recent) - len(ranker.rows_of(recent)),
        )

    def _allowed(self, release: LoadedRelease, filters: Filters) -> np.ndarray | None:
        """Which rows may be shown, (N,) of bool; None without filters, which is not worth timing."""
        if filters.allow_item_ids is None and not filters.deny_item_ids and not filters.categories:
            return None
        with self._metrics.stage("post"):
            return _allowed(release, filters)

    def _inputs(
        self,
        choice: ReleaseChoice,
        result: LookupResult,
        user_id: str,
        recent_item_ids: Sequence[str],
        *,
        is_explained: bool = False,
    ) -> AnswerInputs:
        ranker, manifest = choice.release.ranker, choice.release.manifest
        user, problem = result.row, result.problem
        if user and not ranker.fits(user):
            log.error("user features of day %s do not fit release %s", user.event_timestamp, manifest.release_id)
            user, problem = None, "store_error"
        if problem:
            self._metrics.count_store_problem(problem)
        known_at = user.event_timestamp if user else end_of(manifest.day)
        age_hours = self.age_hours(known_at)
        history = ranker.history(user, recent_item_ids)
        fallback = self._fallback(ranker, user, problem, history)
        if fallback == "recent_items_only":
            user = _row_from_recent_items(ranker.items, history, known_at, user_id)
        state = None
        if user and fallback in SCORED:
            state = ranker.state_of(user, recent_item_ids, is_explained=is_explained)
            if state.votes.fallback:
                self._metrics.count_votes_fallback(state.votes.fallback)
        self._metrics.count_answer(manifest.release_id, choice.bucket, fallback, age_hours)
        return AnswerInputs(choice, user, known_at, age_hours, self.is_stale(known_at), fallback, problem, state)

    def _fallback(
        self, ranker: ReleaseRanker, user: UserRow | None, problem: StoreProblem | None, history: list[int]
    ) -> Fallback | None:
        if user is None:
            if history and ranker.model:
                return "recent_items_only"
            return problem or "unknown_user"
        if ranker.model is None:
            return "no_model"
        if not history:
            return "no_history"
        if self.is_stale(user.event_timestamp):
            return "stale_features"
        return "last_good" if problem else None


def _answer_fields(inputs: AnswerInputs, user_id: str, request_id: str) -> dict[str, Any]:
    """The fields of `Answer`."""
    manifest = inputs.choice.release.manifest
    return {
        "request_id": request_id,
        "user_id": user_id,
        "release": manifest.release_id,
        "model": manifest.model,
        "experiment": inputs.choice.experiment,
        "bucket": inputs.choice.bucket,
        "feature_day": inputs.known_at.date().isoformat(),
        "feature_age_hours": rounded(inputs.age_hours),
        "is_stale": inputs.is_stale,
        "fallback": inputs.fallback,
        "store_problem": inputs.store_problem,
        "votes_from": inputs.votes.source,
        "votes_fallback": inputs.votes.fallback,
    }


def rounded(hours: float) -> float:
    """Hours rounded to two digits, never -0.0."""
    return round(hours, 2) + 0.0


def _allowed(release: LoadedRelease, filters: Filters) -> np.ndarray:
    """Raises 404 for a category that no item of the release has."""
    mask_N = np.ones(len(release.items.ids), dtype=bool)
    if filters.allow_item_ids is not None:
        mask_N[:] = False
        mask_N[release.ranker.rows_of(filters.allow_item_ids)] = True
    mask_N[release.ranker.rows_of(filters.deny_item_ids)] = False
    if filters.categories:
        try:
            mask_N &= release.catalogue.in_categories(filters.categories)
        except UnknownCategoryError as error:
            raise HTTPException(404, f"release {release.release_id} has {error}") from error
    return mask_N


def _of_their_categories(release: LoadedRelease, item_ids: Sequence[str]) -> np.ndarray:
    """The rows of all categories that the items have."""
    rows = release.ranker.rows_of(item_ids)
    names = {category for row in rows for category in release.catalogue.categories(row)}
    return np.concatenate([np.zeros(0, np.int64), *(release.catalogue.rows_in(name) for name in names)])


def _row_from_recent_items(items: ItemSide, history: list[int], known_at: datetime, user_id: str) -> UserRow:
    """A row for a user without features: the mean vectors of the recent items replace those of a description."""
    own_S, near_S = items.semantic_NS[history].mean(0), items.neighbour_NS[history].mean(0)
    return UserRow(
        user_id=user_id,
        sequence=[],
        sequence_times=[],
        earlier_item_ids=[],
        semantic_embedding=_unit(own_S),
        neighbour_embedding=near_S,
        neighbour_ids=[],
        neighbour_similarities=np.zeros(0, np.float32),
        description="",
        source="recent_items",
        is_tail=True,
        num_interactions=0,
        gap_days=None,
        neighbour_item_ids=[],
        neighbour_item_weights=np.zeros(0, np.float32),
        event_timestamp=known_at,
        computed_at=known_at,
    )


def _unit(vector_S: np.ndarray) -> np.ndarray:
    return vector_S / max(float(np.linalg.norm(vector_S)), float(np.finfo(np.float32).tiny))
