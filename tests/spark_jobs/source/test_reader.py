"""Spark reads what was planned, each row once; a source says of which days and tables it holds everything."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spark_jobs.source.contract import SourceError, require_table
from spark_jobs.source.reader import Completeness, completeness, plan_table, read_table
from spark_jobs.source.text_files import plan_text


@pytest.mark.spark
def test_each_format_is_read_with_the_same_columns(tmp_path, spark):
    expected = [(1, 1, {"item_id": "1", "title": "Heat"}), (2, 2, None), (3, 3, {"item_id": "3"})]
    for name, content in (
        ("items.tsv", b"item_id\ttitle\n1\tHeat\nlost\n3\t"),
        ("items.jsonl.gz", gzip.compress(b'{"item_id": 1, "title": "Heat"}\n{broken\n{"item_id": "3"}')),
    ):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_bytes(content)
        frame = read_table(spark, plan_table(require_table(folder, "items")))
        assert [(row.source_row, row.position, row.fields) for row in frame.orderBy("position").collect()] == expected
    folder = tmp_path / "parquet"
    folder.mkdir()
    pq.write_table(pa.table({"item_id": [1, 3], "title": ["Heat", None]}), folder / "items.parquet")
    frame = read_table(spark, plan_table(require_table(folder, "items")))
    assert [row.fields for row in frame.orderBy("position").collect()] == [expected[0][2], expected[2][2]]


@pytest.mark.spark
def test_a_divided_file_is_read_once_by_many_tasks(tmp_path, spark):
    (tmp_path / "users.tsv").write_text("user_id\n" + "".join(f"{number}\n" for number in range(1, 2001)))
    plan = plan_text(require_table(tmp_path, "users"), split_bytes=1000)
    found = read_table(spark, plan).orderBy("position").collect()
    assert len(plan.splits) > 5
    assert [(row.source_row, row.fields) for row in found] == [(n, {"user_id": str(n)}) for n in range(1, 2001)]


@pytest.mark.spark
def test_a_table_without_rows_is_read(tmp_path, spark):
    pq.write_table(pa.table({"user_id": pa.array([], pa.string())}), tmp_path / "users.parquet")
    assert read_table(spark, plan_table(require_table(tmp_path, "users"))).count() == 0


def plan_of_days(folder, *days):
    for day in days:
        place = folder / "interactions.parquet" / f"day={day}"
        place.mkdir(parents=True)
        pq.write_table(pa.table({"user_id": [1], "item_id": [1], "timestamp": [1]}), place / "x.parquet")
    return plan_table(require_table(folder, "interactions"))


def test_a_marker_or_folders_of_days_say_what_is_complete(tmp_path):
    plan = plan_of_days(tmp_path, "1998-02-20")
    assert completeness(tmp_path, plan) == Completeness(frozenset({"1998-02-20"}))
    (tmp_path / "complete.json").write_text(json.dumps({"interactions": ["1998-02-27", "1998-03-01"], "items": True}))
    days = frozenset({"1998-02-27", "1998-02-28", "1998-03-01"})
    assert completeness(tmp_path, plan) == Completeness(days, frozenset({"items"}))
    (tmp_path / "complete.json").write_text('{"users": true}')
    assert completeness(tmp_path, plan) == Completeness(frozenset({"1998-02-20"}), frozenset({"users"}))


@pytest.mark.parametrize(
    "said",
    ["", "[]", '{"item": true}', '{"items": "yes"}', '{"interactions": ["1998-02-27"]}', '{"interactions": ["b", "a"]}',
     '{"interactions": ["1998-02-27", "1998-02-26"]}'],
)  # fmt: skip
def test_a_marker_that_says_something_else_is_refused(tmp_path, said):
    plan = plan_of_days(tmp_path, "1998-02-20")
    (tmp_path / "complete.json").write_text(said)
    with pytest.raises(SourceError, match=r"complete\.json is not \{\"interactions\""):
        completeness(tmp_path, plan)
