"""Recycling of far space: the blocks that still live in a segment are copied out of it, then it can be used again.

A carry goes in rounds of at most CARRY_NBYTES: read (verified), write to a new place, settle. While a block is carried
its old copy stays where it is and readable.
"""

from __future__ import annotations

from concurrent.futures import Future
from typing import TYPE_CHECKING

import numpy as np

from kvstore._core import index as core
from kvstore.arrays import NO_IDS, Ids, chosen
from kvstore.listing import Listing
from kvstore.tiers.base import ENTRY, Outcome, Outcomes, Places, Tier

if TYPE_CHECKING:
    from kvstore.mover import Mover

CARRY_NBYTES = 8 << 20


class Carry:
    """Empties one range of far places. `step` under the store's lock until it answers True."""

    def __init__(self, mover: Mover, far: Tier, window: tuple[int, int]) -> None:
        self._mover, self._far, self._window = mover, far, window
        self._listing: Listing | None = Listing(mover.index, *window)
        self._left: Ids = NO_IDS  # listed, and not looked at yet
        self._ids: Ids = NO_IDS
        self._old: Places = np.empty(0, dtype=np.uint32)
        self._new: Places = np.empty(0, dtype=np.uint32)
        self._entries = np.empty(0, dtype=ENTRY)
        self._buffers: list[memoryview] = []
        self._reading: Future[Outcomes] | None = None
        self._writing: Future[Outcomes] | None = None
        self._ns = 0
        self.num_moved = self._num_moved_before = 0  # before the latest listing began
        self.num_refused = 0  # blocks that could not be moved when it was tried

    def step(self) -> bool:
        """True when the range is empty, or as empty as it can be made now."""
        if self._reading is not None:
            if not self._reading.done():
                return False
            if not self._write():
                return True
        if self._writing is not None:
            if not self._writing.done():
                return False
            self._settle()
        return self._mover.is_resting or not self._read()

    def abandon(self) -> tuple[int, Ids]:
        """The device does not answer, and the tier is given up: the blocks are free to move and to leave. The memory of
        what is under way stays the tier's. Returns what it may still write: namespace and ids."""
        if self._reading is not None or self._writing is not None:
            self._release(self._ids)
        return self._ns, self._ids if self._writing is not None else NO_IDS

    def _read(self) -> bool:
        """Begin a round, or go on looking for blocks of one. False when there are none left."""
        index = self._mover.index
        while self._listing is None:
            ids = self._next_ids()
            if len(ids):
                self._start(ids)
                return True
            if self.num_moved == self._num_moved_before:
                return False
            # Blocks whose write ended after the range was listed: look again, until that moves nothing more.
            self._listing, self._num_moved_before = Listing(index, *self._window), self.num_moved
        if self._listing.step():
            self._left, self._listing = self._listing.ids, None
            return len(self._left) > 0 and self._read()
        self._mover.notice()
        return True

    def _next_ids(self) -> Ids:
        """The next listed blocks of one namespace that are still there, marked."""
        index, (first, last) = self._mover.index, self._window
        while len(self._left):
            _, places, _, namespaces, _ = index.describe(self._left)
            here = (places >= first) & (places < last)
            self._left, namespaces = self._left[here], namespaces[here]
            if not len(self._left):
                break
            self._ns = int(namespaces[0])
            alike = np.flatnonzero(namespaces == self._ns)
            taken = alike[: max(1, CARRY_NBYTES // self._mover.sizes[self._ns].slot_nbytes)]
            ids, self._left = self._left[taken], np.delete(self._left, taken)
            ids = ids[chosen(index.carry_mark(ids))]
            self.num_refused += taken.size - len(ids)
            if len(ids):
                return ids
        return NO_IDS

    def _start(self, ids: Ids) -> None:
        index, sizes = self._mover.index, self._mover.sizes[self._ns]
        _, self._old, checksums, _, _ = index.describe(ids)
        self._ids = ids
        scratch = memoryview(bytearray(len(ids) * sizes.block_nbytes))
        self._buffers = [
            scratch[start : start + sizes.block_nbytes] for start in range(0, len(scratch), sizes.block_nbytes)
        ]
        self._reading = self._far.read(self._old, checksums, self._buffers, None)
        self._reading.add_done_callback(self._mover.notice)

    def _write(self) -> bool:
        """The second half of a round. False when there is no place to carry to: then the blocks are given up."""
        assert self._reading is not None
        outcomes, self._reading = self._reading.result(), None
        good = outcomes == Outcome.OK
        mover, nbytes = self._mover, self._mover.sizes[self._ns].block_nbytes
        failed, rotten = self._ids[~good], self._ids[outcomes == Outcome.CORRUPT]
        self.num_refused += len(failed) - len(rotten)
        self._release(failed)
        mover.rotten(rotten)
        # A removed block has no parent any more: written now, a power cut could bring it back as the first of a prompt.
        gone = good & ((mover.index.words(self._ids) & np.uint64(0xFF)) != core.VALID)
        self._release(self._ids[gone])
        good &= ~gone
        self._ids, self._old = self._ids[good], self._old[good]
        self._buffers = [buffer for buffer, keep in zip(self._buffers, good, strict=True) if keep]
        new = self._far.allocate(nbytes, len(self._ids), moving=True)
        if len(new) < len(self._ids) and not self._far.usage().healthy:
            self._far.free(new, nbytes, forget=True)
            self._release(self._ids)
            self.num_refused += len(self._ids)
            return False
        lost = self._ids[len(new) :]
        if len(lost):
            self._release(lost)
            if self._far.usage().healthy:  # one that rests has places again later
                mover.index.remove(lost, core.EVICTED, mover.clock.time_s())
                mover.reap()
        if not len(new) or (len(failed) and not len(rotten)):
            self._far.free(new, nbytes, forget=True)
            self._release(self._ids[: len(new)])
            return False
        self._ids, self._old, self._new = self._ids[: len(new)], self._old[: len(new)], new
        self._entries = mover.entries(self._ids, self._ns)
        self._entries["time_s"] = mover.recency.seconds(self._ids)  # moving is not using
        mover.budget.wear(len(new) * mover.sizes[self._ns].slot_nbytes, mover.clock.now_us())
        mover.carrying_nbytes = len(new) * mover.sizes[self._ns].slot_nbytes
        self._writing = self._far.write(new, self._entries, self._buffers[: len(new)], None)
        self._writing.add_done_callback(mover.notice)
        return True

    def _settle(self) -> None:
        assert self._writing is not None
        outcomes, self._writing = self._writing.result(), None
        mover, nbytes = self._mover, self._mover.sizes[self._ns].block_nbytes
        written = (outcomes == Outcome.OK).astype(np.uint8)
        kept = chosen(mover.index.carry_unmark(self._ids, self._new, written))
        self._far.free(self._old[kept], nbytes, forget=True)
        self._far.free(self._new[~kept], nbytes, forget=True)
        mover.carrying_nbytes = 0
        self.num_refused += int((~kept).sum())
        mover.carried_blocks += int(kept.sum())
        self.num_moved += int(kept.sum())
        mover.reap()
        mover.made_progress()

    def _release(self, ids: Ids) -> None:
        places = np.zeros(len(ids), dtype=np.uint32)
        self._mover.index.carry_unmark(ids, places, np.zeros(len(ids), dtype=np.uint8))
