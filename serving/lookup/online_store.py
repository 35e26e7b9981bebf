"""Read the users of a request from the online store, through Feast."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

import numpy as np
import yaml
from pydantic import ValidationError

from grasp.feature_store import configuration, without_quotes, without_values
from grasp.manifest import Manifest
from grasp.settings import Settings
from grasp.versions import feast_project


class StoreError(RuntimeError):
    """The online store cannot be opened or gave no usable answer; the message says what to check."""


@dataclass(frozen=True, eq=False)  # NumPy arrays compare element-wise, so dataclass equality is off
class UserRow:
    """A user's row in the online store; `grasp.tables.USER_FEATURES` explains the columns."""

    user_id: str
    sequence: list[str]
    sequence_times: list[int]  # seconds since 1970 UTC; empty in releases of feature definition 1
    earlier_item_ids: list[str]  # taken before the items of sequence; empty up to feature definition 2
    semantic_embedding: np.ndarray  # float32, like the other vectors: a quarter of the memory of a list
    neighbour_embedding: np.ndarray
    neighbour_ids: list[str]
    neighbour_similarities: np.ndarray
    description: str
    source: str
    is_tail: bool
    num_interactions: int
    gap_days: int | None  # from the last interaction to the row's day; None up to feature definition 3
    neighbour_item_ids: list[str]  # most votes first; empty up to feature definition 3
    neighbour_item_weights: np.ndarray  # float32, the share of all votes that each of them has
    event_timestamp: datetime  # end of the row's day, UTC
    computed_at: datetime


class UserStore(Protocol):
    def rows(self, user_ids: Sequence[str]) -> list[UserRow | StoreError | None]:
        """The rows of the users, in one read: None for an unknown user, an error in place of a damaged row.

        Raises `StoreError` when the store does not answer.
        """

    def get(self, user_id: str) -> UserRow | None:
        """The row of one user. Raises `StoreError` for a damaged row as well."""
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
# Missing in earlier feature definitions, whose releases can still be served.
_OPTIONAL = ("sequence_times", "earlier_item_ids", "gap_days", "neighbour_item_ids", "neighbour_item_weights")
# Lists of equal length.
_PAIRS = (
    ("sequence", "sequence_times"),
    ("neighbour_ids", "neighbour_similarities"),
    ("neighbour_item_ids", "neighbour_item_weights"),
)
COLUMNS = (*_REQUIRED, *_OPTIONAL)

# Seconds. By default redis-py waits without limit and tries three times, seconds apart.
_REDIS_LIMITS = "socket_timeout=1,socket_connect_timeout=1"
_NUM_REDIS_RETRIES = 1


class FeastUserStore(UserStore):
    """Rows from the Feast project of a release's feature version, in one online read.

    It calls the provider of the online store directly. Feast's `get_online_features` reads the same bytes, but its
    conversions take several times as long as the read.
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
                f"run `grasp materialise --day {manifest.day}`"
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
            half = len(user_ids) // 2  # the store does not say whose row is damaged; the others are good
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
        # A copy, because Feast's Redis store appends to the list it is given.
        return self._store.provider.online_read(self._store.config, self._view, keys, list(self._columns))


def _open_store(settings: Settings, project: str, errors: tuple[type[Exception], ...]) -> Any:
    """Open `settings.feature_store_yaml` in the project of one feature version. Raises `StoreError`."""
    from feast import FeatureStore, RepoConfig

    file = settings.feature_store_yaml
    try:
        text = configuration(settings)
    except (OSError, ValueError) as error:
        raise StoreError(f"{file} opens no feature store: {error}") from None
    try:
        config = RepoConfig(**yaml.safe_load(text), repo_path=file.parent)
        config.project = project
        # 0 caches the registry for ever. A store serves one release, so it never has to read the registry again.
        config.registry.cache_ttl_seconds = 0
        if config.online_store.type == "redis":
            # These come first, so that GRASP_REDIS can override them.
            config.online_store.connection_string = f"{_REDIS_LIMITS},{config.online_store.connection_string}"
        store = FeatureStore(config=config)
        if config.online_store.type == "redis" and config.online_store.redis_type == "redis":
            _retry_at_once(store)
        return store
    except ValidationError as error:
        raise StoreError(f"{file} opens no feature store: {without_values(error)}") from None
    except yaml.YAMLError as error:
        raise StoreError(f"{file} opens no feature store: {without_quotes(error)}") from None
    except (TypeError, ValueError) as error:  # its text may quote a connection string
        raise StoreError(f"{file} opens no feature store: {type(error).__name__}") from None
    except errors as error:
        raise StoreError(f"{file} opens no feature store: {type(error).__name__}: {error}") from error


def _retry_at_once(store: Any) -> None:
    """Set retries on Feast's own Redis client: the connection string has no option for them."""
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    client = store.provider.online_store._get_client(store.config.online_store)
    client.set_retry(Retry(NoBackoff(), _NUM_REDIS_RETRIES))


def _store_errors() -> tuple[type[Exception], ...]:
    """What registries and online stores raise when they fail. Any other error is a bug and must surface."""
    import sqlite3

    from feast.errors import FeastError
    from redis.exceptions import RedisError
    from sqlalchemy.exc import SQLAlchemyError

    return (OSError, sqlite3.Error, RedisError, SQLAlchemyError, FeastError)


def _row(
    user_id: str, columns: list[str], moment: datetime | None, values: dict[str, Any]
) -> UserRow | StoreError | None:
    """The row, None for an unknown user (all values missing or null), an error for a damaged one (some null).

    No message names the user, because messages are logged.
    """
    row: dict[str, Any] = dict.fromkeys(columns)
    row |= {name: _python_value(values[name]) for name in columns if name in values}
    absent = [name for name, value in row.items() if value is None]
    if len(absent) == len(columns):
        return None
    if absent or moment is None:
        return StoreError(f"an online row lacks {', '.join(absent)}: materialise its day with --rollback")
    for name, other in _PAIRS:
        if name in row and other in row and len(row[name]) != len(row[other]):
            return StoreError(
                f"{name} and {other} of an online row differ in length: materialise its day with --rollback"
            )
    if not all(np.isfinite(value).all() for value in row.values() if isinstance(value, np.ndarray)):
        return StoreError("an online row holds numbers that are not finite: materialise its day with --rollback")
    row["is_tail"] = bool(row["is_tail"])
    row["computed_at"] = _utc(row["computed_at"])
    earlier: dict[str, Any] = {name: [] for name in _OPTIONAL}
    earlier |= {"gap_days": None, "neighbour_item_weights": np.zeros(0, np.float32)}
    return UserRow(user_id=user_id, event_timestamp=_utc(moment), **{**earlier, **row})


def _python_value(value: Any) -> Any:
    """Feast's own conversion, except for lists of floats, which are copied as one array because they are long."""
    from feast.type_map import feast_value_type_to_python_type

    if value.HasField("float_list_val"):
        return np.array(value.float_list_val.val, np.float32)
    return feast_value_type_to_python_type(value)


def _utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
