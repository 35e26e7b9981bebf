"""Show one item or one user with the features that the feature views hold."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime

import orjson
from anyio import to_thread
from fastapi import HTTPException

from serving.answers.recommender import Recommender, rounded
from serving.lookup.online_store import UserRow
from serving.lookup.user_lookup import LookupResult, StoreProblem, UserLookup, first_problem
from serving.rollout.follower import LoadedRelease
from serving.schemas import (
    CategoriesResponse,
    Category,
    FoundItem,
    HistoryItem,
    ItemResponse,
    SimilarItem,
    SimilarResponse,
    SimilarUser,
    SimilarUsersResponse,
    UserResponse,
)
from serving.telemetry.metrics import Metrics

MAX_SNIPPET_CHARS = 160


class Profiles:
    """Answers from the release in force."""

    def __init__(self, recommender: Recommender, lookup: UserLookup, metrics: Metrics) -> None:
        self._recommender = recommender
        self._lookup = lookup
        self._metrics = metrics

    def item(self, item_id: str, request_id: str) -> ItemResponse:
        release = self._recommender.loaded().in_force
        row = _row(release, item_id)
        items, catalogue = release.items, release.catalogue
        description, source = catalogue.text(row)
        return ItemResponse(
            request_id=request_id,
            item_id=item_id,
            title=items.title(row),
            description=description,
            source=source,
            popularity=int(items.popularity_N[row]),
            is_tail=catalogue.is_tail(row),
            categories=catalogue.categories(row),
            neighbours=as_similar_items(release, catalogue.neighbours(row)),
            day=release.manifest.day,
            release=release.release_id,
        )

    def similar_items(self, item_id: str, k: int, request_id: str) -> SimilarResponse:
        release = self._recommender.loaded().in_force
        row = _row(release, item_id)
        return SimilarResponse(
            request_id=request_id,
            item_id=item_id,
            title=release.items.title(row),
            items=as_similar_items(release, release.items.similar(item_id, k)),
            release=release.release_id,
        )

    def categories(self, k: int, request_id: str) -> CategoriesResponse:
        release = self._recommender.loaded().in_force
        found = release.catalogue.all_categories()
        return CategoriesResponse(
            request_id=request_id,
            categories=[Category(category=name, num_items=num) for name, num in found[:k]],
            num=len(found),
            release=release.release_id,
        )

    async def user(self, user_id: str, request_id: str) -> UserResponse:
        release = self._recommender.loaded().in_force
        result = await self._lookup.get(release, user_id)
        row = self._require_row(release, user_id, result)
        neighbours, problem_of_neighbours = await self._similar_users(release, row)
        return UserResponse(
            request_id=request_id,
            user_id=user_id,
            description=row.description,
            source=row.source,
            day=row.event_timestamp.date().isoformat(),
            age_hours=rounded(self._recommender.age_hours(row.event_timestamp)),
            is_stale=self._recommender.is_stale(row.event_timestamp),
            computed_at=row.computed_at,
            is_tail=row.is_tail,
            num_interactions=row.num_interactions,
            history=_history(release, row),
            neighbours=neighbours,
            release=release.release_id,
            fallback="last_good" if result.is_last_good else None,
            store_problem=result.problem or problem_of_neighbours,
        )

    async def similar_users(self, user_id: str, k: int, request_id: str) -> SimilarUsersResponse:
        release = self._recommender.loaded().in_force
        result = await self._lookup.get(release, user_id)
        row = self._require_row(release, user_id, result)
        users, problem_of_users = await self._similar_users(release, row, k)
        return SimilarUsersResponse(
            request_id=request_id,
            user_id=user_id,
            users=users,
            release=release.release_id,
            fallback="last_good" if result.is_last_good else None,
            store_problem=result.problem or problem_of_users,
        )

    async def features(self, user_id: str, request_id: str) -> bytes:
        """A `UserFeaturesResponse` as JSON, written from the row directly: a pydantic model would copy its vectors.

        Floats have the digits that a float32 needs, half as many as a Python float.
        """
        release = self._recommender.loaded().in_force
        result = await self._lookup.get(release, user_id)
        row = self._require_row(release, user_id, result)
        origin = {
            "request_id": request_id,
            "release": release.release_id,
            "fallback": "last_good" if result.is_last_good else None,
            "store_problem": result.problem,
        }
        return orjson.dumps(origin | vars(row), option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_UTC_Z)

    async def _similar_users(
        self, release: LoadedRelease, user: UserRow, k: int | None = None
    ) -> tuple[list[SimilarUser], StoreProblem | None]:
        """The first k neighbours, nearest first, with facts from one more read of the store; the read's problem."""
        pairs = list(zip(user.neighbour_ids, user.neighbour_similarities.tolist(), strict=True))[:k]
        asked = [(release, user_id) for user_id, _ in pairs]
        found = await to_thread.run_sync(self._lookup.get_many, asked)
        problem = first_problem(found)
        if problem:
            self._metrics.count_store_problem(problem)
        similar = [
            _similar_user(user, user_id, similarity, each.row)
            for (user_id, similarity), each in zip(pairs, found, strict=True)
        ]
        return similar, problem

    def _require_row(self, release: LoadedRelease, user_id: str, result: LookupResult) -> UserRow:
        """The row. Raises 404 for a user without features, 503 when the store failed and no last good row is kept."""
        if result.problem:
            self._metrics.count_store_problem(result.problem)
        if result.row is not None:
            return result.row
        if result.problem:
            raise HTTPException(503, f"{result.problem}: the online store gave no usable answer")
        raise HTTPException(404, f"user {user_id!r} has no features in release {release.release_id}")


def as_similar_items(release: LoadedRelease, pairs: list[tuple[int, float]]) -> list[SimilarItem]:
    """Rows and similarities as items with titles."""
    items = release.items
    return [
        SimilarItem(item_id=items.ids[row], title=items.title(row), similarity=similarity) for row, similarity in pairs
    ]


def as_found_items(
    release: LoadedRelease, pairs: list[tuple[int, float]], query: str, min_similarity: float
) -> list[FoundItem]:
    """Hits of a search with what tells a person whether they are right."""
    return [
        FoundItem(
            item_id=release.items.ids[row],
            title=release.items.title(row),
            similarity=similarity,
            is_close=similarity >= min_similarity or _is_named(release, row, query),
            snippet=snippet(release.catalogue.text(row)[0]),
            categories=release.catalogue.categories(row),
        )
        for row, similarity in pairs
    ]


def _is_named(release: LoadedRelease, row: int, query: str) -> bool:
    """Whether the query is one of the item's categories or whole words of its title; case does not matter."""
    wanted = query.strip().casefold()
    if wanted in (category.casefold() for category in release.catalogue.categories(row)):
        return True
    title = release.items.title(row).casefold()
    return wanted != "" and re.search(rf"(?<!\w){re.escape(wanted)}(?!\w)", title) is not None


def snippet(text: str) -> str:
    """The beginning of a text, whole words of at most `MAX_SNIPPET_CHARS`."""
    plain = " ".join(text.split())
    if len(plain) <= MAX_SNIPPET_CHARS:
        return plain
    return f"{plain[: MAX_SNIPPET_CHARS - 1].rsplit(' ', 1)[0]}…"


def _row(release: LoadedRelease, item_id: str) -> int:
    row = release.items.row_of.get(item_id)
    if row is None:
        raise HTTPException(404, f"item {item_id!r} is not in release {release.release_id}")
    return row


def _history(release: LoadedRelease, user: UserRow) -> list[HistoryItem]:
    items = release.items
    times: Sequence[int | None] = user.sequence_times or [None] * len(user.sequence)
    return [
        HistoryItem(
            item_id=item_id,
            title=items.title(items.row_of[item_id]) if item_id in items.row_of else None,
            at=datetime.fromtimestamp(seconds, UTC) if seconds is not None else None,
        )
        for item_id, seconds in zip(user.sequence, times, strict=True)
    ]


def _similar_user(user: UserRow, user_id: str, similarity: float, row: UserRow | None) -> SimilarUser:
    return SimilarUser(
        user_id=user_id,
        similarity=similarity,
        description=snippet(row.description) if row else None,
        num_interactions=row.num_interactions if row else None,
        num_shared_items=len(_all_items(user) & _all_items(row)) if row else None,
    )


def _all_items(user: UserRow) -> set[str]:
    return {*user.earlier_item_ids, *user.sequence}
