"""What lies where in the disk tier's segments: sizes, places, live bytes. Pure bookkeeping; no file is
touched here.

A segment is filled front to back, sealed, emptied, cleaned and filled again; inside it no place is given out
twice before it was cleaned. Life of a segment:

    ABSENT ──▶ OPEN ──▶ SEALED ──▶ CLEANING ──▶ FREE ──▶ OPEN ──▶ …
    (no file)           (RECOVERED: sealed in an earlier life; what lives there is not known before adopt())

CLEANING waits for its manifest rows to be gone for good; a segment without rows is FREE at once.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from kvstore.errors import InvalidRequest
from kvstore.tiers.base import PLACE_NBYTES, Places
from kvstore.tiers.geometry import PLACES_PER_SEGMENT, RESERVE_SEGMENTS_MIN, Geometry, num_pages, reserve_segments


class State(enum.IntEnum):
    """What a segment is good for now."""

    ABSENT = 0
    FREE = 1
    OPEN = 2
    SEALED = 3
    RECOVERED = 4
    CLEANING = 5


class Blocks:
    """The blocks of one segment in the order of their offsets: 5 bytes each."""

    __slots__ = ("count", "last_pages", "live", "offsets")

    def __init__(self, offsets: NDArray[np.uint16], last_pages: NDArray[np.uint16]) -> None:
        self.offsets = offsets
        self.last_pages = last_pages  # pages - 1, so that a whole segment fits
        self.live = np.ones(offsets.size, dtype=np.bool_)
        self.count = offsets.size

    def append(self, offsets: NDArray[np.uint16], pages: int) -> None:
        """Add blocks of `pages` pages behind the last one; all of them live."""
        needed = self.count + offsets.size
        if needed > self.offsets.size:
            size = max(needed, 2 * self.offsets.size)
            self.offsets = np.resize(self.offsets, size)
            self.last_pages = np.resize(self.last_pages, size)
            self.live = np.resize(self.live, size)
        added = slice(self.count, needed)
        self.offsets[added], self.last_pages[added], self.live[added] = offsets, pages - 1, True
        self.count = needed

    def find(self, offsets: NDArray[np.uint32], pages: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where the live blocks of these offsets and sizes stand; -1 for what is not such a block."""
        starts = self.offsets[: self.count]
        at = np.minimum(np.searchsorted(starts, offsets), self.count - 1)
        known = (starts[at] == offsets) & (self.last_pages[at] + np.int64(1) == pages) & self.live[at]
        return np.where(known, at, -1)


class SegmentTable:
    """All segments of one tier. Caller holds the tier's lock; nothing blocks."""

    def __init__(
        self, geometry: Geometry, written: Iterable[int], recovered: Iterable[int], num_opened: int = 0
    ) -> None:
        num_segments = geometry.num_segments
        self.geometry = geometry
        self.num_blocks = 0
        self.used_nbytes = 0
        self.absent_usable = True  # false while the file system has no room for more segments
        self.state = np.full(num_segments, State.ABSENT, dtype=np.uint8)
        self.live_pages = np.zeros(num_segments, dtype=np.int64)
        self._written = np.zeros(num_segments, dtype=np.bool_)
        self._num_writing = np.zeros(num_segments, dtype=np.int64)
        self._has_rows = np.zeros(num_segments, dtype=np.bool_)
        self._waste_pages = np.zeros(num_segments, dtype=np.int64)  # at the end of a sealed one, too few for a block
        self._num_waste_pages = self._num_sealed = 0
        self._blocks: dict[int, Blocks] = {}
        self._open: int | None = None
        self._num_opened = num_opened  # never goes back, also not at restart
        self.opening = np.zeros(num_segments, dtype=np.int64)  # a segment's: the value of _num_opened at the time
        self._tail_pages = 0
        self._to_clean: list[int] = []
        self.doubtful: set[int] = set()  # in which blocks live that a failed sync left without a row
        for segment in written:
            self._written[segment] = True
            self.state[segment] = State.FREE
        for segment in recovered:
            self._has_rows[segment] = True
            self.state[segment] = State.RECOVERED
        self._free = deque(np.flatnonzero(self.state == State.FREE).tolist())
        self._absent = deque(np.flatnonzero(self.state == State.ABSENT).tolist())

    @property
    def capacity_nbytes(self) -> int:
        """What used_nbytes may reach: every segment that exists or can be made, less the reserve, and less what is
        left over at the ends of as many segments."""
        num_usable = self.geometry.num_segments - (0 if self.absent_usable else len(self._absent))
        num_filled = max(0, num_usable - reserve_segments(num_usable))
        waste_pages = self._num_waste_pages
        if self._num_sealed > num_filled:
            waste_pages = waste_pages * num_filled // self._num_sealed
        return num_filled * self.geometry.segment_nbytes - waste_pages * PLACE_NBYTES

    @property
    def num_ready(self) -> int:
        """Segments that can be opened at once without a first write of their file."""
        return len(self._free)

    def allocate(self, nbytes: int, num_blocks: int, *, moving: bool = False) -> Places:
        """Blocks on the move out of a segment count twice for a while: they may go over the capacity, and only they
        get the last free segment, so that emptying one can always end."""
        pages = num_pages(nbytes)
        room_nbytes = self.capacity_nbytes - self.used_nbytes
        wanted = num_blocks if moving else min(num_blocks, max(0, room_nbytes // (pages * PLACE_NBYTES)))
        pieces: list[Places] = []
        while wanted > 0 and (moving or self._num_openable) and self._open_for(pages, moving):
            assert self._open is not None
            take = min(wanted, (self.geometry.pages_per_segment - self._tail_pages) // pages)
            offsets = self._tail_pages + np.arange(take, dtype=np.uint32) * np.uint32(pages)
            self._add(self._open, offsets.astype(np.uint16), pages)
            pieces.append((np.uint32(self._open * PLACES_PER_SEGMENT) + offsets).astype(np.uint32))
            self._tail_pages += take * pages
            wanted -= take
        return np.concatenate(pieces) if pieces else np.empty(0, dtype=np.uint32)

    def free(self, places: Places, nbytes: int) -> None:
        """Errors: InvalidRequest unless every place holds a live block of `nbytes`, before anything
        changes."""
        pages = num_pages(nbytes)
        found = list(self.locate(places, np.full(len(places), pages, dtype=np.int64)))
        for segment, at, _ in found:
            self._blocks[segment].live[at] = False
            self.live_pages[segment] -= at.size * pages
            self._settle(segment)
        self.num_blocks -= len(places)
        self.used_nbytes -= len(places) * pages * PLACE_NBYTES

    def locate(
        self, places: Places, pages: NDArray[np.int64]
    ) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
        """Per segment: its number, where in its Blocks the places stand, and which of `places` they are.

        Errors: InvalidRequest for a place that is no live block of that size or is named twice. Everything is
        checked before the first result when the caller collects them in a list.
        """
        for segment, positions in by_segment(places):
            blocks = self._blocks.get(segment)
            wanted = places[positions]
            if blocks is None:
                raise InvalidRequest(f"place {wanted[0]} holds no block; allowed: places from allocate()")
            at = blocks.find(wanted % PLACES_PER_SEGMENT, pages[positions])
            if (at < 0).any():
                bad = int(np.flatnonzero(at < 0)[0])
                raise InvalidRequest(
                    f"place {wanted[bad]} holds no block of {pages[positions][bad]} x {PLACE_NBYTES} bytes; "
                    f"allowed: places from allocate() with the size given there"
                )
            if np.unique(at).size != at.size:
                raise InvalidRequest("a place is named twice; allowed: every place once")
            yield segment, at, positions

    def begin_write(self, places: Places, pages: NDArray[np.int64]) -> None:
        """Keep the segments of `places` from being recycled until end_write(). Errors: as locate()."""
        for segment, _, positions in list(self.locate(places, pages)):
            self._num_writing[segment] += positions.size

    def end_write(self, segment: int, offsets: NDArray[np.uint32], pages: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of the blocks written still live: their rows are to be made; the others were freed
        meanwhile."""
        self._num_writing[segment] -= offsets.size
        assert self._num_writing[segment] >= 0
        living = self._blocks[segment].find(offsets, pages) >= 0
        self._has_rows[segment] |= bool(living.any())
        self._settle(segment)
        return living

    def vacate(self, nbytes: int) -> tuple[int, int] | None:
        """As Tier: the places of the segment to empty next, None while there is room."""
        pages = num_pages(nbytes)
        has_room = self.used_nbytes + pages * PLACE_NBYTES <= self.capacity_nbytes
        is_sealed = self.state == State.SEALED
        emptied = is_sealed & (self.live_pages == 0)  # and free as soon as what is being written to it is done
        num_coming = len(self._free) + int(((self.state == State.CLEANING) | emptied).sum())
        num_coming += len(self._absent) if self.absent_usable else 0
        if pages > self.geometry.pages_per_segment:
            return None
        if has_room and num_coming >= RESERVE_SEGMENTS_MIN and not self.doubtful:
            return None
        # Moving what lies in a segment without dead blocks would free nothing, again and again.
        filled = self.live_pages + self._waste_pages
        sealed = np.flatnonzero(is_sealed & ~emptied & (filled < self.geometry.pages_per_segment))
        if self.doubtful:
            sealed = np.array([segment for segment in self.doubtful if not emptied[segment]], dtype=np.int64)
        if sealed.size == 0:
            return None
        cheapest = int(sealed[np.argmin(self.live_pages[sealed])])
        tail_pages = self.geometry.pages_per_segment - self._tail_pages if self._open is not None else 0
        room_pages = self._num_openable * self.geometry.pages_per_segment + tail_pages
        if self.live_pages[cheapest] > room_pages and (self.state == State.CLEANING).any():
            return None  # what lives in it would have nowhere to go, and soon will have
        first = cheapest * PLACES_PER_SEGMENT
        return first, first + self.geometry.pages_per_segment

    def adopt(self, places: Places, pages: NDArray[np.int64]) -> None:
        """These blocks live, all others of RECOVERED segments are dead. Errors: InvalidRequest, nothing
        changed."""
        found: dict[int, Blocks] = {}
        for segment, positions in by_segment(places):
            if segment >= self.geometry.num_segments or self.state[segment] != State.RECOVERED:
                raise InvalidRequest(f"place {places[positions][0]}; allowed: places from recover()")
            offsets = (places[positions] % PLACES_PER_SEGMENT).astype(np.int64)
            order = np.argsort(offsets)
            offsets, sizes = offsets[order], pages[positions][order]
            ends = offsets + sizes
            if ends[-1] > self.geometry.pages_per_segment or (ends[:-1] > offsets[1:]).any() or sizes.min() < 1:
                raise InvalidRequest(f"blocks of segment {segment} overlap; allowed: entries from recover()")
            found[segment] = Blocks(offsets.astype(np.uint16), (sizes - 1).astype(np.uint16))
        for segment, blocks in found.items():
            self._blocks[segment] = blocks
            self.live_pages[segment] = int(blocks.last_pages.sum(dtype=np.int64)) + blocks.count
        self.num_blocks += len(places)
        self.used_nbytes += int(pages.sum()) * PLACE_NBYTES
        for segment in np.flatnonzero(self.state == State.RECOVERED).tolist():
            self.state[segment] = State.SEALED
            self._num_sealed += 1
            self._settle(segment)

    def holds_blocks(self, segment: int) -> bool:
        """Whether blocks may live in it, so that there is something to remember about them."""
        return segment < self.geometry.num_segments and self.state[segment] in (State.OPEN, State.SEALED)

    def take_to_clean(self) -> list[int]:
        """Segments that became CLEANING since the last call: their rows are to be deleted."""
        taken, self._to_clean = self._to_clean, []
        return taken

    def set_clean(self, segment: int) -> None:
        """The rows of a CLEANING segment are gone for good."""
        assert self.state[segment] == State.CLEANING
        self._has_rows[segment] = False
        self._release(segment)

    def take_absent(self) -> int | None:
        """A segment whose file is to be written for the first time; give it back with give_absent()."""
        return self._absent.popleft() if self._absent and self.absent_usable else None

    def give_absent(self, segment: int, *, written: bool) -> None:
        """End take_absent: the segment is free, and its file exists or has still to be written."""
        self._written[segment] = written
        self._release(segment)

    def set_written(self, segment: int) -> None:
        """The file of an open segment exists."""
        self._written[segment] = True

    def doubt(self, segment: int) -> None:
        """What lives in it has to be moved to where it can be made durable."""
        if segment == self._open:
            self._seal()
        if self.state[segment] == State.SEALED:
            self.doubtful.add(segment)

    def refuse_absent(self, segment: int | None) -> None:
        """The file system has no room: make do with the segments that exist, and leave `segment` if it is
        open."""
        self.absent_usable = False
        if segment is not None and segment == self._open:
            self._seal()

    @property
    def _num_openable(self) -> int:
        """Segments that could be opened now."""
        return len(self._free) + (len(self._absent) if self.absent_usable else 0)

    def _open_for(self, pages: int, moving: bool) -> bool:
        """Make the open segment one with room for `pages`; false when there is none."""
        if self._open is not None:
            if self._tail_pages + pages <= self.geometry.pages_per_segment:
                return True
            self._seal()
        if not moving and self._num_openable < 2:
            return False
        if self._free:
            self._open = self._free.popleft()
        else:
            self._open = self.take_absent()
        if self._open is None:
            return False
        self.state[self._open] = State.OPEN
        self._num_opened += 1
        self.opening[self._open] = self._num_opened
        self._tail_pages = 0
        return True

    def _seal(self) -> None:
        assert self._open is not None
        segment, self._open = self._open, None
        self.state[segment] = State.SEALED
        self._waste_pages[segment] = self.geometry.pages_per_segment - self._tail_pages
        self._num_waste_pages += int(self._waste_pages[segment])
        self._num_sealed += 1
        self._settle(segment)

    def _add(self, segment: int, offsets: NDArray[np.uint16], pages: int) -> None:
        blocks = self._blocks.get(segment)
        if blocks is None:
            self._blocks[segment] = Blocks(offsets, np.full(offsets.size, pages - 1, dtype=np.uint16))
        else:
            blocks.append(offsets, pages)
        self.live_pages[segment] += offsets.size * pages
        self.num_blocks += offsets.size
        self.used_nbytes += offsets.size * pages * PLACE_NBYTES

    def _settle(self, segment: int) -> None:
        """Recycle a sealed segment in which nothing lives and nothing is being written."""
        if self.state[segment] != State.SEALED or self.live_pages[segment] or self._num_writing[segment]:
            return
        self._blocks.pop(segment, None)
        self.doubtful.discard(segment)
        self._num_waste_pages -= int(self._waste_pages[segment])
        self._waste_pages[segment] = 0
        self._num_sealed -= 1
        if self._has_rows[segment]:
            self.state[segment] = State.CLEANING
            self._to_clean.append(segment)
        else:
            self._release(segment)

    def _release(self, segment: int) -> None:
        if self._written[segment]:
            self.state[segment] = State.FREE
            self._free.append(segment)
        else:
            self.state[segment] = State.ABSENT
            self._absent.appendleft(segment)


def by_segment(places: Places) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Per segment that `places` touch: its number and the positions of its places."""
    segments = places // PLACES_PER_SEGMENT
    if segments.size == 0:
        return
    if segments[0] == segments[-1] and (segments == segments[0]).all():  # nearly always
        yield int(segments[0]), np.arange(segments.size)
        return
    order = np.argsort(segments, kind="stable")
    for positions in np.split(order, np.flatnonzero(np.diff(segments[order])) + 1):
        yield int(segments[positions[0]]), positions
