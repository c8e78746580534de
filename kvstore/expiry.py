"""Expiry: chains that go when their time is over, as far as nobody has used them again."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from kvstore._core import hint as core
from kvstore._core.index import Index
from kvstore.arrays import Keys
from kvstore.clock import Clock

STEP_BLOCKS = 4096  # of chains that end, in one step
DEAD_MAX = 1024  # entries that were replaced and are still in the heap, before it is made anew


@dataclass(slots=True, eq=False)
class Chain:
    """From the first block of the prompt to the one that was marked."""

    ns: int
    keys: Keys
    access: int  # number of the latest one when it was marked; whatever is used later lives on
    is_dead: bool = False  # replaced by a later mark


class Expiry:
    """When which chain of `index` ends. Caller holds the store's lock.

    What a mark says is kept by keys: a block may be evicted meanwhile, and its id be another one's. A mark of a chain
    replaces those of the chains that it extends, so that a conversation has one. Not kept over a restart.
    """

    def __init__(self, index: Index, clock: Clock, blocks_max: int) -> None:
        self._index, self._clock, self._blocks_max = index, clock, blocks_max
        self._heap: list[tuple[int, int, Chain]] = []  # by the end, then by the number
        self._by_last: dict[bytes, Chain] = {}
        self._number = 0
        self.num_blocks = 0  # of all chains, each as long as it is
        self.num_ignored = self.num_expired = 0

    @property
    def num_chains(self) -> int:
        """Chains that are marked."""
        return len(self._by_last)

    def mark(self, ns: int, deepest: int, ttl_us: int) -> None:
        """The chain that ends at this id ends in `ttl_us`. Over the limit it is ignored, and counted."""
        keys = self._index.keys(core.chain(self._index, deepest))
        if not len(keys):
            return
        self._replace(keys)
        if self.num_blocks + len(keys) > self._blocks_max:
            self.num_ignored += 1
            return
        chain = Chain(ns, keys, core.mark(self._index))
        self.num_blocks += len(keys)
        self._by_last[keys[-1].tobytes()] = chain
        self._number += 1
        heappush(self._heap, (self._clock.now_us() + ttl_us, self._number, chain))

    def _replace(self, keys: Keys) -> None:
        if not self._by_last:
            return
        for key in keys:
            if (chain := self._by_last.get(key.tobytes())) is not None:
                self._forget(chain)
        if len(self._heap) > 2 * len(self._by_last) + DEAD_MAX:
            self._heap = [row for row in self._heap if not row[2].is_dead]
            heapify(self._heap)

    def _forget(self, chain: Chain) -> None:
        del self._by_last[chain.keys[-1].tobytes()]
        self.num_blocks -= len(chain.keys)
        chain.keys, chain.is_dead = chain.keys[:0], True

    def step(self, pinned: Container[int]) -> list[tuple[int, Keys]]:
        """Remove what is over, a bounded piece of it: [(namespace, keys of blocks that are gone)]. Blocks with these
        ids stay, and so does what they extend."""
        now_us, left, gone = self._clock.now_us(), STEP_BLOCKS, []
        while self._heap and self._heap[0][0] <= now_us and left > 0:
            *_, chain = heappop(self._heap)
            if chain.is_dead:
                continue
            keys, left = chain.keys, left - len(chain.keys)
            self._forget(chain)
            ids = self._index.find(keys).tolist()
            keys = keys[1 + max((at for at, number in enumerate(ids) if number in pinned), default=-1) :]
            is_gone = core.expire(self._index, keys, chain.access, self._clock.time_s())
            if is_gone.any():
                self.num_expired += int(is_gone.sum())
                gone.append((chain.ns, keys[is_gone]))
        return gone
