"""Reading many blocks of segment files to see whether their bytes are right; the bytes themselves are not kept."""

from __future__ import annotations

import mmap
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future

import numpy as np
from numpy.typing import NDArray

from kvstore.tiers.base import PLACE_NBYTES, Entries, Outcomes, Places
from kvstore.tiers.disk_io import DiskIO, Result, Transfer
from kvstore.tiers.segment_files import SegmentFiles

BATCH_NBYTES = 32 << 20
NUM_BATCHES = 2  # under way at a time: the device reads one while the other is looked at
IO_THREADS = 8
IO_DEPTH = 32


def verify_blocks(
    files: SegmentFiles, places: Places, entries: Entries, advance: Callable[[int], None]
) -> tuple[Outcomes, NDArray[np.int32]]:
    """An Outcome and an errno for each block; `advance` hears how many more are done, on this thread.

    Blocks are read in the order of their places, each once, in two windows of BATCH_NBYTES (or one block).
    """
    outcomes = np.zeros(len(places), dtype=np.uint8)
    errnos = np.zeros(len(places), dtype=np.int32)
    if len(places) == 0:
        return outcomes, errnos
    sizes = -(-entries["nbytes"].astype(np.int64) // PLACE_NBYTES) * PLACE_NBYTES
    order = np.argsort(places, kind="stable")
    window_nbytes = max(BATCH_NBYTES, int(sizes.max()))
    idle = [mmap.mmap(-1, window_nbytes) for _ in range(NUM_BATCHES)]  # whole pages, as direct I/O wants them
    reading: deque[tuple[NDArray[np.int64], mmap.mmap, Future[Outcomes]]] = deque()
    io = DiskIO(files, IO_THREADS, IO_DEPTH)

    def collect() -> None:
        positions, window, future = reading.popleft()
        outcomes[positions] = future.result()
        idle.append(window)
        advance(len(positions))

    try:
        for positions in _batches(order, sizes, window_nbytes):
            if not idle:
                collect()
            window = idle.pop()
            reading.append((positions, window, _read(io, places, entries, positions, window, errnos)))
        while reading:
            collect()
    finally:
        io.close()
    return outcomes, errnos


def _batches(order: NDArray[np.int64], sizes: NDArray[np.int64], window_nbytes: int) -> list[NDArray[np.int64]]:
    """`order` cut into pieces that fit into a window."""
    ends = np.cumsum(sizes[order])
    pieces, begin, done_nbytes = [], 0, 0
    while begin < len(order):
        end = int(np.searchsorted(ends, done_nbytes + window_nbytes, side="right"))
        pieces.append(order[begin:end])
        begin, done_nbytes = end, int(ends[end - 1])
    return pieces


def _read(
    io: DiskIO,
    places: Places,
    entries: Entries,
    positions: NDArray[np.int64],
    window: mmap.mmap,
    errnos: NDArray[np.int32],
) -> Future[Outcomes]:
    chosen = entries[positions]
    nbytes = chosen["nbytes"].astype(np.int64)
    starts = np.concatenate([[0], np.cumsum(-(-nbytes // PLACE_NBYTES) * PLACE_NBYTES)[:-1]])
    whole = memoryview(window)
    buffers = [whole[start : start + size] for start, size in zip(starts.tolist(), nbytes.tolist(), strict=True)]

    def finish(result: Result) -> None:
        errnos[positions] = result.errnos

    checksums = chosen["checksum"].astype(np.uint64)
    return io.submit(Transfer(False, places[positions], buffers, checksums, None, finish))
