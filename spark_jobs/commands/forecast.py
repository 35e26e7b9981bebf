"""Forecast what a day will cost: its descriptions, and the comparison of recent moments.

    grasp forecast --day D [--json]

Reads:   items, users, interactions, the descriptions of the day before, both ledgers
Writes:  nothing, and calls no model

The day must be ingested. For a catalogue of any size, without data and without Spark:

    grasp forecast --items 1200000 --users 100000 --new-share 1.0 [--moments 180000 --active-users 80000]
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from grasp.days import day_argument
from grasp.environment import IS_SUBMITTED, prepare
from grasp.preflight import require_java
from grasp.settings import Settings, SettingsError
from spark_jobs import describe_items, describe_users
from spark_jobs.commands.forecast_moments import (
    ASSUMED_WIDTH,
    MomentCounts,
    MomentForecast,
    as_lines,
    count_day,
    forecast_moments,
)
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


def forecast_moments_scale(settings: Settings, given: argparse.Namespace) -> MomentForecast | None:
    """What comparing these numbers of moments will cost; None without a number of users.

    Unless given, every user asks, and one moment votes for each of them.
    """
    num_asking = given.users if given.active_users is None else given.active_users
    if num_asking is None:
        return None
    num_moments = num_asking if given.moments is None else given.moments
    return forecast_moments(settings, MomentCounts(num_moments, num_asking, given.items or num_moments, ASSUMED_WIDTH))


def shown(forecasts: Sequence[Forecast], moments: MomentForecast | None, *, is_json: bool) -> str:
    if is_json:
        return json.dumps(as_json(forecasts) | ({"moments": asdict(moments)} if moments else {}), indent=1)
    return "\n\n".join([as_text(forecasts), *(["\n".join(as_lines(moments))] if moments else [])])


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="grasp forecast", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("--day", type=day_argument, help="UTC day that was ingested, YYYY-MM-DD")
    result.add_argument("--items", type=_count, help="instead of a day: number of items")
    result.add_argument("--users", type=_count, help="instead of a day: number of users")
    result.add_argument("--new-share", type=_share, default=1.0, help="share without an answer in the ledger, 0 to 1")
    result.add_argument("--seconds-per-answer", type=_positive, help="instead of the ledger's mean")
    result.add_argument("--parallelism", type=_positive, help="concurrent answers, instead of the ledger's mean")
    result.add_argument(
        "--moments", type=_count, help="with --users: interactions of GRASP_MOMENT_DAYS days (default: one a user)"
    )
    result.add_argument(
        "--active-users", type=_count, help="with --users: those of GRASP_MOMENT_ACTIVE_DAYS days (default: all)"
    )
    result.add_argument("--json", action="store_true", help="print JSON")
    return result


def main(given: Sequence[str] | None = None) -> None:
    options = parser()
    arguments = options.parse_args(given)
    numbers = {"item": arguments.items, "user": arguments.users}
    numbers = {entity: number for entity, number in numbers.items() if number is not None}
    if bool(arguments.day) == bool(numbers):
        options.error("give either --day, or --items and --users")
    if arguments.users is None and (arguments.moments is not None or arguments.active_users is not None):
        options.error("--moments and --active-users belong to --users")
    speed = Speed(arguments.seconds_per_answer, arguments.parallelism)
    try:
        settings = Settings.load()
        if numbers:
            forecasts = forecast_scale(settings, numbers, arguments.new_share, speed)
            moments = forecast_moments_scale(settings, arguments)
        else:
            if not IS_SUBMITTED:
                require_java(settings)
            spark = spark_session("forecast", settings)
            spark.sparkContext.setLogLevel("ERROR")  # a person reads this; Spark's warnings are about its own plans
            lake = Lake(spark, settings)
            forecasts = forecast_day(lake, arguments.day, speed)
            moments = forecast_moments(settings, count_day(lake, arguments.day))
    except (SettingsError, ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    sys.stdout.write(f"{shown(forecasts, moments, is_json=arguments.json)}\n")


if __name__ == "__main__":
    prepare()  # only --day needs Java
    main()
