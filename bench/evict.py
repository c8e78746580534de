"""Evictions in batches of 256 beside full lease tables, bookkeeping of accesses, and metadata, at a million blocks.

The blocks are chains of 64 at random places of the index, as after long use. batch_256: thread CPU time of whole calls
of Index.evict_near, with 8 lease tables of 8,192 entries, every one of them a lease on a block that stays; its ceiling
is the reading of all those entries once a batch. touch: thread CPU time of Index.drain, which brings the accesses that
leases left into the eviction order, after leases on 1,000 chains, divided by their 64,000 blocks. touch and touch_cold
walk through all chains in random order, touch_cold with everything pushed out of the caches between the leases and the
drain; touch_hot leases one chain again and again. Their ceiling is the reading of two cache lines a block, prefetched.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bench import stored
from bench.clock import SEED, Times, cpu_ns, interleaved, time_result
from bench.report import Result
from kvstore._core import clocked
from kvstore._core.index import Index
from kvstore._core.lease import LeaseTable
from kvstore.arrays import Keys

NUM_CHAINS, NUM_CHAINS_QUICK = 15_625, 1_200
NUM_TABLES, TABLE_ENTRIES = 8, 8_192
BATCH_BLOCKS = 256
FLUSH_NBYTES = 96 << 20
SLOT_NBYTES = stored.PLACE_NBYTES
NS = 1


def full_index(keys: Keys, rng: np.random.Generator) -> Index:
    """An index that has lived and holds exactly these chains, the first of them the coldest."""
    num_blocks = keys.shape[0] * keys.shape[1]
    index = Index(num_blocks)
    index.set_namespace(NS, SLOT_NBYTES, 1)
    stored.age(index, NS, num_blocks, rng)
    places = np.arange(num_blocks, dtype=np.uint32).reshape(keys.shape[:2])
    for chain, own_places in zip(keys, places, strict=True):
        _, plan, ids = index.plan(chain, 0)
        index.begin(chain, 0, NS, plan, ids, own_places)
        index.commit(ids, 0)
    return index


class Evictions:
    """Batches of evictions, while the last chains of the index fill every lease table."""

    def __init__(self, index: Index, keys: Keys) -> None:
        self.index = index
        self.tables = [LeaseTable(index, TABLE_ENTRIES) for _ in range(NUM_TABLES)]
        per_table = TABLE_ENTRIES // stored.CHAIN_BLOCKS
        leased = keys[len(keys) - NUM_TABLES * per_table :]
        self.grips = [
            table.acquire(chain)
            for table, own in zip(self.tables, np.split(leased, NUM_TABLES), strict=True)
            for chain in own
        ]
        assert all(table.used == TABLE_ENTRIES for table in self.tables)
        index.drain()
        self.num_batches = (len(keys) - len(leased)) * stored.CHAIN_BLOCKS // BATCH_BLOCKS
        self.entries = np.zeros((NUM_TABLES, TABLE_ENTRIES // 2), dtype=np.uint64)

    def batch(self) -> int:
        """CPU ns of one batch."""
        evicted = self.index.counts()["evicted_near"]
        ns = cpu_ns(lambda: self.index.evict_near(BATCH_BLOCKS * SLOT_NBYTES, False, 0))
        assert self.index.counts()["evicted_near"] == evicted + BATCH_BLOCKS
        return ns

    def scan(self) -> int:
        """CPU ns of reading as much memory as the lease entries take."""
        return cpu_ns(lambda: [np.bitwise_or.reduce(table) for table in self.entries])


class Touches:
    """Accesses to whole chains: CPU ns per block."""

    def __init__(self, index: Index, keys: Keys, rng: np.random.Generator) -> None:
        self.index, self.keys = index, keys
        self.ids = stored.ids_of(index, keys)
        self.walk, self.at = rng.permutation(len(keys)), 0
        self.num_chains = min(1000, len(keys))
        self.table = LeaseTable(index, stored.CHAIN_BLOCKS)
        self.clock = float(np.median(clocked.nothing(10_000)))
        self.other = np.zeros(FLUSH_NBYTES // 8, dtype=np.uint64)

    def _next(self) -> np.ndarray:
        self.at += self.num_chains
        return np.take(self.walk, range(self.at - self.num_chains, self.at), mode="wrap")

    def _drain(self, which: np.ndarray, *, flush: bool = False) -> int:
        for number in which:
            self.table.acquire(self.keys[number]).release()
        assert self.table.touches == len(which)
        if flush:
            self.other += 1
        return cpu_ns(self.index.drain)

    def _lines(self, which: np.ndarray) -> int:
        ns = clocked.lines(self.index, self.keys[which], self.ids[which]) - self.clock
        return int(np.median(ns) * len(which))

    def measure(self, num_rounds: int) -> dict[str, Times]:
        one = np.zeros(self.num_chains, dtype=np.intp)
        parts = {
            "touch": lambda: self._drain(self._next()),
            "touch_cold": lambda: self._drain(self._next(), flush=True),
            "touch_hot": lambda: self._drain(one),
            "lines": lambda: self._lines(self._next()),
            "lines_hot": lambda: self._lines(one),
        }
        times = interleaved(parts, num_rounds)
        return {name: ns / (self.num_chains * stored.CHAIN_BLOCKS) for name, ns in times.items()}


def cases(quick: bool) -> Iterator[Result]:
    rng = np.random.default_rng(SEED)
    keys = stored.chains(rng, NUM_CHAINS_QUICK if quick else NUM_CHAINS)
    index = full_index(keys, rng)
    touches = Touches(index, keys, rng).measure(2 if quick else 100)
    for name, lines in (("touch", "lines"), ("touch_cold", "lines"), ("touch_hot", "lines_hot")):
        ceiling = float(np.median(touches[lines])), "reading 2 lines a block"
        yield time_result("evict", name, touches[name], "ns", ceiling, "per block of a chain of 64")
    evictions = Evictions(index, keys)
    times = interleaved({"batch": evictions.batch, "scan": evictions.scan}, min(1000, evictions.num_batches))
    us = {name: ns / 1000 / BATCH_BLOCKS for name, ns in times.items()}
    ceiling = float(np.median(us["scan"])), f"reading {NUM_TABLES * TABLE_ENTRIES} leases"
    yield time_result("evict", "batch_256", us["batch"], "us", ceiling, "per block")
    assert index.counts()["spared"] == 0
    yield Result("evict", "metadata", index.nbytes_per_entry, "bytes", detail="per block: record, bucket share, links")
