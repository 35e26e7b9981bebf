"""How much one worker may send per minute. Each object belongs to one event loop, so it needs no lock."""

import asyncio
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
