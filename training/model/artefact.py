"""A trained ranker on disk: weights, config, vocabulary, metadata, and checksums of these files."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from grasp.files import write_json
from grasp.versions import file_sha256
from training.model.config import RankerConfig
from training.model.ranker import Ranker

CONFIG_FILE, VOCABULARY_FILE, WEIGHTS_FILE = "config.json", "vocabulary.json", "model.safetensors"
CHECKSUMS_FILE = "checksums.json"
FORMAT = 5  # increased when names or shapes of weights change; older rankers must then be trained again


class ArtefactFormatError(ValueError):
    """A valid artefact in a format that this version of the code cannot read."""


@dataclass(frozen=True)
class RankerMetadata:
    """How a ranker was trained, and the feature service it must be served with."""

    name: str
    feature_service: str
    feature_version: str
    recipe: str
    day: str
    cutoff: str  # last day whose interactions it was trained with
    seed: int
    metrics: dict[str, float]  # on the validation targets, before fresh features were chosen
    fresh: dict[str, Any] = field(default_factory=dict)  # the fresh features that are read, and what each choice gained


@dataclass(frozen=True)
class LoadedRanker:
    """A verified artefact. `vocabulary[i]` is the item with index i + 1. The caller must still attach the items."""

    ranker: Ranker
    vocabulary: list[str]
    metadata: RankerMetadata

    @property
    def config(self) -> RankerConfig:
        return self.ranker.config


def save_ranker(folder: Path, ranker: Ranker, vocabulary: list[str], metadata: RankerMetadata) -> None:
    """Write weights, config, vocabulary and, last, the checksums that `load_ranker` verifies."""
    _check_vocabulary(vocabulary, ranker.config, folder / VOCABULARY_FILE)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: weights.contiguous() for name, weights in ranker.state_dict().items()}, folder / WEIGHTS_FILE)
    write_json(folder / CONFIG_FILE, {"format": FORMAT, "ranker": asdict(ranker.config), "metadata": asdict(metadata)})
    write_json(folder / VOCABULARY_FILE, vocabulary)
    files = (CONFIG_FILE, VOCABULARY_FILE, WEIGHTS_FILE)
    write_json(folder / CHECKSUMS_FILE, {name: file_sha256(folder / name) for name in files})


def load_ranker(folder: Path) -> LoadedRanker:
    """Read an artefact in evaluation mode.

    Raises `ValueError` that names the missing, changed or invalid file, and `ArtefactFormatError` for another format.
    """
    checksums = _read_json(folder / CHECKSUMS_FILE)
    for name in (CONFIG_FILE, VOCABULARY_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name} is missing: the model artefact is incomplete")
        if not isinstance(checksums, dict) or checksums.get(name) != file_sha256(folder / name):
            raise ValueError(f"{folder / name} does not match its checksum: the model artefact is corrupt")
    content = _read_json(folder / CONFIG_FILE)
    if isinstance(content, dict) and content.get("format") != FORMAT:
        raise ArtefactFormatError(
            f"{folder / CONFIG_FILE} has format {content.get('format', 1)}, this version reads {FORMAT}: "
            "run `grasp retrain`"
        )
    try:
        config, metadata = RankerConfig(**content["ranker"]), RankerMetadata(**content["metadata"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / CONFIG_FILE} does not describe a ranker: {error}") from error
    vocabulary = _read_json(folder / VOCABULARY_FILE)
    _check_vocabulary(vocabulary, config, folder / VOCABULARY_FILE)
    ranker = Ranker(config)
    try:
        ranker.load_state_dict(load_file(folder / WEIGHTS_FILE))
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"{folder / WEIGHTS_FILE} does not fit {CONFIG_FILE}: {error}") from error
    return LoadedRanker(ranker.eval().requires_grad_(False), vocabulary, metadata)


def _check_vocabulary(vocabulary: object, config: RankerConfig, file: Path) -> None:
    if not isinstance(vocabulary, list) or not all(isinstance(item_id, str) for item_id in vocabulary):
        raise ValueError(f"{file} is not a list of item ids")
    if len(set(vocabulary)) != len(vocabulary) or len(vocabulary) != config.num_items:
        raise ValueError(f"{file} holds {len(set(vocabulary))} distinct items, the config says {config.num_items}")


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
