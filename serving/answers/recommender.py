"""From a request to an answer: whose release, which features, what stands in when something is missing.

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
from serving.lookup.timely import Found, Lookup, Problem
from serving.ranking.loaded_release import Release
from serving.releases.buckets import Bucket
from serving.rollout.follower import Loaded, ReleaseFollower, Served
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
from serving.telemetry.metrics import Telemetry

log = logging.getLogger("grasp.serving")


@dataclass(frozen=True)
class Chosen:
    """The one release that answers a user, and the user's side of the experiment that chose it."""

    served: Served
    experiment: str | None = None
    bucket: Bucket | None = None


@dataclass(frozen=True)
class Basis:
    """What one answer about a user is made from."""

    chosen: Chosen
    user: UserRow | None  # a stand-in for somebody of whom only recent items are known
    known_at: datetime
    age_hours: float
    fallback: Fallback | None
    store_problem: Problem | None

    @property
    def is_scored(self) -> bool:
        """Whether the model answers; else it is popularity."""
        return self.fallback in (None, "last_good", "recent_items_only")


class Recommender:
    """Answers from whatever is loaded. Each answer comes from one release alone."""

    def __init__(self, settings: Settings, follower: ReleaseFollower, lookup: Lookup, telemetry: Telemetry) -> None:
        self._settings = settings
        self._follower = follower
        self._lookup = lookup
        self._telemetry = telemetry

    async def recommend(self, request: RecommendationRequest, request_id: str) -> RecommendationResponse:
        chosen = self._choose(self.loaded(), request.user_id, request.release)
        return self._answer(chosen, await self._find(chosen, request.user_id), request, request_id)

    def recommend_batch(self, batch: BatchRequest, request_id: str) -> BatchResponse:
        """One answer for each user, each with a request id of its own, so that outcomes find theirs."""
        loaded = self.loaded()
        chosen = [self._choose(loaded, user_id, batch.release) for user_id in batch.user_ids]
        with self._telemetry.stage("lookup"):
            asked = [(each.served, user_id) for each, user_id in zip(chosen, batch.user_ids, strict=True)]
            found = self._lookup.get_many(asked)
        shared = batch.model_dump(exclude={"user_ids", "is_shown"})
        requests = [RecommendationRequest(user_id=user_id, **shared) for user_id in batch.user_ids]
        answers = [
            self._answer(*each, f"{request_id}.{place}")
            for place, each in enumerate(zip(chosen, found, requests, strict=True))
        ]
        return BatchResponse(request_id=request_id, answers=answers)

    async def scores(self, request: ScoresRequest, request_id: str) -> ScoresResponse:
        chosen = self._choose(self.loaded(), request.user_id, request.release)
        basis = self._basis(chosen, await self._find(chosen, request.user_id), request.recent_item_ids)
        release = chosen.served.release
        if basis.is_scored and basis.user:
            scores = release.scores_of(basis.user, request.item_ids, request.recent_item_ids)
        else:
            rows = [release.items.row_of.get(item_id) for item_id in request.item_ids]
            scores = [None if row is None else float(release.items.popularity_N[row]) for row in rows]
        pairs = zip(request.item_ids, scores, strict=True)
        return ScoresResponse(
            **_origin(basis, request.user_id, request_id),
            scores=[ItemScore(item_id=item_id, score=score) for item_id, score in pairs],
        )

    def loaded(self) -> Loaded:
        """Raises 503 with the reason before the first release."""
        if self._follower.loaded is None:
            raise HTTPException(503, self._follower.problem)
        return self._follower.loaded

    def age_hours(self, known_at: datetime) -> float:
        """The clock minus what features may know."""
        return (self._settings.clock() - known_at).total_seconds() / 3600

    def _choose(self, loaded: Loaded, user_id: str, release_id: str | None) -> Chosen:
        if release_id is None:
            served, bucket = loaded.of_user(user_id)
            return Chosen(served, loaded.experiment.name if loaded.experiment else None, bucket)
        named = loaded.named(release_id)
        if named is None:
            there = ", ".join(each.release_id for each in loaded)
            raise HTTPException(404, f"release {release_id!r} is not loaded; there are {there}")
        return Chosen(named)

    async def _find(self, chosen: Chosen, user_id: str) -> Found:
        with self._telemetry.stage("lookup"):
            return await self._lookup.get(chosen.served, user_id)

    def _answer(
        self, chosen: Chosen, found: Found, request: RecommendationRequest, request_id: str
    ) -> RecommendationResponse:
        basis = self._basis(chosen, found, request.recent_item_ids)
        release = chosen.served.release
        mask_N = self._allowed(chosen.served, request)
        if basis.is_scored:
            items = release.recommend(
                basis.user, request.k, request.recent_item_ids, request.exclude_seen, mask_N=mask_N
            )
        else:
            hidden = release.seen(basis.user, request.recent_item_ids) if request.exclude_seen else []
            items = release.popular(request.k, hidden, mask_N=mask_N)
        return RecommendationResponse(
            **_origin(basis, request.user_id, request_id),
            items=items,
            num_unknown_recent_items=len(request.recent_item_ids) - len(release.known(request.recent_item_ids)),
        )

    def _allowed(self, served: Served, filters: Filters) -> np.ndarray | None:
        """Which rows may be shown; None when all may, which takes no time that would be worth a measurement."""
        if filters.allow_item_ids is None and not filters.deny_item_ids and not filters.categories:
            return None
        with self._telemetry.stage("post"):
            return _allowed(served, filters)

    def _basis(self, chosen: Chosen, found: Found, recent_item_ids: Sequence[str]) -> Basis:
        release, manifest = chosen.served.release, chosen.served.release.manifest
        user, problem = found.row, found.problem
        if user and not release.fits(user):
            log.error("user features of day %s do not fit release %s", user.event_timestamp, manifest.release_id)
            user, problem = None, "store_error"
        if problem:
            self._telemetry.count_store_problem(problem)
        known_at = user.event_timestamp if user else end_of(manifest.day)
        age_hours = self.age_hours(known_at)
        history = release.history(user, recent_item_ids)
        fallback = self._fallback(release, user, problem, age_hours, history)
        if fallback == "recent_items_only":
            user = _stand_in(release, history, known_at)
        self._telemetry.count_answer(manifest.release_id, chosen.bucket, fallback, age_hours)
        return Basis(chosen, user, known_at, age_hours, fallback, problem)

    def _fallback(
        self, release: Release, user: UserRow | None, problem: Problem | None, age_hours: float, history: list[int]
    ) -> Fallback | None:
        if user is None:
            if history and release.model:
                return "recent_items_only"
            return problem or "unknown_user"
        if age_hours > self._settings.max_feature_age_hours:
            return "stale_features"
        if release.model is None:
            return "no_model"
        if not history:
            return "no_history"
        return "last_good" if problem else None


def _origin(basis: Basis, user_id: str, request_id: str) -> dict[str, Any]:
    """The fields of `Answer`."""
    manifest = basis.chosen.served.release.manifest
    return {
        "request_id": request_id,
        "user_id": user_id,
        "release": manifest.release_id,
        "model": manifest.model,
        "experiment": basis.chosen.experiment,
        "bucket": basis.chosen.bucket,
        "feature_day": basis.known_at.date().isoformat(),
        "feature_age_hours": rounded(basis.age_hours),
        "fallback": basis.fallback,
        "store_problem": basis.store_problem,
    }


def rounded(hours: float) -> float:
    """Hundredths of an hour, never -0.0."""
    return round(hours, 2) + 0.0


def _allowed(served: Served, filters: Filters) -> np.ndarray:
    """Which rows may be shown, (N,) of bool."""
    release = served.release
    mask_N = np.ones(len(release.items.ids), dtype=bool)
    if filters.allow_item_ids is not None:
        mask_N[:] = False
        mask_N[release.known(filters.allow_item_ids)] = True
    mask_N[release.known(filters.deny_item_ids)] = False
    if filters.categories:
        mask_N &= served.catalogue.in_categories(filters.categories)
    return mask_N


def _stand_in(release: Release, history: list[int], known_at: datetime) -> UserRow:
    """Somebody of whom only a few items are known: those items speak for the description that nobody has written."""
    items = release.items
    own_S, near_S = items.semantic_NS[history].mean(0), items.neighbour_NS[history].mean(0)
    return UserRow(
        user_id="",
        sequence=[],
        sequence_times=[],
        semantic_embedding=_unit(own_S),
        neighbour_embedding=near_S,
        neighbour_ids=[],
        neighbour_similarities=np.zeros(0, np.float32),
        description="",
        source="recent_items",
        is_tail=True,
        num_interactions=0,
        event_timestamp=known_at,
        computed_at=known_at,
    )


def _unit(vector_S: np.ndarray) -> np.ndarray:
    return vector_S / max(float(np.linalg.norm(vector_S)), float(np.finfo(np.float32).tiny))
