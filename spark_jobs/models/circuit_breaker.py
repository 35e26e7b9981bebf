"""A circuit breaker: a server that fails time after time is left alone, then asked by one call at a time."""

import asyncio
import contextlib
import time

from grasp.progress import say


class Circuit:
    """Opens after `max_failures` in a row; a success closes it. For one event loop.

    While it is open, one call goes through every `pause_seconds` to see how the server does, and the others wait.
    Patience belongs to the outage, not to a call: when that has lasted for `patience_seconds`, nobody waits any more,
    so that a dead server costs a job this time once and not once a prompt.
    """

    def __init__(self, max_failures: int, pause_seconds: float, patience_seconds: float) -> None:
        self._max_failures = max_failures
        self._pause_seconds = pause_seconds
        self._patience_seconds = patience_seconds
        self._num_failures = 0
        self._opened_at: float | None = None
        self._probe_at = 0.0
        self._closed = asyncio.Event()

    async def admit(self) -> bool:
        """Wait until a call may be made; False when the server has been failing for too long."""
        while self._opened_at is not None:
            now = time.monotonic()
            if now >= self._probe_at:
                self._probe_at = now + self._pause_seconds
                return True
            patience_left = self._opened_at + self._patience_seconds - now
            if patience_left <= 0:
                return False
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(patience_left, self._probe_at - now)):
                    await self._closed.wait()
        return True

    def succeeded(self) -> None:
        self._num_failures = 0
        if self._opened_at is not None:
            say(f"the language model's server answers again after {time.monotonic() - self._opened_at:.0f} s")
            self._opened_at = None
            self._closed.set()

    def failed(self, error: str) -> None:
        self._num_failures += 1
        if self._opened_at is None and self._num_failures >= self._max_failures:
            say(f"the language model's server failed {self._num_failures} times in a row ({error}): waiting for it")
            self._opened_at = time.monotonic()
            self._probe_at = self._opened_at + self._pause_seconds
            self._closed.clear()
