"""Find the recent moments, and let those of similar users vote for what each active user may take next.

Reads:   interactions, item_embedding, a state of user_features from before the window; the releases on disk
Writes:  moments, user_neighbour_items; the Milvus collection of moments

`grasp/moments.py` says what a moment is and how moments vote. The window is the `GRASP_MOMENT_DAYS` days up to the day.
All of its days are computed again: a late event changes its day and the days after it, and a user who was erased, or
whose rows are refused, is in none of them. Users with an interaction in the last `GRASP_MOMENT_ACTIVE_DAYS` days ask
with what they had taken by the end of the day. Nothing after the day is read.

Up to `GRASP_MOMENT_EXACT_UP_TO` moments, all are compared in Spark workers, block by block. Above it, Milvus proposes
the nearest, from the driver, as Milvus-Lite allows one process. A Milvus server has the moments in any case, so that
the day that passes the limit does not have to add all of them.

The table keeps the window of the day and that of its last day. Older days are removed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from grasp import partitions, tables
from grasp.days import plus_days, start_of
from grasp.moments import HISTORY_LENGTH, VoteRule
from grasp.progress import say
from spark_jobs.job import run
from spark_jobs.source.delivery import event_day
from spark_jobs.storage.lake import Lake, cached
from spark_jobs.vectors.milvus import is_server, open_vector_store
from spark_jobs.vectors.moment_collection import MomentCollection
from spark_jobs.vectors.moment_table import (
    ASKING_COLUMNS,
    VOTES_SCHEMA,
    MomentFiles,
    files_of_window,
    first_day_of_window,
    vote_in_blocks,
)

USERS_PER_BLOCK = 1_000


@dataclass(frozen=True)
class Past:
    """What users took: the latest interactions, and before those the last items of each user."""

    interactions: DataFrame
    earlier: DataFrame  # user_id, earlier_item_ids: at most 8, newest first


def read_past(lake: Lake, day: str) -> Past:
    """Everything up to the day that a moment of the window may hold.

    Items from before the window come from the latest state of `user_features` before it, so that a usual day does not
    read all history. Its last `GRASP_LATE_DAYS` days are read as interactions: late events may have come after it.

    A user who was erased since has no interaction, neither in the window nor among the active days, and the state only
    adds to the histories of users who have some. Of one who returns under the same id the state still knows the items.
    """
    states = lake.days(tables.USER_FEATURES, until=plus_days(first_day_of_window(lake.settings, day), -1))
    if not states:
        nobody = lake.spark.createDataFrame([], "user_id string, earlier_item_ids array<string>")
        return Past(lake.read_until(tables.INTERACTIONS, day), nobody)
    since = plus_days(states[-1], -lake.settings.late_days)
    days = [each for each in lake.days(tables.INTERACTIONS, until=day) if each >= since]
    earlier = last_items_before(lake.read(tables.USER_FEATURES, states[-1]), since)
    return Past(lake.read_days(tables.INTERACTIONS, days), earlier)


def last_items_before(users: DataFrame, day: str) -> DataFrame:
    """The last items that each user had taken before a day: user_id, earlier_item_ids."""
    start = int(start_of(day).timestamp())
    steps = F.filter(F.arrays_zip("sequence", "sequence_times"), lambda step: step["sequence_times"] < F.lit(start))
    return users.select("user_id", F.slice(F.reverse(steps["sequence"]), 1, HISTORY_LENGTH).alias("earlier_item_ids"))


def moments_since(past: Past, day: str) -> DataFrame:
    """The moments from a day on, in the columns of `moments` and `day`. A first interaction is none."""
    before = Window.partitionBy("user_id").orderBy("event_time", "row_number").rowsBetween(-HISTORY_LENGTH, -1)
    return (
        past.interactions.withColumn("own", F.reverse(F.collect_list("item_id").over(before)))
        .withColumn("day", event_day())
        .where(F.col("day") >= day)
        .join(past.earlier, "user_id", "left")
        .withColumn("history_item_ids", _newest("own"))
        .where(F.size("history_item_ids") > 0)
        .select(*tables.MOMENTS.column_names, "day")
    )


def asking_moments(past: Past, active: DataFrame) -> DataFrame:
    """What each active user had taken by the end of the day: user_id, history_item_ids, newest first."""
    steps = F.array_sort(F.collect_list(F.struct("event_time", "row_number", "item_id")))
    own = past.interactions.groupBy("user_id").agg(F.reverse(steps).alias("steps"))
    return (
        active.select("user_id")
        .distinct()
        .join(own, "user_id", "left")
        .join(past.earlier, "user_id", "left")
        .withColumn("own", F.coalesce("steps.item_id", _no_items()))
        .select("user_id", _newest("own").alias("history_item_ids"))
    )


def _newest(own: str) -> Column:
    """The newest items of a column, followed by earlier ones."""
    return F.slice(F.concat(own, F.coalesce("earlier_item_ids", _no_items())), 1, HISTORY_LENGTH)


def _no_items() -> Column:
    return F.array().cast("array<string>")


def read_active(lake: Lake, day: str) -> DataFrame:
    """Interactions of the last `GRASP_MOMENT_ACTIVE_DAYS` days; their users ask."""
    first = plus_days(day, 1 - lake.settings.moment_active_days)
    return lake.read_days(
        tables.INTERACTIONS, [each for each in lake.days(tables.INTERACTIONS, until=day) if each >= first]
    )


def write_moments(lake: Lake, day: str, past: Past) -> int:
    """Write the days of the window; returns the number of their moments."""
    first = first_day_of_window(lake.settings, day)
    days = sorted({day, *(each for each in lake.days(tables.INTERACTIONS, until=day) if each >= first)})
    changed = lake.write_days(tables.MOMENTS, moments_since(past, first), days)
    num_moments = sum(lake.num_rows(tables.MOMENTS, each) or 0 for each in days)
    say(f"moments {day}: {num_moments:,} of {lake.settings.moment_days} days, {len(changed)} days changed")
    return num_moments


def vote_exactly(lake: Lake, asking: DataFrame, num_asking: int, files: MomentFiles) -> DataFrame:
    """Compare all moments, in Spark workers. Blocks follow from the user ids alone, not from Spark's partitions."""
    num_blocks = max(1, -(-num_asking // USERS_PER_BLOCK))
    block = F.pmod(F.xxhash64("user_id"), F.lit(num_blocks)).alias("block")
    vote = partial(vote_in_blocks, files=files, rule=VoteRule.of(lake.settings))
    blocks = asking.select(*ASKING_COLUMNS, block).repartition(num_blocks, "block")
    return blocks.mapInArrow(vote, tables.USER_NEIGHBOUR_ITEMS.ddl)


def vote_by_milvus(lake: Lake, asking: DataFrame, files: MomentFiles, day: str, place: Path) -> DataFrame:
    """Compare the moments that Milvus proposes. Raises `ValueError` if it misses too many of the nearest.

    The votes go to a new folder `place`, block by block: the driver could not hold those of millions of users.
    """
    rows = asking.select(*ASKING_COLUMNS).toArrow().sort_by("user_id")
    place.mkdir(parents=True)
    with open_vector_store(lake.settings) as store, pq.ParquetWriter(place / "votes.parquet", VOTES_SCHEMA) as file:
        collection = MomentCollection(store, lake, files)
        collection.update(day)
        for votes in collection.votes(rows):
            file.write_batch(votes)
    return lake.spark.read.schema(tables.USER_NEIGHBOUR_ITEMS.ddl).parquet(str(place))


def remove_old_days(lake: Lake, day: str) -> None:
    """Keep what the day and the table's last day need: a back-fill takes nothing from a later day."""
    days = lake.days(tables.MOMENTS)
    windows = [(first_day_of_window(lake.settings, last), last) for last in (day, days[-1])]
    lake.remove_days(tables.MOMENTS, [each for each in days if not _is_in_any(each, windows)])


def _is_in_any(day: str, windows: Sequence[tuple[str, str]]) -> bool:
    return any(first <= day <= last for first, last in windows)


def main(lake: Lake, day: str) -> None:
    partitions.require_partition(lake.root, tables.ITEM_EMBEDDING, lake.versions.embedding, day)
    past = read_past(lake, day)
    num_moments = write_moments(lake, day, past)
    files, is_exact = files_of_window(lake, day), num_moments <= lake.settings.moment_exact_up_to
    with cached(asking_moments(past, read_active(lake, day))) as asking, lake.staging("votes") as place:
        num_asking = asking.count()
        if is_exact:
            votes = vote_exactly(lake, asking, num_asking, files)
        else:
            votes = vote_by_milvus(lake, asking, files, day, place)
        changed = lake.write(tables.USER_NEIGHBOUR_ITEMS, votes, day)
    if is_exact and is_server(lake.settings):
        with open_vector_store(lake.settings) as store:
            MomentCollection(store, lake, files).update(day)
    remove_old_days(lake, day)
    num_answered = lake.read(tables.USER_NEIGHBOUR_ITEMS, day).where(F.size("neighbour_item_ids") > 0).count()
    say(
        f"user_neighbour_items {day}: {num_asking:,} users asked {num_moments:,} moments, {num_answered:,} got votes"
        f"{'' if changed else ', unchanged'}"
    )


if __name__ == "__main__":
    run(main)
