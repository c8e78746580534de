"""The disk tier against fio on the same files: same block size, same depth, both from memory in huge pages.

A round is one run of the tier and one of fio, in turn; figures are medians over the rounds. Segments were written
before, as they are in a tier that has been in use. A write's time ends when every block is readable; `durable_2m` ends
when flush() has returned, and so do the two peers: 2 MiB values in LMDB, and one file for each block.
"""

from __future__ import annotations

import mmap
import os
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lmdb
import numpy as np

from bench import fio
from bench.report import Result
from kvstore._core import blockio
from kvstore.tiers.base import ENTRY, Entries, Places
from kvstore.tiers.disk import DiskTier

MIB = 1 << 20
BATCHES_UNDER_WAY = 3  # so that the queue never runs dry between two batches
FOLDER = os.environ.get("KVSTORE_BENCH_FOLDER")  # where the files go; the temporary folder otherwise


@dataclass(frozen=True, slots=True)
class Plan:
    """How much a round moves, and how many rounds there are."""

    round_nbytes: int
    segment_nbytes: int
    num_rounds: int


FULL = Plan(1 << 30, 128 * MIB, 7)
QUICK = Plan(16 * MIB, 4 * MIB, 1)


@dataclass(slots=True)
class Samples:
    """What the rounds of one case gave."""

    ours: list[float] = field(default_factory=list)  # GB/s
    ceiling: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)  # per GB, the whole process


class Rig:
    """A disk tier, buffers in huge pages, and a clock around transfers. `depth`: of the tier's I/O engine."""

    def __init__(self, folder: Path, plan: Plan, block_nbytes: int, depth: int) -> None:
        self.plan, self.nbytes, self.depth = plan, block_nbytes, depth
        self.num_blocks = plan.round_nbytes // block_nbytes
        self.path = folder
        num_segments = 2 * (plan.round_nbytes // plan.segment_nbytes) + 3
        self.tier = DiskTier(
            folder,
            capacity_nbytes=num_segments * plan.segment_nbytes,
            segment_nbytes=plan.segment_nbytes,
            io_depth=depth,
        )
        self.tier.adopt(np.empty(0, np.uint32), np.empty(0, np.uint32))
        self.memory = mmap.mmap(-1, max(64 * MIB, 2 * block_nbytes), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.memory.madvise(mmap.MADV_HUGEPAGE)
        np.frombuffer(self.memory, np.uint8)[:] = np.random.default_rng(1).integers(0, 256, len(self.memory), np.uint8)
        view = memoryview(self.memory)
        self.buffers = [view[at : at + block_nbytes] for at in range(0, len(view), block_nbytes)]
        self.places: Places = np.empty(0, np.uint32)
        self.entries: Entries = np.empty(0, ENTRY)

    def allocate(self) -> None:
        """Places for a round, once the segments of the round before are clean."""
        self.places = self.tier.allocate(self.nbytes, self.num_blocks)
        while len(self.places) < self.num_blocks:
            time.sleep(0.01)
            more = self.tier.allocate(self.nbytes, self.num_blocks - len(self.places))
            self.places = np.concatenate([self.places, more])
        self.entries = np.zeros(self.num_blocks, ENTRY)

    def free(self) -> None:
        self.tier.free(self.places, self.nbytes)
        self.tier.flush().result()

    def _batches(self) -> Iterator[tuple[slice, list[memoryview]]]:
        size = min(max(1, self.depth), len(self.buffers) // BATCHES_UNDER_WAY)
        for number, first in enumerate(range(0, self.num_blocks, size)):
            last = min(first + size, self.num_blocks)
            at = number % BATCHES_UNDER_WAY * size
            yield slice(first, last), self.buffers[at : at + last - first]

    def _drive(self, start: Callable[[slice, list[memoryview]], Future[Any]]) -> None:
        under_way: deque[Future[Any]] = deque()
        for which, buffers in self._batches():
            if len(under_way) == BATCHES_UNDER_WAY:
                assert not under_way.popleft().result().any()
            under_way.append(start(which, buffers))
        for future in under_way:
            assert not future.result().any()

    def write(self) -> None:
        self._drive(lambda which, buffers: self.tier.write(self.places[which], self.entries[which], buffers))

    def read_verified(self) -> None:
        checksums = np.ascontiguousarray(self.entries["checksum"])
        self._drive(lambda which, buffers: self.tier.read(self.places[which], checksums[which], buffers))

    def read(self) -> None:
        """Straight through the engine, which does not verify what it is given no checksum for."""
        files = self.files()
        descriptors = np.array([os.open(file, os.O_RDONLY | os.O_DIRECT) for file in files], np.int32)
        numbers = {int(file.stem): at for at, file in enumerate(files)}
        fds = descriptors[[numbers[place >> 16] for place in self.places.tolist()]]
        offsets = (self.places & 0xFFFF).astype(np.int64) * 4096
        engine = blockio.Engine(4, depth=self.depth)
        under_way = 0
        for which, buffers in self._batches():
            if under_way == BATCHES_UNDER_WAY:
                taken = engine.take()
                assert taken is not None and not taken.outcomes.any()
                under_way -= 1
            engine.submit(blockio.Batch(False, fds[which], offsets[which], buffers))
            under_way += 1
        for _ in range(under_way):
            engine.take()
        engine.stop()
        for descriptor in descriptors.tolist():
            os.close(descriptor)

    def files(self) -> list[Path]:
        """Segments that hold the round's blocks."""
        return [self.path / "segments" / f"{number:05d}.seg" for number in np.unique(self.places >> 16).tolist()]

    def timed(self, run: Callable[[], None], samples: Samples) -> None:
        began, cpu = time.perf_counter(), time.process_time()
        run()
        elapsed_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu
        samples.ours.append(self.plan.round_nbytes / elapsed_s / 1e9)
        samples.cpu_ms.append(cpu_s * 1e3 / (self.plan.round_nbytes / 1e9))

    def ceiling(self, writing: bool) -> float:
        return fio.bandwidth(
            self.files(),
            writing=writing,
            block_nbytes=self.nbytes,
            depth=self.depth,
            total_nbytes=self.plan.round_nbytes,
        )


def _results(case: str, samples: Samples, cpu_case: bool = True) -> Iterator[Result]:
    value, ceiling = float(np.median(samples.ours)), float(np.median(samples.ceiling))
    cpu_ms = float(np.median(samples.cpu_ms))
    pairs = np.array(samples.ours) / np.array(samples.ceiling)
    detail = f"{cpu_ms:.0f} ms CPU per GB; pairs {pairs.min():.2f} to {pairs.max():.2f}"
    yield Result("disk", case, value, "GB/s", ceiling, "fio", runs=len(samples.ours), detail=detail)
    if cpu_case:
        yield Result("disk", f"cpu_{case}", cpu_ms, "ms/GB", runs=len(samples.ours))


def _written_sectors(path: Path) -> int | None:
    """Sectors that the device under `path` has written since boot; None where that is not to be known."""
    device = path.stat().st_dev
    stat = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat")
    return int(stat.read_text().split()[6]) if stat.exists() else None


def _writes(rig: Rig, case: str) -> Iterator[Result]:
    samples = Samples()
    rig.allocate()
    rig.write()  # the files are new: once over them, uncounted
    rig.free()
    for _ in range(rig.plan.num_rounds):
        rig.allocate()
        rig.timed(rig.write, samples)
        samples.ceiling.append(rig.ceiling(writing=True))
        rig.free()
    yield from _results(case, samples)


def _amplification(rig: Rig, case: str) -> Iterator[Result]:
    """Bytes that the device wrote for each byte of payload, manifest included; the least of the rounds, because others
    may write to the same device."""
    found = []
    for _ in range(rig.plan.num_rounds):
        rig.allocate()
        os.sync()
        before = _written_sectors(rig.path)
        rig.write()
        rig.tier.flush().result()
        after = _written_sectors(rig.path)
        rig.free()
        if before is not None and after is not None:
            found.append((after - before) * 512 / rig.plan.round_nbytes)
    if found:
        yield Result("disk", case, min(found), "bytes/byte", 1.0, "payload", runs=len(found))


def _reads(rig: Rig, cases: dict[str, Callable[[Rig], Callable[[], None]]]) -> Iterator[Result]:
    samples = {case: Samples() for case in cases}
    rig.allocate()
    rig.write()
    for _ in range(rig.plan.num_rounds):
        for case, method in cases.items():
            rig.timed(method(rig), samples[case])
        ceiling = rig.ceiling(writing=False)
        for one in samples.values():
            one.ceiling.append(ceiling)
    rig.free()
    for case, one in samples.items():
        yield from _results(case, one)


def _durable(rig: Rig) -> list[float]:
    rates = []
    for _ in range(rig.plan.num_rounds):
        rig.allocate()
        began = time.perf_counter()
        rig.write()
        rig.tier.flush().result()
        rates.append(rig.plan.round_nbytes / (time.perf_counter() - began) / 1e9)
        rig.free()
    return rates


def _lmdb_values(folder: Path, rig: Rig) -> float:
    """GB/s of durable transactions of 16 values each."""
    env = lmdb.open(str(folder / "lmdb"), map_size=4 * rig.plan.round_nbytes + (64 << 20), lib_version=0)
    began = time.perf_counter()
    for first in range(0, rig.num_blocks, 16):
        with env.begin(write=True) as txn:
            for number in range(first, min(first + 16, rig.num_blocks)):
                txn.put(number.to_bytes(32, "big"), rig.buffers[number % len(rig.buffers)])
    elapsed_s = time.perf_counter() - began
    env.close()
    shutil.rmtree(folder / "lmdb")
    return rig.plan.round_nbytes / elapsed_s / 1e9


def _file_per_block(folder: Path, rig: Rig) -> float:
    """GB/s of one durable file for each block."""
    (folder / "blocks").mkdir()
    began = time.perf_counter()
    for number in range(rig.num_blocks):
        descriptor = os.open(folder / "blocks" / str(number), os.O_WRONLY | os.O_CREAT)
        os.write(descriptor, rig.buffers[number % len(rig.buffers)])
        os.fdatasync(descriptor)
        os.close(descriptor)
    elapsed_s = time.perf_counter() - began
    shutil.rmtree(folder / "blocks")
    return rig.plan.round_nbytes / elapsed_s / 1e9


def _peers(folder: Path, rig: Rig) -> Iterator[Result]:
    durable = float(np.median(_durable(rig)))
    yield Result("disk", "durable_2m", durable, "GB/s", runs=rig.plan.num_rounds)
    for case, run in (("lmdb_values_2m", _lmdb_values), ("file_per_block_2m", _file_per_block)):
        value = run(folder, rig)
        detail = f"the tier is {durable / value:.1f} x as fast"
        yield Result("disk", case, value, "GB/s", durable, "durable_2m", runs=1, detail=detail)


def _in_folder(folder: Path, plan: Plan) -> Iterator[Result]:
    large, small = (2 * MIB, 128 << 10) if plan is FULL else (512 << 10, 128 << 10)
    verified: Callable[[Rig], Callable[[], None]] = lambda rig: rig.read_verified  # noqa: E731
    for depth in (4, 16):
        rig = Rig(folder / f"large-{depth}", plan, large, depth)
        yield from _writes(rig, f"write_2m_qd{depth}")
        if depth == 4:
            yield from _reads(rig, {"read_2m_qd4": lambda rig: rig.read, "read_verified_2m_qd4": verified})
            yield from _amplification(rig, "written_2m")
            yield from _peers(folder, rig)
        rig.tier.close()
        shutil.rmtree(rig.path)
    rig = Rig(folder / "small", plan, small, 16)
    yield from _writes(rig, "write_128k_qd16")
    yield from _reads(rig, {"read_verified_128k_qd16": verified})
    yield from _amplification(rig, "written_128k")
    rig.tier.close()


def cases(quick: bool) -> Iterator[Result]:
    fio.require()
    with tempfile.TemporaryDirectory(prefix="kvstore-bench-", dir=FOLDER) as folder:
        yield from _in_folder(Path(folder), QUICK if quick else FULL)
