"""Feast definitions: entities, sources, feature views and the feature service of one feature version.

Generated from `grasp/tables.py`, so that a column is named, typed and explained in one place. When a feature's meaning
changes, raise `FEATURE_DEFINITION` in `grasp/versions.py`: the new version gets its own project, views and tables
beside the old ones.
"""

import math
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml
from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.data_format import ParquetFormat
from feast.data_source import DataSource
from feast.types import Array, FeastType, Float32, Int64, String, UnixTimestamp

from grasp import partitions, tables
from grasp.feature_store import FEAST_FILE_VARIABLE, configuration, release_store_file
from grasp.manifest import manifest_in_force
from grasp.settings import Settings
from grasp.tables import Table
from grasp.versions import feature_service

OWNER = "recommendations@grasp.local"
EVENT_TIMESTAMP = "event_timestamp"
FEAST_TYPES: dict[str, FeastType] = {
    "string": String,
    "bigint": Int64,
    "array<float>": Array(Float32),
    "array<string>": Array(String),
    "array<bigint>": Array(Int64),
    "timestamp": UnixTimestamp,
}
# The user features that a request's lookup and the training join read. Item features are not among them: a ranker holds
# its release's items in memory, and a service over both entities would require an item in every request.
RANKER_FEATURES = (
    "sequence",
    "sequence_times",
    "earlier_item_ids",
    "num_interactions",
    "gap_days",
    "neighbour_item_ids",
    "neighbour_item_weights",
    "is_tail",
    "semantic_embedding",
    "neighbour_embedding",
    "neighbour_ids",
    "neighbour_similarities",
    "description",
    "source",
    "embedding_version",
    "feature_version",
    "computed_at",
)


def definitions(settings: Settings, feature_version: str, offline_store: str) -> list[Any]:
    """Everything that one feature version registers; `offline_store` is its type in `GRASP_FEATURE_STORE_YAML`.

    Raises `ValueError` for an offline store that is not supported.
    """
    user, item = _entity("user", "Who interacts."), _entity("item", "What can be recommended.")
    sources = [_source(settings, table, feature_version, offline_store) for table in tables.FEATURE_VIEWS]
    # Whole days, rounded up: Feast on DuckDB refuses days and hours in one.
    ttl = timedelta(days=math.ceil(settings.stale_after_hours / 24))
    user_view, item_view = (
        _view(table, entity, source, ttl, feature_version)
        for table, entity, source in zip(tables.FEATURE_VIEWS, (user, item), sources, strict=True)
    )
    service = FeatureService(
        name=feature_service(feature_version),
        features=[user_view[list(RANKER_FEATURES)]],
        description="What the ranker of this feature version trains with and is served from, one lookup by user.",
        owner=OWNER,
        tags={"feature_version": feature_version},
    )
    return [user, item, *sources, user_view, item_view, service]


def _entity(name: str, description: str) -> Entity:
    return Entity(
        name=name, join_keys=[f"{name}_id"], value_type=ValueType.STRING, description=description, owner=OWNER
    )


def _source(settings: Settings, table: Table, feature_version: str, offline_store: str) -> DataSource:
    """All days of one version of a table. Other files of the folder and the partition column `day` are ignored."""
    arguments = {
        "name": f"{table.name}_lake",
        "path": str(partitions.table_path(settings.lake, table, feature_version)),
        "timestamp_field": EVENT_TIMESTAMP,
        "description": table.meaning,
        "owner": OWNER,
    }
    if offline_store == "duckdb":
        return FileSource(file_format=ParquetFormat(), **arguments)
    if offline_store == "spark":
        from feast.infra.offline_stores.contrib.spark_offline_store.spark_source import SparkSource

        return SparkSource(file_format="parquet", **arguments)
    raise ValueError(f"offline store {offline_store!r}: GRASP_FEATURE_STORE_YAML must name duckdb or spark")


def _view(table: Table, entity: Entity, source: DataSource, ttl: timedelta, feature_version: str) -> FeatureView:
    """The view of a feature table: each column with its meaning. Rows older than `ttl` count as unknown."""
    return FeatureView(
        name=table.name,
        entities=[entity],
        ttl=ttl,
        schema=[
            Field(name=column.name, dtype=FEAST_TYPES[column.type], description=column.meaning)
            for column in table.columns
            if column.name != EVENT_TIMESTAMP
        ],
        source=source,
        online=table in tables.ONLINE_VIEWS,
        description=table.meaning,
        owner=OWNER,
        tags={
            "table": table.name,
            "feature_version": feature_version,
            "knows": "what happened up to the end of its day",
            "refreshed": "daily",
        },
    )


def _of_release_in_force() -> list[Any]:
    """What `feast apply` finds in this file. Raises `ValueError` when Feast and `GRASP_HOME` name different stores."""
    settings = Settings.load()
    ours = release_store_file(settings)
    theirs = Path(os.environ.get(FEAST_FILE_VARIABLE) or Path(__file__).with_name("feature_store.yaml"))
    if theirs.resolve() != ours.resolve():
        raise ValueError(f"Feast reads {theirs}, GRASP_HOME={settings.home} has {ours}: use `grasp feast`")
    store_type = yaml.safe_load(configuration(settings))["offline_store"]["type"]
    return definitions(settings, manifest_in_force(settings.releases).feature_version, store_type)


if __name__ == "features":
    # The `feast` command imports this file by its bare name and collects objects. Our own code calls definitions().
    user, item, user_source, item_source, user_features, item_features, ranker = _of_release_in_force()
