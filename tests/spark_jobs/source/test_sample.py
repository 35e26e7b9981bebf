"""A sample is a folder of the contract with complete users, in the source's order, and only their items."""

import gzip
import json
import subprocess
import sys
import time
from collections import Counter

import pytest

from grasp.settings import ROOT
from spark_jobs.source.contract import require_table
from spark_jobs.source.sample import choose_users, count_qualifying, suggest_days, table_rows, write_sample

DAY, START = 86_400, 888_710_400  # 1998-03-01


@pytest.fixture
def folder(tmp_path):
    """Ten users with six interactions each on six days, one user with too few; items 0 to 19."""
    place = tmp_path / "source"
    place.mkdir()
    events = [(f"u{user}", user + step, START + step * DAY) for step in range(6) for user in range(10)]
    lines = ["user_id\titem_id\ttimestamp", *("\t".join(map(str, event)) for event in [*events, ("once", 0, START)])]
    (place / "interactions.tsv.gz").write_bytes(gzip.compress("\n".join([*lines, "broken line"]).encode()))
    items = [{"item_id": number, "title": f"Item {number}", "tags": ["a", "b"]} for number in range(20)]
    (place / "items.jsonl").write_text("\n".join([*map(json.dumps, items), "{broken"]))
    (place / "users.tsv").write_text("user_id\tage\nu1\t20\nonce\t30")
    return place


def test_a_sample_holds_complete_users_and_their_items(folder, tmp_path):
    found = write_sample(folder, tmp_path / "out", num_users=3, seed=0)
    assert (found["users"], found["interactions"]) == (3, 18)
    rows = list(table_rows(require_table(tmp_path / "out", "interactions")))
    users = {row["user_id"] for row in rows}
    assert "once" not in users
    original = [row for row in table_rows(require_table(folder, "interactions")) if row["user_id"] in users]
    assert [(row["user_id"], row["item_id"], row["timestamp"]) for row in rows] == [
        tuple(row.values()) for row in original
    ]
    numbers = [int(row["row_number"]) for row in rows]
    assert numbers == sorted(set(numbers))
    items = list(table_rows(require_table(tmp_path / "out", "items")))
    assert {str(item["item_id"]) for item in items} == {row["item_id"] for row in rows}
    assert items[0]["tags"] == ["a", "b"]


def test_a_folder_whose_users_have_too_few_interactions_says_so(folder, tmp_path):
    (folder / "interactions.tsv.gz").unlink()
    (folder / "interactions.tsv").write_text("user_id\titem_id\ttimestamp\nu1\t1\t888888888\nu2\t1\t888888888\n")
    with pytest.raises(ValueError, match=r"interactions\.tsv: none of its 2 users has 5 interactions"):
        write_sample(folder, tmp_path / "out", num_users=3, seed=0)
    assert not (tmp_path / "out").exists()


def test_the_seed_alone_decides_which_users_are_chosen():
    ten = Counter({f"u{number}": 5 for number in range(10)} | {"few": 4})
    turned = Counter(dict(reversed(ten.items())))
    assert choose_users(ten, 3, seed=0) == choose_users(turned, 3, seed=0) != choose_users(ten, 3, seed=1)
    assert choose_users(ten, 99, seed=0) == set(ten) - {"few"}


def test_the_cutoff_lies_before_the_last_day():
    assert suggest_days([day * DAY for day in range(11)]) == ("1970-01-09", "1970-01-11")
    assert suggest_days([0, DAY, DAY, DAY]) == ("1970-01-01", "1970-01-02")
    with pytest.raises(ValueError, match="fewer than two days"):
        suggest_days([1, 2])


def test_days_that_are_not_over_are_left_out_and_counted(tmp_path):
    of_today, of_2050 = (b"ann\t1\t%d" % seconds for seconds in (time.time(), 2_524_608_000))
    few = [b"bob\t1\t%d" % START] * 4 + [of_today.replace(b"ann", b"bob")]
    folder = write_folder(tmp_path / "source", [*lines_of(), of_today, of_2050, *few])
    found = write_sample(folder, tmp_path / "out", num_users=9, seed=0)
    assert (found["users"], found["interactions"], found["later_interactions"]) == (1, 6, 3)
    assert found["latest"] == "1998-03-06"
    rows = list(table_rows(require_table(tmp_path / "out", "interactions")))
    assert [int(row["timestamp"]) for row in rows] == [START + step * DAY for step in range(6)]


def test_users_qualify_with_five_before_and_one_after_the_cutoff():
    rows = [{"user_id": "a", "timestamp": second} for second in range(5)]
    assert count_qualifying(rows, "1970-01-01") == 0
    assert count_qualifying([*rows, {"user_id": "a", "timestamp": DAY}], "1970-01-01") == 1
    assert count_qualifying([*rows[1:], {"user_id": "a", "timestamp": DAY}], "1970-01-01") == 0


def test_the_last_line_is_json_with_the_days(folder, tmp_path):
    command = [sys.executable, "-m", "spark_jobs.source.sample", str(folder), str(tmp_path / "out"), "--users", "4"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["cutoff"], found["latest"], found["qualifying_users"]) == ("1998-03-05", "1998-03-06", 4)
    assert "left out 1 users with fewer than 5 interactions and 6 because a sample has at most 4 users" in done.stdout
    failed = subprocess.run([*command[:3], "nowhere", "out"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (failed.returncode, "nowhere is not a folder" in failed.stderr) == (1, True)


def test_parquet_times_become_unix_seconds(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    place = tmp_path / "source"
    place.mkdir()
    times = pa.array([START + day * DAY for day in range(5)], pa.timestamp("s"))
    pq.write_table(
        pa.table({"user_id": [7] * 5, "item_id": [1] * 5, "timestamp": times}), place / "interactions.parquet"
    )
    pq.write_table(pa.table({"item_id": [1]}), place / "items.parquet")
    write_sample(place, tmp_path / "out", num_users=1, seed=0)
    rows = list(table_rows(require_table(tmp_path / "out", "interactions")))
    assert [row["timestamp"] for row in rows] == [f"{START + day * DAY}.000000" for day in range(5)]


def write_folder(place, lines, header="user_id\titem_id\ttimestamp", items='{"item_id": 1}'):
    place.mkdir()
    (place / "interactions.tsv").write_bytes(b"\n".join([header.encode(), *lines]))
    (place / "items.jsonl").write_text(items)
    return place


def lines_of(unit=1, user=b"ann"):
    return [b"%s\t1\t%d" % (user, (START + step * DAY) * unit) for step in range(6)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lines": lines_of(), "header": "user\titem\tts"}, "user_id, item_id, timestamp is missing; its columns are"),
        ({"lines": []}, r"interactions\.tsv holds no rows"),
        ({"lines": lines_of(), "items": ""}, r"items\.jsonl: column item_id is missing"),
        ({"lines": [b"\t1\t5"]}, "no row can be read and has a value for each of user_id, item_id, timestamp"),
        ({"lines": lines_of(1000)}, "timestamp '888710400000' is not in unix seconds, but in milliseconds: divide"),
        ({"lines": lines_of(10**9)}, "but in nanoseconds"),
        ({"lines": [b"ann\t1\t1998-03-01T10:00"] * 6}, "timestamp '1998-03-01T10:00' is not in unix seconds$"),
        ({"lines": lines_of()[:4]}, "users has 5 interactions"),
        ({"lines": [b"ann\t1\t2524608000"] * 6}, "all 6 interactions are of today or later"),
        ({"lines": lines_of(), "items": '{"item_id": "2"}'}, "holds none of the items of interactions.tsv, such"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_folder_is_said(tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        write_sample(write_folder(tmp_path / "source", **given), tmp_path / "out", num_users=9, seed=0)


def test_ids_pass_into_the_sample_unchanged_or_not_at_all(tmp_path):
    lines = [line for user in (b"x", b" x", b"ren\xe9", b"ren\xe8") for line in lines_of(user=user)]
    found = write_sample(write_folder(tmp_path / "source", lines), tmp_path / "out", num_users=9, seed=0)
    rows = list(table_rows(require_table(tmp_path / "out", "interactions")))
    assert (found["users"], {row["user_id"] for row in rows}) == (2, {"x", " x"})

    numbers = [b'{"user_id": 1e3, "item_id": 1, "timestamp": %d}' % (START + step * DAY) for step in range(6)]
    folder = write_folder(tmp_path / "json", [])
    (folder / "interactions.tsv").unlink()
    (folder / "interactions.jsonl").write_bytes(b"\n".join(numbers))
    write_sample(folder, tmp_path / "out", num_users=9, seed=0)
    assert {row["user_id"] for row in table_rows(require_table(tmp_path / "out", "interactions"))} == {"1e3"}
