"""A trace file that is being written: bounded, and whole at any moment up to the last batch."""

from __future__ import annotations

import gzip
import os
from collections.abc import Sequence
from contextlib import suppress

from kvstore.errors import LimitExceeded, Unavailable

GZIP_LEVEL = 6


class TraceFile:
    """A new file for lines of a trace, of this user alone; of one thread. Errors: Unavailable, also when there is a
    file of this name already: it may be the only copy of an earlier recording.

    Each batch is appended whole: plain, or as a gzip member of its own. What a full disk cut is cut off again, so that
    the file can be read to its end whatever happens.
    """

    def __init__(self, path: str, nbytes_max: int) -> None:
        self._is_gzip = path.endswith(".gz")
        self._nbytes_max = nbytes_max
        self.nbytes = 0
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            raise Unavailable(f"{path}: there is such a file already; move it away or name another one") from None
        except OSError as error:
            raise Unavailable(f"{path}: {error.strerror}") from None

    def append(self, lines: Sequence[bytes]) -> int:
        """Append as many leading lines as the limit allows; how many. Errors: Unavailable; LimitExceeded when not even
        the first one fits."""
        data = b"".join(lines)
        packed = gzip.compress(data, GZIP_LEVEL, mtime=0) if self._is_gzip else data
        if self.nbytes + len(packed) <= self._nbytes_max:
            self._write(packed)
            return len(lines)
        if len(lines) == 1:
            raise LimitExceeded(f"trace.nbytes_max={self._nbytes_max} is reached")
        half = len(lines) // 2
        num_written = self.append(lines[:half])
        if num_written < half:
            return num_written
        try:
            return half + self.append(lines[half:])
        except LimitExceeded:
            return half

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._fd, self.nbytes)
            raise Unavailable(f"cannot be written: {error.strerror}") from None
        self.nbytes += len(data)

    def close(self) -> None:
        """Let go of it."""
        os.close(self._fd)
