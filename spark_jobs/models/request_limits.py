"""How much one worker may send, per minute and in total. Each object belongs to one event loop, so it needs no lock."""

import asyncio
import math
import time


class RateLimit:
    """A token bucket: `per_minute` units on average, bursts of one second's worth. Zero means no limit.

    Units are taken before the wait, so callers are served in order.
    """

    def __init__(self, per_minute: float) -> None:
        self._per_second = per_minute / 60
        self._capacity = max(1.0, self._per_second)
        self._level = self._capacity
        self._filled_at = time.monotonic()

    async def acquire(self, units: float = 1.0) -> None:
        """Wait until `units` may be spent. More units than the bucket holds are allowed; the wait is longer."""
        if not self._per_second:
            return
        now = time.monotonic()
        self._level = min(self._capacity, self._level + (now - self._filled_at) * self._per_second)
        self._filled_at = now
        self._level -= units
        if self._level < 0:
            await asyncio.sleep(-self._level / self._per_second)

    def give_back(self, units: float) -> None:
        """Correct an estimate by the unused units; negative if more were used."""
        self._level = min(self._capacity, self._level + units)


class Budget:
    """A hard limit on calls and tokens. None means no limit.

    Each call first reserves the most it can cost, so concurrent calls together cannot exceed the budget.
    """

    def __init__(self, max_calls: int | None, max_tokens: int | None) -> None:
        self._calls_left: float = math.inf if max_calls is None else max_calls
        self._tokens_left: float = math.inf if max_tokens is None else max_tokens
        self._num_running = 0
        self._settled = asyncio.Event()

    async def reserve(self, tokens: int) -> bool:
        """Reserve a call and its tokens; False if too few are left. Waits while running calls may return some."""
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
        """End a call: unused tokens become free again, and so does the call if it was never sent."""
        self._tokens_left += reserved - used
        self._calls_left += not was_sent
        self._num_running -= 1
        self._settled.set()
