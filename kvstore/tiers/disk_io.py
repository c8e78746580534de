"""Batches of block I/O: files are opened here, the engine (csrc/c/engine.h) transfers and checksums, a thread tells."""

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
from kvstore.errors import Unavailable
from kvstore.tiers.base import PLACE_NBYTES, Buffer, Outcome, Outcomes, Places
from kvstore.tiers.geometry import PLACES_PER_SEGMENT
from kvstore.tiers.segment_files import SegmentFiles

WATCH_US = 1_000_000

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Result:
    """What became of the blocks of a transfer."""

    outcomes: Outcomes
    checksums: NDArray[np.uint64]
    errnos: NDArray[np.int32]
    refused: frozenset[int] = frozenset()  # segments whose file could not be opened or made


@dataclass(slots=True)
class Transfer:
    """One write or read under way. `finish` hears its result on the collecting thread, before the future is done."""

    writing: bool
    places: Places
    buffers: Sequence[Buffer]
    checksums: NDArray[np.uint64]  # wanted ones of a read
    deadline_us: int | None  # CLOCK_MONOTONIC
    finish: Callable[[Result], None]
    future: Future[Outcomes] = field(default_factory=Future)
    descriptors: dict[int, int] = field(default_factory=dict)  # borrowed until the end

    def __post_init__(self) -> None:
        self.future.set_running_or_notify_cancel()  # from here on nobody can cancel it


class DiskIO:
    """Owns the engine, the thread that opens files and the one that collects results. Thread-safe until close().

    `watch` is called by the latter at least every WATCH_US while it waits for results.
    """

    def __init__(
        self,
        files: SegmentFiles,
        num_threads: int,
        depth: int,
        *,
        allow_ring: bool = True,
        watch: Callable[[], None] = lambda: None,
    ) -> None:
        self._files, self._watch = files, watch
        self._stopped = False
        self.cancel: NDArray[np.int32] = np.zeros(1, dtype=np.int32)
        self._engine = blockio.Engine(num_threads, depth=depth, allow_ring=allow_ring)
        self._opener = ThreadPoolExecutor(1, thread_name_prefix="kvstore-disk-open")
        self._collector = threading.Thread(target=self._collect, name="kvstore-disk", daemon=True)
        self._collector.start()

    @property
    def kind(self) -> str:
        """What transfers run on: "io_uring" or "threads"."""
        return self._engine.kind

    @property
    def refusal(self) -> str:
        """Why io_uring could not be used; "" when it is."""
        return self._engine.refusal

    def submit(self, transfer: Transfer) -> Future[Outcomes]:
        """Begin a transfer; never blocks on the file system."""
        segments = sorted(set((transfer.places // PLACES_PER_SEGMENT).tolist()))
        taken = self._files.take_open(segments)
        if taken is None:
            self._opener.submit(self._open_and_begin, transfer, segments)
        else:
            self._begin(transfer, taken)
        return transfer.future

    def close(self) -> None:
        """Blocks that were not begun are CLOSED; returns when every future is done."""
        self.cancel[0] = 1
        self._opener.shutdown(wait=True)
        self._engine.stop()
        self._stopped = True
        self._collector.join()

    def _open_and_begin(self, transfer: Transfer, segments: list[int]) -> None:
        try:
            self._begin(transfer, self._files.take(segments, create=transfer.writing))
        except Exception:
            log.exception("a transfer of %d blocks failed", len(transfer.places))
            self._end(transfer, failed(transfer, Outcome.IO_ERROR))

    def _begin(self, transfer: Transfer, descriptors: dict[int, int]) -> None:
        transfer.descriptors = descriptors
        segments = transfer.places // PLACES_PER_SEGMENT
        offsets = (transfer.places % PLACES_PER_SEGMENT).astype(np.int64) * PLACE_NBYTES
        fds = np.array([descriptors[segment] for segment in segments.tolist()], dtype=np.int32)
        checksums = None if transfer.writing else transfer.checksums
        batch = blockio.Batch(
            transfer.writing,
            fds,
            offsets,
            transfer.buffers,
            checksums=checksums,
            deadline_us=transfer.deadline_us,
            owner=(transfer, fds),
        )
        try:
            self._engine.submit(batch)
        except Unavailable:  # it has stopped
            self._end(transfer, failed(transfer, Outcome.CLOSED))

    def _collect(self) -> None:
        while True:
            stopped = self._stopped  # before the look: what is taken after the end of the engine is the last
            batch = self._engine.take(WATCH_US)
            if batch is None:
                if stopped:
                    return
                self._watch()
                continue
            transfer, fds = batch.owner
            batch.owner = None
            refused = frozenset(number for number, fd in transfer.descriptors.items() if fd < 0)
            if refused:
                unopened = (fds < 0) & (batch.outcomes == Outcome.IO_ERROR)
                batch.errnos[unopened] = -fds[unopened]
            self._end(transfer, Result(batch.outcomes, batch.checksums, batch.errnos, refused))

    def _end(self, transfer: Transfer, result: Result) -> None:
        self._files.give(transfer.descriptors)
        try:
            transfer.finish(result)
        except Exception:
            log.exception("the result of %d blocks could not be noted", len(transfer.places))
        finally:
            transfer.future.set_result(result.outcomes)


def failed(transfer: Transfer, outcome: Outcome) -> Result:
    """All blocks alike, none of them transferred."""
    num = len(transfer.places)
    return Result(np.full(num, outcome, np.uint8), np.zeros(num, np.uint64), np.zeros(num, np.int32))


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
