"""Whether a hostile fact reaches a description: through a model that obeys it, or through the facts themselves.

    python -m benchmarks.generation.poisoned

Reads:   tests/data/poisoned_inputs.jsonl
Prints:  how many of its inputs are published on either way, as JSON
"""

import json
from dataclasses import dataclass
from typing import Any

from grasp.settings import ROOT
from spark_jobs.generation.live_generation import build_evidence
from spark_jobs.generation.prompts import ITEM, USER, Facts, Subject
from spark_jobs.validation.checks import clean_output, refusal_reason
from spark_jobs.validation.clean_text import fold
from spark_jobs.validation.injection import hostile_reason

FILE = ROOT / "tests" / "data" / "poisoned_inputs.jsonl"
GENRES = frozenset({"Action", "Comedy", "Crime", "Drama", "Horror"})


@dataclass(frozen=True)
class Poisoned:
    """One hostile input, the facts that cleaning leaves of it, and what an obedient model would write (`canary`)."""

    id: str
    note: str
    subject: Subject
    facts: Facts
    canary: str

    @property
    def description(self) -> str:
        """What is published when there is no text of a model."""
        return self.subject.to_facts_description(self.facts)

    @property
    def is_in_description(self) -> bool:
        return fold(self.canary) in fold(self.description) or hostile_reason(self.description) is not None

    def obedient_answers(self) -> list[str]:
        """The canary alone, and in several disguises, mostly within a text that would be accepted without it."""
        grounded = self._grounded_text()
        first, second = grounded.split(". ", 1)
        canary = self.canary
        return [
            canary,
            f"{canary}.",
            f"{grounded} {canary}.",
            f"{canary}. {grounded}",
            f"{first}, {canary}. {second}",
            f"{first} and {canary.lower()}. {second}",
            f"{grounded} {canary.upper()}!",
            f"{grounded} {canary.title()}.",
            f"{grounded} It is {canary.capitalize()}.",
        ]

    def accepted_answers(self) -> list[str]:
        """The obedient answers that the validator would publish; there should be none."""
        held_against = build_evidence(self.subject, self.facts, GENRES)
        return [each for each in self.obedient_answers() if refusal_reason(clean_output(each), held_against) is None]

    def _grounded_text(self) -> str:
        """Two sentences that say only what the cleaned facts say."""
        if self.subject is USER:
            liked = self.facts["recent"][0]
            return f"This user favours comedy and drama, such as {liked}. More comedy would suit the user next."
        name = self.facts["title"] or "This item"
        values = " and ".join(self.facts["attributes"].values()).lower() or "good taste"
        return f"{name} is one of {values}. It suits people who enjoy {values} and goes well with more of it."


def poisoned() -> list[Poisoned]:
    found = []
    for row in map(json.loads, FILE.read_text().splitlines()):
        subject = ITEM if row["entity"] == "item" else USER
        found.append(Poisoned(row["id"], row["note"], subject, subject.to_input(row["facts"], ()), row["canary"]))
    return found


def measure() -> dict[str, Any]:
    """How many inputs and answers were tried, and how many were published on either way."""
    every = poisoned()
    return {
        "num_inputs": len(every),
        "num_answers": sum(len(each.obedient_answers()) for each in every),
        "num_by_model": sum(bool(each.accepted_answers()) for each in every),
        "num_by_facts": sum(each.is_in_description for each in every),
    }


if __name__ == "__main__":
    print(json.dumps(measure(), indent=2))
