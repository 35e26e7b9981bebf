"""The parts of a running service, put together once."""

import logging
import threading
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from fastapi import HTTPException

from grasp import tables
from grasp.days import end_of
from grasp.manifest import Manifest, folder
from grasp.settings import Settings
from serving.answers.profiles import Profiles, shown
from serving.answers.recommender import Recommender, rounded
from serving.answers.search import Search, SearchError, SearchLateError
from serving.lookup.online_store import StoreError, UserFeatures
from serving.lookup.timely import PROBE_USER, Lookup
from serving.ranking.catalogue import load_catalogue
from serving.ranking.loaded_release import load_release
from serving.releases.buckets import Experiment
from serving.rollout.follower import Loaded, ReleaseFollower, Served
from serving.schemas import (
    ExperimentInfo,
    Outcome,
    Readiness,
    RecommendationResponse,
    ReleaseInfo,
    ReleasesResponse,
    SearchResponse,
)
from serving.telemetry.metrics import Telemetry
from serving.telemetry.requests_log import RequestsLog

RETRY_AFTER_SECONDS = 5  # said where a search came before the encoder was there

OpenUsers = Callable[[Settings, Manifest], UserFeatures]

log = logging.getLogger("grasp.serving")


class Service:
    """Starts without a release and takes up the first that is published."""

    def __init__(self, settings: Settings, open_users: OpenUsers, search: Search | None = None) -> None:
        self._settings = settings
        self._open_users = open_users
        self._stop = threading.Event()
        self.telemetry = Telemetry()
        self.follower = ReleaseFollower(settings.releases, self._load)
        self._lookup = Lookup(settings.lookup_timeout_ms / 1000, settings.last_good_users)
        self.recommender = Recommender(settings, self.follower, self._lookup, self.telemetry)
        self.profiles = Profiles(self.recommender, self._lookup, self.telemetry)
        self._search = search or Search(settings)
        self._log = RequestsLog(settings.lake, self.telemetry.count_log_rows) if settings.log_requests else None

    def start(self, poll_seconds: float) -> None:
        """Load what is in force, then look for news in a thread."""
        self.check()
        if self._log:
            self._log.start()
        threading.Thread(target=self._follow, args=(poll_seconds,), name="follower", daemon=True).start()

    def stop(self) -> None:
        self._stop.set()
        self._lookup.close()
        self._search.close()
        if self._log:
            self._log.close()

    def check(self) -> None:
        """Take up what changed, and tell Prometheus."""
        self.follower.check()
        loaded = self.follower.loaded
        candidate = loaded.candidate.release.manifest if loaded and loaded.candidate else None
        self.telemetry.show_releases(loaded.in_force.release.manifest if loaded else None, candidate)
        self.telemetry.show_problems(
            is_refused=self.follower.problem is not None,
            is_experiment_refused=self.follower.experiment_problem is not None,
        )

    def keep(self, answers: Sequence[RecommendationResponse], recent_item_ids: Sequence[str] = ()) -> None:
        """Log answers that were served; those that find no room are dropped, and counted."""
        if self._log is None:
            return
        now = self._settings.clock()
        rows = [_served_row(answer, recent_item_ids, now) for answer in answers]
        self._log.keep(tables.SERVED_REQUESTS, now.date().isoformat(), rows)

    def keep_outcomes(self, outcomes: Sequence[Outcome]) -> None:
        """Raises 503 when they cannot be kept: the caller still has them and may tell them again."""
        if self._log is None:
            raise HTTPException(503, "outcomes are not kept (GRASP_LOG_REQUESTS)")
        now = self._settings.clock()
        rows = [{**outcome.model_dump(), "told_at": now} for outcome in outcomes]
        if not self._log.keep(tables.OUTCOMES, now.date().isoformat(), rows):
            raise HTTPException(503, "too many outcomes wait to be written; tell them again later")

    async def find(self, query: str, k: int, request_id: str) -> SearchResponse:
        """Raises 503 without a usable encoder, and with `Retry-After` while it is being loaded."""
        served = self.recommender.loaded().in_force
        try:
            hits = await self._search.find(served, query, k)
        except SearchLateError as error:
            raise HTTPException(503, str(error), {"Retry-After": str(RETRY_AFTER_SECONDS)}) from error
        except SearchError as error:
            raise HTTPException(503, str(error)) from error
        if hits.fallback:
            self.telemetry.count_search_fallback(hits.fallback)
        return SearchResponse(
            request_id=request_id,
            items=shown(served, hits.pairs),
            release=served.release_id,
            backend=hits.backend,
            fallback=hits.fallback,
        )

    def releases(self, request_id: str) -> ReleasesResponse:
        loaded = self.recommender.loaded()
        return ReleasesResponse(
            request_id=request_id,
            releases=self._infos(loaded),
            experiment=_experiment_info(loaded.experiment),
            problem=self.follower.problem,
            experiment_problem=self.follower.experiment_problem,
        )

    def readiness(self) -> Readiness:
        """Ready when a release is loaded and its store answers in time."""
        loaded = self.follower.loaded
        reason = self._lookup.probe(loaded.in_force) if loaded else self.follower.problem
        return Readiness(
            ready=reason is None,
            reason=reason,
            release=loaded.in_force.release_id if loaded else None,
            problem=self.follower.problem,
            experiment_problem=self.follower.experiment_problem,
        )

    def _follow(self, poll_seconds: float) -> None:
        while not self._stop.wait(poll_seconds):
            try:
                self.check()
            except Exception:
                log.exception("what is in force could not be looked at; tried again in %g s", poll_seconds)

    def _load(self, manifest: Manifest) -> Served:
        """The release first: one that is refused, and tried again and again, opens no store."""
        place = folder(self._settings.releases, manifest)
        release = load_release(place, manifest, self._settings.index_from_items)
        release.stage = self.telemetry.stage
        catalogue = load_catalogue(place, release.items, self._settings.hidden_attributes)
        users = self._open_users(self._settings, manifest)
        try:
            users.get(PROBE_USER)  # the first lookup is the slowest; no request should be the one that waits
        except StoreError as error:
            log.warning("%s", error)
        hours = self.recommender.age_hours(end_of(manifest.day))
        if hours > self._settings.max_feature_age_hours:
            limit = self._settings.max_feature_age_hours
            log.warning(
                "features of %s are %.0f h old, above GRASP_MAX_FEATURE_AGE_HOURS=%g", manifest.day, hours, limit
            )
        return Served(release, catalogue, users)

    def _infos(self, loaded: Loaded) -> list[ReleaseInfo]:
        return [
            ReleaseInfo(
                release=served.release_id,
                role="in_force" if served is loaded.in_force else "candidate",
                day=served.release.manifest.day,
                age_hours=rounded(self.recommender.age_hours(end_of(served.release.manifest.day))),
                model=served.release.manifest.model,
                feature_version=served.release.manifest.feature_version,
                embedding_version=served.release.manifest.embedding_version,
                num_items=len(served.release.items.row_of),
                published_at=served.release.manifest.published_at,
            )
            for served in loaded
        ]


def _experiment_info(experiment: Experiment | None) -> ExperimentInfo | None:
    if experiment is None:
        return None
    return ExperimentInfo(name=experiment.name, release=experiment.release_id, share=experiment.share)


def _served_row(answer: RecommendationResponse, recent_item_ids: Sequence[str], now: datetime) -> dict[str, Any]:
    """A row of `served_requests`: ids and numbers, never texts."""
    return {
        **answer.model_dump(include=set(tables.SERVED_REQUESTS.column_names)),
        "release_id": answer.release,
        "served_at": now,
        "recent_item_ids": list(recent_item_ids),
        "item_ids": [each.item_id for each in answer.items],
        "scores": [each.score for each in answer.items],
    }
