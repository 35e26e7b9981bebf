"""The two kinds of description: what each is about, its tables, and what makes two generations the same."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from grasp import tables
from grasp.tables import Table
from grasp.versions import digest
from spark_jobs.generation.prompts import Input, Subject
from spark_jobs.models.language_model import decoding_parameters

if TYPE_CHECKING:
    from spark_jobs.storage.lake import Lake

ENTITIES = ("item", "user")
OUTPUT_SCHEMA = "text-1"  # what an answer is: raise it when answers are to be read in another way


def ledger_of(entity: str) -> Table:
    return tables.ITEM_GENERATION if entity == "item" else tables.USER_GENERATION


def table_of(entity: str) -> Table:
    """Where an entity's descriptions are."""
    return tables.ITEM_DESCRIPTION if entity == "item" else tables.USER_DESCRIPTION


@dataclass(frozen=True)
class Description:
    """One kind of description, by one prompt and one model."""

    subject: Subject
    prompt_version: str
    model_revision: str
    max_new_tokens: int
    hidden: frozenset[str]

    @classmethod
    def of(cls, subject: Subject, lake: "Lake") -> "Description":
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
        return table_of(self.subject.entity)

    @property
    def id(self) -> str:
        return f"{self.subject.entity}_id"

    @property
    def is_kept(self) -> bool:
        """Whether an answer, be it a text or a refusal, stays until a newer one is paid for.

        An item's facts change when something about it is different, so its old text must go; a user's change with
        every click.
        """
        return self.subject.entity == "user"

    def generation_key(self, facts: Input) -> str:
        """sha256 of everything that decides what the model writes."""
        decoding = decoding_parameters(self.max_new_tokens)
        return digest([self.prompt_version, self.model_revision, decoding, OUTPUT_SCHEMA, facts])
