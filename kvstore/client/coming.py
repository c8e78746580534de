"""Coming: the far part of a leased prefix on its way near, as an attached process sees it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future

from kvstore._core.lease import STOP_BUSY, STOP_FULL, Grip
from kvstore.arrays import Keys
from kvstore.block import Match
from kvstore.client.space import Space
from kvstore.errors import KVStoreError, LimitExceeded
from kvstore.lease import Far

LOOK_S = 0.000_5  # between two looks at what has arrived
BUSY_ROUNDS_MAX = 50  # an eviction looks at a block for microseconds, but may be interrupted in it
BUSY_S = 0.000_02  # longer each time


class Coming:
    """Waits until more leading blocks of `keys` are near; of one thread.

    `prefetch` asks the daemon for them and is done when they are there or will not come. None: nobody waits, the daemon
    is asked to bring them for the next time, as far as they are worth it by what `look` answers.
    """

    def __init__(
        self,
        space: Space,
        keys: Keys,
        grip: Grip,
        prefetch: Callable[[], Future[Match]] | None,
        look: Callable[[], Match | None],
    ) -> None:
        self._space, self._keys, self._prefetch, self._look = space, keys, prefetch, look
        self._told: Match | None = None  # what the daemon said of what is far
        self._answer: Future[Match] | None = None
        self._pause = threading.Event()  # for its timeout
        self._num_near = grip.num_near
        self.grip = grip
        self.load_us = 0

    @property
    def num_promoted(self) -> int:
        """Blocks that have arrived."""
        return self.grip.num_near - self._num_near

    @property
    def far(self) -> Far:
        """What has become of it so far."""
        rest = self.grip.num_blocks - self.grip.num_near
        skipped = min(self._told.skipped, rest) if self._told is not None else 0
        recompute_us = self._told.recompute_us if self._told is not None and skipped else 0
        return Far(0 if 0 < skipped == rest else self.load_us, self.num_promoted, skipped, recompute_us)

    def next(self) -> bool:
        """Wait until more leading blocks are near; False when none will be in time. Errors: LimitExceeded."""
        num_near = self.grip.num_near
        self.settle()
        while self.grip.num_near <= num_near:
            if self.grip.num_near == self.grip.num_blocks:
                return False
            self.load_us = self._space.load_us(self.grip.num_blocks - self.grip.num_near)
            if self._prefetch is None:
                self._ask_for_later()
                return False
            if self._answer is None:
                self._answer = self._prefetch()
            was_done = self._answer.done()
            if was_done and self._answer.exception() is None:
                self._told = self._answer.result()
            elif not was_done:
                self._pause.wait(LOOK_S)
            if not self.grip.advance():
                self._again()
            if was_done:
                self.settle()  # an eviction may be looking at what has come
                if self.grip.num_near <= num_near:
                    return False
        return True

    def _ask_for_later(self) -> None:
        self._told = self._look()
        keys = self._keys if self._told is None else self._keys[: self._told.num_blocks]
        if len(keys) <= self.grip.num_near:
            return
        try:
            self._space.promote(keys)
        except KVStoreError:  # the daemon is gone or has enough to do: it is a hint
            return

    def settle(self) -> None:
        """Take leases again that end at a block which an eviction was looking at. Errors: LimitExceeded."""
        for number in range(BUSY_ROUNDS_MAX):
            if number:
                self._pause.wait(number * BUSY_S)
            if self.grip.stop == STOP_FULL:
                self.grip.release()
                most = self._space.leases.entries_max
                raise LimitExceeded(f"{len(self._keys)} more blocks do not fit into serve.leases_max={most}")
            if self.grip.stop != STOP_BUSY:
                return
            self._again()

    def _again(self) -> None:
        self.grip.release()
        self.grip = self._space.leases.acquire(self._keys, False, self._space.number)
