"""Expected cost of a day of generation, computed from counts, means and caps.

The usage of one text comes from the ledger's means, if it holds enough texts of this prompt and model. The means
include repairs and the speed of answers. Otherwise it is the estimate used for the caps, which is deliberately too high
and has no speed.
"""

import math
from dataclasses import dataclass

from grasp import partitions
from grasp.settings import Settings
from grasp.versions import Versions
from spark_jobs.generation.budget import Caps, UsageEstimate
from spark_jobs.generation.description_kind import ledger_table
from spark_jobs.generation.ledger_totals import LedgerTotals, ledger_totals
from spark_jobs.models.account import Prices

MIN_KEYS = 20  # fewer keys in the ledger give no means
MEASURED, ESTIMATED = "ledger", "estimate"
ASSUMED_FACTS_BYTES = {"item": 300, "user": 1500}  # without data: assumes long titles, twenty per user


@dataclass(frozen=True)
class UsagePerKey:
    """Mean usage of one key, including its repair and failed calls."""

    source: str  # MEASURED or ESTIMATED
    num_measured: int
    calls: float
    answers: float
    repaired_share: float
    input_tokens: float
    output_tokens: float
    seconds_per_answer: float | None  # None if unknown
    parallelism: float | None  # answers generated concurrently

    @classmethod
    def of(cls, totals: LedgerTotals, estimate: UsageEstimate, facts_bytes: float) -> "UsagePerKey":
        """The ledger's means, or the estimate for facts of `facts_bytes` if the ledger holds too few keys."""
        num = totals.num_keys
        num_answers = totals.num_calls - totals.num_failed_calls
        if num < MIN_KEYS or not num_answers:
            return cls(
                ESTIMATED,
                num,
                calls=estimate.num_tries,
                answers=estimate.num_tries,
                repaired_share=estimate.num_tries - 1,
                input_tokens=estimate.input_tokens_of(facts_bytes),
                output_tokens=estimate.output_tokens,
                seconds_per_answer=None,
                parallelism=None,
            )
        return cls(
            MEASURED,
            num,
            calls=totals.num_calls / num,
            answers=num_answers / num,
            repaired_share=totals.num_repairs / num,
            input_tokens=totals.num_input_tokens / num,
            output_tokens=totals.num_output_tokens / num,
            seconds_per_answer=totals.seconds / num_answers,
            parallelism=totals.seconds / totals.wall_seconds if totals.wall_seconds else None,
        )

    def expect(self, num_keys: int, prices: Prices) -> "ExpectedUsage":
        tokens = round(num_keys * self.input_tokens), round(num_keys * self.output_tokens)
        hours = None
        if self.seconds_per_answer is not None and self.parallelism:
            hours = num_keys * self.answers * self.seconds_per_answer / self.parallelism / 3600
        return ExpectedUsage(num_keys, round(num_keys * self.calls), *tokens, prices.cost(*tokens), hours)


@dataclass(frozen=True)
class ExpectedUsage:
    """Expected usage of a number of keys. The cost is in the currency of the prices; hours are None if unknown."""

    num_keys: int
    num_calls: int
    num_input_tokens: int
    num_output_tokens: int
    cost: float
    hours: float | None

    def __add__(self, other: "ExpectedUsage") -> "ExpectedUsage":
        hours = None if self.hours is None or other.hours is None else self.hours + other.hours
        return ExpectedUsage(
            self.num_keys + other.num_keys,
            self.num_calls + other.num_calls,
            self.num_input_tokens + other.num_input_tokens,
            self.num_output_tokens + other.num_output_tokens,
            self.cost + other.cost,
            hours,
        )


@dataclass(frozen=True)
class KeyCounts:
    """Numbers of entities and keys to describe. Entities with equal facts share a key."""

    num_entities: int
    num_cache_hits: int  # entities whose facts have an answer in the ledger, or are parked
    num_kept: int  # users whose history has not grown enough since their last answer
    num_new: int  # keys to generate
    num_allowed: int  # keys within what is left of the day's caps
    num_a_day: int  # keys within the caps of a whole day


@dataclass(frozen=True)
class Forecast:
    entity: str
    counts: KeyCounts
    per_key: UsagePerKey
    today: ExpectedUsage  # within the caps
    all_new: ExpectedUsage  # without caps

    @classmethod
    def of(cls, entity: str, counts: KeyCounts, per_key: UsagePerKey, prices: Prices) -> "Forecast":
        return cls(
            entity, counts, per_key, per_key.expect(counts.num_allowed, prices), per_key.expect(counts.num_new, prices)
        )

    @property
    def num_days(self) -> int | None:
        """Days until every entity has a text within these caps; None if the caps allow nothing."""
        if not self.counts.num_new:
            return 0
        return math.ceil(self.counts.num_new / self.counts.num_a_day) if self.counts.num_a_day else None


def usage_per_key(settings: Settings, entity: str, facts_bytes: float) -> UsagePerKey:
    """Mean usage of the configured prompt and model on the last days, or the estimate."""
    table, versions = ledger_table(entity), Versions(settings)
    folder = partitions.table_path(settings.lake, table, None)
    totals = ledger_totals(folder, table, versions.prompt(entity), versions.llm)
    return UsagePerKey.of(totals, UsageEstimate.of(settings, entity), facts_bytes)


def count_allowed_keys(num_keys: int, caps: Caps, per_key: UsagePerKey, prices: Prices) -> int:
    """How many keys of this mean usage the caps allow."""
    cost = prices.cost(per_key.input_tokens, per_key.output_tokens)
    return min(num_keys, caps.room_for(per_key.calls, per_key.input_tokens + per_key.output_tokens, cost))
