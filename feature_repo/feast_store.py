"""Open the Feast store of one feature version: `GRASP_FEATURE_STORE_YAML`, with the version's own project."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from grasp.feature_store import configuration, without_quotes, without_values
from grasp.settings import Settings
from grasp.versions import feast_project

if TYPE_CHECKING:
    from feast import FeatureStore


def read_config(settings: Settings) -> dict[str, Any]:
    """The store's configuration; raises `ValueError` or `FileNotFoundError` naming the file."""
    try:
        config = yaml.safe_load(configuration(settings))
    except yaml.YAMLError as error:
        raise ValueError(f"{settings.feature_store_yaml}: {without_quotes(error)}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{settings.feature_store_yaml} is no feature store configuration")
    return config


def open_store(settings: Settings, feature_version: str) -> "FeatureStore":
    """The Feast store of one feature version; raises `ValueError` when the configuration is wrong."""
    from feast import FeatureStore, RepoConfig
    from pydantic import ValidationError

    config = read_config(settings) | {"project": feast_project(feature_version)}
    try:
        repo_config = RepoConfig(**config)
    except ValidationError as error:
        raise ValueError(f"{settings.feature_store_yaml}: {without_values(error)}") from None
    repo_config.repo_path = settings.feature_store_yaml.parent
    # The SQLite store creates its folder, but not the parents.
    Path(settings.home / "feast").mkdir(parents=True, exist_ok=True)
    return FeatureStore(config=repo_config)
