"""What `describe_items` and `describe_users` share: pay for each generation once, and describe everyone.

Every entity of the day gets exactly one row. The most active users and the most popular items are described by the
language model as far as the day's budget goes; the ledger keeps every paid generation, refused ones included, and a
key found there is never paid for again. All others, and every refused text, get the description built from the facts.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from grasp import tables
from grasp.days import end_of
from grasp.progress import say
from grasp.settings import Settings
from grasp.tables import Table
from grasp.versions import digest
from spark_jobs.budget import Caps, Estimate, affordable, urgency
from spark_jobs.generate import GenerationError, ModelFactory, Prices, Task, generate, staged
from spark_jobs.lake import Lake
from spark_jobs.ledger import Ledger
from spark_jobs.llm import decoding_parameters, load_model
from spark_jobs.openai_llm import Server, load_server_model
from spark_jobs.prompts import ITEM, USER, Input, Subject, load_template, safe
from spark_jobs.validation import HOSTILE_FACTS

MAX_KNOWN_VALUES = 200
MAX_VALUE_CHARS = 40  # a longer attribute value is a text, not a category
MIN_JUDGED = 20  # outcomes, before a share of failures says anything
OUTPUT_SCHEMA = "text-1"  # what an answer is: raise it when answers are to be read in another way

# Facts of the day as a job hands them over: `raw` is what `Subject.to_input` takes, as JSON.
FACTS_DDL = "entity_id string, activity bigint, raw string"
_INPUT_DDL = (
    "entity_id string, activity bigint, canonical string, input_hash string, generation_key string, "
    "facts_description string, is_withheld boolean"
)

Frames = Iterator[Any]  # pandas data frames, as mapInPandas hands them over


@dataclass(frozen=True)
class Description:
    """One kind of description: its subject, its tables and what makes two generations the same."""

    subject: Subject
    table: Table
    ledger: Table
    prompt_version: str
    model_revision: str
    max_new_tokens: int
    hidden: frozenset[str]

    @classmethod
    def of(cls, subject: Subject, lake: Lake) -> "Description":
        item = subject is ITEM
        return cls(
            subject,
            tables.ITEM_DESCRIPTION if item else tables.USER_DESCRIPTION,
            tables.ITEM_GENERATION if item else tables.USER_GENERATION,
            lake.versions.prompt(subject.entity),
            lake.versions.llm,
            lake.settings.llm_max_new_tokens,
            frozenset(lake.settings.hidden_attributes),
        )

    @property
    def id(self) -> str:
        return f"{self.subject.entity}_id"

    def estimate(self, settings: Settings) -> Estimate:
        """What a generation may take at most."""
        template = load_template(self.subject.entity)
        return Estimate(
            sum(len(content.encode()) for _, content in template.messages),
            self.max_new_tokens,
            settings.llm_input_price,
            settings.llm_output_price,
            1 + settings.llm_repairs,
        )

    def generation_key(self, facts: Input) -> str:
        """sha256 of everything that decides what the model writes."""
        decoding = decoding_parameters(self.max_new_tokens)
        return digest([self.prompt_version, self.model_revision, decoding, OUTPUT_SCHEMA, facts])


def real_model(settings: Settings, num_workers: int = 1) -> ModelFactory:
    """Makes the model once per worker process. Captures no settings, so that no secret travels to a worker.

    `num_workers` processes ask a server at the same time: each has its share of the global rate limits.
    """
    if settings.llm_url:
        return partial(load_server_model, Server.of(settings, num_workers))
    return partial(load_model, settings.llm, settings.llm_max_new_tokens, settings.llm_batch_size)


def describe(lake: Lake, day: str, subject: Subject, facts: DataFrame, *, caps: Caps, make_model: ModelFactory) -> None:
    """Generate what the caps allow and write the day's descriptions; `facts` has the columns of `FACTS_DDL`.

    Raises `GenerationError` when the model fails, or when more of its texts do than `GRASP_LLM_MAX_FAILURE_SHARE`.
    """
    description = Description.of(subject, lake)
    describing = Describing(lake, day, description, Ledger(lake, description.ledger))
    inputs = facts.mapInPandas(partial(_inputs, description), _INPUT_DDL).cache()
    try:
        describing.pay(inputs, caps, make_model)
        lake.write(description.table, describing.descriptions(inputs), day)
    finally:
        inputs.unpersist()
    describing.report()


@dataclass(frozen=True)
class Describing:
    """One kind of description on one day."""

    lake: Lake
    day: str
    description: Description
    ledger: Ledger

    def pay(self, inputs: DataFrame, caps: Caps, make_model: ModelFactory) -> None:
        """Generate what is not in the ledger, most urgent first, as far as the day's caps go."""
        description, settings = self.description, self.lake.settings
        with self.ledger.held():
            left = caps.left(self.ledger.spent(self.day, description.prompt_version, description.model_revision))
            if not left.num_keys:
                return
            work = affordable(self.unpaid(inputs), left, description.estimate(settings))
            with staged(self.lake, work) as (written, num_work):
                if num_work:
                    self._generate(written, num_work, make_model)

    def _generate(self, work: DataFrame, num_work: int, make_model: ModelFactory) -> None:
        description, settings = self.description, self.lake.settings
        task = Task(
            description.subject,
            description.prompt_version,
            description.model_revision,
            self.ledger.shards(self.day),
            make_model,
            Prices(settings.llm_input_price, settings.llm_output_price),
            self._known_values(),
            settings.llm_repairs,
        )
        try:
            outcomes = generate(self.lake, task, work, num_work)
        finally:
            self.ledger.seal(self.day)
        num_all, num_failed = outcomes.total(), outcomes.total() - outcomes["accepted"]
        say(f"{self.ledger.table.name} {self.day}: {num_all} answered: {listed(outcomes)}")
        if num_all >= MIN_JUDGED and num_failed > settings.llm_max_failure_share * num_all:
            raise GenerationError(
                f"{num_failed} of {num_all} texts failed, more than GRASP_LLM_MAX_FAILURE_SHARE="
                f"{settings.llm_max_failure_share:g} allows: {listed(outcomes)}"
            )

    def unpaid(self, inputs: DataFrame) -> DataFrame:
        """Entities whose facts have no answer yet and whose last text does not do any longer, with their urgency."""
        described = self._kept().select(
            F.col(self.description.id).alias("entity_id"), "computed_at", F.col("activity").alias("activity_then")
        )
        grown = (1 + self.lake.settings.redescribe_growth) * F.col("activity_then")
        return (
            self.ledger.unpaid(inputs)
            .join(described, "entity_id", "left")
            .where(~F.col("is_withheld"))  # no text about facts that give orders would be accepted
            .where(F.col("activity_then").isNull() | (F.col("activity") >= grown))
            .withColumn("urgency", urgency(F.col("activity"), F.col("computed_at"), end_of(self.day)))
        )

    def _kept(self) -> DataFrame:
        """Users' generated texts of the last day before: each stays until a newer one is paid for.

        An item's facts change when something about it is different, so its old text must go; a user's change with
        every click.
        """
        before = self.lake.read_before(self.description.table, self.day)
        return before.where(
            self._same_versions() & (F.col("source") == "llm") & F.lit(self.description.subject is USER)
        )

    def _same_versions(self) -> Column:
        return (F.col("prompt_version") == self.description.prompt_version) & (
            F.col("model_revision") == self.description.model_revision
        )

    def descriptions(self, inputs: DataFrame) -> DataFrame:
        """One row per entity: the accepted text, or the one it had, or the facts and why.

        Unchanged rows keep their `computed_at`.
        """
        description = self.description
        accepted = F.col("llm_description").isNotNull()
        text = F.coalesce("llm_description", "facts_description")
        without = F.when(F.col("is_withheld"), HOSTILE_FACTS).otherwise("budget")
        kept = self._kept()
        kept = kept.select(F.col(description.id).alias("entity_id"), F.struct(*kept.columns).alias("kept"))
        answered = inputs.join(self._usable(inputs), ["entity_id", "generation_key"], "left")
        new = F.struct(
            F.col("entity_id").alias(description.id),
            text.alias("description"),
            F.when(accepted, "llm").otherwise("facts").alias("source"),
            F.when(~accepted, F.coalesce("refusal_reason", without)).alias("fallback_reason"),
            F.lit(description.prompt_version).alias("prompt_version"),
            F.lit(description.model_revision).alias("model_revision"),
            F.col("input_hash"),
            F.when(accepted & (F.lit(description.subject is USER)), F.col("activity")).alias("activity"),
            F.sha2(text, 256).alias("description_hash"),
            F.lit(None).cast("timestamp").alias("computed_at"),
        )
        stays = F.col("kept").isNotNull() & F.col("llm_description").isNull() & F.col("refusal_reason").isNull()
        row = F.when(stays, F.col("kept")).otherwise(new).alias("row")
        described = answered.join(kept, "entity_id", "left").select(row).select("row.*")
        same = [description.id, "description_hash", "source", "prompt_version", "model_revision"]
        before = self.lake.read_latest(description.table, self.day).select(
            *same, F.col("computed_at").alias("computed_before")
        )
        since = F.coalesce("computed_before", "computed_at", F.lit(self.lake.settings.clock()))
        return described.join(before, same, "left").withColumn("computed_at", since)

    def _usable(self, inputs: DataFrame) -> DataFrame:
        """The ledger's answer to each entity: all that is paid for, except what would change a day already written.

        A day that went without a text for want of budget keeps doing so when a later day pays for the same facts:
        running a day again gives the same result.
        """
        answer = [F.col("description").alias("llm_description"), "refusal_reason"]
        known = inputs.select("entity_id", "generation_key").join(
            self.ledger.answers().select("generation_key", *answer), "generation_key"
        )
        if self.day not in self.lake.days(self.description.table):
            return known
        until = self.ledger.answers(until=self.day).select("generation_key", F.lit(True).alias("until_today"))
        without = (
            self.lake.read(self.description.table, self.day)
            .where(self._same_versions() & (F.col("fallback_reason") == "budget"))
            .select(F.col(self.description.id).alias("entity_id"), "input_hash")
            .join(inputs.select("entity_id", "input_hash", "generation_key"), ["entity_id", "input_hash"])
            .select("entity_id", "generation_key", F.lit(True).alias("without"))
        )
        return (
            known.join(until, "generation_key", "left")
            .join(without, ["entity_id", "generation_key"], "left")
            .where(F.col("until_today").isNotNull() | F.col("without").isNull())
            .drop("until_today", "without")
        )

    def _known_values(self) -> frozenset[str]:
        """The catalogue's most frequent attribute values: what the validator knows that a text could wrongly claim."""
        values = attribute_values(self.lake.read(tables.ITEMS, self.day), self.lake.settings.hidden_attributes)
        frequent = values.groupBy("value").count().where("count > 1").orderBy(F.desc("count"), "value")
        return frozenset(row.value for row in frequent.limit(MAX_KNOWN_VALUES).collect() if safe(row.value))

    def report(self) -> None:
        table = self.description.table
        written = self.lake.read(table, self.day).groupBy("source", "fallback_reason").count().collect()
        counts = {row.fallback_reason or "llm": row["count"] for row in written}
        say(f"{table.name} {self.day}: {sum(counts.values())} descriptions ({listed(counts)})")


def listed(outcomes: Mapping[str, int]) -> str:
    """For example `51 accepted, 12 loop, 3 timeout`, most frequent first."""
    return ", ".join(f"{num} {name}" for name, num in sorted(outcomes.items(), key=lambda each: (-each[1], each[0])))


def attribute_values(items: DataFrame, hidden: Collection[str]) -> DataFrame:
    """Every value of every shown item attribute that reads like a category: `item_id, value`."""
    return (
        items.select("item_id", F.explode("attributes").alias("name", "list"))
        .where(~F.col("name").isin(list(hidden)))
        .select("item_id", F.explode(F.split("list", ", ")).alias("value"))
        .where((F.length("value") > 0) & (F.length("value") <= MAX_VALUE_CHARS) & ~F.col("value").rlike(r"^[\d\W]*$"))
        .distinct()
    )


def _inputs(description: Description, frames: Frames) -> Frames:
    """Canonical input, its hashes and its facts description for every entity (runs in Spark workers)."""
    subject = description.subject
    for frame in frames:
        inputs = [subject.to_input(json.loads(raw), description.hidden) for raw in frame.pop("raw")]
        yield frame.assign(
            canonical=[json.dumps(each, ensure_ascii=False) for each in inputs],
            input_hash=[digest(each) for each in inputs],
            generation_key=[description.generation_key(each) for each in inputs],
            facts_description=[subject.to_facts_description(each) for each in inputs],
            is_withheld=["withheld" in each for each in inputs],
        )
