"""How much a day may spend on descriptions, and which entities come first.

Priority: active entities whose text is oldest. Urgency = activity * (age of the text / 28 days, at most 1); an entity
without a text counts as 28 days. Withdrawn items come last. All workers of a run draw on one account of what the caps
leave (`models/account.py`), with the tokens that the model counts.
"""

import math
from dataclasses import dataclass
from datetime import datetime

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from grasp.settings import Settings
from spark_jobs.generation.prompts import MAX_FACTS_BYTES, load_template
from spark_jobs.models.account import SpendingLimits, Usage

MAX_AGE_DAYS = 28.0
BYTES_PER_TOKEN = 3.0  # of ASCII text, for upper estimates; English has more than 4
MOST_BYTES_PER_TOKEN = 16.0  # of a prompt: above what any tokenizer reaches


@dataclass(frozen=True)
class Caps:
    """Caps for one day and one kind of description: texts, tokens, cost and calls; None means no limit."""

    num_keys: int
    num_tokens: int | None = None
    cost: float | None = None
    num_calls: int | None = None

    @classmethod
    def of(cls, settings: Settings, entity: str) -> "Caps":
        """Items get half of the day's caps, rounded down; users get the rest."""

        def half(limit: int) -> int:
            return limit // 2 if entity == "item" else limit - limit // 2

        return cls(
            half(settings.llm_budget),
            half(settings.llm_max_tokens) if settings.llm_max_tokens else None,
            settings.llm_max_cost / 2 if settings.llm_max_cost else None,
            half(settings.llm_max_calls) if settings.llm_max_calls else None,
        )

    def left(self, spent: Usage) -> "Caps":
        return Caps(
            max(0, self.num_keys - spent.num_keys),
            None if self.num_tokens is None else max(0, self.num_tokens - spent.num_tokens),
            None if self.cost is None else max(0.0, self.cost - spent.cost),
            None if self.num_calls is None else max(0, self.num_calls - spent.num_calls),
        )

    def allow(self, spent: Usage) -> bool:
        """Whether this usage is within the caps."""
        return spent.num_keys <= self.num_keys and self.limits().allow(spent)

    def limits(self) -> SpendingLimits:
        return SpendingLimits(self.num_calls, self.num_tokens, self.cost)

    def room_for(self, num_calls: float, num_tokens: float, cost: float) -> int:
        """How many texts fit that take this much each."""
        room: list[float] = [self.num_keys]
        for cap, each in ((self.num_calls, num_calls), (self.num_tokens, num_tokens), (self.cost, cost)):
            if cap is not None and each:
                room.append(cap / each)
        return math.floor(min(room))

    def most_keys(self, estimate: "UsageEstimate") -> int:
        """More texts cannot fit into the caps. How many do is known from the model's answers."""
        num_tokens = estimate.prompt_bytes / MOST_BYTES_PER_TOKEN
        return self.room_for(1, num_tokens, estimate.input_price * num_tokens / 1e6)


@dataclass(frozen=True)
class UsageEstimate:
    """Upper estimate for one generation, from the settings and the length of the prompt without facts."""

    prompt_bytes: int
    max_new_tokens: int
    input_price: float  # per million tokens
    output_price: float
    num_tries: int = 1  # including the repair

    @classmethod
    def of(cls, settings: Settings, entity: str) -> "UsageEstimate":
        template = load_template(entity)
        return cls(
            sum(len(content.encode()) for _, content in template.messages),
            settings.llm_max_new_tokens,
            settings.llm_input_price,
            settings.llm_output_price,
            1 + settings.llm_repairs,
        )

    def input_tokens_of(self, num_bytes: float) -> int:
        """Input tokens for facts of `num_bytes`, as counted by `estimated_bytes`."""
        return math.ceil((num_bytes + self.prompt_bytes) / BYTES_PER_TOKEN) * self.num_tries

    @property
    def output_tokens(self) -> int:
        return self.max_new_tokens * self.num_tries


def estimated_bytes(canonical: Column) -> Column:
    """Bytes of facts for the estimate, capped. A byte that is not ASCII counts three times: it may be a whole token."""
    num_ascii = F.char_length(F.regexp_replace(canonical, r"[^\x00-\x7F]", ""))
    num_bytes = BYTES_PER_TOKEN * F.octet_length(canonical) - (BYTES_PER_TOKEN - 1) * num_ascii
    return F.least(num_bytes, F.lit(BYTES_PER_TOKEN * MAX_FACTS_BYTES))


def max_tokens_of(text: str) -> int:
    """Upper estimate of the tokens of a text: one per three ASCII bytes, and one per other byte."""
    num_ascii, num_bytes = sum(map(str.isascii, text)), len(text.encode(errors="surrogatepass"))
    return math.ceil(num_ascii / BYTES_PER_TOKEN) + num_bytes - num_ascii


def urgency(activity: Column, described_at: Column, now: datetime) -> Column:
    """Activity * (age of the text / 28 days, at most 1); without a text the age is 28 days."""
    days = F.date_diff(F.lit(now), described_at).cast("double")
    age = F.least(F.greatest(F.coalesce(days, F.lit(MAX_AGE_DAYS)), F.lit(0.0)), F.lit(MAX_AGE_DAYS))
    return activity * age / MAX_AGE_DAYS


def most_urgent(wanted: DataFrame, num_keys: int) -> DataFrame:
    """The `num_keys` most urgent requests, numbered from 0: `number, generation_key, entity_id, canonical`.

    `wanted` has `generation_key, entity_id, canonical, urgency`. Entities with equal facts share one request.
    """
    order = F.struct(-F.col("urgency"), "entity_id")
    keyed = wanted.groupBy("generation_key").agg(
        F.min_by(F.struct("entity_id", "canonical", "urgency"), order).alias("first")
    )
    by_urgency = Window.orderBy(F.desc("urgency"), "entity_id")
    return (
        keyed.select("generation_key", "first.*")
        .withColumn("number", F.row_number().over(by_urgency).cast("bigint") - 1)
        .where(F.col("number") < num_keys)
        .select("number", "generation_key", "entity_id", "canonical")
    )
