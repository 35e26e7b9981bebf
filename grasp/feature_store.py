"""Feast's configuration, read in one way by everyone who opens the feature store.

Feast itself is imported by the callers; this module only fills in its configuration. For plain Feast it also writes
the configuration of the release in force, which needs no variable and no model:

    FeatureStore(repo_path="feature_repo")    feature_repo/feature_store.yaml is a link to it
"""

import os
import re
from pathlib import Path
from string import Template

from pydantic import ValidationError

from grasp.files import replacing
from grasp.manifest import manifest_in_force
from grasp.settings import PREFIX, SECRETS, Settings
from grasp.versions import feast_project

FEAST_FILE_VARIABLE = "FEAST_FS_YAML_FILE_PATH"  # Feast's own: where it looks instead of `feature_store.yaml`
_PROJECT_LINE = re.compile(r"^project:.*$", re.MULTILINE)
_HEADER = """\
# The feature store of the release in force, for plain Feast. `grasp release` and `grasp feast` write this file from
# {file}: change that one.
"""


def configuration(settings: Settings) -> str:
    """The file `GRASP_FEATURE_STORE_YAML` with every `${VARIABLE}` replaced.

    Feast leaves an unset variable as it is and then creates a folder of that name; here it is a `ValueError` that
    names variable and file. Raises `FileNotFoundError` when the file is missing.
    """
    file = settings.feature_store_yaml
    if not file.is_file():
        raise FileNotFoundError(f"GRASP_FEATURE_STORE_YAML: {file} does not exist")
    try:
        return Template(file.read_text()).substitute({**os.environ, **settings.variables()})
    except KeyError as error:
        raise ValueError(f"{file} uses the variable {error}, which is not set") from None


def without_quotes(error: Exception) -> str:
    """Where a configuration is not YAML, without the lines that the error quotes: they may hold a password."""
    mark = getattr(error, "problem_mark", None)
    return f"not valid YAML{f' near line {mark.line + 1}' if mark else ''}"


def release_store_file(settings: Settings) -> Path:
    """Configuration of the release in force, as plain Feast reads it."""
    return settings.home / "feast" / "feature_store.yaml"


def write_release_store(settings: Settings) -> Path:
    """Write `release_store_file`: the feature store with the Feast project of the release in force.

    Places are written out. A secret stays a variable, which Feast takes from the environment. Raises `NoReleaseError`
    before the first publication, `FileNotFoundError` and `ValueError` naming a configuration that is wrong.
    """
    manifest = manifest_in_force(settings.releases)
    configuration(settings)  # it exists and lacks no variable
    secret = {PREFIX + name.upper() for name in SECRETS if getattr(settings, name) != _default(name)}
    places = {name: value for name, value in settings.variables().items() if name not in secret}
    text = Template(settings.feature_store_yaml.read_text()).safe_substitute(places)
    text, num_projects = _PROJECT_LINE.subn(f"project: {feast_project(manifest.feature_version)}", text)
    if num_projects != 1:
        raise ValueError(f"{settings.feature_store_yaml} has {num_projects} lines `project: NAME`, it needs one")
    file = release_store_file(settings)
    with replacing(file) as handle:
        handle.write((_HEADER.format(file=settings.feature_store_yaml) + text).encode())
    return file


def _default(name: str) -> object:
    return Settings.model_fields[name].default


def without_values(error: ValidationError) -> str:
    """What a wrong configuration gets wrong, without its values: a connection string may hold a password."""
    return "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors(include_input=False))
