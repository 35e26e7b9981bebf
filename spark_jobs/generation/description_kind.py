"""The two kinds of description, of items and of users: their tables, and the generation key."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from grasp import tables
from grasp.tables import Table
from grasp.versions import digest
from spark_jobs.generation.prompts import Facts, Subject
from spark_jobs.models.language_model import decoding_parameters

if TYPE_CHECKING:
    from spark_jobs.storage.lake import Lake

ENTITIES = ("item", "user")
OUTPUT_SCHEMA = "text-1"  # part of the generation key: raise it when answers are parsed differently


def ledger_table(entity: str) -> Table:
    return tables.ITEM_GENERATION if entity == "item" else tables.USER_GENERATION


def description_table(entity: str) -> Table:
    return tables.ITEM_DESCRIPTION if entity == "item" else tables.USER_DESCRIPTION


@dataclass(frozen=True)
class DescriptionKind:
    """Descriptions of items or users by one prompt and one model."""

    subject: Subject
    prompt_version: str
    model_revision: str
    max_new_tokens: int
    hidden: frozenset[str]

    @classmethod
    def of(cls, subject: Subject, lake: "Lake") -> "DescriptionKind":
        return cls(
            subject,
            lake.versions.prompt(subject.entity),
            lake.versions.llm,
            lake.settings.llm_max_new_tokens,
            frozenset(lake.settings.hidden_attributes),
        )

    @property
    def versions(self) -> tuple[str, str]:
        return self.prompt_version, self.model_revision

    @property
    def table(self) -> Table:
        return description_table(self.subject.entity)

    @property
    def id(self) -> str:
        return f"{self.subject.entity}_id"

    @property
    def is_kept(self) -> bool:
        """Whether the last answer (a text or a refusal) is kept until there is a newer one.

        True for users, whose facts change with every interaction. When an item's facts change, its old text is wrong.
        """
        return self.subject.entity == "user"

    def generation_key(self, facts: Facts) -> str:
        """sha256 of everything that determines the model's answer."""
        decoding = decoding_parameters(self.max_new_tokens)
        return digest([self.prompt_version, self.model_revision, decoding, OUTPUT_SCHEMA, facts])
