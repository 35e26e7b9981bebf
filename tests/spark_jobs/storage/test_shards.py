"""Shards are complete or absent, and a retried task continues after the last one."""

import pyarrow.parquet as pq
import pytest

from grasp import tables
from spark_jobs.storage.shards import Shards, ShardWriter, arrow_schema


def row(key: str) -> dict[str, object]:
    return dict.fromkeys(tables.ITEM_GENERATION.column_names) | {"generation_key": key, "item_id": key}


@pytest.fixture
def shards(tmp_path):
    return Shards(tables.ITEM_GENERATION, tmp_path / "day=1998-03-01", "abc")


def keys(files):
    return [pq.read_table(file, partitioning=None)["generation_key"].to_pylist() for file in files]


def test_a_full_shard_is_written_at_once(shards):
    writer = ShardWriter(shards, task=3, max_rows=2)
    for key in "abc":
        writer.add(row(key))

    assert keys(shards.files()) == [["a", "b"]]
    assert shards.num_rows() == 2
    writer.flush()
    assert keys(shards.files(3)) == [["a", "b"], ["c"]]
    assert shards.files(1) == []


def test_a_shard_is_written_after_its_time_limit(shards):
    writer = ShardWriter(shards, task=0, max_seconds=0)
    writer.add(row("a"))

    assert shards.num_rows() == 1


def test_what_was_paid_for_is_kept_when_the_task_fails(shards):
    with pytest.raises(RuntimeError, match="out of luck"), ShardWriter(shards, task=0) as writer:
        writer.add(row("a"))
        raise RuntimeError("out of luck")

    assert keys(shards.files()) == [["a"]]


def test_a_retried_task_knows_what_it_finished_and_overwrites_nothing(shards):
    with ShardWriter(shards, task=0, max_rows=1) as writer:
        writer.add(row("a"))
        writer.add(row("b"))
    again = ShardWriter(shards, task=0)

    assert again.finished == {"a", "b"}
    assert ShardWriter(shards, task=1).finished == set()
    again.add(row("c"))
    again.flush()
    assert keys(shards.files(0)) == [["a"], ["b"], ["c"]]


def test_two_concurrent_attempts_of_a_task_do_not_overwrite_each_other(shards):
    taken_for_dead, again = ShardWriter(shards, task=0, max_rows=1), ShardWriter(shards, task=0, max_rows=1)
    taken_for_dead.add(row("a"))
    again.add(row("b"))

    assert sorted(keys(shards.files(0))) == [["a"], ["b"]]


def test_a_file_that_a_crash_left_half_written_is_no_shard(shards):
    shards.folder.mkdir()
    (shards.folder / ".abc-00000-00000-1.parquet.tmp").write_bytes(b"half")

    assert shards.files() == []
    assert pq.read_table(shards.folder, schema=arrow_schema(shards.table), partitioning=None).num_rows == 0
