"""When items were taken: by how many users in the last days, and on which day first.

Both read the last days alone, so their cost does not grow with history.
"""

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from grasp.tables import TAKER_DAYS
from spark_jobs.source.delivery import event_day


def takers(items: DataFrame, interactions: DataFrame, day: str) -> DataFrame:
    """How many users took each item in the windows that end with `day`: item_id, takers_1d, ..., takers_30d.

    `interactions` are those of the longest window. A user counts once, by the last time.
    """
    age_days = F.date_diff(F.lit(day).cast("date"), F.max(F.to_date("event_time")))
    last_taken = interactions.groupBy("item_id", "user_id").agg(age_days.alias("age_days"))
    within = {f"takers_{days}d": F.count_if(F.col("age_days") < days) for days in TAKER_DAYS}
    counted = last_taken.groupBy("item_id").agg(*(count.alias(name) for name, count in within.items()))
    counts = [F.coalesce(name, F.lit(0)).cast("bigint").alias(name) for name in within]
    return items.select("item_id").join(counted, "item_id", "left").select("item_id", *counts)


def first_seen(items: DataFrame, interactions: DataFrame, before: DataFrame, day: str) -> DataFrame:
    """The day of each item's first interaction; without one, its first day in the catalogue: item_id, first_seen_day.

    `before` is an earlier state (item_id, popularity, first_seen_day) and `interactions` all that came since. Without
    an earlier state they are all up to the day.
    """
    since = interactions.groupBy("item_id").agg(F.min(event_day()).alias("taken_since"))
    known = before.select("item_id", "first_seen_day", (F.col("popularity") > 0).alias("was_taken"))
    first_taken = F.least("taken_since", F.when(F.col("was_taken"), F.col("first_seen_day")))  # nulls do not count
    first = F.coalesce(first_taken, "first_seen_day", F.lit(day))
    joined = items.select("item_id").join(known, "item_id", "left").join(since, "item_id", "left")
    return joined.select("item_id", first.alias("first_seen_day"))
