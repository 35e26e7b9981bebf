"""Forecast what a day of descriptions will cost.

    grasp forecast --day D [--json]

Reads:   items, users, interactions, the descriptions of the day before, both ledgers
Writes:  nothing, and calls no model

The day must be ingested. For a catalogue of any size, without data and without Spark:

    grasp forecast --items 1200000 --users 100000 --new-share 1.0
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from grasp.days import day_argument
from grasp.environment import IS_SUBMITTED, prepare
from grasp.preflight import require_java
from grasp.settings import Settings, SettingsError
from spark_jobs import describe_items, describe_users
from spark_jobs.commands.forecast_table import as_json, as_text
from spark_jobs.generation.budget import Caps, estimated_bytes
from spark_jobs.generation.describe_entities import DescriptionRun
from spark_jobs.generation.expected_cost import (
    ASSUMED_FACTS_BYTES,
    Forecast,
    KeyCounts,
    UsagePerKey,
    count_allowed_keys,
    usage_per_key,
)
from spark_jobs.generation.prompts import ITEM, USER, Subject
from spark_jobs.job import spark_session
from spark_jobs.models.account import Prices
from spark_jobs.storage.lake import Lake, cached

FACTS = ((ITEM, describe_items.read_item_facts), (USER, describe_users.read_user_facts))


@dataclass(frozen=True)
class Speed:
    """A given speed of the model; None means to use the ledger's."""

    seconds_per_answer: float | None = None
    parallelism: float | None = None

    def applied_to(self, per_key: UsagePerKey) -> UsagePerKey:
        return replace(
            per_key,
            seconds_per_answer=self.seconds_per_answer or per_key.seconds_per_answer,
            parallelism=self.parallelism or per_key.parallelism,
        )


def forecast_day(lake: Lake, day: str, speed: Speed) -> list[Forecast]:
    """What it will cost to describe the rest of this day. Raises `MissingPartitionError` if it is not ingested."""
    result = []
    for subject, read_facts in FACTS:
        counts, per_key = count_keys(lake, day, subject, read_facts(lake, day))
        result.append(Forecast.of(subject.entity, counts, speed.applied_to(per_key), Prices.of(lake.settings)))
    return result


def count_keys(lake: Lake, day: str, subject: Subject, facts: DataFrame) -> tuple[KeyCounts, UsagePerKey]:
    """Counts from the same frames that a run uses, and the usage of a key with new facts of mean length."""
    run, settings = DescriptionRun.of(lake, day, subject), lake.settings
    caps, prices = Caps.of(settings, subject.entity), Prices.of(settings)
    with cached(run.inputs(facts)) as inputs, cached(run.entities_to_describe(inputs)) as wanted:
        num_entities = inputs.count()
        num_unanswered = run.ledger.without_answer(inputs, settings.llm_park_after).count()
        [new] = wanted.agg(
            F.count("*").alias("num_entities"),
            F.count_distinct("generation_key").alias("num_keys"),
            F.avg(estimated_bytes(F.col("canonical"))).alias("facts_bytes"),
        ).collect()
    per_key = usage_per_key(settings, subject.entity, new.facts_bytes or ASSUMED_FACTS_BYTES[subject.entity])
    counts = KeyCounts(
        num_entities,
        num_cache_hits=num_entities - num_unanswered,
        num_kept=num_unanswered - new.num_entities,
        num_new=new.num_keys,
        num_allowed=count_allowed_keys(new.num_keys, caps.left(run.usage()), per_key, prices),
        num_a_day=count_allowed_keys(new.num_keys, caps, per_key, prices),
    )
    return counts, per_key


def forecast_scale(settings: Settings, numbers: dict[str, int], new_share: float, speed: Speed) -> list[Forecast]:
    """What these numbers of items and users will cost, if `new_share` of them is new and the day's caps are unused."""
    result = []
    for entity, num_entities in numbers.items():
        per_key, prices = usage_per_key(settings, entity, ASSUMED_FACTS_BYTES[entity]), Prices.of(settings)
        num_new = round(num_entities * new_share)
        num_allowed = count_allowed_keys(num_new, Caps.of(settings, entity), per_key, prices)
        counts = KeyCounts(num_entities, num_entities - num_new, 0, num_new, num_allowed, num_allowed)
        result.append(Forecast.of(entity, counts, speed.applied_to(per_key), prices))
    return result


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a share from 0 to 1")
    return value


def _positive(text: str) -> float:
    value = float(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0")
    return value


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="grasp forecast", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--day", type=day_argument, help="UTC day that was ingested, YYYY-MM-DD")
    parser.add_argument("--items", type=_count, help="instead of a day: number of items")
    parser.add_argument("--users", type=_count, help="instead of a day: number of users")
    parser.add_argument("--new-share", type=_share, default=1.0, help="share without an answer in the ledger, 0 to 1")
    parser.add_argument("--seconds-per-answer", type=_positive, help="instead of the ledger's mean")
    parser.add_argument("--parallelism", type=_positive, help="concurrent answers, instead of the ledger's mean")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(given)
    numbers = {"item": arguments.items, "user": arguments.users}
    numbers = {entity: number for entity, number in numbers.items() if number is not None}
    if bool(arguments.day) == bool(numbers):
        parser.error("give either --day, or --items and --users")
    speed = Speed(arguments.seconds_per_answer, arguments.parallelism)
    try:
        settings = Settings.load()
        if numbers:
            forecasts = forecast_scale(settings, numbers, arguments.new_share, speed)
        else:
            if not IS_SUBMITTED:
                require_java(settings)
            spark = spark_session("forecast", settings)
            spark.sparkContext.setLogLevel("ERROR")  # a person reads this; Spark's warnings are about its own plans
            forecasts = forecast_day(Lake(spark, settings), arguments.day, speed)
    except (SettingsError, ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    shown = json.dumps(as_json(forecasts), indent=1) if arguments.json else as_text(forecasts)
    sys.stdout.write(f"{shown}\n")


if __name__ == "__main__":
    prepare()  # only --day needs Java
    main()
