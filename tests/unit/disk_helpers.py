"""Blocks of known content and a few verbs around a disk tier."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from kvstore.tiers.base import ENTRY, Entries, Outcomes, Places
from kvstore.tiers.disk import DiskTier
from kvstore.tiers.segments import State

MIB = 1 << 20
CAPACITY_NBYTES = 16 * MIB  # 16 segments of 1 MiB


def open_tier(path: Path, **options: Any) -> DiskTier:
    """With its first segments ready, so that they are used in the order of their numbers."""
    tier = DiskTier(path, **{"capacity_nbytes": CAPACITY_NBYTES, **options})
    wait_until(lambda: tier._table.num_ready >= min(2, (tier._table.state <= State.FREE).sum()))
    return tier


def content(seed: int, nbytes: int) -> bytes:
    return np.random.default_rng(seed).bytes(nbytes)


def make_entries(seeds: range | list[int]) -> Entries:
    entries = np.zeros(len(seeds), dtype=ENTRY)
    for entry, seed in zip(entries, seeds, strict=True):
        entry["key"][:8] = np.frombuffer(np.uint64(seed).tobytes(), dtype=np.uint8)
    entries["num_tokens"] = 16
    return entries


def seed_of(entry: Any) -> int:
    return int(entry["key"][:8].view("<u8")[0])


def allocate(tier: DiskTier, nbytes: int, num_blocks: int) -> Places:
    """Places for all, once the segments that are being cleaned have come back."""
    places = tier.allocate(nbytes, num_blocks)
    end_s = time.monotonic() + 30
    while len(places) < num_blocks:
        assert time.monotonic() < end_s, "no room"
        time.sleep(0.005)
        places = np.concatenate([places, tier.allocate(nbytes, num_blocks - len(places))])
    return places


def write(tier: DiskTier, seeds: range | list[int], nbytes: int) -> tuple[Places, Entries]:
    """Blocks of content(seed) written and checked to be so."""
    places, entries = allocate(tier, nbytes, len(seeds)), make_entries(seeds)
    outcomes = tier.write(places, entries, [memoryview(content(seed, nbytes)) for seed in seeds]).result(60)
    assert outcomes.tolist() == [0] * len(seeds)
    return places, entries


def read(tier: DiskTier, places: Places, entries: Entries) -> tuple[Outcomes, list[bytearray]]:
    buffers = [bytearray(int(nbytes)) for nbytes in entries["nbytes"]]
    checksums = entries["checksum"].astype(np.uint64)
    return tier.read(places, checksums, [memoryview(buffer) for buffer in buffers]).result(60), buffers


def recover(tier: DiskTier) -> tuple[Places, Entries]:
    found = [(places, entries) for places, entries, _ in tier.recover()]
    if not found:
        return np.empty(0, dtype=np.uint32), np.empty(0, dtype=ENTRY)
    return np.concatenate([places for places, _ in found]), np.concatenate([entries for _, entries in found])


def recovered_seeds(tier: DiskTier) -> list[int]:
    return [seed_of(entry) for entry in recover(tier)[1]]


def wait_until(condition: Callable[[], bool]) -> None:
    end_s = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end_s, "did not come true"
        time.sleep(0.005)
