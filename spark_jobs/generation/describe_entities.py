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

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from grasp import tables
from grasp.days import end_of
from grasp.progress import say
from grasp.settings import Settings
from grasp.versions import digest
from spark_jobs.generation.attributes import known_values
from spark_jobs.generation.batch_generation import Batches
from spark_jobs.generation.budget import Caps, Estimate, affordable, urgency
from spark_jobs.generation.description_kind import Description, ledger_of
from spark_jobs.generation.ledger import Ledger, Spent
from spark_jobs.generation.ledger_totals import Account, account
from spark_jobs.generation.live_generation import (
    GenerationError,
    Judge,
    ModelFactory,
    Prices,
    Task,
    generate,
    listed,
    staged,
)
from spark_jobs.generation.metrics import by_history, coverage, record
from spark_jobs.generation.prompts import Subject
from spark_jobs.generation.text_selection import described, lasting, of_versions, since, usable
from spark_jobs.models.language_model import SpendingLimits, load_model
from spark_jobs.models.language_model_http import LanguageModelServer, load_server_model
from spark_jobs.storage.lake import Lake, cached

MIN_JUDGED = 20  # outcomes, before a share of failures says anything

# Facts of the day as a job hands them over: `raw` is what `Subject.to_input` takes, as JSON.
FACTS_DDL = "entity_id string, activity bigint, raw string"
_INPUT_DDL = (
    "entity_id string, activity bigint, canonical string, input_hash string, generation_key string, "
    "facts_description string, is_withheld boolean"
)

Frames = Iterator[Any]  # pandas data frames, as mapInPandas hands them over


def real_model(settings: Settings, num_workers: int = 1) -> ModelFactory:
    """Makes the model once per worker process. Captures no settings, so that no secret travels to a worker.

    `num_workers` processes ask a server at the same time: each has its share of the global rate limits.
    """
    if settings.llm_url:
        return partial(load_server_model, LanguageModelServer.of(settings, num_workers))
    return partial(load_model, settings.llm, settings.llm_max_new_tokens, settings.llm_batch_size)


def describe(
    lake: Lake, day: str, subject: Subject, facts: DataFrame, *, caps: Caps, make_model: ModelFactory | None = None
) -> None:
    """Generate what the caps allow and write the day's descriptions; `facts` has the columns of `FACTS_DDL`.

    The model is that of the settings unless another is given. Where `GRASP_LLM_BATCH_FILES` is set, batch files take
    its place.

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
        return cls(lake, day, description, Ledger(lake, ledger_of(subject.entity)))

    def inputs(self, facts: DataFrame) -> DataFrame:
        return facts.mapInPandas(partial(_inputs, self.description), _INPUT_DDL)

    def spent(self) -> Spent:
        return self.ledger.spent(self.day, self.description.prompt_version, self.description.model_revision)

    def pay(self, inputs: DataFrame, caps: Caps, make_model: ModelFactory | None) -> None:
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

    def _generate(
        self, work: DataFrame, num_work: int, limits: SpendingLimits, make_model: ModelFactory | None
    ) -> None:
        settings = self.lake.settings
        # Counted here and not when the job began: a cluster's executors may come after their driver.
        make_model = make_model or real_model(settings, self.lake.spark.sparkContext.defaultParallelism)
        with self.ledger.growing(self.day) as shards:
            task = Task(self.validator, shards, make_model, settings.llm_repairs, limits, num_work)
            outcomes = generate(self.lake, task, work, num_work)
        say(f"{self.ledger.table.name} {self.day}: {outcomes.total()} texts asked for: {listed(outcomes)}")

    def record(self, inputs: DataFrame, answers: DataFrame) -> Account:
        """Write what the day took so far, by the ledger, and return it."""
        description, ledger = self.description, self.ledger
        prompt_version, model_revision = description.prompt_version, description.model_revision
        asked = account(ledger.folder, ledger.table, prompt_version, model_revision, day=self.day)
        kept = self._lasting().where("source = 'llm'").withColumnRenamed(description.id, "entity_id")
        today = of_versions(ledger.of_day(self.day), description).withColumnRenamed(description.id, "entity_id")
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
                f"{share:g} allows: {listed(asked.reasons)}; python -m spark_jobs.commands.dead_letters list shows them"
            )

    def unpaid(self, inputs: DataFrame) -> DataFrame:
        """Entities whose facts have no answer yet and whose last one does not do any longer, with their urgency.

        A refusal does as long as a text would, unless a replay of it was requested.
        """
        answered = self._lasting().select(
            F.col(self.description.id).alias("entity_id"),
            F.col("activity").alias("activity_then"),
            F.when(F.col("source") == "llm", F.col("computed_at")).alias("text_since"),
        )
        replayed = self._replayed(inputs).withColumn("is_replayed", F.lit(True))
        grown = (1 + self.lake.settings.redescribe_growth) * F.col("activity_then")
        return (
            self.ledger.unpaid(inputs)
            .join(answered, "entity_id", "left")
            .join(replayed, "entity_id", "left")
            .where(~F.col("is_withheld"))  # no text about facts that give orders would be accepted
            .where(F.col("activity_then").isNull() | (F.col("activity") >= grown) | F.col("is_replayed"))
            .withColumn("urgency", urgency(F.col("activity"), F.col("text_since"), end_of(self.day)))
        )

    def _replayed(self, inputs: DataFrame) -> DataFrame:
        """The `entity_id` of those whose facts, or whose last answer about other facts, wait to be replayed."""
        with_these_facts = inputs.join(self.ledger.waiting("generation_key"), "generation_key", "left_semi")
        with_others = self.ledger.waiting(self.description.id).withColumnRenamed(self.description.id, "entity_id")
        return with_these_facts.select("entity_id").union(with_others).distinct()

    def usable(self, inputs: DataFrame) -> DataFrame:
        """The ledger's answer to each entity, as far as it may change the day."""
        table, ledger = self.description.table, self.ledger
        written = self.lake.read(table, self.day) if self.day in self.lake.days(table) else None
        until, later = ledger.answers(until=self.day), ledger.answers(after=self.day)
        return usable(inputs, until, later, written, self.description)

    def descriptions(self, inputs: DataFrame, answers: DataFrame) -> DataFrame:
        """The day's row of every entity; unchanged ones keep their `computed_at`."""
        rows = described(inputs, answers, self.ledger.errors(self.day), self._lasting(), self.description)
        before = self.lake.read_latest(self.description.table, self.day)
        return since(rows, before, self.lake.settings.clock(), self.description)

    def _lasting(self) -> DataFrame:
        return lasting(self.lake.read_before(self.description.table, self.day), self.description)

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
