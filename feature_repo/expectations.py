"""What must hold before features go online and before a model trains, as Great Expectations suites.

Each table has two suites: one over its rows, one over its summary (see `measured_table.py`). A failed *critical*
expectation stops the day. A failed *warning* is logged and the day goes on.
"""

from collections.abc import Sequence
from typing import Any

import great_expectations as gx
import great_expectations.expectations as gxe

from feature_repo.measured_table import HISTORY
from grasp import tables
from grasp.days import end_of, start_of
from grasp.settings import Settings
from grasp.tables import MAX_SEQUENCE_LENGTH, Table
from grasp.versions import Versions

NORM_TOLERANCE = 1e-3  # float32 of several hundred dimensions
USUAL_FALLBACK_SHARE = 0.99  # above it the model wrote almost no text
LEAST_SHARE_OF_PREVIOUS_DAY = 0.5  # a state table that loses half its rows has lost its source
USUAL_STATE_GROWTH = (0.95, 2.0)
USUAL_DAY_GROWTH = (0.1, 10.0)
USUAL_REFUSED_SHARE = 0.75  # many texts of small models cannot be used
USUAL_REASON_SHARE = 0.5  # above it most texts have the same fault
USUAL_UNANSWERED_SHARE = 0.05
USUAL_FAILED_CALL_SHARE = 0.2

CRITICAL, WARNING = "critical", "warning"
SuitePair = tuple[gx.ExpectationSuite, gx.ExpectationSuite]
Expectations = list[gxe.Expectation]


def suite_pair(name: str, rows: Expectations, summary: Expectations) -> SuitePair:
    """A table's two suites: one over its rows, one over its summary."""
    return (
        gx.ExpectationSuite(name=name, expectations=rows),
        gx.ExpectationSuite(name=f"{name}_summary", expectations=summary),
    )


def between(
    column: str, low: Any, high: Any, meaning: str, severity: str = CRITICAL
) -> gxe.ExpectColumnValuesToBeBetween:
    return gxe.ExpectColumnValuesToBeBetween(
        column=column, min_value=low, max_value=high, description=meaning, severity=severity
    )


def one_of(column: str, values: Sequence[Any], meaning: str) -> gxe.ExpectColumnValuesToBeInSet:
    return gxe.ExpectColumnValuesToBeInSet(
        column=column, value_set=list(values), description=meaning, severity=CRITICAL
    )


def zero(column: str, meaning: str) -> gxe.ExpectColumnValuesToBeBetween:
    return between(column, 0, 0, meaning)


def present(*columns: str) -> Expectations:
    return [
        gxe.ExpectColumnValuesToNotBeNull(column=column, description=f"every row has a {column}", severity=CRITICAL)
        for column in columns
    ]


def unique(key: Sequence[str]) -> Expectations:
    """No two rows share a key, and every row has one."""
    meaning = f"no two rows share {', '.join(key)}"
    if len(key) == 1:
        rule = gxe.ExpectColumnValuesToBeUnique(column=key[0], description=meaning, severity=CRITICAL)
    else:
        rule = gxe.ExpectCompoundColumnsToBeUnique(column_list=list(key), description=meaning, severity=CRITICAL)
    return [rule, *present(*key)]


def schema(expected: str) -> gxe.ExpectColumnValuesToBeInSet:
    return one_of("schema", [expected], "columns and types are those of grasp/tables.py")


def complete(key: str, of: str) -> Expectations:
    return [
        zero(f"{key}_num_missing", f"every {key} of `{of}` has a row"),
        zero(f"{key}_num_unknown", f"every row has a {key} of `{of}`"),
    ]


def state_volume() -> Expectations:
    return [
        between("share_of_previous_day", LEAST_SHARE_OF_PREVIOUS_DAY, None, "at least half the rows of the day before"),
        between("share_of_previous_day", *USUAL_STATE_GROWTH, "about as many rows as the day before", WARNING),
    ]


def vector(column: str, norms: tuple[float, float], norm_meaning: str) -> Expectations:
    return [
        one_of(f"{column}_is_finite", [True], f"every number of {column} is finite and there is at least one"),
        between(f"{column}_norm", *norms, norm_meaning),
    ]


UNIT_NORM = (1 - NORM_TOLERANCE, 1 + NORM_TOLERANCE)


def interactions(settings: Settings, day: str) -> SuitePair:
    table = tables.INTERACTIONS
    rows = [
        *unique(table.key),
        *present("item_id"),
        between("event_time", start_of(day), end_of(day), "every event lies within its day"),
    ]
    summary = [
        schema(table.ddl),
        between("num_rows", settings.min_day_interactions, None, "at least GRASP_MIN_DAY_INTERACTIONS interactions"),
        zero("item_id_num_unknown", "every item is in `items`"),
        zero("user_id_num_unknown", "every user is in `users`"),
        between("share_of_previous_day", *USUAL_DAY_GROWTH, "not ten times more or fewer than before", WARNING),
    ]
    return suite_pair(table.name, rows, summary)


def descriptions(settings: Settings, table: Table, entities: Table) -> SuitePair:
    (key,) = table.key
    rows = [
        *unique(table.key),
        *present("description", "input_hash", "description_hash", "computed_at"),
        gxe.ExpectColumnValueLengthsToBeBetween(
            column="description", min_value=1, description="no description is empty", severity=CRITICAL
        ),
        one_of("source", ["llm", "facts"], "each text says who wrote it"),
    ]
    usual = "the language model wrote at least one text in a hundred"
    summary = [
        schema(table.ddl),
        *complete(key, entities.name),
        between("fallback_share", 0, settings.max_fallback_share, "at most GRASP_MAX_FALLBACK_SHARE built from facts"),
        between("fallback_share", 0, USUAL_FALLBACK_SHARE, usual, WARNING),
        *state_volume(),
    ]
    return suite_pair(table.name, rows, summary)


def generation(share_columns: Sequence[str]) -> SuitePair:
    """Dead letters give only warnings: a text built from facts stands in for each, so they do not stop the day here.

    `share_columns` names the summary's shares, one for each entity and reason and for each entity and history length.
    """
    table = tables.GENERATION_METRICS
    rows = [
        between("refused_share", 0, USUAL_REFUSED_SHARE, "at most three texts in four are refused", WARNING),
        between("unanswered_share", 0, USUAL_UNANSWERED_SHARE, "at most one text in twenty never comes", WARNING),
        between("failed_call_share", 0, USUAL_FAILED_CALL_SHARE, "at most one call in five fails", WARNING),
    ]
    summary = [
        between("num_rows", 2, 2, "items and users have metrics of the current prompts and model", WARNING),
        *map(share_limit, share_columns),
    ]
    return suite_pair(table.name, rows, summary)


def share_limit(column: str) -> gxe.ExpectColumnMaxToBeBetween:
    """A limit for one column of the summary. The report then shows the share itself."""
    most, meaning = USUAL_REASON_SHARE, "at most every other text fails for this one reason"
    if HISTORY in column:
        most, meaning = USUAL_REFUSED_SHARE, "at most three in four of the texts about histories of this length fail"
    return gxe.ExpectColumnMaxToBeBetween(
        column=column, min_value=0, max_value=most, description=meaning, severity=WARNING
    )


def embeddings(table: Table, entities: Table) -> SuitePair:
    (key,) = table.key
    rows = [
        *unique(table.key),
        *present("description_hash", "computed_at"),
        *vector("semantic_embedding", UNIT_NORM, "every semantic embedding has length one"),
    ]
    summary = [
        schema(table.ddl),
        *complete(key, entities.name),
        between("semantic_embedding_num_dimensions", 0, 1, "all vectors have one dimension"),
        zero("num_outdated", "every vector is that of the day's description"),
        *state_volume(),
    ]
    return suite_pair(table.name, rows, summary)


def features(settings: Settings, table: Table, entities: Table) -> SuitePair:
    (key,) = table.key
    versions = Versions(settings)
    rows = [
        *unique(table.key),
        *present("description", "computed_at"),
        zero("seconds_from_end_of_day", "event_timestamp is the end of the day"),
        between("age_hours", None, settings.stale_after_hours, "not older than the limit", WARNING),
        one_of("is_tail", [0, 1], "is_tail is 0 or 1"),
        one_of("source", ["llm", "facts"], "each text says who wrote it"),
        one_of("embedding_version", [versions.embedding], "one embedding version, the current one"),
        one_of("feature_version", [versions.feature], "one feature version, the current one"),
        *vector("semantic_embedding", UNIT_NORM, "every semantic embedding has length one"),
        *vector("neighbour_embedding", (0, UNIT_NORM[1]), "a mean of unit vectors is no longer than one"),
        between("neighbour_ids_length", 0, settings.num_neighbours, "at most GRASP_NUM_NEIGHBOURS neighbours"),
        gxe.ExpectColumnPairValuesToBeEqual(
            column_A="neighbour_ids_length",
            column_B="neighbour_similarities_length",
            description="each neighbour has a similarity",
            severity=CRITICAL,
        ),
        gxe.ExpectColumnPairValuesToBeEqual(
            column_A="semantic_embedding_dimension",
            column_B="neighbour_embedding_dimension",
            description="both vectors have one dimension",
            severity=CRITICAL,
        ),
        *_own_features(table),
    ]
    summary = [
        schema(table.ddl),
        *complete(key, entities.name),
        between("semantic_embedding_num_dimensions", 0, 1, "all vectors have one dimension"),
        *state_volume(),
    ]
    return suite_pair(table.name, rows, summary)


def _own_features(table: Table) -> Expectations:
    if table is tables.ITEM_FEATURES:
        return [between("popularity", 0, None, "popularity is a count")]
    return [
        between("sequence_length", 1, MAX_SEQUENCE_LENGTH, "a sequence holds 1 to 100 items"),
        gxe.ExpectColumnPairValuesToBeEqual(
            column_A="sequence_length",
            column_B="sequence_times_length",
            description="each item of a sequence has a time",
            severity=CRITICAL,
        ),
        between("num_interactions", 1, None, "every user has interacted"),
    ]


def daily_suites(settings: Settings, day: str, share_columns: Sequence[str]) -> dict[str, SuitePair]:
    """The suites of a day, by table; `share_columns` as in `generation`."""
    return {
        "interactions": interactions(settings, day),
        "generation_metrics": generation(share_columns),
        "item_description": descriptions(settings, tables.ITEM_DESCRIPTION, tables.ITEMS),
        "user_description": descriptions(settings, tables.USER_DESCRIPTION, tables.USERS),
        "item_embedding": embeddings(tables.ITEM_EMBEDDING, tables.ITEMS),
        "user_embedding": embeddings(tables.USER_EMBEDDING, tables.USERS),
        "item_features": features(settings, tables.ITEM_FEATURES, tables.ITEMS),
        "user_features": features(settings, tables.USER_FEATURES, tables.USERS),
    }


def training_suites() -> dict[str, SuitePair]:
    """The suites of a training set, by file. All its users share one event timestamp, the cutoff."""
    vectors = [
        *vector("semantic_embedding", UNIT_NORM, "every semantic embedding has length one"),
        *vector("neighbour_embedding", (0, UNIT_NORM[1]), "a mean of unit vectors is no longer than one"),
    ]
    known = zero("seconds_from_cutoff", "every feature is known as of the cutoff")
    filled = between("num_rows", 1, None, "there is at least one row")
    one_dimension = [
        between(f"{name}_embedding_num_dimensions", 1, 1, "all vectors have one dimension")
        for name in ("semantic", "neighbour")
    ]
    tail = one_of("is_tail", [0, 1], "is_tail is 0 or 1")
    event_rows = [
        *unique(("user_id", "event_time", "row_number")),
        *present("item_id"),
        one_of("split", ["train", "validation", "test"], "each event has a split"),
        one_of("is_on_its_side", [True], "training and validation up to the cutoff, test after it"),
    ]
    event_summary = [
        filled,
        zero("user_id_num_unknown", "every event's user is in users"),
        zero("user_id_num_missing", "every user has an event"),
        between("days_from_cutoff_to_day", 1, None, "the cutoff lies before the day"),
    ]
    return {
        "users": suite_pair("training_users", [*unique(["user_id"]), known, tail, *vectors], [filled, *one_dimension]),
        "items": suite_pair("training_items", [*unique(["item_id"]), known, tail, *vectors], [filled, *one_dimension]),
        "events": suite_pair("training_events", event_rows, event_summary),
    }
