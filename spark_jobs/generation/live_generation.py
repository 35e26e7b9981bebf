"""Generate texts that are not in the ledger, on Spark workers. Every answer is stored as it arrives.

The requests of a run are divided into Spark tasks of similar size. A task asks the model, validates each text, has a
refused text repaired at most once, and adds a row to the ledger for every answer (`storage/shards.py`). Only counts go
back to the driver. After a crash, a task or run continues after the last shard written.
"""

import json
import os
import shutil
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from grasp.progress import say
from spark_jobs.generation.prompts import Facts, Subject, load_template, prompt_messages
from spark_jobs.generation.repair import is_repairable, repair_messages
from spark_jobs.models.account import Account, Prices
from spark_jobs.models.chat_completions import LASTING
from spark_jobs.models.language_model import OUT_OF_BUDGET, Generation, LanguageModel, Messages
from spark_jobs.storage.lake import Lake
from spark_jobs.storage.shards import Shards, ShardWriter
from spark_jobs.storage.worker_errors import worker_errors
from spark_jobs.validation.checks import clean_output, refusal_reason
from spark_jobs.validation.grounding import Evidence

FIRST_REQUESTS = 5  # sent alone to a server: wrong settings show before the rest is paid
MIN_TASK_REQUESTS = 8  # of one task, if there are more tasks: loading a model takes as long as some ten texts
MAX_TASK_REQUESTS = 2048  # of one task: it holds them in memory
REPAIR_EVERY = 512  # requests; fewer leave a server idle more often, more delay repairs
LOG_EVERY = 15.0  # seconds
REQUEST_DDL = "number bigint, generation_key string, entity_id string, canonical string"
_COUNTS_DDL = "outcome string, num bigint"

ModelFactory = Callable[[], LanguageModel]
GenerationRequest = Mapping[str, str]  # the columns of REQUEST_DDL without `number`
Frames = Iterator[Any]  # pandas data frames, as mapInPandas hands them over


class GenerationError(ValueError):
    """The language model failed in a Spark worker. Paid answers are in the ledger."""


@dataclass(frozen=True)
class Validator:
    """Turns an answer into a row of the ledger: cleans, checks and prices it."""

    subject: Subject
    prompt_version: str
    model_revision: str
    prices: Prices
    known_values: Collection[str]  # attribute values of the catalogue, which a text could wrongly claim

    def ledger_row(
        self, request: GenerationRequest, facts: Facts, generation: Generation, *, is_repair: bool, at: datetime
    ) -> dict[str, Any]:
        """The ledger row of a request that was answered at the time `at`."""
        text = clean_output(generation.text)
        evidence = build_evidence(self.subject, facts, self.known_values)
        refused = None if generation.error else refusal_reason(text, evidence)
        return {
            "generation_key": request["generation_key"],
            f"{self.subject.entity}_id": request["entity_id"],
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
            "cost": self.prices.cost(generation.num_input_tokens, generation.num_output_tokens),
            "seconds": generation.seconds,
            "generated_at": at,
        }


@dataclass(frozen=True)
class GenerationTask:
    """What every Spark task of a run needs. It is sent to the workers, so it holds no secret."""

    validator: Validator
    shards: Shards
    make_model: ModelFactory
    max_repairs: int  # per text: 0 or 1
    account: Account  # of all tasks together

    def __call__(self, frames: Frames) -> Frames:
        import pandas
        from pyspark import TaskContext

        context = cast("TaskContext", TaskContext.get())  # never None in a worker
        requests = [row for frame in frames for row in frame.to_dict("records")]
        with ShardWriter(self.shards, context.partitionId()) as shards:
            counts = run_task(self, requests, shards)
        yield pandas.DataFrame(list(counts.items()), columns=["outcome", "num"])


def generate(
    lake: Lake,
    task: GenerationTask,
    requests: DataFrame,
    num_requests: int,
    *,
    num_first: int = 0,
    hopeless: Collection[str] = LASTING,
) -> Counter[str]:
    """Generate all `requests` (columns of `REQUEST_DDL`, numbered from 0); returns the count of each outcome.

    An outcome is `accepted`, a refusal reason or an error. The first `num_first` requests are sent alone. Raises
    `GenerationError` if each of these ends with a `hopeless` error, if the model itself fails in a worker, or if a
    worker dies more often than Spark retries.
    """
    num_first = min(num_first, num_requests)
    with _progress(task.shards, num_requests), worker_errors(GenerationError):
        counts = _run_tasks(lake, task, requests.where(requests.number < num_first), num_first, max_tasks=1)
        if counts and all(outcome.partition(" ")[0] in hopeless for outcome in counts):
            raise GenerationError(
                f"none of the first {num_first} requests was answered, so nothing more was sent: "
                f"{format_counts(counts)}"
            )
        others = requests.where(requests.number >= num_first).withColumn("number", requests.number - num_first)
        return counts + _run_tasks(lake, task, others, num_requests - num_first)


def _run_tasks(
    lake: Lake, task: GenerationTask, requests: DataFrame, num_requests: int, max_tasks: int = sys.maxsize
) -> Counter[str]:
    """Run tasks of similar size in waves, one task for each worker. Earlier waves have the more urgent requests."""
    counts: Counter[str] = Counter()
    if not num_requests:
        return counts
    num_workers = lake.spark.sparkContext.defaultParallelism
    num_tasks = min(count_tasks(num_requests, num_workers), max_tasks)
    at_once = min(num_tasks, num_workers)
    num_waves = -(-num_tasks // at_once)
    wave = F.floor(requests.number * num_waves / num_requests)
    place = (wave * at_once + requests.number % at_once).cast("int")
    tasks = requests.repartitionById(num_waves * at_once, place).drop("number")
    for row in tasks.mapInPandas(task, _COUNTS_DDL).collect():
        counts[row.outcome] += row.num
    return counts


def count_tasks(num_requests: int, num_workers: int) -> int:
    """Equally many tasks for each worker, none above `MAX_TASK_REQUESTS`; fewer where they would be very small."""
    per_worker = -(-num_requests // (num_workers * MAX_TASK_REQUESTS))
    return min(-(-num_requests // MIN_TASK_REQUESTS), num_workers * per_worker)


@contextmanager
def staging_folder(lake: Lake) -> Iterator[Path]:
    """A folder that all workers see, removed at the end."""
    folder = lake.root / "_staging" / f"work-{uuid.uuid4().hex[:12]}"
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def staged_requests(lake: Lake, requests: DataFrame) -> Iterator[tuple[DataFrame, int]]:
    """Write the requests to a temporary folder, so they do not change during the run; yields them and their number."""
    with staging_folder(lake) as folder:
        staged = str(folder / "requests")
        requests.write.parquet(staged)
        written = lake.spark.read.schema(requests.schema).parquet(staged)
        yield written, written.count()


def run_task(task: GenerationTask, requests: Sequence[GenerationRequest], shards: ShardWriter) -> Counter[str]:
    """Ask for every request, then once more for the refused texts that can be repaired (runs in workers).

    Requests that an earlier attempt of the task finished are skipped; its open repairs are done.
    """
    refused = left_to_repair(shards.earlier("generation_key", "output", "refusal_reason", "is_repair"))
    first = [row for row in requests if row["generation_key"] not in shards.finished]
    repairs = [
        RefusedText(row, *refused[row["generation_key"]]) for row in requests if row["generation_key"] in refused
    ]
    if not first and not (repairs and task.max_repairs):
        return Counter()
    attempt = TaskAttempt(task, shards.add)
    attempt.repair(repairs)
    for start in range(0, len(first), REPAIR_EVERY):
        num_before = attempt.num_sent
        attempt.repair(attempt.ask(first[start : start + REPAIR_EVERY]))
        if attempt.num_sent == num_before:
            break  # nothing is left to spend
    return attempt.counts


@dataclass(frozen=True)
class RefusedText:
    """A request, what the model wrote, and the refusal reason."""

    request: GenerationRequest
    output: str
    reason: str


def left_to_repair(rows: Sequence[tuple[Any, ...]]) -> dict[str, tuple[str, str]]:
    """Output and reason by key, for rows (key, output, reason, is_repair) that can still be repaired."""
    repaired = {key for key, _, _, is_repair in rows if is_repair}
    return {
        key: (output, reason)
        for key, output, reason, _ in rows
        if key not in repaired and reason is not None and is_repairable(reason)
    }


class TaskAttempt:
    """One attempt at a task: a model that draws from the account, and the count of each outcome."""

    def __init__(self, task: GenerationTask, add: Callable[[dict[str, Any]], None]) -> None:
        self._task, self._add, self._parent = task, add, os.getppid()
        self._model = task.make_model()
        self._model.limit(task.account)
        self.counts: Counter[str] = Counter()
        self.num_sent = 0

    def ask(self, requests: Sequence[GenerationRequest]) -> list[RefusedText]:
        """Ask for each request once; returns the repairable refused texts, which are not counted yet."""
        asked = [self._prompt(row) for row in requests]
        refused = []
        for index, generation, reason in self._validated(requests, asked, is_repair=False):
            if reason and self._task.max_repairs and is_repairable(reason):
                refused.append(RefusedText(requests[index], generation.text, reason))
            else:
                self.counts[reason or "accepted"] += 1
        return refused

    def repair(self, refused: Sequence[RefusedText]) -> None:
        """Ask once more for each refused text. Without budget for that, it stays refused."""
        if not self._task.max_repairs:
            return
        asked = [repair_messages(self._prompt(each.request), each.output, each.reason) for each in refused]
        for index, _, reason in self._validated([each.request for each in refused], asked, is_repair=True):
            outcome = refused[index].reason if reason == OUT_OF_BUDGET else reason
            self.counts[outcome or "accepted"] += 1

    def _prompt(self, request: GenerationRequest) -> Messages:
        return prompt_messages(self._task.validator.subject, json.loads(request["canonical"]))

    def _validated(
        self, requests: Sequence[GenerationRequest], asked: Sequence[Messages], *, is_repair: bool
    ) -> Iterator[tuple[int, Generation, str | None]]:
        """Add each answer to the ledger; yields (index, answer, refusal reason or failure, None if accepted).

        A request that was not sent for lack of budget is not added.
        """
        validator = self._task.validator
        for index, generation in self._model.generate(asked):
            if generation.error == OUT_OF_BUDGET:
                yield index, generation, OUT_OF_BUDGET
            else:
                facts = json.loads(requests[index]["canonical"])
                row = validator.ledger_row(
                    requests[index], facts, generation, is_repair=is_repair, at=datetime.now(UTC)
                )
                self._add(row)
                self.num_sent += 1
                yield index, generation, generation.failure or generation.error or row["refusal_reason"]
            if os.getppid() != self._parent:
                raise GenerationError("the Spark driver of this worker has died")


def format_counts(outcomes: Mapping[str, int]) -> str:
    """For example `51 accepted, 12 loop, 3 timeout`, most frequent first."""
    return ", ".join(f"{num} {name}" for name, num in sorted(outcomes.items(), key=lambda each: (-each[1], each[0])))


def build_evidence(subject: Subject, facts: Facts, known_values: Collection[str]) -> Evidence:
    """What a text about these facts is checked against."""
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
def _progress(shards: Shards, num_requests: int) -> Iterator[None]:
    """Log progress every few seconds, from the names of the shard files."""
    started, over = time.monotonic(), threading.Event()

    def watch() -> None:
        while not over.wait(LOG_EVERY):
            seconds = time.monotonic() - started
            say(f"{shards.table.name}: {shards.num_rows()} answers to {num_requests} requests in {seconds:.0f} s")

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
