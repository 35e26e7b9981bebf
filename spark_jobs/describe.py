"""What `describe_items` and `describe_users` share: pay for each generation once, and describe everyone.

Every entity of the day gets exactly one row. The most active users and the most popular items are described by the
language model as far as the day's budget goes; the ledger keeps every paid generation, refused ones included, and a
key found there is never paid for again. All others, and every refused text, get the description built from the facts.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from grasp import tables
from grasp.days import end_of
from grasp.progress import say
from grasp.settings import Settings
from grasp.tables import Table
from grasp.versions import digest
from spark_jobs.account import Account, account
from spark_jobs.attributes import known_values
from spark_jobs.batch_generate import Batches
from spark_jobs.budget import Caps, Estimate, affordable, urgency
from spark_jobs.generate import GenerationError, Judge, ModelFactory, Prices, Task, generate, listed, staged
from spark_jobs.generation_metrics import by_history, coverage, record
from spark_jobs.lake import Lake, cached
from spark_jobs.ledger import Ledger, Spent
from spark_jobs.llm import Limits, decoding_parameters, load_model
from spark_jobs.openai_llm import Server, load_server_model
from spark_jobs.prompts import ITEM, USER, Input, Subject
from spark_jobs.validation import HOSTILE_FACTS

BUDGET = "budget"  # the fallback reason of an entity that the caps left no room for
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
            ledger_of(subject.entity),
            lake.versions.prompt(subject.entity),
            lake.versions.llm,
            lake.settings.llm_max_new_tokens,
            frozenset(lake.settings.hidden_attributes),
        )

    @property
    def versions(self) -> tuple[str, str]:
        return self.prompt_version, self.model_revision

    @property
    def id(self) -> str:
        return f"{self.subject.entity}_id"

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


def ledger_of(entity: str) -> Table:
    return tables.ITEM_GENERATION if entity == "item" else tables.USER_GENERATION


def describe(lake: Lake, day: str, subject: Subject, facts: DataFrame, *, caps: Caps, make_model: ModelFactory) -> None:
    """Generate what the caps allow and write the day's descriptions; `facts` has the columns of `FACTS_DDL`.

    Where `GRASP_LLM_BATCH_FILES` is set, batch files take the place of the model.

    Raises `GenerationError` when the model fails, or when more of the day's texts have failed than
    `GRASP_LLM_MAX_FAILURE_SHARE`. What was paid until then is kept, and the day's metrics are written either way.
    """
    describing = Describing.of(lake, day, subject)
    with cached(describing.inputs(facts)) as inputs:
        try:
            describing.pay(inputs, caps, make_model)
        except GenerationError:
            describing.record(inputs, describing.usable(inputs))
            raise
        with cached(describing.usable(inputs)) as answers:
            describing.judge(describing.record(inputs, answers))
            lake.write(describing.description.table, describing.descriptions(inputs, answers), day)
    describing.report()


@dataclass(frozen=True)
class Describing:
    """One kind of description on one day."""

    lake: Lake
    day: str
    description: Description
    ledger: Ledger

    @classmethod
    def of(cls, lake: Lake, day: str, subject: Subject) -> "Describing":
        description = Description.of(subject, lake)
        return cls(lake, day, description, Ledger(lake, description.ledger))

    def inputs(self, facts: DataFrame) -> DataFrame:
        return facts.mapInPandas(partial(_inputs, self.description), _INPUT_DDL)

    def spent(self) -> Spent:
        return self.ledger.spent(self.day, self.description.prompt_version, self.description.model_revision)

    def pay(self, inputs: DataFrame, caps: Caps, make_model: ModelFactory) -> None:
        """Generate what is not in the ledger, most urgent first, as far as the day's caps go."""
        description, settings = self.description, self.lake.settings
        with self.ledger.held():
            batches = Batches(self.ledger, description.versions, lambda: self.validator, caps, settings)
            batches.collect()
            left = caps.left(self.spent() + batches.reserved(self.day))
            if left.num_keys:
                unpaid = batches.not_pending(self.unpaid(inputs))
                work = affordable(unpaid, left, Estimate.of(settings, description.subject.entity))
                with staged(self.lake, work) as (written, num_work):
                    if num_work and settings.llm_batch_files:
                        rows = written.orderBy("number").drop("number").toLocalIterator()
                        batches.lay(self.day, (row.asDict() for row in rows), left)
                    elif num_work:
                        self._generate(written, num_work, left.limits(settings), make_model)
            batches.wait()

    @cached_property
    def validator(self) -> Judge:
        """Computed when there is something to judge: it takes a look at the whole catalogue."""
        description, settings = self.description, self.lake.settings
        return Judge(
            description.subject,
            *description.versions,
            Prices(settings.llm_input_price, settings.llm_output_price),
            known_values(self.lake.read(tables.ITEMS, self.day), settings.hidden_attributes),
        )

    def _generate(self, work: DataFrame, num_work: int, limits: Limits, make_model: ModelFactory) -> None:
        repairs = self.lake.settings.llm_repairs
        task = Task(self.validator, self.ledger.shards(self.day), make_model, repairs, limits, num_work)
        try:
            outcomes = generate(self.lake, task, work, num_work)
        finally:
            self.ledger.seal(self.day)
        say(f"{self.ledger.table.name} {self.day}: {outcomes.total()} answered: {listed(outcomes)}")

    def record(self, inputs: DataFrame, answers: DataFrame) -> Account:
        """Write what the day took so far, by the ledger, and return it."""
        description, ledger = self.description, self.ledger
        prompt_version, model_revision = description.prompt_version, description.model_revision
        asked = account(ledger.folder, ledger.table, prompt_version, model_revision, day=self.day)
        kept = self._kept().withColumnRenamed(description.id, "entity_id")
        today = ledger.of_day(self.day).withColumnRenamed(description.id, "entity_id").where(self._same_versions())
        covered = coverage(inputs, answers, kept, today.where(F.col("error").isNull()))
        key = (description.subject.entity, prompt_version, model_revision)
        histories = by_history(today, inputs)
        record(self.lake, self.day, key, covered=covered, asked=asked, histories=histories)
        return asked

    def judge(self, asked: Account) -> None:
        """Raise `GenerationError` for a day of which too much has failed.

        Judged is the day, not the run: one that is only run again would have nothing to generate, and so no failure.
        """
        share = self.lake.settings.llm_max_failure_share
        if asked.num_keys >= MIN_JUDGED and asked.num_failed > share * asked.num_keys:
            raise GenerationError(
                f"{asked.num_failed} of {asked.num_keys} texts failed, more than GRASP_LLM_MAX_FAILURE_SHARE="
                f"{share:g} allows: {listed(asked.reasons)}; python -m spark_jobs.dead_letters list shows them"
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

    def descriptions(self, inputs: DataFrame, answers: DataFrame) -> DataFrame:
        """One row per entity: the accepted text of `answers`, or the one it had, or the facts and why.

        Why is what happened on the day, in this order: the text was refused, the call failed, the facts are not shown
        to a model, the caps left no room. Unchanged rows keep their `computed_at`.
        """
        description = self.description
        accepted = F.col("llm_description").isNotNull()
        text = F.coalesce("llm_description", "facts_description")
        without = F.when(F.col("is_withheld"), HOSTILE_FACTS).otherwise(BUDGET)
        kept = self._kept()
        kept = kept.select(F.col(description.id).alias("entity_id"), F.struct(*kept.columns).alias("kept"))
        answered = inputs.join(answers, ["entity_id", "generation_key"], "left").join(
            self.ledger.errors(self.day), "generation_key", "left"
        )
        new = F.struct(
            F.col("entity_id").alias(description.id),
            text.alias("description"),
            F.when(accepted, "llm").otherwise("facts").alias("source"),
            F.when(~accepted, F.coalesce("refusal_reason", "error", without)).alias("fallback_reason"),
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

    def usable(self, inputs: DataFrame) -> DataFrame:
        """The ledger's answer to each entity: all that is paid for, except what would change a day already written.

        A day that went without a text, for want of budget or because the call failed, keeps doing so when a later day
        pays for the same facts: running a day again gives the same result.
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
            .where(self._same_versions() & (F.col("source") == "facts"))
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

    def report(self) -> None:
        table = self.description.table
        written = self.lake.read(table, self.day).groupBy("source", "fallback_reason").count().collect()
        counts = {row.fallback_reason or "llm": row["count"] for row in written}
        say(f"{table.name} {self.day}: {sum(counts.values())} descriptions ({listed(counts)})")


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
