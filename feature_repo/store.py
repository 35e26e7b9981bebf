"""Open the feature store of one feature version: `GRASP_FEATURE_STORE_YAML`, with a project of its own."""

import os
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import yaml

from grasp.settings import Settings
from grasp.versions import feast_project

if TYPE_CHECKING:
    from feast import FeatureStore


def read_config(settings: Settings) -> dict[str, Any]:
    """The store's configuration with every `${VARIABLE}` replaced by its setting.

    Feast leaves an unset variable as it is and then creates a folder of that name; here it is a `ValueError` that
    names variable and file. Raises `FileNotFoundError` when the file is missing.
    """
    file = settings.feature_store_yaml
    if not file.is_file():
        raise FileNotFoundError(f"GRASP_FEATURE_STORE_YAML: {file} does not exist")
    try:
        text = Template(file.read_text()).substitute({**os.environ, **settings.variables()})
    except KeyError as error:
        raise ValueError(f"{file} uses the variable {error}, which is not set") from None
    config = yaml.safe_load(text)
    if not isinstance(config, dict):
        raise ValueError(f"{file} is no feature store configuration")
    return config


def open_store(settings: Settings, feature_version: str) -> "FeatureStore":
    """The Feast store of one feature version; raises `ValueError` when the configuration is wrong."""
    from feast import FeatureStore, RepoConfig
    from pydantic import ValidationError

    config = read_config(settings) | {"project": feast_project(feature_version)}
    try:
        repo_config = RepoConfig(**config)
    except ValidationError as error:
        raise ValueError(f"{settings.feature_store_yaml}: {error}") from error
    repo_config.repo_path = settings.feature_store_yaml.parent
    # The SQLite store makes its folder, but not the folders above it.
    Path(settings.home / "feast").mkdir(parents=True, exist_ok=True)
    return FeatureStore(config=repo_config)
