"""From raw facts to prompts, and to descriptions without a language model.

Three pure steps for an item or a user:

- *Canonical facts*: clean, in stable order, JSON-serialisable. Their hash is part of the generation key.
- *Prompt messages*: a versioned template of `prompts/`, with the facts fenced as data.
- The *facts description*, which needs no language model.

Hostile facts (instructions to a model, markup, links, advertisements: `validation/injection.py`) are left out of the
canonical facts, so no model reads them and no description repeats them.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from grasp.versions import PROMPT_VERSIONS
from spark_jobs.validation.clean_text import clean_text
from spark_jobs.validation.injection import holds_chat_token, hostile_reason, read_as_instruction_together

TEMPLATES = Path(__file__).with_name("prompts")

NUM_RECENT = 20  # newest items of a user in the canonical facts and the facts description
NUM_RECENT_IN_PROMPT = 5  # small models fail with longer lists
NUM_FAVOURITES = 5
NUM_FAVOURITES_IN_PROMPT = 3
MAX_ATTRIBUTES = 12
MAX_VALUE_CHARS = 200
MAX_READ_CHARS = 10 * MAX_VALUE_CHARS  # of an outside text; also limits the cache entries of hostile texts
NUM_REMEMBERED = 65536  # cached texts: attributes and titles repeat often
MAX_FACTS_BYTES = 3200  # of a prompt; with template, repair and answer it stays below 4,096 tokens

# Angle brackets could form fences and chat tokens such as <|im_end|>; [INST] is another chat token.
_DELIMITERS = re.compile(r"[<>＜＞]|\[/?INST\]|={3,}", re.IGNORECASE)
_TRAILING_ARTICLE = re.compile(r"^(.+), (The|A|An)$")
_NO_VALUE = {"", "unknown", "none", "other", "n/a", "null", "nan"}
_GENDERS = {"m": "male", "f": "female"}
_INSTRUCTION_REASONS = {"instruction", "chat_token"}  # reasons of `validation/injection.py`

Facts = dict[str, Any]


@dataclass(frozen=True)
class Template:
    """The messages of one prompt version: an instruction, worked examples, and a last message for the facts."""

    messages: tuple[tuple[str, str], ...]

    @property
    def instruction(self) -> str:
        return self.messages[0][1]

    @property
    def examples(self) -> str:
        return "\n".join(content for _, content in self.messages[1:-1])

    def fill(self, lines: Sequence[str]) -> list[dict[str, str]]:
        """Chat messages with the facts inserted between fences, one fact per line."""
        facts = "\n".join(["<facts>", *lines, "</facts>"])
        filled = [{"role": role, "content": content} for role, content in self.messages]
        filled[-1]["content"] = filled[-1]["content"].replace("{facts}", facts)
        return filled


@cache
def load_template(entity: str) -> Template:
    """The template of the entity's prompt version. In the file, each message starts with a line `=== role`."""
    text = (TEMPLATES / f"{PROMPT_VERSIONS[entity]}.txt").read_text()
    blocks = [block.split("\n", 1) for block in text.removeprefix("=== ").split("\n=== ")]
    return Template(tuple((role.strip(), content.strip()) for role, content in blocks))


def safe_text(text: str | None) -> str:
    """Outside text as one clean line without fences or chat tokens; empty if hostile or without letters and digits."""
    line, hostility = _read(text)
    return "" if hostility or not any(map(str.isalnum, line)) else line


def item_input(raw: Mapping[str, Any], hidden: Collection[str]) -> Facts:
    """Canonical facts of an item. `raw` holds `title` and `attributes` (name to value, lists joined with ', ')."""
    facts = {"title": _natural_title(raw.get("title")), "attributes": _attributes(raw.get("attributes"), hidden)}
    return _without_instructions(facts, raw, hidden)


def user_input(raw: Mapping[str, Any], hidden: Collection[str]) -> Facts:
    """Canonical facts of a user. `raw` holds `attributes`, `recent` titles (newest first) and `favourites`."""
    recent = [title for title in map(_natural_title, raw.get("recent") or []) if title]
    favourites = [value for value in map(safe_text, raw.get("favourites") or []) if value.lower() not in _NO_VALUE]
    facts = {
        "attributes": _attributes(raw.get("attributes"), hidden),
        "recent": list(dict.fromkeys(recent))[:NUM_RECENT],
        "favourites": favourites[:NUM_FAVOURITES],
    }
    return _without_instructions(facts, raw, hidden)


def item_lines(facts: Facts) -> list[str]:
    title = [f"title: {facts['title']}"] if facts["title"] else []
    return title + [f"{name}: {value}" for name, value in facts["attributes"].items()]


def user_lines(facts: Facts) -> list[str]:
    person, others = _person(facts["attributes"])
    lines = [f"user: {person}"] if person else []
    lines += [f"{name}: {value}" for name, value in others.items()]
    if facts["favourites"]:
        lines.append(f"favours: {', '.join(facts['favourites'][:NUM_FAVOURITES_IN_PROMPT])}")
    if facts["recent"]:
        lines.append(f"recent: {'; '.join(facts['recent'][:NUM_RECENT_IN_PROMPT])}")
    return lines


def item_facts_description(facts: Facts) -> str:
    """For example `Toy Story (1995). genres: Animation, Children's, Comedy.`"""
    attributes = dict(facts["attributes"])
    year = attributes.pop("year", "")
    if not facts["title"] and not facts["attributes"]:
        return "An item without known facts."
    name = facts["title"] or "An item without a title"
    sentences = [f"{name} ({year})" if year else name]
    sentences += [f"{attribute}: {value}" for attribute, value in attributes.items()]
    return _sentences(sentences)


def user_facts_description(facts: Facts) -> str:
    """For example `A 24 year old male technician who favours Comedy, Drama. Recently chose Heat, Toy Story.`"""
    person, others = _person(facts["attributes"])
    if not person and not others and not facts["recent"] and not facts["favourites"]:
        return "A user without known facts."
    who = f"{_article(person)} {person}" if person else "A user"
    sentences = [f"{who} who favours {', '.join(facts['favourites'])}" if facts["favourites"] else who]
    sentences += [f"{name}: {value}" for name, value in others.items()]
    if facts["recent"]:
        sentences.append(f"Recently chose {', '.join(facts['recent'])}")
    return _sentences(sentences)


@dataclass(frozen=True)
class Subject:
    """The three pure steps for one kind of entity."""

    entity: str  # `item` or `user`
    to_input: Callable[[Mapping[str, Any], Collection[str]], Facts]
    to_lines: Callable[[Facts], list[str]]
    to_facts_description: Callable[[Facts], str]
    name_of: Callable[[Facts], str]  # a description must mention part of this text


ITEM = Subject("item", item_input, item_lines, item_facts_description, lambda facts: str(facts["title"]))
USER = Subject(
    "user",
    user_input,
    user_lines,
    user_facts_description,
    lambda facts: " ".join(facts["favourites"] + facts["recent"]),
)


def prompt_messages(subject: Subject, facts: Facts) -> list[dict[str, str]]:
    return load_template(subject.entity).fill(_leading(subject.to_lines(facts)))


def _leading(lines: Sequence[str]) -> list[str]:
    """The first lines that fit into `MAX_FACTS_BYTES`."""
    ends = accumulate(len(line.encode(errors="surrogatepass")) + 1 for line in lines)
    return [line for line, end in zip(lines, ends, strict=True) if end <= MAX_FACTS_BYTES]


class _ReadText(NamedTuple):
    """An outside text as one clean line, and why it is hostile, or None."""

    line: str
    hostility: str | None


def _read(text: str | None) -> _ReadText:
    return _clean_and_check((text or "")[:MAX_READ_CHARS])


@lru_cache(maxsize=NUM_REMEMBERED)
def _clean_and_check(text: str) -> _ReadText:
    line = " ".join(_DELIMITERS.sub(" ", clean_text(text, MAX_VALUE_CHARS)).split())
    return _ReadText(line, "chat_token" if holds_chat_token(text) else hostile_reason(line))


def _without_instructions(facts: Facts, raw: Mapping[str, Any], hidden: Collection[str]) -> Facts:
    """Remove title and attributes if they contain instructions, alone or together; set `withheld` if any is hostile.

    With `withheld`, no generated text about the entity is trusted. Exceptions that do not set it: a link in an
    attribute, because many catalogues have link attributes, and hostile titles in a user's history, because one
    hostile item must not prevent the descriptions of all its users.
    """
    shown = sorted((raw.get("attributes") or {}).items())  # in prompt order
    attributes = {name: value for name, value in shown if name not in hidden}
    title, values = _read(raw.get("title")), [_read(value) for value in attributes.values()]
    reasons = {text.hostility for text in (*map(_read, attributes), *values)} - {"link"} | {title.hostility}
    if reasons & _INSTRUCTION_REASONS or read_as_instruction_together(
        [text.line for text in (title, *values) if text.line]
    ):
        facts |= {"title": "", "attributes": {}} if "title" in facts else {"attributes": {}}
        reasons.add("instruction")
    return facts | ({"withheld": True} if any(reasons) else {})


def _natural_title(title: str | None) -> str:
    """`Usual Suspects, The` becomes `The Usual Suspects`."""
    return _TRAILING_ARTICLE.sub(r"\2 \1", safe_text(title))


def _attributes(attributes: Mapping[str, str] | None, hidden: Collection[str]) -> dict[str, str]:
    """Known values by name, sorted by name, so that equal facts are identical."""
    cleaned = {}
    for name, value in sorted((attributes or {}).items()):
        parts = [part for part in safe_text(value).split(", ") if part.lower() not in _NO_VALUE]
        if name not in hidden and safe_text(name) and parts:
            cleaned[safe_text(name)] = ", ".join(parts)
    return dict(list(cleaned.items())[:MAX_ATTRIBUTES])


def _person(attributes: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """`24 year old male technician` from age, gender and occupation, and the attributes it leaves out."""
    others = dict(attributes)
    age, gender, occupation = (others.pop(name, "") for name in ("age", "gender", "occupation"))
    parts = [f"{age} year old" if age else "", _GENDERS.get(gender.lower(), gender), occupation]
    if any(parts) and not occupation:
        parts.append("person")
    return " ".join(part for part in parts if part), others


def _article(noun: str) -> str:
    return "An" if re.match(r"(?i)[aeio]|8\d*\b|11\b|18\b", noun) else "A"


def _sentences(parts: Sequence[str]) -> str:
    return " ".join(part if part.endswith((".", "!", "?")) else f"{part}." for part in parts)
