"""Items and users as the feature views have them, for people who look at one."""

from collections.abc import Sequence
from datetime import UTC, datetime

import orjson
from fastapi import HTTPException

from serving.answers.recommender import Recommender, rounded
from serving.lookup.online_store import UserRow
from serving.lookup.timely import Found, Lookup
from serving.rollout.follower import Served
from serving.schemas import (
    HistoryItem,
    ItemResponse,
    SimilarItem,
    SimilarResponse,
    SimilarUser,
    SimilarUsersResponse,
    UserResponse,
)
from serving.telemetry.metrics import Telemetry


class Profiles:
    """Reads the release in force."""

    def __init__(self, recommender: Recommender, lookup: Lookup, telemetry: Telemetry) -> None:
        self._recommender = recommender
        self._lookup = lookup
        self._telemetry = telemetry

    def item(self, item_id: str, request_id: str) -> ItemResponse:
        served = self._recommender.loaded().in_force
        row = _row(served, item_id)
        items, catalogue = served.release.items, served.catalogue
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
            neighbours=shown(served, catalogue.neighbours(row)),
            day=served.release.manifest.day,
            release=served.release_id,
        )

    def similar_items(self, item_id: str, k: int, request_id: str) -> SimilarResponse:
        served = self._recommender.loaded().in_force
        row = _row(served, item_id)
        return SimilarResponse(
            request_id=request_id,
            item_id=item_id,
            title=served.release.items.title(row),
            items=shown(served, served.release.items.similar(item_id, k)),
            release=served.release_id,
        )

    async def user(self, user_id: str, request_id: str) -> UserResponse:
        served = self._recommender.loaded().in_force
        found = await self._lookup.get(served, user_id)
        row = self._known(served, user_id, found)
        return UserResponse(
            request_id=request_id,
            user_id=user_id,
            description=row.description,
            source=row.source,
            day=row.event_timestamp.date().isoformat(),
            age_hours=rounded(self._recommender.age_hours(row.event_timestamp)),
            computed_at=row.computed_at,
            is_tail=row.is_tail,
            num_interactions=row.num_interactions,
            history=_history(served, row),
            neighbours=_similar_users(row),
            release=served.release_id,
            fallback="last_good" if found.is_last_good else None,
            store_problem=found.problem,
        )

    async def similar_users(self, user_id: str, k: int, request_id: str) -> SimilarUsersResponse:
        served = self._recommender.loaded().in_force
        found = await self._lookup.get(served, user_id)
        row = self._known(served, user_id, found)
        return SimilarUsersResponse(
            request_id=request_id,
            user_id=user_id,
            users=_similar_users(row)[:k],
            release=served.release_id,
            fallback="last_good" if found.is_last_good else None,
            store_problem=found.problem,
        )

    async def features(self, user_id: str, request_id: str) -> bytes:
        """A `UserFeaturesResponse` as JSON: written from the row itself, whose vectors no model has to go through.

        A float has as many digits as tell it from its neighbours of four bytes, half of those of a Python float.
        """
        served = self._recommender.loaded().in_force
        found = await self._lookup.get(served, user_id)
        row = self._known(served, user_id, found)
        origin = {
            "request_id": request_id,
            "release": served.release_id,
            "fallback": "last_good" if found.is_last_good else None,
            "store_problem": found.problem,
        }
        return orjson.dumps(origin | vars(row), option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_UTC_Z)

    def _known(self, served: Served, user_id: str, found: Found) -> UserRow:
        """The row. Raises 404 for a user without features, and 503 when the store failed and no earlier row is kept."""
        if found.problem:
            self._telemetry.count_store_problem(found.problem)
        if found.row is not None:
            return found.row
        if found.problem:
            raise HTTPException(503, f"{found.problem}: the online store did not answer")
        raise HTTPException(404, f"user {user_id!r} has no features in release {served.release_id}")


def shown(served: Served, pairs: list[tuple[int, float]]) -> list[SimilarItem]:
    """Rows and similarities as a reader sees them."""
    items = served.release.items
    return [
        SimilarItem(item_id=items.ids[row], title=items.title(row), similarity=similarity) for row, similarity in pairs
    ]


def _row(served: Served, item_id: str) -> int:
    row = served.release.items.row_of.get(item_id)
    if row is None:
        raise HTTPException(404, f"item {item_id!r} is not in release {served.release_id}")
    return row


def _history(served: Served, user: UserRow) -> list[HistoryItem]:
    items = served.release.items
    times: Sequence[int | None] = user.sequence_times or [None] * len(user.sequence)
    return [
        HistoryItem(
            item_id=item_id,
            title=items.title(items.row_of[item_id]) if item_id in items.row_of else None,
            at=datetime.fromtimestamp(seconds, UTC) if seconds is not None else None,
        )
        for item_id, seconds in zip(user.sequence, times, strict=True)
    ]


def _similar_users(user: UserRow) -> list[SimilarUser]:
    pairs = zip(user.neighbour_ids, user.neighbour_similarities.tolist(), strict=True)
    return [SimilarUser(user_id=user_id, similarity=similarity) for user_id, similarity in pairs]
