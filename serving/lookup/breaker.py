"""Leave a store alone that keeps failing or keeps being late."""

import threading
import time
from collections.abc import Callable

NUM_FAILURES = 8  # after this many failures in a row the store is left alone
REST_SECONDS = 1.0  # then one request tries it, once in this time


class Breaker:
    """Counts failures in a row. Safe to use from several threads."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._num_failures, self._retry_at = 0, 0.0

    @property
    def is_failing(self) -> bool:
        """Whether the last read failed."""
        return self._num_failures > 0

    def may_ask(self) -> bool:
        """Whether the store may be asked now. During a run of failures only one caller in `REST_SECONDS` may."""
        with self._lock:
            if self._num_failures < NUM_FAILURES:
                return True
            now = self._monotonic()
            if now < self._retry_at:
                return False
            self._retry_at = now + REST_SECONDS
            return True

    def succeeded(self) -> None:
        with self._lock:
            self._num_failures = 0

    def failed(self) -> None:
        with self._lock:
            self._num_failures += 1
            self._retry_at = self._monotonic() + REST_SECONDS
