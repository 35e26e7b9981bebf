"""Attribute values of the catalogue: the favourites of users, and values that a text could wrongly claim."""

from collections.abc import Collection

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from spark_jobs.generation.prompts import safe_text

MAX_KNOWN_VALUES = 200
MAX_VALUE_CHARS = 40  # a longer attribute value is a text, not a category


def attribute_values(items: DataFrame, hidden: Collection[str]) -> DataFrame:
    """All category-like values of visible item attributes: `item_id, value`."""
    return (
        items.select("item_id", F.explode("attributes").alias("name", "list"))
        .where(~F.col("name").isin(list(hidden)))
        .select("item_id", F.explode(F.split("list", ", ")).alias("value"))
        .where((F.length("value") > 0) & (F.length("value") <= MAX_VALUE_CHARS) & ~F.col("value").rlike(r"^[\d\W]*$"))
        .distinct()
    )


def known_values(items: DataFrame, hidden: Collection[str]) -> frozenset[str]:
    """The most frequent values; the validator checks that a text does not claim one without a fact."""
    values = attribute_values(items, hidden).groupBy("value").count()
    frequent = values.where("count > 1").orderBy(F.desc("count"), "value")
    return frozenset(row.value for row in frequent.limit(MAX_KNOWN_VALUES).collect() if safe_text(row.value))
