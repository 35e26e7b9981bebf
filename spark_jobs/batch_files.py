"""The language model port by a vendor's batch files: half the price, an answer within a day.

A process that dies must not submit twice what it pays for once. So a file named after the requests keeps the id of the
uploaded file before a batch is made of it, and the id of the batch after: whoever asks for the same prompts again
finds the batch, even where the process died between the two, and waits for it or reads what it came to.

Runs in one process, on the driver: a batch is one thing, and waiting needs no workers. The key is read as in
`openai_llm`.
"""

import hashlib
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from grasp.files import write_json
from grasp.progress import say
from spark_jobs.completions import Answer, read_completion, read_failure, read_status, request_body
from spark_jobs.llm import Generation, Limits, Messages
from spark_jobs.openai_llm import Server, api_key

if TYPE_CHECKING:
    from openai import OpenAI
    from openai.types import Batch

ENDPOINT: Final = "/v1/chat/completions"
MAX_REQUESTS = 50_000  # of one batch, by OpenAI's rules
NUM_LISTED = 1000  # newest batches among which a lost one is looked for
UNANSWERED = {"completed": "server_error", "expired": "timeout", "failed": "rejected", "cancelled": "rejected"}


class BatchError(RuntimeError):
    """The batch could not be submitted or read, or takes too long. What was submitted is found by the next run."""


@dataclass(frozen=True)
class _Submitted:
    """A batch on its way: the places of its prompts, and the file that remembers it."""

    places: range
    memory: Path
    batch_id: str


class BatchFileModel:
    """A server's model, asked by batch files. Of `server`, limits of rate and time and retries play no part."""

    def __init__(
        self,
        server: Server,
        folder: Path,
        poll_seconds: float = 60,
        patience_seconds: float = 25 * 3600,
        max_requests: int = MAX_REQUESTS,
    ) -> None:
        self._server = server
        self._folder = folder
        self._poll_seconds = poll_seconds
        self._patience_seconds = patience_seconds
        self._max_requests = max_requests
        self._limits = Limits(server.max_calls)

    def limit(self, limits: Limits) -> None:
        """Calls only: what a batch will take in tokens is known when it is over."""
        self._limits = limits

    def generate(self, prompts: Sequence[Messages]) -> Iterator[tuple[int, Generation]]:
        """Submit everything, wait, and yield batch by batch; raises `BatchError`, after which a new call resumes."""
        from openai import OpenAI, OpenAIError

        server = self._server
        most = self._limits.num_calls
        num_affordable = len(prompts) if most is None else min(len(prompts), most)
        try:
            with OpenAI(api_key=api_key(), base_url=server.url, max_retries=server.max_attempts - 1) as client:
                starts = range(0, num_affordable, self._max_requests)
                chunks = [range(start, min(start + self._max_requests, num_affordable)) for start in starts]
                submitted = [self._submit(client, prompts, places) for places in chunks]
                for each in submitted:
                    yield from self._collect(client, each)
        except OpenAIError as error:  # its text may quote the key
            code = read_failure(error).error
            raise BatchError(f"the batches remembered in {self._folder} could not be run or read: {code}") from None
        for place in range(num_affordable, len(prompts)):
            yield place, Generation("", 0, 0, 0.0, 0, "out_of_budget")

    def _submit(self, client: "OpenAI", prompts: Sequence[Messages], places: range) -> _Submitted:
        """Make a batch of these prompts, or find the one that was made of them before."""
        requests = "\n".join(self._request(number, prompts[place]) for number, place in enumerate(places)).encode()
        memory = self._folder / f"{hashlib.sha256(self._server.url.encode() + requests).hexdigest()}.json"
        known = json.loads(memory.read_text()) if memory.exists() else {}
        if "file_id" not in known:
            uploaded = client.files.create(file=("requests.jsonl", requests), purpose="batch")
            known = {"file_id": uploaded.id}
            write_json(memory, known)
        elif "batch_id" not in known and (lost := _batch_of(client, known["file_id"])):
            known["batch_id"] = lost  # the process died in between, or was not told
        if "batch_id" not in known:
            # Tried once: a second try after an answer that got lost would make a second batch.
            batches = client.with_options(max_retries=0).batches
            batch = batches.create(input_file_id=known["file_id"], endpoint=ENDPOINT, completion_window="24h")
            known["batch_id"] = batch.id
        write_json(memory, known)
        say(f"batch {known['batch_id']}: {len(places)} prompts submitted")
        return _Submitted(places, memory, known["batch_id"])

    def _request(self, number: int, prompt: Messages) -> str:
        """One line of a batch file, in ASCII."""
        server = self._server
        body = request_body(prompt, server.model, server.max_new_tokens, server.structured)
        return json.dumps({"custom_id": str(number), "method": "POST", "url": ENDPOINT, "body": body})

    def _collect(self, client: "OpenAI", submitted: _Submitted) -> Iterator[tuple[int, Generation]]:
        batch = self._finished(client, submitted.batch_id)
        answers: dict[int, Answer] = {}
        for file_id in filter(None, (batch.output_file_id, batch.error_file_id)):
            for line in client.files.content(file_id).content.decode().splitlines():
                result = json.loads(line)
                answers[submitted.places[int(result["custom_id"])]] = self._read(result)
        if not any(answer.error is None for answer in answers.values()):
            submitted.memory.unlink()  # nothing to lose: to ask again is to submit again
        num_seconds = (batch.completed_at or batch.created_at) - batch.created_at
        say(f"batch {batch.id}: {batch.status}, {len(answers)} of {len(submitted.places)} came back")
        for place in submitted.places:
            answer = answers.get(place, Answer(error=UNANSWERED[batch.status]))
            tokens = (answer.num_input_tokens, answer.num_output_tokens)
            yield place, Generation(answer.text, *tokens, num_seconds / len(submitted.places), 1, answer.error)

    def _finished(self, client: "OpenAI", batch_id: str) -> "Batch":
        """The batch when it has ended; raises `BatchError` when patience ends first."""
        give_up_at = time.monotonic() + self._patience_seconds
        while (batch := client.batches.retrieve(batch_id)).status not in UNANSWERED:
            if time.monotonic() >= give_up_at:
                raise BatchError(f"batch {batch_id} is still {batch.status}: run again later to read it")
            time.sleep(self._poll_seconds)
        return batch

    def _read(self, result: dict[str, Any]) -> Answer:
        """One line of an output or error file."""
        response = result.get("response")
        if not response:
            return Answer(error="timeout")  # expired or cancelled before its turn
        if response["status_code"] != 200:
            return read_status(response["status_code"], {}, json.dumps(response["body"]).encode())
        return read_completion(response["body"], self._server.model, self._server.structured)


def _batch_of(client: "OpenAI", file_id: str) -> str | None:
    """The batch that was made of an uploaded file; None when there is none among the newest."""
    newest = itertools.islice(client.batches.list(limit=100), NUM_LISTED)
    return next((batch.id for batch in newest if batch.input_file_id == file_id), None)
