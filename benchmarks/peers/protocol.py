"""The messages between the benchmark and a peer's script, and the clock of the peer's training.

The script runs in the peer's own environment, so this file needs NumPy alone. Its only argument is the file of a
`Request`. Whenever there is something to judge, it prints a `Message` as a marked line; the benchmark answers with a
line when it has judged. All other output is the library's own.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

MARK = "[peer] "
GO_ON = "go on"
WARM_UP_STEPS = 3  # not counted where speed is measured

_LOADED = time.perf_counter()


@dataclass(frozen=True)
class Request:
    """One training run of a peer, the same for all of them."""

    data: str  # file of `save_data`
    scores: str  # file to which scores are exported
    num_threads: int
    seed: int
    num_negatives: int | None  # None: all items
    seconds: float  # of training, without setting up and exports
    export_seconds: float | None  # of training between two exports; None: only speed is measured
    width: int
    num_blocks: int
    num_heads: int
    max_length: int
    dropout: float
    learning_rate: float


@dataclass(frozen=True)
class Message:
    """The state of a training."""

    seconds: float  # of training
    setup_seconds: float  # from the import of this file to the first step
    num_targets: int  # positions with a next item, without padding
    num_steps: int


@dataclass(frozen=True)
class Data:
    """Training sequences, and the users whose next item is asked for."""

    sequences: list[np.ndarray]  # items from 1, oldest first
    asked_users: np.ndarray  # (E,) rows of `sequences`
    num_items: int


def save_data(file: Path, data: Data) -> None:
    lengths = np.array([len(items) for items in data.sequences], np.int64)
    items = np.concatenate(data.sequences).astype(np.int64)
    with file.open("wb") as opened:
        np.savez(opened, items=items, lengths=lengths, asked_users=data.asked_users, num_items=data.num_items)


def load_data(file: Path) -> Data:
    with np.load(file) as saved:
        sequences = np.split(saved["items"], np.cumsum(saved["lengths"])[:-1])
        return Data(sequences, saved["asked_users"], int(saved["num_items"]))


def read_request() -> Request:
    """The request, whose file is the script's only argument."""
    return Request(**json.loads(Path(sys.argv[1]).read_text()))


def as_line(message: Message) -> str:
    return MARK + json.dumps(asdict(message))


def parse(line: str) -> Message | None:
    """The message of a line; None for the library's own output."""
    return Message(**json.loads(line.removeprefix(MARK))) if line.startswith(MARK) else None


def full_scores(scores: np.ndarray, rows: np.ndarray, items: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Scores (E, N) of all items, from those of a peer, which knows only the users and items of its training.

    `scores` (R, I) are those of the events `rows` (R,) and the `items` (I,), counted from 1. All other scores are lower
    than these.
    """
    full = np.full(shape, scores.min() - 1, np.float32)
    full[np.ix_(rows, items - 1)] = scores
    return full


class Training:
    """The clock of a training. It stops while scores are exported and judged."""

    def __init__(self, request: Request, export: Callable[[], np.ndarray]) -> None:
        """`export` gives the scores (E, N) of all items for the asked users, as the model is now."""
        self._request, self._export = request, export
        self._num_targets = self._num_steps = 0
        self._warm_up_left = WARM_UP_STEPS if request.export_seconds is None else 0
        self._next_export = request.export_seconds or 0.0

    def start(self) -> None:
        """The first step begins."""
        self._begin = time.perf_counter()
        self._setup_seconds = self._begin - _LOADED

    def step(self, num_targets: int) -> bool:
        """A step has ended; returns whether to take another."""
        if self._warm_up_left:
            self._warm_up_left -= 1
            self._begin = time.perf_counter()
            return True
        self._num_steps += 1
        self._num_targets += num_targets
        seconds = time.perf_counter() - self._begin
        is_over = seconds >= self._request.seconds
        if self._request.export_seconds is None:
            if is_over:
                self._say(seconds)
            return not is_over
        if not is_over and seconds < self._next_export:
            return True
        np.save(self._request.scores, np.ascontiguousarray(self._export(), np.float32))
        self._say(seconds)
        is_heard = sys.stdin.readline().strip() == GO_ON  # empty when the benchmark has ended
        self._next_export = seconds + self._request.export_seconds
        self._begin = time.perf_counter() - seconds
        return is_heard and not is_over

    def _say(self, seconds: float) -> None:
        print(as_line(Message(seconds, self._setup_seconds, self._num_targets, self._num_steps)), flush=True)
