"""The addresses of the service, who may ask them, and what they may answer.

What answers about one user or waits for others runs in the event loop (`async`), requests one after another: a pass of
the ranker takes some milliseconds of the one thread that a worker has for numbers, and passes in several threads only
take the interpreter from one another (docs/decisions/one-thread-answers.md). Plain functions run in threads of their
own: a search through all items, what reads files; and a batch, few at once.
"""

from typing import Annotated, Any

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Depends, Path, Query, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel

from serving.http.access import Access, Role, may_be_logged
from serving.http.errors import errors
from serving.http.service import Service
from serving.schemas import (
    MAX_ITEMS,
    MAX_KEY_CHARS,
    MAX_QUERY_CHARS,
    BatchRequest,
    BatchResponse,
    Health,
    ItemResponse,
    OutcomesRequest,
    OutcomesResponse,
    Readiness,
    RecommendationRequest,
    RecommendationResponse,
    ReleasesResponse,
    ScoresRequest,
    ScoresResponse,
    SearchResponse,
    SimilarResponse,
    SimilarUsersResponse,
    UserFeaturesResponse,
    UserResponse,
)

ItemId = Annotated[
    str, Path(max_length=MAX_KEY_CHARS, examples=["172"], description="An item's id; a slash in it is written %2F.")
]
UserId = Annotated[
    str, Path(max_length=MAX_KEY_CHARS, examples=["196"], description="A user's id; a slash in it is written %2F.")
]
NUM_BATCHES = 2  # that a worker answers at once: their passes take the interpreter from the event loop's
NumNear = Annotated[int, Query(ge=1, le=MAX_ITEMS, description="How many, at most.")]


class Written(Response):
    """An answer as JSON, straight from the model: FastAPI would look first whether it is that model."""

    media_type = "application/json"

    def render(self, content: BaseModel) -> bytes:
        return content.model_dump_json().encode()


def request_id(request: Request) -> str:
    return str(request.state.request_id)


def _counts_as_shown(body: RecommendationRequest | BatchRequest, request: Request) -> bool:
    """Whether an answer is one that its user sees: not when a person looks at it, or asks for a release by name."""
    return body.is_shown and body.release is None and may_be_logged(request)


def _guard(access: Access, *roles: Role) -> dict[str, Any]:
    """Keyword arguments of a route that only these roles may ask."""
    return {"dependencies": [Depends(each) for each in access.requires(*roles)]}


def about_users(service: Service, access: Access) -> APIRouter:
    """What the company's own services ask, request by request."""
    batches = CapacityLimiter(NUM_BATCHES)
    router = APIRouter(tags=["recommendations"], responses=errors(400, 401, 403, 404, 408, 413, 422, 503))

    @router.post("/v1/recommendations", response_model=RecommendationResponse, **_guard(access, "serve", "read"))
    async def recommendations(body: RecommendationRequest, request: Request) -> Response:
        """The best items for a user, each with its reason; with `fallback` when something else stood in."""
        answer = await service.recommender.recommend(body, request_id(request))
        if _counts_as_shown(body, request):
            service.keep([answer], body.recent_item_ids)
        return Written(answer)

    @router.post("/v1/recommendations/batch", response_model=BatchResponse, **_guard(access, "serve", "read"))
    async def batch(body: BatchRequest, request: Request) -> Response:
        """The same for many users at once; each answer has a request id of its own."""
        recommend = service.recommender.recommend_batch
        answer = await to_thread.run_sync(recommend, body, request_id(request), limiter=batches)
        if _counts_as_shown(body, request):
            service.keep(answer.answers)
        return Written(answer)

    @router.post("/v1/scores", response_model=ScoresResponse, **_guard(access, "serve", "read"))
    async def scores(body: ScoresRequest, request: Request) -> Response:
        """Scores of given items for a user, for a caller that ranks by itself."""
        return Written(await service.recommender.scores(body, request_id(request)))

    @router.post("/v1/outcomes", status_code=202, **_guard(access, "serve"))
    def outcomes(body: OutcomesRequest, request: Request) -> OutcomesResponse:
        """What came of an answer. Telling it twice counts once; 503 when it could not be kept: tell it again."""
        service.keep_outcomes(body.outcomes)
        return OutcomesResponse(request_id=request_id(request), num_accepted=len(body.outcomes))

    return router


def about_features(service: Service, access: Access) -> APIRouter:
    """What people and the explorer look at."""
    router = APIRouter(tags=["features"], responses=errors(401, 403, 404, 422, 503))
    guard = _guard(access, "read")

    # The longer addresses first: an id may contain slashes.
    @router.get("/v1/items/{item_id:path}/similar", **_guard(access, "serve", "read"))
    def similar_items(item_id: ItemId, request: Request, k: NumNear = 10) -> SimilarResponse:
        """The items of the release that are nearest by description."""
        return service.profiles.similar_items(item_id, k, request_id(request))

    @router.get("/v1/items/{item_id:path}", **guard)
    def item(item_id: ItemId, request: Request) -> ItemResponse:
        """An item's features as of the release's day."""
        return service.profiles.item(item_id, request_id(request))

    @router.get("/v1/users/{user_id:path}/similar", **guard)
    async def similar_users(user_id: UserId, request: Request, k: NumNear = 10) -> SimilarUsersResponse:
        """The neighbours that the user's features hold."""
        return await service.profiles.similar_users(user_id, k, request_id(request))

    @router.get(
        "/v1/users/{user_id:path}/features", response_model=UserFeaturesResponse, **_guard(access, "serve", "read")
    )
    async def user_features(user_id: UserId, request: Request) -> Response:
        """A user's row of the online store as it is, vectors included."""
        return Response(await service.profiles.features(user_id, request_id(request)), media_type="application/json")

    @router.get("/v1/users/{user_id:path}", **guard)
    async def user(user_id: UserId, request: Request) -> UserResponse:
        """A user's features as the online store has them."""
        return await service.profiles.user(user_id, request_id(request))

    @router.get("/v1/search", **guard)
    async def search(
        request: Request,
        q: Annotated[
            str,
            Query(min_length=1, max_length=MAX_QUERY_CHARS, examples=["a space adventure"], description="Any text."),
        ],
        k: NumNear = 10,
    ) -> SearchResponse:
        """The items whose descriptions mean most nearly what the query says."""
        return await service.find(q, k, request_id(request))

    return router


def about_itself(service: Service, access: Access) -> APIRouter:
    """What operators and probes ask."""
    router = APIRouter(tags=["operations"])

    @router.get("/v1/releases", responses=errors(401, 403, 503), **_guard(access, "read", "operate"))
    def releases(request: Request) -> ReleasesResponse:
        """What is loaded, and what was refused."""
        return service.releases(request_id(request))

    @router.get(
        "/metrics",
        response_class=Response,
        responses={**errors(401, 403), 200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
        **_guard(access, "operate"),
    )
    def metrics() -> Response:
        """Prometheus metrics, of all workers together."""
        return Response(service.telemetry.text(), media_type=CONTENT_TYPE_LATEST)

    @router.get("/healthz")
    async def healthz() -> Health:
        """The process lives."""
        return Health()

    @router.get("/readyz", response_model=Readiness, responses={503: {"model": Readiness}})
    def readyz() -> JSONResponse:
        """A release is loaded and the store answers; `problem` also tells of a newer release that was refused."""
        state = service.readiness()
        if not access.is_open:
            state = state.without_texts()
        return JSONResponse(state.model_dump(), status_code=200 if state.ready else 503)

    return router
