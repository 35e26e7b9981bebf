"""Run Great Expectations suites over measured tables and build the report. No other code opens its projects."""

import contextlib
import io
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import great_expectations as gx
import pandas as pd
from great_expectations.core.batch_definition import BatchDefinition
from great_expectations.data_context.types.resource_identifiers import (
    ExpectationSuiteIdentifier,
    ValidationResultIdentifier,
)
from great_expectations.datasource.fluent import PandasDatasource
from great_expectations.datasource.fluent.pandas_datasource import DataFrameAsset

BATCH = "day"
NUM_EXAMPLES = 3  # unexpected values shown for a failed expectation


@dataclass(frozen=True)
class FailedExpectation:
    """Where an expectation failed, what it says and what was observed."""

    table: str
    column: str
    expectation: str
    observed: str
    meaning: str
    is_critical: bool

    def __str__(self) -> str:
        where = f"{self.table}.{self.column}" if self.column else self.table
        return f"{where}: {self.meaning} ({self.expectation}, observed {self.observed})"


@dataclass(frozen=True)
class SuiteResults:
    """The result of one run; `report` is the first page of the Data Docs."""

    failed: list[FailedExpectation]
    num_expectations: int
    report: str


Check = tuple[str, gx.ExpectationSuite, pd.DataFrame]  # table, suite, the frame to check


def run_checks(project: Path, kind: str, run_name: str, checks: list[Check]) -> SuiteResults:
    """Validate every frame with its suite, in the Great Expectations project below the folder `project`.

    The report keeps the results of earlier runs; a run with the same name replaces its old result. Only this run's
    pages are rendered, so the work does not grow with the report.
    """
    context = _open(project)
    assets = [
        DataFrameAsset(name=suite.name, batch_definitions=[BatchDefinition(name=BATCH)]) for _, suite, _ in checks
    ]
    # All assets at once: each change of a data source rewrites the project's configuration.
    source = context.data_sources.add_or_update_pandas(datasource=PandasDatasource(name=kind, assets=assets))
    failed: list[FailedExpectation] = []
    pages: list[Any] = []
    num_expectations = 0
    for table, suite, frame in checks:
        definition = gx.ValidationDefinition(
            name=suite.name,
            data=source.get_asset(suite.name).get_batch_definition(BATCH),
            suite=context.suites.add_or_update(suite),
        )
        run_id = gx.RunIdentifier(run_name=run_name)
        result = context.validation_definitions.add_or_update(definition).run(
            batch_parameters={"dataframe": frame}, result_format={"result_format": "SUMMARY"}, run_id=run_id
        )
        page = ExpectationSuiteIdentifier(name=suite.name)
        pages += [page, ValidationResultIdentifier(page, run_id, result.batch_id)]
        failed += [_failed_expectation(table, each) for each in result.results if not each.success]
        num_expectations += len(result.results)
    (index,) = context.build_data_docs(resource_identifiers=pages).values()
    return SuiteResults(failed, num_expectations, index.removeprefix("file://"))


def _open(project: Path) -> Any:
    logging.getLogger("great_expectations").setLevel(logging.ERROR)
    project.mkdir(parents=True, exist_ok=True)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints a greeting on first use
        context = gx.get_context(mode="file", project_root_dir=project)
    context.variables.progress_bars = {"globally": False}
    return context


def _failed_expectation(table: str, result: Any) -> FailedExpectation:
    """Describe one failed result. An expectation that could not be computed carries an exception instead."""
    config = result.expectation_config
    columns = [config.kwargs.get(name) for name in ("column", "column_A", "column_B")]
    columns += config.kwargs.get("column_list", [])
    return FailedExpectation(
        table=table,
        column=",".join(column for column in columns if column),
        expectation=config.type,
        observed=_observed(result),
        meaning=config.description or config.type,
        is_critical=config.severity == "critical",
    )


def _observed(result: Any) -> str:
    examples = result.result.get("partial_unexpected_list", [])[:NUM_EXAMPLES]
    if examples:
        return f"{result.result.get('unexpected_count')} rows such as {examples}"
    value = result.result.get("observed_value")
    return _why_not_computed(result) if value is None else str(value)


def _why_not_computed(result: Any) -> str:
    """The first line of the exception, for example that the column is missing."""
    info = result.exception_info or {}
    messages = [info] if "exception_message" in info else list(info.values())
    texts = [each.get("exception_message") for each in messages if isinstance(each, dict)]
    return next((text.strip().splitlines()[0] for text in texts if text), "nothing")
