"""Put and get of batches of 64 blocks through a store of host memory, views, and what a put costs beside its copy.

put_2m, get_2m: rates of thread CPU time of whole calls of Namespace.put and Namespace.get with blocks of 2 MiB, from
and to memory of the caller. The store is prefaulted and full, so that every put evicts as much as it stores. The
ceiling is one contiguous non-temporal copy of a batch between two such regions, all of them in huge pages and walked
through from end to end, rounds interleaved.

views: blocks handed out as buffers a second by `with ns.lease(keys) as lease: lease.views`, 64 at a time, leases and
releases included; the ceiling makes and drops as many memoryviews of bytes.

zero_reuse: lease (a miss) and put of blocks that nobody asks for again, into the full store: everything in these calls
that is not the copy itself, in % of a contiguous copy of the batch. What is not the copy comes right after a copy that
has pushed it out of the caches, and so would the system call that reads a thread's CPU time: it is measured with the
monotonic clock around the copy, and a round that was interrupted falls out of the median.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np

import kvstore
from bench import stored
from bench.clock import SEED, Times, cpu_ns, interleaved, rate_result, time_result
from bench.copy import Region
from bench.report import Result
from kvstore import copying
from kvstore._core import transfer
from kvstore.arrays import Keys

BATCH_BLOCKS = 64
RATES = ("put", "get", "copy")


class CopySplit:
    """Stands in for the copy of a put and notes when it began and ended."""

    began_ns = ended_ns = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(transfer, name)

    def copy_pieces(self, *arguments: Any) -> None:
        self.began_ns = time.perf_counter_ns()
        transfer.copy_pieces(*arguments)
        self.ended_ns = time.perf_counter_ns()


class Workload:
    """A full store of `num_batches` batches of blocks, and as much memory of the caller on either side."""

    def __init__(self, block_nbytes: int, num_batches: int) -> None:
        self.batch_nbytes, self.num_batches = BATCH_BLOCKS * block_nbytes, num_batches
        nbytes = num_batches * self.batch_nbytes
        self.store = stored.store_of(nbytes)
        self.ns = self.store.namespace(kvstore.NamespaceSpec(model="bench", block_nbytes=block_nbytes))
        self.source, self.target = Region(nbytes, 1), Region(nbytes, 2)
        shape = (num_batches, BATCH_BLOCKS, block_nbytes)
        self.blocks, self.out = self.source.bytes.reshape(shape), self.target.bytes.reshape(shape)
        self.sources = self.source.addresses(self.batch_nbytes, False, np.random.default_rng())
        self.targets = self.target.addresses(self.batch_nbytes, False, np.random.default_rng())
        self.rng = np.random.default_rng(SEED)
        self.recent: deque[Keys] = deque(maxlen=max(1, num_batches // 2))
        self.at = 0
        for _ in range(num_batches + 1):
            self.put()

    def _next(self) -> int:
        self.at = (self.at + 1) % self.num_batches
        return self.at

    def fresh(self) -> Keys:
        self.recent.append(stored.chains(self.rng, 1, BATCH_BLOCKS)[0])
        return self.recent[-1]

    def put(self) -> int:
        """CPU ns of one put."""
        keys, blocks = self.fresh(), self.blocks[self._next()]
        result = None

        def work() -> None:
            nonlocal result
            result = self.ns.put(keys, blocks)

        ns = cpu_ns(work)
        assert result == kvstore.PutResult(BATCH_BLOCKS, 0, {}), result
        return ns

    def get(self) -> int:
        """CPU ns of one get of a batch that is stored and not in cache."""
        keys, out = self.recent[0], self.out[self._next()]
        self.recent.rotate(-1)
        found = 0

        def work() -> None:
            nonlocal found
            found, _ = self.ns.get(keys, out)

        ns = cpu_ns(work)
        assert found == BATCH_BLOCKS, found
        return ns

    def copy(self) -> int:
        """CPU ns of the contiguous copy of a batch from the caller's one region to the other."""
        at = self._next()
        source, target = self.sources[at : at + 1].copy(), self.targets[at : at + 1].copy()
        return cpu_ns(lambda: transfer.copy_pieces(target, source, self.batch_nbytes))

    def overhead(self) -> int:
        """ns of a lease that misses and a put, without the put's copy."""
        keys, blocks = self.fresh(), self.blocks[self._next()]
        split = CopySplit()
        copying.transfer = split  # type: ignore[assignment]
        try:
            start_ns = time.perf_counter_ns()
            with self.ns.lease(keys) as lease:
                missed = lease.num_blocks == 0
            result = self.ns.put(keys, blocks)
            end_ns = time.perf_counter_ns()
        finally:
            copying.transfer = transfer
        assert missed and result.stored == BATCH_BLOCKS
        return split.began_ns - start_ns + end_ns - split.ended_ns

    def views(self) -> int:
        """CPU ns of the views of one batch."""
        keys = self.recent[0]

        def work() -> None:
            with self.ns.lease(keys) as lease:
                assert len(lease.views) == BATCH_BLOCKS

        return cpu_ns(lambda: [work() for _ in range(20)]) // 20

    def close(self) -> None:
        self.store.close()


def bare_views() -> int:
    """CPU ns of memoryviews of as many bytes objects."""
    buffers = [bytes(8)] * BATCH_BLOCKS
    return cpu_ns(lambda: [[memoryview(buffer) for buffer in buffers] for _ in range(20)]) // 20


def turns(workload: Workload, names: tuple[str, ...], num_rounds: int, num_batches: int) -> dict[str, Times]:
    """ns of each batch of turns of `num_batches`, of which the first is not counted: it finds the caches and the write
    buffers as another part left them."""
    times: dict[str, list[int]] = {name: [] for name in names}

    def turn(name: str) -> int:
        ns = [getattr(workload, name)() for _ in range(num_batches + 1)]
        times[name].extend(ns[1:])
        return 0

    interleaved({name: (lambda name=name: turn(name)) for name in names}, num_rounds)
    return {name: np.array(ns, dtype=np.float64) for name, ns in times.items()}


def cases(quick: bool) -> Iterator[Result]:
    num_batches = 2 if quick else 8
    num_rounds = 1 if quick else 12
    workload = Workload((64 << 10) if quick else (2 << 20), num_batches)
    try:
        times = turns(workload, (*RATES, "overhead"), num_rounds, num_batches - 1)
        copy_ns = float(np.median(times["copy"]))
        ceiling = workload.batch_nbytes / copy_ns, "contiguous copy"
        pages = f"{workload.store.near.arena.page_kind}, {BATCH_BLOCKS} blocks a call"
        for name in ("put", "get"):
            yield rate_result("store", f"{name}_2m", workload.batch_nbytes / times[name], "GB/s", ceiling, pages)
        parts = {"views": workload.views, "bare": bare_views}
        rates = {name: BATCH_BLOCKS / ns * 1e9 for name, ns in interleaved(parts, 2 if quick else 200).items()}
        ceiling = float(np.median(rates["bare"])), "bare memoryviews"
        yield rate_result("store", "views", rates["views"], "views/s", ceiling, f"{BATCH_BLOCKS} a lease")
        yield zero_reuse("zero_reuse", times["overhead"], copy_ns)
    finally:
        workload.close()
    small = Workload((4 << 10) if quick else (128 << 10), num_batches if quick else 32)
    try:
        times = turns(small, ("copy", "overhead"), num_rounds, small.num_batches - 1)
        yield zero_reuse("zero_reuse_128k", times["overhead"], float(np.median(times["copy"])))
    finally:
        small.close()


def zero_reuse(case: str, overhead_ns: Times, copy_ns: float) -> Result:
    """What lease and put add to a copy of `copy_ns`, in %."""
    median_us = float(np.median(overhead_ns)) / 1000
    detail = f"{median_us:.0f} us beside a copy of {copy_ns / 1000:.0f} us"
    return time_result("store", case, overhead_ns / copy_ns * 100, "%", detail=detail)
