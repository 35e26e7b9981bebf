"""What a run may spend: one account for all its workers, so that no part of a cap lies unused in one of them.

The account is a file that all workers see. A call reserves the most that it can cost, and settles for what it did cost.
Each worker holds a lock while it lives. If it dies, what it had reserved counts as spent: its calls may be billed.
"""

import fcntl
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from functools import cache
from pathlib import Path

from grasp.settings import Settings

POLL_SECONDS = 0.1  # between two looks for what other calls return
_STATE = "state.json"


@dataclass(frozen=True)
class Usage:
    """What was spent: texts answered, model calls, tokens in and out, money in the currency of the prices."""

    num_keys: int = 0
    num_calls: int = 0
    num_tokens: int = 0
    cost: float = 0.0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.num_keys + other.num_keys,
            self.num_calls + other.num_calls,
            self.num_tokens + other.num_tokens,
            self.cost + other.cost,
        )

    def __neg__(self) -> "Usage":
        return Usage(-self.num_keys, -self.num_calls, -self.num_tokens, -self.cost)


@dataclass(frozen=True)
class Prices:
    """Prices per million tokens."""

    input: float = 0.0
    output: float = 0.0

    @classmethod
    def of(cls, settings: Settings) -> "Prices":
        return cls(settings.llm_input_price, settings.llm_output_price)

    def cost(self, num_input_tokens: float, num_output_tokens: float) -> float:
        return (self.input * num_input_tokens + self.output * num_output_tokens) / 1e6


@dataclass(frozen=True)
class SpendingLimits:
    """What may be spent; None means no limit. Failed attempts count as calls."""

    num_calls: int | None = None
    num_tokens: int | None = None
    cost: float | None = None

    def allow(self, spent: Usage) -> bool:
        limits = (self.num_calls, spent.num_calls), (self.num_tokens, spent.num_tokens), (self.cost, spent.cost)
        return all(limit is None or much <= limit for limit, much in limits)


class Reply(Enum):
    """The answer to a reservation. `LATER`: not now, but running calls may return enough."""

    GRANTED = "granted"
    LATER = "later"
    REFUSED = "refused"


@dataclass(frozen=True)
class Account:
    """What all workers of one run may spend together. It is sent to the workers.

    `folder` exists and is empty at the start. Once it is removed, no call can be sent any more.
    """

    limits: SpendingLimits = SpendingLimits()
    prices: Prices = Prices()
    folder: Path | None = None  # needed if there are limits

    @property
    def is_limited(self) -> bool:
        return self.limits != SpendingLimits()

    def usage(self, num_input_tokens: int, num_output_tokens: int, num_calls: int = 1) -> Usage:
        """Calls that take these tokens together."""
        cost = self.prices.cost(num_input_tokens, num_output_tokens)
        return Usage(0, num_calls, num_input_tokens + num_output_tokens, cost)

    def purse(self) -> "Purse":
        """The access of this process."""
        return _purse(self)


class Purse:
    """The access of one process to an account. Without limits, it grants everything and needs no file."""

    def __init__(self, account: Account) -> None:
        self.account = account
        self._name = uuid.uuid4().hex
        if account.is_limited:
            # Locked while this process lives; the name tells the others what to look at.
            self._alive = _holder(self._folder, self._name).open("w")
            fcntl.flock(self._alive, fcntl.LOCK_EX)
            (self._folder / _STATE).touch()

    @property
    def _folder(self) -> Path:
        if self.account.folder is None:
            raise ValueError("an account with limits needs a folder")
        return self.account.folder

    def reserve(self, most: Usage) -> Reply:
        """Reserve the most that a call can cost, before it is sent."""
        if not self.account.is_limited:
            return Reply.GRANTED
        limits = self.account.limits
        with self._state() as state:
            if limits.allow(sum(state.reserved.values(), state.spent + most)):
                state.reserved[self._name] = state.reserved.get(self._name, Usage()) + most
                return Reply.GRANTED
            for name in [name for name in state.reserved if name != self._name and self._is_dead(name)]:
                state.spent += state.reserved.pop(name)
            running = any(each.num_calls for each in state.reserved.values())
            return Reply.LATER if running and limits.allow(state.spent + most) else Reply.REFUSED

    def settle(self, most: Usage, used: Usage) -> None:
        """End a call: what it did not use is free again."""
        if not self.account.is_limited:
            return
        with self._state() as state:
            state.reserved[self._name] = state.reserved.get(self._name, Usage()) + -most
            state.spent += used

    @contextmanager
    def _state(self) -> Iterator["_State"]:
        """The state of the account, while no other process changes it."""
        with (self._folder / _STATE).open("r+b", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            before = file.readline()
            state = _State.read(before)
            yield state
            if (after := state.line()) != before:
                # One line in one write: a worker that is killed leaves the old state or the new one.
                os.pwrite(file.fileno(), after, 0)

    def _is_dead(self, name: str) -> bool:
        with _holder(self._folder, name).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        return True


@dataclass
class _State:
    spent: Usage = Usage()
    reserved: dict[str, Usage] = field(default_factory=dict)  # by process

    @classmethod
    def read(cls, line: bytes) -> "_State":
        if not line:
            return cls()
        known = json.loads(line)
        return cls(Usage(**known["spent"]), {name: Usage(**each) for name, each in known["reserved"].items()})

    def line(self) -> bytes:
        reserved = {name: vars(each) for name, each in self.reserved.items()}
        return f"{json.dumps({'spent': vars(self.spent), 'reserved': reserved})}\n".encode()


def _holder(folder: Path, name: str) -> Path:
    return folder / f"{name}.alive"


@cache
def _purse(account: Account) -> Purse:
    """One for each account and process: a call that is cancelled late settles with the account it was sent for."""
    return Purse(account)
