"""A circuit breaker: after repeated failures, only one call at a time tests the server."""

import asyncio
import contextlib
import time

from grasp.progress import say


class CircuitBreaker:
    """Opens after `max_failures` in a row; one success closes it. Belongs to one event loop.

    While it is open, one call goes through every `pause_seconds`; the others wait. When the outage has lasted
    `patience_seconds`, no call waits any more: a dead server costs a job this time once, not once per prompt. An error
    that no wait can end opens it without patience.
    """

    def __init__(self, max_failures: int, pause_seconds: float, patience_seconds: float) -> None:
        self._max_failures = max_failures
        self._pause_seconds = pause_seconds
        self._patience_seconds = patience_seconds
        self._num_failures = 0
        self._opened_at: float | None = None
        self._is_lasting = False
        self._probe_at = 0.0
        self._closed = asyncio.Event()

    async def admit(self) -> bool:
        """Wait until a call may be made; False if the outage has lasted too long."""
        while self._opened_at is not None:
            now = time.monotonic()
            if now >= self._probe_at:
                self._probe_at = now + self._pause_seconds
                return True
            if self._is_lasting:
                return False
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
            say(f"the language model server answers again after {time.monotonic() - self._opened_at:.0f} s")
            self._opened_at, self._is_lasting = None, False
            self._closed.set()

    def failed(self, failure: str, is_lasting: bool) -> None:
        """Count a failure; `is_lasting` says that it will not pass by itself."""
        self._num_failures += 1
        if self._opened_at is None and self._num_failures >= self._max_failures:
            then = "asking it no more" if is_lasting else "waiting for it"
            say(f"the language model server failed {self._num_failures} times in a row ({failure}): {then}")
            self._is_lasting = is_lasting
            self._opened_at = time.monotonic()
            self._probe_at = self._opened_at + self._pause_seconds
            self._closed.clear()
