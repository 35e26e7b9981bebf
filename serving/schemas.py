"""What goes in and comes out over HTTP: every request and response, with limits, meanings and an example."""

from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from serving.ranking.release_ranker import Evidence, Recommendation

MAX_ITEMS = 200  # recommended or similar ones in one answer
MAX_RECENT = 100
MAX_LISTED = 1_000  # ids of an allow or deny list, or to be scored
MAX_BATCH = 100  # users
MAX_OUTCOMES = 100
MAX_QUERY_CHARS = 500
MAX_KEY_CHARS = 256  # of an id or a category


def _json_integer(number: object) -> object:
    """JSON knows one kind of number: 10.0 is the integer 10."""
    return int(number) if isinstance(number, float) and number.is_integer() else number


JsonInteger = Annotated[int, BeforeValidator(_json_integer)]
Key = Annotated[str, Field(min_length=1, max_length=MAX_KEY_CHARS)]
RequestId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{7,79}$", description="Names one answer.")]
Fallback = Literal[
    "last_good",
    "recent_items_only",
    "unknown_user",
    "stale_features",
    "store_timeout",
    "store_error",
    "no_model",
    "no_history",
]
StoreProblem = Literal["store_timeout", "store_error"]

AN_ANSWER: dict[str, Any] = {
    "request_id": "6f1c2a9be0d94c7f8a6d1b0e5f3c2d41",
    "user_id": "196",
    "release": "1998-04-22-0a1b2c3d4e",
    "model": "sasrec-grasp-1998-02-28-1a2b3c4d",
    "experiment": "new-model",
    "bucket": "control",
    "feature_day": "1998-04-22",
    "feature_age_hours": 7.5,
    "fallback": None,
    "store_problem": None,
}
EVIDENCE = Evidence(item_id="181", title="Return of the Jedi", weight=0.21, similarity=0.83, is_neighbour=True)
AN_ITEM = asdict(
    Recommendation("172", "Empire Strikes Back", 7.31, "similar to Return of the Jedi in your history", [EVIDENCE])
)


def _example(**content: Any) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [content]})


class StrictRequest(BaseModel):
    """A request: what it does not know, it refuses."""

    model_config = ConfigDict(extra="forbid")


class Filters(StrictRequest):
    """Which items may be shown. Ids and categories are compared, never parsed."""

    allow_item_ids: list[Key] | None = Field(
        None, min_length=1, max_length=MAX_LISTED, description="Only these; all items when absent."
    )
    deny_item_ids: list[Key] = Field([], max_length=MAX_LISTED, description="None of these.")
    categories: list[Key] = Field(
        [], max_length=20, description="Only items of at least one of these, if any is given."
    )


class RecommendationRequest(Filters):
    model_config = ConfigDict(extra="forbid") | _example(
        user_id="196", k=10, recent_item_ids=["181"], exclude_seen=True, deny_item_ids=["50"]
    )

    user_id: Key
    k: JsonInteger = Field(10, ge=1, le=MAX_ITEMS, strict=True, description="How many items.")
    recent_item_ids: list[Key] = Field(
        [], max_length=MAX_RECENT, description="Items of the running visit, since the features' day; oldest first."
    )
    exclude_seen: bool = Field(
        True, strict=True, description="Leave out the user's last 100 items and the recent ones."
    )
    release: Key | None = Field(
        None, description="Ask this loaded release, outside any experiment; the one in force when absent."
    )
    is_shown: bool = Field(True, strict=True, description="False: somebody only looks; the answer is not kept.")


class BatchRequest(Filters):
    model_config = ConfigDict(extra="forbid") | _example(user_ids=["196", "186"], k=5)

    user_ids: list[Key] = Field(min_length=1, max_length=MAX_BATCH)
    k: JsonInteger = Field(10, ge=1, le=MAX_ITEMS, strict=True, description="How many items for each user.")
    exclude_seen: bool = Field(True, strict=True, description="Leave out each user's last 100 items.")
    release: Key | None = Field(None, description="As for one user.")
    is_shown: bool = Field(True, strict=True, description="As for one user.")


class ScoresRequest(StrictRequest):
    model_config = ConfigDict(extra="forbid") | _example(user_id="196", item_ids=["172", "50"])

    user_id: Key
    item_ids: list[Key] = Field(min_length=1, max_length=MAX_LISTED)
    recent_item_ids: list[Key] = Field([], max_length=MAX_RECENT, description="As for recommendations.")
    release: Key | None = Field(None, description="As for recommendations.")


class Outcome(StrictRequest):
    request_id: RequestId = Field(description="`request_id` of the answer that showed the item.")
    item_id: Key
    kind: Literal["click", "purchase"]


class OutcomesRequest(StrictRequest):
    model_config = ConfigDict(extra="forbid") | _example(
        outcomes=[{"request_id": AN_ANSWER["request_id"], "item_id": "172", "kind": "click"}]
    )

    outcomes: list[Outcome] = Field(min_length=1, max_length=MAX_OUTCOMES)


class Answer(BaseModel):
    """What every answer about a user says of where it came from. It came from one release alone."""

    request_id: str
    user_id: str
    release: str
    model: str | None = Field(description="Null in a release that recommends what is popular.")
    experiment: str | None = Field(description="The running experiment; null outside of one.")
    bucket: Literal["control", "candidate"] | None = Field(description="The user's side of the experiment.")
    feature_day: str = Field(description="Day of the user's features, or of the release without a user's features.")
    feature_age_hours: float
    fallback: Fallback | None = Field(description="What stood in, and why (docs/serving.md); null when nothing had to.")
    store_problem: StoreProblem | None = Field(description="Set when the online store failed, whatever stood in.")


class RecommendationResponse(Answer):
    model_config = _example(**AN_ANSWER, items=[AN_ITEM], num_unknown_recent_items=0)

    items: list[Recommendation]
    num_unknown_recent_items: int = Field(description="Recent items that the release does not have; ignored.")


class BatchResponse(BaseModel):
    model_config = _example(
        request_id=AN_ANSWER["request_id"], answers=[{**AN_ANSWER, "items": [AN_ITEM], "num_unknown_recent_items": 0}]
    )

    request_id: str
    answers: list[RecommendationResponse] = Field(description="One for each user, in the order asked.")


class ItemScore(BaseModel):
    item_id: str
    score: float | None = Field(description="The model's, or the number of users in a fallback; null: not in release.")


class ScoresResponse(Answer):
    model_config = _example(**AN_ANSWER, scores=[{"item_id": "172", "score": 7.31}, {"item_id": "x", "score": None}])

    scores: list[ItemScore] = Field(description="In the order asked. Only scores of one answer can be compared.")


class SimilarItem(BaseModel):
    item_id: str
    title: str
    similarity: float = Field(description="Cosine of the semantic embeddings.")


class SimilarResponse(BaseModel):
    model_config = _example(
        request_id=AN_ANSWER["request_id"],
        item_id="172",
        title="Empire Strikes Back",
        items=[{"item_id": "181", "title": "Return of the Jedi", "similarity": 0.83}],
        release=AN_ANSWER["release"],
    )

    request_id: str
    item_id: str
    title: str
    items: list[SimilarItem]
    release: str


class ItemResponse(BaseModel):
    """An item as the feature view has it."""

    model_config = _example(
        request_id=AN_ANSWER["request_id"],
        item_id="172",
        title="Empire Strikes Back",
        description="A space adventure for fans of action, drama and science fiction.",
        source="llm",
        popularity=367,
        is_tail=False,
        categories=["Action", "Adventure"],
        neighbours=[{"item_id": "181", "title": "Return of the Jedi", "similarity": 0.83}],
        day="1998-04-22",
        release=AN_ANSWER["release"],
    )

    request_id: str
    item_id: str
    title: str
    description: str
    source: str = Field(description="Who wrote the description: llm, or facts.")
    popularity: int = Field(description="Distinct users up to the end of the day.")
    is_tail: bool
    categories: list[str] = Field(description="Values of the item's attributes that read like categories.")
    neighbours: list[SimilarItem] = Field(description="Those averaged into its neighbour embedding, nearest first.")
    day: str
    release: str


class HistoryItem(BaseModel):
    item_id: str
    title: str | None = Field(description="Null for an item that is not in the release.")
    at: datetime | None = Field(description="When, UTC; null where the features do not say.")


class SimilarUser(BaseModel):
    user_id: str
    similarity: float = Field(description="Cosine of the semantic embeddings.")


class UserResponse(BaseModel):
    """A user as the feature view has them."""

    model_config = _example(
        request_id=AN_ANSWER["request_id"],
        user_id="196",
        description="Enjoys comedies and dramas of the nineties.",
        source="llm",
        day="1998-04-22",
        age_hours=7.5,
        computed_at="1998-04-23T02:10:00Z",
        is_tail=False,
        num_interactions=39,
        history=[{"item_id": "181", "title": "Return of the Jedi", "at": "1998-04-20T18:01:07Z"}],
        neighbours=[{"user_id": "186", "similarity": 0.91}],
        release=AN_ANSWER["release"],
        fallback=None,
        store_problem=None,
    )

    request_id: str
    user_id: str
    description: str
    source: str = Field(description="Who wrote the description: llm, or facts.")
    day: str = Field(description="Day of the features.")
    age_hours: float = Field(description="The clock minus the end of that day.")
    computed_at: datetime = Field(description="When the row's content last changed.")
    is_tail: bool
    num_interactions: int
    history: list[HistoryItem] = Field(description="The last 100 at most, oldest first.")
    neighbours: list[SimilarUser] = Field(description="Nearest first.")
    release: str
    fallback: Literal["last_good"] | None = Field(description="last_good: the store failed, an earlier row is shown.")
    store_problem: StoreProblem | None


class UserFeaturesResponse(BaseModel):
    """A user's row of the online store, whole: for a caller that computes with features itself."""

    model_config = _example(
        request_id=AN_ANSWER["request_id"],
        release=AN_ANSWER["release"],
        fallback=None,
        store_problem=None,
        user_id="196",
        sequence=["181"],
        sequence_times=[893_095_267],
        semantic_embedding=[0.8, -0.6],
        neighbour_embedding=[0.6, -0.7],
        neighbour_ids=["186"],
        neighbour_similarities=[0.91],
        description="Enjoys comedies and dramas of the nineties.",
        source="llm",
        is_tail=False,
        num_interactions=39,
        event_timestamp="1998-04-23T00:00:00Z",
        computed_at="1998-04-23T02:10:00Z",
    )

    request_id: str
    release: str
    fallback: Literal["last_good"] | None = Field(description="last_good: the store failed, an earlier row is given.")
    store_problem: StoreProblem | None
    user_id: str
    sequence: list[str] = Field(description="The last 100 item ids at most, oldest first.")
    sequence_times: list[int] = Field(description="When, in seconds since 1970 UTC; empty where features do not say.")
    semantic_embedding: list[float]
    neighbour_embedding: list[float] = Field(description="Mean of the neighbours' semantic embeddings.")
    neighbour_ids: list[str]
    neighbour_similarities: list[float]
    description: str
    source: str = Field(description="Who wrote the description: llm, or facts.")
    is_tail: bool
    num_interactions: int
    event_timestamp: datetime = Field(description="End of the features' day.")
    computed_at: datetime = Field(description="When the row's content last changed.")


class SimilarUsersResponse(BaseModel):
    model_config = _example(
        request_id=AN_ANSWER["request_id"],
        user_id="196",
        users=[{"user_id": "186", "similarity": 0.91}],
        release=AN_ANSWER["release"],
        fallback=None,
        store_problem=None,
    )

    request_id: str
    user_id: str
    users: list[SimilarUser] = Field(description="As many as the features hold, at most k; nearest first.")
    release: str
    fallback: Literal["last_good"] | None
    store_problem: StoreProblem | None


class SearchResponse(BaseModel):
    model_config = _example(
        request_id=AN_ANSWER["request_id"],
        items=[{"item_id": "172", "title": "Empire Strikes Back", "similarity": 0.52}],
        release=AN_ANSWER["release"],
        backend="memory",
        fallback=None,
    )

    request_id: str
    items: list[SimilarItem] = Field(description="Nearest to the query first.")
    release: str
    backend: Literal["milvus", "memory"] = Field(description="Where the vectors were searched.")
    fallback: Literal["milvus_timeout", "milvus_error"] | None = Field(description="Why Milvus was not the backend.")


class OutcomesResponse(BaseModel):
    model_config = _example(request_id=AN_ANSWER["request_id"], num_accepted=1)

    request_id: str
    num_accepted: int


class ReleaseInfo(BaseModel):
    release: str
    role: Literal["in_force", "candidate"]
    day: str
    age_hours: float = Field(description="The clock minus the end of the day.")
    model: str | None
    feature_version: str
    embedding_version: str
    num_items: int
    published_at: str


class ExperimentInfo(BaseModel):
    name: str
    release: str = Field(description="The candidate.")
    share: float = Field(description="Of the users who get it.")


class ReleasesResponse(BaseModel):
    model_config = _example(
        request_id=AN_ANSWER["request_id"],
        releases=[
            {
                "release": AN_ANSWER["release"],
                "role": "in_force",
                "day": "1998-04-22",
                "age_hours": 7.5,
                "model": AN_ANSWER["model"],
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
    releases: list[ReleaseInfo] = Field(description="Those loaded: the one in force first, then the candidate.")
    experiment: ExperimentInfo | None
    problem: str | None = Field(description="Why a newer release was refused.")
    experiment_problem: str | None = Field(description="Why the experiment does not run.")


class Health(BaseModel):
    status: Literal["alive"] = "alive"


class Readiness(BaseModel):
    model_config = _example(
        ready=True, reason=None, release=AN_ANSWER["release"], problem=None, experiment_problem=None
    )

    ready: bool
    reason: str | None = Field(description="Why it is not ready.")
    release: str | None
    problem: str | None = Field(description="Why a newer release was refused; with tokens: not_loaded.")
    experiment_problem: str | None = Field(description="Why the experiment does not run; with tokens: not_running.")

    def without_texts(self) -> "Readiness":
        """For those who show no token: no text of an error, which may hold paths and addresses."""
        return self.model_copy(
            update={
                "reason": self.reason and (self.reason if self.release else "no_release"),
                "problem": self.problem and "not_loaded",
                "experiment_problem": self.experiment_problem and "not_running",
            }
        )


class Problem(BaseModel):
    """What every error says."""

    model_config = _example(detail="item '9999' is not in release 1998-04-22-0a1b2c3d4e", request_id="6f1c2a9be0d94c7f")

    detail: str
    request_id: str


class Mistake(BaseModel):
    field: str
    message: str


class WrongRequest(BaseModel):
    """Each mistake of a request by field; what was sent is not repeated."""

    model_config = _example(
        detail=[{"field": "body.k", "message": "Input should be less than or equal to 200"}],
        request_id="6f1c2a9be0d94c7f",
    )

    detail: list[Mistake]
    request_id: str
