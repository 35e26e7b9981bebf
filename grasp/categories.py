"""Which attribute values are categories: names that items share, such as a genre or a brand.

A longer value is a text. Numbers, true and false, dates and nested objects are facts, but no categories.
"""

import re

MAX_CATEGORY_CHARS = 40
OBJECT_START = '{"'  # of a nested object; its parts are no values
# Read by Python, and by Java after `(?U)`, with which letters of all scripts are letters there too.
NO_CATEGORY = (
    r"(?i)^(?:[\d\W]*|true|false|yes|no|nan|[+-]?inf(?:inity)?|[+-]?[\d.,]+e[+-]?\d+|\d{4}-\d\d-\d\dT[\d:.+-]+Z?)$"
)

_NO_CATEGORY = re.compile(NO_CATEGORY)


def categories_of(value: str) -> list[str]:
    """The categories in an attribute's value, a list joined with ', '."""
    if OBJECT_START in value:
        return []
    parts = value.split(", ")
    return [part for part in parts if len(part) <= MAX_CATEGORY_CHARS and not _NO_CATEGORY.search(part)]
