"""Attribute values of the catalogue: the favourites of users, and values that a text could wrongly claim."""

from collections.abc import Collection

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from grasp.categories import MAX_CATEGORY_CHARS, NO_CATEGORY, OBJECT_START
from spark_jobs.generation.prompts import safe_text

MAX_KNOWN_VALUES = 200


def attribute_values(items: DataFrame, hidden: Collection[str]) -> DataFrame:
    """All categories among visible item attributes (`grasp/categories.py`): `item_id, value`."""
    return (
        items.select("item_id", F.explode("attributes").alias("name", "list"))
        .where(~F.col("name").isin(list(hidden)) & ~F.contains("list", F.lit(OBJECT_START)))
        .select("item_id", F.explode(F.split("list", ", ")).alias("value"))
        .where((F.length("value") <= MAX_CATEGORY_CHARS) & ~F.col("value").rlike(f"(?U){NO_CATEGORY}"))
        .distinct()
    )


def known_values(items: DataFrame, hidden: Collection[str]) -> frozenset[str]:
    """The most frequent values; the validator checks that a text does not claim one without a fact."""
    values = attribute_values(items, hidden).groupBy("value").count()
    frequent = values.where("count > 1").orderBy(F.desc("count"), "value")
    return frozenset(row.value for row in frequent.limit(MAX_KNOWN_VALUES).collect() if safe_text(row.value))
