"""The quality gate: `python -m feature_repo.quality --day D [--suite daily|training]`.

Reads:   the day's interactions, descriptions, embeddings and features, or the day's training set
Writes:  the Great Expectations project and its report (HTML) under GRASP_DATA_DOCS

Ends with exit code 1 when a critical expectation fails, each of them named with table, column and what was observed.
Failed warnings are said, and the day goes on. The report shows both, and every earlier day.
"""

import argparse
import contextlib
import io
import logging
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grasp import partitions, stages, tables
from grasp.days import day_argument, end_of
from grasp.progress import say
from grasp.settings import Settings, SettingsError
from grasp.tables import Table
from grasp.versions import Versions

if TYPE_CHECKING:
    import great_expectations as gx

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


@dataclass(frozen=True)
class Finding:
    """One failed expectation."""

    table: str
    column: str
    expectation: str
    observed: str
    meaning: str
    is_critical: bool

    def __str__(self) -> str:
        where = f"{self.table}.{self.column}" if self.column else self.table
        return f"{where}: {self.meaning} ({self.expectation}, observed {self.observed})"


class QualityError(ValueError):
    """A critical expectation failed; the message names each with table, column and what was observed."""

    def __init__(self, day: str, kind: str, findings: list[Finding]) -> None:
        listed = "\n  ".join(str(finding) for finding in findings)
        super().__init__(f"{day} does not pass the {kind} quality gate, nothing of it goes further:\n  {listed}")
        self.findings = findings


def check_day(settings: Settings, day: str) -> list[Finding]:
    """Run the daily suites; returns the failed warnings.

    Raises `QualityError` when a critical expectation fails and `MissingPartitionError` when a table has no such day.
    """
    measured = measure_day(settings, day)
    from feature_repo import suites

    return _judge(settings, day, "daily", measured, suites.daily(settings, day))


def check_training_set(settings: Settings, day: str) -> list[Finding]:
    """Run the training suites over the day's training set; raises like `check_day`."""
    measured = measure_training_set(settings, day)
    from feature_repo import suites

    return _judge(settings, day, "training", measured, suites.training())


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


def measure_training_set(settings: Settings, day: str) -> dict[str, "Measured"]:
    """The three files of a training set, measured against the one cutoff its users share."""
    import pandas as pd

    from feature_repo import measures

    folder = settings.home / "training" / day / "training_set"
    result = {}
    for name in ("users", "items", "events"):
        file = folder / f"{name}.parquet"
        if not file.exists():
            raise FileNotFoundError(f"{file} is missing: run python -m training.dataset --day {day} --cutoff DAY")
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
) -> list[Finding]:
    """Run every suite, write the report, then let the severities decide."""
    findings: list[Finding] = []
    pages: list[Any] = []  # only these are rendered: the report grows, a day's work on it does not
    num_expectations = 0
    with _report(settings) as context:
        source = context.data_sources.add_or_update_pandas("lake")
        for name, (rows_suite, summary_suite) in by_table.items():
            for suite, frame in ((rows_suite, measured[name].rows), (summary_suite, measured[name].summary)):
                results, new_pages = _validate(context, source, suite, frame, run_name=f"{day}-{kind}")
                pages += new_pages
                num_expectations += len(results)
                findings += [_finding(measured[name].name, result) for result in results if not result.success]
        (index,) = context.build_data_docs(resource_identifiers=pages).values()
    critical = [finding for finding in findings if finding.is_critical]
    warnings = [finding for finding in findings if not finding.is_critical]
    for warning in warnings:
        say(f"quality {day}: warning: {warning}")
    say(f"quality {day}: {num_expectations} expectations, {len(critical)} failed, {len(warnings)} warnings")
    say(f"quality {day}: report {index.removeprefix('file://')}")
    if critical:
        raise QualityError(day, kind, critical)
    return warnings


@contextlib.contextmanager
def _report(settings: Settings) -> Iterator["gx.data_context.FileDataContext"]:
    """The Great Expectations project of this installation: results of all days, and their report in HTML."""
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")  # read on import
    import great_expectations as gx

    logging.getLogger("great_expectations").setLevel(logging.ERROR)
    settings.data_docs.mkdir(parents=True, exist_ok=True)
    with contextlib.redirect_stdout(io.StringIO()):  # it greets on first use
        context = gx.get_context(mode="file", project_root_dir=settings.data_docs)
    context.variables.progress_bars = {"globally": False}
    yield context


def _validate(context: Any, source: Any, suite: Any, frame: Any, run_name: str) -> tuple[list[Any], list[Any]]:
    """Results of the suite, and the identifiers of the report's pages about it."""
    import great_expectations as gx
    from great_expectations.data_context.types.resource_identifiers import (
        ExpectationSuiteIdentifier,
        ValidationResultIdentifier,
    )

    batch = source.add_dataframe_asset(suite.name).add_batch_definition_whole_dataframe("day")
    definition = gx.ValidationDefinition(name=suite.name, data=batch, suite=context.suites.add_or_update(suite))
    run_id = gx.RunIdentifier(run_name=run_name)
    result = context.validation_definitions.add_or_update(definition).run(
        batch_parameters={"dataframe": frame}, result_format={"result_format": "SUMMARY"}, run_id=run_id
    )
    suite_page = ExpectationSuiteIdentifier(name=suite.name)
    return result.results, [suite_page, ValidationResultIdentifier(suite_page, run_id, result.batch_id)]


def _finding(table: str, result: Any) -> Finding:
    """What a failed result says; an expectation that could not be computed at all has an exception instead."""
    config = result.expectation_config
    columns = [config.kwargs.get(name) for name in ("column", "column_A", "column_B")]
    columns += config.kwargs.get("column_list", [])
    observed = result.result.get("observed_value")
    if observed is None:
        observed = result.result.get("partial_unexpected_list", [])[:3]
        observed = (
            f"{result.result.get('unexpected_count')} rows such as {observed}" if observed else _exception(result)
        )
    return Finding(
        table=table,
        column=",".join(column for column in columns if column),
        expectation=config.type,
        observed=str(observed),
        meaning=config.description or config.type,
        is_critical=config.severity == "critical",
    )


def _exception(result: Any) -> str:
    """The first line of why it could not be computed, for example that the column is missing."""
    info = result.exception_info or {}
    messages = [info] if "exception_message" in info else list(info.values())
    texts = [each.get("exception_message") for each in messages if isinstance(each, dict)]
    return next((text.strip().splitlines()[0] for text in texts if text), "nothing")


def main() -> None:
    parser = argparse.ArgumentParser(prog="feature_repo.quality", description=__doc__)
    parser.add_argument("--day", type=day_argument, required=True, help="UTC day to check, YYYY-MM-DD")
    parser.add_argument("--suite", choices=("daily", "training"), default="daily")
    arguments = parser.parse_args()
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
