"""From a request to an answer: whose release, which features, what stands in when something is missing."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from fastapi import HTTPException

from grasp.days import end_of
from grasp.settings import Settings
from serving.api import (
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
from serving.buckets import Bucket
from serving.features import UserRow
from serving.follower import Loaded, ReleaseFollower, Served
from serving.lookup import Found, Lookup, Problem
from serving.ranker import Release
from serving.telemetry import Telemetry

log = logging.getLogger("grasp.serving")


@dataclass(frozen=True)
class Basis:
    """What one answer about a user is made from."""

    served: Served
    bucket: Bucket | None
    experiment: str | None
    user: UserRow | None  # a stand-in for somebody of whom only recent items are known
    history: list[int]
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

    def recommend(self, request: RecommendationRequest, request_id: str) -> RecommendationResponse:
        loaded = self.loaded()
        served, bucket = self._choose(loaded, request.user_id, request.release)
        with self._telemetry.stage("lookup"):
            found = self._lookup.get(served, request.user_id)
        return self._answer(loaded, served, bucket, found, request, request_id)

    def recommend_batch(self, batch: BatchRequest, request_id: str) -> BatchResponse:
        """One answer for each user, each with a request id of its own, so that outcomes find theirs."""
        loaded = self.loaded()
        chosen = [self._choose(loaded, user_id, batch.release) for user_id in batch.user_ids]
        with self._telemetry.stage("lookup"):
            rows = self._lookup.get_many([(served, u) for (served, _), u in zip(chosen, batch.user_ids, strict=True)])
        shared = batch.model_dump(exclude={"user_ids"})
        answers = [
            self._answer(
                loaded, served, bucket, found, RecommendationRequest(user_id=user_id, **shared), f"{request_id}.{place}"
            )
            for place, (user_id, (served, bucket), found) in enumerate(zip(batch.user_ids, chosen, rows, strict=True))
        ]
        return BatchResponse(request_id=request_id, answers=answers)

    def scores(self, request: ScoresRequest, request_id: str) -> ScoresResponse:
        loaded = self.loaded()
        served, bucket = self._choose(loaded, request.user_id, request.release)
        with self._telemetry.stage("lookup"):
            found = self._lookup.get(served, request.user_id)
        basis = self._basis(loaded, served, bucket, found, request.recent_item_ids)
        release = served.release
        if basis.is_scored and basis.user:
            scores = release.scores_of(basis.user, request.item_ids, request.recent_item_ids)
        else:
            rows = [release.items.row_of.get(item_id) for item_id in request.item_ids]
            scores = [None if row is None else float(release.items.popularity_N[row]) for row in rows]
        return ScoresResponse(
            **self._origin(basis, request.user_id, request_id),
            scores=[
                ItemScore(item_id=item_id, score=score)
                for item_id, score in zip(request.item_ids, scores, strict=True)
            ],
        )

    def loaded(self) -> Loaded:
        """Raises 503 with the reason before the first release."""
        if self._follower.loaded is None:
            raise HTTPException(503, self._follower.problem)
        return self._follower.loaded

    def age_hours(self, known_at: datetime) -> float:
        return (self._settings.clock() - known_at).total_seconds() / 3600

    def _choose(self, loaded: Loaded, user_id: str, release_id: str | None) -> tuple[Served, Bucket | None]:
        if release_id is None:
            return loaded.of_user(user_id)
        served = loaded.named(release_id)
        if served is None:
            there = ", ".join(each.release_id for each in loaded)
            raise HTTPException(404, f"release {release_id!r} is not loaded; there are {there}")
        return served, None

    def _answer(
        self,
        loaded: Loaded,
        served: Served,
        bucket: Bucket | None,
        found: Found,
        request: RecommendationRequest,
        request_id: str,
    ) -> RecommendationResponse:
        basis = self._basis(loaded, served, bucket, found, request.recent_item_ids)
        release = served.release
        mask_N = _allowed(served, request)
        if basis.is_scored:
            items = release.recommend(
                basis.user, request.k, request.recent_item_ids, request.exclude_seen, mask_N=mask_N
            )
        else:
            items = release.popular(request.k, basis.history if request.exclude_seen else [], mask_N=mask_N)
        return RecommendationResponse(
            **self._origin(basis, request.user_id, request_id),
            items=items,
            num_unknown_recent_items=len(request.recent_item_ids) - len(release.known(request.recent_item_ids)),
        )

    def _basis(
        self, loaded: Loaded, served: Served, bucket: Bucket | None, found: Found, recent_item_ids: Sequence[str]
    ) -> Basis:
        release, manifest = served.release, served.release.manifest
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
        self._telemetry.count_answer(manifest.release_id, bucket, fallback, age_hours)
        return Basis(
            served=served,
            bucket=bucket,
            experiment=loaded.experiment.name if bucket and loaded.experiment else None,
            user=user,
            history=history,
            known_at=known_at,
            age_hours=age_hours,
            fallback=fallback,
            store_problem=problem,
        )

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

    def _origin(self, basis: Basis, user_id: str, request_id: str) -> dict[str, Any]:
        """The fields of `Answer`."""
        manifest = basis.served.release.manifest
        return {
            "request_id": request_id,
            "user_id": user_id,
            "release": manifest.release_id,
            "model": manifest.model,
            "experiment": basis.experiment,
            "bucket": basis.bucket,
            "feature_day": basis.known_at.date().isoformat(),
            "feature_age_hours": round(basis.age_hours, 2) + 0.0,  # never -0.0
            "fallback": basis.fallback,
            "store_problem": basis.store_problem,
        }


def _allowed(served: Served, filters: Filters) -> np.ndarray | None:
    """Which rows may be shown, (N,) of bool; None when all may."""
    if filters.allow_item_ids is None and not filters.deny_item_ids and not filters.categories:
        return None
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
        semantic_embedding=_unit(own_S).tolist(),
        neighbour_embedding=near_S.tolist(),
        neighbour_ids=[],
        neighbour_similarities=[],
        description="",
        source="recent_items",
        is_tail=True,
        num_interactions=0,
        event_timestamp=known_at,
        computed_at=known_at,
    )


def _unit(vector_S: np.ndarray) -> np.ndarray:
    return vector_S / max(float(np.linalg.norm(vector_S)), float(np.finfo(np.float32).tiny))
