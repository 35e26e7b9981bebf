"""The one feature lookup of a request: its users' rows of the online store, through Feast."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

import numpy as np
import yaml
from pydantic import ValidationError

from grasp.feature_store import configuration, without_values
from grasp.manifest import Manifest
from grasp.settings import Settings
from grasp.versions import feast_project


class StoreError(RuntimeError):
    """The online store cannot be opened or did not answer properly; the message says what to check."""


@dataclass(frozen=True, eq=False)  # arrays have no one answer to ==
class UserRow:
    """What the online store knows of a user; see `grasp.tables.USER_FEATURES` for the columns' meaning."""

    user_id: str
    sequence: list[str]
    sequence_times: list[int]  # seconds since 1970 UTC; empty in releases of feature definition 1, which had no times
    semantic_embedding: np.ndarray  # float32, as the other vectors: a quarter of the memory of a list
    neighbour_embedding: np.ndarray
    neighbour_ids: list[str]
    neighbour_similarities: np.ndarray
    description: str
    source: str
    is_tail: bool
    num_interactions: int
    event_timestamp: datetime  # end of the row's day, UTC
    computed_at: datetime


class UserFeatures(Protocol):
    def rows(self, user_ids: Sequence[str]) -> list[UserRow | StoreError | None]:
        """What the store has of each user, in one read: None if it knows nothing, an error in place of a damaged row.

        Raises `StoreError` when it does not answer.
        """

    def get(self, user_id: str) -> UserRow | None:
        """The row of one user; raises `StoreError` for a damaged one as well."""
        (found,) = self.rows([user_id])
        if isinstance(found, StoreError):
            raise found
        return found


_REQUIRED = (
    "sequence",
    "semantic_embedding",
    "neighbour_embedding",
    "neighbour_ids",
    "neighbour_similarities",
    "description",
    "source",
    "is_tail",
    "num_interactions",
    "computed_at",
)
_OPTIONAL = ("sequence_times",)  # unknown to feature definition 1, whose releases go on being served
COLUMNS = (*_REQUIRED, *_OPTIONAL)


# A request does not wait for redis-py's own three tries, seconds apart, or for an answer that never comes: seconds.
_REDIS_LIMITS = "socket_timeout=1,socket_connect_timeout=1"
_NUM_REDIS_RETRIES = 1


class FeastUserFeatures(UserFeatures):
    """Rows from the Feast project of a release's feature version: one online read per request.

    Asks the online store for the users' keys and the columns above, through the provider. Feast's own
    `get_online_features` reads the same bytes, but prepares and types each answer anew, which takes several times as
    long as the store.
    """

    def __init__(self, settings: Settings, manifest: Manifest) -> None:
        self._errors = _store_errors()
        self._store = _open_store(settings, feast_project(manifest.feature_version), self._errors)
        try:
            service = self._store.get_feature_service(manifest.feature_service)
            (projection,) = service.feature_view_projections
            self._view = self._store.get_feature_view(projection.name)
        except self._errors as error:
            raise StoreError(
                f"feature service {manifest.feature_service} is not registered ({error}): "
                f"run `python -m feature_repo.materialise --day {manifest.day}`"
            ) from error
        (self._key,) = self._view.join_keys
        offered = {feature.name for feature in projection.features}
        lacking = [name for name in _REQUIRED if name not in offered]
        if lacking:
            raise StoreError(f"feature service {manifest.feature_service} has no {', '.join(lacking)}: retrain")
        self._columns = [*_REQUIRED, *(name for name in _OPTIONAL if name in offered)]

    def rows(self, user_ids: Sequence[str]) -> list[UserRow | StoreError | None]:
        from google.protobuf.message import DecodeError

        try:
            answer = self._read(user_ids)
        except DecodeError:
            if len(user_ids) == 1:
                return [StoreError("an online row cannot be read: materialise its day with --rollback")]
            half = len(user_ids) // 2  # the store does not say whose row it is, and the others' are good
            return self.rows(user_ids[:half]) + self.rows(user_ids[half:])
        except self._errors as error:
            raise StoreError(f"the online store did not answer: {type(error).__name__}: {error}") from error
        return [
            _row(user_id, self._columns, moment, values or {})
            for user_id, (moment, values) in zip(user_ids, answer, strict=True)
        ]

    def _read(self, user_ids: Sequence[str]) -> list[tuple[datetime | None, dict[str, Any] | None]]:
        from feast.protos.feast.types.EntityKey_pb2 import EntityKey
        from feast.protos.feast.types.Value_pb2 import Value

        keys = [EntityKey(join_keys=[self._key], entity_values=[Value(string_val=user_id)]) for user_id in user_ids]
        # The list is a copy: Feast's Redis store adds to the one it is given.
        return self._store.provider.online_read(self._store.config, self._view, keys, list(self._columns))


def _open_store(settings: Settings, project: str, errors: tuple[type[Exception], ...]) -> Any:
    """The store of `settings.feature_store_yaml`, in the project of one feature version; raises `StoreError`."""
    from feast import FeatureStore, RepoConfig

    file = settings.feature_store_yaml
    try:
        config = RepoConfig(**yaml.safe_load(configuration(settings)), repo_path=file.parent)
        config.project = project
        # A store lives as long as one release is served, so no request ever waits for the registry again (0: for ever).
        config.registry.cache_ttl_seconds = 0
        if config.online_store.type == "redis":
            # In front: what GRASP_REDIS says of the same names counts.
            config.online_store.connection_string = f"{_REDIS_LIMITS},{config.online_store.connection_string}"
        store = FeatureStore(config=config)
        if config.online_store.type == "redis" and config.online_store.redis_type == "redis":
            _retry_at_once(store)
        return store
    except ValidationError as error:
        raise StoreError(f"{file} opens no feature store: {without_values(error)}") from None
    except (TypeError, ValueError, yaml.YAMLError, *errors) as error:
        raise StoreError(f"{file} opens no feature store: {type(error).__name__}: {error}") from error


def _retry_at_once(store: Any) -> None:
    """The client that Feast keeps is told: its connection string cannot say it. Nothing connects before a lookup."""
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    client = store.provider.online_store._get_client(store.config.online_store)
    client.set_retry(Retry(NoBackoff(), _NUM_REDIS_RETRIES))


def _store_errors() -> tuple[type[Exception], ...]:
    """What registries and online stores raise when they fail; anything else is a mistake of ours and must show."""
    import sqlite3

    from feast.errors import FeastError
    from redis.exceptions import RedisError
    from sqlalchemy.exc import SQLAlchemyError

    return (OSError, sqlite3.Error, RedisError, SQLAlchemyError, FeastError)


def _row(
    user_id: str, columns: list[str], moment: datetime | None, values: dict[str, Any]
) -> UserRow | StoreError | None:
    """A user whose values are all missing or null is unknown; a row that is null in part is damaged.

    No message names the user: it ends up in the log.
    """
    row: dict[str, Any] = dict.fromkeys(columns)
    row |= {name: _python_value(values[name]) for name in columns if name in values}
    absent = [name for name, value in row.items() if value is None]
    if len(absent) == len(columns):
        return None
    if absent or moment is None:
        return StoreError(f"an online row lacks {', '.join(absent)}: materialise its day with --rollback")
    for name, other in (("sequence", "sequence_times"), ("neighbour_ids", "neighbour_similarities")):
        if other in row and len(row[name]) != len(row[other]):
            return StoreError(
                f"{name} and {other} of an online row differ in length: materialise its day with --rollback"
            )
    if not all(np.isfinite(value).all() for value in row.values() if isinstance(value, np.ndarray)):
        return StoreError("an online row holds numbers that are not finite: materialise its day with --rollback")
    row["is_tail"] = bool(row["is_tail"])
    row["computed_at"] = _utc(row["computed_at"])
    return UserRow(user_id=user_id, event_timestamp=_utc(moment), **{"sequence_times": [], **row})


def _python_value(value: Any) -> Any:
    """Feast's own conversion, but for floats: a row has hundreds, which are copied together as the store has them."""
    from feast.type_map import feast_value_type_to_python_type

    if value.HasField("float_list_val"):
        return np.array(value.float_list_val.val, np.float32)
    return feast_value_type_to_python_type(value)


def _utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
