"""One batch of the OpenAI batch API: half the price, answers within a day.

A batch is a folder that exists from before it is submitted until its answers are in the ledger:

    batch.json        day, versions, most it may cost, and its state: the ids of the uploaded file and of the batch
    requests.jsonl    the uploaded bytes; later changes of settings do not change them
    work.parquet      the generation request of each line

After a crash, no batch may be submitted a second time. Therefore the folder is complete before anything is uploaded,
the file's id is saved before the batch is created, and the batch's id after. If the id is lost in between, the batch is
looked for in the vendor's list. A vendor may list it late, so the request is repeated only after some time.
`batch_generation.py` decides when each step is done.
"""

import itertools
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from grasp.files import write_json
from grasp.progress import say
from spark_jobs.generation.live_generation import GenerationRequest
from spark_jobs.models.account import Usage
from spark_jobs.models.chat_completions import Answer, read_completion, read_failure, read_status
from spark_jobs.models.language_model import Generation

if TYPE_CHECKING:
    from openai import OpenAI
    from openai.types import Batch as VendorsBatch

ENDPOINT: Final = "/v1/chat/completions"
NUM_LISTED = 1000  # newest batches at the vendor that are searched for a lost one
LISTED_AFTER_SECONDS = 900.0  # a vendor lists a batch that it created within this time
# Final status of a batch, and the error of its requests without an answer.
UNANSWERED = {"completed": "server_error", "expired": "timeout", "failed": "rejected", "cancelled": "rejected"}
REQUEST_SCHEMA = pa.schema([(name, pa.string()) for name in ("generation_key", "entity_id", "canonical")])
_STATE, _REQUESTS, _REQUEST_TABLE = "batch.json", "requests.jsonl", "work.parquet"


@dataclass(frozen=True)
class Batch:
    """The state of a batch. It belongs to the day that submitted it, whichever run reads the answers."""

    folder: Path
    day: str
    prompt_version: str
    model_revision: str
    server: str  # sha256 of its URL
    model: str
    structured: bool
    is_repair: bool
    reserved: Usage  # the most it may cost
    file_id: str = ""
    batch_id: str = ""
    asked_at: float = 0.0  # when the vendor was last asked to create it; seconds since 1970

    @classmethod
    def read(cls, folder: Path) -> "Batch":
        known = json.loads((folder / _STATE).read_text())
        return cls(folder, **known | {"reserved": Usage(**known["reserved"])})

    @property
    def run(self) -> str:
        """Part of the shard's name; a batch of repairs has the same run as its original batch."""
        return self.folder.name.partition("-")[0]

    @property
    def requests_file(self) -> Path:
        return self.folder / _REQUEST_TABLE

    @property
    def may_be_unlisted(self) -> bool:
        """Whether the vendor may have created it without listing it yet."""
        return time.time() - self.asked_at < LISTED_AFTER_SECONDS

    def requests(self) -> list[dict[str, str]]:
        rows: list[dict[str, str]] = pq.read_table(self.requests_file).to_pylist()
        return rows

    def create(self, requests: Sequence[GenerationRequest], bodies: Sequence[str]) -> None:
        """Create the complete folder in one step; `bodies` are the HTTP bodies of the requests as ASCII JSON.

        The `custom_id` of a request is its index.
        """
        making = self.folder.with_name(f".{self.folder.name}")
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(parents=True)
        with (making / _REQUESTS).open("w", encoding="ascii") as file:
            for index, body in enumerate(bodies):
                head = f'"custom_id": "{index}", "method": "POST", "url": "{ENDPOINT}"'
                file.write(f'{{{head}, "body": {body}}}\n')
        pq.write_table(pa.Table.from_pylist([dict(each) for each in requests], REQUEST_SCHEMA), making / _REQUEST_TABLE)
        replace(self, folder=making).save()
        making.rename(self.folder)

    def save(self, **changed: Any) -> "Batch":
        """Save the state with these fields changed, such as the vendor's id of the file or the batch."""
        later = replace(self, **changed)
        write_json(self.folder / _STATE, {name: value for name, value in asdict(later).items() if name != "folder"})
        return later

    def remove(self) -> None:
        """Remove the folder in one step: the answers are in the ledger, or the batch was never created."""
        gone = self.folder.with_name(f".{self.folder.name}")
        self.folder.rename(gone)
        shutil.rmtree(gone)


def pending_batches(folder: Path) -> list[Batch]:
    """The batches below a folder: submitted or not, with answers not yet in the ledger."""
    return [Batch.read(each) for each in sorted(folder.glob("[!.]*"))]


def submit_batch(client: "OpenAI", batch: Batch) -> Batch:
    """Upload the requests, unless that was done before, and create a batch of them."""
    from openai import OpenAIError

    if not batch.file_id:
        requests = (batch.folder / _REQUESTS).read_bytes()
        batch = batch.save(file_id=client.files.create(file=(_REQUESTS, requests), purpose="batch").id)
    batch = batch.save(asked_at=time.time())
    # No retries: a retry after a lost answer would create a second batch.
    batches = client.with_options(max_retries=0).batches
    try:
        made = batches.create(input_file_id=batch.file_id, endpoint=ENDPOINT, completion_window="24h")
    except OpenAIError as error:
        if not read_failure(error).is_transient:  # refused, so it was not created
            batch.save(asked_at=0.0)
        raise
    say(f"batch {made.id}: {batch.reserved.num_calls} requests submitted")
    return batch.save(batch_id=made.id)


def find_submitted(client: "OpenAI", batch: Batch) -> Batch | None:
    """The batch with its id, if one was created from the uploaded file and the id was lost."""
    if not batch.file_id:
        return None
    newest = itertools.islice(client.batches.list(limit=100), NUM_LISTED)
    lost = next((each.id for each in newest if each.input_file_id == batch.file_id), None)
    return batch.save(batch_id=lost) if lost else None


def read_answers(client: "OpenAI", batch: Batch) -> list[Generation] | None:
    """The answers of a finished batch in the order of its requests; None while it is running.

    Each request counts as one call; its `seconds` are its share of the batch's duration.
    """
    ended = client.batches.retrieve(batch.batch_id)
    if ended.status not in UNANSWERED:
        return None
    answers: dict[int, Answer] = {}
    for file_id in filter(None, (ended.output_file_id, ended.error_file_id)):
        # Split as bytes, because U+2028 in a text must not split a line.
        for line in client.files.content(file_id).content.splitlines():
            if not (read := _read_line(line, batch)):
                continue
            index, answer = read
            # A request may stand in both files: what was answered is paid, whatever the error file says.
            if index not in answers or (answers[index].error and not answer.error):
                answers[index] = answer
    num = batch.reserved.num_calls
    say(f"batch {ended.id}: {ended.status}{_why(ended)}, {len(answers)} of {num} requests came back")
    seconds = _seconds(ended) / num
    generations = []
    for index in range(num):
        answer = answers.get(index, Answer(error=UNANSWERED[ended.status]))
        tokens = (answer.num_input_tokens, answer.num_output_tokens)
        failure = answer.failure if answer.error else None
        generations.append(Generation(answer.text, *tokens, seconds, 1, answer.error, failure))
    return generations


def _read_line(line: bytes, batch: Batch) -> tuple[int, Answer] | None:
    """Index and answer of one line of an output or error file; None for a line without an answer."""
    try:
        result = json.loads(line)
        index, response = int(result["custom_id"]), result["response"]
        status, body = (response["status_code"], response["body"]) if response else (None, None)
    except (ValueError, LookupError, TypeError):
        return None
    if status is None:
        return index, Answer(error="timeout")  # expired or cancelled before it was processed
    if status != 200:
        return index, read_status(status, {}, json.dumps(body).encode())
    return index, read_completion(body, batch.model, batch.structured)


def _why(ended: "VendorsBatch") -> str:
    """The vendor's error codes for the whole batch. Not the messages: they may contain the key."""
    found = (ended.errors.data if ended.errors else None) or []
    codes = sorted({each.code[:80] for each in found if each.code})
    return f" ({', '.join(codes)})" if codes else ""


def _seconds(ended: "VendorsBatch") -> float:
    over = ended.completed_at or ended.expired_at or ended.cancelled_at or ended.failed_at or ended.created_at
    return float(over - ended.created_at)
