"""Gathers, scatters and contiguous copies through copy_pieces, source and destination cold.

Every sample moves 2 MiB between two regions of private memory in huge pages which are walked through from end
to end, so that nothing is in a cache when its turn comes. Rounds go through all cases in changing order; a
turn starts with untimed samples of its own case, because what memcpy leaves dirty in the last cache would
otherwise be written back in the time of its successor. Rates are of thread CPU time: a neighbour that takes
the core away does not count, one that takes the memory bus does.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from bench.report import Result
from kvstore._core import transfer

SAMPLE_NBYTES = 2 << 20
SEED = 20240611

Addresses = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured: bytes of either region, rounds, samples of a turn before and under the clock."""

    region_nbytes: int
    num_rounds: int
    num_untimed: int
    num_timed: int


FULL = Plan(1 << 30, 40, 32, 8)  # 64 MiB untimed: twice the last cache of the processors measured so far
QUICK = Plan(64 << 20, 1, 1, 2)


@dataclass(slots=True)
class Shape:
    """One way to cut 2 MiB: `num_pieces` per call, scattered or consecutive on either side."""

    name: str
    piece_nbytes: int
    num_pieces: int
    scattered_dst: bool
    scattered_src: bool


GATHER_32K = Shape("gather_64x32k", 32 << 10, 64, False, True)
SCATTER_32K = Shape("scatter_64x32k", 32 << 10, 64, True, False)
GATHER_4K = Shape("gather_64x4k", 4 << 10, 64, False, True)
SCATTER_4K = Shape("scatter_64x4k", 4 << 10, 64, True, False)
CONTIGUOUS_2M = Shape("contiguous_2m", 2 << 20, 1, False, False)
SHAPES = (GATHER_32K, SCATTER_32K, GATHER_4K, SCATTER_4K, CONTIGUOUS_2M)


@dataclass(slots=True)
class Case:
    """One shape copied by one kernel, and the rates of its samples in GB/s."""

    shape: Shape
    kernel: str
    rates: list[float] = field(default_factory=list)

    def rate(self) -> float:
        return float(np.median(self.rates))


class Region:
    """Private memory in huge pages, written once so that every page is its own."""

    def __init__(self, nbytes: int, fill: int) -> None:
        self.map = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.map.madvise(mmap.MADV_HUGEPAGE)
        self.bytes = np.frombuffer(self.map, dtype=np.uint8)
        self.bytes.fill(fill)

    def addresses(self, piece_nbytes: int, scattered: bool, rng: np.random.Generator) -> Addresses:
        addresses = transfer.piece_addresses(self.bytes, piece_nbytes, writable=True)
        return rng.permutation(addresses) if scattered else addresses


class Walk:
    """The batches of one shape, through both regions from end to end and round again."""

    def __init__(self, shape: Shape, dst: Region, src: Region, rng: np.random.Generator) -> None:
        dst_addresses = dst.addresses(shape.piece_nbytes, shape.scattered_dst, rng)
        src_addresses = src.addresses(shape.piece_nbytes, shape.scattered_src, rng)
        num_batches = SAMPLE_NBYTES // (shape.piece_nbytes * shape.num_pieces)
        self.samples = [
            list(zip(np.split(d, num_batches), np.split(s, num_batches), strict=True))
            for d, s in zip(_samples(dst_addresses, shape), _samples(src_addresses, shape), strict=True)
        ]
        self.nbytes = shape.piece_nbytes

    def sample(self, position: int, kernel: str) -> float:
        """The rate in GB/s of copying the 2 MiB at `position`."""
        # Copied so that the addresses are in cache, as they are for a caller that has just computed them.
        batches = [(dst.copy(), src.copy()) for dst, src in self.samples[position % len(self.samples)]]
        copy_pieces, nbytes = transfer.copy_pieces, self.nbytes
        start_ns = time.thread_time_ns()
        for dst, src in batches:
            copy_pieces(dst, src, nbytes, kernel)
        return SAMPLE_NBYTES / (time.thread_time_ns() - start_ns)


def _samples(addresses: Addresses, shape: Shape) -> list[Addresses]:
    return np.split(addresses, addresses.size * shape.piece_nbytes // SAMPLE_NBYTES)


def measure(cases: Sequence[Case], quick: bool) -> None:
    """Fill in the rates of all cases."""
    plan = QUICK if quick else FULL
    rng = np.random.default_rng(SEED)
    dst, src = Region(plan.region_nbytes, 0), Region(plan.region_nbytes, 1)
    walks = {shape.name: Walk(shape, dst, src, rng) for shape in (case.shape for case in cases)}
    position = 0
    for _ in range(plan.num_rounds):
        for index in rng.permutation(len(cases)):
            case = cases[index]
            for number in range(plan.num_untimed + plan.num_timed):
                rate = walks[case.shape.name].sample(position, case.kernel)
                position += 1
                if number >= plan.num_untimed:
                    case.rates.append(rate)


def cases(quick: bool) -> Iterator[Result]:
    nt_kernels = [name for name in transfer.kernels() if name not in ("auto", "memcpy")]
    own = [Case(shape, "auto") for shape in SHAPES]
    memcpy = [Case(shape, "memcpy") for shape in SHAPES]
    ceilings = [Case(CONTIGUOUS_2M, kernel) for kernel in nt_kernels or ["memcpy"]]
    measure([*own, *memcpy, *ceilings], quick)
    ceiling = max(ceilings, key=Case.rate)
    for case, plain in zip(own, memcpy, strict=True):
        yield result("copy", case.shape.name, case, ceiling, f"{case.rate() / plain.rate():.2f} x memcpy")
    for case in memcpy:
        yield result("copy", f"memcpy_{case.shape.name}", case, ceiling)


def result(bench: str, name: str, case: Case, ceiling: Case, detail: str | None = None) -> Result:
    return Result(
        bench,
        name,
        case.rate(),
        "GB/s",
        ceiling.rate(),
        f"contiguous {ceiling.kernel}",
        p50=case.rate(),
        p99=float(np.percentile(case.rates, 1)),
        runs=len(case.rates),
        detail=detail,
    )
