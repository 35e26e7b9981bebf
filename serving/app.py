"""The HTTP application: one feature lookup, one pass of the ranker, answers with reasons.

python -m serving.app        http://127.0.0.1:8100/docs shows the endpoints (its page loads Swagger UI from a CDN)
"""

import logging
import sys
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from grasp.days import end_of
from grasp.release import Manifest, folder
from grasp.settings import Settings, SettingsError
from serving.body_limit import BodyLimit
from serving.features import FeastUserFeatures, StoreError, UserFeatures, UserRow
from serving.follower import ReleaseFollower, Served
from serving.ranker import Recommendation, load_release

NUM_LOOKUP_THREADS = 8
PROBE_USER = "-"  # asked for when only the store's answer counts, not what it is

Key = Annotated[str, Field(min_length=1, max_length=256)]
OpenUsers = Callable[[Settings, Manifest], UserFeatures]

log = logging.getLogger("grasp.serving")


class RecommendationRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    user_id: Key
    k: int = Field(10, ge=1, le=100, description="How many items.")
    recent_item_ids: list[Key] = Field([], max_length=100, description="Items since the features' day, oldest first.")
    exclude_seen: bool = Field(True, description="Leave out the user's last 100 items and the recent ones.")


class RecommendationResponse(BaseModel):
    user_id: str
    items: list[Recommendation]
    release: str
    model: str | None = Field(description="Null in a release that recommends what is popular.")
    feature_day: str = Field(description="Day of the user's features, or of the release without a user's features.")
    feature_age_hours: float
    fallback: str | None = Field(
        description="Why popular items were given: unknown_user, stale_features, store_timeout, store_error, no_model "
        "or no_history (none of the user's items is in the release)."
    )
    num_unknown_recent_items: int = Field(description="Recent items that the release does not have; ignored.")


class SimilarItem(BaseModel):
    item_id: str
    title: str
    similarity: float = Field(description="Cosine of the semantic embeddings.")


class SimilarResponse(BaseModel):
    item_id: str
    title: str
    items: list[SimilarItem]
    release: str


class Lookup:
    """Asks the store for a user, but never longer than the limit: a late answer is a named fallback."""

    def __init__(self, timeout_seconds: float) -> None:
        self._timeout_seconds = timeout_seconds
        self._threads = ThreadPoolExecutor(NUM_LOOKUP_THREADS, thread_name_prefix="lookup")

    def get(self, users: UserFeatures, user_id: str) -> tuple[UserRow | None, str | None]:
        """The row or None, and `store_timeout` or `store_error` when the store is to blame."""
        answer = self._threads.submit(users.get, user_id)
        try:
            return answer.result(self._timeout_seconds), None
        except TimeoutError:
            answer.cancel()
            log.warning("the online store took longer than %.0f ms", self._timeout_seconds * 1000)
            return None, "store_timeout"
        except StoreError as error:
            log.warning("%s", error)
            return None, "store_error"

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


class Recommender:
    """Answers one request at a time from whatever release is served."""

    def __init__(self, settings: Settings, follower: ReleaseFollower) -> None:
        self.settings = settings
        self.follower = follower
        self.lookup = Lookup(settings.lookup_timeout_ms / 1000)

    def served(self) -> Served:
        """Raises 503 with the reason before the first release."""
        if self.follower.served is None:
            raise HTTPException(503, self.follower.problem)
        return self.follower.served

    def recommend(self, request: RecommendationRequest) -> RecommendationResponse:
        served = self.served()
        release, manifest = served.release, served.release.manifest
        user, failure = self.lookup.get(served.users, request.user_id)
        if user and not release.fits(user):
            log.error("user features of day %s do not fit release %s", user.event_timestamp, manifest.release_id)
            user, failure = None, "store_error"
        known_at = user.event_timestamp if user else end_of(manifest.day)
        age_hours = self._age_hours(known_at)
        history = release.history(user, request.recent_item_ids)
        fallback = failure or self._fallback(user, age_hours, bool(history), manifest)
        if fallback:
            items = release.popular(request.k, history if request.exclude_seen else [])
        else:
            items = release.recommend(user, request.k, request.recent_item_ids, request.exclude_seen)
        return RecommendationResponse(
            user_id=request.user_id,
            items=items,
            release=manifest.release_id,
            model=manifest.model,
            feature_day=known_at.date().isoformat(),
            feature_age_hours=round(age_hours, 2) + 0.0,  # never -0.0
            fallback=fallback,
            num_unknown_recent_items=len(request.recent_item_ids) - len(release.known(request.recent_item_ids)),
        )

    def _fallback(self, user: UserRow | None, age_hours: float, has_history: bool, manifest: Manifest) -> str | None:
        if user is None:
            return "unknown_user"
        if age_hours > self.settings.max_feature_age_hours:
            return "stale_features"
        if manifest.model is None:
            return "no_model"
        return None if has_history else "no_history"

    def _age_hours(self, known_at: datetime) -> float:
        return (self.settings.clock() - known_at).total_seconds() / 3600

    def similar(self, item_id: str, k: int) -> SimilarResponse:
        release = self.served().release
        items, release_id = release.items, release.manifest.release_id
        if item_id not in items.row_of:
            raise HTTPException(404, f"item {item_id!r} is not in release {release_id}")
        near = [
            SimilarItem(item_id=items.ids[row], title=items.title(row), similarity=similarity)
            for row, similarity in items.similar(item_id, k)
        ]
        return SimilarResponse(
            item_id=item_id, title=items.title(items.row_of[item_id]), items=near, release=release_id
        )

    def why_not_ready(self) -> str | None:
        """None when a release is served and the store answers in time."""
        if self.follower.served is None:
            return self.follower.problem
        _, failure = self.lookup.get(self.follower.served.users, PROBE_USER)
        return failure


def create_app(settings: Settings, open_users: OpenUsers = FeastUserFeatures, poll_seconds: float = 1.0) -> FastAPI:
    """The application; it starts without a release and takes up the first that is published."""

    def load(manifest: Manifest) -> Served:
        users = open_users(settings, manifest)
        try:
            users.get(PROBE_USER)  # the first lookup is the slowest; no request should be the one that waits
        except StoreError as error:
            log.warning("%s", error)
        return Served(load_release(folder(settings.releases, manifest), manifest), users)

    follower = ReleaseFollower(settings.releases, load)
    recommender = Recommender(settings, follower)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        follower.check()
        stop = threading.Event()
        threading.Thread(target=follower.run, args=(stop, poll_seconds), name="follower", daemon=True).start()
        yield
        stop.set()
        recommender.lookup.close()

    app = FastAPI(title="GRASP", lifespan=lifespan)
    app.state.follower = follower
    app.add_middleware(BodyLimit)
    app.add_exception_handler(RequestValidationError, _say_what_is_wrong)
    _add_routes(app, recommender)
    return app


def _add_routes(app: FastAPI, recommender: Recommender) -> None:
    # Plain functions: FastAPI runs them in threads, so that a slow lookup holds up nobody else.
    @app.post("/v1/recommendations")
    def recommendations(request: RecommendationRequest) -> RecommendationResponse:
        return recommender.recommend(request)

    @app.get("/v1/items/{item_id:path}/similar")
    def similar(item_id: str, k: Annotated[int, Query(ge=1, le=100)] = 10) -> SimilarResponse:
        return recommender.similar(item_id, k)

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        """The process lives."""
        return {"status": "alive"}

    @app.get("/readyz")
    def readyz() -> JSONResponse:
        """A release is loaded and the store answers; `problem` also names a newer release that was refused."""
        reason = recommender.why_not_ready()
        served = recommender.follower.served
        body: dict[str, Any] = {
            "ready": reason is None,
            "reason": reason,
            "release": served.release.manifest.release_id if served else None,
            "problem": recommender.follower.problem,
        }
        return JSONResponse(body, status_code=503 if reason else 200)


async def _say_what_is_wrong(_: Request, error: Exception) -> JSONResponse:
    """Field and message of each mistake; the input is not repeated, it may be large or not even text."""
    mistakes = error.errors() if isinstance(error, RequestValidationError) else []
    detail = [{"field": ".".join(str(part) for part in each["loc"]), "message": str(each["msg"])} for each in mistakes]
    text = [{key: value.encode(errors="replace").decode() for key, value in each.items()} for each in detail]
    return JSONResponse({"detail": text}, status_code=422)


def main() -> None:
    try:
        settings = Settings.load()
    except SettingsError as error:
        sys.exit(f"error: {error}")
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    uvicorn.run(create_app(settings), host=settings.host, port=settings.port)


if __name__ == "__main__":
    main()
