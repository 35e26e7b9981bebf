"""Clean text from outside, so that it can be shown, compared and used as data in a prompt."""

import html
import re
import unicodedata

# Unicode categories of invisible characters: controls, zero-width and direction marks, surrogates, private use.
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Co"})
_SCRIPT = re.compile(r"<(script|style)\b[^<>]*>.*?</\1\s*>", re.IGNORECASE | re.DOTALL)
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_TAG = re.compile(r"</?[a-z!][^<>]*>", re.IGNORECASE)
_ENTITY = re.compile(r"&(?:#\d{1,7}|#x[0-9a-f]{1,6}|[a-z][a-z0-9]{1,31});", re.IGNORECASE)


def clean_text(text: str, max_chars: int = 500) -> str:
    """One line of visible text in NFC, without HTML tags and invisible characters, at most `max_chars` long.

    HTML entities are decoded before tags are removed, so escaped tags are removed too. Cleaning a clean text changes
    nothing.
    """
    text = text[: 10 * max_chars]  # limits the work that a hostile text can cause
    while (cleaned := _clean_once(text)) != text:
        text = cleaned
    return text[:max_chars].rstrip()


def visible_text(text: str) -> str:
    """The text with HTML entities decoded and invisible characters removed; tags stay."""
    if _is_plain(text):
        return text
    text = _ENTITY.sub(lambda match: html.unescape(match[0]), text)
    return "".join(
        " " if character.isspace() else "" if unicodedata.category(character) in _INVISIBLE else character
        for character in text
    )


def _is_plain(text: str) -> bool:
    """Printable ASCII without markup or entities: nothing to clean. True of most texts."""
    return text.isascii() and text.isprintable() and "<" not in text and "&" not in text


def _clean_once(text: str) -> str:
    if _is_plain(text):
        return " ".join(text.split())
    visible = visible_text(text)
    for markup in (_SCRIPT, _COMMENT, _TAG):
        visible = markup.sub(" ", visible)
    return unicodedata.normalize("NFC", " ".join(visible.split()))


def fold(text: str) -> str:
    """Lower case without accents and compatibility forms; look-alike letters of other scripts stay."""
    if text.isascii():
        return text.lower()
    apart = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", text).casefold())
    return "".join(letter for letter in apart if unicodedata.category(letter) != "Mn")
