"""Backlog: the blocks that wait for their write-back, in the order in which they became visible."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from kvstore.arrays import Ids, Words
from kvstore.tiers.base import Entries, Outcomes, Places


class Dirty(NamedTuple):
    """Blocks of one namespace, with their state words as they were. `ticket`: of the oldest of them; whoever had one
    that is not larger was here before."""

    ids: Ids
    words: Words
    ns: int
    ticket: int


@dataclass(slots=True, eq=False)
class Write:
    """A batch under way to the far tier."""

    ids: Ids
    ns: int
    ticket: int  # of the oldest of them
    near_places: Places
    far_places: Places
    entries: Entries
    window: Any
    future: Future[Outcomes]
    began_us: int


class Backlog:
    """A bounded queue; parents never come behind their children. Caller holds the store's lock."""

    def __init__(self, num_blocks_max: int) -> None:
        self._num_blocks_max = num_blocks_max
        self._waiting: deque[Dirty] = deque()
        self._failed: deque[Dirty] = deque()  # go before all others once nothing is under way
        self.num_blocks = 0
        self.newest = 0  # ticket

    def __bool__(self) -> bool:
        return bool(self._waiting or self._failed)

    @property
    def next_ns(self) -> int | None:
        """The namespace of what may be written next; None: nothing. What waits may extend what failed, so that comes
        first, in the order in which it was started."""
        return self._waiting[0].ns if self._waiting and not self._failed else None

    @property
    def oldest(self) -> int | None:
        """The smallest ticket of all that waits; None when nothing does."""
        first = [queue[0].ticket for queue in (self._failed, self._waiting) if queue]
        return min(first, default=None)

    def append(self, ids: Ids, words: Words, ns: int) -> bool:
        """False, and nothing is queued, over the limit."""
        if self.num_blocks + len(ids) > self._num_blocks_max:
            return False
        self.newest += 1
        self._waiting.append(Dirty(ids, words, ns, self.newest))
        self.num_blocks += len(ids)
        return True

    def take(self, most: int) -> Dirty:
        """The next blocks of one namespace, up to `most`; there are some."""
        first = self._waiting.popleft()
        parts, total = [first], len(first.ids)
        while total < most and self._waiting and self._waiting[0].ns == first.ns:
            parts.append(self._waiting.popleft())
            total += len(parts[-1].ids)
        ids, words = np.concatenate([part.ids for part in parts]), np.concatenate([part.words for part in parts])
        if total > most:
            self._waiting.appendleft(Dirty(ids[most:], words[most:], first.ns, parts[-1].ticket))
        taken = Dirty(ids[:most], words[:most], first.ns, first.ticket)
        self.num_blocks -= len(taken.ids)
        return taken

    def put_back(self, dirty: Dirty) -> None:
        """It could not be started: it is the next again."""
        self._waiting.appendleft(dirty)
        self.num_blocks += len(dirty.ids)

    def fail(self, dirty: Dirty) -> None:
        """Its write failed; `retry` puts it in front."""
        self._failed.append(dirty)
        self.num_blocks += len(dirty.ids)

    def clear(self) -> None:
        """Nothing waits any more."""
        self._waiting.clear()
        self._failed.clear()
        self.num_blocks = 0

    def retry(self) -> None:
        """Nothing is under way any more: what failed is the next."""
        while self._failed:
            self._waiting.appendleft(self._failed.pop())
