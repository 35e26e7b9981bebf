"""What `describe_items` and `describe_users` share: pay for each generation once, and describe everyone.

Every entity of the day gets exactly one row. The most active users and the most popular items are described by the
language model as far as the day's budget goes; the ledger keeps every paid generation, refused ones included, and a
key found there is never paid for again. All others, and every refused text, get the description built from the facts.
"""

import json
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from pyspark.errors import PythonException
from pyspark.sql import DataFrame, Row
from pyspark.sql import functions as F

from grasp import tables
from grasp.progress import say
from grasp.settings import Settings
from grasp.tables import Table
from grasp.versions import digest
from spark_jobs.lake import Lake
from spark_jobs.llm import LanguageModel, decoding_parameters, load_model
from spark_jobs.openai_llm import Server, load_server_model
from spark_jobs.prompts import ITEM, Input, Subject, load_template, messages
from spark_jobs.validation import Evidence, clean_output, refusal_reason

MIN_ROUND = 24  # generations between two writes of the ledger, which a dying run can lose
MAX_ROUNDS = 20
MAX_KNOWN_VALUES = 200
MAX_VALUE_CHARS = 40  # a longer attribute value is a text, not a category

# Facts of the day as a job hands them over: `raw` is what `Subject.to_input` takes, as JSON.
FACTS_DDL = "entity_id string, priority bigint, raw string"
_INPUT_DDL = (
    "entity_id string, priority bigint, canonical string, input_hash string, generation_key string, "
    "facts_description string"
)

ModelFactory = Callable[[], LanguageModel]
Frames = Iterator[Any]  # pandas data frames, as mapInPandas hands them over


class GenerationError(ValueError):
    """The language model failed in a Spark worker; what finished rounds paid for is in the ledger."""


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

    def generation_key(self, facts: Input) -> str:
        """sha256 of everything that decides what the model writes."""
        decoding = decoding_parameters(self.max_new_tokens)
        return digest([self.prompt_version, self.model_revision, decoding, facts])


def item_budget(budget: int) -> int:
    """Items may spend half of a day's generations, rounded down; users have the rest."""
    return budget // 2


def user_budget(budget: int) -> int:
    return budget - item_budget(budget)


def real_model(settings: Settings, num_workers: int = 1) -> ModelFactory:
    """Makes the model once per worker process. Captures no settings, so that no secret travels to a worker.

    `num_workers` processes ask a server at the same time: each has its share of the global rate limits.
    """
    if settings.llm_url:
        return partial(load_server_model, Server.of(settings, num_workers))
    return partial(load_model, settings.llm, settings.llm_max_new_tokens, settings.llm_batch_size)


def describe(
    lake: Lake, day: str, subject: Subject, facts: DataFrame, *, budget: int, make_model: ModelFactory
) -> None:
    """Generate what the budget allows and write the day's descriptions; `facts` has the columns of `FACTS_DDL`."""
    description = Description.of(subject, lake)
    inputs = facts.mapInPandas(partial(_inputs, description), _INPUT_DDL).cache()
    try:
        pending = _pending(lake, day, description, inputs, budget)
        if pending:
            _generate(lake, day, description, pending, make_model)
        lake.write(description.table, _descriptions(lake, day, description, inputs), day)
    finally:
        inputs.unpersist()
    _report(lake, day, description)


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
        )


def _pending(lake: Lake, day: str, description: Description, inputs: DataFrame, budget: int) -> list[Row]:
    """What to pay for: unknown keys, most important entities first, as many as the day has not spent yet.

    Entities with equal facts share one generation. A new prompt or model version has a budget of its own.
    """
    paid = lake.read_ledger(description.ledger).select("generation_key")
    left = budget - _spent(lake, day, description)
    if left <= 0:
        return []
    order = F.struct(-F.col("priority"), "entity_id")
    return (
        inputs.join(paid, "generation_key", "left_anti")
        .groupBy("generation_key")
        .agg(F.min_by(F.struct("entity_id", "priority", "canonical"), order).alias("first"))
        .select("generation_key", "first.*")
        .orderBy(F.desc("priority"), "entity_id")
        .limit(left)
        .collect()
    )


def _spent(lake: Lake, day: str, description: Description) -> int:
    if day not in lake.days(description.ledger):
        return 0
    same = (F.col("prompt_version") == description.prompt_version) & (
        F.col("model_revision") == description.model_revision
    )
    return lake.read(description.ledger, day).where(same).count()


def round_size(num_pending: int, batch_size: int, num_workers: int) -> int:
    """Generations of one round: few enough to lose, enough to fill a batch of every worker, at most 20 rounds."""
    return max(MIN_ROUND, batch_size * num_workers, -(-num_pending // MAX_ROUNDS))


def _generate(lake: Lake, day: str, description: Description, pending: list[Row], make_model: ModelFactory) -> None:
    """Generate in rounds; each round is in the ledger before the next begins."""
    size = round_size(len(pending), lake.settings.llm_batch_size, lake.spark.sparkContext.defaultParallelism)
    work = partial(_generate_partition, description, make_model, _known_values(lake, day))
    started, done, accepted = time.monotonic(), 0, 0
    for start in range(0, len(pending), size):
        rows = _run_round(lake, description, pending[start : start + size], work)
        if rows:
            _pay(lake, day, description, rows)
        done += len(rows)
        accepted += sum(row.refusal_reason is None for row in rows)
        elapsed = time.monotonic() - started
        say(
            f"describe_{description.subject.entity}s {day}: {done} of {len(pending)} generated, "
            f"{accepted} accepted, {elapsed:.0f} s"
        )


def _run_round(
    lake: Lake, description: Description, round_: Sequence[Row], work: Callable[[Frames], Frames]
) -> list[Row]:
    """One Spark stage over evenly filled partitions, collected at once: no second action can generate again."""
    context = lake.spark.sparkContext
    batches = -(-len(round_) // lake.settings.llm_batch_size)
    # A multiple of the workers, so that none waits while another has a batch more than its share.
    num_partitions = min(len(round_), -(-batches // context.defaultParallelism) * context.defaultParallelism)
    keyed = [(row.generation_key, row.entity_id, row.canonical) for row in round_]
    frame = lake.spark.createDataFrame(
        context.parallelize(keyed, num_partitions), "generation_key string, entity_id string, canonical string"
    )
    ddl = description.ledger.ddl
    try:
        return frame.mapInPandas(work, ddl).collect()
    except PythonException as error:
        causes = [line.split("Error: ", 1)[1] for line in str(error).splitlines() if "Error: " in line]
        raise GenerationError(causes[-1] if causes else f"generation failed in a Spark worker: {error}") from error


def _generate_partition(
    description: Description, make_model: ModelFactory, known_values: Collection[str], frames: Frames
) -> Frames:
    """Ask, clean and judge (runs in Spark workers); one row of the ledger for every answer."""
    import pandas

    columns = description.ledger.column_names
    for frame in frames:
        inputs = [json.loads(text) for text in frame["canonical"]]
        keys, entities = list(frame["generation_key"]), list(frame["entity_id"])
        rows = []
        for place, output in make_model().generate([messages(description.subject, each) for each in inputs]):
            if output.error:  # nothing was said, so there is nothing to keep: a later run asks again
                continue
            key, entity_id, facts = keys[place], entities[place], inputs[place]
            text = clean_output(output.text)
            reason = refusal_reason(text, _evidence(description.subject, facts, known_values))
            rows.append(
                (
                    key,
                    entity_id,
                    description.prompt_version,
                    description.model_revision,
                    output.text,
                    None if reason else text,
                    reason,
                    output.num_input_tokens,
                    output.num_output_tokens,
                    output.seconds,
                )
            )
        yield pandas.DataFrame(rows, columns=list(columns))


def _evidence(subject: Subject, facts: Input, known_values: Collection[str]) -> Evidence:
    template = load_template(subject.entity)
    return Evidence(
        facts="\n".join(subject.to_lines(facts)),
        name=subject.name_of(facts),
        instruction=template.instruction,
        examples=template.examples,
        known_values=known_values,
    )


def _known_values(lake: Lake, day: str) -> frozenset[str]:
    """The catalogue's most frequent attribute values: what the validator knows that a text could wrongly claim."""
    values = attribute_values(lake.read(tables.ITEMS, day), lake.settings.hidden_attributes)
    frequent = values.groupBy("value").count().where("count > 1").orderBy(F.desc("count"), "value")
    return frozenset(row.value for row in frequent.limit(MAX_KNOWN_VALUES).collect())


def _pay(lake: Lake, day: str, description: Description, rows: list[Row]) -> None:
    """Add rows to the day's partition of the ledger; what is there stays."""
    paid = lake.spark.createDataFrame(rows, description.ledger.ddl)
    if day in lake.days(description.ledger):
        paid = lake.read(description.ledger, day).unionByName(paid)
    lake.write(description.ledger, paid, day)


def _descriptions(lake: Lake, day: str, description: Description, inputs: DataFrame) -> DataFrame:
    """One row per entity: the accepted text, or the facts and why; unchanged rows keep their `computed_at`."""
    accepted = F.col("llm_description").isNotNull()
    text = F.coalesce("llm_description", "facts_description")
    described = inputs.join(_usable(lake, day, description, inputs), ["entity_id", "generation_key"], "left").select(
        F.col("entity_id").alias(description.id),
        text.alias("description"),
        F.when(accepted, "llm").otherwise("facts").alias("source"),
        F.when(~accepted, F.coalesce("refusal_reason", F.lit("budget"))).alias("fallback_reason"),
        F.lit(description.prompt_version).alias("prompt_version"),
        F.lit(description.model_revision).alias("model_revision"),
        "input_hash",
        F.sha2(text, 256).alias("description_hash"),
    )
    same = [description.id, "description_hash", "source", "prompt_version", "model_revision"]
    before = lake.read_latest(description.table, day).select(*same, "computed_at")
    now = F.lit(lake.settings.clock())
    return described.join(before, same, "left").withColumn("computed_at", F.coalesce("computed_at", now))


def _usable(lake: Lake, day: str, description: Description, inputs: DataFrame) -> DataFrame:
    """The ledger's answer to each entity: all that is paid for, except what would change a day already written.

    A day that went without a text for want of budget keeps doing so when a later day pays for the same facts:
    running a day again gives the same result.
    """
    answer = [F.col("description").alias("llm_description"), "refusal_reason"]
    known = inputs.select("entity_id", "generation_key").join(
        lake.read_ledger(description.ledger).select("generation_key", *answer), "generation_key"
    )
    if day not in lake.days(description.table):
        return known
    until = lake.read_until(description.ledger, day).select("generation_key", F.lit(True).alias("until_today"))
    versions = (F.col("prompt_version") == description.prompt_version) & (
        F.col("model_revision") == description.model_revision
    )
    without = (
        lake.read(description.table, day)
        .where(versions & (F.col("fallback_reason") == "budget"))
        .select(F.col(description.id).alias("entity_id"), "input_hash")
        .join(inputs.select("entity_id", "input_hash", "generation_key"), ["entity_id", "input_hash"])
        .select("entity_id", "generation_key", F.lit(True).alias("without"))
    )
    return (
        known.join(until, "generation_key", "left")
        .join(without, ["entity_id", "generation_key"], "left")
        .where(F.col("until_today").isNotNull() | F.col("without").isNull())
        .drop("until_today", "without")
    )


def _report(lake: Lake, day: str, description: Description) -> None:
    written = lake.read(description.table, day).groupBy("source", "fallback_reason").count().collect()
    counts = sorted(((row.fallback_reason or "llm", row["count"]) for row in written), key=lambda each: -each[1])
    total = sum(count for _, count in counts)
    listed = ", ".join(f"{count} {reason}" for reason, count in counts)
    say(f"describe_{description.subject.entity}s {day}: {total} descriptions ({listed})")
