"""The service answers whatever its own OpenAPI document lets somebody ask."""

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from benchmarks.serving.fuzz import fuzz
from grasp import partitions, tables
from grasp.settings import Settings
from grasp.versions import Versions
from serving.answers.search import Search
from serving.http.app import create_app
from serving.releases.publication import choose_model, publish

DAY = "1998-03-01"

pytestmark = pytest.mark.integration


class LakeEncoder:
    """Gives a description of the day the vector that the lake has, and any other text the first one."""

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


def test_no_made_up_request_breaks_the_service(url):
    found = fuzz(url, num_examples=3)

    assert found["num_operations"] >= 12
    assert (found["num_5xx"], found["num_violations"]) == (0, 0), found["failures"]
