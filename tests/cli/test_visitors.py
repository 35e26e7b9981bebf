"""The demo's visitors ask the real application, once, and leave rows that name them as the demo's."""

import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cli.visitors import EXPERIMENT, draw_outcomes, num_outcomes, num_visits, visit
from grasp import partitions, tables
from grasp.partitions import Content
from grasp.versions import Versions
from serving.lookup.online_store import UserStore
from serving.releases.buckets import read_experiment
from serving.releases.publication import choose_model, publish
from serving.rollout import experiment

DAY = "1998-03-01"
ITEMS = [f"i{number}" for number in range(12)]


class NobodyStore(UserStore):
    """An online store without users: every visitor is shown what is popular."""

    def rows(self, user_ids):
        return [None] * len(user_ids)


def write_partition(settings, table, rows: pa.Table) -> None:
    folder = partitions.partition_path(settings.lake, table, Versions(settings).of(table.versioned_by), DAY)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "part-0.parquet").unlink(missing_ok=True)  # a release holds a link to the file that was there
    pq.write_table(rows, folder / "part-0.parquet")
    partitions.write_content(folder, Content(rows.num_rows, f"{rows.num_rows}:test"))


@pytest.fixture
def publish_items(settings):
    """`publish_items("Title")`: a release without a model; every title begins with the mark."""

    def put(mark: str) -> str:
        vectors = pa.array(list(np.eye(len(ITEMS), 16, dtype=np.float32)), pa.list_(pa.float32()))
        titles = {"item_id": ITEMS, "title": [f"{mark} {item}" for item in ITEMS]}
        features = {
            "popularity": pa.array(range(len(ITEMS), 0, -1), pa.int64()),
            "semantic_embedding": vectors,
            "neighbour_embedding": vectors,
            "neighbour_ids": [[item] for item in ITEMS],
            "neighbour_similarities": pa.array([[0.5]] * len(ITEMS), pa.list_(pa.float32())),
            "description": ITEMS,
            "source": ["facts"] * len(ITEMS),
            "is_tail": pa.array([0] * len(ITEMS), pa.int64()),
            "feature_version": [Versions(settings).feature] * len(ITEMS),
        }
        no_attributes = pa.array([[]] * len(ITEMS), pa.map_(pa.string(), pa.string()))
        write_partition(settings, tables.ITEM_FEATURES, pa.table(titles | features))
        write_partition(settings, tables.ITEMS, pa.table(titles | {"attributes": no_attributes}))
        users = pa.table({"user_id": [f"u{number}" for number in range(40)]})
        write_partition(settings, tables.USER_FEATURES, users)
        return publish(settings, DAY, choose_model(settings, None, None)).release_id

    return put


def rows_of(settings, table) -> list[dict]:
    folders = [partitions.table_path(settings.lake, table, None)]
    return [row for file in folders[0].glob("**/*.parquet") for row in pq.ParquetFile(Path(file)).read().to_pylist()]


def test_visitors_leave_requests_outcomes_and_an_experiment_that_has_ended(settings, publish_items):
    before, in_force = publish_items("Old"), publish_items("New")
    visit(settings, DAY, lambda *_: NobodyStore())

    served = rows_of(settings, tables.SERVED_REQUESTS)
    assert len(served) == num_visits(settings) == 42
    assert all(row["request_id"].startswith("demo-") and row["experiment"] == EXPERIMENT for row in served)
    assert {(row["bucket"], row["release_id"]) for row in served} == {("candidate", before), ("control", in_force)}
    assert read_experiment(settings.releases) is None, "everybody gets the release in force again"

    told = rows_of(settings, tables.OUTCOMES)
    assert len(told) == num_outcomes(settings) > 0
    shown = {row["request_id"]: row["item_ids"] for row in served}
    assert all(row["item_id"] in shown[row["request_id"]] for row in told)

    visit(settings, DAY, lambda *_: NobodyStore())
    assert num_visits(settings) == 42, "a second demo adds nothing"


def test_the_experiment_of_a_demo_that_was_killed_is_stopped(settings, publish_items):
    before, _ = publish_items("Old"), publish_items("New")
    experiment.start(settings, EXPERIMENT, before, 0.5)
    visit(settings, DAY, lambda *_: NobodyStore())
    assert read_experiment(settings.releases) is None
    assert num_visits(settings) == 42


def test_nobody_visits_while_somebody_else_s_experiment_runs(settings, publish_items):
    before, _ = publish_items("Old"), publish_items("New")
    theirs = experiment.start(settings, "theirs", before, 0.5)
    visit(settings, DAY, lambda *_: NobodyStore())
    assert read_experiment(settings.releases) == theirs
    assert num_visits(settings) == 0


def test_one_release_alone_is_asked_without_an_experiment(settings, publish_items):
    publish_items("Only")
    visit(settings, DAY, lambda *_: NobodyStore())
    assert {row["experiment"] for row in rows_of(settings, tables.SERVED_REQUESTS)} == {None}


def test_nobody_visits_where_requests_are_not_logged(settings_with, publish_items):
    publish_items("Only")
    settings = settings_with(log_requests=False)
    visit(settings, DAY, lambda *_: NobodyStore())
    assert num_visits(settings) == num_outcomes(settings) == 0


def test_clicks_are_drawn_near_the_top_and_purchases_follow_clicks():
    lot = random.Random(0)  # noqa: S311
    drawn = [draw_outcomes(f"demo-{number}", ITEMS, lot) for number in range(2000)]
    clicked = [outcomes[0]["item_id"] for outcomes in drawn if outcomes]
    assert 0.25 < len(clicked) / len(drawn) < 0.35
    assert clicked.count("i0") > clicked.count("i1") > clicked.count("i2")
    assert {tuple(outcome["kind"] for outcome in outcomes) for outcomes in drawn} == {
        (),
        ("click",),
        ("click", "purchase"),
    }
