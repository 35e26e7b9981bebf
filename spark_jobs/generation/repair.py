"""Repair of a refused text: the model is asked once more and told what was wrong."""

from spark_jobs.generation.prompts import safe_text
from spark_jobs.models.language_model import Messages

# What the model is told, by refusal reason. Other reasons cannot be repaired.
REMEDIES = {
    "too_short": "It is too short: write two sentences.",
    "too_long": "It is too long: write two short sentences.",
    "unfinished": "It does not end: write two short, whole sentences.",
    "not_text": "It is not plain text.",
    "not_english": "It is not in English.",
    "loop": "It repeats itself.",
    "url": "It has a link.",
    "first_person": "It speaks in the first person.",
    "fence_echo": "It repeats the list of facts instead of describing.",
    "instruction_echo": "It repeats the instruction.",
    "example_echo": "It is about an earlier example, not about these facts.",
    "foreign_number": "It has a number that is not in the facts.",
    "foreign_name": "It has a name that is not in the facts.",
    "name_missing": "It does not say what it is about, by name.",
    "foreign_attribute": "It claims something that is not in the facts.",
    "ungrounded": "It says more than the facts do.",
}


def is_repairable(reason: str) -> bool:
    return reason in REMEDIES


def repair_messages(asked: Messages, output: str, reason: str) -> Messages:
    """The prompt, the model's text, and what to correct.

    The model's text is cleaned like any other data, because it may contain chat tokens.
    """
    told = f"That text cannot be used. {REMEDIES[reason]} Write it again, using only the facts and plain words."
    return [*asked, {"role": "assistant", "content": safe_text(output)}, {"role": "user", "content": told}]
