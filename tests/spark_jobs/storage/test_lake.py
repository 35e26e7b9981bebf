"""A day is replaced as a whole, only if its content changed, and never by rows without a key."""

import subprocess
import time

import pytest

from grasp import partitions, tables
from grasp.partitions import MissingPartitionError

pytestmark = pytest.mark.spark

ITEMS = "item_id string, title string, attributes map<string,string>"
DAY, NEXT = "1998-03-01", "1998-03-02"


def files(lake, day):
    folder = partitions.partition_path(lake.root, tables.ITEMS, None, day)
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_what_is_written_is_read_back(lake, spark):
    lake.write(tables.ITEMS, spark.createDataFrame([("1", "Toy Story", {"year": "1995"})], ITEMS), DAY)
    assert [tuple(row) for row in lake.read(tables.ITEMS, DAY).collect()] == [("1", "Toy Story", {"year": "1995"})]


def test_the_same_rows_in_another_order_change_no_file(lake, spark):
    rows = [("1", "Toy Story", {"year": "1995", "genre": "Comedy"}), ("2", "Heat", None)]
    assert lake.write(tables.ITEMS, spark.createDataFrame(rows, ITEMS), DAY)
    before = files(lake, DAY)
    turned = [("2", "Heat", None), ("1", "Toy Story", {"genre": "Comedy", "year": "1995"})]
    assert not lake.write(tables.ITEMS, spark.createDataFrame(turned, ITEMS), DAY)
    assert files(lake, DAY) == before


def test_a_changed_row_replaces_the_day_and_no_other(lake, spark):
    for day in (DAY, NEXT):
        lake.write(tables.ITEMS, spark.createDataFrame([("1", "Toy Story", {})], ITEMS), day)
    before = files(lake, DAY)
    assert lake.write(tables.ITEMS, spark.createDataFrame([("1", "Toy Story 2", {})], ITEMS), NEXT)
    assert files(lake, DAY) == before
    assert lake.read(tables.ITEMS, NEXT).first().title == "Toy Story 2"


@pytest.mark.parametrize("rows", [[("1", "a", {}), ("1", "b", {})], [(None, "a", {})]])
def test_a_repeated_or_missing_key_is_refused_and_the_old_day_stays(lake, spark, rows):
    lake.write(tables.ITEMS, spark.createDataFrame([("1", "old", {})], ITEMS), DAY)
    with pytest.raises(ValueError, match="items 1998-03-01"):
        lake.write(tables.ITEMS, spark.createDataFrame(rows, ITEMS), DAY)
    assert lake.read(tables.ITEMS, DAY).first().title == "old"


def test_a_missing_column_is_named(lake, spark):
    with pytest.raises(ValueError, match="items: column attributes is missing"):
        lake.write(tables.ITEMS, spark.createDataFrame([("1", "a")], "item_id string, title string"), DAY)


def test_a_day_that_was_never_written_says_so(lake, spark):
    with pytest.raises(MissingPartitionError, match="items has no partition for 1998-03-01"):
        lake.read(tables.ITEMS, DAY)
    assert lake.read_latest(tables.ITEMS, DAY).count() == 0


def test_an_empty_day_is_a_day(lake, spark):
    lake.write(tables.ITEMS, spark.createDataFrame([], ITEMS), DAY)
    assert lake.read(tables.ITEMS, DAY).count() == 0


def test_a_delta_table_reads_the_past_only(lake, spark):
    ddl = "user_id string, item_id string, event_time timestamp, row_number bigint, day string"
    rows = spark.sql(
        "SELECT 'u' user_id, 'i' item_id, cast(day AS timestamp) event_time, 1L row_number, day "
        "FROM VALUES ('1998-03-01'), ('1998-03-02') AS t(day)"
    )
    assert set(ddl.split()[::2]) == set(rows.columns)
    lake.write_days(tables.INTERACTIONS, rows, [DAY, NEXT])
    assert lake.read_until(tables.INTERACTIONS, DAY).count() == 1
    assert lake.read_until(tables.INTERACTIONS, NEXT).count() == 2


JOB = """
import os, time
from pathlib import Path
from spark_jobs.job import run

def main(lake, day):
    made = Path(os.environ["PIDS"] + ".made")
    made.write_text(f"{os.getppid()} {os.getpid()}")
    made.rename(os.environ["PIDS"])
    time.sleep(120)

run(main)
"""


def test_a_job_ends_with_its_jvm(settings, environment, tmp_path, ends_soon):
    """A job without its JVM must end at once, because a retry may already be writing."""
    settings.source.mkdir(parents=True)
    for name in ("interactions.tsv", "items.jsonl"):
        (settings.source / name).touch()  # all that a job looks for before it starts Spark
    script, pids = tmp_path / "ingest.py", tmp_path / "pids"
    script.write_text(JOB)
    command = ["spark-submit", "--master", "local[1]", "--driver-memory", "512m", str(script), "--day", "1998-03-01"]
    with subprocess.Popen(command, env=environment | {"PIDS": str(pids)}) as submit:
        deadline = time.monotonic() + 120
        while not pids.exists() and submit.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        submit.kill()
    jvm, driver = map(int, pids.read_text().split())
    assert jvm == submit.pid
    assert ends_soon(driver)


def test_versions_of_a_table_are_separate(spark, settings, settings_with):
    from spark_jobs.storage.lake import Lake

    ddl = "item_id string, neighbour_id string, similarity float, rank int"
    ten, five = Lake(spark, settings), Lake(spark, settings_with(num_neighbours=5))
    ten.write(tables.ITEM_NEIGHBOURS, spark.createDataFrame([("1", "2", 0.5, 1)], ddl), DAY)
    with pytest.raises(MissingPartitionError):
        five.read(tables.ITEM_NEIGHBOURS, DAY)


def test_removed_days_are_gone_and_others_stay(lake, spark):
    for day in (DAY, NEXT):
        lake.write(tables.ITEMS, spark.createDataFrame([("1", "Toy Story", {})], ITEMS), day)
    lake.remove_days(tables.ITEMS, [DAY, "1998-01-01"])
    assert lake.days(tables.ITEMS) == [NEXT]
    assert not lake.partition(tables.ITEMS, DAY).exists()
    assert lake.read(tables.ITEMS, NEXT).count() == 1
