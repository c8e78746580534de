"""Simulated time, and a lock at which somebody else may come first. Nothing here knows the store."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

START_US = 1_000_000_000
START_S = 1_700_000_000
TICK_US = 50_000  # the mover's thread looks at least this often; a long wait looks less and less often
TICK_MAX_US = 2_000_000
PATIENCE_US = 600_000_000  # whoever waits longer waits for ever: no fault lasts nearly as long


class WaitsForEver(AssertionError):
    """Something waits for a future that nothing will finish."""


class SimClock:
    """kvstore.clock.Clock over a queue of events. Time moves only in `wait` and `advance`.

    `turn` is called after every piece of time that passed: there the world steps the mover and lets others act.
    """

    def __init__(self) -> None:
        self._now_us = START_US
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._num_events = 0
        self.turn: Callable[[], None] = lambda: None
        self.locked: Callable[[], bool] = lambda: False

    def now_us(self) -> int:
        return self._now_us

    def time_s(self) -> int:
        return START_S + (self._now_us - START_US) // 1_000_000

    def after(self, delay_us: int, action: Callable[[], None]) -> None:
        """Have `action` done when `delay_us` have passed; of those due together the first asked comes first."""
        self._num_events += 1
        heapq.heappush(self._events, (self._now_us + delay_us, self._num_events, action))

    def _pass(self, until_us: int) -> None:
        while self._events and self._events[0][0] <= until_us:
            due_us, _, action = heapq.heappop(self._events)
            self._now_us = max(self._now_us, due_us)
            action()
        self._now_us = max(self._now_us, until_us)

    def _hop(self, tick_us: int, end_us: int) -> None:
        """To the next event, a tick or the end, whatever comes first."""
        until_us = min(self._now_us + tick_us, end_us)
        if self._events:
            until_us = min(until_us, max(self._now_us, self._events[0][0]))
        self._pass(until_us)
        self.turn()

    def wait(self, future: Future[Any], timeout_us: int | None) -> bool:
        assert not self.locked(), "waits while it holds the store's lock"
        began_us = self._now_us
        end_us = began_us + (PATIENCE_US if timeout_us is None else max(0, timeout_us))
        tick_us = TICK_US
        while not future.done():
            if self._now_us >= end_us:
                if timeout_us is None:
                    raise WaitsForEver(f"no answer within {PATIENCE_US // 1_000_000} s of simulated time")
                return False
            self._hop(tick_us, end_us)
            tick_us = min(2 * tick_us, TICK_MAX_US)
        return True

    def advance(self, duration_us: int) -> None:
        """Let time pass, and everything that happens in it."""
        end_us = self._now_us + duration_us
        tick_us = TICK_US
        while self._now_us < end_us:
            self._hop(tick_us, end_us)
            tick_us = min(2 * tick_us, TICK_MAX_US)


class SimLock:
    """A reentrant lock of one thread. `before`: called each time somebody is about to take it: another may come first,
    as threads do."""

    def __init__(self) -> None:
        self._depth = 0
        self.before: Callable[[], None] = lambda: None

    @property
    def held(self) -> bool:
        return self._depth > 0

    def __enter__(self) -> SimLock:
        if self._depth == 0:
            self.before()
        self._depth += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
