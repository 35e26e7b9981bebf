"""Feast's configuration, read in one way by everyone who opens the feature store.

Feast itself is imported by the callers; this module only fills in its configuration.
"""

import os
from string import Template

from pydantic import ValidationError

from grasp.settings import Settings


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


def without_values(error: ValidationError) -> str:
    """What a wrong configuration gets wrong, without its values: a connection string may hold a password."""
    return "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors(include_input=False))
