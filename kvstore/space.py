"""Space in the tiers: places for new blocks, by eviction where none are free, and places given back.

Nothing is copied here: what leaves a tier has another copy already, or leaves the cache. Everything runs under the
store's lock and never waits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from kvstore import policy
from kvstore._core import eviction
from kvstore._core.index import Index
from kvstore._core.put import PutPath
from kvstore.clock import Clock
from kvstore.tiers.base import PLACE_NBYTES, Places, Tier, Usage
from kvstore.tiers.host import HostTier
from kvstore.whatif import DISK, MEMORY, WhatIf, nothing

NEAR, FAR = 0, 1
DETACHED = Usage(0, 0, 0, healthy=False, reason="detached")  # a far tier that is not there


@dataclass(frozen=True, slots=True)
class Limits:
    """What the mover may hold under way, and the store may keep for callers; from the configuration."""

    near_nbytes: int
    writeback_queue_blocks: int = 1 << 16
    promote_queue_blocks: int = 1 << 14
    write_nbytes_per_s: int = 0
    scrub_nbytes_per_s: int = 0  # 0: no scrubbing
    write_nbytes_per_day: int = 0
    far_chance_min: float = 0.0  # of being asked for again soon, for a far copy;
    far_gain_min: float = 0.0  # and to be worth so many times what has to go for it
    pin_leases_max: int = 1 << 16
    pins_nbytes_max: int = 0  # 0: a tenth of near_nbytes
    ttl_blocks_max: int = 1 << 20
    prefill_tokens_per_s: int = 0  # 0: not known
    whatif_ghosts_max: int | None = None  # blocks that the policy remembers; None: nothing is played at other sizes
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
        self.put = PutPath(index, near.arena, limits.near_nbytes, limits.writeback_queue_blocks, far is not None)
        self.put.set_worth(limits.far_chance_min, limits.far_gain_min)
        self.sizes: dict[int, Sizes] = {}
        self._far_full = False  # and nothing there can go: every block is near too, or leased
        self.carrying_nbytes = 0  # of far places that a carry fills while the old copy still counts
        self.policy_ms: Callable[[], int] = lambda: clock.now_us() // 1000  # the eviction policy's time
        ghosts_max = limits.whatif_ghosts_max
        self.whatif = WhatIf(index, ghosts_max) if ghosts_max is not None else None
        self._play_us = 0  # nothing is played before
        self.is_resting = False  # nothing new is asked of the far tier: it is leaving, or has just come

    def tend(self) -> None:
        """Bring touches into the order, and let the policy do a piece of what can wait."""
        self.index.drain()
        now_ms = self.policy_ms()
        eviction.tend(self.index, now_ms)
        usage = self._far_usage()
        used_nbytes = usage.used_nbytes - self.carrying_nbytes
        slot_nbytes = max((sizes.slot_nbytes for sizes in self.sizes.values()), default=0)
        self.put.set_far_full(policy.is_full(used_nbytes, usage.capacity_nbytes, slot_nbytes))
        if self.whatif is not None:
            self.whatif.fit(self.limits.near_nbytes, usage.capacity_nbytes, now_ms)

    def _far_usage(self) -> Usage:
        return DETACHED if self.far is None else self.far.usage()

    def rest(self) -> None:
        """What needs no lock: play a piece of what was asked for at other sizes, now and then, however often somebody
        wakes the mover."""
        now_us = self.clock.now_us()
        if self.whatif is not None and now_us >= self._play_us:
            self.whatif.play()
            self._play_us = now_us + policy.PLAY_PAUSE_US

    def policy_stats(self) -> dict[str, Any]:
        """The eviction policy: what it remembers, and what it kept out."""
        kept_out = {"bypassed_blocks": self.put.num_bypassed, "unworthy_blocks": self.put.num_unworthy}
        return {"name": eviction.name(self.index), **kept_out, **eviction.figures(self.index)}

    def whatif_stats(self, far_name: str) -> dict[str, Any]:
        """The tiers at other sizes."""
        names = {MEMORY: self.near.name, DISK: far_name}
        return nothing() if self.whatif is None else self.whatif.stats(names, self.policy_ms())

    def set_far(self, far: Tier | None) -> None:
        """From now on this is the far tier. The one before holds nothing of `index` any more."""
        self.far = far
        self._far_full, self.carrying_nbytes = False, 0
        self.put.set_far(far is not None)

    def define(self, ns: int, sizes: Sizes, shards: int) -> None:
        """Blocks of a namespace have these sizes and are written in so many parts."""
        self.sizes[ns] = sizes
        spare = policy.spare_nbytes(self.limits.near_nbytes, sizes.slot_nbytes)
        self.index.set_namespace(ns, sizes.slot_nbytes, shards, spare)
        if self.whatif is not None:
            self.whatif.define(ns, sizes.slot_nbytes, sizes.block_tokens)
            self.whatif.fit(self.limits.near_nbytes, self._far_usage().capacity_nbytes, self.policy_ms())

    def room(self, ns: int, num_blocks: int, *, drop_unwritten: bool) -> Places:
        """Near places for up to `num_blocks` far blocks of a namespace, evicting as needed; they count as arriving
        until `put.arrived`.

        Fewer when what is left is leased, or still waits for its write-back and `drop_unwritten` is False.
        """
        return self.put.room(ns, num_blocks, drop_unwritten, self.clock.time_s())

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
            self.put.reap()
        self.return_far()

    def return_far(self) -> None:
        """Give back the far places of removed blocks that the core let go of by itself, with a reservation."""
        if self.put.has_freed_far:
            self.give_back([(FAR, ns, places) for ns, places in self.put.take_far()])

    def drop_entries(self, num_blocks: int, ns: int) -> None:
        """Make index entries free: the coldest blocks leave the cache altogether."""
        nbytes = num_blocks * self.sizes[ns].slot_nbytes
        self._evict_far(nbytes)
        if self.index.num_free < num_blocks:
            self.put.evict(nbytes, False, self.clock.time_s())
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
