"""The thread that writes new segment files once, ahead of their use."""

from __future__ import annotations

import errno
import logging
import threading

import numpy as np
from numpy.typing import NDArray

from kvstore.tiers.segment_files import SegmentFiles
from kvstore.tiers.segments import SegmentTable

READY_SEGMENTS = 2  # kept written and free, ahead of need
NO_ROOM_RETRY_S = 60.0

log = logging.getLogger(__name__)


class Preparer:
    """Keeps READY_SEGMENTS segments ready while files can be made; pauses when the file system has no room.

    `lock` guards `table`. A segment that is needed before it is ready is made by its first write instead.
    """

    def __init__(
        self, table: SegmentTable, lock: threading.Lock, files: SegmentFiles, cancel: NDArray[np.int32]
    ) -> None:
        self._table, self._lock = table, lock
        self._files, self._cancel = files, cancel
        self._wake = threading.Event()
        self._wake.set()
        self._thread = threading.Thread(target=self._run, name="kvstore-segments", daemon=True)
        self._thread.start()

    def look(self) -> None:
        """See whether segments are running out. Caller holds the lock."""
        if self._table.num_ready < READY_SEGMENTS:
            self._wake.set()

    def close(self) -> None:
        """Stop; cancel[0] is set by now."""
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        pause_s: float | None = None
        while True:
            is_over = not self._wake.wait(pause_s)
            self._wake.clear()
            if self._cancel[0]:
                return
            if is_over:
                with self._lock:
                    self._table.absent_usable = True
            pause_s = None if self._prepare() else NO_ROOM_RETRY_S

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
                log.warning("no more segments for now: %s", error)
                return False
            with self._lock:
                self._table.give_absent(segment, written=True)
