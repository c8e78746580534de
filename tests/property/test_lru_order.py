"""Leaf-first LRU against its definition: a plain LRU that touches a request's blocks from the last to the first."""

from collections import OrderedDict

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore._core import index as core
from kvstore._core.index import Index
from kvstore._core.lease import LeaseTable

SLOT = 4096


class PlainLru:
    """The definition: the capacity's worth of most recently touched blocks."""

    def __init__(self, capacity):
        self.capacity, self.blocks = capacity, OrderedDict()

    def request(self, chain):
        hits = 0
        while hits < len(chain) and chain[hits] in self.blocks:
            hits += 1
        for block in reversed(chain):
            self.blocks[block] = None
            self.blocks.move_to_end(block)
            if len(self.blocks) > self.capacity:
                self.blocks.popitem(last=False)
        return hits


def request(index, leases, chain, capacity):
    keys = np.array([list(hash_of(block)) for block in chain], dtype=np.uint8).reshape(-1, 32)
    grip = leases.acquire(keys)
    hits = grip.num_blocks
    wanted, plan, ids = index.plan(keys, 0)
    excess = index.near_nbytes // SLOT + wanted - capacity
    if excess > 0:
        index.evict_near(excess * SLOT, False, 0)
    room = max(0, capacity - index.near_nbytes // SLOT)
    index.begin(keys, 0, 1, plan, ids, np.zeros(min(room, wanted), dtype=np.uint32))
    grip.release()
    index.commit(ids[(plan == core.WANTED) & (ids != core.NONE)], 0)
    return hits


def hash_of(chain):
    return np.random.default_rng(abs(hash(chain))).bytes(32)


# A request is a path in a tree with few branches, so that prefixes are shared.
paths = st.lists(st.integers(0, 2), min_size=1, max_size=8).map(
    lambda steps: [tuple(steps[: depth + 1]) for depth in range(len(steps))]
)


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 12), st.lists(paths, max_size=60))
def test_same_hits_and_same_contents_as_plain_lru(capacity, requests):
    index, plain = Index(256), PlainLru(capacity)
    index.set_namespace(1, SLOT, 1)
    leases = LeaseTable(index, 64)
    for chain in requests:
        assert request(index, leases, chain, capacity) == plain.request(chain)
        assert index.check() == 0
        assert index.counts()["entries"] == len(plain.blocks)
    for block in plain.blocks:
        assert index.find(hash_of(block))[0] != core.NONE
