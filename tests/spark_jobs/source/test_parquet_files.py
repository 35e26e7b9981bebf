"""Parquet files are read by their own schemas, in the order of their names; inexact columns are refused by name."""

import re
from datetime import date, datetime
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from grasp.categories import categories_of
from spark_jobs.source.contract import SourceError, require_table
from spark_jobs.source.parquet_files import plan_parquet, read_parquet

TIMES = np.array([1700000001, 1700000002, 1700000003])


def write(folder, name, **columns):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), folder / name)


def plan_of(folder, name):
    return plan_parquet(require_table(folder, name))


def rows(plan):
    found = [row for split in plan.splits for row in read_parquet(plan, split)]
    assert len(found) == plan.num_rows
    return sorted(found, key=lambda row: row.position)


def fields(folder, name):
    return [row.fields for row in rows(plan_of(folder, name))]


def test_files_are_read_in_name_order_with_their_own_row_numbers(tmp_path):
    folder = tmp_path / "a source"
    times = pa.array([datetime(1998, 3, 1), datetime(1998, 3, 1, 0, 0, 1, 500_000)], pa.timestamp("us", "UTC"))
    for name, user in (("part 2.parquet", 2), ("part 1.parquet", 1)):
        write(folder, f"interactions.parquet/{name}", user_id=[user, user], item_id=["a", None], timestamp=times)
    found = rows(plan_of(folder, "interactions"))
    assert [row.fields["user_id"] for row in found] == ["1", "1", "2", "2"]
    assert found[0].fields == {"user_id": "1", "item_id": "a", "timestamp": "888710400.000000"}
    assert found[1].fields == {"user_id": "1", "timestamp": "888710401.500000"}
    assert [row.source_row for row in found] == [1, 2, 1, 2]
    assert found[2].source_file == "interactions.parquet/part 2.parquet"


def test_row_groups_are_read_apart_and_counted_together(tmp_path):
    pq.write_table(pa.table({"user_id": list(range(10))}), tmp_path / "users.parquet", row_group_size=3)
    plan = plan_of(tmp_path, "users")
    assert len(plan.splits) == 4
    assert [(row.source_row, row.fields["user_id"]) for row in rows(plan)] == [(n + 1, str(n)) for n in range(10)]


@pytest.mark.parametrize(
    ("times", "text"),
    [
        (TIMES, "1700000001"),
        (TIMES.astype("float64"), "1700000001.0"),
        (pa.array(TIMES * 10**9, pa.timestamp("ns")), "1700000001.000000"),
        (pa.array([Decimal("1700000001.25")] * 3), "1700000001.25"),
        (pa.array(["1700000001"] * 3).dictionary_encode(), "1700000001"),
        (pa.array([date(2023, 11, 14)] * 3), "1699920000.000000"),
        (pa.array([-1_500_000] * 3, pa.timestamp("us")), "-1.500000"),
    ],
)
def test_times_keep_their_value(tmp_path, times, text):
    write(tmp_path, "interactions.parquet", user_id=[1, 2, 3], item_id=[1, 2, 3], timestamp=times)
    assert fields(tmp_path, "interactions")[0]["timestamp"] == text


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("timestamp", TIMES.astype("float32"), "timestamp is float, which does not hold it exactly; write whole unix"),
        ("timestamp", [True, False, True], "timestamp is bool"),
        ("user_id", [1.0, None, 3.0], "user_id is double, which does not hold it exactly; write text or whole numbers"),
        ("item_id", [["a"], ["b"], []], "item_id is list"),
    ],
)
def test_a_column_that_loses_values_is_refused_by_name(tmp_path, column, values, message):
    columns = {"user_id": [1, 2, 3], "item_id": [1, 2, 3], "timestamp": TIMES} | {column: values}
    write(tmp_path, "interactions.parquet", **columns)
    with pytest.raises(SourceError, match=rf"interactions\.parquet: {message}"):
        plan_of(tmp_path, "interactions")


def test_a_column_of_the_second_file_alone_is_read(tmp_path):
    write(tmp_path, "items.parquet/1.parquet", item_id=["a"])
    write(tmp_path, "items.parquet/2.parquet", item_id=["b"], genre=["Drama"])
    assert fields(tmp_path, "items") == [{"item_id": "a"}, {"item_id": "b", "genre": "Drama"}]


def test_a_row_number_of_the_second_file_alone_is_read(tmp_path):
    columns = {"user_id": [1], "item_id": [1], "timestamp": TIMES[:1]}
    write(tmp_path, "interactions.parquet/1.parquet", **columns)
    write(tmp_path, "interactions.parquet/2.parquet", **columns, row_number=[7], note=["ignored"])
    known = {"user_id": "1", "item_id": "1", "timestamp": "1700000001"}
    assert fields(tmp_path, "interactions") == [known, known | {"row_number": "7"}]


def test_ids_of_two_types_are_one_line_that_names_the_file(tmp_path):
    write(tmp_path, "users.parquet/1.parquet", user_id=[7])
    write(tmp_path, "users.parquet/2.parquet", user_id=["007"])
    with pytest.raises(
        SourceError, match=r"2\.parquet: user_id is text, but in .*1\.parquet it is a whole number"
    ) as it:
        plan_of(tmp_path, "users")
    assert "\n" not in str(it.value)


def test_values_of_folders_are_text(tmp_path):
    for user in ("007", "7", "a%20b"):
        write(tmp_path, f"interactions.parquet/user_id={user}/x.parquet", item_id=[1], timestamp=TIMES[:1])
    assert [each["user_id"] for each in fields(tmp_path, "interactions")] == ["007", "7", "a b"]


def test_a_folder_for_each_day_says_which_days_are_there(tmp_path):
    columns = {"user_id": [1, 2], "item_id": [1, 2], "timestamp": TIMES[:2]}
    for day in ("1998-02-19", "1998-02-20"):
        write(tmp_path, f"interactions.parquet/day={day}/x.parquet", **columns)
    plan = plan_of(tmp_path, "interactions")
    assert plan.days == {"1998-02-19": 2, "1998-02-20": 2}
    assert [split.day for split in plan.splits] == ["1998-02-19", "1998-02-20"]
    assert [row.position for row in rows(plan)] == [1, 1, 2, 2]  # whatever days come with it
    write(tmp_path, "interactions.parquet/y.parquet", **columns)
    plan = plan_of(tmp_path, "interactions")
    assert (plan.days, [split.day for split in plan.splits]) == (None, [None] * 3)


@pytest.mark.parametrize("name", ["items", "users"])
def test_the_order_of_items_and_users_is_that_of_all_their_files(tmp_path, name):
    key = f"{name[:-1]}_id"
    for day, colour in (("1998-02-19", "red"), ("1998-02-20", "blue")):
        write(tmp_path, f"{name}.parquet/day={day}/x.parquet", **{key: [1], "colour": [colour]})
    plan = plan_of(tmp_path, name)
    found = rows(plan)
    assert [row.fields["colour"] for row in found] == ["red", "blue"]
    assert found[0].position < found[1].position
    assert plan.days is None


def test_every_visible_file_is_read_whatever_its_name(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    write(elsewhere, "d.parquet", user_id=[4])
    for number, name in enumerate(("000000_0", "a.parquet", "b.PARQUET"), start=1):
        write(tmp_path, f"users.parquet/{name}", user_id=[number])
    (tmp_path / "users.parquet" / "c").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(tmp_path / "users.parquet")
    write(tmp_path, "users.parquet/_source=web/e.parquet", user_id=[0])  # a column, as for Spark
    assert [each["user_id"] for each in fields(tmp_path, "users")] == ["1", "0", "2", "3", "4"]


def test_hidden_and_unfinished_files_are_not_read(tmp_path):
    write(tmp_path, "users.parquet/a.parquet", user_id=[1])
    for name in ("_temporary/0/b.parquet", ".staging/b.parquet", "_SUCCESS", "_metadata", ".a.parquet.crc"):
        (tmp_path / "users.parquet" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "users.parquet" / name).write_text("")
    assert fields(tmp_path, "users") == [{"user_id": "1"}]


@pytest.mark.parametrize("name", ["part-1.csv", "b.parquet.crc", "gone.parquet"])
def test_a_visible_file_that_is_no_parquet_is_refused_by_name(tmp_path, name):
    write(tmp_path, "users.parquet/a.parquet", user_id=[1])
    file = tmp_path / "users.parquet" / name
    if name == "gone.parquet":
        file.symlink_to(tmp_path / "nowhere")
    else:
        file.write_text("user_id\n")
    with pytest.raises(SourceError, match=rf"users\.parquet/{re.escape(name)} is not a parquet file"):
        plan_of(tmp_path, "users")


def test_a_row_group_that_cannot_be_read_is_named(tmp_path):
    write(tmp_path, "users.parquet", user_id=[1, 2, 3])
    file = tmp_path / "users.parquet"
    content, start = file.read_bytes(), pq.ParquetFile(file).metadata.row_group(0).column(0).data_page_offset
    file.write_bytes(content[:start] + b"\xff" * 20 + content[start + 20 :])
    plan = plan_of(tmp_path, "users")
    with pytest.raises(SourceError, match=r"users\.parquet is damaged: "):
        rows(plan)
    file.unlink()
    with pytest.raises(SourceError, match=r"users\.parquet is not a parquet file: .*No such file"):
        rows(plan)


def test_text_that_is_not_utf_8_is_one_unreadable_row(tmp_path):
    offsets, content = np.array([0, 4, 8, 9], "int32"), b"ren\xe9ren\xe8a"
    text = pa.Array.from_buffers(pa.string(), 3, [None, pa.py_buffer(offsets), pa.py_buffer(content)])
    write(tmp_path, "users.parquet", user_id=text)
    found = rows(plan_of(tmp_path, "users"))
    assert [row.fields for row in found] == [None, None, {"user_id": "a"}]
    assert len({row.record for row in found}) == 3


def test_lists_and_objects_of_facts_become_text(tmp_path):
    size = [{"w": 1.5, "unit": "m"}]
    write(
        tmp_path, "items.parquet", item_id=[1], tags=[["x", None, "y"]], size=size, raw=[b"bytes"], price=[float("nan")]
    )
    assert fields(tmp_path, "items") == [
        {"item_id": "1", "tags": "x, y", "size": '{"w":1.5,"unit":"m"}', "raw": "bytes"}
    ]


def test_maps_become_objects_at_any_depth(tmp_path):
    text = pa.map_(pa.string(), pa.string())
    pairs = [("color", "red"), ("fit", None)]
    columns = {
        "item_id": [1, 2],
        "facts": pa.array([pairs, None], text),
        "sizes": pa.array([[[("w", 1)], [("h", 2)]], []], pa.list_(pa.map_(pa.string(), pa.int64()))),
        "nested": pa.array([{"m": [("a", [(7, 8)])]}, None],
                           pa.struct([("m", pa.map_(pa.string(), pa.map_(pa.int64(), pa.int64())))])),
    }  # fmt: skip
    write(tmp_path, "items.parquet", **columns)
    first, second = fields(tmp_path, "items")
    assert first == {
        "item_id": "1",
        "facts": '{"color":"red","fit":null}',
        "sizes": '{"w":1}, {"h":2}',
        "nested": '{"m":{"a":{"7":8}}}',
    }
    assert second == {"item_id": "2"}
    assert [categories_of(value) for name, value in first.items() if name != "item_id"] == [[], [], []]


def test_a_map_that_names_something_twice_is_one_unreadable_row(tmp_path):
    pairs = pa.array([[("a", "x"), ("a", "y")], [("a", "x")]], pa.map_(pa.string(), pa.string()))
    write(tmp_path, "items.parquet", item_id=[1, 2], facts=pairs)
    assert fields(tmp_path, "items") == [None, {"item_id": "2", "facts": '{"a":"x"}'}]


@pytest.mark.parametrize("content", [b"item_id\n", b"PAR1 cut"])
def test_a_file_that_is_no_parquet_is_named(tmp_path, content):
    (tmp_path / "items.parquet").write_bytes(content)
    with pytest.raises(SourceError, match=r"items\.parquet is not a parquet file"):
        plan_of(tmp_path, "items")
