"""Write one description per item or user; shared by `describe_items` and `describe_users`.

Every entity of the day gets exactly one row. The language model describes the most active users and the most popular
items, as far as the day's caps allow. The ledger keeps every generation, including refused ones, so no key is paid for
twice. All other entities, and those with a refused text, get the description built from facts.
"""

import json
from collections.abc import Collection, Iterator
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
from spark_jobs.generation.batch_generation import BatchGeneration, uncounted_days, uncounted_mark, with_pending
from spark_jobs.generation.budget import Caps, UsageEstimate, most_urgent, urgency
from spark_jobs.generation.description_kind import DescriptionKind, ledger_table
from spark_jobs.generation.ledger import Ledger
from spark_jobs.generation.ledger_totals import LedgerTotals, ledger_totals
from spark_jobs.generation.live_generation import (
    FIRST_REQUESTS,
    GenerationError,
    GenerationTask,
    ModelFactory,
    Validator,
    format_counts,
    generate,
    staged_requests,
    staging_folder,
)
from spark_jobs.generation.metrics import Coverage, count_by_history, count_coverage, write_metrics
from spark_jobs.generation.prompts import Subject
from spark_jobs.generation.text_selection import (
    description_rows,
    kept_descriptions,
    of_prompt_and_model,
    select_answers,
    with_computed_at,
)
from spark_jobs.models.account import Account, Prices, SpendingLimits, Usage
from spark_jobs.models.chat_completions import LASTING, WRONG_SETTINGS
from spark_jobs.models.language_model import load_model
from spark_jobs.models.language_model_http import LanguageModelServer, load_server_model
from spark_jobs.storage.lake import Lake, cached

MIN_OUTCOMES = 20  # with fewer outcomes, the share of failures is not checked

# Facts of the day from a job; `raw` is the argument of `Subject.to_input` as JSON.
FACTS_DDL = "entity_id string, activity bigint, raw string"
_INPUT_DDL = (
    "entity_id string, activity bigint, canonical string, input_hash string, generation_key string, "
    "facts_description string, is_withheld boolean"
)

Frames = Iterator[Any]  # pandas data frames, as mapInPandas hands them over


def model_factory(settings: Settings, num_workers: int = 1) -> ModelFactory:
    """A function that creates the model in a worker. It captures no settings, so no secret is sent to workers.

    `num_workers` processes call a server concurrently; each has its share of the rate limits.
    """
    if settings.llm_url:
        return partial(load_server_model, LanguageModelServer.of(settings, num_workers))
    return partial(load_model, settings.llm, settings.llm_max_new_tokens, settings.llm_batch_size)


def describe_entities(
    lake: Lake, day: str, subject: Subject, facts: DataFrame, *, caps: Caps, make_model: ModelFactory | None = None
) -> None:
    """Generate what the caps allow, then write the day's descriptions; `facts` has the columns of `FACTS_DDL`.

    Uses the configured model unless `make_model` is given, or batch files if `GRASP_LLM_BATCH_FILES` is set.

    Raises `GenerationError` if the model fails, or if the share of failed texts is above
    `GRASP_LLM_MAX_FAILURE_SHARE`, of this day or of another one whose batch was read late. Paid generations are
    kept, and the day's metrics are written in any case.
    """
    run = DescriptionRun.of(lake, day, subject)
    with cached(run.inputs(facts)) as inputs:
        try:
            run.generate_missing(inputs, caps, make_model)
        except GenerationError:
            run.write_metrics(inputs, run.select_answers(inputs))
            raise
        with cached(run.select_answers(inputs)) as answers:
            run.require_few_failures(run.day, run.write_metrics(inputs, answers))
            run.count_late_answers(inputs)
            lake.write(run.kind.table, run.descriptions(inputs, answers), day)
    run.log_result()


@dataclass(frozen=True)
class DescriptionRun:
    """The steps for one kind of description on one day."""

    lake: Lake
    day: str
    kind: DescriptionKind
    ledger: Ledger

    @classmethod
    def of(cls, lake: Lake, day: str, subject: Subject) -> "DescriptionRun":
        kind = DescriptionKind.of(subject, lake)
        return cls(lake, day, kind, Ledger(lake, ledger_table(subject.entity)))

    def inputs(self, facts: DataFrame) -> DataFrame:
        return facts.mapInPandas(partial(_inputs, self.kind), _INPUT_DDL)

    def usage(self) -> Usage:
        return self.ledger.usage(self.day, self.kind.prompt_version, self.kind.model_revision)

    def generate_missing(self, inputs: DataFrame, caps: Caps, make_model: ModelFactory | None) -> None:
        """Generate what is not in the ledger, most urgent first, within the day's caps."""
        kind, settings = self.kind, self.lake.settings
        with self.ledger.lock():
            batches = BatchGeneration(self.ledger, kind.versions, lambda: self.validator, caps, settings)
            batches.collect()
            left = self._left(batches)
            if num_keys := left.most_keys(UsageEstimate.of(settings, kind.subject.entity)):
                wanted = batches.without_pending(self.entities_to_describe(inputs))
                with staged_requests(self.lake, most_urgent(wanted, num_keys)) as (requests, num_requests):
                    if num_requests and settings.llm_batch_files:
                        self._generate_by_batch(requests, num_requests, batches)
                    elif num_requests:
                        # What a model that has answered before does not answer may be about the prompt.
                        hopeless = WRONG_SETTINGS if batches.is_model_known() else LASTING
                        self._generate(requests, num_requests, left.limits(), make_model, hopeless)
            batches.wait()

    def _left(self, batches: BatchGeneration) -> Caps:
        return batches.caps.left(self.usage() + batches.reserved(self.day))

    def _generate_by_batch(self, requests: DataFrame, num_requests: int, batches: BatchGeneration) -> None:
        """Submit what the caps allow, again and again: a new model first answers a few, and answers give back caps."""
        num_submitted = 0
        while num_submitted < num_requests:
            rows = requests.where(F.col("number") >= num_submitted).orderBy("number").drop("number").toLocalIterator()
            num_new = batches.prepare(self.day, (row.asDict() for row in rows), self._left(batches))
            if not num_new:
                break
            num_submitted += num_new
            batches.wait()

    @cached_property
    def validator(self) -> Validator:
        """Created on first use, because it reads the whole catalogue."""
        kind, settings = self.kind, self.lake.settings
        return Validator(
            kind.subject,
            *kind.versions,
            Prices.of(settings),
            known_values(self.lake.read(tables.ITEMS, self.day), settings.hidden_attributes),
        )

    def _generate(
        self,
        requests: DataFrame,
        num_requests: int,
        limits: SpendingLimits,
        make_model: ModelFactory | None,
        hopeless: Collection[str],
    ) -> None:
        settings = self.lake.settings
        # Counted now, not at the start of the job: executors of a cluster may register late.
        make_model = make_model or model_factory(settings, self.lake.spark.sparkContext.defaultParallelism)
        num_first = FIRST_REQUESTS if settings.llm_url else 0
        with self.ledger.growing(self.day) as shards, staging_folder(self.lake) as folder:
            account = Account(limits, Prices.of(settings), folder)
            task = GenerationTask(self.validator, shards, make_model, settings.llm_repairs, account)
            outcomes = generate(self.lake, task, requests, num_requests, num_first=num_first, hopeless=hopeless)
        say(f"{self.ledger.table.name} {self.day}: {outcomes.total()} texts requested: {format_counts(outcomes)}")

    def write_metrics(self, inputs: DataFrame, answers: DataFrame) -> LedgerTotals:
        """Write the day's metrics from the ledger; returns the ledger's totals."""
        kind = self.kind
        kept = self._kept().where("source = 'llm'").withColumnRenamed(kind.id, "entity_id")
        answered_today = self._asked_on(self.day).where(F.col("error").isNull())
        totals = self._write_totals(self.day, inputs, count_coverage(inputs, answers, kept, answered_today))
        uncounted_mark(self.ledger, self.day).unlink(missing_ok=True)
        return totals

    def count_late_answers(self, inputs: DataFrame) -> None:
        """Count what batches brought for other days after their runs: in the metrics of those days, and as failures.

        A day's coverage stays that of the texts that it published. A day with too many failures stays marked, so that
        every run fails until the cause is mended, not only the one that read the batch.
        """
        with self.ledger.lock():
            late = {day: self._write_totals(day, inputs) for day in uncounted_days(self.ledger)}
            for day, totals in late.items():
                self.require_few_failures(day, totals)
                uncounted_mark(self.ledger, day).unlink()

    def _write_totals(self, day: str, inputs: DataFrame, coverage: Coverage | None = None) -> LedgerTotals:
        kind, ledger = self.kind, self.ledger
        totals = ledger_totals(ledger.folder, ledger.table, *kind.versions, day=day)
        histories = count_by_history(self._asked_on(day), inputs)
        key = (kind.subject.entity, *kind.versions)
        write_metrics(self.lake, day, key, coverage=coverage, totals=totals, histories=histories)
        return totals

    def _asked_on(self, day: str) -> DataFrame:
        rows = of_prompt_and_model(self.ledger.of_day(day), self.kind)
        return rows.withColumnRenamed(self.kind.id, "entity_id")

    def require_few_failures(self, day: str, totals: LedgerTotals) -> None:
        """Raise `GenerationError` if too many of a day's texts failed.

        Counts the whole day, not this run: when a failed day runs again, there may be nothing left to generate.
        """
        share = self.lake.settings.llm_max_failure_share
        if totals.num_keys >= MIN_OUTCOMES and totals.num_failed > share * totals.num_keys:
            raise GenerationError(
                f"{totals.num_failed} of {totals.num_keys} texts of {day} failed, more than "
                f"GRASP_LLM_MAX_FAILURE_SHARE={share:g} allows: {format_counts(totals.reasons)}; "
                "`grasp dead-letters list` shows them"
            )

    def entities_to_describe(self, inputs: DataFrame) -> DataFrame:
        """Entities to ask the model about, with their `urgency`.

        Their facts have no answer yet, and are not parked. A kept answer (a text or a refusal) must also be outdated:
        the activity has grown by `GRASP_REDESCRIBE_GROWTH`, or a replay was requested. Each failure that the prompt
        repeats lowers the urgency, so texts that fail again and again do not use up the day's caps. Withdrawn items
        come last: they are in histories, but never recommended.
        """
        answered = self._kept().select(
            F.col(self.kind.id).alias("entity_id"),
            F.col("activity").alias("activity_then"),
            F.when(F.col("source") == "llm", F.col("computed_at")).alias("text_since"),
        )
        replayed = self._replayed(inputs).withColumn("is_replayed", F.lit(True))
        settings = self.lake.settings
        grown = (1 + settings.redescribe_growth) * F.col("activity_then")
        by_age = urgency(F.col("activity"), F.col("text_since"), end_of(self.day))
        num_failures = F.coalesce("num_failures", F.lit(0))
        return (
            self.ledger.without_answer(inputs, settings.llm_park_after)
            .join(self.ledger.failures().select("generation_key", "num_failures"), "generation_key", "left")
            .join(answered, "entity_id", "left")
            .join(replayed, "entity_id", "left")
            .join(self._withdrawn(), "entity_id", "left")
            .where(~F.col("is_withheld"))  # the validator would refuse any text
            .where(F.col("activity_then").isNull() | (F.col("activity") >= grown) | F.col("is_replayed"))
            .withColumn("urgency", F.when(F.col("is_withdrawn"), -1.0).otherwise(by_age / (1 + num_failures)))
        )

    def _withdrawn(self) -> DataFrame:
        withdrawn = self.lake.read_latest(tables.WITHDRAWN_ITEMS, self.day).where(F.lit(self.kind.id == "item_id"))
        return withdrawn.select(F.col("item_id").alias("entity_id"), F.lit(True).alias("is_withdrawn"))

    def _replayed(self, inputs: DataFrame) -> DataFrame:
        """The `entity_id` of those whose current or earlier facts wait for a replay."""
        with_these_facts = inputs.join(self.ledger.waiting_for_replay("generation_key"), "generation_key", "left_semi")
        with_others = self.ledger.waiting_for_replay(self.kind.id).withColumnRenamed(self.kind.id, "entity_id")
        return with_these_facts.select("entity_id").union(with_others).distinct()

    def select_answers(self, inputs: DataFrame) -> DataFrame:
        """The ledger's answer for each entity, if the day may use it."""
        table, ledger = self.kind.table, self.ledger
        written = self.lake.read(table, self.day) if self.day in self.lake.days(table) else None
        until, later = ledger.latest_answers(until=self.day), ledger.latest_answers(after=self.day)
        return select_answers(inputs, until, later, written, self.kind)

    def descriptions(self, inputs: DataFrame, answers: DataFrame) -> DataFrame:
        """The day's row of every entity; unchanged rows keep their `computed_at`."""
        errors = self.ledger.last_errors(self.day, self.lake.settings.llm_park_after)
        rows = description_rows(inputs, answers, with_pending(errors, self.ledger), self._kept(), self.kind)
        before = self.lake.read_latest(self.kind.table, self.day)
        return with_computed_at(rows, before, self.lake.settings.clock(), self.kind)

    def _kept(self) -> DataFrame:
        return kept_descriptions(self.lake.read_before(self.kind.table, self.day), self.kind)

    def log_result(self) -> None:
        table = self.kind.table
        written = self.lake.read(table, self.day).groupBy("source", "fallback_reason").count().collect()
        counts = {row.fallback_reason or "llm": row["count"] for row in written}
        say(f"{table.name} {self.day}: {sum(counts.values())} descriptions ({format_counts(counts)})")


def _inputs(kind: DescriptionKind, frames: Frames) -> Frames:
    """Canonical facts, their hashes and the facts description of every entity (runs in Spark workers)."""
    subject = kind.subject
    for frame in frames:
        inputs = [subject.to_input(json.loads(raw), kind.hidden) for raw in frame.pop("raw")]
        yield frame.assign(
            canonical=[json.dumps(each, ensure_ascii=False) for each in inputs],
            input_hash=[digest(each) for each in inputs],
            generation_key=[kind.generation_key(each) for each in inputs],
            facts_description=[subject.to_facts_description(each) for each in inputs],
            is_withheld=["withheld" in each for each in inputs],
        )
