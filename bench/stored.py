"""Indexes and stores in the state that benchmarks want them in: full, and as after a long life."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

import kvstore
from kvstore._core import index as core
from kvstore._core.index import Index
from kvstore.arrays import Keys

CHAIN_BLOCKS = 64
PLACE_NBYTES = 4096


def chains(rng: np.random.Generator, num_chains: int, num_blocks: int = CHAIN_BLOCKS) -> Keys:
    """Random keys, uint8 (num_chains, num_blocks, 32)."""
    return rng.integers(0, 256, (num_chains, num_blocks, 32), dtype=np.uint8)


def age(index: Index, ns: int, num_blocks: int, rng: np.random.Generator) -> None:
    """Leave the free ids of an empty index in random order, as evictions do in time. A new index would hand them out
    in sequence, and the processor's prefetcher would find the blocks of a chain by itself."""
    keys = chains(rng, 1, num_blocks)[0]
    nothing = np.zeros(num_blocks, dtype=np.uint32)
    ids = index.adopt(keys, np.zeros_like(keys), nothing + np.uint32(ns), nothing, nothing.astype(np.uint64))
    assert (ids != core.NONE).all()
    index.remove(rng.permutation(ids), core.REMOVED, 0)
    while index.num_removed:
        index.reap()


def store_of(nbytes: int, **settings: Any) -> kvstore.BlockStore:
    """A store of host memory alone, prefaulted unless `settings` say otherwise."""
    host = {"nbytes": nbytes, "prefault": settings.pop("prefault", "now")}
    return kvstore.open(kvstore.Config(host=host, disk={"nbytes": 0}, **settings))


def fill_with_chains(ns: kvstore.Namespace, keys: Keys) -> None:
    """Store the blocks of every chain without writing a byte of them."""
    for chain in keys:
        with ns.reserve(chain) as room:
            stored = room.commit()
        assert stored.stored == len(chain), stored


def ids_of(index: Index, keys: Keys) -> NDArray[np.uint32]:
    """Index ids of stored chains, uint32 (num_chains, num_blocks)."""
    return index.find(keys.reshape(-1, 32)).reshape(keys.shape[:2])
