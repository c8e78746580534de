"""The thread that writes new segment files once, ahead of their use."""

from __future__ import annotations

import errno
import logging
import threading

import numpy as np
from numpy.typing import NDArray

from kvstore.tiers.disk_io import monotonic_us
from kvstore.tiers.segment_files import SegmentFiles
from kvstore.tiers.segments import SegmentTable

READY_SEGMENTS = 2  # kept written and free, ahead of need
NO_ROOM_RETRY_US = 60_000_000

log = logging.getLogger(__name__)


class Preparer:
    """Keeps READY_SEGMENTS segments ready while files can be made; pauses when the file system has no room.

    `lock` guards `table` and `refusal`. A segment that is needed before it is ready is made by its first write instead.
    """

    def __init__(
        self, table: SegmentTable, lock: threading.Lock, files: SegmentFiles, cancel: NDArray[np.int32]
    ) -> None:
        self._table, self._lock = table, lock
        self._files, self._cancel = files, cancel
        self.refusal = ""  # why no file can be made for now
        self._retry_us: int | None = None  # when to try again; the thread's own
        self._wake = threading.Event()
        self._wake.set()
        self._thread = threading.Thread(target=self._run, name="kvstore-segments", daemon=True)
        self._thread.start()

    def look(self) -> None:
        """See whether segments are running out. Caller holds the lock."""
        if self._table.num_ready < READY_SEGMENTS and self._table.absent_usable:
            self._wake.set()

    def refuse(self, error: OSError) -> None:
        """The file system has no room, as somebody else found out. Caller holds the lock."""
        self.refusal = str(error)
        self._wake.set()

    def close(self) -> None:
        """Stop; cancel[0] is set by now."""
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        told = False
        while True:
            self._wake.wait(None if self._retry_us is None else max(0, self._retry_us - monotonic_us()) / 1e6)
            self._wake.clear()
            if self._cancel[0]:
                return
            if self._retry_us is not None and monotonic_us() >= self._retry_us:
                self._retry_us = None
                with self._lock:
                    self._table.absent_usable = True
            if self._prepare():
                self._retry_us = None
            elif self._retry_us is None:
                self._retry_us = monotonic_us() + NO_ROOM_RETRY_US
            told = self._tell(told)

    def _tell(self, told: bool) -> bool:
        """Log once that no more segments can be made, and once that they can again."""
        with self._lock:
            refusal = self.refusal
        if refusal and not told:
            log.warning("no more segments for now: %s", refusal)
        elif told and not refusal:
            log.warning("segments can be made again")
        return bool(refusal)

    def _prepare(self) -> bool:
        """False when the file system has no room."""
        while True:
            with self._lock:
                is_enough = self._table.num_ready >= READY_SEGMENTS
                segment = None if is_enough else self._table.take_absent()
                if segment is None:
                    return self._table.absent_usable
            try:
                self._files.prepare(segment, self._cancel)
            except OSError as error:
                with self._lock:
                    self._table.give_absent(segment, written=False)
                    if error.errno == errno.ECANCELED:
                        return True
                    self._table.refuse_absent(None)
                    self.refusal = str(error)
                return False
            with self._lock:
                self._table.give_absent(segment, written=True)
                self.refusal = ""
