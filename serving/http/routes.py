"""The endpoints of the service, the roles that may call them, and their errors.

Which thread an endpoint runs in:

* `async` endpoints run in the event loop, one after another. They answer about one user, or only wait. Running the
  ranker in several threads would be slower (docs/decisions/one-thread-answers.md).
* Plain functions run in threads: they read or write something that may block.
* Batches, and comparisons with all items, run in threads, at most `NUM_BATCHES` and `NUM_SCANS` at once. Their answers
  are large, so they are written as JSON there as well.
"""

from collections.abc import Callable
from typing import Annotated, Any

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, Field

import serving.http.encoded_ids  # noqa: F401 - registers the convertor `id`
from serving.http.access import Access, Role, TokenRoute, has_serve_role
from serving.http.errors import errors
from serving.http.service import Service
from serving.schemas import (
    MAX_ITEMS,
    MAX_LISTED,
    MAX_QUERY_CHARS,
    AcceptedResponse,
    BatchRequest,
    BatchResponse,
    CategoriesResponse,
    DependenciesResponse,
    ExamplesResponse,
    Health,
    ImpressionsRequest,
    ItemResponse,
    Key,
    OutcomesRequest,
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

# In a path or in the query, as the address of the route says.
ItemId = Annotated[Key, Field(examples=["172"], description="The item's id.")]
UserId = Annotated[Key, Field(examples=["196"], description="The user's id.")]
NumNear = Annotated[int, Query(ge=1, le=MAX_ITEMS, description="Number of results, at most.")]
NUM_BATCHES = 2  # per worker; more would slow the answers of the event loop down
NUM_SCANS = 2  # likewise; one reads all vectors, 1.8 GB for 1.2 million items


class ModelResponse(Response):
    """A pydantic model as JSON, without the validation that FastAPI would repeat."""

    media_type = "application/json"

    def render(self, content: BaseModel) -> bytes:
        return content.model_dump_json().encode()


async def _in_thread(answer: Callable[[], BaseModel], limiter: CapacityLimiter) -> Response:
    """Answer, and write the answer as JSON, in a thread."""
    return await to_thread.run_sync(lambda: ModelResponse(answer()), limiter=limiter)


def request_id(request: Request) -> str:
    return str(request.state.request_id)


def _counts_as_shown(body: RecommendationRequest | BatchRequest, request: Request) -> bool:
    """Whether the answer's user sees it. Not if an analyst asks, or a request names a release."""
    return body.is_shown and body.release is None and has_serve_role(request)


def _guard(access: Access, *roles: Role) -> dict[str, Any]:
    """Keyword arguments that restrict a route to these roles."""
    return {"dependencies": [Depends(each) for each in access.requires(*roles)]}


def recommendation_routes(service: Service, access: Access) -> APIRouter:
    """Endpoints for the company's own services."""
    batches = CapacityLimiter(NUM_BATCHES)
    router = APIRouter(
        route_class=TokenRoute, tags=["recommendations"], responses=errors(400, 401, 403, 404, 408, 413, 422, 503)
    )

    @router.post("/v1/recommendations", response_model=RecommendationResponse, **_guard(access, "serve", "read"))
    async def recommendations(body: RecommendationRequest, request: Request) -> Response:
        """The best items for a user, each with a reason. `fallback` says when the answer is not the usual one."""
        answer = await service.recommender.recommend(body, request_id(request))
        if _counts_as_shown(body, request):
            service.log_answer(answer, body.recent_item_ids)
        return ModelResponse(answer)

    @router.post("/v1/recommendations/batch", response_model=BatchResponse, **_guard(access, "serve", "read"))
    async def batch(body: BatchRequest, request: Request) -> Response:
        """Recommendations for many users at once. Each answer has its own request id, for impressions and outcomes."""

        def answer() -> BatchResponse:
            answers = service.recommender.recommend_batch(body, request_id(request))
            if _counts_as_shown(body, request):
                for each in answers.answers:
                    service.log_answer(each, [])
            return answers

        return await _in_thread(answer, batches)

    @router.post("/v1/scores", response_model=ScoresResponse, **_guard(access, "serve", "read"))
    async def scores(body: ScoresRequest, request: Request) -> Response:
        """Scores of given items for a user, for a caller that does its own ranking."""
        return ModelResponse(await service.recommender.scores(body, request_id(request)))

    @router.post("/v1/impressions", status_code=202, **_guard(access, "serve"))
    def impressions(body: ImpressionsRequest, request: Request) -> AcceptedResponse:
        """Answers that their users see now, told by whoever shows them. On 503 send them again."""
        service.log_impressions(body.impressions)
        return AcceptedResponse(request_id=request_id(request), num_accepted=len(body.impressions))

    @router.post("/v1/outcomes", status_code=202, **_guard(access, "serve"))
    def outcomes(body: OutcomesRequest, request: Request) -> AcceptedResponse:
        """Clicks and purchases of recommended items. Duplicates count once. On 503 send them again."""
        service.log_outcomes(body.outcomes)
        return AcceptedResponse(request_id=request_id(request), num_accepted=len(body.outcomes))

    return router


def feature_routes(service: Service, access: Access) -> APIRouter:
    """Endpoints for people and the Explorer.

    Each has two addresses. The one with the id in the query takes every id; a path cannot carry `.` and `..`, and some
    proxies decode its slashes.
    """
    scans = CapacityLimiter(NUM_SCANS)
    router = APIRouter(route_class=TokenRoute, tags=["features"], responses=errors(401, 403, 404, 422, 503))
    read, serve_or_read = _guard(access, "read"), _guard(access, "serve", "read")

    # The longer paths come first, because an id may contain plain slashes.
    @router.get("/v1/item/similar", response_model=SimilarResponse, **serve_or_read)
    @router.get("/v1/items/{item_id:id}/similar", response_model=SimilarResponse, **serve_or_read)
    async def similar_items(item_id: ItemId, request: Request, k: NumNear = 10) -> Response:
        """The items whose descriptions are most similar."""
        return await _in_thread(lambda: service.profiles.similar_items(item_id, k, request_id(request)), scans)

    @router.get("/v1/item", **read)
    @router.get("/v1/items/{item_id:id}", **read)
    def item(item_id: ItemId, request: Request) -> ItemResponse:
        """An item's features as of the release's day."""
        return service.profiles.item(item_id, request_id(request))

    @router.get("/v1/user/similar", **read)
    @router.get("/v1/users/{user_id:id}/similar", **read)
    async def similar_users(user_id: UserId, request: Request, k: NumNear = 10) -> SimilarUsersResponse:
        """The most similar users, from the user's features."""
        return await service.profiles.similar_users(user_id, k, request_id(request))

    @router.get("/v1/user/features", response_model=UserFeaturesResponse, **serve_or_read)
    @router.get("/v1/users/{user_id:id}/features", response_model=UserFeaturesResponse, **serve_or_read)
    async def user_features(user_id: UserId, request: Request) -> Response:
        """A user's complete row in the online store, with its vectors."""
        return Response(await service.profiles.features(user_id, request_id(request)), media_type="application/json")

    @router.get("/v1/user", **read)
    @router.get("/v1/users/{user_id:id}", **read)
    async def user(user_id: UserId, request: Request) -> UserResponse:
        """A user's features, for people to read."""
        return await service.profiles.user(user_id, request_id(request))

    @router.get("/v1/categories", **serve_or_read)
    def categories(request: Request, k: Annotated[int, Query(ge=1, le=MAX_LISTED)] = MAX_LISTED) -> CategoriesResponse:
        """The categories that requests can filter by, the largest first."""
        return service.profiles.categories(k, request_id(request))

    @router.get("/v1/examples", **read)
    def examples(request: Request) -> ExamplesResponse:
        """People and searches to start with."""
        return service.examples.answer(request_id(request))

    @router.get("/v1/search", **read)
    async def search(
        request: Request,
        q: Annotated[
            str,
            Query(min_length=1, max_length=MAX_QUERY_CHARS, examples=["a space adventure"], description="Any text."),
        ],
        k: NumNear = 10,
    ) -> SearchResponse:
        """The items whose descriptions are closest in meaning to the query."""
        return await service.search(q, k, request_id(request))

    return router


def operations_routes(service: Service, access: Access) -> APIRouter:
    """Endpoints for operators and probes."""
    router = APIRouter(route_class=TokenRoute, tags=["operations"])

    @router.get("/v1/releases", responses=errors(401, 403, 503), **_guard(access, "read", "operate"))
    def releases(request: Request) -> ReleasesResponse:
        """The loaded releases, and why one was refused."""
        return service.releases(request_id(request))

    @router.get(
        "/metrics",
        response_class=Response,
        responses={**errors(401, 403), 200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
        **_guard(access, "operate"),
    )
    def metrics() -> Response:
        """Prometheus metrics of all workers."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @router.get("/v1/dependencies", responses=errors(401, 403, 503), **_guard(access, "read", "operate"))
    def dependencies(request: Request) -> DependenciesResponse:
        """Whether the online store answers and knows its users, and the requests log can be written."""
        return service.dependencies(request_id(request))

    @router.get("/healthz", include_in_schema=False)  # its earlier address
    @router.get("/livez")
    async def livez() -> Health:
        """The process is alive. If it does not answer, restart it."""
        return Health()

    @router.get("/readyz", response_model=Readiness, responses={503: {"model": Readiness}})
    async def readyz() -> JSONResponse:
        """Ready once a release is loaded. Without the online store it is too, because every answer has a fallback."""
        state = service.readiness()
        if not access.is_open:
            state = state.without_texts()
        return JSONResponse(state.model_dump(), status_code=200 if state.ready else 503)

    return router
