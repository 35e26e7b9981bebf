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

from pyspark.sql import DataFrame

from grasp.progress import say
from spark_jobs.generation.prompts import Input, Subject, load_template, messages
from spark_jobs.generation.repair import is_repairable, repair_messages
from spark_jobs.models.language_model import OUT_OF_BUDGET, Generation, LanguageModel, Messages, SpendingLimits
from spark_jobs.storage.lake import Lake
from spark_jobs.storage.shards import Shards, ShardWriter
from spark_jobs.storage.worker_errors import worker_errors
from spark_jobs.validation.checks import clean_output, refusal_reason
from spark_jobs.validation.grounding import Evidence

MAX_TASK_PROMPTS = 2048  # of one task: its prompts are in memory
REPAIR_EVERY = 512  # prompts: what a killed driver or a spent budget can leave without repair; a server idles between
SAY_EVERY = 15.0  # seconds
WORK_DDL = "number bigint, generation_key string, entity_id string, canonical string"
_COUNTS_DDL = "outcome string, num bigint"

ModelFactory = Callable[[], LanguageModel]
Work = Mapping[str, str]  # columns of WORK_DDL but the number
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

    def row(self, work: Work, facts: Input, generation: Generation, *, is_repair: bool, at: datetime) -> dict[str, Any]:
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
    limits: SpendingLimits  # of all tasks together
    num_work: int  # prompts of all tasks together

    def __call__(self, frames: Frames) -> Frames:
        import pandas
        from pyspark import TaskContext

        context = cast("TaskContext", TaskContext.get())  # there is one in a worker
        work = [row for frame in frames for row in frame.to_dict("records")]
        with ShardWriter(self.shards, context.partitionId()) as shards:
            counts = run_task(self, work, shards)
        yield pandas.DataFrame(list(counts.items()), columns=["outcome", "num"])


def generate(lake: Lake, task: Task, work: DataFrame, num_work: int) -> Counter[str]:
    """Run all of `work` (columns of `WORK_DDL`, numbered from 0); returns how often each outcome occurred.

    An outcome is `accepted`, or why a text was refused or never came. Raises `GenerationError` when the model itself
    fails in a worker, or a worker dies as often as Spark lets it.
    """
    num_workers = lake.spark.sparkContext.defaultParallelism
    per_worker = -(-num_work // (num_workers * MAX_TASK_PROMPTS))
    num_tasks = min(num_work, num_workers * per_worker)  # as many for each worker
    tasks = work.repartitionById(num_tasks, (work.number % num_tasks).cast("int")).drop("number")
    with _progress(task.shards, num_work), worker_errors(GenerationError):
        rows = tasks.mapInPandas(task, _COUNTS_DDL).collect()
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


def run_task(task: Task, work: Sequence[Work], shards: ShardWriter) -> Counter[str]:
    """Ask for every piece of work, and once more for the refused texts that can be repaired (runs in workers).

    What an earlier attempt of the task has finished is not asked for again; what it left to repair is.
    """
    refused = left_to_repair(shards.earlier("generation_key", "output", "refusal_reason", "is_repair"))
    first = [row for row in work if row["generation_key"] not in shards.finished]
    repairs = [Refused(row, *refused[row["generation_key"]]) for row in work if row["generation_key"] in refused]
    if not first and not (repairs and task.max_repairs):
        return Counter()
    spent = shards.spent("num_attempts"), shards.spent("num_input_tokens", "num_output_tokens")
    attempt = Attempt(task, task.limits.share(len(work) / task.num_work).minus(*spent), shards.add)
    attempt.repair(repairs)
    for start in range(0, len(first), REPAIR_EVERY):
        attempt.repair(attempt.ask(first[start : start + REPAIR_EVERY]))
    return attempt.counts


@dataclass(frozen=True)
class Refused:
    """A piece of work, what the model wrote for it, and why that is of no use."""

    work: Work
    output: str
    reason: str


def left_to_repair(rows: Sequence[tuple[Any, ...]]) -> dict[str, tuple[str, str]]:
    """Output and reason by key, of rows `key, output, reason, is_repair`: refused, repairable and not yet repaired."""
    repaired = {key for key, _, _, is_repair in rows if is_repair}
    return {
        key: (output, reason)
        for key, output, reason, _ in rows
        if key not in repaired and reason is not None and is_repairable(reason)
    }


class Attempt:
    """One attempt at a task: a model with limits, and how often each outcome occurred."""

    def __init__(self, task: Task, limits: SpendingLimits, add: Callable[[dict[str, Any]], None]) -> None:
        self._task, self._add, self._parent = task, add, os.getppid()
        self._model = task.make_model()
        self._model.limit(limits)
        self.counts: Counter[str] = Counter()

    def ask(self, work: Sequence[Work]) -> list[Refused]:
        """Ask for each piece once; returns the refused texts that have a chance, which are not counted yet."""
        asked = [self._prompt(row) for row in work]
        refused = []
        for place, generation, reason in self._judged(work, asked, is_repair=False):
            if reason and self._task.max_repairs and is_repairable(reason):
                refused.append(Refused(work[place], generation.text, reason))
            else:
                self.counts[reason or "accepted"] += 1
        return refused

    def repair(self, refused: Sequence[Refused]) -> None:
        """Ask once more for each, told what was wrong; one that the budget leaves no room for stays refused."""
        if not self._task.max_repairs:
            return
        asked = [repair_messages(self._prompt(each.work), each.output, each.reason) for each in refused]
        for place, _, reason in self._judged([each.work for each in refused], asked, is_repair=True):
            outcome = refused[place].reason if reason == OUT_OF_BUDGET else reason
            self.counts[outcome or "accepted"] += 1

    def _prompt(self, work: Work) -> Messages:
        return messages(self._task.judge.subject, json.loads(work["canonical"]))

    def _judged(
        self, work: Sequence[Work], asked: Sequence[Messages], *, is_repair: bool
    ) -> Iterator[tuple[int, Generation, str | None]]:
        """Place, answer and why it is of no use, None when it is; each a row of the ledger.

        What was not asked for want of budget is no row: nothing happened.
        """
        judge = self._task.judge
        for place, generation in self._model.generate(asked):
            if generation.error == OUT_OF_BUDGET:
                yield place, generation, OUT_OF_BUDGET
            else:
                facts = json.loads(work[place]["canonical"])
                row = judge.row(work[place], facts, generation, is_repair=is_repair, at=datetime.now(UTC))
                self._add(row)
                yield place, generation, generation.error or row["refusal_reason"]
            if os.getppid() != self._parent:
                raise GenerationError("the Spark driver of this worker has died")


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
            seconds = time.monotonic() - started
            say(f"{shards.table.name}: {shards.num_rows()} answers, repairs included, to {num_work} in {seconds:.0f} s")

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
