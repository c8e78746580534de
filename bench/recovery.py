"""Opening a store over a disk tier that holds many blocks: from `kvstore.open` to the first answer.

The manifest is written by the tier's own code, in rows as group commits leave them; segment files have their size but
no bytes, because opening reads none. Chains are 64 blocks long. The ceiling is reading the manifest's file.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import kvstore
from bench.disk import FOLDER
from bench.report import Result
from kvstore.config import Config
from kvstore.namespace import NamespaceSpec
from kvstore.tiers.base import ENTRY, Entries
from kvstore.tiers.changes import Name, Put
from kvstore.tiers.disk import DiskTier
from kvstore.tiers.manifest import Manifest

MIB, GIB = 1 << 20, 1 << 30
SEGMENT_NBYTES = 256 * MIB
BLOCK_NBYTES = 128 << 10
PAGES = BLOCK_NBYTES // 4096
PER_SEGMENT = SEGMENT_NBYTES // BLOCK_NBYTES
PER_ROW = 128
CHAIN_BLOCKS = 64


def _entries(first: int, num: int, time_s: int) -> Entries:
    """Blocks number `first` and on: keys made from their numbers, each the child of the one before in its chain."""
    numbers = np.arange(first, first + num, dtype=np.uint64)
    entries = np.zeros(num, ENTRY)
    entries["key"] = _keys(numbers)
    heads = numbers % CHAIN_BLOCKS == 0
    entries["parent"][~heads] = _keys(numbers[~heads] - np.uint64(1))
    entries["offset"] = (numbers % PER_SEGMENT * PAGES).astype(np.uint32)
    entries["nbytes"], entries["num_tokens"], entries["namespace"] = BLOCK_NBYTES, 16, 1
    entries["time_s"] = time_s
    return entries


def _keys(numbers: np.ndarray) -> np.ndarray:
    """32 well mixed bytes for each number."""
    words = np.empty((len(numbers), 4), np.uint64)
    for column in range(4):
        mixed = numbers * np.uint64(0x9E3779B97F4A7C15) + np.uint64(column + 1)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        words[:, column] = mixed ^ (mixed >> np.uint64(31))
    return words.view(np.uint8).reshape(-1, 32)


def _fill(path: Path, num_entries: int, capacity_nbytes: int, spec: NamespaceSpec) -> None:
    """A folder as a tier with `num_entries` blocks leaves it."""
    DiskTier(path, capacity_nbytes=capacity_nbytes, segment_nbytes=SEGMENT_NBYTES).close()
    manifest = Manifest(path / "manifest", capacity_nbytes, 0)
    manifest.apply([Name(1, spec.text())])
    time_s = int(time.time())
    for segment in range(-(-num_entries // PER_SEGMENT)):
        with open(path / "segments" / f"{segment:05d}.seg", "wb") as file:
            file.truncate(SEGMENT_NBYTES)
        first = segment * PER_SEGMENT
        last = min(first + PER_SEGMENT, num_entries)
        for start in range(first, last, PER_ROW):
            entries = _entries(start, min(PER_ROW, last - start), time_s)
            manifest.apply([Put(segment, segment + 1, entries)])
    manifest.close()


def _measure(folder: Path, num_entries: int, num_runs: int) -> tuple[list[float], list[float]]:
    """Seconds of each opening, and of each reading of the manifest's file."""
    spec = NamespaceSpec(model="recovery", block_nbytes=BLOCK_NBYTES)
    num_segments = -(-num_entries // PER_SEGMENT)
    capacity_nbytes = (num_segments + num_segments // 8 + 8) * SEGMENT_NBYTES
    _fill(folder, num_entries, capacity_nbytes, spec)
    config = Config(
        host={"nbytes": 64 * MIB, "prefault": "off"},
        disk={"path": folder, "nbytes": capacity_nbytes, "segment_nbytes": SEGMENT_NBYTES},
    )
    opened, read = [], []
    keys = _keys(np.arange(CHAIN_BLOCKS, dtype=np.uint64))
    for _ in range(num_runs):
        began = time.perf_counter()
        store = kvstore.open(config)
        found = store.namespace(spec).match(keys)
        opened.append(time.perf_counter() - began)
        assert found.num_blocks == min(CHAIN_BLOCKS, num_entries)
        assert store.stats()["tiers"]["disk"]["blocks"] == num_entries
        store.close(0)
        began = time.perf_counter()
        (folder / "manifest" / "data.mdb").read_bytes()
        read.append(time.perf_counter() - began)
    return opened, read


def cases(quick: bool) -> Iterator[Result]:
    sizes = {"entries_100k": 100_000, "entries_1m": 1_000_000}
    for case, num_entries in sizes.items():
        with tempfile.TemporaryDirectory(prefix="kvstore-bench-", dir=FOLDER) as folder:
            num_runs = 1 if quick else 5
            num_entries = num_entries // 100 if quick else num_entries
            opened, read = _measure(Path(folder), num_entries, num_runs)
            os.sync()
        yield Result(
            "recovery", case, float(np.median(opened)), "s", float(np.median(read)), "read of the manifest",
            p50=float(np.median(opened)), p99=max(opened), runs=num_runs,
        )  # fmt: skip
