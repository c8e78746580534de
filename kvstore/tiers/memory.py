"""The smallest correct tier: a dict. The oracle that other tiers are held against, and a far tier without a device."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future

import numpy as np
from numpy.typing import NDArray

from kvstore.errors import InvalidRequest
from kvstore.hashing import xxh3_64
from kvstore.tiers.base import (
    PLACE_NBYTES,
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


def _rounded(nbytes: int) -> int:
    return -(-nbytes // PLACE_NBYTES) * PLACE_NBYTES


class MemoryTier:
    """The Tier contract over a dict of bytes by place. Places are numbers without a location."""

    def __init__(self, capacity_nbytes: int, name: str = "memory") -> None:
        self.name = name
        self._capacity_nbytes = capacity_nbytes
        self._blocks: dict[int, bytes] = {}
        self._sizes: dict[int, int] = {}
        self._used_nbytes = 0
        self._next_place = 0
        self._free_places: list[int] = []
        self._closed = False
        self._lock = threading.Lock()

    def allocate(self, nbytes: int, num_blocks: int, *, moving: bool = False) -> Places:
        """Numbers not in use, as many as the capacity allows."""
        check_size(nbytes, num_blocks)
        fit = 0 if self._closed else (self._capacity_nbytes - self._used_nbytes) // _rounded(nbytes)
        places = []
        for _ in range(min(num_blocks, fit)):
            if self._free_places:
                place = self._free_places.pop()
            else:
                place, self._next_place = self._next_place, self._next_place + 1
            self._sizes[place] = _rounded(nbytes)
            self._used_nbytes += _rounded(nbytes)
            places.append(place)
        return np.array(places, dtype=np.uint32)

    def free(self, places: Places, nbytes: int, *, forget: bool = False) -> None:
        """Forget the bytes at places."""
        check_size(nbytes, len(places))
        wanted = [int(place) for place in places]
        wrong = [place for place in wanted if self._sizes.get(place) != _rounded(nbytes)]
        if wrong or len(set(wanted)) < len(wanted):
            raise InvalidRequest(f"places {wrong or wanted} are not allocated for blocks of {nbytes} bytes")
        for place in wanted:
            self._used_nbytes -= self._sizes.pop(place)
            self._blocks.pop(place, None)
            self._free_places.append(place)

    def write(
        self, places: Places, entries: Entries, buffers: Sequence[Buffer], deadline_us: int | None = None
    ) -> Future[Outcomes]:
        """Keep a copy of each buffer. Errors: InvalidRequest for one that its place was not allocated for."""
        _, nbytes = pages_of_buffers(buffers, writable=False)
        check_batch(places, buffers)
        check_entries(entries, len(places))
        refused = outcome_before(self._closed, deadline_us)
        if refused is not None:
            return done(np.full(len(places), refused, dtype=np.uint8))
        with self._lock:
            for place, size in zip(places.tolist(), nbytes.tolist(), strict=True):
                if self._sizes.get(place) != _rounded(size):
                    raise InvalidRequest(f"place {place} is not allocated for blocks of {size} bytes")
            for position, (place, buffer) in enumerate(zip(places, buffers, strict=True)):
                self._blocks[int(place)] = bytes(buffer)
                entries["checksum"][position] = xxh3_64(buffer)
                entries["nbytes"][position] = len(buffer)
        return done(np.zeros(len(places), dtype=np.uint8))

    def read(
        self,
        places: Places,
        checksums: NDArray[np.uint64],
        buffers: Sequence[Buffer],
        deadline_us: int | None = None,
    ) -> Future[Outcomes]:
        """Copy blocks out and verify; a place that was never written is corrupt."""
        pages_of_buffers(buffers, writable=True)
        check_batch(places, buffers)
        check_batch(checksums, buffers, name="checksums", dtype=np.dtype(np.uint64))
        refused = outcome_before(self._closed, deadline_us)
        if refused is not None:
            return done(np.full(len(places), refused, dtype=np.uint8))
        outcomes = np.zeros(len(places), dtype=np.uint8)
        for position, (place, buffer) in enumerate(zip(places, buffers, strict=True)):
            block = self._blocks.get(int(place), b"")
            if len(block) == len(buffer) and xxh3_64(block) == checksums[position]:
                buffer[:] = block
            else:
                outcomes[position] = Outcome.CORRUPT
        return done(outcomes)

    def vacate(self, nbytes: int) -> tuple[int, int] | None:
        """None: any freed bytes make room for any size, so no range has to be emptied."""
        check_size(nbytes, 0)
        return None

    def usage(self) -> Usage:
        """Bytes of allocated places."""
        reason = "closed" if self._closed else ""
        return Usage(len(self._sizes), self._used_nbytes, self._capacity_nbytes, not self._closed, reason)

    def flush(self) -> Future[None]:
        """Done at once: nothing here can be durable."""
        future: Future[None] = Future()
        future.set_result(None)
        return future

    def close(self) -> None:
        """Refuse everything from now on."""
        self._closed = True
