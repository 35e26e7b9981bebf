"""Values of the source as text: unchanged, or not at all."""

import json
import math
from collections.abc import Collection, Mapping

MAX_NUMBER_CHARS = 1000  # a longer number is a mistake


class NumberText(str):
    """A number of a JSON line, as it is written there: 1e3 stays 1e3."""

    __slots__ = ()


def json_values(line: str) -> dict[str, object] | None:
    """The values of a JSON line by name; None unless it is one object that a reader can hold and read in one way."""
    try:
        values = _DECODER.decode(line)
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None


def _number(text: str) -> NumberText:
    if len(text) > MAX_NUMBER_CHARS:
        raise ValueError(f"a number of {len(text)} characters")
    return NumberText(text)


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a name appears twice")
    return values


_ENCODE = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=str).encode
# NaN and Infinity are no JSON; writers use them for a missing value.
_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_number, parse_float=_number, parse_constant=lambda _: None
)


def as_fields(values: Mapping[str, object], single: Collection[str]) -> dict[str, str] | None:
    """The values that are not empty, as text.

    None if one of them is not valid text, or one of the `single` values is a list, an object, true or false.
    """
    fields = {}
    try:
        for name, value in values.items():
            if type(value) is not str and name in single and isinstance(value, list | dict | bool):
                return None
            text = value if type(value) is str else as_text(value)
            if text and not text.isspace():
                if not (text.isascii() and name.isascii()):
                    (name + text).encode()  # refuses lone surrogates
                fields[name] = text
    except (UnicodeError, RecursionError):
        return None
    return fields


def as_text(value: object) -> str:
    """Lists are joined with ', ', objects become JSON, a missing value is empty.

    Raises `UnicodeError` for bytes that are not UTF-8.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, str):
        return str(value) if isinstance(value, NumberText) else value
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ", ".join(as_text(each) for each in value if each is not None)
    return as_json(value) if isinstance(value, dict) else str(value)


def as_json(value: object) -> str:
    """JSON without spaces, numbers as they were written. Raises `UnicodeError` for bytes that are not UTF-8."""
    if isinstance(value, NumberText):
        return value
    if isinstance(value, dict):
        return "{" + ",".join(f"{as_json(str(name))}:{as_json(each)}" for name, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(as_json, value)) + "]"
    if isinstance(value, bytes):
        value = value.decode()
    return _ENCODE(value)


def as_record(fields: Mapping[str, str]) -> str:
    """The same for values that are text."""
    return _ENCODE(fields)
