"""Which users stand for all of a store, and when a store counts as emptied."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from grasp import partitions, tables
from serving.lookup.known_users import NUM_KNOWN, KnownUsers, some_users

DAY = "1998-03-01"


@pytest.fixture
def place(tmp_path):
    folder = partitions.partition_path(tmp_path, tables.USER_FEATURES, "v1", DAY)
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize(("num_files", "group_size"), [(1, 1000), (1, 10), (20, 1000)])
def test_users_are_taken_from_all_parts_of_the_day(place, tmp_path, num_files, group_size):
    for number in range(num_files):
        users = [f"{100 * number + each:05d}" for each in range(100)]
        pq.write_table(pa.table({"user_id": users}), place / f"part-{number:03d}.parquet", row_group_size=group_size)

    found = [int(each) for each in some_users(tmp_path, "v1", DAY)]

    assert len(found) == NUM_KNOWN
    assert found[0] < 20 * num_files and found[-1] >= 60 * num_files


def test_a_small_day_and_a_lake_that_cannot_be_read_give_fewer(place, tmp_path, caplog):
    assert some_users(tmp_path / "elsewhere", "v1", DAY) == []
    pq.write_table(pa.table({"user_id": ["u1", "u2"]}), place / "part-0.parquet")
    assert some_users(tmp_path, "v1", DAY) == ["u1", "u2"]
    (place / "part-0.parquet").write_text("ruined")
    assert some_users(tmp_path, "v1", DAY) == []
    assert "cannot be read from the lake" in caplog.text


def test_a_store_is_emptied_when_most_are_gone_and_filled_when_nearly_all_are_back():
    known, states = KnownUsers(), []
    for num_missing in (0, 2, 3, 5, 3, 2, 1):
        known.note("v1", [None] * num_missing + [object()] * (5 - num_missing))
        states.append(known.is_emptied("v1"))

    assert states == [False, False, True, True, True, True, False]
    assert not known.is_emptied("v2")


@pytest.mark.parametrize(
    ("num_known", "rows", "is_emptied"), [(1, [None], True), (2, [None, 1], False), (0, [], False)]
)
def test_few_known_users_are_enough(num_known, rows, is_emptied):
    known = KnownUsers()
    for _ in range(2):
        known.note("v1", rows)
        assert known.is_emptied("v1") == is_emptied
    known.note("v1", [1] * num_known)
    assert not known.is_emptied("v1")


def test_the_first_users_are_known_once():
    known = KnownUsers()
    known.add("v1", ["a", "a"])
    known.add("v1", [str(number) for number in range(9)])

    assert known.of("v1") == ["a", "0", "1", "2", "3"]
    assert known.of("v2") == []


def test_the_users_of_another_day_replace_those_known_before():
    known = KnownUsers()
    known.add("v1", ["a", "b"])
    known.add("v2", ["c"])

    known.replace("v1", [str(number) for number in range(9)])

    assert known.of("v1") == ["0", "1", "2", "3", "4"]
    assert known.of("v2") == ["c"]
