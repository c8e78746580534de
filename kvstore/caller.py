"""An engine's side of a store, played with block bytes that prove themselves: read the stored prefix, put the rest."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvstore.arrays import Keys
from kvstore.handle import Namespace
from kvstore.hint import Hint
from kvstore.workload import fill_payloads, require_payloads

PIECE_NBYTES = 64 << 20  # of payload put at a time, so that a long prompt needs little scratch memory


@dataclass(slots=True)
class Traffic:
    """What one path carried, and for how long it was busy."""

    nbytes: int = 0
    busy_us: float = 0.0

    @property
    def nbytes_per_s(self) -> float:
        """0.0 when nothing moved."""
        return self.nbytes / self.busy_us * 1e6 if self.busy_us else 0.0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.nbytes + other.nbytes, self.busy_us + other.busy_us)


@dataclass(slots=True)
class Counts:
    """What a caller did and what came of it; times in µs."""

    blocks_asked: int = 0
    blocks_hit: int = 0
    blocks_promoted: int = 0  # of the hits: read from the far tier
    blocks_stored: int = 0
    blocks_rejected: int = 0
    blocks_verified: int = 0
    lease_us: list[float] = field(default_factory=list)
    put_us: list[float] = field(default_factory=list)
    copied_in: Traffic = field(default_factory=Traffic)
    copied_out: Traffic = field(default_factory=Traffic)

    @property
    def prefix_hit(self) -> float:
        """Leading blocks found over blocks asked for."""
        return self.blocks_hit / self.blocks_asked if self.blocks_asked else 0.0


class Caller:
    """Reads and puts blocks of one namespace and counts into `counts`."""

    def __init__(self, namespace: Namespace, counts: Counts, *, verify: bool) -> None:
        self.counts = counts
        self._namespace, self._verify = namespace, verify
        self._nbytes = namespace.spec.block_nbytes
        self._buffer = np.empty((0, self._nbytes), dtype=np.uint8)

    def read(self, keys: Keys) -> int:
        """Lease the stored prefix and copy it out; returns its blocks. WrongBytes when `verify` finds any."""
        counts = self.counts
        began_us = _now_us()
        with self._namespace.lease(keys) as lease:
            counts.lease_us.append(_now_us() - began_us)
            hit = lease.num_blocks
            blocks = self._scratch(hit)
            began_us = _now_us()
            lease.copy_into(blocks)
            counts.copied_out += Traffic(hit * self._nbytes, _now_us() - began_us if hit else 0.0)
            counts.blocks_promoted += lease.num_promoted
        counts.blocks_asked += len(keys)
        counts.blocks_hit += hit
        if self._verify and hit:
            require_payloads(keys[:hit], blocks)
            counts.blocks_verified += hit
        return hit

    def put(self, keys: Keys, start: int, hint: Hint | None = None) -> None:
        """Put the blocks of a chain from `start` on, piece by piece, until one is rejected. If there are none the store
        still hears of the request, and how it ended."""
        most = max(1, PIECE_NBYTES // self._nbytes)
        for first in range(start, max(start + 1, len(keys)), most):
            if not self._put_piece(keys[: first + most], hint):
                return

    def _put_piece(self, keys: Keys, hint: Hint | None) -> bool:
        counts = self.counts
        began_us = _now_us()
        with self._namespace.reserve(keys, hint=hint) as room:
            reserve_us = _now_us() - began_us
            blocks = self._scratch(len(room.wanted))
            if not len(blocks):
                counts.blocks_rejected += len(room.rejected)
                return not room.rejected
            fill_payloads(keys[room.wanted], blocks)
            began_us = _now_us()
            room.fill(blocks)
            fill_us = _now_us() - began_us
            began_us = _now_us()
            stored = room.commit().stored
            counts.put_us.append(reserve_us + fill_us + _now_us() - began_us)
        counts.copied_in += Traffic(len(blocks) * self._nbytes, fill_us)
        counts.blocks_stored += stored
        counts.blocks_rejected += len(room.rejected)
        return not room.rejected

    def _scratch(self, num_blocks: int) -> NDArray[np.uint8]:
        if len(self._buffer) < num_blocks:
            self._buffer = np.empty((num_blocks, self._nbytes), dtype=np.uint8)
            self._buffer.fill(0)  # has its pages now, so that no copy is timed with page faults
        return self._buffer[:num_blocks]


def paths(counts: Counts, mover_before: Mapping[str, Any], mover_after: Mapping[str, Any]) -> dict[str, Traffic]:
    """What moved on each path, from a caller's counts and a store's mover statistics before and after."""
    names = ("write_nbytes", "write_us", "read_nbytes", "read_us")
    moved = {name: mover_after[name] - mover_before[name] for name in names}
    return {
        "caller_to_memory": counts.copied_in,
        "memory_to_caller": counts.copied_out,
        "memory_to_disk": Traffic(moved["write_nbytes"], moved["write_us"]),
        "disk_to_memory": Traffic(moved["read_nbytes"], moved["read_us"]),
    }


def _now_us() -> float:
    return time.perf_counter_ns() / 1000
