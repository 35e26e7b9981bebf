"""A table as the quality checks see it: its rows with measured vectors, and one summary row.

Great Expectations cannot check vectors, and every cell costs it time. So each vector becomes three numbers (norm,
whether finite, dimension) and each list becomes its length, which is null for a missing list. A list of weights has its
sum as well. The summary row holds what is true of the whole table: counts, shares, comparisons with other tables.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from grasp.days import end_of

SPARK_TYPES = {
    pa.string(): "string",
    pa.int32(): "int",
    pa.int64(): "bigint",
    pa.float32(): "float",
    pa.float64(): "double",
}
VECTOR_SUFFIX = "_embedding"
WEIGHTS_SUFFIX = "_weights"
SHARE_SUFFIX = "_share"
HISTORY = "_history_"
GENERATION_SHARES = ["refused_share", "unanswered_share", "failed_call_share"]
MIN_JUDGED = 20  # texts; a share of fewer is not judged


@dataclass(frozen=True)
class MeasuredTable:
    """`rows` has one row per row of the table; `summary` has one row."""

    name: str
    rows: pd.DataFrame
    summary: pd.DataFrame


def read_rows(folder: Path) -> pa.Table:
    """All parquet of a partition or of one file, without columns that exist only in its path."""
    return pq.read_table(folder, partitioning=None)


def measure(name: str, rows: pa.Table) -> MeasuredTable:
    """Measure a table's schema, number of rows, vectors and lists."""
    columns: dict[str, Any] = {}
    summary: dict[str, Any] = {"schema": schema_of(rows.schema), "num_rows": rows.num_rows}
    for field in rows.schema:
        column = rows[field.name].combine_chunks()
        if field.name.endswith(VECTOR_SUFFIX) and pa.types.is_list(field.type):
            norms, are_finite, dimensions = measure_vectors(column)
            columns |= {
                f"{field.name}_norm": norms,
                f"{field.name}_is_finite": are_finite,
                f"{field.name}_dimension": dimensions,
            }
        elif pa.types.is_list(field.type):
            columns[f"{field.name}_length"] = pc.list_value_length(column).to_pandas()
            if field.name.endswith(WEIGHTS_SUFFIX):
                sums, are_positive = measure_weights(column)
                columns |= {f"{field.name}_sum": sums, f"{field.name}_are_positive": are_positive}
        elif not pa.types.is_map(field.type):
            columns[field.name] = column.to_pandas()
    return MeasuredTable(name, pd.DataFrame(columns), pd.DataFrame([summary]))


def measure_vectors(column: pa.ListArray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Norm, finiteness and dimension of each vector; a missing vector has dimension 0."""
    dimensions, values, row_of = _flat(column)
    are_finite = np.bincount(row_of, ~np.isfinite(values), len(dimensions)) == 0
    norms = np.sqrt(np.bincount(row_of, np.where(np.isfinite(values), values, 0.0) ** 2, len(dimensions)))
    return norms, are_finite & (dimensions > 0), dimensions


def measure_weights(column: pa.ListArray) -> tuple[np.ndarray, np.ndarray]:
    """Sum of each list, and whether all of its numbers are finite and above zero; a missing list has the sum 0."""
    lengths, values, row_of = _flat(column)
    are_positive = np.bincount(row_of, ~(np.isfinite(values) & (values > 0)), len(lengths)) == 0
    return np.bincount(row_of, np.where(np.isfinite(values), values, 0.0), len(lengths)), are_positive


def _flat(column: pa.ListArray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Length of each list (0 if it is missing), all values one after another, and the row of each value."""
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy().astype(np.int64)
    values = column.flatten().to_numpy(zero_copy_only=False).astype(np.float64)
    return lengths, values, np.repeat(np.arange(len(lengths)), lengths)


def schema_of(schema: pa.Schema) -> str:
    """The schema as `Table.ddl` writes it."""
    return ", ".join(f"{field.name} {_spark_type(field.type)}" for field in schema)


def _spark_type(kind: pa.DataType) -> str:
    if pa.types.is_timestamp(kind):
        return "timestamp"
    if pa.types.is_list(kind):
        return f"array<{_spark_type(kind.value_type)}>"
    if pa.types.is_map(kind):
        return f"map<{_spark_type(kind.key_type)},{_spark_type(kind.item_type)}>"
    return SPARK_TYPES.get(kind, str(kind))


# The functions below add to a measured table. They skip a missing column: the schema expectation reports it.


def compare_keys(measured: MeasuredTable, column: str, expected: Collection[str]) -> None:
    """Add to each row whether its id is expected, and to the summary how many expected ids have no row."""
    if column in measured.rows:
        wanted = set(expected)
        measured.rows[f"{column}_is_known"] = measured.rows[column].isin(wanted)
        measured.summary[f"{column}_num_missing"] = len(wanted - set(measured.rows[column].dropna()))


def compare_volume(measured: MeasuredTable, num_rows_before: int | None) -> None:
    """Add to the summary the number of rows divided by the previous day's; 1 without a previous day."""
    share = len(measured.rows) / num_rows_before if num_rows_before else 1.0
    measured.summary["share_of_previous_day"] = share


def add_ages(measured: MeasuredTable, day: str, now: datetime) -> None:
    """Add to each row its age in hours, and the distance in seconds of its event timestamp from the end of its day."""
    if "event_timestamp" in measured.rows:
        moments = pd.to_datetime(measured.rows["event_timestamp"], utc=True)
        measured.rows["age_hours"] = (now - moments).dt.total_seconds() / 3600
        measured.rows["seconds_from_end_of_day"] = (moments - end_of(day)).dt.total_seconds()


def add_days_since_first_seen(measured: MeasuredTable, day: str) -> None:
    """Add to each row the days from `first_seen_day` to the day; null where it names no day."""
    if "first_seen_day" in measured.rows:
        first = pd.to_datetime(measured.rows["first_seen_day"], format="%Y-%m-%d", errors="coerce")
        measured.rows["days_since_first_seen"] = (pd.Timestamp(day) - first).dt.days


def add_fallback_share(descriptions: MeasuredTable) -> None:
    """Add to the summary the share of descriptions that the language model did not write."""
    if "source" in descriptions.rows:
        is_fallback = descriptions.rows["source"] != "llm"
        descriptions.summary["fallback_share"] = is_fallback.mean() if len(is_fallback) else 0.0


def compare_texts(embeddings: MeasuredTable, descriptions: MeasuredTable, key: str) -> None:
    """Add to each embedding whether it was made from the day's description; true where there is no description."""
    column = "description_hash"
    if all({key, column} <= set(each.rows) for each in (embeddings, descriptions)):
        texts = descriptions.rows.drop_duplicates(key).set_index(key)[column]
        expected = embeddings.rows[key].map(texts)
        embeddings.rows["is_of_description"] = expected.isna() | (expected == embeddings.rows[column])


def measure_generation(rows: pa.Table) -> MeasuredTable:
    """Dead letters of a day, one row for each entity, from the generation metrics of the current prompts and model.

    A row has three shares: texts refused, texts unanswered, calls failed. The summary has one share for each entity and
    reason, such as `item_loop_share`, and one share of failed texts for each entity and history length, such as
    `user_history_5-9_share`. A share of fewer than `MIN_JUDGED` texts is 0.
    """
    measured = measure("generation_metrics", rows)
    shares: list[dict[str, float]] = []
    for row in rows.to_pylist():
        count = {name: value or 0 for name, value in row.items()}  # a rule of its own reports a missing value
        num_texts = count["num_answers"] + count["num_unanswered"]
        is_judged = num_texts >= MIN_JUDGED
        shares.append(
            {
                "refused_share": count["num_refused"] / num_texts if is_judged else 0.0,
                "unanswered_share": count["num_unanswered"] / num_texts if is_judged else 0.0,
                "failed_call_share": count["num_failed_calls"] / max(1, count["num_calls"]) if is_judged else 0.0,
            }
        )
        for reason, num in sorted(dict(row["reasons"] or []).items()):
            measured.summary[f"{row['entity']}_{reason}{SHARE_SUFFIX}"] = num / num_texts if is_judged else 0.0
        failed = dict(row.get("failed_by_history") or [])  # older days lack the column
        for history, num in sorted(dict(row.get("asked_by_history") or []).items()):
            share = failed.get(history, 0) / num if num >= MIN_JUDGED else 0.0
            measured.summary[f"{row['entity']}{HISTORY}{history}{SHARE_SUFFIX}"] = share
    measured.rows[GENERATION_SHARES] = pd.DataFrame(shares, columns=GENERATION_SHARES)
    return measured
