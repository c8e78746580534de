"""Batches of block I/O on worker threads: a batch is split over them, each part is one call without the
GIL."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from kvstore._core import blockio
from kvstore.tiers.base import PLACE_NBYTES, Buffer, Outcome, Outcomes, Places
from kvstore.tiers.geometry import PLACES_PER_SEGMENT
from kvstore.tiers.segment_files import SegmentFiles

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Part:
    """What became of the blocks [first, last) of a batch."""

    first: int
    last: int
    outcomes: Outcomes
    checksums: NDArray[np.uint64]
    errnos: NDArray[np.int32]
    refused: set[int]  # segments whose file could not be opened or made


@dataclass(slots=True)
class Batch:
    """One write or read under way. `finish` hears of every part on a worker thread, before the future is
    done."""

    writing: bool
    places: Places
    buffers: Sequence[Buffer]
    checksums: NDArray[np.uint64]  # wanted ones of a read; of a write, whatever
    deadline_us: int | None  # CLOCK_MONOTONIC
    finish: Callable[[Part], None]
    outcomes: Outcomes = field(init=False)
    future: Future[Outcomes] = field(default_factory=Future)
    num_parts: int = 0  # still to come
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.outcomes = np.full(len(self.places), Outcome.CLOSED, dtype=np.uint8)
        self.future.set_running_or_notify_cancel()  # from here on nobody can cancel it


class DiskIO:
    """The worker threads. `submit` may be called from any thread, until close()."""

    def __init__(self, files: SegmentFiles, num_threads: int) -> None:
        self._files = files
        self._num_threads = num_threads
        self.cancel: NDArray[np.int32] = np.zeros(1, dtype=np.int32)
        self._workers = ThreadPoolExecutor(num_threads, thread_name_prefix="kvstore-disk")

    def submit(self, batch: Batch) -> Future[Outcomes]:
        """Start a batch in as many parts as there are threads; the future is done when all of them are."""
        size = -(-len(batch.places) // self._num_threads)
        firsts = range(0, len(batch.places), size)
        batch.num_parts = len(firsts)
        for first in firsts:
            self._workers.submit(self._run, batch, first, min(first + size, len(batch.places)))
        return batch.future

    def close(self) -> None:
        """Blocks that were not begun are CLOSED; returns when every future is done."""
        self.cancel[0] = 1
        self._workers.shutdown(wait=True)

    def _run(self, batch: Batch, first: int, last: int) -> None:
        try:
            part = self._transfer(batch, first, last)
        except Exception:
            log.exception("a batch of %d blocks failed", last - first)
            part = failed_part(first, last)
        batch.outcomes[first:last] = part.outcomes
        try:
            batch.finish(part)
        finally:
            with batch.lock:
                batch.num_parts -= 1
                is_last = batch.num_parts == 0
            if is_last:
                batch.future.set_result(batch.outcomes)

    def _transfer(self, batch: Batch, first: int, last: int) -> Part:
        places, buffers = batch.places[first:last], batch.buffers[first:last]
        checksums = batch.checksums[first:last]
        segments = places // PLACES_PER_SEGMENT
        offsets = (places % PLACES_PER_SEGMENT).astype(np.int64) * PLACE_NBYTES
        names, where = np.unique(segments, return_inverse=True)
        with self._files.borrow(names.tolist(), create=batch.writing) as descriptors:
            opened = np.array([descriptors[segment] for segment in names.tolist()], dtype=np.int32)
            fds = np.ascontiguousarray(opened[where])
            if batch.writing:
                outcomes, checksums, errnos = blockio.write_blocks(
                    fds, offsets, buffers, cancel=self.cancel, deadline_us=batch.deadline_us
                )
            else:
                outcomes, errnos = blockio.read_blocks(
                    fds, offsets, checksums, buffers, cancel=self.cancel, deadline_us=batch.deadline_us
                )
        unopened = (fds < 0) & (outcomes == Outcome.IO_ERROR)
        errnos[unopened] = -fds[unopened]
        refused = {segment for segment, descriptor in descriptors.items() if descriptor < 0}
        return Part(first, last, outcomes, checksums, errnos, refused)


def failed_part(first: int, last: int) -> Part:
    """The answer of a part that could not be tried."""
    size = last - first
    outcomes = np.full(size, Outcome.IO_ERROR, dtype=np.uint8)
    return Part(first, last, outcomes, np.zeros(size, np.uint64), np.zeros(size, np.int32), set())


def when_all_done(futures: list[Future[Outcomes]], call: Callable[[], None]) -> None:
    """Call `call` once, when the last of `futures` is done: at once, or on the thread that finishes it."""
    lock = threading.Lock()
    left = len(futures)

    def count_down(_: Future[Outcomes]) -> None:
        nonlocal left
        with lock:
            left -= 1
            is_last = left == 0
        if is_last:
            call()

    if not futures:
        call()
    for future in futures:
        future.add_done_callback(count_down)


def monotonic_us() -> int:
    """The machine's monotonic clock, which the core's deadlines refer to."""
    return time.monotonic_ns() // 1000
