"""The tiers that the contract's suite runs over, and a few verbs around any of them."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvstore.tiers.base import ENTRY, Entries, Outcomes, Places
from kvstore.tiers.disk import DiskTier
from kvstore.tiers.host import HostTier
from kvstore.tiers.memory import MemoryTier

KIB, MIB = 1 << 10, 1 << 20
IO_THREADS = 3
NAMES = ("memory", "host", "disk", "disk-buffered")
DURABLE = ("disk", "disk-buffered")


def maker(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """Makes the tier `name`, the durable ones in the same folder every time."""
    if name == "memory":
        return lambda: MemoryTier(8 * MIB)
    if name == "host":
        return lambda: HostTier(16 * MIB, base_pages=True)
    if name == "disk-buffered":
        refuse_direct_io(monkeypatch)
    return lambda: DiskTier(folder, capacity_nbytes=16 * MIB, segment_nbytes=MIB, io_threads=IO_THREADS)


def refuse_direct_io(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a file system without it does."""
    real_open = os.open

    def refusing_open(path: Any, flags: int, mode: int = 0o777, **rest: Any) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no direct I/O here", str(path))
        return real_open(path, flags, mode, **rest)

    monkeypatch.setattr("kvstore.tiers.segment_files.os.open", refusing_open)


def content(seed: int, nbytes: int) -> bytes:
    return np.random.default_rng(seed).bytes(nbytes)


def contents(seeds: range, nbytes: int) -> list[memoryview]:
    return [memoryview(content(seed, nbytes)) for seed in seeds]


def entries_for(seeds: range, namespace: int = 7) -> Entries:
    entries = np.zeros(len(seeds), dtype=ENTRY)
    entries["key"][:, :8] = np.arange(seeds.start, seeds.stop, dtype=np.uint64)[:, None].view(np.uint8)
    entries["num_tokens"], entries["namespace"] = 16, namespace
    return entries


def store(tier: Any, seeds: range, nbytes: int) -> tuple[Places, Entries]:
    """Allocate and write content(seed) for every seed; all of it has to succeed."""
    places, entries = tier.allocate(nbytes, len(seeds)), entries_for(seeds)
    assert len(places) == len(seeds)
    assert tier.write(places, entries, contents(seeds, nbytes)).result(60).tolist() == [0] * len(seeds)
    return places, entries


def load(tier: Any, places: Places, checksums: Any, nbytes: int, **rest: Any) -> tuple[Outcomes, list[bytes]]:
    buffers = [bytearray(nbytes) for _ in places]
    wanted = np.ascontiguousarray(checksums, dtype=np.uint64)
    outcomes = tier.read(places, wanted, [memoryview(buffer) for buffer in buffers], **rest).result(60)
    return outcomes, [bytes(buffer) for buffer in buffers]


def state(tier: Any) -> tuple[int, int]:
    usage = tier.usage()
    return usage.num_blocks, usage.used_nbytes
