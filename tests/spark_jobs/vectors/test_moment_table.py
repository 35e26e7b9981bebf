"""Moments as NumPy, whatever files they lie in."""

from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from spark_jobs.vectors.moment_table import MomentFiles

NOON, ONE = (datetime(1998, 3, 1, hour, tzinfo=UTC) for hour in (12, 13))


def test_moments_are_read_oldest_first_then_by_user_and_row_number(tmp_path: Path):
    days = {
        "second": [("ann", ONE, 7)],
        "first": [("cyd", NOON, 1), ("bob", NOON, 3), ("bob", NOON, 2)],
        "empty": [],
    }
    for name, moments in days.items():
        (tmp_path / name).mkdir()
        users, times, numbers = zip(*moments, strict=True) if moments else ((), (), ())
        columns = {
            "user_id": pa.array(users, pa.string()),
            "event_time": pa.array(times, pa.timestamp("us", "UTC")),
            "row_number": pa.array(numbers, pa.int64()),
            "item_id": pa.array(["a"] * len(moments), pa.string()),
            "history_item_ids": pa.array([["b"]] * len(moments), pa.list_(pa.string())),
        }
        pq.write_table(pa.table(columns), tmp_path / name / "part-0.parquet")

    rows = MomentFiles(tuple(tmp_path / name for name in days), tmp_path, "content").read()

    ordered = zip(rows["user_id"].to_pylist(), rows["row_number"].to_pylist(), strict=True)
    assert list(ordered) == [("bob", 2), ("bob", 3), ("cyd", 1), ("ann", 7)]
