"""How a disk tier's capacity is cut into segments, and how much capacity a number of blocks needs."""

from __future__ import annotations

from dataclasses import dataclass

from kvstore.errors import ConfigInvalid, InvalidRequest, LimitExceeded
from kvstore.tiers.base import PLACE_NBYTES

PLACES_PER_SEGMENT = 65_536  # places of neighbouring segments are this far apart, however small a segment is
SEGMENT_NBYTES_MIN = 1 << 20
SEGMENT_NBYTES_MAX = PLACES_PER_SEGMENT * PLACE_NBYTES
NUM_SEGMENTS_MIN = 4  # the reserve of two, one open, one sealed
NUM_SEGMENTS_MAX = 65_536
NUM_SEGMENTS_WANTED = 64  # with fewer, emptying one moves more: what is dead lies together less often
NUM_SEGMENTS_SMALL = 16  # of a small tier, so that blocks of some size fit into a segment
SEGMENT_NBYTES_SMALL = 4 << 20
RESERVE_SEGMENTS_MIN = 2
RESERVE_SHARE = 10


def num_pages(nbytes: int) -> int:
    """How many PLACE_NBYTES units `nbytes` take."""
    return -(-nbytes // PLACE_NBYTES)


def reserve_segments(num_segments: int) -> int:
    """How many of `num_segments` stay out of the capacity, so that there is always one to write to while
    another is emptied, and so that the emptiest one has room for dead blocks: that is what recycling gains by."""
    return max(RESERVE_SEGMENTS_MIN, -(-num_segments // RESERVE_SHARE))


def default_segment_nbytes(capacity_nbytes: int) -> int:
    """The largest power of two up to 256 MiB of which `capacity_nbytes` holds 64; up to 4 MiB, of which it holds 16.

    Errors: ConfigInvalid below 16 MiB.
    """
    floor_nbytes = NUM_SEGMENTS_SMALL * SEGMENT_NBYTES_MIN
    if capacity_nbytes < floor_nbytes:
        raise ConfigInvalid(f"disk capacity_nbytes={capacity_nbytes}; allowed: at least {floor_nbytes}")
    small = min(SEGMENT_NBYTES_SMALL, _power_of_two(capacity_nbytes // NUM_SEGMENTS_SMALL))
    return max(small, min(SEGMENT_NBYTES_MAX, _power_of_two(capacity_nbytes // NUM_SEGMENTS_WANTED)))


def _power_of_two(number: int) -> int:
    """The largest one that is not above `number`; 0: there is none."""
    return 1 << number.bit_length() >> 1


def _segments_min(segment_nbytes: int) -> int:
    """How many segments a tier has at least that was given this default size."""
    return NUM_SEGMENTS_SMALL if segment_nbytes <= SEGMENT_NBYTES_SMALL else NUM_SEGMENTS_WANTED


@dataclass(frozen=True, slots=True)
class Geometry:
    """How a capacity is cut into segments."""

    segment_nbytes: int
    num_segments: int

    @classmethod
    def choose(cls, capacity_nbytes: int, segment_nbytes: int | None) -> Geometry:
        """As many segments as fit into `capacity_nbytes`. Errors: ConfigInvalid."""
        if segment_nbytes is None:
            segment_nbytes = default_segment_nbytes(capacity_nbytes)
        if not SEGMENT_NBYTES_MIN <= segment_nbytes <= SEGMENT_NBYTES_MAX or segment_nbytes.bit_count() != 1:
            raise ConfigInvalid(
                f"disk segment_nbytes={segment_nbytes}; allowed: a power of two from {SEGMENT_NBYTES_MIN} "
                f"to {SEGMENT_NBYTES_MAX}"
            )
        num_segments = capacity_nbytes // segment_nbytes
        if not NUM_SEGMENTS_MIN <= num_segments <= NUM_SEGMENTS_MAX:
            raise ConfigInvalid(
                f"disk capacity_nbytes={capacity_nbytes} with segments of {segment_nbytes}; allowed: from "
                f"{NUM_SEGMENTS_MIN * segment_nbytes} to {NUM_SEGMENTS_MAX * segment_nbytes}"
            )
        return cls(segment_nbytes, num_segments)

    @property
    def pages_per_segment(self) -> int:
        """Places in one segment."""
        return self.segment_nbytes // PLACE_NBYTES


def capacity_for(num_blocks: int, nbytes: int, segment_nbytes: int | None = None) -> int:
    """The smallest capacity_nbytes of a disk tier that can hold `num_blocks` blocks of `nbytes` at once.

    Errors: LimitExceeded when no segment is large enough for such a block or no tier for so many.
    """
    if num_blocks < 1 or nbytes < 1:
        raise InvalidRequest(f"num_blocks={num_blocks}, nbytes={nbytes}; allowed: at least 1")
    sizes = [segment_nbytes] if segment_nbytes else [SEGMENT_NBYTES_MIN << shift for shift in range(9)]
    found = []
    for size in sizes:
        if num_pages(nbytes) * PLACE_NBYTES > size:
            continue
        num_live = -(-num_blocks // (size // PLACE_NBYTES // num_pages(nbytes)))
        num_segments = max(NUM_SEGMENTS_MIN if segment_nbytes else _segments_min(size), num_live)
        while num_segments - reserve_segments(num_segments) < num_live:
            num_segments += num_live - num_segments + reserve_segments(num_segments)
        is_chosen = size == (segment_nbytes or default_segment_nbytes(num_segments * size))
        if num_segments <= NUM_SEGMENTS_MAX and is_chosen:
            found.append(num_segments * size)
    if not found:
        raise LimitExceeded(f"no disk tier holds {num_blocks} blocks of {nbytes} bytes in segments of {max(sizes)}")
    return min(found)
