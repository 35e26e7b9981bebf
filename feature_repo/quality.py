"""The quality gate: `python -m feature_repo.quality --day D [--suite daily|training]`.

Reads:   the day's interactions, generation metrics, descriptions, embeddings and features, or its training set
Writes:  the Great Expectations project and its report (HTML) under GRASP_DATA_DOCS

Ends with exit code 1 when a critical expectation fails, each of them named with table, column and what was observed.
Failed warnings are said, and the day goes on. The report shows both, and every earlier day.
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
from grasp.progress import say
from grasp.settings import Settings, SettingsError
from grasp.tables import Table
from grasp.versions import Versions

if TYPE_CHECKING:
    import pyarrow as pa

    from feature_repo.gate import Finding
    from feature_repo.measures import Measured
    from feature_repo.suites import Suites

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
    """A critical expectation failed; the message names each with table, column and what was observed."""

    def __init__(self, day: str, kind: str, findings: list["Finding"]) -> None:
        listed = "\n  ".join(str(finding) for finding in findings)
        super().__init__(f"{day} does not pass the {kind} quality gate, nothing of it goes further:\n  {listed}")
        self.findings = findings


def check_day(settings: Settings, day: str) -> list["Finding"]:
    """Run the daily suites; returns the failed warnings.

    Raises `QualityError` when a critical expectation fails and `MissingPartitionError` when a table has no such day.
    """
    measured = measure_day(settings, day)
    failures = measured[tables.GENERATION_METRICS.name].summary.columns.drop("num_rows")
    return _judge(settings, day, "daily", measured, _suites().daily(settings, day, list(failures)))


def check_training_set(settings: Settings, day: str) -> list["Finding"]:
    """Run the training suites over the day's training set; raises like `check_day`."""
    measured = measure_training_set(settings, day)
    return _judge(settings, day, "training", measured, _suites().training())


def _suites() -> ModuleType:
    """The suites; Great Expectations, which takes six seconds, is imported here, with its analytics off."""
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    from feature_repo import suites

    return suites


def measure_day(settings: Settings, day: str) -> dict[str, "Measured"]:
    """Every table the daily suites look at, measured and compared with its entity list and the day before."""
    from feature_repo import measures

    result = {}

    def read(table: Table) -> "Measured":
        version = Versions(settings).of(table.versioned_by)
        folder = partitions.require_partition(settings.lake, table, version, day)
        found = measures.measure(table.name, measures.read_rows(folder))
        measures.compare_volume(found, _num_rows_before(settings, table, day))
        measures.add_ages(found, day, settings.clock())
        return found

    generation = measures.measure_generation(_generation_metrics(settings, day))
    result[generation.name] = generation
    interactions = result["interactions"] = read(tables.INTERACTIONS)
    for description, embedding, features, entities in PER_ENTITY:
        key = entities.key[0]
        ids = read(entities).rows[key]
        measures.compare_keys(interactions, key, ids)
        for table in (description, embedding, features):
            result[table.name] = read(table)
            measures.compare_keys(result[table.name], key, ids)
        texts = result[description.name]
        measures.add_fallback_share(texts)
        measures.count_outdated(result[embedding.name], texts, key)
    return result


def _generation_metrics(settings: Settings, day: str) -> "pa.Table":
    """Rows of the current prompts and model; none for a day that was described before there were metrics."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table, versions = tables.GENERATION_METRICS, Versions(settings)
    current = {(entity, versions.prompt(entity), versions.llm) for entity in ("item", "user")}
    if day not in partitions.days(settings.lake, table, None):
        return pa.table({})
    rows = pq.read_table(partitions.partition_path(settings.lake, table, None, day), partitioning=None)
    is_current = [tuple(row[name] for name in table.key) in current for row in rows.select(table.key).to_pylist()]
    return rows.filter(pa.array(is_current, pa.bool_()))


def measure_training_set(settings: Settings, day: str) -> dict[str, "Measured"]:
    """The three files of a training set, measured against the one cutoff its users share."""
    import pandas as pd

    from feature_repo import measures

    folder = settings.home / "training" / day / "training_set"
    result = {}
    for name in ("users", "items", "events"):
        file = folder / f"{name}.parquet"
        if not file.exists():
            raise FileNotFoundError(
                f"{file} is missing: run python -m training.build_training_set --day {day} --cutoff DAY"
            )
        result[name] = measures.measure(f"training_{name}", measures.read_rows(file))
        _require(result[name], file, TRAINING_COLUMNS[name])
    cutoff = pd.to_datetime(result["users"].rows["event_timestamp"], utc=True).max()
    for name in ("users", "items"):
        rows = result[name].rows
        rows["seconds_from_cutoff"] = (pd.to_datetime(rows["event_timestamp"], utc=True) - cutoff).dt.total_seconds()
    events = result["events"]
    is_before = pd.to_datetime(events.rows["event_time"], utc=True) <= cutoff
    events.rows["is_on_its_side"] = is_before == (events.rows["split"] != "test")
    measures.compare_keys(events, "user_id", result["users"].rows["user_id"])
    events.summary["days_from_cutoff_to_day"] = (end_of(day) - cutoff) / timedelta(days=1)
    return result


def _require(measured: "Measured", file: Path, columns: tuple[str, ...]) -> None:
    missing = [column for column in columns if column not in measured.rows]
    if missing:
        raise ValueError(f"{file} has no column {', '.join(missing)}")


def _num_rows_before(settings: Settings, table: Table, day: str) -> int | None:
    """Rows of the last day before this one that the table has."""
    version = Versions(settings).of(table.versioned_by)
    earlier = [each for each in partitions.days(settings.lake, table, version, until=day) if each < day]
    if not earlier:
        return None
    content = partitions.read_content(partitions.partition_path(settings.lake, table, version, earlier[-1]))
    return content.num_rows if content else None


def _judge(
    settings: Settings, day: str, kind: str, measured: dict[str, "Measured"], by_table: dict[str, "Suites"]
) -> list["Finding"]:
    """Run every suite, say what was found, then let the severities decide."""
    from feature_repo import gate

    checks: list[gate.Check] = []
    for name, (rows, summary) in by_table.items():
        table = measured[name]
        checks += [(table.name, rows, table.rows), (table.name, summary, table.summary)]
    outcome = gate.run_checks(settings.data_docs, kind, f"{day}-{kind}", checks)
    critical = [finding for finding in outcome.findings if finding.is_critical]
    warnings = [finding for finding in outcome.findings if not finding.is_critical]
    for warning in warnings:
        say(f"quality {day}: warning: {warning}")
    say(f"quality {day}: {outcome.num_expectations} expectations, {len(critical)} failed, {len(warnings)} warnings")
    say(f"quality {day}: report {outcome.report}")
    if critical:
        raise QualityError(day, kind, critical)
    return warnings


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="feature_repo.quality", description=__doc__)
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
    main()
