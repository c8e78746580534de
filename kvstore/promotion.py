"""Promotion: far blocks are read into near places, in pieces, each of which counts as soon as it is there."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from kvstore import policy
from kvstore.arrays import Ids, Mask, chosen
from kvstore.tiers.base import Outcome, Outcomes, Places

if TYPE_CHECKING:
    from kvstore.carry import Carry
    from kvstore.mover import Mover


@dataclass(slots=True, eq=False)
class Promotion:
    """What one call started: reads of successive blocks, each with an answer of its own."""

    reads: list[Read]
    num_left: int
    settled: Future[None] = field(default_factory=Future)  # all of them


@dataclass(slots=True, eq=False)
class Read:
    """A piece of a promotion under way."""

    promotion: Promotion
    ids: Ids
    ns: int
    places: Places
    window: Any
    future: Future[Outcomes]
    began_us: int
    awaited: bool = False  # somebody waits for it and will settle it: no need to wake the mover's thread


class Promoter:
    """All reads under way for `mover`. Caller holds the store's lock."""

    def __init__(self, mover: Mover) -> None:
        self._mover = mover
        self._reads: set[Read] = set()
        self._stranded: set[Read] = set()  # of a tier that was given up
        self._ends: deque[Read] = deque()  # of them those that are done; any thread appends
        self.num_blocks = 0  # of _reads

    @property
    def reads(self) -> set[Read | Carry]:
        """Pieces under way."""
        return set(self._reads)

    @property
    def num_reads(self) -> int:
        """How many pieces are under way."""
        return len(self._reads)

    def num_coming(self, ids: Ids) -> int:
        """How many of these blocks are being read already."""
        if not self._reads or not len(ids):
            return 0
        return int(np.isin(ids, np.concatenate([read.ids for read in self._reads])).sum())

    def promote(self, ids: Ids, ns: int, deadline_us: int | None, *, drop_unwritten: bool) -> Promotion | None:
        """As Mover.promote."""
        mover = self._mover
        if not mover.far_is_well:
            return None
        ids = ids[: max(0, mover.limits.promote_queue_blocks - self.num_blocks)]
        ids = ids[chosen(mover.index.promote_mark(ids))]
        if not len(ids):
            return None
        places = mover.room(ns, len(ids), drop_unwritten=drop_unwritten)
        if len(places) < len(ids):
            self._unmark(ids[len(places) :])
            ids = ids[: len(places)]
        if not len(ids):
            return None
        self.num_blocks += len(ids)
        step = policy.read_blocks(mover.sizes[ns].slot_nbytes)
        firsts = range(0, len(ids), step)
        promotion = Promotion([], len(firsts))
        for first in firsts:
            piece = slice(first, first + step)
            promotion.reads.append(self._read(promotion, ids[piece], ns, places[piece], deadline_us))
        for read in promotion.reads:  # a tier may be done at once; nothing is settled before the next step
            read.future.add_done_callback(partial(self._ended, read))
        return promotion

    def _read(self, promotion: Promotion, ids: Ids, ns: int, places: Places, deadline_us: int | None) -> Read:
        mover = self._mover
        assert mover.far is not None
        _, far_places, checksums, _, _ = mover.index.describe(ids)
        window = mover.near.arena.window(places, mover.sizes[ns].block_nbytes, readonly=False)
        future = mover.far.read(far_places, checksums, window.views, deadline_us)
        read = Read(promotion, ids, ns, places, window, future, mover.clock.now_us())
        self._reads.add(read)
        return read

    def _unmark(self, ids: Ids) -> None:
        nothing = np.zeros(len(ids), dtype=np.uint8)
        self._mover.index.promote_unmark(ids, np.zeros(len(ids), dtype=np.uint32), nothing)

    def _ended(self, read: Read, _future: Future[Outcomes]) -> None:
        """On whatever thread finished it, perhaps without the lock."""
        self._ends.append(read)
        if not read.awaited or self._mover.is_awaited:
            self._mover.notice()

    def hurry(self) -> None:
        """Somebody else waits for progress now, and whoever waits for a read that is done may take his time."""
        if self._ends:
            self._mover.notice()

    def step(self) -> None:
        """Settle what is done."""
        while self._ends:
            self.settle(self._ends.popleft())

    def give_up(self) -> None:
        """The tier answers nothing any more: let those know who wait for a whole promotion."""
        for read in self._reads | self._stranded:
            if not read.promotion.settled.done():
                read.promotion.settled.set_result(None)

    def strand(self) -> None:
        """As give_up; the places of what is under way stay taken until it answers after all."""
        self._stranded |= self._reads
        self._reads.clear()
        self.give_up()

    def settle(self, read: Read) -> None:
        """As Mover.settle."""
        reads = self._reads if read in self._reads else self._stranded
        if read not in reads:
            return
        reads.remove(read)
        mover, sizes, outcomes = self._mover, self._mover.sizes[read.ns], read.future.result()
        read.window.close()
        self.num_blocks -= len(read.ids)
        ok: Mask = (outcomes == Outcome.OK).astype(np.uint8)
        num_ok = int(ok.sum())
        kept = chosen(mover.index.promote_unmark(read.ids, read.places, ok))
        mover.put.arrived(len(read.ids) * sizes.slot_nbytes)
        num_kept = int(kept.sum())
        if num_kept < len(kept):
            mover.near.free(read.places[~kept], sizes.block_nbytes)
            mover.rotten(read.ids[outcomes == Outcome.CORRUPT])
        mover.failed_reads += len(ok) - num_ok
        mover.promoted_blocks += num_kept
        if num_ok:
            mover.read_bandwidth.record(num_ok * sizes.block_nbytes, read.began_us, mover.clock.now_us())
        read.promotion.num_left -= 1
        if not read.promotion.num_left and not read.promotion.settled.done():
            read.promotion.settled.set_result(None)
        if mover.is_awaited:
            mover.made_progress()
