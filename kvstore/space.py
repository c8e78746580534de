"""Space in the tiers: places for new blocks, by eviction where none are free, and places given back.

Nothing is copied here: what leaves a tier has another copy already, or leaves the cache. Everything runs under the
store's lock and never waits.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from kvstore import policy
from kvstore._core import walk
from kvstore._core.index import Index
from kvstore.clock import Clock
from kvstore.tiers.base import PLACE_NBYTES, Places, Tier
from kvstore.tiers.host import HostTier

NEAR, FAR = 0, 1


@dataclass(frozen=True, slots=True)
class Limits:
    """What the mover may hold under way; from the `mover` section of the configuration."""

    near_nbytes: int
    writeback_queue_blocks: int = 1 << 16
    promote_queue_blocks: int = 1 << 14
    write_nbytes_per_s: int = 0
    scrub_nbytes_per_s: int = 0  # 0: no scrubbing
    write_nbytes_per_day: int = 0
    batches: policy.WriteBack = field(default_factory=policy.WriteBack)


@dataclass(slots=True)
class Sizes:
    """What the mover has to know of a namespace."""

    block_nbytes: int
    slot_nbytes: int
    block_tokens: int


def slot_nbytes(block_nbytes: int) -> int:
    """Bytes a block takes in a tier: its own, rounded up to whole places."""
    return -(-block_nbytes // PLACE_NBYTES) * PLACE_NBYTES


class Space:
    """Room in `near` and `far` (None: a store of one tier) for the blocks of `index`. Caller holds the store's lock."""

    def __init__(self, index: Index, near: HostTier, far: Tier | None, clock: Clock, limits: Limits) -> None:
        self.index, self.near, self.far, self.clock, self.limits = index, near, far, clock, limits
        self.sizes: dict[int, Sizes] = {}
        self._far_full = False  # and nothing there can go: every block is near too, or leased
        self.reading_nbytes = 0  # of near slots that are being filled from the far tier
        self.carrying_nbytes = 0  # of far places that a carry fills while the old copy still counts

    @property
    def near_used_nbytes(self) -> int:
        """Bytes of near slots that are stored, reserved, or being filled from the far tier."""
        return int(self.index.near_nbytes) + self.reading_nbytes

    def room(self, ns: int, num_blocks: int, *, drop_unwritten: bool) -> Places:
        """Near places for up to `num_blocks` blocks of a namespace, evicting as needed.

        Fewer when what is left is leased, or still waits for its write-back and `drop_unwritten` is False.
        """
        slot = self.sizes[ns].slot_nbytes
        capacity = self.limits.near_nbytes
        spare = policy.spare_nbytes(capacity, slot)
        excess = policy.evict_nbytes(self.near_used_nbytes, num_blocks * slot, capacity, spare)
        if excess > 0:
            self._evict_near(excess, keep_unwritten=self.far is not None and not drop_unwritten)
        fit = max(0, (capacity + spare - self.near_used_nbytes) // slot)
        num_blocks = min(num_blocks, fit)
        places = self.near.allocate(self.sizes[ns].block_nbytes, num_blocks)
        for _ in range(8):  # each turn empties one slab of another size class, or evicts for what is missing
            missing = num_blocks - len(places)
            if missing == 0:
                break
            if not self._empty_slab(ns, drop_unwritten):
                # Slots of odd sizes leave a rest in every slab: the arena can be full below its capacity.
                keep = self.far is not None and not drop_unwritten
                if not self._evict_near(max(missing * slot, spare), keep_unwritten=keep):
                    break
            more = self.near.allocate(self.sizes[ns].block_nbytes, missing)
            places = np.concatenate([places, more])
        return places

    def _evict_near(self, nbytes: int, *, keep_unwritten: bool) -> bool:
        """Whether anything came free."""
        left = nbytes
        while left > 0:
            freed, groups = self.index.evict_near(left, keep_unwritten, self.clock.time_s())
            self.give_back(groups)
            if freed == 0:
                break
            left -= freed
        return left < nbytes

    def _empty_slab(self, ns: int, drop_unwritten: bool) -> bool:
        window = self.near.vacate(self.sizes[ns].block_nbytes)
        if window is None:
            return False
        ids = walk.in_range(self.index, NEAR, *window)
        keep = self.far is not None and not drop_unwritten
        freed, groups = self.index.evict_these(ids, keep, self.clock.time_s())
        self.give_back(groups)
        return bool(freed)

    def give_back(self, groups: list[tuple[int, int, Places]]) -> None:
        """Return places that the index handed out to their tiers. A far copy is forgotten whatever the reason: a block
        that only a restart would find could not be removed any more."""
        self._far_full = self._far_full and not groups
        for tier, ns, places in groups:
            if tier == NEAR:
                self.near.free(places, self.sizes[ns].block_nbytes)
            elif self.far is not None:
                self.far.free(places, self.sizes[ns].block_nbytes, forget=True)

    def reap(self) -> None:
        """Give back what removed blocks occupied, as far as nobody leases them."""
        if self.index.num_removed:
            self.give_back(self.index.reap())

    def drop_entries(self, num_blocks: int, ns: int) -> None:
        """Make index entries free: the coldest blocks leave the cache altogether."""
        nbytes = num_blocks * self.sizes[ns].slot_nbytes
        self._evict_far(nbytes)
        if self.index.num_free < num_blocks:
            self._evict_near(nbytes, keep_unwritten=False)
            self._evict_far(nbytes)  # those that had a far copy

    def _evict_far(self, nbytes: int) -> None:
        if self.far is not None:
            _, groups = self.index.evict_far(nbytes, self.clock.time_s())
            self.give_back(groups)

    def far_room(self, ns: int, num_blocks: int) -> Places:
        """Far places for up to `num_blocks` blocks, evicting blocks that are only far."""
        assert self.far is not None
        sizes = self.sizes[ns]
        usage = self.far.usage()
        excess = usage.used_nbytes - self.carrying_nbytes + num_blocks * sizes.slot_nbytes - usage.capacity_nbytes
        if excess > 0:
            ahead = min(policy.BATCH_BLOCKS * sizes.slot_nbytes, usage.capacity_nbytes // policy.SPARE_SHARE)
            self._evict_far(max(excess, ahead))
            usage = self.far.usage()
            used_nbytes = usage.used_nbytes - self.carrying_nbytes
            fit = max(0, (usage.capacity_nbytes - used_nbytes) // sizes.slot_nbytes)
            self._far_full = fit == 0
            num_blocks = min(num_blocks, fit)
        return self.far.allocate(sizes.block_nbytes, num_blocks)
