"""The one place that knows what time it is. The simulator brings its own."""

from __future__ import annotations

import time
from concurrent.futures import Future
from typing import Any, Protocol


class Clock(Protocol):
    """Time as the store sees it."""

    def now_us(self) -> int:
        """Monotonic microseconds (CLOCK_MONOTONIC)."""

    def time_s(self) -> int:
        """Seconds since 1970."""

    def wait(self, future: Future[Any], timeout_us: int | None) -> bool:
        """Wait until the future is done; False when the time is up first."""


class SystemClock:
    """The machine's clock."""

    def now_us(self) -> int:
        """As Clock: the machine's monotonic clock."""
        return time.monotonic_ns() // 1000

    def time_s(self) -> int:
        """As Clock: the machine's calendar."""
        return int(time.time())

    def wait(self, future: Future[Any], timeout_us: int | None) -> bool:
        """As Clock: blocks this thread."""
        try:
            future.exception(None if timeout_us is None else max(0, timeout_us) / 1e6)
        except TimeoutError:
            return future.done()
        return True
