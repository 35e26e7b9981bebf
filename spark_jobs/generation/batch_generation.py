"""Have a vendor's batch files write what is not in the ledger: as `generate.py`, for half the price, within a day.

A key that is in a batch is asked for nowhere else until the batch is over. A run first reads what earlier batches came
to, then submits what is in none, as far as the day's caps go, then waits. What comes back is judged on the driver and
added to the ledger as one shard: either a batch's rows are there, and its folder goes, or they are not, and they are
read again. The refused texts that can be repaired are a batch of their own.

A batch belongs to the day that submitted it: its answers are rows of that day's ledger, and until they are there, the
most it may take is taken off that day's caps. What a batch takes in tokens is only known when it is over, and nothing
stops it: caps on tokens and cost are kept by the length of its requests and the longest answers.
"""

import hashlib
import json
import math
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyspark.sql import DataFrame

from grasp.progress import say
from grasp.settings import Settings
from spark_jobs.generation.batch_files import Batch, Work, find, pending, read_ended, submit
from spark_jobs.generation.budget import Caps, most_tokens
from spark_jobs.generation.ledger import Ledger, Spent
from spark_jobs.generation.live_generation import GenerationError, Judge, listed
from spark_jobs.generation.prompts import messages
from spark_jobs.generation.repair import is_repairable, repair_messages
from spark_jobs.models.chat_completions import read_failure, request_body
from spark_jobs.models.language_model import Generation, Messages
from spark_jobs.models.language_model_http import api_key
from spark_jobs.storage.shards import Shards, ShardWriter

if TYPE_CHECKING:
    from openai import OpenAI

MAX_REQUESTS = 50_000  # of one batch, by OpenAI's rules
MAX_BYTES = 100_000_000  # of one batch: half of what OpenAI takes, so that its repairs are one batch as well
MIN_POLL_SECONDS, MAX_POLL_SECONDS = 1.0, 60.0

Asked = tuple[Work, Messages]
Request = tuple[Work, str, Spent]  # its body as JSON, and the most it may take


class BatchError(GenerationError):
    """A batch could not be submitted or read, or takes too long. What was submitted is found by the next run."""


@dataclass(frozen=True)
class Batches:
    """The batches of one ledger; used by the run that holds its lock."""

    ledger: Ledger
    versions: tuple[str, str]  # of the prompt and of the model whose texts are wanted
    make_judge: Callable[[], Judge]  # of these versions; called when there is something to judge
    caps: Caps  # of every day
    settings: Settings
    max_requests: int = MAX_REQUESTS

    @property
    def folder(self) -> Path:
        return self.ledger.folder / "_batches"  # readers of parquet folders pass over it

    def not_pending(self, unpaid: DataFrame) -> DataFrame:
        """Of rows with a `generation_key` those that no batch is asked for."""
        files = [str(batch.work_file) for batch in pending(self.folder)]
        if not files:
            return unpaid
        asked = unpaid.sparkSession.read.schema("generation_key string").parquet(*files)
        return unpaid.join(asked, "generation_key", "left_anti")

    def reserved(self, day: str) -> Spent:
        """The most that a day's batches of this prompt and model may still take."""
        return sum((batch.reserved for batch in self._pending_of(day)), Spent())

    def lay(self, day: str, work: Iterable[Work], left: Caps) -> None:
        """Make batches of the work, in its order, as far as the caps go; `collect` submits them."""
        subject = self.make_judge().subject
        prompts = ((piece, messages(subject, json.loads(piece["canonical"]))) for piece in work)
        chunk: list[Request] = []
        num_bytes = 0
        for each in self._affordable(prompts, left, num_keys=1):
            if len(chunk) == self.max_requests or num_bytes + len(each[1]) > MAX_BYTES:
                self._lay(uuid.uuid4().hex[:12], day, chunk, is_repair=False)
                chunk, num_bytes = [], 0
            chunk.append(each)
            num_bytes += len(each[1])
        if chunk:
            self._lay(uuid.uuid4().hex[:12], day, chunk, is_repair=False)

    def collect(self) -> None:
        """Bring into the ledger what is over, and submit what a run has left to submit; what goes on is left alone.

        Raises `BatchError` when the server does not take a batch, or cannot be asked at all.
        """
        self._tidy()
        if not any(map(self._is_here, pending(self.folder))):
            return
        with self._client() as client:
            for batch in filter(self._is_here, pending(self.folder)):
                if batch.batch_id and (generations := self._ended(client, batch)):
                    self._keep(batch, generations)
            for batch in filter(self._is_here, pending(self.folder)):
                if batch.batch_id:
                    continue
                if self._is_current(batch) and self.settings.llm_batch_files:
                    submit(client, batch)
                elif not find(client, batch):
                    batch.remove()  # nobody wants these texts any more, or not in this way, and nothing was paid

    def wait(self) -> None:
        """Collect until nothing of this prompt and model is pending.

        Raises `BatchError` when patience ends before, or when a batch is with a server that is not asked any more.
        """
        started, patience = time.monotonic(), 3600 * self.settings.llm_batch_patience_hours
        while True:
            self.collect()
            waiting = [batch for batch in pending(self.folder) if self._is_current(batch)]
            if not waiting:
                return
            if lost := [batch for batch in waiting if not self._is_here(batch)]:
                raise BatchError(
                    f"{_described(lost)}: with another server than GRASP_LLM_URL names: set it back to read what they "
                    f"came to, or remove {', '.join(str(batch.folder) for batch in lost)} to pay again"
                )
            waited = time.monotonic() - started
            if waited >= patience:
                raise BatchError(
                    f"{_described(waiting)}: not over after GRASP_LLM_BATCH_PATIENCE_HOURS="
                    f"{self.settings.llm_batch_patience_hours:g}: it goes on there, and the same command picks it up"
                )
            time.sleep(min(MAX_POLL_SECONDS, max(MIN_POLL_SECONDS, waited / 10), patience - waited))

    def _pending_of(self, day: str) -> list[Batch]:
        return [batch for batch in pending(self.folder) if batch.day == day and self._is_current(batch)]

    def _is_current(self, batch: Batch) -> bool:
        return (batch.prompt_version, batch.model_revision) == self.versions

    def _is_here(self, batch: Batch) -> bool:
        return batch.server == _name(self.settings.llm_url)

    @contextmanager
    def _client(self) -> Iterator["OpenAI"]:
        from openai import OpenAI, OpenAIError

        retries = self.settings.llm_max_attempts - 1
        try:
            with OpenAI(api_key=api_key(), base_url=self.settings.llm_url, max_retries=retries) as client:
                yield client
        except OpenAIError as error:  # its text may quote the key
            failure = read_failure(error).failure
            raise BatchError(f"the batches of {self.folder} could not be submitted: {failure}") from None

    def _ended(self, client: "OpenAI", batch: Batch) -> list[Generation] | None:
        """What a batch came to; None when it goes on, or nobody can tell at the moment."""
        from openai import OpenAIError

        try:
            return read_ended(client, batch)
        except OpenAIError as error:
            failure = read_failure(error)
            if failure.is_transient:
                say(f"batch {batch.batch_id} could not be read: {failure.failure}")
                return None
            raise BatchError(
                f"batch {batch.batch_id} could not be read: {failure.failure}; if the server has it no more, remove "
                f"{batch.folder} to pay again"
            ) from None

    def _tidy(self) -> None:
        """Finish what a killed run has left half done."""
        for folder in self.folder.glob(".*"):
            shutil.rmtree(folder)
        for batch in pending(self.folder):
            if self._shards(batch).files(batch.is_repair):
                batch.remove()

    def _keep(self, batch: Batch, generations: Sequence[Generation]) -> None:
        """Add a batch's answers to the ledger, and have what can be repaired asked once more."""
        judge = replace(self.make_judge(), prompt_version=batch.prompt_version, model_revision=batch.model_revision)
        work, now = batch.work(), datetime.now(UTC)
        inputs = [json.loads(piece["canonical"]) for piece in work]
        rows = [
            judge.row(piece, facts, generation, is_repair=batch.is_repair, at=now)
            for piece, facts, generation in zip(work, inputs, generations, strict=True)
        ]
        if self.settings.llm_repairs and not batch.is_repair and self._is_current(batch):
            refused = (
                (piece, repair_messages(messages(judge.subject, facts), row["output"], row["refusal_reason"]))
                for piece, facts, row in zip(work, inputs, rows, strict=True)
                if row["refusal_reason"] and is_repairable(row["refusal_reason"])
            )
            self._lay_repairs(batch, refused, rows)
        with ShardWriter(self._shards(batch), batch.is_repair, max_rows=len(rows), max_seconds=math.inf) as writer:
            for row in rows:
                writer.add(row)
        batch.remove()
        self.ledger.seal(batch.day)
        outcomes = Counter(row["error"] or row["refusal_reason"] or "accepted" for row in rows)
        say(f"batch {batch.batch_id}: {listed(outcomes)}")

    def _lay_repairs(self, batch: Batch, refused: Iterable[Asked], rows: Sequence[dict[str, Any]]) -> None:
        """Make a batch of repairs, as far as the caps go; before the rows are in the ledger, and only once."""
        if self._place(batch.run, is_repair=True).exists():
            return
        tokens = sum(row["num_input_tokens"] + row["num_output_tokens"] for row in rows)
        taken = Spent(num_calls=len(rows), num_tokens=tokens, cost=sum(row["cost"] for row in rows))
        others = [each.reserved for each in self._pending_of(batch.day) if each.folder != batch.folder]
        spent = self.ledger.spent(batch.day, batch.prompt_version, batch.model_revision)
        chunk = list(self._affordable(refused, self.caps.left(sum(others, spent + taken)), num_keys=0))
        if chunk:
            self._lay(batch.run, batch.day, chunk, is_repair=True)

    def _affordable(self, asked: Iterable[Asked], left: Caps, num_keys: int) -> Iterator[Request]:
        """Requests as far as the caps go."""
        settings, prices, total = self.settings, self.make_judge().prices, Spent()
        for piece, prompt in asked:
            body = request_body(prompt, settings.llm_model, settings.llm_max_new_tokens, settings.llm_structured)
            line = json.dumps(body)  # ASCII: even half a surrogate goes through
            num_input = most_tokens(json.dumps(body, ensure_ascii=False))
            num_output = settings.llm_max_new_tokens
            most = Spent(num_keys, 1, num_input + num_output, prices.of(num_input, num_output))
            total += most
            if not left.allow(total):
                return
            yield piece, line, most

    def _place(self, run: str, *, is_repair: bool) -> Path:
        return self.folder / f"{run}-{'repair' if is_repair else 'first'}"

    def _shards(self, batch: Batch) -> Shards:
        return Shards(self.ledger.table, self.ledger.folder / f"day={batch.day}", batch.run)

    def _lay(self, run: str, day: str, chunk: Sequence[Request], *, is_repair: bool) -> None:
        batch = Batch(
            self._place(run, is_repair=is_repair),
            day,
            *self.versions,
            _name(self.settings.llm_url),
            self.settings.llm_model,
            self.settings.llm_structured,
            is_repair,
            sum((most for _, _, most in chunk), Spent()),
        )
        batch.lay([piece for piece, _, _ in chunk], [body for _, body, _ in chunk])


def _name(url: str) -> str:
    """Tells servers apart without saying where they are."""
    return hashlib.sha256(url.encode()).hexdigest()


def _described(batches: Sequence[Batch]) -> str:
    """For example `2 batches (batch-0, batch-1) with 700 texts`."""
    names = ", ".join(batch.batch_id or "not submitted" for batch in batches)
    num = sum(batch.reserved.num_calls for batch in batches)
    return f"{len(batches)} batch{'es' if len(batches) > 1 else ''} ({names}) with {num} texts"
