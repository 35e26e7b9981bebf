"""What one worker may send: so much a minute, and so much in all. For one event loop; no lock is needed in it."""

import asyncio
import math
import time


class RateLimit:
    """A token bucket: `per_minute` units on average, one second's worth of them at once. Zero is no limit.

    Units are taken before the wait, so those who wait are served in their order.
    """

    def __init__(self, per_minute: float) -> None:
        self._per_second = per_minute / 60
        self._capacity = max(1.0, self._per_second)
        self._level = self._capacity
        self._filled_at = time.monotonic()

    async def acquire(self, units: float = 1.0) -> None:
        """Wait until `units` may be spent; more than the bucket holds is allowed and waited for."""
        if not self._per_second:
            return
        now = time.monotonic()
        self._level = min(self._capacity, self._level + (now - self._filled_at) * self._per_second)
        self._filled_at = now
        self._level -= units
        if self._level < 0:
            await asyncio.sleep(-self._level / self._per_second)

    def give_back(self, units: float) -> None:
        """Correct an estimate: what was not used; negative when more was used."""
        self._level = min(self._capacity, self._level + units)


class Budget:
    """A hard stop: most calls and most tokens of all. None is no stop.

    A call reserves the most it can cost, so that no number of calls at once can exceed the budget together.
    """

    def __init__(self, max_calls: int | None, max_tokens: int | None) -> None:
        self._calls_left: float = math.inf if max_calls is None else max_calls
        self._tokens_left: float = math.inf if max_tokens is None else max_tokens
        self._num_running = 0
        self._settled = asyncio.Event()

    async def reserve(self, tokens: int) -> bool:
        """Take a call and its tokens; False when they are not left. Waits for running calls that may leave some."""
        while self._calls_left >= 1 and self._tokens_left < tokens and self._num_running:
            self._settled.clear()
            await self._settled.wait()
        if self._calls_left < 1 or self._tokens_left < tokens:
            return False
        self._calls_left -= 1
        self._tokens_left -= tokens
        self._num_running += 1
        return True

    def settle(self, reserved: int, used: int, was_sent: bool) -> None:
        """End a call: what it did not use is free again, the call itself only if it was never sent."""
        self._tokens_left += reserved - used
        self._calls_left += not was_sent
        self._num_running -= 1
        self._settled.set()
