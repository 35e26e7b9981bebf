"""Describe every user from profile and history. The language model describes the most active ones.

Reads:   users, items, interactions, user_generation
Writes:  user_generation (the ledger), user_description
"""

from collections.abc import Collection

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from grasp import tables
from grasp.days import end_of
from spark_jobs.generation.attributes import attribute_values
from spark_jobs.generation.budget import Caps
from spark_jobs.generation.describe_entities import describe_entities
from spark_jobs.generation.prompts import NUM_FAVOURITES, NUM_RECENT, USER
from spark_jobs.job import run
from spark_jobs.storage.lake import Lake


def user_facts(
    users: DataFrame, items: DataFrame, interactions: DataFrame, day: str, *, holdout: int, hidden: Collection[str]
) -> DataFrame:
    """Profile, newest titles and most frequent attribute values of each user, as known on the day.

    The latest `holdout` interactions are left out of the text. `activity` is the number of interactions.
    """
    newest_first = Window.partitionBy("user_id").orderBy(F.desc("event_time"), F.desc("row_number"))
    known = interactions.where(F.col("event_time") <= F.lit(end_of(day))).withColumn(
        "age_rank", F.row_number().over(newest_first)
    )
    history = known.where(F.col("age_rank") > holdout)
    activity = known.groupBy("user_id").agg(F.count("*").alias("activity"))
    return (
        users.join(activity, "user_id", "left")
        .join(_recent(history.where(F.col("age_rank") <= holdout + NUM_RECENT), items), "user_id", "left")
        .join(_favourites(history, items, hidden), "user_id", "left")
        .select(
            F.col("user_id").alias("entity_id"),
            F.coalesce("activity", F.lit(0)).alias("activity"),
            F.to_json(F.struct("attributes", "recent", "favourites")).alias("raw"),
        )
    )


def _recent(history: DataFrame, items: DataFrame) -> DataFrame:
    """Titles of the newest items, newest first."""
    titled = history.join(items.select("item_id", "title"), "item_id").where(F.col("title") != "")
    ordered = F.array_sort(F.collect_list(F.struct("age_rank", "title")))
    return titled.groupBy("user_id").agg(ordered.getField("title").alias("recent"))


def _favourites(history: DataFrame, items: DataFrame, hidden: Collection[str]) -> DataFrame:
    """The most frequent attribute values, ties by name."""
    counted = history.join(attribute_values(items, hidden), "item_id").groupBy("user_id", "value").count()
    ordered = F.array_sort(F.collect_list(F.struct(-F.col("count"), "value")))
    return counted.groupBy("user_id").agg(F.slice(ordered.getField("value"), 1, NUM_FAVOURITES).alias("favourites"))


def read_user_facts(lake: Lake, day: str) -> DataFrame:
    return user_facts(
        lake.read(tables.USERS, day),
        lake.read(tables.ITEMS, day),
        lake.read_until(tables.INTERACTIONS, day),
        day,
        holdout=lake.settings.user_history_holdout,
        hidden=lake.settings.hidden_attributes,
    )


def main(lake: Lake, day: str) -> None:
    describe_entities(lake, day, USER, read_user_facts(lake, day), caps=Caps.of(lake.settings, "user"))


if __name__ == "__main__":
    run(main)
