"""The quality gate: `grasp quality --day D [--suite daily|training]`.

Reads:   the day's interactions, generation metrics, descriptions, embeddings and features, or its training set
Writes:  the Great Expectations project and its report (HTML) under GRASP_DATA_DOCS

Exit code 1 means that a critical expectation failed. The message names each one with table, column and observed value.
Failed warnings are logged, and the day goes on. The report shows both, for this day and every earlier one.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from grasp import partitions, stages, tables
from grasp.days import day_argument, end_of
from grasp.environment import prepare
from grasp.preflight import require_models
from grasp.progress import say
from grasp.settings import Settings, SettingsError
from grasp.tables import Table
from grasp.versions import Versions

if TYPE_CHECKING:
    import pyarrow as pa

    from feature_repo.expectations import SuitePair
    from feature_repo.measured_table import MeasuredTable
    from feature_repo.suite_runner import FailedExpectation

STAGE = "check_quality"
PER_ENTITY = (
    (tables.ITEM_DESCRIPTION, tables.ITEM_EMBEDDING, tables.ITEM_FEATURES, tables.ITEMS),
    (tables.USER_DESCRIPTION, tables.USER_EMBEDDING, tables.USER_FEATURES, tables.USERS),
)

TRAINING_COLUMNS = {
    "users": ("user_id", "event_timestamp"),
    "items": ("item_id", "event_timestamp"),
    "events": ("user_id", "event_time", "split"),
}


class QualityError(ValueError):
    """Critical expectations failed; the message names each with table, column and observed value."""

    def __init__(self, day: str, kind: str, failed: list["FailedExpectation"]) -> None:
        listed = "\n  ".join(map(str, failed))
        super().__init__(f"{day} does not pass the {kind} quality gate and is not used further:\n  {listed}")
        self.failed = failed


def check_day(settings: Settings, day: str) -> list["FailedExpectation"]:
    """Run the daily suites; returns the failed warnings.

    Raises `QualityError` when a critical expectation fails and `MissingPartitionError` when a table has no such day.
    """
    measured = measure_day(settings, day)
    share_columns = measured[tables.GENERATION_METRICS.name].summary.columns.drop(["schema", "num_rows"])
    return _judge(settings, day, "daily", measured, _expectations().daily_suites(settings, day, list(share_columns)))


def check_training_set(settings: Settings, day: str) -> list["FailedExpectation"]:
    """Run the training suites over the day's training set; raises like `check_day`."""
    measured = measure_training_set(settings, day)
    return _judge(settings, day, "training", measured, _expectations().training_suites())


def _expectations() -> ModuleType:
    """Import the suites late: Great Expectations takes six seconds to import. Its analytics are off."""
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    from feature_repo import expectations

    return expectations


def measure_day(settings: Settings, day: str) -> dict[str, "MeasuredTable"]:
    """Every table of the daily suites, measured and compared with its entity list and the day before."""
    from feature_repo import measured_table

    result = {}

    def read(table: Table) -> "MeasuredTable":
        version = Versions(settings).of(table.versioned_by)
        folder = partitions.require_partition(settings.lake, table, version, day)
        measured = measured_table.measure(table.name, measured_table.read_rows(folder))
        measured_table.compare_volume(measured, _num_rows_before(settings, table, day))
        measured_table.add_ages(measured, day, settings.clock())
        measured_table.add_days_since_first_seen(measured, day)
        return measured

    generation = measured_table.measure_generation(_generation_metrics(settings, day))
    result[generation.name] = generation
    interactions = result["interactions"] = read(tables.INTERACTIONS)
    for description, embedding, features, entities in PER_ENTITY:
        key = entities.key[0]
        ids = read(entities).rows[key]
        measured_table.compare_keys(interactions, key, ids)
        for table in (description, embedding, features):
            result[table.name] = read(table)
            measured_table.compare_keys(result[table.name], key, ids)
        texts = result[description.name]
        measured_table.add_fallback_share(texts)
        measured_table.compare_texts(result[embedding.name], texts, key)
    return result


def _generation_metrics(settings: Settings, day: str) -> "pa.Table":
    """Rows of the current prompts and model; none for a day that is older than the metrics table."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table, versions = tables.GENERATION_METRICS, Versions(settings)
    current = {(entity, versions.prompt(entity), versions.llm) for entity in ("item", "user")}
    if day not in partitions.days(settings.lake, table, None):
        return pa.table({name: [] for name in table.column_names})
    rows = pq.read_table(partitions.partition_path(settings.lake, table, None, day), partitioning=None)
    is_current = [tuple(row[name] for name in table.key) in current for row in rows.select(table.key).to_pylist()]
    return rows.filter(pa.array(is_current, pa.bool_()))


def measure_training_set(settings: Settings, day: str) -> dict[str, "MeasuredTable"]:
    """The three files of a training set, measured against its users' common cutoff."""
    import pandas as pd

    from feature_repo import measured_table

    folder = settings.home / "training" / day / "training_set"
    result = {}
    for name in ("users", "items", "events"):
        file = folder / f"{name}.parquet"
        if not file.exists():
            raise FileNotFoundError(f"{file} is missing: run `grasp retrain --day {day} --cutoff DAY`")
        result[name] = measured_table.measure(f"training_{name}", measured_table.read_rows(file))
        _require(result[name], file, TRAINING_COLUMNS[name])
    cutoff = pd.to_datetime(result["users"].rows["event_timestamp"], utc=True).max()
    for name in ("users", "items"):
        rows = result[name].rows
        rows["seconds_from_cutoff"] = (pd.to_datetime(rows["event_timestamp"], utc=True) - cutoff).dt.total_seconds()
    events = result["events"]
    is_before = pd.to_datetime(events.rows["event_time"], utc=True) <= cutoff
    events.rows["is_on_its_side"] = is_before == (events.rows["split"] != "test")
    measured_table.compare_keys(events, "user_id", result["users"].rows["user_id"])
    events.summary["days_from_cutoff_to_day"] = (end_of(day) - cutoff) / timedelta(days=1)
    return result


def _require(measured: "MeasuredTable", file: Path, columns: tuple[str, ...]) -> None:
    missing = [column for column in columns if column not in measured.rows]
    if missing:
        raise ValueError(f"{file} has no column {', '.join(missing)}")


def _num_rows_before(settings: Settings, table: Table, day: str) -> int | None:
    """Number of rows of the table's last day before this one."""
    version = Versions(settings).of(table.versioned_by)
    earlier = [each for each in partitions.days(settings.lake, table, version, until=day) if each < day]
    if not earlier:
        return None
    content = partitions.read_content(partitions.partition_path(settings.lake, table, version, earlier[-1]))
    return content.num_rows if content else None


def _judge(
    settings: Settings, day: str, kind: str, measured: dict[str, "MeasuredTable"], by_table: dict[str, "SuitePair"]
) -> list["FailedExpectation"]:
    """Run every suite as one checkpoint. Raises `QualityError` for critical ones, returns the failed warnings."""
    from feature_repo import suite_runner

    checks = [
        check
        for name, (rows, summary) in by_table.items()
        for check in ((rows, measured[name].rows), (summary, measured[name].summary))
        if check[0].expectations
    ]
    results = suite_runner.run_checks(settings.data_docs, kind, day, checks)
    critical = [each for each in results.failed if each.is_critical]
    warnings = [each for each in results.failed if not each.is_critical]
    say(f"quality {day}: {results.num_expectations} expectations, {len(critical)} failed, {len(warnings)} warnings")
    say(f"quality {day}: report {results.report}")
    if critical:
        raise QualityError(day, kind, critical)
    return warnings


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="grasp quality", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--day", type=day_argument, required=True, help="UTC day to check, YYYY-MM-DD")
    parser.add_argument("--suite", choices=("daily", "training"), default="daily")
    arguments = parser.parse_args(given)
    started = time.monotonic()
    try:
        settings = Settings.load()
        if arguments.suite == "training":
            check_training_set(settings, arguments.day)
        else:
            before = stages.fingerprint(settings, STAGE, arguments.day)
            check_day(settings, arguments.day)
            stages.stamp(settings, STAGE, arguments.day, before)
    except (SettingsError, ValueError, FileNotFoundError) as error:
        say(f"quality {arguments.day}: failed: {error}")
        sys.exit(f"error: {error}")
    say(f"quality {arguments.day}: passed in {time.monotonic() - started:.1f} s")


if __name__ == "__main__":
    prepare(require_models)
    main()
