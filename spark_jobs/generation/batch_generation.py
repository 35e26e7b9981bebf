"""Generate texts with the OpenAI batch API: half the price of `live_generation.py`, answers within a day.

A run first reads the answers of finished batches, then submits new batches within the day's caps, then waits a while.
The day is published with the answers it has; a later run reads the others. A key in a pending batch is not requested
elsewhere. Answers are validated on the driver and added to the ledger as one shard per batch; then the batch's folder
is removed. Refused texts that can be repaired become a batch of their own. A model that has not answered yet first gets
a batch of a few requests: wrong settings show before the rest is paid.

A batch belongs to the day that submitted it: its answers go to that day's ledger, as if they had come in time, and the
day is marked until its metrics count them. Until they come, the most that the batch may cost counts against that day's
caps. A running batch cannot be limited, and its tokens are known only at its end. Therefore the caps on tokens and cost
use what the server counted for a short prompt, the length of what else a request has, and the longest possible answer.
"""

import hashlib
import itertools
import json
import math
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from grasp.progress import say
from grasp.settings import Settings
from spark_jobs.generation.batch_files import Batch, find_submitted, pending_batches, read_answers, submit_batch
from spark_jobs.generation.budget import Caps, max_tokens_of
from spark_jobs.generation.ledger import Ledger
from spark_jobs.generation.ledger_totals import is_model_known, least_input_tokens
from spark_jobs.generation.live_generation import (
    FIRST_REQUESTS,
    GenerationError,
    GenerationRequest,
    Validator,
    format_counts,
)
from spark_jobs.generation.prompts import load_template, prompt_messages
from spark_jobs.generation.repair import is_repairable, repair_messages
from spark_jobs.models.account import Usage
from spark_jobs.models.chat_completions import LASTING, RequestForm, read_failure
from spark_jobs.models.language_model import Generation, Messages
from spark_jobs.models.language_model_http import MESSAGE_TOKENS, api_key
from spark_jobs.storage.shards import Shards, ShardWriter

if TYPE_CHECKING:
    from openai import OpenAI

MAX_REQUESTS = 50_000  # per batch, OpenAI's limit
MAX_BYTES = 100_000_000  # per batch: half of OpenAI's limit, so that its repairs fit into one batch too
PENDING = "pending"  # fallback reason of an entity whose text is in a batch
MIN_POLL_SECONDS, MAX_POLL_SECONDS = 1.0, 60.0
_BATCHES, _UNCOUNTED = "_batches", "_uncounted"  # folders of the ledger; readers of parquet ignore them

PromptedRequest = tuple[GenerationRequest, Messages]
PricedRequest = tuple[GenerationRequest, str, Usage]  # with its HTTP body as JSON, and the most it may cost


class BatchError(GenerationError):
    """A batch could not be submitted or read. The next run finds what was submitted."""


@dataclass(frozen=True)
class BatchGeneration:
    """The batches of one ledger; used by the run that holds the ledger's lock."""

    ledger: Ledger
    versions: tuple[str, str]  # of the wanted prompt and model
    make_validator: Callable[[], Validator]  # for these versions; called on first use
    caps: Caps  # of one day
    settings: Settings
    max_requests: int = MAX_REQUESTS
    started: float = field(default_factory=time.monotonic)

    @property
    def folder(self) -> Path:
        return _batch_folder(self.ledger)

    def without_pending(self, wanted: DataFrame) -> DataFrame:
        """The rows whose `generation_key` is in no pending batch."""
        pending = pending_keys(wanted, self.ledger)
        return wanted if pending is None else wanted.join(pending, "generation_key", "left_anti")

    def is_model_known(self) -> bool:
        return is_model_known(self.ledger.folder, self.ledger.table, *self.versions)

    def reserved(self, day: str) -> Usage:
        """The most that a day's pending batches of this prompt and model may cost."""
        return sum((batch.reserved for batch in self._pending_of(day)), Usage())

    def prepare(self, day: str, requests: Iterable[GenerationRequest], left: Caps) -> int:
        """Create the folders of new batches, in the order of the requests, within the caps; `collect` submits them.

        Returns the number of requests in them. A model that is not known gets only the first few, and no more until
        it has answered these.
        """
        if not self.is_model_known():
            if any(map(self._is_current, pending_batches(self.folder))):
                return 0
            requests = itertools.islice(requests, FIRST_REQUESTS)
        subject = self.make_validator().subject
        prompts = ((each, prompt_messages(subject, json.loads(each["canonical"]))) for each in requests)
        chunk: list[PricedRequest] = []
        num_bytes = num_prepared = 0
        for each in self._affordable(prompts, left, num_keys=1):
            if len(chunk) == self.max_requests or num_bytes + len(each[1]) > MAX_BYTES:
                self._create_batch(uuid.uuid4().hex[:12], day, chunk, is_repair=False)
                chunk, num_bytes = [], 0
            chunk.append(each)
            num_bytes += len(each[1])
            num_prepared += 1
        if chunk:
            self._create_batch(uuid.uuid4().hex[:12], day, chunk, is_repair=False)
        return num_prepared

    def collect(self) -> None:
        """Add the answers of finished batches to the ledger, and submit prepared batches.

        Raises `BatchError` if the server refuses a batch or cannot be reached.
        """
        self._clean_up()
        if not any(map(self._is_at_this_server, pending_batches(self.folder))):
            return
        with self._client() as client:
            for batch in filter(self._is_at_this_server, pending_batches(self.folder)):
                if batch.batch_id and (generations := self._read_answers(client, batch)):
                    self._store_answers(batch, generations)
            for batch in filter(self._is_at_this_server, pending_batches(self.folder)):
                if batch.batch_id or find_submitted(client, batch) or batch.may_be_unlisted:
                    continue
                if self._is_current(batch) and self.settings.llm_batch_files:
                    submit_batch(client, batch)
                else:
                    batch.remove()  # never submitted, and not wanted any more

    def wait(self) -> None:
        """Collect until no batch of this prompt and model is pending.

        At least once, and not longer than `GRASP_LLM_BATCH_PATIENCE_HOURS` after this object was made. Raises
        `BatchError` for a batch at another server.
        """
        patience = 3600 * self.settings.llm_batch_patience_hours
        while True:
            self.collect()
            waiting = [batch for batch in pending_batches(self.folder) if self._is_current(batch)]
            if not waiting:
                return
            if lost := [batch for batch in waiting if not self._is_at_this_server(batch)]:
                raise BatchError(
                    f"{_summary(lost)}: submitted to another server than GRASP_LLM_URL: set it back to read them, "
                    f"or remove {', '.join(str(batch.folder) for batch in lost)} to pay again"
                )
            waited = time.monotonic() - self.started
            if waited >= patience:
                say(f"{_summary(waiting)}: not finished yet, a later run reads them")
                return
            time.sleep(min(MAX_POLL_SECONDS, max(MIN_POLL_SECONDS, waited / 10), patience - waited))

    def _pending_of(self, day: str) -> list[Batch]:
        return [batch for batch in pending_batches(self.folder) if batch.day == day and self._is_current(batch)]

    def _is_current(self, batch: Batch) -> bool:
        return (batch.prompt_version, batch.model_revision) == self.versions

    def _is_at_this_server(self, batch: Batch) -> bool:
        return batch.server == _server_hash(self.settings.llm_url)

    @contextmanager
    def _client(self) -> Iterator["OpenAI"]:
        from openai import OpenAI, OpenAIError

        retries = self.settings.llm_max_attempts - 1
        try:
            with OpenAI(api_key=api_key(), base_url=self.settings.llm_url, max_retries=retries) as client:
                yield client
        except OpenAIError as error:  # its text may contain the key
            failure = read_failure(error)
            message = f"the batches of {self.folder} could not be submitted: {failure.failure}"
            if not failure.is_transient:
                raise BatchError(message) from None
            say(message)

    def _read_answers(self, client: "OpenAI", batch: Batch) -> list[Generation] | None:
        """The answers of a batch; None if it is running or cannot be read at the moment."""
        from openai import OpenAIError

        try:
            return read_answers(client, batch)
        except OpenAIError as error:
            failure = read_failure(error)
            if failure.is_transient:
                say(f"batch {batch.batch_id} could not be read: {failure.failure}")
                return None
            raise BatchError(
                f"batch {batch.batch_id} could not be read: {failure.failure}; if the server no longer has it, remove "
                f"{batch.folder} to pay again"
            ) from None

    def _clean_up(self) -> None:
        """Finish what a killed run left incomplete."""
        for folder in self.folder.glob(".*"):
            shutil.rmtree(folder)
        for batch in pending_batches(self.folder):
            if self._shards(batch).files(batch.is_repair):
                batch.remove()

    def _store_answers(self, batch: Batch, generations: Sequence[Generation]) -> None:
        """Add a batch's answers to the ledger, and prepare a batch of repairs."""
        validator = replace(
            self.make_validator(), prompt_version=batch.prompt_version, model_revision=batch.model_revision
        )
        requests, now = batch.requests(), datetime.now(UTC)
        inputs = [json.loads(each["canonical"]) for each in requests]
        rows = [
            validator.ledger_row(request, facts, generation, is_repair=batch.is_repair, at=now)
            for request, facts, generation in zip(requests, inputs, generations, strict=True)
        ]
        if self.settings.llm_repairs and not batch.is_repair and self._is_current(batch):
            refused = (
                (
                    request,
                    repair_messages(prompt_messages(validator.subject, facts), row["output"], row["refusal_reason"]),
                )
                for request, facts, row in zip(requests, inputs, rows, strict=True)
                if row["refusal_reason"] and is_repairable(row["refusal_reason"])
            )
            self._prepare_repairs(batch, refused, rows)
        mark = uncounted_mark(self.ledger, batch.day)
        mark.parent.mkdir(exist_ok=True)
        mark.touch()
        with ShardWriter(self._shards(batch), batch.is_repair, max_rows=len(rows), max_seconds=math.inf) as writer:
            for row in rows:
                writer.add(row)
        batch.remove()
        self.ledger.seal(batch.day)
        outcomes = Counter(
            each.failure or row["error"] or row["refusal_reason"] or "accepted"
            for each, row in zip(generations, rows, strict=True)
        )
        say(f"batch {batch.batch_id}: {format_counts(outcomes)}")
        is_useless = all(row["error"] in LASTING for row in rows)
        if is_useless and self._is_current(batch) and not self.is_model_known():
            raise BatchError(
                f"batch {batch.batch_id}: none of its {len(rows)} requests was answered: {format_counts(outcomes)}"
            )

    def _prepare_repairs(
        self, batch: Batch, refused: Iterable[PromptedRequest], rows: Sequence[dict[str, Any]]
    ) -> None:
        """Create a batch of repairs within the caps: before the rows are in the ledger, and only once."""
        if self._batch_folder(batch.run, is_repair=True).exists():
            return
        tokens = sum(row["num_input_tokens"] + row["num_output_tokens"] for row in rows)
        taken = Usage(num_calls=len(rows), num_tokens=tokens, cost=sum(row["cost"] for row in rows))
        others = [each.reserved for each in self._pending_of(batch.day) if each.folder != batch.folder]
        spent = self.ledger.usage(batch.day, batch.prompt_version, batch.model_revision)
        chunk = list(self._affordable(refused, self.caps.left(sum(others, spent + taken)), num_keys=0))
        if chunk:
            self._create_batch(batch.run, batch.day, chunk, is_repair=True)

    def _affordable(self, prompted: Iterable[PromptedRequest], left: Caps, num_keys: int) -> Iterator[PricedRequest]:
        """The first requests that the caps allow."""
        form, validator, total = RequestForm.of(self.settings), self.make_validator(), Usage()
        prices, num_shared = validator.prices, len(load_template(validator.subject.entity).messages) - 1
        least = least_input_tokens(self.ledger.folder, self.ledger.table, *self.versions)
        for request, prompt in prompted:
            body = form.body(prompt)
            line = json.dumps(body)  # ASCII, so that lone surrogates pass
            num_input = max_tokens_of(json.dumps(body, ensure_ascii=False))
            if least is not None:  # the server has counted what all prompts share
                own = (max_tokens_of(message["content"]) + MESSAGE_TOKENS for message in prompt[num_shared:])
                num_input = min(num_input, least + sum(own))
            num_output = form.max_new_tokens
            most = Usage(num_keys, 1, num_input + num_output, prices.cost(num_input, num_output))
            total += most
            if not left.allow(total):
                return
            yield request, line, most

    def _batch_folder(self, run: str, *, is_repair: bool) -> Path:
        return self.folder / f"{run}-{'repair' if is_repair else 'first'}"

    def _shards(self, batch: Batch) -> Shards:
        return Shards(self.ledger.table, self.ledger.folder / f"day={batch.day}", batch.run)

    def _create_batch(self, run: str, day: str, chunk: Sequence[PricedRequest], *, is_repair: bool) -> None:
        batch = Batch(
            self._batch_folder(run, is_repair=is_repair),
            day,
            *self.versions,
            _server_hash(self.settings.llm_url),
            self.settings.llm_model,
            self.settings.llm_structured,
            is_repair,
            sum((most for _, _, most in chunk), Usage()),
        )
        batch.create([request for request, _, _ in chunk], [body for _, body, _ in chunk])


def pending_keys(rows: DataFrame, ledger: Ledger) -> DataFrame | None:
    """The `generation_key` of all texts in pending batches; None without such a batch."""
    files = [str(batch.requests_file) for batch in pending_batches(_batch_folder(ledger))]
    return rows.sparkSession.read.schema("generation_key string").parquet(*files) if files else None


def with_pending(errors: DataFrame, ledger: Ledger) -> DataFrame:
    """`errors` (`generation_key, error`) and the texts in pending batches, each key once."""
    pending = pending_keys(errors, ledger)
    if pending is None:
        return errors
    others = errors.join(pending, "generation_key", "left_anti")
    return others.unionByName(pending.distinct().withColumn("error", F.lit(PENDING)))


def uncounted_days(ledger: Ledger) -> list[str]:
    """The days with answers of a batch that their metrics do not count yet."""
    return sorted(mark.name for mark in (ledger.folder / _UNCOUNTED).glob("*"))


def uncounted_mark(ledger: Ledger, day: str) -> Path:
    """The empty file that marks such a day."""
    return ledger.folder / _UNCOUNTED / day


def _batch_folder(ledger: Ledger) -> Path:
    return ledger.folder / _BATCHES


def _server_hash(url: str) -> str:
    """Identifies a server without storing its address."""
    return hashlib.sha256(url.encode()).hexdigest()


def _summary(batches: Sequence[Batch]) -> str:
    """For example `2 batches (batch-0, batch-1) with 700 texts`."""
    names = ", ".join(batch.batch_id or "not submitted" for batch in batches)
    num = sum(batch.reserved.num_calls for batch in batches)
    return f"{len(batches)} batch{'es' if len(batches) > 1 else ''} ({names}) with {num} texts"
