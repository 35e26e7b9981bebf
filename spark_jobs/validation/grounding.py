"""Check that a text says only what its facts say: every word is in the facts, follows from them or is plain.

The checks compare words, not meanings. So a false statement passes if all its words are in the facts. A true statement
is refused if it needs a word that is neither in the facts nor in `vocabulary.py`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise

from spark_jobs.validation.vocabulary import (
    DECADES,
    FOLLOWS,
    FUNCTION_WORDS,
    KINDS,
    NUMBERS,
    PLAIN,
    WORD,
    root,
    singular,
    stem,
    words_of,
)

SENTENCE_END = re.compile(r"(?<!\bDr)(?<!\bMr)(?<!\bMrs)(?<!\bMs)(?<!\bSt)(?<!\bNo)(?<!\bvs)[.!?][\"')\]]*(?=\s|$)")

# "a film about", but not "people who care about"
_PLOT = re.compile(r"\b(?!(?:care|know|curious|serious|passionate|enthusiastic)s? )\w+ about\b", re.IGNORECASE)
# A text must not call an item a company; "from the brand" only names the maker.
_COMPANY = re.compile(
    r"\bis (?:an?|the)\b(?:(?! (?:from|by|of|for|with|in|made)\b)[^.,;])* (?:brand|company|business|maker)\b",
    re.IGNORECASE,
)
_COMPLEMENTS = re.compile(r"\b(?:well with|pairs? with|offered with|combined with|alongside)\b([^.]*)", re.IGNORECASE)
_OFFERED = re.compile(r"\b(?:more|further)\b([^.]*)", re.IGNORECASE)
_ARTICLE = re.compile(r"^(?:the|an?) ", re.IGNORECASE)
_SAYS_NOTHING = FUNCTION_WORDS | NUMBERS.keys() | DECADES.keys()


@dataclass(frozen=True)
class Evidence:
    """What an output is checked against."""

    facts: str  # the lines of the prompt's fence, each `name: value`
    name: str  # text of which something must be mentioned: an item's title, a user's tastes; may be empty
    instruction: str = ""
    examples: str = ""
    known_values: frozenset[str] = frozenset()  # attribute values of the whole catalogue, such as its genres
    chosen: tuple[str, ...] = ()  # titles of a user's history
    withheld: bool = False  # whether hostile facts were left out

    @cached_property
    def names(self) -> frozenset[str]:
        """Roots of the facts' names, such as `genre`."""
        return frozenset(root(word) for line in self.facts.splitlines() for word in words_of(line.partition(": ")[0]))

    @cached_property
    def values(self) -> str:
        return "\n".join(line.partition(": ")[2] for line in self.facts.splitlines())

    @cached_property
    def words(self) -> frozenset[str]:
        """All words of the values in the singular, and each pair of adjacent words joined: skincare is skin care."""
        words = words_of(self.values)
        joined = [first + second for first, second in pairwise(words)]
        return frozenset(singular(word) for word in words + joined)

    @cached_property
    def stems(self) -> frozenset[str]:
        return frozenset(stem(word) for word in self.words)

    @cached_property
    def follows(self) -> frozenset[str]:
        """Roots of the words that follow from the facts."""
        return frozenset[str]().union(*(FOLLOWS.get(each, frozenset()) for each in self.stems))

    def supports(self, word: str) -> bool:
        return stem(word) in self.stems or root(word) in self.follows


def ungrounded(output: str, evidence: Evidence) -> str | None:
    """The name of the first check that fails; None if all pass."""
    checks: tuple[tuple[str, Callable[[str, Evidence], bool]], ...] = (
        ("foreign_number", _has_foreign_number),
        ("foreign_name", _has_foreign_name),
        ("name_missing", _misses_name),
        ("wrong_kind", _has_wrong_kind),
        ("plot", _tells_plot),
        ("title_misread", _misreads_title),
        ("foreign_attribute", _claims_foreign_value),
        ("ungrounded", _has_unsupported_word),
    )
    return next((name for name, check in checks if check(output, evidence)), None)


def claims(text: str) -> set[str]:
    """Words that claim something about this item or user: neither function words nor plain words."""
    return {word for word in words_of(text) if _is_claim(word)}


@lru_cache(maxsize=4096)
def _is_claim(word: str) -> bool:
    return len(word) > 1 and not word.isdigit() and word not in _SAYS_NOTHING and root(word) not in PLAIN


def unsupported(output: str, evidence: Evidence) -> set[str]:
    """Claims that no fact supports."""
    return {word for word in claims(output) if not evidence.supports(word)} - _complements(output, evidence)


def _complements(output: str, evidence: Evidence) -> set[str]:
    """Other categories that only go with a product (`pairs with ...`). For a film, another genre would be a claim."""
    if not KINDS["goods"].cues & evidence.names:
        return set()
    catalogue = _stems_of(evidence.known_values)
    company = {word for clause in _COMPLEMENTS.findall(output) for word in words_of(clause)}
    elsewhere = set(words_of(_COMPLEMENTS.sub(" ", output)))
    return {word for word in company - elsewhere if stem(word) in catalogue}


@lru_cache(maxsize=8)
def _stems_of(values: frozenset[str]) -> frozenset[str]:
    return frozenset(stem(word) for value in values for word in words_of(value))


def _has_foreign_number(output: str, evidence: Evidence) -> bool:
    known = _numbers(evidence.facts)
    decades = {DECADES[word] for word in words_of(output) if word in DECADES}
    return bool(_numbers(output) - known or decades - {number[:3] for number in known})


def _numbers(text: str) -> set[str]:
    return set(re.findall(r"\d+", text)) | {NUMBERS[word] for word in words_of(text) if word in NUMBERS}


def _has_foreign_name(output: str, evidence: Evidence) -> bool:
    """Capitalised words inside a sentence are compared whole, not by stem: Shawsharned is not Shawshank."""
    names = {
        word.lower()
        for sentence in SENTENCE_END.split(output)
        for word in WORD.findall(sentence.strip())[1:]
        if word[0].isupper() and _is_claim(word.lower())
    }
    return any(singular(name) not in evidence.words and root(name) not in evidence.follows for name in names)


def _misses_name(output: str, evidence: Evidence) -> bool:
    """The text must contain two words of the name, or one word if the name has at most two."""
    name = {stem(word) for word in claims(evidence.name) or words_of(evidence.name)}
    return len(name & {stem(word) for word in words_of(output)}) < min(2, (len(name) + 1) // 2)


def _has_wrong_kind(output: str, evidence: Evidence) -> bool:
    """Words of another kind of item, such as the viewers of a cream, or an item that is called a company."""
    if _COMPANY.search(output):
        return True
    if not any(kind.cues & evidence.names for kind in KINDS.values()):
        return False
    known = {root(word) for word in evidence.words}
    foreign = [kind.words for kind in KINDS.values() if not kind.cues & evidence.names and not kind.words & known]
    return bool(frozenset[str]().union(*foreign) & {root(word) for word in words_of(output)})


def _tells_plot(output: str, evidence: Evidence) -> bool:
    return any(match[0].lower() not in evidence.values.lower() for match in _PLOT.finditer(output))


def _misreads_title(output: str, evidence: Evidence) -> bool:
    """A title of the history is read as a taste (`favours comedy and one fine day`) or is recommended again."""
    offered = " ".join(_OFFERED.findall(output))
    return any(_in_lower_case(title, output) or _named_in(title, offered) for title in evidence.chosen)


def _in_lower_case(title: str, output: str) -> bool:
    """Whether the title, without its article, appears in lower case. A title of one plain word does not count."""
    bare = _ARTICLE.sub("", title)
    if not bare[:1].isupper() or not (" " in bare or claims(bare)):
        return False
    return any(match[0][0].islower() for match in re.finditer(rf"\b{re.escape(bare)}\b", output, re.IGNORECASE))


def _named_in(title: str, text: str) -> bool:
    return bool(re.search(rf"\b{re.escape(title)}(?!\w)", text))


def _claims_foreign_value(output: str, evidence: Evidence) -> bool:
    values = frozenset(value for value in evidence.known_values if len(words_of(value)) == 1)
    return bool(_stems_of(values) & {stem(word) for word in unsupported(output, evidence)})


def _has_unsupported_word(output: str, evidence: Evidence) -> bool:
    speaks_of_facts = {stem(word) for word in words_of(output)} & evidence.stems
    return not speaks_of_facts or bool(unsupported(output, evidence))
