"""A circuit breaker: stop using what keeps failing, and try again after a growing pause."""

from __future__ import annotations

FAILURES_MAX = 3
BACKOFF_FIRST_US = 1_000_000
BACKOFF_MAX_US = 60_000_000


class Breaker:
    """Opens after FAILURES_MAX failures in a row; from the end of its pause on one more attempt is allowed.

    While open `reason` says what failed last. One success closes it; a failure after the pause opens it again
    for twice as long, up to BACKOFF_MAX_US. Caller holds a lock; times are in the caller's clock.
    """

    def __init__(self) -> None:
        self._num_failures = 0
        self._open_until_us = 0
        self._backoff_us = BACKOFF_FIRST_US
        self._reason = ""

    def succeed(self) -> bool:
        """The device answered: closed, and as patient as at first. Was it open, or about to try again?"""
        was_open = self._num_failures >= FAILURES_MAX
        self._num_failures, self._open_until_us = 0, 0
        self._backoff_us, self._reason = BACKOFF_FIRST_US, ""
        return was_open

    def fail(self, reason: str, now_us: int) -> bool:
        """The device failed: open after FAILURES_MAX in a row, each time for longer. Is this the first opening since
        the last success?"""
        self._num_failures += 1
        self._reason = reason
        if self._num_failures < FAILURES_MAX or now_us < self._open_until_us:
            return False
        self._open_until_us = now_us + self._backoff_us
        self._backoff_us = min(2 * self._backoff_us, BACKOFF_MAX_US)
        return self._num_failures == FAILURES_MAX

    def reason(self, now_us: int) -> str:
        """Why nothing may be tried now; "" when it may."""
        if self._num_failures < FAILURES_MAX or now_us >= self._open_until_us:
            return ""
        return f"{self._num_failures} failures in a row, the last: {self._reason}"
