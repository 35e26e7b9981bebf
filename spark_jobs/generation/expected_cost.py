"""What a day of generation is expected to take: arithmetic on counts, means and caps, without data.

Two ways to know what one text takes. Where the ledger holds enough texts of the prompt and model, their means: they
know how often a text is asked for again and how long an answer takes here. Else the estimate that the caps are kept
by, which is too high on purpose and knows nothing of time.
"""

import math
from dataclasses import dataclass

from spark_jobs.generation.budget import Caps, Estimate
from spark_jobs.generation.ledger_totals import Account
from spark_jobs.generation.live_generation import Prices

MIN_MEASURED = 20  # keys, before their means say anything
MEASURED, ESTIMATED = "ledger", "estimate"
ASSUMED_FACTS_BYTES = {"item": 300, "user": 1500}  # of facts nobody has measured: long titles, twenty of them to a user


@dataclass(frozen=True)
class Rates:
    """What one key takes on average, its repair and its failed calls included."""

    source: str  # MEASURED or ESTIMATED
    num_measured: int
    calls: float
    answers: float
    repaired_share: float
    input_tokens: float
    output_tokens: float
    seconds_per_answer: float | None  # None where nobody knows
    parallelism: float | None  # answers that are being written at a time

    @classmethod
    def of(cls, account: Account, estimate: Estimate, facts_bytes: float) -> "Rates":
        """The ledger's means, or the estimate for facts of `facts_bytes` where it holds too little."""
        num = account.num_keys
        num_answers = account.num_calls - account.num_failed_calls
        if num < MIN_MEASURED or not num_answers:
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
            calls=account.num_calls / num,
            answers=num_answers / num,
            repaired_share=account.num_repairs / num,
            input_tokens=account.num_input_tokens / num,
            output_tokens=account.num_output_tokens / num,
            seconds_per_answer=account.seconds / num_answers,
            parallelism=account.seconds / account.wall_seconds if account.wall_seconds else None,
        )

    def expect(self, num_keys: int, prices: Prices) -> "Expected":
        tokens = round(num_keys * self.input_tokens), round(num_keys * self.output_tokens)
        hours = None
        if self.seconds_per_answer is not None and self.parallelism:
            hours = num_keys * self.answers * self.seconds_per_answer / self.parallelism / 3600
        return Expected(num_keys, round(num_keys * self.calls), *tokens, prices.of(*tokens), hours)


@dataclass(frozen=True)
class Expected:
    """Of a number of keys; cost in the currency of the prices, hours None where no rate is known."""

    num_keys: int
    num_calls: int
    num_input_tokens: int
    num_output_tokens: int
    cost: float
    hours: float | None

    def __add__(self, other: "Expected") -> "Expected":
        hours = None if self.hours is None or other.hours is None else self.hours + other.hours
        return Expected(
            self.num_keys + other.num_keys,
            self.num_calls + other.num_calls,
            self.num_input_tokens + other.num_input_tokens,
            self.num_output_tokens + other.num_output_tokens,
            self.cost + other.cost,
            hours,
        )


@dataclass(frozen=True)
class Work:
    """What there is to describe. Entities with equal facts share a key, so there are fewer keys than entities."""

    num_entities: int
    num_cache_hits: int  # their facts are in the ledger
    num_kept: int  # users whose history has not grown enough since the model's last answer, a text or a refusal
    num_new: int  # keys
    num_allowed: int  # keys that what is left of the day's caps leaves room for
    num_a_day: int  # keys of this length that a whole day's caps leave room for


@dataclass(frozen=True)
class Forecast:
    entity: str
    work: Work
    rates: Rates
    today: Expected  # what the caps allow
    all_new: Expected  # as if there were no caps

    @classmethod
    def of(cls, entity: str, work: Work, rates: Rates, prices: Prices) -> "Forecast":
        return cls(entity, work, rates, rates.expect(work.num_allowed, prices), rates.expect(work.num_new, prices))

    @property
    def num_days(self) -> int | None:
        """Whole days of these caps until everyone has a text; None when they allow nothing."""
        if not self.work.num_new:
            return 0
        return math.ceil(self.work.num_new / self.work.num_a_day) if self.work.num_a_day else None


def allowed(num_keys: int, caps: Caps, estimate: Estimate, facts_bytes: float) -> int:
    """How many of equally long keys the caps leave room for, kept as a run keeps them: by the estimate."""
    input_tokens = estimate.input_tokens_of(facts_bytes)
    cost = Prices(estimate.input_price, estimate.output_price).of(input_tokens, estimate.output_tokens)
    room = [num_keys, caps.num_keys]
    if caps.num_calls is not None:
        room.append(caps.num_calls)
    if caps.num_tokens is not None:
        room.append(caps.num_tokens // (input_tokens + estimate.output_tokens))
    if caps.cost is not None and cost:
        room.append(int(caps.cost / cost))
    return min(room)
