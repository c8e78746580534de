"""The only code that moves blocks between tiers.

Everything here runs under the store's lock and never waits: `step` settles what the tiers finished and starts what the
policy allows; whoever needs a result waits for a future outside the lock and steps again. A thread (`start`) steps
when a tier finishes something; the simulator steps by hand.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np

from kvstore import policy
from kvstore._core import index as core
from kvstore._core.index import Index
from kvstore.arrays import Ids, Mask, Words, chosen
from kvstore.backlog import Backlog, Dirty, Write
from kvstore.budget import WriteBudget
from kvstore.carry import Carry
from kvstore.clock import Clock
from kvstore.promotion import Promoter, Promotion, Read
from kvstore.recency import Recency
from kvstore.scrub import Scrub
from kvstore.space import Limits, Space
from kvstore.stepper import Stepper
from kvstore.tiers.base import ENTRY, Entries, Outcome, Places, Tier
from kvstore.tiers.host import HostTier

STARVED_US = 1_000_000  # without any far room coming for so long, nobody waits for it
VAIN_CARRIES_MAX = 4  # in a row without a place for anybody; what comes then is not waited for
BARREN_PAUSE_US = 1_000_000  # after a carry in vain, before the next


class Mover(Space, Stepper):
    """Moves blocks between `near` and `far` (None: a store of one tier). Caller holds `lock` for every method but
    start, stop and flush."""

    def __init__(
        self, index: Index, near: HostTier, far: Tier | None, lock: threading.RLock, clock: Clock, limits: Limits
    ) -> None:
        Space.__init__(self, index, near, far, clock, limits)
        Stepper.__init__(self, lock)
        self._backlog = Backlog(limits.writeback_queue_blocks)
        self._starving_us: int | None = None  # since when nothing made, or may have made, a far place for what is dirty
        self._vain_carries = 0  # that ended since there was a place
        self._writes: deque[Write] = deque()
        self._stranded: list[Write] = []  # to a tier that was given up: their blocks stay in place until it answers
        self.promoter = Promoter(self)
        self.budget = WriteBudget(limits.write_nbytes_per_s, limits.write_nbytes_per_day)
        self._carry: Carry | None = None
        self.recency = Recency(index, far, clock)
        self._scrub = Scrub(self, far, limits.scrub_nbytes_per_s)
        self._carry_ready_us = 0
        self._progress: Future[None] = Future()
        self._awaited = False  # somebody was given _progress
        self.chore: Callable[[], None] = lambda: None  # the store's own: expiry, abandoned reservations
        self.write_bandwidth, self.read_bandwidth = policy.Bandwidth(), policy.Bandwidth()
        self.promoted_blocks = self.written_blocks = self.corrupt_blocks = 0
        self.failed_writes = self.failed_reads = self.skipped_writes = self.carried_blocks = 0
        self._tell_readers()

    def room(self, ns: int, num_blocks: int, *, drop_unwritten: bool) -> Places:
        """As Space.room; what has been written back by now may be evicted."""
        self.settle_writes()
        return super().room(ns, num_blocks, drop_unwritten=drop_unwritten)

    # ---- write-back: near to far, ahead of need ----

    def collect(self) -> None:
        """Queue the blocks that became visible since the last call; they should get a far copy. Over the queue's limit
        they stay near only."""
        if self.far is None or self.is_resting:
            return
        for ids, words, ns in self.put.take_fresh():
            self._queue(ids, words, ns)

    def enqueue(self, ids: Ids, ns: int, words: Words | None = None) -> None:
        """Blocks without a far copy that should get one after all, as they are now, or if nothing happened to them
        since their state words were `words`; parents before children. Over the queue's limit the last ones stay near
        only."""
        most = self.limits.writeback_queue_blocks - self._backlog.num_blocks
        self.skipped_writes += max(0, len(ids) - most)
        words, ids = self.index.words(ids) if words is None else words, ids[:most]
        if self.far is not None and len(ids):
            self._queue(ids, words[:most], ns)

    def _queue(self, ids: Ids, words: Words, ns: int) -> None:
        if not self._backlog.append(ids, words, ns):
            self.skipped_writes += len(ids)
        elif len(self._writes) < self.limits.batches.batches_max:
            self._wake.set()

    def _unmark(self, ids: Ids) -> None:
        none = np.zeros(len(ids), dtype=np.uint8)
        places = np.zeros(len(ids), dtype=np.uint32)
        self.index.writeback_unmark(ids, places, places.astype(np.uint64), none)

    def _put_back(self, ids: Ids, ns: int, ticket: int) -> None:
        self._unmark(ids)
        self._backlog.put_back(Dirty(ids, self.index.words(ids), ns, ticket))

    def _start_writes(self, now_us: int) -> None:
        assert self.far is not None
        limits = self.limits
        starving_us, self._starving_us = self._starving_us, None
        while (ns := self._backlog.next_ns) is not None:
            if not policy.may_write(
                self.far_is_well, len(self._writes), now_us, self.budget.ready_us(now_us), limits.batches
            ):
                return
            slot_nbytes = self.sizes[ns].slot_nbytes
            most = policy.write_blocks(slot_nbytes, self._writing_nbytes, limits.near_nbytes, limits.batches)
            if not most:
                return
            dirty = self._backlog.take(most)
            ids = dirty.ids[chosen(self.index.writeback_mark(dirty.ids, dirty.words, ns))]
            if not len(ids):
                continue
            places = self.far_room(ns, len(ids))
            if len(places) < len(ids):
                self._put_back(ids[len(places) :], ns, dirty.ticket)
                self._start_carry(ns)
                if not len(places):
                    self._starving_us = now_us if starving_us is None else starving_us
                    return
                ids = ids[: len(places)]
            self._vain_carries = 0
            self._write(ids, ns, dirty.ticket, places, now_us)
            self._start_carry(ns)

    def entries(self, ids: Ids, ns: int) -> Entries:
        """What the far tier has to know of blocks (tiers.base.ENTRY)."""
        rows = np.zeros(len(ids), dtype=ENTRY)
        *_, parents = self.index.describe(ids)
        rows["key"], rows["parent"] = self.index.keys(ids), self.index.keys(parents)
        rows["num_tokens"], rows["namespace"] = self.sizes[ns].block_tokens, ns
        return rows

    def _write(self, ids: Ids, ns: int, ticket: int, places: Places, now_us: int) -> None:
        assert self.far is not None
        near_places, *_ = self.index.describe(ids)
        entries = self.entries(ids, ns)
        window = self.near.arena.window(near_places, self.sizes[ns].block_nbytes, readonly=True)
        future = self.far.write(places, entries, window.views, None)
        self._writes.append(Write(ids, ns, ticket, near_places, places, entries, window, future, now_us))
        self.budget.spend(len(ids) * self.sizes[ns].slot_nbytes, now_us)
        future.add_done_callback(self.notice)

    def settle_writes(self) -> None:
        """What has been written back by now may be evicted. In the order in which it was started: a parent's far copy
        counts before its child's."""
        for write in [write for write in self._stranded if write.future.done()]:
            self._stranded.remove(write)
            write.window.close()
            self._unmark(write.ids)
        while self._writes and self._writes[0].future.done():
            write = self._writes.popleft()
            outcomes = write.future.result()
            write.window.close()
            ok: Mask = (outcomes == Outcome.OK).astype(np.uint8)
            checksums = np.ascontiguousarray(write.entries["checksum"])
            kept = chosen(self.index.writeback_unmark(write.ids, write.far_places, checksums, ok))
            assert self.far is not None
            if not kept.all():
                nbytes = self.sizes[write.ns].block_nbytes
                self.far.free(write.far_places[~kept], nbytes, forget=True)
                again = write.ids[~kept]  # removed ones, too: they are not marked again
                self._backlog.fail(Dirty(again, self.index.words(again), write.ns, write.ticket))
                self.failed_writes += int(len(ok) - ok.sum())
            self.written_blocks += int(kept.sum())
            nbytes = int(ok.sum()) * self.sizes[write.ns].block_nbytes
            if nbytes:
                self.write_bandwidth.record(nbytes, write.began_us, self.clock.now_us())
            self.made_progress()
        if not self._writes:
            self._backlog.retry()

    # ---- promotion: far to near, on demand ----

    def promote(self, ids: Ids, ns: int, deadline_us: int | None, *, drop_unwritten: bool) -> Promotion | None:
        """Start reading far blocks into near places: as many leading ones as there is room and queue for, in pieces, so
        that the first can be used while the last are still under way."""
        return self.promoter.promote(ids, ns, deadline_us, drop_unwritten=drop_unwritten)

    def settle(self, read: Read) -> None:
        """Make what a read that is done has brought count, unless somebody did so before."""
        self.promoter.settle(read)

    def rotten(self, ids: Ids) -> None:
        """Blocks whose far copy is damaged: they, and what extends them, are gone and never come back."""
        if len(ids):
            self.corrupt_blocks += len(ids)
            self.index.remove(ids, core.CORRUPT, self.clock.time_s())
            self.reap()

    # ---- recycling of far space ----

    def _start_carry(self, ns: int) -> None:
        assert self.far is not None
        if self._carry is None and self.clock.now_us() >= self._carry_ready_us:
            window = self.far.vacate(self.sizes[ns].block_nbytes)
            if window is not None:
                self._carry = Carry(self, self.far, window)

    def _end_carry(self, carry: Carry, now_us: int) -> None:
        """What it emptied can be written once the tier has cleaned it; but carries can also go round for ever in a tier
        full of blocks that live."""
        self._carry = None
        self._vain_carries += 1
        is_barren = carry.num_refused and not carry.num_moved  # they are held by a lease, or the device refuses
        if is_barren or self._vain_carries > VAIN_CARRIES_MAX:
            self._carry_ready_us = now_us + BARREN_PAUSE_US
        else:
            self._starving_us = None
        self.made_progress()

    # ---- the loop ----

    def step(self) -> None:
        """Settle what is done, start what is allowed. Never waits."""
        now_us = self.clock.now_us()
        self.promoter.step()
        self.settle_writes()
        self.chore()
        self.tend()
        self.reap()
        self._tell_readers()
        if self.far is None:
            return
        self.recency.step()
        self.collect()
        if self._carry is not None and self._carry.step():
            self._end_carry(self._carry, now_us)
        if not self.is_resting:
            if self.sizes and self.far.usage().doubtful:
                self._start_carry(next(iter(self.sizes)))
            self._start_writes(now_us)
        self._scrub.step(now_us, self.promoter.num_reads)
        if self._awaited and self.progress() is None:
            self.made_progress()  # what they wait for will not come

    def _tell_readers(self) -> None:  # attached processes estimate by it
        self.index.tell_readers(self.far_is_well, self.put.arriving_nbytes, int(self.read_bandwidth.nbytes_per_s))

    def made_progress(self) -> None:
        """Let those look again who wait for something to move."""
        progress, self._progress, self._awaited = self._progress, Future(), False
        progress.set_result(None)

    @property
    def is_awaited(self) -> bool:
        """Does somebody wait for progress?"""
        return self._awaited

    def progress(self) -> Future[None] | None:
        """Done when the next batch settles, or when it turns out that none will; None when nothing is under way or
        queued that could."""
        busy = self._writes or self.promoter.num_reads or self._carry is not None
        now_us = self.clock.now_us()
        starved = self._far_full or self._starved(now_us) or self.budget.is_used_up(now_us)
        if not (busy or (self._backlog and not starved and self.far_is_well)):
            return None  # whoever waits already is told by the next step
        self._awaited = True
        self.promoter.hurry()
        return self._progress

    def _starved(self, now_us: int) -> bool:
        return self._starving_us is not None and now_us - self._starving_us >= STARVED_US

    @property
    def is_short(self) -> bool:
        """As Stepper: far room is, and comes when the tier has cleaned a range."""
        return self._starving_us is not None and not self._starved(self.clock.now_us())

    def flush(self, deadline_us: int | None) -> bool:
        """Write back everything that is queued by now, note times of use, and let the far tier forget what was removed,
        also what is being read or carried; False when that did not end before the deadline, or cannot."""
        holding: set[Read | Carry] | None = None
        latest: int | None = None  # ticket; what comes later is not waited for, or a flush beside puts would not end
        while True:
            with self.lock:
                self.step()
                under_way = self.promoter.reads | ({self._carry} if self._carry is not None else set())
                if holding is None:  # what begins later cannot hold what is removed by now
                    holding = under_way if self.index.num_removed else set()
                holding = holding & under_way
                latest = self._backlog.newest if latest is None else latest
                oldest = self._oldest
                if (oldest is None or oldest > latest) and not holding:
                    self.reap()
                    break
                progress = self.progress()
                left = None if deadline_us is None else deadline_us - self.clock.now_us()
            if progress is None or (left is not None and left <= 0):
                return False
            self.clock.wait(progress, left)
        self.recency.catch_up(self.lock)
        return True

    @property
    def far_is_well(self) -> bool:
        """Whether the far tier may be asked for anything now. Needs no lock."""
        far = self.far  # it may leave at any moment
        return far is not None and not self.is_resting and far.usage().healthy

    @property
    def _writing_nbytes(self) -> int:
        return sum(len(write.ids) * self.sizes[write.ns].slot_nbytes for write in self._writes)

    @property
    def _oldest(self) -> int | None:
        """The smallest ticket of what waits or is being written."""
        tickets = [write.ticket for write in self._writes]
        if (waiting := self._backlog.oldest) is not None:
            tickets.append(waiting)
        return min(tickets, default=None)

    @property
    def num_waiting(self) -> int:
        """Blocks that wait for their write-back."""
        return self._backlog.num_blocks

    @property
    def num_unwritten(self) -> int:
        """Blocks that wait for their write-back or are being written."""
        return self._backlog.num_blocks + sum(len(write.ids) for write in self._writes)

    # ---- a far tier that leaves ----

    def set_far(self, far: Tier | None) -> None:
        """As Space.set_far; nothing is under way to the one before, or `strand` was called."""
        super().set_far(far)
        self._backlog.clear()
        self._starving_us, self._vain_carries, self._carry_ready_us = None, 0, 0
        self.recency.set_far(far)
        self._scrub.set_far(far)
        self.made_progress()

    def winding_down(self) -> Future[Any] | None:
        """While the far tier rests: the future to wait for until nothing is under way to it; None when nothing is."""
        return self._scrub.reading or self.progress()

    def strand(self) -> list[tuple[int, Ids]]:
        """The far tier is given up with what is under way to it. Memory that the device may still use stays as it is
        until it answers; nobody waits for it. Returns what it may still write: (namespace, ids)."""
        writing = [(write.ns, write.ids) for write in self._writes]
        self._stranded.extend(self._writes)
        self._writes.clear()
        if self._carry is not None:
            writing.append(self._carry.abandon())
            self._carry = None
        self.promoter.strand()
        self.made_progress()
        return writing

    def give_up(self) -> None:
        """The far tier was closed and answers nothing any more: let those look again who wait for it."""
        self.promoter.give_up()
        self.made_progress()

    @property
    def num_views(self) -> int:
        """Views of near blocks that transfers under way hold."""
        return sum(len(write.ids) for write in (*self._writes, *self._stranded)) + self.promoter.num_blocks

    def stats(self) -> dict[str, Any]:
        """Counters of all movement."""
        now_us = self.clock.now_us()
        return {
            "queued_blocks": self._backlog.num_blocks,
            "writes_under_way": len(self._writes),
            "reads_under_way": self.promoter.num_reads,
            "written_blocks": self.written_blocks,
            "promoted_blocks": self.promoted_blocks,
            "carried_blocks": self.carried_blocks,
            "skipped_writes": self.skipped_writes + self.put.num_unqueued,
            "failed_writes": self.failed_writes,
            "failed_reads": self.failed_reads,
            "corrupt_blocks": self.corrupt_blocks,
            **self._scrub.stats(self.clock.now_us()),
            "defects": self.defects,
            "endurance_left_nbytes": self.budget.left_nbytes(now_us),
            "endurance_used_up": self.budget.is_used_up(now_us),
            "write_nbytes": self.write_bandwidth.total_nbytes,
            "write_us": self.write_bandwidth.total_us,
            "write_nbytes_per_s": self.write_bandwidth.nbytes_per_s,
            "read_nbytes": self.read_bandwidth.total_nbytes,
            "read_us": self.read_bandwidth.total_us,
            "read_nbytes_per_s": self.read_bandwidth.nbytes_per_s,
        }
