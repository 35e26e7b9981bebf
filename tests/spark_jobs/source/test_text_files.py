"""TSV and JSON lines: every line has its number, and is read unchanged or not at all."""

import gzip
import json

import pytest

from spark_jobs.source.contract import SourceError, require_table
from spark_jobs.source.text_files import plan_text, read_text, text_lines


def table_of(tmp_path, name, content):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return require_table(tmp_path, name.split(".")[0])


def rows(table, **given):
    plan = plan_text(table, **given)
    found = [row for split in plan.splits for row in read_text(plan, split)]
    assert len(found) == plan.num_rows
    return found


def numbered(table, **given):
    return [(row.source_row, row.fields) for row in rows(table, **given)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("interactions.tsv", "user_id\titem\tts\n", "item_id, timestamp is missing; its columns are user_id, item"),
        ("interactions.tsv", "user_id,item_id,timestamp\n", "column user_id, item_id, timestamp is missing"),
        ("interactions.tsv", "", "its columns are none"),
        ("interactions.tsv", b"user_id\titem_id\ttimestamp\tren\xe9\n", "line 1 is not UTF-8"),
        ("interactions.jsonl", '{"user_id": 1}\nno json\n[1]\n', "column item_id, timestamp is missing"),
        ("items.tsv", "item_id\ttitle\ttitle\n", "a column appears twice"),
        ("items.tsv.gz", "item_id\n", "not a complete gzip"),
        ("items.tsv.gz", gzip.compress(b"item_id\n" + bytes(range(32, 256)))[:-20], "not a complete"),
    ],
)  # fmt: skip
def test_a_file_that_breaks_the_contract_is_named(tmp_path, name, content, message):
    with pytest.raises(SourceError, match=message) as caught:
        plan_text(table_of(tmp_path, name, content))
    assert name in str(caught.value)


def test_tsv_lines_keep_their_number_and_broken_lines_are_kept(tmp_path):
    text = 'item_id\ttitle\tyear\r\n1\t "Heat" \t1995\r\n\r\n2\tlost\n3\t\t \n\t\t\n'
    table = table_of(tmp_path, "items.tsv.gz", gzip.compress(text.encode()))
    assert numbered(table) == [
        (1, {"item_id": "1", "title": ' "Heat" ', "year": "1995"}),
        (3, None),
        (4, {"item_id": "3"}),
        (5, {}),
    ]
    broken = rows(table)[1]
    assert (broken.source_file, json.loads(broken.record)) == ("items.tsv.gz", {"line": "2\tlost"})


def test_json_values_become_text_and_lists_are_joined(tmp_path):
    line = (
        '{"item_id": 7, "title": "[REC]", "brands": ["a", ["b"], null], "price": null, "new": true, "w": {"m": 1.50}}'
    )
    expected = {"item_id": "7", "title": "[REC]", "brands": "a, b", "new": "true", "w": '{"m":1.50}'}
    assert numbered(table_of(tmp_path, "items.jsonl", f"{line}\n{{broken")) == [(1, expected), (2, None)]


@pytest.mark.parametrize("key", [" x", "x", "x ", "1e3", "007", "7.0", "ſ", "é", "e\u0301"])
def test_a_key_passes_unchanged(tmp_path, key):
    written = key if key in ("1e3", "7.0") else json.dumps(key)
    (row,) = rows(table_of(tmp_path, "items.jsonl", f'{{"item_id": {written}}}'))
    assert row.fields == {"item_id": key}
    (row,) = rows(table_of(tmp_path / "", "users.tsv", f"user_id\n{key}\n"))
    assert row.fields == {"user_id": key}


@pytest.mark.parametrize(
    "line",
    [
        b'{"item_id": "ren\xe9"}',
        b'{"item_id": "\\ud800"}',
        b'{"item_id": 1, "item_id": 2}',
        b'{"item_id": ["a"]}',
        b'{"item_id": true}',
        b'{"item_id": 1, "x": ' + b"[" * 1200 + b"]" * 1200 + b"}",
        b'{"item_id": 1, "x": ' + b"9" * 5000 + b"}",
        b"[1]",
    ],
)
def test_a_json_line_that_cannot_be_read_in_one_way_is_one_unreadable_row(tmp_path, line):
    table = table_of(tmp_path, "items.jsonl", b'{"item_id": "a"}\n' + line + b'\n{"item_id": "b"}\n')
    assert numbered(table) == [(1, {"item_id": "a"}), (2, None), (3, {"item_id": "b"})]


def test_bytes_that_are_not_utf_8_are_refused_and_stay_apart(tmp_path):
    found = rows(table_of(tmp_path, "users.tsv", b"user_id\nren\xe9\nren\xe8\n"))
    assert [row.fields for row in found] == [None, None]
    assert [json.loads(row.record)["line"] for row in found] == ["ren\\xe9", "ren\\xe8"]


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path):
    table = table_of(tmp_path, "users.tsv", b"\xef\xbb\xbfuser_id\n1\n2\n")
    assert numbered(table, split_bytes=4) == [(1, {"user_id": "1"}), (2, {"user_id": "2"})]


@pytest.mark.parametrize("split_bytes", [1, 7, 1000, 1 << 20])
def test_a_divided_file_keeps_its_order_and_loses_no_row(tmp_path, split_bytes):
    text = "user_id\n" + "".join(f"{number}\n\n" for number in range(1, 500)) + "500"
    table = table_of(tmp_path, "users.tsv", text)
    assert len(plan_text(table, split_bytes).splits) == max(1, -(-len(text) // split_bytes)) or split_bytes < 1000
    expected = [(number, {"user_id": str((number + 1) // 2)}) for number in range(1, 1000, 2)]
    assert numbered(table, split_bytes=split_bytes) == expected


def test_a_line_of_ids_that_is_not_utf_8_is_named(tmp_path):
    (tmp_path / "inter.txt").write_bytes(b"u 1\nu\xe9 2\n")
    with pytest.raises(SourceError, match=r"inter\.txt, line 2 is not UTF-8"):
        list(text_lines(tmp_path / "inter.txt"))
