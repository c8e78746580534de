"""Replay: a request trace through a real store, with real bytes.

Each request leases the stored prefix of its blocks, reads it, and puts the rest, as an engine would: hits first, then
what had to be computed. Block ids of the trace are chained already, so they serve as an engine's own block hashes. All
namespaces of a trace share one: they have no id in common, and every block has the size that is asked for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvstore._core import eviction
from kvstore.arrays import Keys
from kvstore.caller import Caller, Counts, Traffic, paths
from kvstore.handle import Namespace
from kvstore.hint import STOPS, Hint
from kvstore.policy import FULL_BLOCKS_ONLY
from kvstore.store import BlockStore
from kvstore.timed import set_time
from kvstore.trace import Request

SAMPLES = 400  # points of the plot


@dataclass(slots=True)
class Sample:
    """The state at one moment of a replay."""

    request: int
    trace_s: float
    hit_ratio: float  # of the requests since the sample before
    near_blocks: int
    far_blocks: int


@dataclass(slots=True)
class Result(Counts):
    """Everything a replay measured; times in µs, sizes in bytes."""

    requests: int = 0
    tokens_reused: int = 0
    elapsed_us: int = 0
    paths: dict[str, Traffic] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)


def trace_keys(namespace: Namespace, block_ids: NDArray[np.uint64]) -> Keys:
    """Keys of a trace's chained block ids."""
    hashes: Any = np.ascontiguousarray(block_ids, dtype="<u8").view(np.uint8).reshape(-1, 8)
    return namespace.keys(block_hashes=hashes)


def request_hint(request: Request) -> Hint:
    """What an engine would say of a request when it has ended."""
    stop = request.stop_reason if request.stop_reason in STOPS else ""
    return Hint(stop=stop, output_tokens=request.output_tokens or None)


class Replay:
    """One run. `speed` 0: as fast as possible; N: N times as fast as the trace happened."""

    def __init__(self, store: BlockStore, namespace: Namespace, *, verify: bool, speed: float = 0.0) -> None:
        self._store, self._namespace, self._speed = store, namespace, speed
        self._last = (0, 0)
        self.result = Result()
        self._caller = Caller(namespace, self.result, verify=verify)
        self._full_only = eviction.name(store.index) in FULL_BLOCKS_ONLY

    def run(
        self, requests: Iterable[Request], num_requests: int, advance: Callable[[int], None] | None = None
    ) -> Result:
        """Play them all and write back the rest. WrongBytes ends it at once: the store is not to be trusted then."""
        result = self.result
        every = max(1, num_requests // SAMPLES)
        mover_before = self._store.stats()["mover"]
        began_ns, first_ms = time.monotonic_ns(), -1
        for request in requests:
            first_ms = request.timestamp_ms if first_ms < 0 else first_ms
            self._pace(request.timestamp_ms - first_ms, began_ns)
            self._one(request)
            if advance is not None:
                advance(1)
            if result.requests % every == 0:
                self._sample(request)
        result.elapsed_us = (time.monotonic_ns() - began_ns) // 1000
        self._store.flush()
        result.paths = paths(result, mover_before, self._store.stats()["mover"])
        return result

    def _pace(self, trace_ms: int, began_ns: int) -> None:
        if self._speed > 0:
            due_ns = began_ns + int(trace_ms * 1e6 / self._speed)
            time.sleep(max(0, due_ns - time.monotonic_ns()) / 1e9)

    def _one(self, request: Request) -> None:
        self.result.requests += 1
        set_time(self._store, request.timestamp_ms)
        num_blocks = request.num_full if self._full_only else len(request.block_ids)
        self.result.blocks_asked += len(request.block_ids) - num_blocks
        if num_blocks:
            keys = trace_keys(self._namespace, request.block_ids[:num_blocks])
            hit = self._caller.read(keys)
            self.result.tokens_reused += hit * request.block_tokens
            self._caller.put(keys, hit, request_hint(request))

    def _sample(self, request: Request) -> None:
        result = self.result
        asked, hit = result.blocks_asked - self._last[0], result.blocks_hit - self._last[1]
        self._last = (result.blocks_asked, result.blocks_hit)
        counts = self._store.index.counts()
        ratio = hit / asked if asked else 0.0
        sample = Sample(result.requests, request.timestamp_ms / 1000, ratio, counts["near"], counts["far"])
        result.samples.append(sample)
