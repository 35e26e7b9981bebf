"""Describe every item of the catalogue. The language model describes the most popular ones, withdrawn ones last.

Reads:   items, withdrawn_items, interactions, item_generation
Writes:  item_generation (the ledger), item_description
"""

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from grasp import tables
from grasp.days import end_of
from spark_jobs.generation.budget import Caps
from spark_jobs.generation.describe_entities import describe_entities
from spark_jobs.generation.prompts import ITEM
from spark_jobs.job import run
from spark_jobs.storage.lake import Lake


def item_facts(items: DataFrame, interactions: DataFrame, day: str) -> DataFrame:
    """Title and attributes of each item; `activity` is the number of distinct users up to the end of the day."""
    popularity = (
        interactions.where(F.col("event_time") <= F.lit(end_of(day)))
        .groupBy("item_id")
        .agg(F.count_distinct("user_id").alias("activity"))
    )
    return items.join(popularity, "item_id", "left").select(
        F.col("item_id").alias("entity_id"),
        F.coalesce("activity", F.lit(0)).alias("activity"),
        F.to_json(F.struct("title", "attributes")).alias("raw"),
    )


def read_item_facts(lake: Lake, day: str) -> DataFrame:
    return item_facts(lake.read(tables.ITEMS, day), lake.read_until(tables.INTERACTIONS, day), day)


def main(lake: Lake, day: str) -> None:
    describe_entities(lake, day, ITEM, read_item_facts(lake, day), caps=Caps.of(lake.settings, "item"))


if __name__ == "__main__":
    run(main)
