"""Join all data of each item and user into one row: the offline side of the Feast feature views.

Reads:   interactions, items, users, descriptions, embeddings, neighbour features, user_neighbour_items; the last
         item_features before the day
Writes:  item_features, user_features

Every item and every user gets a row. The day fails if a description, an embedding or a neighbour row is missing. An
item or user without neighbours has a zero vector and empty lists, as `aggregate_neighbours` wrote them. A row whose
content did not change keeps its `computed_at`.

A late event changes the day it belongs to, and so the counts of every later day that is built after it came.

Head and tail groups as in LLM-ESR and GRASP: head items are the most popular fifth of the catalogue by distinct users,
ties by id; tail users have fewer than nine interactions.
"""

from dataclasses import dataclass

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from grasp import tables
from grasp.days import last_second, plus_days
from grasp.progress import say
from grasp.tables import MAX_SEQUENCE_LENGTH, TAKER_DAYS, Table
from spark_jobs.features.item_times import first_seen, takers
from spark_jobs.job import run
from spark_jobs.storage.lake import Lake

HEAD_SHARE = 0.2  # of the items
MIN_HEAD_INTERACTIONS = 9  # of a user
# A row is as before if only these differ. `gap_days` grows daily for everybody; all it knows is in `sequence_times`.
NO_CONTENT = ("event_timestamp", "gap_days", "computed_at")


class IncompleteFeaturesError(ValueError):
    """Items or users lack a description, embedding or neighbour row; the message has the number and an example."""


@dataclass(frozen=True)
class Parts:
    """The tables that are joined by item or user id."""

    description: DataFrame
    embedding: DataFrame
    neighbour_features: DataFrame


def item_popularity(items: DataFrame, interactions: DataFrame) -> DataFrame:
    """Title, number of distinct users and tail flag of every item: item_id, title, popularity, is_tail."""
    num_users = interactions.groupBy("item_id").agg(F.count_distinct("user_id").alias("num_users"))
    popularity = F.coalesce("num_users", F.lit(0)).cast("bigint")
    counted = items.join(num_users, "item_id", "left").select("item_id", "title", popularity.alias("popularity"))
    num_head = int(items.count() * HEAD_SHARE)
    head = counted.orderBy(F.desc("popularity"), "item_id").limit(num_head).select("item_id", F.lit(0).alias("head"))
    is_tail = F.coalesce("head", F.lit(1)).cast("bigint")
    return counted.join(head, "item_id", "left").select("item_id", "title", "popularity", is_tail.alias("is_tail"))


def user_sequences(users: DataFrame, interactions: DataFrame, day: str) -> DataFrame:
    """Each user's last items with their times, oldest first, the ids of earlier items, and the number of interactions.

    Columns: user_id, sequence, sequence_times, earlier_item_ids, num_interactions, gap_days (null for a user without
    interactions), is_tail.
    """
    latest = Window.partitionBy("user_id").orderBy(F.desc("event_time"), F.desc("row_number"))
    of_user = Window.partitionBy("user_id")
    last = interactions.withColumns({"age": F.row_number().over(latest), "num": F.count("*").over(of_user)})
    is_step, step = F.col("age") <= MAX_SEQUENCE_LENGTH, F.struct((-F.col("age")).alias("step"), "item_id", "seconds")
    sequences = (
        last.withColumn("seconds", F.unix_seconds("event_time"))
        .groupBy("user_id")
        .agg(
            F.array_sort(F.collect_list(F.when(is_step, step))).alias("steps"),
            F.collect_set(F.when(~is_step, F.col("item_id"))).alias("earlier"),
            F.max("num").alias("num"),
            F.to_date(F.max("event_time")).alias("last_day"),
        )
    )
    # Sorted, because the order of a collected set would change the row's hash.
    earlier = F.array_sort(F.array_except("earlier", F.col("steps.item_id")))
    num_interactions = F.coalesce("num", F.lit(0)).cast("bigint")
    gap_days = F.date_diff(F.lit(day).cast("date"), "last_day").cast("bigint")
    return users.join(sequences, "user_id", "left").select(
        "user_id",
        F.coalesce("steps.item_id", F.array().cast("array<string>")).alias("sequence"),
        F.coalesce("steps.seconds", F.array().cast("array<bigint>")).alias("sequence_times"),
        F.coalesce(earlier, F.array().cast("array<string>")).alias("earlier_item_ids"),
        num_interactions.alias("num_interactions"),
        gap_days.alias("gap_days"),
        (num_interactions < MIN_HEAD_INTERACTIONS).cast("bigint").alias("is_tail"),
    )


def with_neighbour_items(users: DataFrame, neighbour_items: DataFrame) -> DataFrame:
    """Add the items that similar moments vote for and their weights; empty lists for users without a row."""
    ids, weights = "neighbour_item_ids", "neighbour_item_weights"
    return users.join(neighbour_items, "user_id", "left").withColumns(
        {
            ids: F.coalesce(ids, F.array().cast("array<string>")),
            weights: F.coalesce(weights, F.array().cast("array<float>")),
        }
    )


def join_parts(own: DataFrame, parts: Parts, key: str) -> DataFrame:
    """Join the parts to every row of `own`.

    Raises `IncompleteFeaturesError` if a part has no row for an id, or an embedding belongs to another description.
    """
    described_by = F.col("description_hash").alias("encoded_hash")
    embedding = parts.embedding.select(key, "semantic_embedding", described_by)
    joined = (
        own.join(parts.description.drop("computed_at"), key, "left")
        .join(embedding, key, "left")
        .join(parts.neighbour_features, key, "left")
    )
    _require_complete(joined, key)
    return joined


def _require_complete(joined: DataFrame, key: str) -> None:
    faults = {
        "have no description": F.col("description_hash").isNull(),
        "have no embedding": F.col("encoded_hash").isNull(),
        "have no neighbour row": F.col("neighbour_embedding").isNull(),
        "have the embedding of another description": F.col("encoded_hash") != F.col("description_hash"),
    }
    counts = [F.count_if(fault).alias(f"num_{index}") for index, fault in enumerate(faults.values())]
    examples = [F.min(F.when(fault, F.col(key))).alias(f"id_{index}") for index, fault in enumerate(faults.values())]
    row = joined.agg(*counts, *examples).first()
    found = [
        f"{row[f'num_{index}']} {what} (for example {key} {row[f'id_{index}']})"
        for index, what in enumerate(faults)
        if row[f"num_{index}"]
    ]
    if found:
        raise IncompleteFeaturesError(
            f"{key.removesuffix('_id')}_features: {', '.join(found)}; run the earlier stages again"
        )


def keep_computed_at(rows: DataFrame, latest: DataFrame, table: Table) -> DataFrame:
    """Keep the earlier `computed_at` of rows whose content did not change."""
    (key,) = table.key
    content = [name for name in table.column_names if name not in NO_CONTENT]
    before = latest.select(key, F.xxhash64(*content).alias("old_content"), F.col("computed_at").alias("old_at"))
    is_same = F.xxhash64(*(F.col(name) for name in content)) == F.col("old_content")
    return (
        rows.join(before, key, "left")
        .withColumn("computed_at", F.when(is_same, F.col("old_at")).otherwise(F.col("computed_at")))
        .select(*table.column_names)
    )


def _write(lake: Lake, day: str, table: Table, own: DataFrame, parts: Parts) -> None:
    (key,) = table.key
    stamped = join_parts(own, parts, key).withColumns(
        {
            "event_timestamp": F.lit(last_second(day)),
            "embedding_version": F.lit(lake.versions.embedding),
            "feature_version": F.lit(lake.versions.feature),
            "computed_at": F.lit(lake.settings.clock()),
        }
    )
    rows = keep_computed_at(stamped, lake.read_latest(table, day), table)
    changed = lake.write(table, rows, day)
    say(f"{table.name}: {lake.read(table, day).count():,} rows, {'written' if changed else 'unchanged'}")


def _recent(lake: Lake, first: str, last: str) -> DataFrame:
    """The interactions of some days, the first and the last included."""
    days = [each for each in lake.days(tables.INTERACTIONS, until=last) if each >= first]
    return lake.read_days(tables.INTERACTIONS, days)


def _first_seen(lake: Lake, day: str, items: DataFrame, interactions: DataFrame) -> DataFrame:
    """Continue from the last state before the day; without one, from all interactions."""
    states = lake.days(tables.ITEM_FEATURES, until=plus_days(day, -1))
    if states:
        # What was ingested after that state was built is at most `late_days` older than its day.
        interactions = _recent(lake, plus_days(states[-1], -lake.settings.late_days), day)
    return first_seen(items, interactions, lake.read_days(tables.ITEM_FEATURES, states[-1:]), day)


def _neighbour_items(lake: Lake, day: str) -> DataFrame:
    """Without rows where GRASP_MOMENTS is off, because no job writes the table then."""
    table = tables.USER_NEIGHBOUR_ITEMS
    return lake.read(table, day) if lake.settings.moments else lake.read_days(table, [])


def main(lake: Lake, day: str) -> None:
    interactions = lake.read_until(tables.INTERACTIONS, day).cache()
    item_parts = Parts(
        lake.read(tables.ITEM_DESCRIPTION, day),
        lake.read(tables.ITEM_EMBEDDING, day),
        lake.read(tables.ITEM_NEIGHBOUR_FEATURES, day),
    )
    user_parts = Parts(
        lake.read(tables.USER_DESCRIPTION, day),
        lake.read(tables.USER_EMBEDDING, day),
        lake.read(tables.USER_NEIGHBOUR_FEATURES, day),
    )
    items, users = lake.read(tables.ITEMS, day), lake.read(tables.USERS, day)
    last_days = _recent(lake, plus_days(day, 1 - max(TAKER_DAYS)), day)
    own_items = (
        item_popularity(items, interactions)
        .join(takers(items, last_days, day), "item_id")
        .join(_first_seen(lake, day, items, interactions), "item_id")
    )
    own_users = with_neighbour_items(user_sequences(users, interactions, day), _neighbour_items(lake, day))
    _write(lake, day, tables.ITEM_FEATURES, own_items, item_parts)
    _write(lake, day, tables.USER_FEATURES, own_users, user_parts)
    interactions.unpersist()


if __name__ == "__main__":
    run(main)
