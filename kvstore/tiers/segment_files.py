"""The segment files of the disk tier: segments/NNNNN.seg, all of one size, preallocated and rewritten in
place.

Rewriting blocks of a file that were written once is several times faster than filling unwritten extents, and
frees nothing, so a file is filled with zeros before its first use where that can be done ahead, and never
shrinks again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kvstore._core import blockio
from kvstore.tiers.disk_folder import sync_names

OPEN_FILES_MAX = 256  # beyond that the longest unused ones are closed; files in use do not count


class SegmentFiles:
    """Opens, makes, syncs and removes segment files. Thread-safe."""

    def __init__(self, folder: Path, segment_nbytes: int, free_nbytes_min: int = 0) -> None:
        self._folder = folder
        self._segment_nbytes = segment_nbytes
        self._free_nbytes_min = free_nbytes_min  # of the file system, after a file was made; 0: no such limit
        self._lock = threading.Lock()
        self._idle: OrderedDict[int, int] = OrderedDict()  # segment → descriptor, the longest unused first
        self._in_use: dict[int, tuple[int, int]] = {}  # segment → (descriptor, number of users)

    def path(self, segment: int) -> Path:
        """The file of a segment."""
        return self._folder / f"{segment:05d}.seg"

    def existing(self, num_segments: int) -> set[int]:
        """The segments below `num_segments` that have a file of the right size."""
        found = set()
        for path in self._folder.glob("*.seg"):
            segment = int(path.stem) if path.stem.isdecimal() else num_segments
            is_named_so = segment < num_segments and path.name == self.path(segment).name
            if is_named_so and path.stat().st_size == self._segment_nbytes:
                found.add(segment)
        return found

    def remove_others(self, kept: set[int]) -> None:
        """Remove every segment file, also half-made ones, but those of `kept`. Errors: OSError."""
        names = {self.path(segment).name for segment in kept}
        for path in self._folder.glob("*.seg*"):
            if path.name not in names:
                path.unlink()

    def take(self, segments: Iterable[int], *, create: bool) -> dict[int, int]:
        """Descriptors of the segments' files, open until they are given back.

        One that cannot be opened (`create`: or made) is given as minus the errno.
        """
        taken: dict[int, int] = {}
        for segment in segments:
            try:
                taken[segment] = self._take(segment, create)
            except OSError as error:
                taken[segment] = -(error.errno or errno.EIO)
        return taken

    def take_open(self, segments: Iterable[int]) -> dict[int, int] | None:
        """As take, but never blocks on the file system: None when one of the files is not open already."""
        with self._lock:
            wanted = list(segments)
            if all(segment in self._in_use or segment in self._idle for segment in wanted):
                return {segment: self._use(segment) for segment in wanted}
        return None

    def give(self, taken: dict[int, int]) -> None:
        """End a take."""
        with self._lock:
            for segment, descriptor in taken.items():
                if descriptor >= 0:
                    self._give(segment)

    def prepare(self, segment: int, cancel: NDArray[np.int32]) -> None:
        """Make the file and write it once, all zeros; nothing is left of it on failure.

        Errors: OSError; ECANCELED once cancel[0] is non-zero.
        """
        path = self.path(segment)
        fresh = path.with_suffix(".seg-new")  # a half-written file must not look like a finished one
        try:
            descriptor = self._make(fresh)
            try:
                code = blockio.zero_fill(descriptor, 0, self._segment_nbytes, cancel=cancel)
                if code:
                    raise OSError(code, os.strerror(code), str(path))
                os.fdatasync(descriptor)
            finally:
                os.close(descriptor)
            fresh.rename(path)
            self._sync_folder()
        except OSError:
            with contextlib.suppress(OSError):
                fresh.unlink(missing_ok=True)
            raise

    def sync(self, segment: int) -> None:
        """Make what was written to the segment durable. Errors: OSError."""
        descriptor = self._take(segment, False)
        try:
            os.fdatasync(descriptor)
        finally:
            self.give({segment: descriptor})

    def close(self) -> None:
        """Close every file; none may be borrowed."""
        with self._lock:
            assert not self._in_use
            for descriptor in self._idle.values():
                os.close(descriptor)
            self._idle.clear()

    def _take(self, segment: int, create: bool) -> int:
        with self._lock:
            if segment in self._in_use or segment in self._idle:
                return self._use(segment)
        descriptor = self._open(segment, create)  # without the lock: it may take the file system a while
        with self._lock:
            if segment in self._in_use or segment in self._idle:  # opened by somebody else meanwhile
                os.close(descriptor)
            else:
                self._idle[segment] = descriptor
            return self._use(segment)

    def _use(self, segment: int) -> int:
        """Count one more user of an open file. Caller holds the lock."""
        descriptor, num_users = self._in_use.get(segment, (-1, 0))
        if num_users == 0:
            descriptor = self._idle.pop(segment)
        self._in_use[segment] = (descriptor, num_users + 1)
        return descriptor

    def _give(self, segment: int) -> None:
        """Caller holds the lock."""
        descriptor, num_users = self._in_use.pop(segment)
        if num_users > 1:
            self._in_use[segment] = (descriptor, num_users - 1)
            return
        self._idle[segment] = descriptor
        if len(self._idle) > OPEN_FILES_MAX:
            os.close(self._idle.popitem(last=False)[1])

    def _open(self, segment: int, create: bool) -> int:
        path = self.path(segment)
        try:
            return open_direct(path, os.O_RDWR)
        except FileNotFoundError:
            if not create:
                raise
        descriptor = self._make(path)
        self._sync_folder()
        return descriptor

    def _make(self, path: Path) -> int:
        """A new file with all its space reserved but not yet written; nothing is left of it on failure."""
        if self._free_nbytes_min:
            self._check_floor(path)
        descriptor = open_direct(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        try:
            os.posix_fallocate(descriptor, 0, self._segment_nbytes)
        except OSError:
            os.close(descriptor)
            path.unlink(missing_ok=True)
            raise
        return descriptor

    def _check_floor(self, path: Path) -> None:
        """Errors: OSError with ENOSPC, as if the file system were full already."""
        system = os.statvfs(self._folder)
        free_nbytes = system.f_bavail * system.f_frsize
        if free_nbytes - self._segment_nbytes < self._free_nbytes_min:
            text = f"{free_nbytes} bytes free, of which disk.free_nbytes_min={self._free_nbytes_min} have to stay so"
            raise OSError(errno.ENOSPC, text, str(path))

    def _sync_folder(self) -> None:
        """Make new names durable before anything refers to them."""
        sync_names(self._folder)


def open_direct(path: Path, flags: int) -> int:
    """Open past the page cache where the file system can, else through it. Errors: OSError."""
    try:
        return os.open(path, flags | os.O_CLOEXEC | os.O_DIRECT, 0o600)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.open(path, flags | os.O_CLOEXEC, 0o600)
