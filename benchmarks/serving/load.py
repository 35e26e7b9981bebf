"""A load of HTTP requests from wrk, a compiled tool: an open loop at a fixed rate, or a closed loop of one client.

In the open loop every request is due at a fixed moment, whatever happened to earlier requests. Its time counts from
that moment, so the wait behind a slow answer counts too (no coordinated omission). A request that was never answered,
or had to be sent again, is an error.
"""

import json
import math
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from grasp.processes import end_with_parent

SCRIPT = Path(__file__).with_name("load.lua")
PATH = "/v1/recommendations"
NUM_CONNECTIONS = 32  # of an open loop; wrk uses a thread for each
LEAD_SECONDS = 1.0  # before the first request is due, in which wrk connects
GRACE_SECONDS = 5  # for the last answers; one that takes longer is an error
TIMEOUT_SECONDS = 10
ERRORS_LINE = "SOCKET ERRORS "
OK = 200


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for one request. Moments are seconds of `time.monotonic()`."""

    slot: int
    due: float  # in a closed loop: when it was sent
    sent: float
    done: float
    status: int
    release: str  # this and the next two are empty where the answer has none
    fallback: str
    store_problem: str
    marks: tuple[str, ...]  # marks at the start of its titles (`mark_of`), each once; "?" for a title without one

    @property
    def milliseconds(self) -> float:
        return 1000 * (self.done - self.due)


@dataclass(frozen=True)
class Load:
    """All answers of one load, by the moment at which they were due."""

    answers: list[Answer]
    num_due: int
    num_socket_errors: int
    seconds: float

    @property
    def num_errors(self) -> int:
        """Requests without an answer, with another status than 200, or answered at the second try only.

        wrk asks again on a new connection when one broke, which hides the first try.
        """
        num_refused = sum(answer.status != OK for answer in self.answers)
        return num_refused + max(self.num_due - len(self.answers), self.num_socket_errors)

    def summary(self) -> dict[str, Any]:
        """What a measurement keeps; milliseconds are None when nothing was answered."""
        return {
            "seconds": self.seconds,
            "num_due": self.num_due,
            "num_answered": len(self.answers),
            "num_errors": self.num_errors,
            "num_socket_errors": self.num_socket_errors,
            "answers_per_second": len(self.answers) / self.seconds,
            "milliseconds": percentiles([answer.milliseconds for answer in self.answers]),
            "late_milliseconds": percentiles([1000 * (answer.sent - answer.due) for answer in self.answers]),
        }


def percentiles(values: Sequence[float]) -> dict[str, float] | None:
    """p50, p95, p99 and the largest value, each a value that occurred; None without values."""
    if not values:
        return None
    found = np.quantile(np.asarray(values), [0.5, 0.95, 0.99], method="higher")
    return dict(zip(("p50", "p95", "p99"), found.tolist(), strict=True)) | {"max": float(max(values))}


def num_slots(rate: float, seconds: float) -> int:
    """How many requests of an open loop are due before its end, at 0, 1 / rate, 2 / rate, ..."""
    return math.ceil(rate * seconds)


def mark_of(number: int) -> str:
    """The start of all titles of a release, before a "|", by which `load.lua` tells releases apart."""
    return f"r{number}"


def bodies_of(user_ids: Sequence[str], k: int = 10) -> list[str]:
    """One request for each user, on one line."""
    return [json.dumps({"user_id": user_id, "k": k}) for user_id in user_ids]


def open_loop(url: str, bodies: Sequence[str], rate: float, seconds: float, connections: int = NUM_CONNECTIONS) -> Load:
    """Send `rate` requests a second for so many seconds."""
    if rate <= 0:
        raise ValueError(f"the rate of an open loop must be above 0, got {rate}")
    with started(url, bodies, rate, seconds, connections) as running:
        return running.result()


def closed_loop(url: str, bodies: Sequence[str], seconds: float) -> Load:
    """One client on one connection that asks again as soon as it has an answer."""
    with started(url, bodies, 0, seconds, 1) as running:
        return running.result()


class started:  # noqa: N801 - read as a verb: `with started(...) as running`
    """A running load; leaving the block ends it."""

    def __init__(
        self, url: str, bodies: Sequence[str], rate: float, seconds: float, connections: int = NUM_CONNECTIONS
    ) -> None:
        program = require_wrk()
        self._rate, self._seconds = rate, seconds
        self._folder = tempfile.TemporaryDirectory(prefix="load-")
        folder = Path(self._folder.name)
        (folder / "bodies").write_text("".join(f"{body}\n" for body in bodies))
        self.start = time.monotonic() + LEAD_SECONDS
        whole = math.ceil(seconds + (LEAD_SECONDS + GRACE_SECONDS if rate else 0))
        options = ["-t", connections, "-c", connections, "-d", f"{whole}s", "--timeout", f"{TIMEOUT_SECONDS}s"]
        script = [rate, connections, f"{1e6 * self.start:.0f}", seconds, PATH, folder / "bodies", folder]
        command = [program, *options, "-s", SCRIPT, url, "--", *script]
        self._process = subprocess.Popen(
            [str(part) for part in command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=end_with_parent,  # noqa: PLW1509 - one system call, no lock
        )

    def __enter__(self) -> "started":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()
        self._folder.cleanup()

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def result(self) -> Load:
        """Wait for the end. Raises `ValueError` with what wrk said when it failed."""
        said, _ = self._process.communicate()
        errors = [line for line in said.splitlines() if line.startswith(ERRORS_LINE)]
        if self._process.returncode or not errors:
            raise ValueError(f"wrk failed: {said.strip()[-500:]}")
        answers = sorted(read_answers(Path(self._folder.name)), key=lambda answer: answer.due)
        num_due = num_slots(self._rate, self._seconds) if self._rate else len(answers)
        return Load(answers, num_due, int(errors[0].removeprefix(ERRORS_LINE)), self._seconds)


def read_answers(folder: Path) -> Iterator[Answer]:
    """The answers that wrk's threads wrote to files, thread by thread."""
    for file in sorted(folder.glob("thread-*.tsv")):
        for line in file.read_text().splitlines():
            slot, due, sent, done, status, release, fallback, problem, marks = line.split("\t")
            seconds = [float(each) / 1e6 for each in (due, sent, done)]
            found = tuple(marks.split(",")) if marks else ()
            yield Answer(int(slot), seconds[0], seconds[1], seconds[2], int(status), release, fallback, problem, found)


def require_wrk() -> str:
    """Path of wrk; raises `FileNotFoundError` that says how to install it."""
    program = shutil.which("wrk")
    if program is None:
        raise FileNotFoundError(
            "wrk is not installed: `apt-get install -y wrk` (Debian and Ubuntu), `brew install wrk`"
        )
    return program
