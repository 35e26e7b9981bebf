"""What a day of descriptions will cost, before anything is spent.

    python -m spark_jobs.commands.forecast --day D [--json]

Reads:   items, users, interactions, the descriptions of the day before, both ledgers
Writes:  nothing, and asks no model

The day has to be ingested. Without data, and without Spark, a catalogue of any size:

    python -m spark_jobs.commands.forecast --items 1200000 --users 100000 --new-share 1.0
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from grasp import partitions
from grasp.days import day_argument
from grasp.environment import prepare
from grasp.preflight import require_java
from grasp.settings import Settings, SettingsError
from grasp.versions import Versions
from spark_jobs import describe_items, describe_users
from spark_jobs.commands.forecast_table import as_json, as_text
from spark_jobs.generation.budget import Caps, Estimate, affordable, counted_bytes
from spark_jobs.generation.describe_entities import Describing
from spark_jobs.generation.description_kind import ledger_of
from spark_jobs.generation.expected_cost import ASSUMED_FACTS_BYTES, Forecast, Rates, Work, allowed
from spark_jobs.generation.ledger_totals import account
from spark_jobs.generation.live_generation import Prices
from spark_jobs.generation.prompts import ITEM, USER, Subject
from spark_jobs.job import spark_session
from spark_jobs.storage.lake import Lake, cached

FACTS = ((ITEM, describe_items.day_facts), (USER, describe_users.day_facts))


@dataclass(frozen=True)
class Speed:
    """What somebody who knows the model says of its speed; None is left to the ledger."""

    seconds_per_answer: float | None = None
    parallelism: float | None = None

    def of(self, rates: Rates) -> Rates:
        return replace(
            rates,
            seconds_per_answer=self.seconds_per_answer or rates.seconds_per_answer,
            parallelism=self.parallelism or rates.parallelism,
        )


def forecast_day(lake: Lake, day: str, speed: Speed) -> list[Forecast]:
    """What describing this day would take from here on. Raises `MissingPartitionError` for a day without facts."""
    result = []
    for subject, day_facts in FACTS:
        work, facts_bytes = count_work(lake, day, subject, day_facts(lake, day))
        rates = speed.of(_rates(lake.settings, subject.entity, facts_bytes))
        result.append(Forecast.of(subject.entity, work, rates, _prices(lake.settings)))
    return result


def count_work(lake: Lake, day: str, subject: Subject, facts: DataFrame) -> tuple[Work, float]:
    """What is to do, by the same frames that a run works with, and the mean bytes of new facts, as estimates count."""
    describing = Describing.of(lake, day, subject)
    estimate, caps = Estimate.of(lake.settings, subject.entity), Caps.of(lake.settings, subject.entity)
    with cached(describing.inputs(facts)) as inputs, cached(describing.unpaid(inputs)) as unpaid:
        num_entities = inputs.count()
        num_unanswered = describing.ledger.unpaid(inputs).count()
        [new] = unpaid.agg(
            F.count("*").alias("num_entities"),
            F.count_distinct("generation_key").alias("num_keys"),
            F.avg(counted_bytes(F.col("canonical"))).alias("facts_bytes"),
        ).collect()
        num_allowed = affordable(unpaid, caps.left(describing.spent()), estimate).count()
    facts_bytes = new.facts_bytes or ASSUMED_FACTS_BYTES[subject.entity]
    work = Work(
        num_entities,
        num_cache_hits=num_entities - num_unanswered,
        num_kept=num_unanswered - new.num_entities,
        num_new=new.num_keys,
        num_allowed=num_allowed,
        num_a_day=allowed(new.num_keys, caps, estimate, facts_bytes),
    )
    return work, facts_bytes


def forecast_scale(settings: Settings, numbers: dict[str, int], new_share: float, speed: Speed) -> list[Forecast]:
    """What so many items and users would take, of which a share is new, with all of a day's caps to spend."""
    result = []
    for entity, num_entities in numbers.items():
        estimate, facts_bytes = Estimate.of(settings, entity), ASSUMED_FACTS_BYTES[entity]
        num_new = round(num_entities * new_share)
        num_allowed = allowed(num_new, Caps.of(settings, entity), estimate, facts_bytes)
        work = Work(num_entities, num_entities - num_new, 0, num_new, num_allowed, num_allowed)
        rates = speed.of(_rates(settings, entity, facts_bytes))
        result.append(Forecast.of(entity, work, rates, _prices(settings)))
    return result


def _rates(settings: Settings, entity: str, facts_bytes: float) -> Rates:
    """The ledger's, of the last days this prompt and model were asked anything."""
    table, versions = ledger_of(entity), Versions(settings)
    folder = partitions.table_path(settings.lake, table, None)
    asked = account(folder, table, versions.prompt(entity), versions.llm)
    return Rates.of(asked, Estimate.of(settings, entity), facts_bytes)


def _prices(settings: Settings) -> Prices:
    return Prices(settings.llm_input_price, settings.llm_output_price)


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is no share: from 0 to 1")
    return value


def _positive(text: str) -> float:
    value = float(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is no count")
    return value


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="grasp forecast", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--day", type=day_argument, help="UTC day that was ingested, YYYY-MM-DD")
    parser.add_argument("--items", type=_count, help="instead of a day: a catalogue of so many items")
    parser.add_argument("--users", type=_count, help="instead of a day: so many users")
    parser.add_argument("--new-share", type=_share, default=1.0, help="share of them that is not in the ledger")
    parser.add_argument("--seconds-per-answer", type=_positive, help="instead of what the ledger knows")
    parser.add_argument("--parallelism", type=_positive, help="answers written at a time, instead of the ledger's")
    parser.add_argument("--json", action="store_true", help="for programs")
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
            forecasts = forecast_day(Lake(spark_session("forecast", settings), settings), arguments.day, speed)
    except (SettingsError, ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    shown = json.dumps(as_json(forecasts), indent=1) if arguments.json else as_text(forecasts)
    sys.stdout.write(f"{shown}\n")


if __name__ == "__main__":
    prepare(require_java)
    main()
