"""The service answers every request that its OpenAPI document allows."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from grasp import partitions, tables
from grasp.settings import Settings
from grasp.versions import Versions
from serving.answers.search import Search
from serving.http.app import create_app
from serving.releases.publication import choose_model, publish

DAY = "1998-03-01"
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)

pytestmark = pytest.mark.integration


class LakeEncoder:
    """Returns the lake's vector for a description of the day, and the first vector for any other text."""

    def __init__(self, settings: Settings) -> None:
        place = partitions.partition_path(settings.lake, tables.ITEM_FEATURES, Versions(settings).feature, DAY)
        rows = pq.read_table(place / "part-0.parquet").to_pylist()
        self._vectors = {row["description"]: row["semantic_embedding"] for row in rows}

    def encode(self, texts: list[str]) -> np.ndarray:
        first = next(iter(self._vectors.values()))
        return np.array([self._vectors.get(text, first) for text in texts], np.float32)


@pytest.fixture
def url(settings, write_day, make_model, users, run_server) -> str:
    """A server with a release, one user and search."""
    write_day(settings)
    users.users["196"] = replace(users.users["u1"], user_id="196")  # whom the examples of the document ask for
    publish(settings, DAY, choose_model(settings, make_model(settings), None))
    app = create_app(settings, lambda *_: users, search=Search(settings, LakeEncoder))
    return f"http://127.0.0.1:{run_server(app)}"


def fuzz(url: str, folder: Path, num_examples: int) -> dict[str, Any]:
    """The report of schemathesis, all phases, with at most `num_examples` made-up cases for each operation."""
    file = folder / "report.json"
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json", "--checks", ",".join(CHECKS)]
    # A slower request ends the run; schemathesis' default of 10 s is short on a busy machine.
    limits = ["--max-examples", str(num_examples), "--seed", "0", "--request-timeout", "60", "--continue-on-failure"]
    report = ["--report", "json", "--report-json-path", str(file), "--no-color"]
    done = subprocess.run([*command, *limits, *report], capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode in (0, 1), done.stderr or done.stdout  # 1: something was found
    found: dict[str, Any] = json.loads(file.read_text())
    assert found["complete"] and not found["errors"], found["stop_reason"]
    return found


def test_no_generated_request_breaks_the_service(url, tmp_path):
    found = fuzz(url, tmp_path, num_examples=3)

    assert found["operations"]["tested"] >= 12
    assert not found["failures"]
