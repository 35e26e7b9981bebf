"""Every format is read with the same columns and in the source's order. Errors name the file."""

import gzip
import json
from datetime import datetime

import pytest

from spark_jobs.source.reader import SourceError, SourceTable, find_table, read_table, require_table

INTERACTIONS = "user_id\titem_id\ttimestamp\nu\ta\t5\nu\tb\t5\n"


def folder_with(tmp_path, **files):
    for name, content in files.items():
        (tmp_path / name.replace("__", ".")).write_bytes(content if isinstance(content, bytes) else content.encode())
    return tmp_path


def rows(spark, table):
    return [(row.source_row, row.fields) for row in read_table(spark, table).orderBy("position").collect()]


def test_a_missing_folder_says_how_to_get_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="GRASP_SOURCE"):
        find_table(tmp_path / "nowhere", "items")


def test_a_missing_table_says_what_is_there(tmp_path):
    folder = folder_with(tmp_path, items__tsv="item_id\n")
    assert find_table(folder, "users") is None
    with pytest.raises(SourceError, match=r"holds no interactions .* it holds items\.tsv"):
        require_table(folder, "interactions")


def test_an_unknown_format_and_a_second_file_are_refused(tmp_path):
    folder = folder_with(tmp_path, items__csv="item_id\n")
    with pytest.raises(SourceError, match=r"items\.csv: format \.csv is not one of \.tsv"):
        find_table(folder, "items")
    folder_with(tmp_path, items__tsv="item_id\n")
    with pytest.raises(SourceError, match=r"items twice: items\.csv, items\.tsv"):
        find_table(folder, "items")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("interactions.tsv", "user_id\titem\tts\n", "item_id, timestamp is missing; its columns are user_id, item"),
        ("interactions.tsv", "user_id,item_id,timestamp\n", "column user_id, item_id, timestamp is missing"),
        ("interactions.tsv", "", "its columns are none"),
        ("interactions.jsonl", '{"user_id": 1}\nno json\n[1]\n', "column item_id, timestamp is missing"),
        ("items.tsv", "item_id\ttitle\ttitle\n", "a column appears twice"),
        ("items.tsv.gz", "item_id\n", "not a complete gzip"),
        ("items.parquet", "item_id\n", "not a parquet file"),
    ],
)  # fmt: skip
def test_a_file_that_breaks_the_contract_is_named(tmp_path, name, content, message):
    folder_with(tmp_path, **{name.replace(".", "__"): content})
    with pytest.raises(SourceError, match=message) as caught:
        read_table(None, find_table(tmp_path, name.split(".")[0]))
    assert name in str(caught.value)


@pytest.mark.spark
def test_tsv_lines_keep_their_number_and_broken_lines_are_kept(tmp_path, spark):
    text = 'item_id\ttitle\tyear\r\n1\t "Heat" \t1995\r\n\r\n2\tlost\n3\t\t\n'
    folder = folder_with(tmp_path, items__tsv__gz=gzip.compress(text.encode()))
    table = require_table(folder, "items")
    assert rows(spark, table) == [
        (1, {"item_id": "1", "title": '"Heat"', "year": "1995"}),
        (3, None),
        (4, {"item_id": "3"}),
    ]
    broken = read_table(spark, table).where("fields is null").first()
    assert (broken.source_file, json.loads(broken.record)) == ("items.tsv.gz", {"line": "2\tlost"})


@pytest.mark.spark
def test_json_lines_become_text_and_lists_are_joined(tmp_path, spark):
    lines = ['{"item_id": 7, "title": "[REC]", "brands": ["a", "b"], "price": null, "new": true}', "{broken"]
    folder = folder_with(tmp_path, items__jsonl="\n".join(lines))
    expected = {"item_id": "7", "title": "[REC]", "brands": "a, b", "new": "true"}
    assert rows(spark, require_table(folder, "items")) == [(1, expected), (2, None)]


@pytest.mark.spark
def test_a_file_that_spark_splits_keeps_its_order(tmp_path, spark):
    folder = folder_with(tmp_path, users__tsv="user_id\n" + "".join(f"{number}\n" for number in range(1, 2001)))
    before = spark.conf.get("spark.sql.files.maxPartitionBytes")
    spark.conf.set("spark.sql.files.maxPartitionBytes", "1000")
    try:
        found = rows(spark, require_table(folder, "users"))
    finally:
        spark.conf.set("spark.sql.files.maxPartitionBytes", before)
    assert found == [(number, {"user_id": str(number)}) for number in range(1, 2001)]


@pytest.mark.spark
def test_parquet_files_are_read_in_name_order(tmp_path, spark):
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = tmp_path / "a source"
    place = folder / "interactions.parquet"
    place.mkdir(parents=True)
    times = pa.array([datetime(1998, 3, 1), datetime(1998, 3, 1, 0, 0, 1, 500_000)], pa.timestamp("us", "UTC"))
    for name, user in (("part 2.parquet", 2), ("part 1.parquet", 1)):
        columns = {"user_id": [user, user], "item_id": ["a", None], "timestamp": times, "tags": [["x", "y"], []]}
        pq.write_table(pa.table(columns), place / name)
    found = read_table(spark, require_table(folder, "interactions")).orderBy("position").collect()
    assert [row.fields["user_id"] for row in found] == ["1", "1", "2", "2"]
    assert found[0].fields == {"user_id": "1", "item_id": "a", "timestamp": "888710400.000000", "tags": "x, y"}
    assert found[1].fields == {"user_id": "1", "timestamp": "888710401.500000"}
    assert [row.source_row for row in found] == [1, 2, 1, 2]
    assert [found[0].source_file, found[2].source_file] == [
        "interactions.parquet/part 1.parquet",
        "interactions.parquet/part 2.parquet",
    ]


@pytest.mark.spark
def test_parquet_that_spark_cannot_read_is_named(tmp_path, spark):
    import pyarrow as pa
    import pyarrow.parquet as pq

    times = pa.array([0], pa.timestamp("ns"))
    pq.write_table(pa.table({"user_id": [1], "item_id": [1], "timestamp": times}), tmp_path / "interactions.parquet")
    with pytest.raises(SourceError, match=r"interactions\.parquet cannot be read.*microseconds"):
        read_table(spark, SourceTable("interactions", tmp_path / "interactions.parquet", "parquet"))
