"""Match, lease and release of a prefix of 64 blocks among a million stored ones, in this process.

Every figure is the time of single calls by a clock that is read without a system call, less one reading of it (its
CPU time could not be told from the clock's); medians, so that a neighbour shows in p99 only. Hot is one prefix again
and again; cold walks through all prefixes in random order, so that a block's bucket and record were last touched as
many lines ago as there are in the index (76 MB). The blocks of a prefix lie at random places of the index, as after
long use. The keys asked for are in cache, as after hashing.

The ceiling of C is the reading of the same cache lines without a comparison, both batches prefetched: 64 buckets, then
64 records. The ceiling of Python is C.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np

import kvstore
from bench import stored
from bench.clock import SEED, Times, time_result
from bench.report import Result
from kvstore._core import clocked
from kvstore.arrays import Keys

NUM_CHAINS, NUM_CHAINS_QUICK = 15_625, 400
ENTRIES_MIN = 1 << 16


class Lookups:
    """A full store and the ways to ask it, each over one call a prefix: ns, less the clock's own."""

    def __init__(self, num_chains: int, rng: np.random.Generator) -> None:
        num_blocks = num_chains * stored.CHAIN_BLOCKS
        entries = {"entries_max": max(num_blocks, ENTRIES_MIN)}
        self.store = stored.store_of(num_blocks * stored.PLACE_NBYTES, prefault="off", index=entries)
        self.ns = self.store.namespace(kvstore.NamespaceSpec(model="bench", block_nbytes=1))
        with self.store.lock:
            stored.age(self.store.index, 1, num_blocks, rng)
        self.keys = stored.chains(rng, num_chains)
        stored.fill_with_chains(self.ns, self.keys)
        self.ids = stored.ids_of(self.store.index, self.keys)
        self.index, self.leases = self.store.index, self.store.leases
        self.c_clock = float(np.median(clocked.nothing(10_000)))
        self.python_clock = float(np.median(self._each(lambda _: None, np.zeros(10_000, dtype=np.intp))))

    def _each(self, ask: Callable[[Keys], object], which: np.ndarray) -> Times:
        now_ns, ns = time.perf_counter_ns, []
        for number in which:
            keys = self.keys[number].copy()
            start_ns = now_ns()
            ask(keys)
            ns.append(now_ns() - start_ns)
        return np.array(ns, dtype=np.float64)

    def _public(self, keys: Keys) -> None:
        with self.ns.lease(keys):
            pass

    def ask(self, way: str, which: np.ndarray) -> Times:
        """One way to ask for the prefixes `which`."""
        if way == "lines":
            ns = clocked.lines(self.index, self.keys[which], self.ids[which])
            return ns - self.c_clock
        if way == "c":
            ns = clocked.leases(self.index, self.leases, self.keys[which])
            assert ns.all(), "a prefix was not found whole"
            return ns - self.c_clock
        ask = self._public if way == "py" else lambda keys: self.leases.acquire(keys).release()
        return self._each(ask, which) - self.python_clock


def measure(lookups: Lookups, num_rounds: int, rng: np.random.Generator) -> dict[str, Times]:
    """us of every way to ask, hot and cold, in interleaved rounds."""
    num_chains = len(lookups.keys)
    turn = min(1000, num_chains)
    times: dict[str, list[Times]] = {f"{way}_{kind}": [] for way in WAYS for kind in KINDS}
    walk, at = rng.permutation(num_chains), 0
    for _ in range(num_rounds):
        for name in rng.permutation(list(times)):
            way, kind = name.rsplit("_", 1)
            if kind == "hot":
                which = np.zeros(turn, dtype=np.intp)
                lookups.ask(way, which[:10])
            else:
                which, at = np.take(walk, range(at, at + turn), mode="wrap"), at + turn
            times[name].append(lookups.ask(way, which) / 1000)
            with lookups.store.lock:
                lookups.index.drain()
    return {name: np.concatenate(parts) for name, parts in times.items()}


WAYS, KINDS = ("lines", "c", "raw", "py"), ("hot", "cold")


def cases(quick: bool) -> Iterator[Result]:
    rng = np.random.default_rng(SEED)
    lookups = Lookups(NUM_CHAINS_QUICK if quick else NUM_CHAINS, rng)
    try:
        times = measure(lookups, 2 if quick else 40, rng)
    finally:
        lookups.store.close()
    p50 = {name: float(np.median(values)) for name, values in times.items()}
    for kind in KINDS:
        ceiling = p50[f"lines_{kind}"], f"its {2 * stored.CHAIN_BLOCKS} lines"
        yield time_result("lookup", f"c_{kind}", times[f"c_{kind}"], "us", ceiling, "acquire and release in C")
    for way, what in (("raw", "LeaseTable.acquire"), ("py", "with ns.lease(keys)")):
        for kind in KINDS:
            name, c = f"{way}_{kind}", p50[f"c_{kind}"]
            yield time_result(
                "lookup", name, times[name], "us", (c, f"c_{kind}"), f"C + {p50[name] - c:.2f} us: {what}"
            )
