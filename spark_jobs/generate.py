"""Have the language model write what is not in the ledger, on Spark workers, every answer kept as it arrives.

The work of a run is one table of prompts, cut into tasks of like size. A task asks the model, judges each text, gives
a refused one a single chance of repair, and adds a row to the ledger for every answer (`shards.py`); what goes back to
the driver are counts. A killed worker's task begins again after the last shard it wrote, a killed driver's run after
all of them.
"""

import json
import os
import shutil
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

from pyspark.errors import PythonException
from pyspark.sql import DataFrame

from grasp.progress import say
from spark_jobs.grounding import Evidence
from spark_jobs.lake import Lake
from spark_jobs.llm import Generation, LanguageModel, Limits, Messages
from spark_jobs.prompts import Input, Subject, load_template, messages
from spark_jobs.repair import is_repairable, repair_messages
from spark_jobs.shards import Shards, ShardWriter
from spark_jobs.validation import clean_output, refusal_reason

OUT_OF_BUDGET = "out_of_budget"
MAX_TASK_PROMPTS = 2048  # of one task: its prompts are in memory
SAY_EVERY = 15.0  # seconds
WORK_DDL = "number bigint, generation_key string, entity_id string, canonical string"
_COUNTS_DDL = "outcome string, num bigint"

ModelFactory = Callable[[], LanguageModel]
Frames = Iterator[Any]  # pandas data frames, as mapInPandas hands them over


class GenerationError(ValueError):
    """The language model failed in a Spark worker; what it was paid for until then is in the ledger."""


@dataclass(frozen=True)
class Prices:
    """Per million tokens, in one currency."""

    input: float = 0.0
    output: float = 0.0

    def of(self, num_input_tokens: int, num_output_tokens: int) -> float:
        return (self.input * num_input_tokens + self.output * num_output_tokens) / 1e6


@dataclass(frozen=True)
class Judge:
    """Makes an answer a row of the ledger: cleaned, judged, priced."""

    subject: Subject
    prompt_version: str
    model_revision: str
    prices: Prices
    known_values: Collection[str]  # of the catalogue: what a text could wrongly claim

    def row(
        self, work: Mapping[str, str], facts: Input, generation: Generation, *, is_repair: bool, at: datetime
    ) -> dict[str, Any]:
        """Of a piece of work (columns of `WORK_DDL`) that was answered at this time."""
        text = clean_output(generation.text)
        refused = None if generation.error else refusal_reason(text, evidence(self.subject, facts, self.known_values))
        return {
            "generation_key": work["generation_key"],
            f"{self.subject.entity}_id": work["entity_id"],
            "prompt_version": self.prompt_version,
            "model_revision": self.model_revision,
            "output": generation.text,
            "description": None if refused or generation.error else text,
            "refusal_reason": refused,
            "error": generation.error,
            "is_repair": is_repair,
            "num_attempts": generation.num_attempts,
            "num_input_tokens": generation.num_input_tokens,
            "num_output_tokens": generation.num_output_tokens,
            "cost": self.prices.of(generation.num_input_tokens, generation.num_output_tokens),
            "seconds": generation.seconds,
            "generated_at": at,
        }


@dataclass(frozen=True)
class Task:
    """What every task of a run knows; travels to the workers, so it holds no secret."""

    judge: Judge
    shards: Shards
    make_model: ModelFactory
    max_repairs: int  # of a text: 0 or 1
    limits: Limits  # of all tasks together
    num_work: int  # prompts of all tasks together

    def __call__(self, frames: Frames) -> Frames:
        import pandas
        from pyspark import TaskContext

        context = cast("TaskContext", TaskContext.get())  # there is one in a worker
        work = [row for frame in frames for row in frame.to_dict("records")]
        with ShardWriter(self.shards, context.partitionId()) as shards:
            spent = shards.spent("num_attempts"), shards.spent("num_input_tokens", "num_output_tokens")
            limits = self.limits.share(len(work) / self.num_work).less(*spent)
            left = [row for row in work if row["generation_key"] not in shards.finished]
            counts = run_task(self, left, limits, shards.add)
        yield pandas.DataFrame(list(counts.items()), columns=["outcome", "num"])


def generate(lake: Lake, task: Task, work: DataFrame, num_work: int) -> Counter[str]:
    """Run all of `work` (columns of `WORK_DDL`, numbered from 0); returns how often each outcome occurred.

    An outcome is `accepted`, or why a text was refused or never came. Raises `GenerationError` when the model itself
    fails in a worker.
    """
    num_workers = lake.spark.sparkContext.defaultParallelism
    per_worker = -(-num_work // (num_workers * MAX_TASK_PROMPTS))
    num_tasks = min(num_work, num_workers * per_worker)  # as many for each worker
    tasks = work.repartitionById(num_tasks, (work.number % num_tasks).cast("int")).drop("number")
    with _progress(task.shards, num_work):
        try:
            rows = tasks.mapInPandas(task, _COUNTS_DDL).collect()
        except PythonException as error:
            causes = [line.split("Error: ", 1)[1] for line in str(error).splitlines() if "Error: " in line]
            raise GenerationError(causes[-1] if causes else f"generation failed in a Spark worker: {error}") from error
    counts: Counter[str] = Counter()
    for row in rows:
        counts[row.outcome] += row.num
    return counts


@contextmanager
def staged(lake: Lake, work: DataFrame) -> Iterator[tuple[DataFrame, int]]:
    """The work written down first, and how much it is: what is left to do must not change while it is being done."""
    folder = lake.root / "_staging" / f"work-{uuid.uuid4().hex[:12]}"
    try:
        work.write.parquet(str(folder))
        written = lake.spark.read.schema(work.schema).parquet(str(folder))
        yield written, written.count()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run_task(
    task: Task, work: Sequence[Mapping[str, str]], limits: Limits, add: Callable[[dict[str, Any]], None]
) -> Counter[str]:
    """Ask for every piece of work, then once more for the refused texts that can be repaired (runs in workers)."""
    if not work:
        return Counter()
    model, parent = task.make_model(), os.getppid()
    model.limit(limits)
    inputs = [json.loads(row["canonical"]) for row in work]
    asked = [messages(task.judge.subject, each) for each in inputs]
    counts: Counter[str] = Counter()
    repairs: list[tuple[int, Messages, str]] = []
    for place, generation in model.generate(asked):
        reason = _judged(task.judge, work[place], inputs[place], generation, add, is_repair=False)
        if reason and task.max_repairs and is_repairable(reason):
            repairs.append((place, repair_messages(asked[place], generation.text, reason), reason))
        else:
            counts[reason or "accepted"] += 1
        if os.getppid() != parent:
            raise GenerationError("the Spark driver of this worker has died")
    repaired = set()
    for number, generation in model.generate([prompt for _, prompt, _ in repairs]):
        place = repairs[number][0]
        repaired.add(number)
        counts[_judged(task.judge, work[place], inputs[place], generation, add, is_repair=True) or "accepted"] += 1
    counts.update(reason for number, (_, _, reason) in enumerate(repairs) if number not in repaired)
    return counts


def _judged(
    judge: Judge,
    work: Mapping[str, str],
    facts: Input,
    generation: Generation,
    add: Callable[[dict[str, Any]], None],
    *,
    is_repair: bool,
) -> str | None:
    """Judge a text and add its row; returns why it is of no use, None when it is.

    What was not asked for want of budget is no row: nothing happened.
    """
    if generation.error == OUT_OF_BUDGET:
        return OUT_OF_BUDGET
    row = judge.row(work, facts, generation, is_repair=is_repair, at=datetime.now(UTC))
    add(row)
    return generation.error or row["refusal_reason"]


def listed(outcomes: Mapping[str, int]) -> str:
    """For example `51 accepted, 12 loop, 3 timeout`, most frequent first."""
    return ", ".join(f"{num} {name}" for name, num in sorted(outcomes.items(), key=lambda each: (-each[1], each[0])))


def evidence(subject: Subject, facts: Input, known_values: Collection[str]) -> Evidence:
    """What a text about these facts is held against."""
    template = load_template(subject.entity)
    return Evidence(
        facts="\n".join(subject.to_lines(facts)),
        name=subject.name_of(facts),
        instruction=template.instruction,
        examples=template.examples,
        known_values=frozenset(known_values),
        chosen=tuple(facts.get("recent", ())),
        withheld="withheld" in facts,
    )


@contextmanager
def _progress(shards: Shards, num_work: int) -> Iterator[None]:
    """Say every few seconds how much is in the ledger, by the names of its files."""
    started, over = time.monotonic(), threading.Event()

    def watch() -> None:
        while not over.wait(SAY_EVERY):
            say(f"{shards.table.name}: {shards.num_rows()} of {num_work} answered, {time.monotonic() - started:.0f} s")

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
