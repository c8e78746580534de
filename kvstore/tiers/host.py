"""Host memory: an arena of slots. Blocks are read in place; the store hands out views and leases, not copies."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future

import numpy as np
from numpy.typing import NDArray

from kvstore._core.arena import Arena
from kvstore.hashing import xxh3_64
from kvstore.tiers.base import (
    Buffer,
    Entries,
    Outcome,
    Outcomes,
    Places,
    Usage,
    done,
    outcome_before,
)
from kvstore.tiers.checks import check_batch, check_entries, check_size, pages_of_buffers


class HostTier:
    """The Tier contract over an Arena. Reads and writes are copies made at once, by the caller's thread."""

    name = "host"

    def __init__(self, capacity_nbytes: int, *, shared: bool = False, base_pages: bool = False) -> None:
        self.arena = Arena(capacity_nbytes, shared=shared, base_pages=base_pages)
        self.is_shared = shared  # with other processes, if they are given it
        self._closed = False

    def allocate(self, nbytes: int, num_blocks: int, *, moving: bool = False) -> Places:
        """Places in the arena; fewer when it is full, none when it is closed."""
        check_size(nbytes, num_blocks)
        if self._closed:
            return np.empty(0, dtype=np.uint32)
        return self.arena.allocate(nbytes, num_blocks)

    def free(self, places: Places, nbytes: int, *, forget: bool = False) -> None:
        """Give places back; nothing outlives the process, so there is nothing to forget. After close they are gone."""
        if not self._closed:
            self.arena.free(places, nbytes)

    def write(
        self, places: Places, entries: Entries, buffers: Sequence[Buffer], deadline_us: int | None = None
    ) -> Future[Outcomes]:
        """Copy buffers into their slots. Errors: InvalidRequest for one that its slot was not allocated for."""
        _, nbytes = pages_of_buffers(buffers, writable=False)
        check_batch(places, buffers)
        check_entries(entries, len(places))
        refused = outcome_before(self._closed, deadline_us)
        if refused is not None:
            return done(np.full(len(places), refused, dtype=np.uint8))
        for size in np.unique(nbytes):
            self.arena.require_allocated(places[nbytes == size], int(size))
        for position, (place, buffer) in enumerate(zip(places, buffers, strict=True)):
            entries["checksum"][position] = xxh3_64(buffer)
            entries["nbytes"][position] = len(buffer)
            window = self.arena.window(np.array([place], np.uint32), len(buffer), readonly=False)
            window.views[0][:] = buffer
            window.close()
        return done(np.zeros(len(places), dtype=np.uint8))

    def read(
        self,
        places: Places,
        checksums: NDArray[np.uint64],
        buffers: Sequence[Buffer],
        deadline_us: int | None = None,
    ) -> Future[Outcomes]:
        """Copy slots out and verify."""
        pages_of_buffers(buffers, writable=True)
        check_batch(places, buffers)
        check_batch(checksums, buffers, name="checksums", dtype=np.dtype(np.uint64))
        refused = outcome_before(self._closed, deadline_us)
        if refused is not None:
            return done(np.full(len(places), refused, dtype=np.uint8))
        outcomes = np.zeros(len(places), dtype=np.uint8)
        for position, (place, buffer) in enumerate(zip(places, buffers, strict=True)):
            window = self.arena.window(np.array([place], np.uint32), len(buffer), readonly=True)
            buffer[:] = window.views[0]
            window.close()
            if xxh3_64(buffer) != checksums[position]:
                outcomes[position] = Outcome.CORRUPT
        return done(outcomes)

    def vacate(self, nbytes: int) -> tuple[int, int] | None:
        """The range of chunks with the least in it."""
        check_size(nbytes, 0)
        return None if self._closed else self.arena.vacate(nbytes)

    def usage(self) -> Usage:
        """Slots in use, and the arena's size."""
        reason = "closed" if self._closed else ""
        return Usage(self.arena.num_blocks, self.arena.used_nbytes, self.arena.nbytes, not self._closed, reason)

    def flush(self) -> Future[None]:
        """Done at once: memory is as durable as it gets."""
        future: Future[None] = Future()
        future.set_result(None)
        return future

    def close(self) -> None:
        """Unmap. Errors: Unavailable while views are in use."""
        self.arena.close()
        self._closed = True
