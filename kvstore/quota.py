"""Quotas: how many bytes the blocks of a namespace may take, and room within one by eviction of its own coldest."""

from __future__ import annotations

from kvstore import policy
from kvstore.space import Space
from kvstore.tiers.base import DurableTier


class Quotas:
    """What each namespace may hold, in slots and counted once for all tiers, reservations included. A far tier that
    outlives the process keeps them. Caller holds the store's lock."""

    def __init__(self, space: Space) -> None:
        self._space = space
        self._durable = space.far if isinstance(space.far, DurableTier) else None
        self._nbytes: dict[int, int] = dict(self._durable.quotas()) if self._durable is not None else {}

    def set(self, ns: int, nbytes: int) -> None:
        """From the next reservation on; 0 is no limit."""
        if self._durable is not None and nbytes != self.quota_nbytes(ns):
            self._durable.remember_quota(ns, nbytes)
        self._nbytes[ns] = nbytes
        self.apply(ns)

    def apply(self, ns: int) -> None:
        """Tell the index how many blocks the quota of a namespace allows; once its sizes are known."""
        nbytes = self.quota_nbytes(ns)
        self._space.index.set_quota(ns, nbytes // self._space.sizes[ns].slot_nbytes if nbytes else None)

    def quota_nbytes(self, ns: int) -> int:
        """0: no limit."""
        return self._nbytes.get(ns, 0)

    def used_nbytes(self, ns: int) -> int:
        """Bytes of all its blocks."""
        return int(self._space.index.num_blocks(ns)) * self._space.sizes[ns].slot_nbytes

    def room(self, ns: int, num_blocks: int) -> tuple[int, bool]:
        """How many of `num_blocks` new blocks are within the quota, after eviction of the namespace's own coldest where
        that is needed, and whether fewer could go than were to. One call looks at a bounded number of blocks
        (csrc/c/evict.h)."""
        quota_nbytes = self.quota_nbytes(ns)
        if not quota_nbytes:
            return num_blocks, False
        index, slot = self._space.index, self._space.sizes[ns].slot_nbytes
        used, most = index.num_blocks(ns), quota_nbytes // slot
        if used + num_blocks > most:
            ahead = policy.spare_nbytes(quota_nbytes, slot) // slot
            wanted = min(used, used + num_blocks - most + ahead)
            _, groups = index.evict_namespace(ns, wanted, self._space.clock.time_s())
            self._space.give_back(groups)
        allowed = int(max(0, min(num_blocks, most - index.num_blocks(ns))))
        return allowed, allowed < min(num_blocks, most)

    def text(self, ns: int) -> str:
        """Quota and use, for reasons."""
        return f"quota_nbytes={self.quota_nbytes(ns)}, of which {self.used_nbytes(ns)} are used"
