"""Leases and reads of blocks that are on disk only, from the call to its answer.

The store is a real one with little memory: before each run other blocks push the measured ones out of it. A lease waits
for all of its blocks, a get also copies them out. The ceiling is the I/O engine alone: the same blocks from the same
files in one batch, verified.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

import kvstore
from bench.disk import FOLDER
from bench.report import Result
from kvstore._core import blockio
from kvstore.config import Config
from kvstore.handle import Namespace
from kvstore.namespace import NamespaceSpec

KIB, MIB = 1 << 10, 1 << 20
TOKENS = 4
CASES = {"1x16k": (1, 16 * KIB), "16x16k": (16, 16 * KIB), "64x16k": (64, 16 * KIB)}
CASES |= {"1x2m": (1, 2 * MIB), "16x2m": (16, 2 * MIB), "64x2m": (64, 2 * MIB)}


class Rig:
    """A store in which `num_blocks` blocks can be made cold as often as one likes."""

    def __init__(self, folder: Path, num_blocks: int, block_nbytes: int) -> None:
        self.num_blocks, self.nbytes = num_blocks, block_nbytes
        near_nbytes = max(2 * MIB, num_blocks * block_nbytes)
        self.folder = folder
        self._store = kvstore.open(
            Config(
                host={"nbytes": near_nbytes, "prefault": "now"},
                disk={"path": folder, "nbytes": max(64 * MIB, 8 * near_nbytes), "segment_nbytes": 16 * MIB},
            )
        )
        spec = NamespaceSpec(model="cold", block_nbytes=block_nbytes, block_tokens=TOKENS)
        self.ns: Namespace = self._store.namespace(spec)
        self.keys = self._keys(0, num_blocks)
        self._filling = [self._keys(number, near_nbytes // block_nbytes) for number in (1, 2)]
        memory = mmap.mmap(-1, near_nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.madvise(mmap.MADV_HUGEPAGE)
        self.out = np.frombuffer(memory, np.uint8).reshape(-1, block_nbytes)
        self.out[:, :8] = np.arange(len(self.out))[:, None]
        self.ns.put(self.keys, self.out[:num_blocks])
        self._store.flush()

    def _keys(self, prompt: int, num_blocks: int) -> np.ndarray:
        return self.ns.keys(np.arange(num_blocks * TOKENS, dtype=np.uint32) + np.uint32(prompt * 10_000_000))

    def cool(self) -> None:
        """The measured blocks leave memory; the others, which pushed them out, leave the store."""
        for keys in self._filling:
            self.ns.put(keys, self.out[: len(keys)])
            self._store.flush()
            self.ns.remove(keys)
        assert self.ns.match(self.keys).by_tier == {"disk": self.num_blocks}

    def lease(self) -> None:
        with self.ns.lease(self.keys) as lease:
            assert lease.num_blocks == self.num_blocks

    def get(self) -> None:
        num_blocks, _ = self.ns.get(self.keys, self.out)
        assert num_blocks == self.num_blocks

    def engine_alone(self) -> float:
        """Seconds for one batch of the same blocks, straight from the engine."""
        index = self._store.index
        _, places, sums, _, _ = index.describe(index.find(self.keys))
        files = {place >> 16: self.folder / "segments" / f"{place >> 16:05d}.seg" for place in places.tolist()}
        opened = {number: os.open(file, os.O_RDONLY | os.O_DIRECT) for number, file in files.items()}
        fds = np.array([opened[place >> 16] for place in places.tolist()], np.int32)
        offsets = (places & 0xFFFF).astype(np.int64) * 4096
        buffers = [memoryview(row) for row in self.out[: self.num_blocks]]
        engine = blockio.Engine(4, depth=32)
        began = time.perf_counter()
        engine.submit(blockio.Batch(False, fds, offsets, buffers, checksums=sums))
        taken = engine.take()
        elapsed_s = time.perf_counter() - began
        assert taken is not None and not taken.outcomes.any()
        engine.stop()
        for descriptor in opened.values():
            os.close(descriptor)
        return elapsed_s

    def close(self) -> None:
        self._store.close(0)


def _median_ms(rig: Rig, call: Callable[[], object], num_runs: int) -> tuple[list[float], list[float]]:
    """Milliseconds of each cold call, and of the engine alone beside it."""
    ours, ceiling = [], []
    for _ in range(num_runs):
        rig.cool()
        began = time.perf_counter()
        call()
        ours.append((time.perf_counter() - began) * 1e3)
        ceiling.append(rig.engine_alone() * 1e3)
    return ours, ceiling


def cases(quick: bool) -> Iterator[Result]:
    num_runs = 2 if quick else 25
    for name, (num_blocks, block_nbytes) in CASES.items():
        if quick and num_blocks * block_nbytes > 32 * MIB:
            continue
        with tempfile.TemporaryDirectory(prefix="kvstore-bench-", dir=FOLDER) as folder:
            rig = Rig(Path(folder), num_blocks, block_nbytes)
            for verb, call in (("lease", rig.lease), ("get", rig.get)):
                ours, ceiling = _median_ms(rig, call, num_runs)
                yield Result(
                    "cold", f"{verb}_cold_{name}", float(np.median(ours)), "ms", float(np.median(ceiling)),
                    "the I/O engine alone", p50=float(np.median(ours)), p99=max(ours), runs=num_runs,
                )  # fmt: skip
            rig.close()
