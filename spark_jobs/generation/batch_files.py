"""One batch of a vendor's batch files: half the price, an answer within a day.

A batch is a folder, from before it is submitted until its answers are in the ledger:

    batch.json        whose it is, the most it may take, and how far it got: the ids of the uploaded file and the batch
    requests.jsonl    what is uploaded, to the byte: settings that change meanwhile change nothing about it
    work.parquet      whom each of these lines is about

A process that dies must not submit twice what it pays for once. So the folder is there as a whole before anything is
uploaded, the file's id is written down before a batch is made of it, and the batch's id after: whoever comes next finds
the batch, even where the process died between the two. When what is done is in `batch_generate.py`.
"""

import itertools
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pyarrow as pa
import pyarrow.parquet as pq

from grasp.files import write_json
from grasp.progress import say
from spark_jobs.generation.ledger import Spent
from spark_jobs.models.chat_completions import Answer, read_completion, read_status
from spark_jobs.models.language_model import Generation

if TYPE_CHECKING:
    from openai import OpenAI
    from openai.types import Batch as VendorsBatch

ENDPOINT: Final = "/v1/chat/completions"
NUM_LISTED = 1000  # newest batches of the vendor's among which a lost one is looked for
# Status of a batch that is over, and what became of those of its requests that are in neither of its files.
UNANSWERED = {"completed": "server_error", "expired": "timeout", "failed": "rejected", "cancelled": "rejected"}
WORK_SCHEMA = pa.schema([(name, pa.string()) for name in ("generation_key", "entity_id", "canonical")])
_STATE, _REQUESTS, _WORK = "batch.json", "requests.jsonl", "work.parquet"

Work = Mapping[str, str]  # a piece of work: the columns of WORK_SCHEMA


@dataclass(frozen=True)
class Batch:
    """A batch as it stands. It belongs to the day that submitted it, whoever reads what it comes to."""

    folder: Path
    day: str
    prompt_version: str
    model_revision: str
    server: str  # sha256 of its URL
    model: str
    structured: bool
    is_repair: bool
    reserved: Spent  # the most it may take
    file_id: str = ""
    batch_id: str = ""

    @classmethod
    def read(cls, folder: Path) -> "Batch":
        known = json.loads((folder / _STATE).read_text())
        return cls(folder, **known | {"reserved": Spent(**known["reserved"])})

    @property
    def run(self) -> str:
        """What names its shard; repairs have that of the batch they come from."""
        return self.folder.name.partition("-")[0]

    @property
    def work_file(self) -> Path:
        return self.folder / _WORK

    def work(self) -> list[dict[str, str]]:
        """Whom the requests are about, in their order."""
        rows: list[dict[str, str]] = pq.read_table(self.work_file).to_pylist()
        return rows

    def lay(self, work: Sequence[Work], bodies: Sequence[str]) -> None:
        """Put the folder there as a whole; `bodies` are the requests' bodies as JSON in ASCII, in the order of `work`.

        A request's `custom_id` is its place.
        """
        making = self.folder.with_name(f".{self.folder.name}")
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(parents=True)
        with (making / _REQUESTS).open("w", encoding="ascii") as file:
            for place, body in enumerate(bodies):
                head = f'"custom_id": "{place}", "method": "POST", "url": "{ENDPOINT}"'
                file.write(f'{{{head}, "body": {body}}}\n')
        pq.write_table(pa.Table.from_pylist([dict(piece) for piece in work], WORK_SCHEMA), making / _WORK)
        replace(self, folder=making).remember()
        making.rename(self.folder)

    def remember(self, file_id: str = "", batch_id: str = "") -> "Batch":
        """Write down what the vendor calls the file or the batch, and what was known before."""
        later = replace(self, file_id=file_id or self.file_id, batch_id=batch_id or self.batch_id)
        write_json(self.folder / _STATE, {name: value for name, value in asdict(later).items() if name != "folder"})
        return later

    def remove(self) -> None:
        """Forget the batch, in one step: its answers are in the ledger, or it was never made."""
        gone = self.folder.with_name(f".{self.folder.name}")
        self.folder.rename(gone)
        shutil.rmtree(gone)


def pending(folder: Path) -> list[Batch]:
    """The batches below a folder that are not over."""
    return [Batch.read(each) for each in sorted(folder.glob("[!.]*"))]


def submit(client: "OpenAI", batch: Batch) -> Batch:
    """Upload the requests and make a batch of them, or find the one that was made of them before."""
    if found := find(client, batch):
        return found
    if not batch.file_id:
        requests = (batch.folder / _REQUESTS).read_bytes()
        batch = batch.remember(file_id=client.files.create(file=(_REQUESTS, requests), purpose="batch").id)
    # Tried once: a second try after an answer that got lost would make a second batch.
    batches = client.with_options(max_retries=0).batches
    made = batches.create(input_file_id=batch.file_id, endpoint=ENDPOINT, completion_window="24h")
    say(f"batch {made.id}: {batch.reserved.num_calls} requests submitted")
    return batch.remember(batch_id=made.id)


def find(client: "OpenAI", batch: Batch) -> Batch | None:
    """The batch with its id, where a process that died, or was not told, has made one of the uploaded file."""
    if not batch.file_id:
        return None
    newest = itertools.islice(client.batches.list(limit=100), NUM_LISTED)
    lost = next((each.id for each in newest if each.input_file_id == batch.file_id), None)
    return batch.remember(batch_id=lost) if lost else None


def read_ended(client: "OpenAI", batch: Batch) -> list[Generation] | None:
    """What a submitted batch came to, in the order of its requests; None while it goes on.

    A request is one call, and `seconds` its share of the batch's time.
    """
    ended = client.batches.retrieve(batch.batch_id)
    if ended.status not in UNANSWERED:
        return None
    answers: dict[int, Answer] = {}
    for file_id in filter(None, (ended.output_file_id, ended.error_file_id)):
        for line in client.files.content(file_id).content.splitlines():  # of bytes: a text may hold U+2028
            if read := _read(line, batch):
                answers[read[0]] = read[1]
    num = batch.reserved.num_calls
    say(f"batch {ended.id}: {ended.status}{_why(ended)}, {len(answers)} of {num} requests came back")
    seconds = _seconds(ended) / num
    generations = []
    for place in range(num):
        answer = answers.get(place, Answer(error=UNANSWERED[ended.status]))
        tokens = (answer.num_input_tokens, answer.num_output_tokens)
        generations.append(Generation(answer.text, *tokens, seconds, 1, answer.error))
    return generations


def _read(line: bytes, batch: Batch) -> tuple[int, Answer] | None:
    """Place and answer of one line of an output or error file; None for a line that is no answer to anything."""
    try:
        result = json.loads(line)
        place, response = int(result["custom_id"]), result["response"]
        status, body = (response["status_code"], response["body"]) if response else (None, None)
    except (ValueError, LookupError, TypeError):
        return None
    if status is None:
        return place, Answer(error="timeout")  # expired or cancelled before its turn
    if status != 200:
        return place, read_status(status, {}, json.dumps(body).encode())
    return place, read_completion(body, batch.model, batch.structured)


def _why(ended: "VendorsBatch") -> str:
    """What the vendor found wrong with the batch as a whole, by its codes: a message may quote the key."""
    found = (ended.errors.data if ended.errors else None) or []
    codes = sorted({each.code[:80] for each in found if each.code})
    return f" ({', '.join(codes)})" if codes else ""


def _seconds(ended: "VendorsBatch") -> float:
    over = ended.completed_at or ended.expired_at or ended.cancelled_at or ended.failed_at or ended.created_at
    return float(over - ended.created_at)
