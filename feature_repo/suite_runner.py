"""Run Great Expectations suites over measured tables as one checkpoint. No other code opens its projects.

The checkpoint's actions write the report and log what failed. Great Expectations' own pages load scripts and styles
from foreign hosts, so they are not rendered. The project keeps suites, checkpoints and every result:

    context = gx.get_context(mode="file", project_root_dir=GRASP_DATA_DOCS)
"""

import contextlib
import io
import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import great_expectations as gx
import numpy as np
import pandas as pd
from great_expectations.checkpoint.actions import ActionContext, ValidationAction
from great_expectations.datasource.fluent import PandasDatasource

from feature_repo.quality_report import FAILED, PASSED, WARNING, Checked, write_report
from grasp.progress import say

BATCH = "day"
SUMMARY = "_summary"  # ends the name of a suite over a table's summary
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
    """The result of one run; `report` is its page."""

    failed: list[FailedExpectation]
    num_expectations: int
    report: Path


class ReportAction(ValidationAction):  # type: ignore[misc]  # Great Expectations is not typed
    """Write the report's page of a run (`feature_repo/quality_report.py`)."""

    type: Literal["grasp_report"] = "grasp_report"
    folder: str
    run_name: str

    def run(self, checkpoint_result: Any, action_context: ActionContext | None = None) -> dict[str, str]:  # noqa: ARG002
        checked = [_checked(table, each) for table, each in _results(checkpoint_result)]
        return {"page": str(write_report(Path(self.folder), self.run_name, checked))}


class AlertAction(ValidationAction):  # type: ignore[misc]
    """Log every failed expectation, in one line each."""

    type: Literal["grasp_alert"] = "grasp_alert"
    day: str

    def run(self, checkpoint_result: Any, action_context: ActionContext | None = None) -> dict[str, int]:  # noqa: ARG002
        failed = _failed(checkpoint_result)
        for each in failed:
            say(f"quality {self.day}: {'FAILED' if each.is_critical else 'warning'}: {each}")
        return {"num_failed": len(failed)}


Check = tuple[gx.ExpectationSuite, pd.DataFrame]  # a suite and the frame to check


def run_checks(project: Path, kind: str, day: str, checks: list[Check]) -> SuiteResults:
    """Validate every frame with its suite: the checkpoint `kind` of the Great Expectations project below `project`.

    The report keeps earlier runs; a run of the same day and kind replaces its old page.
    """
    context = _open(project)
    run_name = f"{day}-{kind}"
    with tempfile.TemporaryDirectory(dir=project) as folder:
        # All assets at once: each change of a data source rewrites the project's configuration.
        assets = [_asset(Path(folder), suite.name, frame) for suite, frame in checks]
        source = context.data_sources.add_or_update_pandas(datasource=PandasDatasource(name=kind, assets=assets))
        definitions = [
            context.validation_definitions.add_or_update(
                gx.ValidationDefinition(
                    name=suite.name,
                    data=source.get_asset(suite.name).get_batch_definition(BATCH),
                    suite=context.suites.add_or_update(suite),
                )
            )
            for suite, _ in checks
        ]
        report = ReportAction(name="report", folder=str(project), run_name=run_name)
        checkpoint = gx.Checkpoint(
            name=kind,
            validation_definitions=definitions,
            actions=[report, AlertAction(name="alert", day=day)],
            result_format={"result_format": "SUMMARY"},
        )
        result = context.checkpoints.add_or_update(checkpoint).run(run_id=gx.RunIdentifier(run_name=run_name))
    return SuiteResults(_failed(result), len(_results(result)), project / f"{run_name}.html")


def _asset(folder: Path, name: str, frame: pd.DataFrame) -> dict[str, Any]:
    """A checkpoint takes no frames for several suites, so each frame passes through a file for as long as it runs."""
    file = folder / f"{name}.parquet"
    frame.to_parquet(file)
    return {"type": "parquet", "name": name, "path": str(file), "batch_definitions": [{"name": BATCH}]}


def _open(project: Path) -> Any:
    logging.getLogger("great_expectations").setLevel(logging.ERROR)
    project.mkdir(parents=True, exist_ok=True)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints a greeting on first use
        context = gx.get_context(mode="file", project_root_dir=project)
    context.variables.progress_bars = {"globally": False}
    return context


def _results(checkpoint_result: Any) -> list[tuple[str, Any]]:
    """Every expectation's result with its table."""
    return [
        (suite.suite_name.removesuffix(SUMMARY), each)
        for suite in checkpoint_result.run_results.values()
        for each in suite.results
    ]


def _failed(checkpoint_result: Any) -> list[FailedExpectation]:
    return [_failed_expectation(table, each) for table, each in _results(checkpoint_result) if not each.success]


def _failed_expectation(table: str, result: Any) -> FailedExpectation:
    """Describe one failed result. An expectation that could not be computed carries an exception instead."""
    config = result.expectation_config
    return FailedExpectation(
        table=table,
        column=_columns(config),
        expectation=config.type,
        observed=_observed(result),
        meaning=config.description or config.type,
        is_critical=config.severity == "critical",
    )


def _checked(table: str, result: Any) -> Checked:
    config = result.expectation_config
    outcome = PASSED if result.success else FAILED if config.severity == "critical" else WARNING
    meaning = config.description or config.type
    return Checked(table, _columns(config), meaning, _allowed(config.kwargs), _observed(result), outcome)


def _columns(config: Any) -> str:
    columns = [config.kwargs.get(name) for name in ("column", "column_A", "column_B")]
    columns += config.kwargs.get("column_list", [])
    return ",".join(column for column in columns if column)


def _allowed(kwargs: dict[str, Any]) -> str:
    low, high = (_shown(kwargs[name]) if kwargs.get(name) is not None else "" for name in ("min_value", "max_value"))
    if "value_set" in kwargs:
        return ", ".join(map(str, kwargs["value_set"]))
    if low and high:
        return low if low == high else f"{low} to {high}"
    return f"at least {low}" if low else f"at most {high}" if high else ""


def _observed(result: Any) -> str:
    value = result.result.get("observed_value")
    if value is not None:
        return _shown(value)
    num_rows, num_unexpected = result.result.get("element_count"), result.result.get("unexpected_count")
    if num_unexpected:
        examples = [_plain(each) for each in result.result.get("partial_unexpected_list", [])[:NUM_EXAMPLES]]
        return f"{num_unexpected} rows such as {examples}"
    return _why_not_computed(result) if num_rows is None else f"all {num_rows} rows"


def _shown(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _plain(value: Any) -> Any:
    """A Python value instead of NumPy's, which shows its type."""
    return value.item() if isinstance(value, np.generic) else value


def _why_not_computed(result: Any) -> str:
    """The first line of the exception, for example that the column is missing."""
    info = result.exception_info or {}
    messages = [info] if "exception_message" in info else list(info.values())
    texts = [each.get("exception_message") for each in messages if isinstance(each, dict)]
    return next((text.strip().splitlines()[0] for text in texts if text), "nothing")
