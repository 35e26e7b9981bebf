"""The one chance of a refused text: the model sees it again, with what was wrong about it."""

from spark_jobs.generation.prompts import safe
from spark_jobs.models.language_model import Messages

# What the validator found, as the model is told; a reason that is not here cannot be mended by asking again.
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
    """The prompt, what the model made of it, and what to mend; the facts are in the prompt.

    What the model wrote may hold chat tokens that it was talked into: it is data here like any other text.
    """
    told = f"That text cannot be used. {REMEDIES[reason]} Write it again, using only the facts and plain words."
    return [*asked, {"role": "assistant", "content": safe(output)}, {"role": "user", "content": told}]
