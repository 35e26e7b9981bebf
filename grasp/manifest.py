"""The release manifest: which data, versions and model belong together.

`serving/releases/` publishes it last, by one rename. Every reader starts from `manifest_in_force(settings.releases)`.

    <releases>/current.json            the manifest in force
    <releases>/<release id>/manifest.json
    <releases>/<release id>/items/     the item side: parquet of `item_features`, complete, never changed
    <releases>/<release id>/withdrawn/ items that are never recommended; missing in old releases
    <releases>/<release id>/catalogue/ the attributes: parquet of `items`; missing in old releases
    <releases>/<release id>/moments/   what users took lately, and before it: parquet of `moments`, and the state of
                                       the model after it; only for a model that reads state votes
    <releases>/<release id>/model/     config.json, vocabulary.json, model.safetensors; missing for `popular`
"""

import json
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from grasp.days import parse_day
from grasp.versions import digest

CURRENT_FILE = "current.json"
MANIFEST_FILE = "manifest.json"
PUBLISHED_FILE = "published.json"  # next to a promotion decision: the release that followed from it


@dataclass(frozen=True)
class Manifest:
    """The parts of one release. `model` is None for a release that recommends popular items."""

    day: str  # the day of the features
    feature_version: str
    embedding_version: str
    collections: dict[str, str]  # entity -> Milvus collection
    feature_service: str
    model: str | None  # name of the trained model, for example "sasrec-grasp-1998-04-22-1a2b3c4d"
    checksums: dict[str, str] = field(default_factory=dict)  # file below the release folder -> sha256
    published_at: str = ""  # by `Settings.clock`; not part of the identity
    # How moments voted for the users of the release, and vote for its requests (`grasp.moments.VoteRule`). None if its
    # model reads no votes; then it is not part of the identity, so that earlier releases keep theirs.
    vote_rule: dict[str, Any] | None = None

    @cached_property  # every answer of the service reads it
    def release_id(self) -> str:
        """Day and content hash. The same content is the same release, whenever it is published."""
        content = asdict(self)
        content.pop("published_at")
        if self.vote_rule is None:
            content.pop("vote_rule")
        return f"{self.day}-{digest(content)[:10]}"


class NoReleaseError(FileNotFoundError):
    """Nothing has been published yet, or a named release does not exist."""


def read_manifest(file: Path) -> Manifest:
    """Raises `NoReleaseError` if the file is missing, and `ValueError` with its name if it is not a manifest."""
    try:
        manifest = Manifest(**json.loads(file.read_text()))
        parse_day(manifest.day)
    except FileNotFoundError:
        raise NoReleaseError(
            f"no release at {file}: `grasp refresh --day DAY` publishes the first, `make demo` one to try"
        ) from None
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file} is not a release manifest: {error}") from error
    return manifest


def manifest_in_force(releases: Path) -> Manifest:
    """The manifest in force; raises `NoReleaseError` before the first publication."""
    return read_manifest(releases / CURRENT_FILE)


def release_folder(releases: Path, manifest: Manifest) -> Path:
    return releases / manifest.release_id
