"""Versions: short names for what must never be mixed. A name changes whenever its meaning changes.

model revision      a model folder's content, or name and revision of a server's model
prompt version      the text of a prompt and its facts template
embedding version   encoder revision + pooling + normalisation + what the descriptions are
feature version     embedding version + how neighbours are searched and averaged + the feature definition
"""

import hashlib
import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from grasp.file_hashes import remembered_hashes
from grasp.settings import DEFAULT_PARAMETERS, Settings

# Raise by hand when a feature changes: its columns, its units or how it is computed.
FEATURE_DEFINITION = "4"
# Raise by hand when a prompt, a facts template or a rule of the validator changes.
PROMPT_VERSIONS = {"item": "item-3", "user": "user-3"}


def digest(value: object) -> str:
    """sha256 of a value's canonical JSON."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def model_revision(folder: Path, memory: Path | None = None) -> str:
    """Name a model folder's content, such as `all_minilm_l6_v2-1f2e3d4c`.

    The hash covers each file's name and whole content. With a `memory` (`grasp/file_hashes.py`), unchanged files are
    not read again. Raises `FileNotFoundError` for an empty folder.
    """
    files = sorted(path for path in folder.glob("**/*") if path.is_file()) if folder.is_dir() else []
    if not files:
        raise FileNotFoundError(f"{folder} holds no model: run `make setup` or set GRASP_LLM / GRASP_ENCODER")
    hashes = remembered_hashes(file_sha256, files, memory) if memory else [file_sha256(file) for file in files]
    names = [str(path.relative_to(folder)) for path in files]
    return f"{_plain(folder.name)}-{digest(list(zip(names, hashes, strict=True)))[:8]}"


def server_model_revision(model: str, revision: str) -> str:
    """Name a server's model, such as `qwen_qwen2_5_7b_instruct-0a1b2c3d`. The server's weights are not checked."""
    return f"{_plain(model)}-{digest([model, revision])[:8]}"


def _plain(text: str) -> str:
    """Letters, digits and underscores only: Milvus and Feast accept no other names."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


@dataclass(frozen=True)
class Versions:
    """The versions that follow from a set of settings, each computed at its first use."""

    settings: Settings

    @cached_property
    def llm(self) -> str:
        settings = self.settings
        if settings.llm_url:
            return server_model_revision(settings.llm_model, settings.llm_revision)
        return model_revision(settings.llm, self._memory)

    @cached_property
    def encoder(self) -> str:
        settings = self.settings
        if settings.encoder_url:
            return server_model_revision(settings.encoder_model, settings.encoder_revision)
        return model_revision(settings.encoder, self._memory)

    @property
    def _memory(self) -> Path:
        return self.settings.home / "model_hashes.json"

    def prompt(self, entity: str) -> str:
        """Prompt version of `item` or `user`, with every setting that changes what a prompt says or asks for."""
        parts = [PROMPT_VERSIONS[entity]]
        hidden = sorted(self.settings.hidden_attributes)
        answer: list[object] = [hidden, self.settings.llm_max_new_tokens]
        if self.settings.llm_url and self.settings.llm_structured:
            answer.append("json")
        if self.settings.llm_url and self.settings.llm_parameters != DEFAULT_PARAMETERS:
            answer.append(json.loads(self.settings.llm_parameters))
        parts.append(digest(answer)[:6])
        if entity == "user" and self.settings.user_history_holdout:
            parts.append(f"minus{self.settings.user_history_holdout}")
        return "-".join(parts)

    @cached_property
    def embedding(self) -> str:
        """For example `all_minilm_l6_v2_1f2e3d4c5b6a`; names the Milvus collections."""
        meaning = [
            self.encoder,
            "sentence-transformers pooling",
            "unit norm",
            self.prompt("item"),
            self.prompt("user"),
            self.llm,
        ]
        name = self.settings.encoder_model if self.settings.encoder_url else self.settings.encoder.name
        return f"{_plain(name)}_{digest(meaning)[:12]}"

    @cached_property
    def feature(self) -> str:
        """For example `v1_0a1b2c3d`; names the Feast project and the feature tables' partitions."""
        settings = self.settings
        votes = [settings.moment_days, settings.moment_active_days, settings.moment_sharpness]
        votes += [settings.moment_text_share, settings.moment_min_voters]
        meaning = [FEATURE_DEFINITION, self.embedding, settings.num_neighbours, "mean"]
        meaning += [votes if settings.moments else None]
        return f"v{FEATURE_DEFINITION}_{digest(meaning)[:8]}"

    def of(self, versioned_by: str | None) -> str | None:
        """The version that partitions a table (`Table.versioned_by`)."""
        known = {None: None, "encoder": self.encoder, "embedding": self.embedding, "feature": self.feature}
        return known[versioned_by]


def feast_project(feature_version: str) -> str:
    """Feast project of a feature version. Old features keep serving from theirs until the new ones are complete."""
    return f"grasp_{feature_version}"


def feature_service(feature_version: str) -> str:
    """The feature service that a model of this feature version is trained with and served from."""
    return f"ranker_{feature_version}"


def collection(entity: str, embedding_version: str) -> str:
    """Name of the Milvus collection of one version: of the texts of `item` or `user`, or of `moments`."""
    return f"moments_{embedding_version}" if entity == "moments" else f"{entity}_texts_{embedding_version}"


def description_hash(text: str) -> str:
    """sha256 of a description, as in the tables' column of this name."""
    return hashlib.sha256(text.encode()).hexdigest()
