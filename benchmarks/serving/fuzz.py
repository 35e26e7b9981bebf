"""Requests that schemathesis makes up from the OpenAPI document: no answer may be a 5xx or break its own schema."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)
SEED = 0
REQUEST_SECONDS = 60  # a request that takes longer ends the run; schemathesis' own ten are short on a busy machine
NUM_SHOWN = 5  # failures named
SERVER_ERROR = "ServerError"  # type of the failure
FINISHED = (0, 1)  # exit codes: nothing was found, something was found


def fuzz(url: str, num_examples: int) -> dict[str, Any]:
    """Ask a running service in all phases, at most so many made-up cases for each operation.

    Raises `ValueError` with what schemathesis said when it did not finish.
    """
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        file = Path(folder) / "report.json"
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json"]
        options = ["--checks", ",".join(CHECKS), "--max-examples", str(num_examples), "--seed", str(SEED)]
        limit = ["--request-timeout", str(REQUEST_SECONDS)]
        report = ["--report", "json", "--report-json-path", str(file), "--continue-on-failure", "--no-color"]
        done = subprocess.run(
            [*command, *options, *limit, *report], capture_output=True, text=True, check=False, cwd=folder
        )
        if done.returncode not in FINISHED or not file.is_file():
            raise ValueError(f"schemathesis did not finish: {(done.stderr or done.stdout).strip()[-1000:]}")
        return summary(json.loads(file.read_text()))


def summary(report: Mapping[str, Any]) -> dict[str, Any]:
    """What a measurement keeps of schemathesis' JSON report. Raises `ValueError` for a run that was not complete."""
    if not report["complete"] or report["errors"]:
        raise ValueError(f"schemathesis did not finish: {report['stop_reason']}, {report['errors']}")
    failures = report["failures"]
    num_5xx = sum(each["count"] for each in failures if each["type"] == SERVER_ERROR)
    return {
        "version": report["schemathesis_version"],
        "num_operations": report["operations"]["tested"],
        "num_cases": report["test_cases"]["generated"],
        "num_5xx": num_5xx,
        "num_violations": sum(each["count"] for each in failures) - num_5xx,
        "failures": [f"{each['title']}: {', '.join(each['operations'])}" for each in failures[:NUM_SHOWN]],
    }
