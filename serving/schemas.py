"""Every HTTP request and response, with limits, explanations and an example."""

from dataclasses import asdict
from datetime import date, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat

from grasp.tables import MAX_ID_BYTES
from serving.lookup.user_lookup import StoreProblem
from serving.ranking.reasons import OF_VOTES, FreshReason
from serving.ranking.release_ranker import Evidence, Recommendation
from serving.ranking.votes import VotesFallback, VotesFrom
from serving.releases.buckets import Bucket
from serving.telemetry.requests_log import LogProblem

MAX_ITEMS = 200  # recommended or similar items in one answer
MAX_RECENT = 100
MAX_LISTED = 1_000  # ids in an allow list, a deny list or a scores request
MAX_BATCH = 100  # users
MAX_OUTCOMES = 100
MAX_IMPRESSIONS = 100
MAX_QUERY_CHARS = 500


def _json_integer(number: object) -> object:
    """JSON has one number type, so 10.0 is the integer 10."""
    return int(number) if isinstance(number, float) and number.is_integer() else number


def _within_id_limit(text: str) -> str:
    """`max_length` counts characters, and one may take four bytes."""
    if len(text.encode()) > MAX_ID_BYTES:
        raise ValueError(f"longer than {MAX_ID_BYTES} bytes of UTF-8")
    return text


JsonInteger = Annotated[int, BeforeValidator(_json_integer)]
# An id or a category.
Key = Annotated[str, Field(min_length=1, max_length=MAX_ID_BYTES), AfterValidator(_within_id_limit)]
RequestId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{7,79}$", description="Names one answer.")]
Fallback = Literal[
    "last_good",
    "recent_items_only",
    "unknown_user",
    "stale_features",
    StoreProblem,
    "no_model",
    "no_history",
]
SearchBackend = Literal["milvus", "memory"]
SearchFallback = Literal["milvus_timeout", "milvus_error", "milvus_incomplete"]

# Parts of the examples.
ORIGIN: dict[str, Any] = {"request_id": "6f1c2a9be0d94c7f8a6d1b0e5f3c2d41", "release": "1998-04-22-0a1b2c3d4e"}
ANSWER: dict[str, Any] = {
    **ORIGIN,
    "user_id": "196",
    "model": "sasrec-grasp-1998-02-28-1a2b3c4d",
    "experiment": "new-model",
    "bucket": "control",
    "feature_day": "1998-04-22",
    "feature_age_hours": 7.5,
    "is_stale": False,
    "fallback": None,
    "store_problem": None,
    "votes_from": "moments",
    "votes_fallback": None,
}
EVIDENCE = Evidence("181", "Return of the Jedi", 0.42, 0.83, is_neighbour=True, shared_categories=["Action"])
FRESH = FreshReason(takers_7d=12, votes=0.31)
REASON = f"similar to Return of the Jedi in your history (Action); {OF_VOTES}; taken often this week, by 12 people"
SIMILAR_USER = {
    "user_id": "186",
    "similarity": 0.91,
    "description": "Likes thrillers and science fiction.",
    "num_interactions": 92,
    "num_shared_items": 11,
}
ITEM = asdict(Recommendation("172", "Empire Strikes Back", 7.31, REASON, [EVIDENCE], FRESH))


def _example(**content: Any) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [content]})


class StrictRequest(BaseModel):
    """A request that refuses unknown fields."""

    model_config = ConfigDict(extra="forbid")


class Filters(StrictRequest):
    """Which items may be shown. Ids are compared as they are; the case of categories does not matter."""

    allow_item_ids: list[Key] | None = Field(
        None, min_length=1, max_length=MAX_LISTED, description="Show only these items; all when absent."
    )
    deny_item_ids: list[Key] = Field([], max_length=MAX_LISTED, description="Never show these items.")
    categories: list[Key] = Field(
        [],
        max_length=20,
        description="Show only items with at least one of these; all when empty. `/v1/categories` lists them.",
    )


class RecommendationRequest(Filters):
    model_config = ConfigDict(extra="forbid") | _example(
        user_id="196", k=10, recent_item_ids=["181"], exclude_seen=True, deny_item_ids=["50"]
    )

    user_id: Key
    k: JsonInteger = Field(10, ge=1, le=MAX_ITEMS, strict=True, description="Number of items.")
    recent_item_ids: list[Key] = Field(
        [], max_length=MAX_RECENT, description="Items of the current visit, oldest first, not in the features yet."
    )
    exclude_seen: bool = Field(
        True, strict=True, description="Leave out all items that the user ever took, and the recent ones."
    )
    release: Key | None = Field(
        None, description="Answer from this loaded release, outside any experiment; absent: as the service chooses."
    )
    is_shown: bool = Field(True, strict=True, description="False: the user does not see this answer; it is not logged.")


class BatchRequest(Filters):
    model_config = ConfigDict(extra="forbid") | _example(user_ids=["196", "186"], k=5)

    user_ids: list[Key] = Field(min_length=1, max_length=MAX_BATCH)
    k: JsonInteger = Field(10, ge=1, le=MAX_ITEMS, strict=True, description="Number of items for each user.")
    exclude_seen: bool = Field(True, strict=True, description="Leave out all items that each user ever took.")
    release: Key | None = Field(None, description="As for one user.")
    is_shown: bool = Field(
        False, strict=True, description="True: each user sees the answer now, so all are logged; else tell impressions."
    )


class ScoresRequest(StrictRequest):
    model_config = ConfigDict(extra="forbid") | _example(user_id="196", item_ids=["172", "50"])

    user_id: Key
    item_ids: list[Key] = Field(min_length=1, max_length=MAX_LISTED)
    recent_item_ids: list[Key] = Field([], max_length=MAX_RECENT, description="As for recommendations.")
    release: Key | None = Field(None, description="As for recommendations.")


class Outcome(StrictRequest):
    request_id: RequestId = Field(description="The `request_id` of the answer that showed the item.")
    item_id: Key
    kind: Literal["click", "purchase"]


class OutcomesRequest(StrictRequest):
    model_config = ConfigDict(extra="forbid") | _example(
        outcomes=[{"request_id": ORIGIN["request_id"], "item_id": "172", "kind": "click"}]
    )

    outcomes: list[Outcome] = Field(min_length=1, max_length=MAX_OUTCOMES)


class ShownItem(BaseModel):
    item_id: Key
    score: FiniteFloat


class Impression(BaseModel):
    """An answer that its user sees now. The answer itself will do, for fields that are not listed are ignored."""

    request_id: RequestId
    user_id: Key
    release: Key
    model: Key | None
    experiment: Key | None
    bucket: Bucket | None
    feature_day: date
    feature_age_hours: FiniteFloat
    fallback: Fallback | None
    store_problem: StoreProblem | None
    votes_from: VotesFrom | None = None
    items: list[ShownItem] = Field(max_length=MAX_ITEMS, description="The items that are seen, in their order.")
    recent_item_ids: list[Key] = Field([], max_length=MAX_RECENT, description="Those of the request.")


class ImpressionsRequest(StrictRequest):
    model_config = ConfigDict(extra="forbid") | _example(
        impressions=[{**ANSWER, "items": [{"item_id": "172", "score": 7.31}]}]
    )

    impressions: list[Impression] = Field(min_length=1, max_length=MAX_IMPRESSIONS)


class Answer(BaseModel):
    """Where an answer about a user comes from. It comes from one release."""

    request_id: str
    user_id: str
    release: str
    model: str | None = Field(description="Null if the release has no model and recommends popular items.")
    experiment: str | None = Field(description="The running experiment, if any.")
    bucket: Bucket | None = Field(description="The user's bucket in the experiment.")
    feature_day: str = Field(description="Day of the user's features; day of the release if the user has none.")
    feature_age_hours: float
    is_stale: bool = Field(description="The features are older than GRASP_MAX_FEATURE_AGE_HOURS allows.")
    fallback: Fallback | None = Field(description="Why this is not the usual answer (docs/serving.md); null if it is.")
    store_problem: StoreProblem | None = Field(description="Set if the online store failed, whatever the fallback.")
    votes_from: VotesFrom | None = Field(
        description="Who voted for items: users of the last days who seem similar to the model (moments), or users who "
        "were similar when the features were computed (stored); null if no votes count."
    )
    votes_fallback: VotesFallback | None = Field(
        description="Why moments do not vote although the model reads their votes, so that at most stored ones count; "
        "no_moments: the release has none, or GRASP_ONLINE_MOMENTS is false; moments_error: the search failed, and the "
        "log says why."
    )


class RecommendationResponse(Answer):
    model_config = _example(**ANSWER, items=[ITEM], num_unknown_recent_items=0)

    items: list[Recommendation]
    num_unknown_recent_items: int = Field(description="Recent items that are not in the release; they are ignored.")


class BatchResponse(BaseModel):
    model_config = _example(
        request_id=ORIGIN["request_id"], answers=[{**ANSWER, "items": [ITEM], "num_unknown_recent_items": 0}]
    )

    request_id: str
    answers: list[RecommendationResponse] = Field(description="One per user, in the order of the request.")


class ItemScore(BaseModel):
    item_id: str
    score: float | None = Field(
        description="From the model or, in a fallback, the takers of the last 7 days with a fraction that orders equal "
        "numbers; null: not in release."
    )


class ScoresResponse(Answer):
    model_config = _example(**ANSWER, scores=[{"item_id": "172", "score": 7.31}, {"item_id": "x", "score": None}])

    scores: list[ItemScore] = Field(description="In the order of the request. Compare scores only within one answer.")


class SimilarItem(BaseModel):
    item_id: str
    title: str
    similarity: float = Field(description="Cosine of the semantic embeddings.")


class SimilarResponse(BaseModel):
    model_config = _example(
        **ORIGIN,
        item_id="172",
        title="Empire Strikes Back",
        items=[{"item_id": "181", "title": "Return of the Jedi", "similarity": 0.83}],
    )

    request_id: str
    item_id: str
    title: str
    items: list[SimilarItem]
    release: str


class ItemResponse(BaseModel):
    """An item with its features."""

    model_config = _example(
        **ORIGIN,
        item_id="172",
        title="Empire Strikes Back",
        description="A space adventure for fans of action, drama and science fiction.",
        source="llm",
        popularity=367,
        is_tail=False,
        categories=["Action", "Adventure"],
        neighbours=[{"item_id": "181", "title": "Return of the Jedi", "similarity": 0.83}],
        day="1998-04-22",
    )

    request_id: str
    item_id: str
    title: str
    description: str
    source: str = Field(description="Source of the description: llm or facts.")
    popularity: int = Field(description="Distinct users up to the end of the day.")
    is_tail: bool
    categories: list[str] = Field(description="Short attribute values that contain a letter.")
    neighbours: list[SimilarItem] = Field(description="The items averaged into its neighbour embedding, nearest first.")
    day: str
    release: str


class HistoryItem(BaseModel):
    item_id: str
    title: str | None = Field(description="Null if the item is not in the release.")
    at: datetime | None = Field(description="Time of the interaction, UTC; null if the features hold no times.")


class SimilarUser(BaseModel):
    """A user with facts. They are null if the online store has no row of the user any more, or failed."""

    user_id: str
    similarity: float = Field(description="Cosine of the semantic embeddings.")
    description: str | None = Field(description="The beginning of the user's description.")
    num_interactions: int | None
    num_shared_items: int | None = Field(description="Items that both users took.")


class UserResponse(BaseModel):
    """A user with their features, for people to read."""

    model_config = _example(
        **ORIGIN,
        user_id="196",
        description="Enjoys comedies and dramas of the nineties.",
        source="llm",
        day="1998-04-22",
        age_hours=7.5,
        is_stale=False,
        computed_at="1998-04-23T02:10:00Z",
        is_tail=False,
        num_interactions=39,
        history=[{"item_id": "181", "title": "Return of the Jedi", "at": "1998-04-20T18:01:07Z"}],
        neighbours=[SIMILAR_USER],
        fallback=None,
        store_problem=None,
    )

    request_id: str
    user_id: str
    description: str
    source: str = Field(description="Source of the description: llm or facts.")
    day: str = Field(description="Day of the features.")
    age_hours: float = Field(description="Hours since the end of that day.")
    is_stale: bool = Field(description="The features are older than GRASP_MAX_FEATURE_AGE_HOURS allows.")
    computed_at: datetime = Field(description="When the row's content last changed.")
    is_tail: bool
    num_interactions: int
    history: list[HistoryItem] = Field(description="At most the last 100, oldest first.")
    neighbours: list[SimilarUser] = Field(description="Nearest first.")
    release: str
    fallback: Literal["last_good"] | None = Field(description="last_good: the store failed, so this is an earlier row.")
    store_problem: StoreProblem | None = Field(description="Set if the user's row or a neighbour's could not be read.")


class UserFeaturesResponse(BaseModel):
    """A user's complete row in the online store, for a caller that computes with features itself."""

    model_config = _example(
        **ORIGIN,
        fallback=None,
        store_problem=None,
        user_id="196",
        sequence=["181"],
        sequence_times=[893_095_267],
        earlier_item_ids=["50"],
        semantic_embedding=[0.8, -0.6],
        neighbour_embedding=[0.6, -0.7],
        neighbour_ids=["186"],
        neighbour_similarities=[0.91],
        description="Enjoys comedies and dramas of the nineties.",
        source="llm",
        is_tail=False,
        num_interactions=39,
        gap_days=2,
        neighbour_item_ids=["172", "313"],
        neighbour_item_weights=[0.08, 0.05],
        event_timestamp="1998-04-22T23:59:59Z",
        computed_at="1998-04-23T02:10:00Z",
    )

    request_id: str
    release: str
    fallback: Literal["last_good"] | None = Field(description="last_good: the store failed, so this is an earlier row.")
    store_problem: StoreProblem | None
    user_id: str
    sequence: list[str] = Field(description="At most the last 100 item ids, oldest first.")
    sequence_times: list[int] = Field(description="Seconds since 1970 UTC; empty if the features hold no times.")
    earlier_item_ids: list[str] = Field(description="The items before those of `sequence`, each once, in no order.")
    semantic_embedding: list[float]
    neighbour_embedding: list[float] = Field(description="Mean of the neighbours' semantic embeddings.")
    neighbour_ids: list[str]
    neighbour_similarities: list[float]
    description: str
    source: str = Field(description="Source of the description: llm or facts.")
    is_tail: bool
    num_interactions: int
    gap_days: int | None = Field(
        description="Days from the last interaction to the features' day; null if the features do not hold it."
    )
    neighbour_item_ids: list[str] = Field(description="What similar users took lately, most votes first.")
    neighbour_item_weights: list[float] = Field(description="The share of all votes that each of them has.")
    event_timestamp: datetime = Field(description="End of the features' day.")
    computed_at: datetime = Field(description="When the row's content last changed.")


class SimilarUsersResponse(BaseModel):
    model_config = _example(
        **ORIGIN,
        user_id="196",
        users=[SIMILAR_USER],
        fallback=None,
        store_problem=None,
    )

    request_id: str
    user_id: str
    users: list[SimilarUser] = Field(description="At most k and at most those in the features; nearest first.")
    release: str
    fallback: Literal["last_good"] | None
    store_problem: StoreProblem | None = Field(description="As for one user.")


class FoundItem(SimilarItem):
    is_close: bool = Field(
        description="Its similarity reaches GRASP_SEARCH_MIN_SIMILARITY, or its title or categories hold the query."
    )
    snippet: str = Field(description="The beginning of its description.")
    categories: list[str]


class SearchResponse(BaseModel):
    model_config = _example(
        **ORIGIN,
        items=[
            {
                "item_id": "172",
                "title": "Empire Strikes Back",
                "similarity": 0.52,
                "is_close": True,
                "snippet": "A space adventure for fans of action, drama and science fiction.",
                "categories": ["Action", "Adventure"],
            }
        ],
        nothing_close=False,
        backend="memory",
        fallback=None,
    )

    request_id: str
    items: list[FoundItem] = Field(
        description="Nearest first, close or not; of a query that is a category, its items first. Each title once."
    )
    nothing_close: bool = Field(description="No item is close: the search found nothing about this.")
    release: str
    backend: SearchBackend = Field(description="Where the vectors were searched.")
    fallback: SearchFallback | None = Field(
        description="Why a configured Milvus server did not answer; `milvus_incomplete`: with too few items."
    )


class Category(BaseModel):
    category: str
    num_items: int


class CategoriesResponse(BaseModel):
    model_config = _example(
        **ORIGIN, categories=[{"category": "Drama", "num_items": 725}, {"category": "Comedy", "num_items": 505}], num=19
    )

    request_id: str
    categories: list[Category] = Field(description="The largest first, at most k.")
    num: int = Field(description="Number of all categories.")
    release: str


class ExamplePerson(BaseModel):
    user_id: str
    description: str = Field(description="The beginning of the user's description.")
    num_interactions: int
    latest_titles: list[str] = Field(description="The user's last items, newest first.")


class ExamplesResponse(BaseModel):
    model_config = _example(
        **ORIGIN,
        people=[
            {
                "user_id": "196",
                "description": "Enjoys comedies and dramas of the nineties.",
                "num_interactions": 39,
                "latest_titles": ["Return of the Jedi"],
            }
        ],
        searches=["Drama", "Comedy"],
        store_problem=None,
    )

    request_id: str
    people: list[ExamplePerson] = Field(description="From few to many interactions; none if the lake is out of reach.")
    searches: list[str] = Field(description="Queries that find something: the largest categories.")
    release: str
    store_problem: StoreProblem | None = Field(description="Set if the online store failed: people may be missing.")


class AcceptedResponse(BaseModel):
    """What was taken will be written within the minute."""

    model_config = _example(request_id=ORIGIN["request_id"], num_accepted=1)

    request_id: str
    num_accepted: int


class ReleaseInfo(BaseModel):
    release: str
    role: Literal["in_force", "candidate"]
    day: str
    age_hours: float = Field(description="Hours since the end of that day.")
    model: str | None
    feature_version: str
    embedding_version: str
    num_items: int
    published_at: str


class ExperimentInfo(BaseModel):
    name: str
    release: str = Field(description="The release that the experiment shows.")
    share: float = Field(description="Share of the users who get it, 0 to 1.")


class ReleasesResponse(BaseModel):
    model_config = _example(
        request_id=ORIGIN["request_id"],
        releases=[
            {
                "release": ORIGIN["release"],
                "role": "in_force",
                "day": "1998-04-22",
                "age_hours": 7.5,
                "model": ANSWER["model"],
                "feature_version": "v1_0a1b2c3d",
                "embedding_version": "all_minilm_l6_v2_1f2e3d4c5b6a",
                "num_items": 1682,
                "published_at": "1998-04-23T02:14:00+00:00",
            }
        ],
        experiment=None,
        problem=None,
        experiment_problem=None,
    )

    request_id: str
    releases: list[ReleaseInfo] = Field(description="The loaded releases: the one in force, then the experiment's.")
    experiment: ExperimentInfo | None
    problem: str | None = Field(description="Why a newer release was refused.")
    experiment_problem: str | None = Field(description="Why the experiment does not run.")


class Health(BaseModel):
    status: Literal["alive"] = "alive"


class Dependency(BaseModel):
    name: Literal["online_store", "requests_log"]
    release: str | None = Field(description="The release that reads this store; null for the requests log.")
    problem: StoreProblem | LogProblem | None = Field(description="Null if it works.")


class DependenciesResponse(BaseModel):
    """What the service needs to answer in full. A problem is no reason to send requests elsewhere."""

    model_config = _example(
        request_id=ORIGIN["request_id"],
        dependencies=[
            {"name": "online_store", "release": ORIGIN["release"], "problem": None},
            {"name": "requests_log", "release": None, "problem": None},
        ],
    )

    request_id: str
    dependencies: list[Dependency]


class Readiness(BaseModel):
    model_config = _example(ready=True, reason=None, release=ORIGIN["release"], problem=None, experiment_problem=None)

    ready: bool
    reason: str | None = Field(description="Why the service is not ready; only `no_release` where tokens exist.")
    release: str | None
    problem: str | None = Field(description="Why a newer release was refused; only `not_loaded` where tokens exist.")
    experiment_problem: str | None = Field(
        description="Why the experiment does not run; only `not_running` where tokens exist."
    )

    def without_texts(self) -> "Readiness":
        """The same without error texts, which may hold paths and addresses, for callers without a token."""
        return self.model_copy(
            update={
                "reason": self.reason and "no_release",
                "problem": self.problem and "not_loaded",
                "experiment_problem": self.experiment_problem and "not_running",
            }
        )


class Problem(BaseModel):
    """The answer to a request that fails."""

    model_config = _example(detail="item '9999' is not in release 1998-04-22-0a1b2c3d4e", request_id="6f1c2a9be0d94c7f")

    detail: str
    request_id: str


class Mistake(BaseModel):
    field: str
    message: str


class WrongRequest(BaseModel):
    """The mistakes of a request, by field. The input is not repeated."""

    model_config = _example(
        detail=[{"field": "body.k", "message": "Input should be less than or equal to 200"}],
        request_id="6f1c2a9be0d94c7f",
    )

    detail: list[Mistake]
    request_id: str
