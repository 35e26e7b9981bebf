"""Which statements the SQL prompt runs: those that read files or change tables in memory, and cannot write a file.

DuckDB has no limit for that: where a statement may read, it may write.
"""

import re
from itertools import pairwise
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    import duckdb

KINDS = frozenset({"SELECT", "MULTI", "EXPLAIN", "CREATE", "DROP", "INSERT", "UPDATE", "DELETE"})
# MULTI is any statement with a PIVOT over values that DuckDB has to look up, even COPY: the first word tells.
STARTS_OF_MULTI = {
    *("(", "create", "describe", "explain", "from", "insert", "pivot", "pivot_wider", "select", "summarize"),
    *("unpivot", "with"),
}
# These functions run a statement that they get as a text, so its words are not seen here.
RUNNING_TEXTS = {"query", "json_execute_serialized_sql"}
EXPLAINED = re.compile(r"\s*EXPLAIN\s*(ANALYZE\b)?\s*(\([^)]*\))?", re.IGNORECASE)


def require_reading(
    connection: "duckdb.DuckDBPyConnection", statement: "duckdb.Statement", kinds: frozenset[str] = KINDS
) -> None:
    """Raise `duckdb.PermissionException` for a statement that could write a file."""
    kind, words = _kind(statement), _words(statement.query)
    if kind not in kinds or (kind == "MULTI" and words[0] not in STARTS_OF_MULTI):
        _refuse(words[0].upper() if kind == "MULTI" else kind)
    if "copy" in words:  # of any kind: a WITH clause may hold one
        _refuse('COPY (as a name: "copy")')
    for called in RUNNING_TEXTS & {word.strip('"') for word, sign in pairwise(words) if sign == "("}:
        _refuse(f"{called}()")
    if words[0] == "explain":  # EXPLAIN ANALYZE runs its statement
        for explained in connection.extract_statements(EXPLAINED.sub("", statement.query, count=1)):
            require_reading(connection, explained, kinds - {"EXPLAIN"})


def _refuse(what: str) -> NoReturn:
    import duckdb

    raise duckdb.PermissionException(f"{what} is refused: statements read the tables and write no file")


def _kind(statement: "duckdb.Statement") -> str:
    try:
        return str(statement.type.name)
    except ValueError:  # DuckDB for Python has no name for some kinds, such as UPDATE EXTENSIONS
        return "a statement of this kind"


def _words(query: str) -> list[str]:
    """A statement's words and signs in lower case, as DuckDB reads them, without comments. Quotes are kept."""
    import duckdb

    text, tokens = query.encode(), duckdb.tokenize(query)
    ends = [*(start for start, _ in tokens[1:]), len(text)]
    return [
        text[start:end].decode().strip().lower()
        for (start, kind), end in zip(tokens, ends, strict=True)
        if kind != duckdb.token_type.comment
    ]
