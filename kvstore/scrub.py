"""The scrubber: reads every far block in turn, so that one that rots is found before somebody needs it.

It holds nothing in place. A block is read where it lies, and afterwards its state word has to be what it was: a block
that moved or left meanwhile, so that its bytes may have been overwritten, gets no verdict this time.
"""

from __future__ import annotations

from concurrent.futures import Future
from mmap import mmap
from typing import TYPE_CHECKING

import numpy as np

from kvstore import policy
from kvstore._core import index as core
from kvstore.arrays import NO_IDS, Ids, Words
from kvstore.listing import Listing
from kvstore.tiers.base import Outcome, Outcomes, Tier

if TYPE_CHECKING:
    from kvstore.mover import Mover

SCRUB_NBYTES = 1 << 20  # of a batch, and of the scratch memory unless one block is larger
SCRUB_BLOCKS = 256
ROUND_US_MIN = 3_600_000_000  # from the beginning of one round to that of the next
EMPTY_US = 10_000_000  # after finding the tier empty, before looking again
PLACE_END = 2**32 - 1


class Scrub:
    """Rounds over all blocks of `far`, in the order of their places. Caller holds the store's lock."""

    def __init__(self, mover: Mover, far: Tier | None, nbytes_per_s: int) -> None:
        self._mover, self._far, self._nbytes_per_s = mover, far, nbytes_per_s
        self._listing: Listing | None = None
        self._left: Ids = NO_IDS  # listed, and not read yet
        self._next_place = 0  # behind the listed ones
        self._ids: Ids = NO_IDS
        self._words: Words = np.empty(0, dtype=np.uint64)
        self.reading: Future[Outcomes] | None = None  # what is under way
        self._scratch = memoryview(b"")
        self._ready_us = self._began_us = 0
        self._is_empty = True  # nothing was listed in this round
        self._ended_us: int | None = None
        self.scrubbed_blocks = self.rotten_blocks = self.rounds = 0

    def step(self, now_us: int, num_reads: int) -> None:
        """Judge what was read, and read on if nobody else reads and the budget allows."""
        if self.reading is not None:
            if not self.reading.done():
                return
            self._judge()
        far = self._far
        if far is None or self._mover.is_resting:
            return
        if policy.may_scrub(far.usage().healthy, num_reads, now_us, self._ready_us, self._nbytes_per_s):
            if len(self._left):
                self._read(far, now_us)
            else:
                self._list(now_us)

    def set_far(self, far: Tier | None) -> None:
        """Begin anew with this tier. What is being read of the one before is nobody's, nor is the memory it goes to."""
        self._far, self.reading, self._scratch = far, None, memoryview(b"")
        self._listing, self._left, self._next_place = None, NO_IDS, 0

    def stats(self, now_us: int) -> dict[str, float]:
        """Counters; -1.0 as age before the first round has ended."""
        return {
            "scrubbed_blocks": self.scrubbed_blocks,
            "scrub_rotten_blocks": self.rotten_blocks,
            "scrub_rounds": self.rounds,
            "scrub_age_s": -1.0 if self._ended_us is None else (now_us - self._ended_us) / 1e6,
        }

    def _list(self, now_us: int) -> None:
        """A piece of the way to the next blocks, or the end of the round."""
        if self._listing is None:
            if self._next_place == 0:
                self._began_us, self._is_empty = now_us, True
            self._listing = Listing(self._mover.index, self._next_place, PLACE_END)
        if not self._listing.step():
            return
        listing, self._listing = self._listing, None
        self._left, self._next_place = listing.ids, listing.last
        if len(self._left):
            self._is_empty = False
        elif self._is_empty:
            self._next_place, self._ready_us = 0, now_us + EMPTY_US
        else:
            self.rounds += 1
            self._ended_us, self._next_place = now_us, 0
            self._ready_us = self._began_us + ROUND_US_MIN

    def _read(self, far: Tier, now_us: int) -> None:
        index, sizes = self._mover.index, self._mover.sizes
        ids, words = self._left[:SCRUB_BLOCKS], index.words(self._left[:SCRUB_BLOCKS])
        _, places, checksums, namespaces, _ = index.describe(ids)
        slots = np.array([sizes[ns].slot_nbytes for ns in namespaces.tolist()], dtype=np.int64)
        num = max(1, int(np.searchsorted(np.cumsum(slots), SCRUB_NBYTES, side="right")))
        self._left = self._left[num:]
        here = np.flatnonzero(((words[:num] & np.uint64(0xFF)) == core.VALID) & (places[:num] != core.NONE))
        if not len(here):
            return
        self._ids, self._words = ids[here], words[here]
        ends = np.cumsum(slots[here])
        self._ready_us = policy.next_ready_us(self._ready_us, now_us, int(ends[-1]), self._nbytes_per_s)
        if len(self._scratch) < ends[-1]:
            self._scratch = memoryview(mmap(-1, max(int(ends[-1]), SCRUB_NBYTES)))  # in whole pages, for direct I/O
        starts = (ends - slots[here]).tolist()
        nbytes = [sizes[ns].block_nbytes for ns in namespaces[here].tolist()]
        buffers = [self._scratch[start : start + size] for start, size in zip(starts, nbytes, strict=True)]
        self.reading = far.read(places[here], np.ascontiguousarray(checksums[here]), buffers, None)
        self.reading.add_done_callback(self._mover.notice)

    def _judge(self) -> None:
        assert self.reading is not None
        outcomes, self.reading = self.reading.result(), None
        same = self._mover.index.words(self._ids) == self._words
        rotten = same & (outcomes == Outcome.CORRUPT)
        self.scrubbed_blocks += int((same & (outcomes == Outcome.OK)).sum() + rotten.sum())
        self.rotten_blocks += int(rotten.sum())
        self._mover.rotten(self._ids[rotten])
