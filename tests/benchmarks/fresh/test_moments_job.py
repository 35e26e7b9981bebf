"""The benchmark of find_moments in small, and the shop that it makes up."""

import json
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest

from benchmarks.fresh.made_up_shop import Size, interactions, write_day, write_items
from benchmarks.fresh.moments_job import MadeUpEncoder, jobs, share_of_moments
from grasp import stages
from grasp.settings import ROOT

SMALL = Size(num_users=2_000, num_items=500, num_days=20, num_a_day=900)


def test_every_user_joins_once_and_a_few_items_sell_often():
    days = [interactions(SMALL, number) for number in range(SMALL.num_days)]
    users, items = (np.concatenate([day[part] for day in days]) for part in (0, 1))
    assert np.unique(users).tolist() == list(range(2_000))
    assert [day[0].max() for day in days] == [100 * (number + 1) - 1 for number in range(20)]
    assert 700 < len(days[-1][0]) < 1_100
    assert items.min() >= 0 and items.max() < 500
    assert (items < 50).mean() > 0.4
    assert all((again == first).all() for again, first in zip(interactions(SMALL, 7), days[7], strict=True))


def test_a_shop_is_a_folder_of_the_data_contract(tmp_path):
    write_items(tmp_path, SMALL)
    num_rows = write_day(tmp_path, SMALL, 19, "2026-01-05")
    rows = pq.ParquetFile(tmp_path / "interactions.parquet/day=2026-01-05/part-0.parquet").read()
    assert rows.num_rows == num_rows
    assert rows.column_names == ["user_id", "item_id", "timestamp", "row_number"]
    assert 1_767_571_200 <= min(rows["timestamp"].to_pylist()) < 1_767_571_200 + 86_400
    assert pq.ParquetFile(tmp_path / "items.parquet").read()["item_id"].to_pylist()[-1] == "i499"


def test_equal_texts_have_equal_unit_vectors():
    vectors = MadeUpEncoder().encode(["a", "b", "a"])
    assert vectors[0].tolist() == vectors[2].tolist() != vectors[1].tolist()
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1)


def test_all_spark_jobs_are_measured_in_their_order():
    assert list(jobs()) == [stage.name for stage in stages.STAGES.values() if stage.code == "spark_jobs"]


def test_the_share_is_that_of_all_jobs():
    assert share_of_moments({"cpu_seconds": {"ingest": 30.0, "find_moments": 10.0}}) == 0.25


@pytest.mark.spark
def test_a_small_day_is_measured(environment, tmp_path):
    size = ("--users", "60", "--items", "40", "--days", "40", "--a-day", "30")
    command = [sys.executable, "-m", "benchmarks.fresh.moments_job", "--out", str(tmp_path / "out"), *size]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    measured = json.loads((tmp_path / "out" / "measurements.jsonl").read_text())
    found = measured["found"]
    assert found["cpu_seconds"].keys() == jobs().keys()
    assert all(seconds > 0 for seconds in found["cpu_seconds"].values())
    assert 0 < found["num_moments"] <= found["num_interactions_of_window"]
    assert 0 < found["num_asking"] <= 60
    assert found["search_ms"]["alone_p50"] > 0
    assert "processor" in measured["conditions"]["machine"]
