"""When blocks were last used: numbers of accesses as seconds, and what is new of it noted in a durable tier.

Nothing here is on the way of a request. The index numbers accesses; a note of which second it was when the number was
reached, once a step, is enough to tell the second of any of them later.
"""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray

from kvstore._core import index as core
from kvstore._core import leave, walk
from kvstore._core.index import Index
from kvstore.arrays import Ids, Words
from kvstore.clock import Clock
from kvstore.tiers.base import DurableTier, Places, Tier

Seconds = NDArray[np.uint32]

SAMPLES_MAX = 4096
LOOK_MAX = 1 << 16  # records looked at in one step, and
FOUND_MAX = 1 << 12  # blocks found
NOTE_BLOCKS = 64  # handed to the tier at a time
STEP_US = 500  # after which a step hands over no more
PERIOD_US = 10_000_000
LOOK_END = core.NONE


class Timeline:
    """Which access numbers were reached by which second. Old stretches get coarser; order is never lost."""

    def __init__(self) -> None:
        self._numbers = np.zeros(SAMPLES_MAX, dtype=np.uint64)  # ascending, and do not go round
        self._seconds = np.zeros(SAMPLES_MAX, dtype=np.uint32)
        self._count = 0

    def record(self, number: int, time_s: int) -> None:
        """Access `number` and all before it that are in no earlier sample happened by `time_s`. Ascending calls."""
        last = self._count - 1
        if last >= 0 and (self._seconds[last] >= time_s or self._numbers[last] == number):
            self._numbers[last] = number  # a calendar that was put back does not change what was used before what
            return
        if self._count == SAMPLES_MAX:
            half = SAMPLES_MAX // 2
            self._numbers[:half], self._seconds[:half] = self._numbers[1::2], self._seconds[1::2]
            self._count = half
        self._numbers[self._count], self._seconds[self._count] = number, time_s
        self._count += 1

    def seconds(self, numbers: NDArray[np.uint64]) -> Seconds:
        """The second by which each access had happened; the latest known for one that is not recorded yet."""
        at = np.searchsorted(self._numbers[: self._count], numbers)
        return self._seconds[np.minimum(at, self._count - 1)]

    def numbers(self, seconds: Seconds) -> NDArray[np.uint64]:
        """The first number that is known to have been reached by each second, or after it."""
        at = np.searchsorted(self._seconds[: self._count], seconds)
        return self._numbers[np.minimum(at, self._count - 1)]


class Recency:
    """Times of use of the blocks of `index`, noted in `far` every PERIOD_US if that can keep them. Caller holds the
    store's lock but for `catch_up`."""

    def __init__(self, index: Index, far: Tier | None, clock: Clock) -> None:
        self._index, self._clock = index, clock
        self._far = far if isinstance(far, DurableTier) else None
        self._timeline = Timeline()
        self._number = int(index.clock)  # of the latest access, not going round
        self._timeline.record(self._number, clock.time_s())
        self._noted = self._until = self._number  # accesses up to these: noted, and noted at the end of this walk
        self._at = LOOK_END  # where the walk goes on
        self._places: Places = np.empty(0, dtype=np.uint32)  # found, and not handed over yet
        self._seconds: Seconds = np.empty(0, dtype=np.uint32)
        self._next_us = clock.now_us() + PERIOD_US

    def set_far(self, far: Tier | None) -> None:
        """From now on times are noted there."""
        self._far = far if isinstance(far, DurableTier) else None
        self._at, self._places = LOOK_END, self._places[:0]

    def rejoin(self, ids: Ids, words: Words, last_used_s: Seconds) -> None:
        """Blocks of a tier that came to an index in use, the coldest first, with their state words as they were: those
        to which nothing happened since are listed in that order, as used when the tier says."""
        self._advance()
        numbers = (self._timeline.numbers(last_used_s) & np.uint64(0xFFFFFFFF)).astype(np.uint32)
        leave.relist(self._index, ids, words, numbers)

    def adopt(self, ids: Ids, last_used_s: Seconds) -> None:
        """Blocks of an earlier run, the coldest first, and when they were last used: they are listed in that order."""
        self._timeline = Timeline()
        first = self._number + 1
        self._index.reorder_far(ids)
        stride = max(1, 2 * len(ids) // SAMPLES_MAX)
        for at in (*range(stride - 1, len(ids), stride), len(ids) - 1):
            if at >= 0:
                self._timeline.record(first + at, int(last_used_s[at]))
        self._advance()
        self._noted = self._until = self._number

    def seconds(self, ids: Ids) -> Seconds:
        """When each block was last used, in seconds since 1970."""
        self._advance()
        return self._timeline.seconds(self._numbers(walk.accesses(self._index, ids)))

    def step(self) -> None:
        """Keep track of time, and do a bounded piece of what is to be noted."""
        self._advance()
        if self._far is None:
            return
        if self._is_idle and self._number > self._noted and self._clock.now_us() >= self._next_us:
            self._begin()
        if not self._is_idle:
            self._note(self._far)

    def catch_up(self, lock: threading.RLock) -> None:
        """Note everything that was used before this call, letting others have the lock between the pieces."""
        if self._far is None:
            return
        with lock:
            self._index.drain()
            self._advance()
            wanted = self._number
        while True:
            with lock:
                if self._far is None or self._noted >= wanted:
                    return
                if self._is_idle:
                    self._begin()
                self._note(self._far)

    @property
    def _is_idle(self) -> bool:
        return self._at == LOOK_END and not len(self._places)

    def _advance(self) -> None:
        self._number += int(self._index.clock) - self._number & 0xFFFFFFFF
        self._timeline.record(self._number, self._clock.time_s())

    def _numbers(self, accesses: NDArray[np.uint32]) -> NDArray[np.uint64]:
        """Access numbers of the index as such that do not go round."""
        return np.uint64(self._number) - (np.uint32(self._number & 0xFFFFFFFF) - accesses)

    def _begin(self) -> None:
        self._at, self._until = 0, self._number
        self._next_us = self._clock.now_us() + PERIOD_US

    def _note(self, far: DurableTier) -> None:
        """One piece of the walk: find blocks, or hand over what was found."""
        if not len(self._places):
            since = self._noted & 0xFFFFFFFF
            ids, accesses, self._at = walk.used_since(self._index, self._at, LOOK_MAX, FOUND_MAX, since)
            places = self._index.describe(ids)[1]
            order = np.argsort(places)  # so that those of one segment are handed over together
            self._places = places[order]
            self._seconds = self._timeline.seconds(self._numbers(accesses))[order]
        end_us = self._clock.now_us() + STEP_US
        while len(self._places):
            far.note_usage(self._places[:NOTE_BLOCKS], self._seconds[:NOTE_BLOCKS])
            self._places, self._seconds = self._places[NOTE_BLOCKS:], self._seconds[NOTE_BLOCKS:]
            if self._clock.now_us() >= end_us:
                break
        if self._is_idle:
            self._noted = self._until
