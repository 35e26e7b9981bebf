"""What must hold before features go online and before a model trains, as Great Expectations suites.

Each table has two suites: one over its rows, one over its summary (see `measured_table.py`). A failed *critical*
expectation stops the day. A failed *warning* is logged and the day goes on.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import great_expectations as gx
import great_expectations.expectations as gxe

from feature_repo.measured_table import HISTORY, VECTOR_SUFFIX
from grasp import tables
from grasp.days import end_of, start_of
from grasp.settings import Settings
from grasp.tables import MAX_NEIGHBOUR_ITEMS, MAX_SEQUENCE_LENGTH, TAKER_DAYS, Column, Table
from grasp.versions import Versions

NORM_TOLERANCE = 1e-3  # float32 of several hundred dimensions
WEIGHTS_TOLERANCE = 1e-3  # of the sum of two hundred rounded weights
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


def equal(column: str, other: str, meaning: str) -> gxe.ExpectColumnPairValuesToBeEqual:
    return gxe.ExpectColumnPairValuesToBeEqual(column_A=column, column_B=other, description=meaning, severity=CRITICAL)


def not_above(column: str, limit: str, meaning: str) -> gxe.ExpectColumnPairValuesAToBeGreaterThanB:
    """A rule that one column's number is at most the other's."""
    return gxe.ExpectColumnPairValuesAToBeGreaterThanB(
        column_A=limit, column_B=column, or_equal=True, description=meaning, severity=CRITICAL
    )


def one_of(column: str, values: Sequence[Any], meaning: str) -> gxe.ExpectColumnValuesToBeInSet:
    return gxe.ExpectColumnValuesToBeInSet(
        column=column, value_set=list(values), description=meaning, severity=CRITICAL
    )


def value(column: str, low: Any, high: Any, meaning: str, severity: str = CRITICAL) -> gxe.ExpectColumnMaxToBeBetween:
    """A rule for one number of the summary. As its maximum, the number itself is in the report."""
    return gxe.ExpectColumnMaxToBeBetween(
        column=column, min_value=low, max_value=high, description=meaning, severity=severity
    )


def num_rows(fewest: int, meaning: str) -> gxe.ExpectTableRowCountToBeBetween:
    return gxe.ExpectTableRowCountToBeBetween(min_value=fewest, description=meaning, severity=CRITICAL)


def is_true(column: str, meaning: str) -> gxe.ExpectColumnValuesToBeInSet:
    return one_of(column, [True], meaning)


def present(*columns: str) -> Expectations:
    return [
        gxe.ExpectColumnValuesToNotBeNull(column=column, description=f"`{column}` is never null", severity=CRITICAL)
        for column in columns
    ]


def complete_rows(table: Table) -> Expectations:
    """No two rows share a key, and no row lacks a value that `grasp/tables.py` requires."""
    return [*unique(table.key), *present(*(name for name in map(_measured, table.columns) if name))]


def _measured(column: Column) -> str | None:
    """The measured column that is null where a required one is; None if there is none, or another rule covers it."""
    is_list, is_vector = column.type.startswith("array"), column.name.endswith(VECTOR_SUFFIX)
    if column.may_be_null or is_vector or column.type.startswith("map"):
        return None
    return f"{column.name}_length" if is_list else column.name


def unique(key: Sequence[str]) -> Expectations:
    meaning = f"no two rows share {', '.join(key)}"
    if len(key) == 1:
        rule = gxe.ExpectColumnValuesToBeUnique(column=key[0], description=meaning, severity=CRITICAL)
    else:
        rule = gxe.ExpectCompoundColumnsToBeUnique(column_list=list(key), description=meaning, severity=CRITICAL)
    return [rule]


def schema(expected: str) -> gxe.ExpectColumnValuesToBeInSet:
    return one_of("schema", [expected], "columns and types are those of grasp/tables.py")


def known(key: str, of: str) -> gxe.ExpectColumnValuesToBeInSet:
    return is_true(f"{key}_is_known", f"every row has a {key} of `{of}`")


def complete(key: str, of: str) -> gxe.ExpectColumnMaxToBeBetween:
    return value(f"{key}_num_missing", 0, 0, f"every {key} of `{of}` has a row")


def state_volume() -> Expectations:
    return [
        value("share_of_previous_day", LEAST_SHARE_OF_PREVIOUS_DAY, None, "at least half the rows of the day before"),
        value("share_of_previous_day", *USUAL_STATE_GROWTH, "about as many rows as the day before", WARNING),
    ]


def vector(column: str, norms: tuple[float, float], norm_meaning: str) -> Expectations:
    return [
        is_true(f"{column}_is_finite", f"every number of {column} is finite and there is at least one"),
        between(f"{column}_norm", *norms, norm_meaning),
        gxe.ExpectColumnUniqueValueCountToBeBetween(
            column=f"{column}_dimension", max_value=1, description="all vectors have one dimension", severity=CRITICAL
        ),
    ]


UNIT_NORM = (1 - NORM_TOLERANCE, 1 + NORM_TOLERANCE)


def interactions(settings: Settings, day: str) -> SuitePair:
    table = tables.INTERACTIONS
    rows = [
        *complete_rows(table),
        between("event_time", start_of(day), end_of(day), "every event lies within its day"),
        num_rows(settings.min_day_interactions, "at least GRASP_MIN_DAY_INTERACTIONS interactions"),
        known("item_id", tables.ITEMS.name),
        known("user_id", tables.USERS.name),
    ]
    summary = [
        schema(table.ddl),
        value("share_of_previous_day", *USUAL_DAY_GROWTH, "not ten times more or fewer than before", WARNING),
    ]
    return suite_pair(table.name, rows, summary)


def descriptions(settings: Settings, table: Table, entities: Table) -> SuitePair:
    (key,) = table.key
    rows = [
        *complete_rows(table),
        known(key, entities.name),
        gxe.ExpectColumnValueLengthsToBeBetween(
            column="description", min_value=1, description="no description is empty", severity=CRITICAL
        ),
        one_of("source", ["llm", "facts"], "each text says who wrote it"),
    ]
    usual = "the language model wrote at least one text in a hundred"
    summary = [
        schema(table.ddl),
        complete(key, entities.name),
        value("fallback_share", 0, settings.max_fallback_share, "at most GRASP_MAX_FALLBACK_SHARE built from facts"),
        value("fallback_share", 0, USUAL_FALLBACK_SHARE, usual, WARNING),
        *state_volume(),
    ]
    return suite_pair(table.name, rows, summary)


def generation(share_columns: Sequence[str]) -> SuitePair:
    """Dead letters give only warnings: a text built from facts stands in for each. Missing counts do stop the day.

    `share_columns` names the summary's shares, one for each entity and reason and for each entity and history length.
    """
    table = tables.GENERATION_METRICS
    rows = [
        *complete_rows(table),
        between("refused_share", 0, USUAL_REFUSED_SHARE, "at most three texts in four are refused", WARNING),
        between("unanswered_share", 0, USUAL_UNANSWERED_SHARE, "at most one text in twenty never comes", WARNING),
        between("failed_call_share", 0, USUAL_FAILED_CALL_SHARE, "at most one call in five fails", WARNING),
    ]
    summary = [
        value("num_rows", 2, 2, "items and users have metrics of the current prompts and model", WARNING),
        *map(share_limit, share_columns),
    ]
    return suite_pair(table.name, rows, summary)


def share_limit(column: str) -> gxe.ExpectColumnMaxToBeBetween:
    most, meaning = USUAL_REASON_SHARE, "at most every other text fails for this one reason"
    if HISTORY in column:
        most, meaning = USUAL_REFUSED_SHARE, "at most three in four of the texts about histories of this length fail"
    return value(column, 0, most, meaning, WARNING)


def embeddings(table: Table, entities: Table) -> SuitePair:
    (key,) = table.key
    rows = [
        *complete_rows(table),
        known(key, entities.name),
        is_true("is_of_description", "every vector is that of the day's description"),
        *vector("semantic_embedding", UNIT_NORM, "every semantic embedding has length one"),
    ]
    summary = [
        schema(table.ddl),
        complete(key, entities.name),
        *state_volume(),
    ]
    return suite_pair(table.name, rows, summary)


def features(settings: Settings, table: Table, entities: Table) -> SuitePair:
    (key,) = table.key
    versions = Versions(settings)
    rows = [
        *complete_rows(table),
        known(key, entities.name),
        between("seconds_from_end_of_day", -1, 0, "event_timestamp is in the last second of the day"),
        between("age_hours", None, settings.stale_after_hours, "not older than the limit", WARNING),
        one_of("is_tail", [0, 1], "is_tail is 0 or 1"),
        one_of("source", ["llm", "facts"], "each text says who wrote it"),
        one_of("embedding_version", [versions.embedding], "one embedding version, the current one"),
        one_of("feature_version", [versions.feature], "one feature version, the current one"),
        *vector("semantic_embedding", UNIT_NORM, "every semantic embedding has length one"),
        *vector("neighbour_embedding", (0, UNIT_NORM[1]), "a mean of unit vectors is no longer than one"),
        between("neighbour_ids_length", 0, settings.num_neighbours, "at most GRASP_NUM_NEIGHBOURS neighbours"),
        equal("neighbour_ids_length", "neighbour_similarities_length", "each neighbour has a similarity"),
        equal("semantic_embedding_dimension", "neighbour_embedding_dimension", "both vectors have one dimension"),
        *_own_features(table),
    ]
    summary = [
        schema(table.ddl),
        complete(key, entities.name),
        *state_volume(),
    ]
    return suite_pair(table.name, rows, summary)


def _own_features(table: Table) -> Expectations:
    if table is tables.ITEM_FEATURES:
        windows = [f"takers_{days}d" for days in TAKER_DAYS]
        return [
            between("popularity", 0, None, "popularity is a count"),
            between(windows[0], 0, None, "takers are a count"),
            *(
                not_above(shorter, longer, f"{shorter} counts nobody whom {longer} does not count")
                for shorter, longer in pairwise([*windows, "popularity"])
            ),
            between("days_since_first_seen", 0, None, "no item was first seen after the day"),
            *present("days_since_first_seen"),
        ]
    return [
        between("sequence_length", 1, MAX_SEQUENCE_LENGTH, "a sequence holds 1 to 100 items"),
        equal("sequence_length", "sequence_times_length", "each item of a sequence has a time"),
        between("num_interactions", 1, None, "every user has interacted"),
        between("gap_days", 0, None, "nobody interacted after the day"),
        between("neighbour_item_ids_length", 0, MAX_NEIGHBOUR_ITEMS, "at most 200 neighbour items"),
        equal("neighbour_item_ids_length", "neighbour_item_weights_length", "each neighbour item has a weight"),
        is_true("neighbour_item_weights_are_positive", "every neighbour item has votes"),
        between("neighbour_item_weights_sum", 0, 1 + WEIGHTS_TOLERANCE, "weights are shares of all votes"),
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
    as_of = between("seconds_from_cutoff", 0, 0, "every feature is known as of the cutoff")
    filled = num_rows(1, "there is at least one row")
    tail = one_of("is_tail", [0, 1], "is_tail is 0 or 1")

    def entities(key: str) -> Expectations:
        return [*unique([key]), *present(key, "is_tail", "event_timestamp"), filled, as_of, tail, *vectors]

    event_rows = [
        *unique(("user_id", "event_time", "row_number")),
        *present("user_id", "item_id", "event_time", "row_number", "split"),
        filled,
        known("user_id", "users"),
        one_of("split", ["train", "validation", "test"], "each event has a split"),
        is_true("is_on_its_side", "training and validation up to the cutoff, test after it"),
    ]
    event_summary = [
        value("user_id_num_missing", 0, 0, "every user has an event"),
        value("days_from_cutoff_to_day", 1, None, "the cutoff lies before the day"),
    ]
    return {
        "users": suite_pair("training_users", entities("user_id"), []),
        "items": suite_pair("training_items", entities("item_id"), []),
        "events": suite_pair("training_events", event_rows, event_summary),
    }
