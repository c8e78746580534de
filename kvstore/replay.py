"""Replay: a request trace through a real store, with real bytes.

Each request leases the stored prefix of its blocks, reads it, and puts the rest, as an engine would: hits first, then
what had to be computed. Block ids of the trace are chained already, so they serve as an engine's own block hashes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvstore.arrays import Keys
from kvstore.block import PutResult
from kvstore.handle import Namespace
from kvstore.lease import Lease
from kvstore.store import BlockStore
from kvstore.trace import Request
from kvstore.workload import check_payloads, fill_payloads

SAMPLES = 400  # points of the plot
PUT_WAIT_MS = 60_000  # as fast as possible is faster than a disk: puts wait for write-back instead of dropping blocks
BATCH_NBYTES = 256 << 20  # of payload at a time


class WrongBytes(Exception):
    """A block came back with other bytes than were stored."""


@dataclass(slots=True)
class Sample:
    """The state at one moment of a replay."""

    request: int
    trace_s: float
    hit_ratio: float  # of the requests since the sample before
    near_blocks: int
    far_blocks: int


@dataclass(slots=True)
class Result:
    """Everything a replay measured; times in µs, sizes in bytes."""

    requests: int = 0
    blocks_asked: int = 0
    blocks_hit: int = 0
    blocks_promoted: int = 0  # of the hits: read from the far tier
    blocks_stored: int = 0
    blocks_rejected: int = 0
    blocks_verified: int = 0
    elapsed_us: int = 0
    lease_us: list[float] = field(default_factory=list)
    put_us: list[float] = field(default_factory=list)
    hit_nbytes: int = 0
    put_nbytes: int = 0
    samples: list[Sample] = field(default_factory=list)

    @property
    def prefix_hit(self) -> float:
        """Leading blocks found over blocks asked for."""
        return self.blocks_hit / self.blocks_asked if self.blocks_asked else 0.0


def trace_keys(namespace: Namespace, block_ids: NDArray[np.uint32]) -> Keys:
    """Keys of a trace's chained block ids."""
    hashes: Any = np.ascontiguousarray(block_ids, dtype="<u8").view(np.uint8).reshape(-1, 8)
    return namespace.keys(block_hashes=hashes)


class Replay:
    """One run. `speed` 0: as fast as possible; N: N times as fast as the trace happened."""

    def __init__(self, store: BlockStore, namespace: Namespace, *, verify: bool, speed: float = 0.0) -> None:
        self._store, self._namespace = store, namespace
        self._verify, self._speed = verify, speed
        self._nbytes = namespace.spec.block_nbytes
        self._buffer = np.empty((0, self._nbytes), dtype=np.uint8)
        self._last = (0, 0)
        self.result = Result()

    def run(
        self, requests: Iterable[Request], num_requests: int, advance: Callable[[int], None] | None = None
    ) -> Result:
        """Play them all. WrongBytes ends it at once: the store is not to be trusted then."""
        every = max(1, num_requests // SAMPLES)
        began_ns = time.monotonic_ns()
        for number, request in enumerate(requests):
            self._pace(request, began_ns)
            self._one(request)
            if advance is not None:
                advance(1)
            if (number + 1) % every == 0:
                self._sample(number + 1, request)
        self.result.elapsed_us = (time.monotonic_ns() - began_ns) // 1000
        return self.result

    def _pace(self, request: Request, began_ns: int) -> None:
        if self._speed > 0:
            due_ns = began_ns + int(request.timestamp_ms * 1e6 / self._speed)
            time.sleep(max(0, due_ns - time.monotonic_ns()) / 1e9)

    def _one(self, request: Request) -> None:
        result, num_blocks = self.result, len(request.block_ids)
        result.requests += 1
        if num_blocks == 0:
            return
        keys = trace_keys(self._namespace, request.block_ids)
        began = time.perf_counter_ns()
        lease = self._namespace.lease(keys)
        result.lease_us.append((time.perf_counter_ns() - began) / 1000)
        with lease:
            hit = lease.num_blocks
            result.blocks_promoted += lease.num_promoted
            if self._verify and hit:
                self._check(keys[:hit], lease)
        result.blocks_asked += num_blocks
        result.blocks_hit += hit
        result.hit_nbytes += hit * self._nbytes
        if hit < num_blocks:
            self._put(keys, hit)

    def _check(self, keys: Keys, lease: Lease) -> None:
        blocks = self._scratch(len(keys))
        lease.copy_into(blocks)
        right = check_payloads(keys, blocks)
        if not right.all():
            key = bytes(keys[int(np.argmin(right))]).hex()
            raise WrongBytes(f"block {key} came back with other bytes than were stored")
        self.result.blocks_verified += len(keys)

    def _put(self, keys: Keys, start: int) -> None:
        """In pieces, so that a long prompt needs no more scratch memory than BATCH_NBYTES."""
        most = max(1, BATCH_NBYTES // self._nbytes)
        for first in range(start, len(keys), most):
            last = min(first + most, len(keys))
            blocks = self._payload(keys[first:last])
            began = time.perf_counter_ns()
            put = self._namespace.put(keys[:last], blocks, start=first, deadline_ms=PUT_WAIT_MS)
            self.result.put_us.append((time.perf_counter_ns() - began) / 1000)
            self._count(put)
            if put.rejected:
                return

    def _count(self, put: PutResult) -> None:
        self.result.blocks_stored += put.stored
        self.result.blocks_rejected += len(put.rejected)
        self.result.put_nbytes += put.stored * self._nbytes

    def _payload(self, keys: Keys) -> NDArray[np.uint8]:
        blocks = self._scratch(len(keys))
        fill_payloads(keys, blocks)
        return blocks

    def _scratch(self, num_blocks: int) -> NDArray[np.uint8]:
        if len(self._buffer) < num_blocks:
            self._buffer = np.empty((num_blocks, self._nbytes), dtype=np.uint8)
        return self._buffer[:num_blocks]

    def _sample(self, request_number: int, request: Request) -> None:
        result = self.result
        asked, hit = result.blocks_asked - self._last[0], result.blocks_hit - self._last[1]
        self._last = (result.blocks_asked, result.blocks_hit)
        counts = self._store.index.counts()
        ratio = hit / asked if asked else 0.0
        sample = Sample(request_number, request.timestamp_ms / 1000, ratio, counts["near"], counts["far"])
        result.samples.append(sample)
