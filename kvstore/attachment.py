"""Attachment: the far tier leaves and comes back while the store is in use. The one place that changes it.

To leave: write back, stop asking, wait for what is under way, commit; then every block that is only far leaves the
index, near blocks forget their far copy (their files do not), and the tier closes. To come: what its files hold is read
without the lock and taken in by pieces under it, less what was removed meanwhile.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kvstore import durability
from kvstore._core import index as core
from kvstore._core import leave, walk
from kvstore.arrays import NO_IDS, Ids, Words
from kvstore.block import Attached, Detached
from kvstore.errors import InvalidRequest, TierRefused
from kvstore.recovered import Recovered
from kvstore.removals import Removals
from kvstore.returning import NOWHERE, Forest, Returning
from kvstore.tiers.base import DurableTier

if TYPE_CHECKING:
    from kvstore.store import BlockStore

log = logging.getLogger("kvstore")

DETACH_US = 30_000_000  # what a detach without a deadline may take until the tier leaves
PIECE_BLOCKS = 2048  # that leave or come in one step, and
LOOK_MAX = 1 << 16  # records that it looks at
PLACE_END = 2**32 - 1


class Attachment:
    """Whether the far tier of `store` is attached. Methods take the store's lock themselves, for a piece at a time."""

    def __init__(self, store: BlockStore) -> None:
        self._store = store
        self.reopen: Callable[[], DurableTier] | None = None  # the tier as it is configured
        self.removals = Removals()
        self.is_detached = False
        self._busy = threading.Lock()  # one attach or detach at a time
        self._left: DurableTier | None = None  # the tier that was detached last
        self._held: frozenset[int] = frozenset()  # namespaces of which it may have blocks
        self.block_nbytes_max = store.far.block_nbytes_max if isinstance(store.far, DurableTier) else None

    def holds(self, ns: int) -> bool:
        """Whether blocks of a namespace may come back with the tier. Caller holds the lock."""
        return ns in self._held

    @contextmanager
    def _alone(self, tier: str) -> Iterator[None]:
        store = self._store
        store.check_open()
        if tier != store.far_name or store.far_name == "none":
            allowed = f"allowed: {store.far_name!r}" if store.far_name != "none" else "this store has memory only"
            raise InvalidRequest(f"tier={tier!r} cannot be attached or detached; {allowed}")
        if self.reopen is None:
            raise TierRefused(f"the {tier} tier of this store does not outlive it, or cannot be opened again")
        if not self._busy.acquire(blocking=False):
            raise TierRefused(f"the {tier} tier is being attached or detached already")
        try:
            yield
        finally:
            self._busy.release()

    # ---- a tier leaves ----

    def detach(self, tier: str, deadline_us: int, *, force: bool) -> Detached:
        """As BlockStore.detach_tier."""
        store = self._store
        with self._alone(tier):
            far = store.far
            if far is None:
                return Detached(self._left is None or self._left.is_released)
            assert isinstance(far, DurableTier)
            refusal = self._quiet(far, deadline_us, force=force)
            if refusal and not force:
                with store.lock:
                    self._wake_up()
                    self.removals.stop()
                raise TierRefused(f"{refusal}; the {tier} tier stays attached")
            unwritten = self._leave(far)
            log.warning("the %s tier is detached%s", tier, f": {refusal}" if refusal else "")
            return Detached(far.is_released, unwritten)

    def _quiet(self, far: DurableTier, deadline_us: int, *, force: bool) -> str:
        """Bring to the tier what should be there, and wait until nothing is under way; why that is not so."""
        store, mover = self._store, self._store.mover
        refusal = "" if durability.flush(store, deadline_us) else self._why(far, "not everything could be written back")
        if refusal and not force:
            return refusal
        with store.lock:
            self.removals.start()
            mover.is_resting = True
            mover.made_progress()  # whoever waits for it looks again
        while True:
            with store.lock:
                mover.step()
                waiting = mover.winding_down()
            if waiting is None:
                break
            if not store.clock.wait(waiting, deadline_us - store.clock.now_us()):
                return self._why(far, "not everything under way came to its end")
        with store.lock:
            self._forget_removed(far)
        if not refusal and not durability.commit(store, deadline_us):
            return self._why(far, "not everything could be made durable")
        return refusal

    @staticmethod
    def _why(far: DurableTier, what: str) -> str:
        reason = far.usage().reason
        return f"{what}: {reason}" if reason else f"{what} before the deadline, or at all"

    def _wake_up(self) -> None:
        """The tier may be asked again. Caller holds the lock."""
        mover = self._store.mover
        mover.is_resting = False
        mover.collect()
        mover.notice()

    def _forget_removed(self, far: DurableTier) -> None:
        """Removed blocks that are still leased must not come back either. Caller holds the lock."""
        mover = self._store.mover
        mover.reap()
        for ns, places in leave.take_removed(mover.index):
            far.free(places, mover.sizes[ns].block_nbytes, forget=True)

    def _leave(self, far: DurableTier) -> int:
        """From here on there is no way back. Returns how many blocks waited for their write-back."""
        store, mover, index = self._store, self._store.mover, self._store.index
        with store.lock:
            mover.is_resting = True
            if mover.winding_down() is not None:
                for ns, ids in mover.strand():  # removed ones may get a row yet, and nobody to have it forgotten
                    gone = (index.words(ids) & np.uint64(0xFF)) != core.VALID
                    if gone.any():
                        self.removals.note(ns, index.keys(ids[gone]))
        self._evict_far()
        stuck = NO_IDS
        while True:
            with store.lock:
                self._remove(stuck)
                self._forget_removed(far)
                if not index.counts()["far"]:
                    unwritten = mover.num_waiting
                    self._held = frozenset(far.namespaces())
                    mover.set_far(None)
                    mover.is_resting, self.is_detached, self._left = False, True, far
                    break
            stuck = self._lose_far()
        far.close()
        with store.lock:
            self._settle_removals(far)
        return unwritten

    def _evict_far(self) -> None:
        """What is only far leaves the index, leaf first; the tier is told nothing."""
        store, index = self._store, self._store.index
        piece_nbytes = PIECE_BLOCKS * min((sizes.slot_nbytes for sizes in store.mover.sizes.values()), default=1)
        freed_nbytes = 1
        while freed_nbytes:
            with store.lock:
                freed_nbytes, _ = index.evict_far(piece_nbytes, store.clock.time_s())

    def _lose_far(self) -> Ids:
        """Near blocks forget their far copy. Returns the blocks that have no other, and are leased or extended by one
        that is near."""
        store, index = self._store, self._store.index
        stuck, at = [NO_IDS], 0
        while at != core.NONE:
            with store.lock:
                ids, at = walk.far_in_range(index, at, LOOK_MAX, 0, PLACE_END)
                is_near = index.describe(ids)[0] != core.NONE
                leave.lose(index, ids[is_near])
                stuck.append(ids[~is_near])
        return np.concatenate(stuck)

    def _remove(self, ids: Ids) -> None:
        """Those of them that are still only far leave, with what extends them: nobody could reach that. Caller holds
        the lock."""
        index = self._store.index
        near, far, *_ = index.describe(ids)
        is_valid = (index.words(ids) & np.uint64(0xFF)) == core.VALID
        ids = ids[is_valid & (near == core.NONE) & (far != core.NONE)]
        index.remove(ids, core.EVICTED, self._store.clock.time_s())
        leave.lose(index, ids)

    def _settle_removals(self, far: DurableTier) -> None:
        """Does the closed tier know for good what was removed? If not, whole namespaces must not come back. Caller
        holds the lock."""
        told = far.flush()
        if told.done() and told.exception() is None:
            self.removals.confirm(self.removals.unconfirmed)
        else:
            self.removals.distrust()

    # ---- a tier comes ----

    def attach(self, tier: str) -> Attached:
        """As BlockStore.attach_tier."""
        with self._alone(tier):
            if not self.is_detached:
                return Attached(self._store.index.counts()["far"])
            assert self.reopen is not None
            far = self.reopen()
            try:
                returning, num_found = self._read(far)
                self._take_over(far)
            except BaseException:
                far.close()
                with self._store.lock:
                    self.removals.restore()
                raise
            num_joined = self._join(far, returning)
            attached = Attached(num_joined, num_found - num_joined)
            log.warning("the %s tier is attached with %d blocks, %d dropped", tier, *attached)
            return attached

    def _read(self, far: DurableTier) -> tuple[Returning, int]:
        """What its files hold, less what was removed; the tier has forgotten everything else."""
        store = self._store
        with store.lock:
            store.check_open()
            store.claim(far)
            block_nbytes = store.sizes_by_number()
        parts = [Recovered.none()]
        num_found = 0
        for part in far.recover():
            found = Recovered(*part)
            num_found += len(found.places)
            parts.append(found.of(block_nbytes))
        returning = Returning(Recovered.joined(parts))
        with store.lock:
            removed = self.removals.take()
        returning.remove(*removed)
        rows = returning.begin()
        far.adopt(returning.found.places[rows], np.ascontiguousarray(returning.found.entries["nbytes"][rows]))
        return returning, num_found + far.num_dropped

    def _take_over(self, far: DurableTier) -> None:
        """From here on it is the store's, but nothing is asked of it yet."""
        store, mover = self._store, self._store.mover
        with store.lock:
            store.check_open()
            store.claim(far)  # also what was opened since
            mover.is_resting = True
            mover.set_far(far)
            store.tell(far)
            self.block_nbytes_max = far.block_nbytes_max

    def _join(self, far: DurableTier, returning: Returning) -> int:
        """Make its blocks count; returns how many."""
        store, mover = self._store, self._store.mover
        try:
            num_joined = self._take_in(far, returning)
            dirty = self._unwritten()
            with store.lock:
                store.check_open()
                for ids, words, ns in dirty:
                    mover.enqueue(ids, ns, words)
                self._held, self.is_detached, self._left = frozenset(), False, None
                self.removals.stop()
                self._wake_up()
        except BaseException:
            if store.is_open:  # else its end closes the tier
                self._leave(far)
                with store.lock:
                    self.removals.restore()
            raise
        return num_joined

    def _take_in(self, far: DurableTier, returning: Returning) -> int:
        """Blocks into the index by pieces, parents before children, then into their order of use. Returns how many."""
        store, index = self._store, self._store.index
        entries, places = returning.found.entries, returning.found.places
        joined: list[tuple[Ids, Words, Ids]] = []
        while True:
            with store.lock:
                store.check_open()
                returning.remove(*self.removals.take())
                rows, gone = returning.take(PIECE_BLOCKS)
                if not len(rows) and not len(gone):
                    break
                some = entries[rows]
                ids = leave.rejoin(
                    index, some["key"], some["parent"], some["namespace"], places[rows], some["checksum"]
                )
                store.mover.reap()  # reservations that came too late
                is_in = ids != core.NONE
                joined.append((ids[is_in], index.words(ids[is_in]), returning.found.last_used_s[rows[is_in]]))
                self._drop(far, returning, np.concatenate([gone, rows[~is_in]]))
        if not joined:
            return 0
        ids, words, last_used_s = (np.concatenate(column) for column in zip(*joined, strict=True))
        order = np.lexsort((-np.arange(len(ids)), last_used_s))  # of one second children before parents
        for first in range(0, len(order), PIECE_BLOCKS):
            piece = order[first : first + PIECE_BLOCKS]
            with store.lock:
                store.mover.recency.rejoin(ids[piece], words[piece], last_used_s[piece])
        return len(ids)

    @staticmethod
    def _drop(far: DurableTier, returning: Returning, rows: Ids) -> None:
        """Rows that have no place here; a later start must not find what nobody could remove meanwhile."""
        nbytes = returning.found.entries["nbytes"][rows]
        for size in np.unique(nbytes).tolist():
            far.free(returning.found.places[rows[nbytes == size]], size, forget=True)

    def _unwritten(self) -> list[tuple[Ids, Words, int]]:
        """Near blocks without a far copy, by namespace, parents before children: (ids, state words, namespace)."""
        store, index = self._store, self._store.index
        pieces: list[tuple[Ids, Words, NDArray[np.uint16], Ids]] = []
        at = 0
        while at != core.NONE:
            with store.lock:
                ids, at = leave.unwritten(index, at, LOOK_MAX)
                *_, namespaces, parents = index.describe(ids)
                pieces.append((ids, index.words(ids), namespaces, parents))
        ids, words, namespaces, parents = (np.concatenate(column) for column in zip(*pieces, strict=True))
        if not len(ids):
            return []
        row = np.minimum(np.searchsorted(ids, parents), len(ids) - 1)  # ids ascend
        order = Forest(np.where(ids[row] == parents, row, NOWHERE)).order()
        return [
            (ids[rows], words[rows], ns)
            for ns in np.unique(namespaces).tolist()
            for rows in [order[namespaces[order] == ns]]
        ]
