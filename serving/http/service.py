"""Put the parts of the service together: follower, lookup, recommender, profiles, search, logs and metrics."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, get_args

from fastapi import HTTPException

from grasp import tables
from grasp.days import end_of
from grasp.manifest import Manifest, release_folder
from grasp.settings import Settings
from serving.answers.examples import Examples
from serving.answers.profiles import Profiles, as_found_items
from serving.answers.recommender import Recommender, rounded
from serving.answers.search import Search, SearchError, SearchLateError
from serving.lookup.known_users import some_users
from serving.lookup.online_store import StoreError, UserStore
from serving.lookup.user_lookup import PROBE_USER, StoreProblem, UserLookup
from serving.ranking.catalogue import load_catalogue
from serving.ranking.release_ranker import load_release_ranker
from serving.releases.buckets import Experiment
from serving.rollout.follower import LoadedRelease, LoadedReleases, ReleaseFollower
from serving.schemas import (
    DependenciesResponse,
    Dependency,
    ExperimentInfo,
    Impression,
    Outcome,
    Readiness,
    RecommendationResponse,
    ReleaseInfo,
    ReleasesResponse,
    SearchResponse,
)
from serving.telemetry.metrics import Metrics
from serving.telemetry.requests_log import RequestsLog

RETRY_AFTER_SECONDS = 5  # for a search that came before the encoder was loaded
STORE_CHECK_SECONDS = 5.0  # between two looks at the online store, so that an emptied one is seen without requests

OpenUserStore = Callable[[Settings, Manifest], UserStore]

log = logging.getLogger("grasp.serving")


class Service:
    """The running service. Without a release it starts too, and loads the first one when it is published."""

    def __init__(self, settings: Settings, open_user_store: OpenUserStore, search: Search | None = None) -> None:
        self._settings = settings
        self._open_user_store = open_user_store
        self._stop = threading.Event()
        self.metrics = Metrics()
        self.follower = ReleaseFollower(settings.releases, self._load)
        self._lookup = UserLookup(settings.lookup_timeout_ms / 1000, settings.last_good_users)
        self.recommender = Recommender(settings, self.follower, self._lookup, self.metrics)
        self.profiles = Profiles(self.recommender, self._lookup, self.metrics)
        self.examples = Examples(self.recommender, self._lookup, self.metrics, settings.lake)
        self._search = search or Search(settings)
        self._log = RequestsLog(settings.lake, self.metrics.count_log_rows) if settings.log_requests else None

    def start(self, poll_seconds: float) -> None:
        """Load the release in force, then follow changes in a thread."""
        self.check()
        self.check_store()
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
        """Load what changed, and update the metrics."""
        self.follower.check()
        loaded = self.follower.loaded
        challenger = loaded.challenger.manifest if loaded and loaded.challenger else None
        self.metrics.set_releases(loaded.in_force.manifest if loaded else None, challenger)
        self.metrics.set_problems(
            is_refused=self.follower.problem is not None,
            is_experiment_refused=self.follower.experiment_problem is not None,
        )

    def check_store(self) -> None:
        """Look whether the online store of each loaded release answers and knows its users, and update the metric."""
        found = {self._lookup.probe(release) for release in self.follower.loaded or ()}
        self.metrics.set_store_problems({problem: problem in found for problem in get_args(StoreProblem)})

    def log_answer(self, answer: RecommendationResponse, recent_item_ids: Sequence[str]) -> None:
        """Log an answer that its user sees. When the log's queue is full it is dropped and counted."""
        now = self._settings.clock()
        self._log_rows(tables.SERVED_REQUESTS, now, [_served_row(answer, recent_item_ids, now)], "dropped")

    def log_impressions(self, impressions: Sequence[Impression]) -> None:
        """Raises 503 when they cannot be logged, so that the caller can send them again."""
        now = self._settings.clock()
        self._log_or_refuse(
            tables.SERVED_REQUESTS, now, [_served_row(each, each.recent_item_ids, now) for each in impressions]
        )

    def log_outcomes(self, outcomes: Sequence[Outcome]) -> None:
        """Raises 503 when they cannot be logged, so that the caller can send them again."""
        now = self._settings.clock()
        self._log_or_refuse(tables.OUTCOMES, now, [{**each.model_dump(), "told_at": now} for each in outcomes])

    def _log_or_refuse(self, table: tables.Table, now: datetime, rows: list[dict[str, Any]]) -> None:
        if self._log is None:
            raise HTTPException(503, f"{table.name} are not logged: GRASP_LOG_REQUESTS is false")
        if not self._log_rows(table, now, rows, "refused"):
            raise HTTPException(503, f"too many {table.name} are waiting to be written; send them again later")

    def _log_rows(self, table: tables.Table, now: datetime, rows: list[dict[str, Any]], if_full: str) -> bool:
        is_taken = self._log is None or self._log.add(table, now.date().isoformat(), rows)
        if not is_taken:
            self.metrics.count_log_rows(table.name, if_full, len(rows))
        return is_taken

    async def search(self, query: str, k: int, request_id: str) -> SearchResponse:
        """Raises 503 without a usable encoder, and 503 with `Retry-After` while the encoder is being loaded."""
        release = self.recommender.loaded().in_force
        try:
            hits = await self._search.find(release, query, k)
        except SearchLateError as error:
            raise HTTPException(503, str(error), {"Retry-After": str(RETRY_AFTER_SECONDS)}) from error
        except SearchError as error:
            raise HTTPException(503, str(error)) from error
        if hits.fallback:
            self.metrics.count_search_fallback(hits.fallback)
        items = as_found_items(release, hits.pairs, query, self._settings.search_min_similarity)
        return SearchResponse(
            request_id=request_id,
            items=items,
            nothing_close=not any(each.is_close for each in items),
            release=release.release_id,
            backend=hits.backend,
            fallback=hits.fallback,
        )

    def releases(self, request_id: str) -> ReleasesResponse:
        loaded = self.recommender.loaded()
        return ReleasesResponse(
            request_id=request_id,
            releases=self._release_infos(loaded),
            experiment=_experiment_info(loaded.experiment),
            problem=self.follower.problem,
            experiment_problem=self.follower.experiment_problem,
        )

    def readiness(self) -> Readiness:
        """Ready when a release is loaded: a failed online store or search has a named fallback."""
        loaded = self.follower.loaded
        return Readiness(
            ready=loaded is not None,
            reason=None if loaded else self.follower.problem,
            release=loaded.in_force.release_id if loaded else None,
            problem=self.follower.problem,
            experiment_problem=self.follower.experiment_problem,
        )

    def dependencies(self, request_id: str) -> DependenciesResponse:
        """Ask the online store of every loaded release; say whether the requests log can be written.

        Raises 503 before the first release, which names the stores.
        """
        found = [
            Dependency(name="online_store", release=release.release_id, problem=self._lookup.probe(release))
            for release in self.recommender.loaded()
        ]
        if self._log:
            found.append(Dependency(name="requests_log", release=None, problem=self._log.problem))
        return DependenciesResponse(request_id=request_id, dependencies=found)

    def _follow(self, poll_seconds: float) -> None:
        check_store_at = time.monotonic() + STORE_CHECK_SECONDS
        while not self._stop.wait(poll_seconds):
            self._try(self.check, "the releases folder could not be read")
            if time.monotonic() >= check_store_at:
                self._try(self.check_store, "the online store could not be looked at")
                check_store_at = time.monotonic() + STORE_CHECK_SECONDS

    def _try(self, step: Callable[[], None], failure: str) -> None:
        """Do a step of the follower, which goes on after any failure."""
        try:
            step()
        except Exception:
            if not self._stop.is_set():  # a lookup that is being closed takes no more reads
                log.exception("%s; it is tried again", failure)

    def _load(self, manifest: Manifest) -> LoadedRelease:
        """Load the files first: a refused release, which is tried again and again, then opens no store."""
        settings = self._settings
        place = release_folder(settings.releases, manifest)
        ranker = load_release_ranker(place, manifest, settings.index_from_items, settings.online_moments)
        ranker.stage = self.metrics.stage
        catalogue = load_catalogue(place, ranker.items, settings.hidden_attributes)
        ranker.categories_of = catalogue.categories
        users = self._open_user_store(settings, manifest)
        version = manifest.feature_version
        self._lookup.know(version, some_users(settings.lake, version, manifest.day))
        try:
            users.get(PROBE_USER)  # the first lookup is the slowest, so it is not left to a request
        except StoreError as error:
            log.warning("%s", error)
        hours = self.recommender.age_hours(end_of(manifest.day))
        if hours > settings.stale_after_hours:
            log.warning("%s", settings.stale_message(manifest.day, hours))
        return LoadedRelease(ranker, catalogue, users)

    def _release_infos(self, loaded: LoadedReleases) -> list[ReleaseInfo]:
        return [
            ReleaseInfo(
                release=release.release_id,
                role="in_force" if release is loaded.in_force else "candidate",
                day=release.manifest.day,
                age_hours=rounded(self.recommender.age_hours(end_of(release.manifest.day))),
                model=release.manifest.model,
                feature_version=release.manifest.feature_version,
                embedding_version=release.manifest.embedding_version,
                num_items=len(release.items.row_of),
                published_at=release.manifest.published_at,
            )
            for release in loaded
        ]


def _experiment_info(experiment: Experiment | None) -> ExperimentInfo | None:
    if experiment is None:
        return None
    return ExperimentInfo(name=experiment.name, release=experiment.release_id, share=experiment.share)


def _served_row(
    answer: RecommendationResponse | Impression, recent_item_ids: Sequence[str], now: datetime
) -> dict[str, Any]:
    """A row of `served_requests`: ids and numbers, never texts."""
    return {
        **answer.model_dump(include=set(tables.SERVED_REQUESTS.column_names)),
        "release_id": answer.release,
        "feature_day": str(answer.feature_day),
        "served_at": now,
        "recent_item_ids": list(recent_item_ids),
        "item_ids": [each.item_id for each in answer.items],
        "scores": [each.score for each in answer.items],
    }
