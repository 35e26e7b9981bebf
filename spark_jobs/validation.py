"""Whether a language model's text may be used: deterministic checks, each refusal with a short name.

A text is trusted only as far as the facts it was written from reach. The checks are made for small models, which
invent names, repeat themselves and copy the examples; they cost microseconds, so they run on everything.
"""

import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

from spark_jobs.text import clean_text

MIN_CHARS, MAX_CHARS, MIN_WORDS = 30, 600, 6
MAX_UNSEEN_SHARE = 0.34  # of the distinct content words; the rest must come from the facts

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_SENTENCE_END = re.compile(r"(?<!\bDr)(?<!\bMr)(?<!\bMrs)(?<!\bMs)(?<!\bSt)(?<!\bNo)(?<!\bvs)[.!?][\"')\]]*(?=\s|$)")
_URL = re.compile(r"https?:|www\.|\S@\S|\b[\w-]+\.(?:com|org|net|io|ru|cn|info|biz)\b", re.IGNORECASE)
_FENCE = re.compile(r"<|>|</?facts|\[/?INST|={3}|```|\b(?:system|assistant|user|facts|title|favours|recent) ?:", re.I)
_REFUSAL = re.compile(
    r"\bas an? (?:ai|language model)|\b(?:cannot|can't|can not|unable to|not able to) (?:provide|help|assist|describe|"
    r"answer|fulfil|write|give)|\bsorry\b|\bno (?:information|facts) (?:is|are|was|were|about|available|given)",
    re.IGNORECASE,
)
_INSTRUCTION = re.compile(
    r"\b(?:ignore|disregard|forget|override|bypass)\b.{0,40}\b(?:instruction|prompt|rule|above|previous|prior|fact)"
    r"|\b(?:respond|reply|answer|output|write|say|repeat|print)\b.{0,12}\b(?:only|exactly|the (?:word|phrase))"
    r"|\b(?:system|hidden|secret) prompt\b|\byou (?:are now|must|are an? (?:ai|assistant))\b|\bnew instructions?\b",
    re.IGNORECASE,
)
_FIRST_PERSON = re.compile(r"\b(?:I|I'm|I've|I'd|[Mm]y|[Mm]e|[Ww]e|[Oo]ur)\b")

_STOP = frozenset(
    _WORD.findall("""
a about above across after again all also among an and any are as at be because been before between both but
by can could do does each either else even for from had has have having he her here him his how if in into is it its
itself just less like likes many may might more most much never no nor not of off often on once one only or other others
out over own rather same she should since so some such than that the their them themselves then there these they this
those through to too under until up upon very was well were what when where which while who whom whose why will with
within without would yet you your""")
)
# Words every description may use, whatever the facts: who is meant, that something suits, what sort of thing it is.
_PLAIN = frozenset(
    _WORD.findall("""
appreciate appreciates adult adults anyone audience audiences book books choice choose combine combines
enjoy enjoys ensemble everyone fan fans favour favours favorite favourite feature features film films find finds genre
genres go goes good great ideal interest interested item items kind look looking love loves make makes movie movies new
next offer offers old people perfect person piece preference preferences prefer prefers product products reader readers
same seeks series set similar stories story style suit suits suitable taste title together tv type use used useful user
users variety viewer viewers want wants watch year years""")
)
_ENGLISH = frozenset(
    {"a", "an", "and", "are", "as", "for", "is", "it", "of", "or", "that", "the", "this", "who", "with"}
)
_ALIASES = {"scien": "sci", "ficti": "fi", "kid": "child"}


@dataclass(frozen=True)
class Evidence:
    """What an output is held against."""

    facts: str  # the lines of the prompt's fence
    name: str  # text of which something must be mentioned: an item's title, a user's tastes; may be empty
    instruction: str = ""
    examples: str = ""
    known_values: Collection[str] = ()  # attribute values of the whole catalogue, such as its genres


def clean_output(output: str) -> str:
    """One line without markup, quotes around it or an unfinished last sentence (unless it has no other)."""
    visible = output.replace("**", "").replace("<", "< ")  # a fence must stay visible to the check of echoes
    text = clean_text(visible, 4 * MAX_CHARS).strip("\"' ")
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    return text[: ends[-1]] if ends else text


def refusal_reason(output: str, evidence: Evidence) -> str | None:
    """Why the cleaned `output` must not be used, None when it may be."""
    for check in (_form, _safety, _echo, _grounding):
        if reason := check(output, evidence):
            return reason
    return None


def _form(output: str, evidence: Evidence) -> str | None:
    words = _words(output)
    if len(output) < MIN_CHARS or len(words) < MIN_WORDS:
        return "too_short"
    if len(output) > MAX_CHARS:
        return "too_long"
    if not _SENTENCE_END.search(output[-3:]):
        return "unfinished"
    letters = [character for character in output if character.isalpha()]
    if len(letters) < 0.6 * len(output.replace(" ", "")):
        return "not_text"
    foreign = [letter for letter in letters if letter > "\u024f" and letter not in evidence.facts]
    if len(foreign) > 0.05 * len(letters) or len(_ENGLISH & set(words)) < 2:
        return "not_english"
    return "loop" if _loops(words) else None


def _safety(output: str, evidence: Evidence) -> str | None:
    if _URL.search(output):
        return "url"
    if _INSTRUCTION.search(evidence.facts):
        return "instruction_in_facts"  # whatever was written from them: it may have been obeyed
    if _INSTRUCTION.search(output):
        return "instruction"
    if _REFUSAL.search(output):
        return "refusal"
    spoken = {match.lower() for match in _FIRST_PERSON.findall(output)}
    return "first_person" if spoken - set(_words(evidence.facts)) else None


def _echo(output: str, evidence: Evidence) -> str | None:
    if _FENCE.search(output):
        return "fence_echo"
    if _ngrams(_words(output), 5) & _ngrams(_words(evidence.instruction), 5):
        return "instruction_echo"
    borrowed = _content(evidence.examples) - _content(evidence.facts)
    return "example_echo" if _content(output) & borrowed else None


def _grounding(output: str, evidence: Evidence) -> str | None:
    facts = _content(evidence.facts)
    if set(re.findall(r"\d+", output)) - set(re.findall(r"\d+", evidence.facts)):
        return "foreign_number"
    if _names(output) - {_singular(word) for word in _words(evidence.facts)}:
        return "foreign_name"
    name = _content(evidence.name)
    if len(name & _content(output)) < min(2, (len(name) + 1) // 2):
        return "name_missing"
    if _claimed_values(output, evidence.known_values) - {_stem(word) for word in _words(evidence.facts)}:
        return "foreign_attribute"
    written = _content(output)
    if not written & facts or len(written - facts) > MAX_UNSEEN_SHARE * len(written):
        return "ungrounded"
    return None


def _words(text: str) -> list[str]:
    return [word.lower().replace("’", "'") for word in _WORD.findall(text)]


def _stem(word: str) -> str:
    """Enough to see that comedies are comedy and an animated film is animation."""
    start = _singular(word)[:5]
    return _ALIASES.get(start, start)


def _singular(word: str) -> str:
    word = word.lower().replace("’", "'").split("'")[0]
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


_UNSPECIFIC = _STOP | _PLAIN


def _content(text: str) -> set[str]:
    """Stems of the words that say something of this item or user alone."""
    return {_stem(word) for word in _words(text) if word not in _UNSPECIFIC and len(word) > 1 and not word.isdigit()}


def _names(output: str) -> set[str]:
    """Capitalised words that do not begin a sentence, whole: Shawsharned is not Shawshank."""
    found = set()
    for sentence in _SENTENCE_END.split(output):
        for word in _WORD.findall(sentence.strip())[1:]:
            if word[0].isupper() and word.lower() not in _UNSPECIFIC:
                found.add(_singular(word))
    return found


def _claimed_values(output: str, known_values: Collection[str]) -> set[str]:
    """Stems of catalogue values that the first sentence, which says what it is, claims."""
    first = {_stem(word) for word in _words(_SENTENCE_END.split(output)[0])}
    return {stem for value in known_values if len(stems := _content(value)) == 1 for stem in stems & first}


def _ngrams(words: list[str], size: int) -> set[tuple[str, ...]]:
    return {tuple(words[index : index + size]) for index in range(len(words) - size + 1)}


def _loops(words: list[str]) -> bool:
    """A word three times running, three words said three times, five said twice, or too few distinct words."""
    same_run = any(words[i] == words[i + 1] == words[i + 2] for i in range(len(words) - 2))
    threes = Counter(tuple(words[i : i + 3]) for i in range(len(words) - 2))
    repeated = len(_ngrams(words, 5)) < len(words) - 4 or max(threes.values(), default=0) > 2
    return same_run or repeated or len(set(words)) < 0.5 * len(words)
