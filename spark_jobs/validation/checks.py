"""Decide whether a language model's text may be used: deterministic checks, each with a named refusal reason.

A text may only say what its facts support (`grounding.py`). Small models invent names, repeat themselves and copy the
examples; large models add their own knowledge. The checks take about a millisecond, so they run on every text.
`tests/spark_jobs/validation/test_labelled_outputs.py` measures them.
"""

import re
from collections import Counter

from spark_jobs.validation.clean_text import clean_text
from spark_jobs.validation.grounding import SENTENCE_END, Evidence, claims, ungrounded, unsupported
from spark_jobs.validation.injection import hostile_reason
from spark_jobs.validation.injection_patterns import reads_as_instruction
from spark_jobs.validation.vocabulary import stem, words_of

HOSTILE_FACTS = "hostile_facts"  # refusal reason of a text whose facts contain instructions to a language model
MIN_CHARS, MAX_CHARS, MIN_WORDS = 30, 600, 6
_SIGNS = re.compile(r"[^\w\s.,;:!?'\"’‘“”()\[\]&/+%#*<>@=-]|[!?-]{3}")  # for example emoji
_URL = re.compile(r"https?:|www\.|\S@\S|\b[\w-]+\.(?:com|org|net|io|ru|cn|info|biz)\b", re.IGNORECASE)
_FENCE = re.compile(r"<|>|</?facts|\[/?INST|={3}|```|\b(?:system|assistant|user|facts|title|favours|recent) ?:", re.I)
_REFUSAL = re.compile(
    r"\bas an? (?:ai|language model)|\b(?:cannot|can't|can not|unable to|not able to) (?:provide|help|assist|describe|"
    r"answer|fulfil|write|give)|\bsorry\b|\bno (?:information|facts) (?:is|are|was|were|about|available|given)",
    re.IGNORECASE,
)
_FIRST_PERSON = re.compile(r"\b(?:I|I'm|I've|I'd|[Mm]y|[Mm]e|[Ww]e|[Oo]ur)\b")

_ENGLISH = frozenset(
    {"a", "an", "and", "are", "as", "for", "is", "it", "of", "or", "that", "the", "this", "who", "with"}
)


def clean_output(output: str) -> str:
    """One line without markup and surrounding quotes. An unfinished last sentence is removed if it has another."""
    visible = output.replace("**", "").replace("<", "< ")  # keeps fence tags visible for the echo check
    text = clean_text(visible, 4 * MAX_CHARS).strip("\"' ")
    ends = [match.end() for match in SENTENCE_END.finditer(text)]
    return text[: ends[-1]] if ends else text


def refusal_reason(output: str, evidence: Evidence) -> str | None:
    """Why the cleaned `output` must not be used; None if it may be used."""
    for check in (_form, _safety, _echo, ungrounded):
        if reason := check(output, evidence):
            return reason
    return None


def _form(output: str, evidence: Evidence) -> str | None:
    words = words_of(output)
    if len(output) < MIN_CHARS or len(words) < MIN_WORDS:
        return "too_short"
    if len(output) > MAX_CHARS:
        return "too_long"
    if not SENTENCE_END.search(output[-3:]):
        return "unfinished"
    letters = [character for character in output if character.isalpha()]
    if len(letters) < 0.6 * len(output.replace(" ", "")) or _has_foreign_sign(output, evidence):
        return "not_text"
    foreign = [letter for letter in letters if letter > "\u024f" and letter not in evidence.facts]
    if len(foreign) > 0.05 * len(letters) or len(_ENGLISH & set(words)) < 2:
        return "not_english"
    return "loop" if _loops(words) else None


def _has_foreign_sign(output: str, evidence: Evidence) -> bool:
    return any(sign not in evidence.facts for sign in _SIGNS.findall(output))


def _safety(output: str, evidence: Evidence) -> str | None:
    if any(match[0].lower() not in evidence.values.lower() for match in _URL.finditer(output)):
        return "url"
    if evidence.withheld or any(map(hostile_reason, re.split("\n|; ", evidence.values))):
        return HOSTILE_FACTS  # whatever the text says: the model may have obeyed an injected instruction
    if _REFUSAL.search(output):
        return "refusal"
    if reads_as_instruction(output):
        return "instruction"
    spoken = {match.lower() for match in _FIRST_PERSON.findall(output)}
    return "first_person" if spoken - set(words_of(evidence.facts)) else None


def _echo(output: str, evidence: Evidence) -> str | None:
    if _FENCE.search(output):
        return "fence_echo"
    if _ngrams(words_of(output), 5) & _ngrams(words_of(evidence.instruction), 5):
        return "instruction_echo"
    borrowed = {stem(word) for word in claims(evidence.examples)}
    return "example_echo" if borrowed & {stem(word) for word in unsupported(output, evidence)} else None


def _ngrams(words: list[str], size: int) -> set[tuple[str, ...]]:
    return {tuple(words[index : index + size]) for index in range(len(words) - size + 1)}


def _loops(words: list[str]) -> bool:
    """One word three times in a row, a 3-gram three times, a 5-gram twice, or too few distinct words."""
    same_run = any(words[i] == words[i + 1] == words[i + 2] for i in range(len(words) - 2))
    threes = Counter(tuple(words[i : i + 3]) for i in range(len(words) - 2))
    repeated = len(_ngrams(words, 5)) < len(words) - 4 or max(threes.values(), default=0) > 2
    return same_run or repeated or len(set(words)) < 0.5 * len(words)
