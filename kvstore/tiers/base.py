"""What every storage tier promises: one contract, one conformance suite (tests/unit/test_tier_contract.py).

A *place* is a 32-bit number that names where a block lies inside one tier, in units of PLACE_NBYTES from the
tier's start (a host arena: offset / 4 KiB; a disk: segment * 65,536 + offset / 4 KiB). A tier knows places, sizes
and bytes; what a block means, who may use it and which block leaves is the store's and the mover's business.

Threads: `allocate`, `free` and `vacate` are called under the store's lock, `usage` from anywhere; none of them may
block on a device. `write`, `read` and `flush` may be called from any thread and answer through a future; the buffers
handed in stay alive and unchanged (writes) or untouched by others (reads) until that future is done. A fault is an
Outcome per block, never an exception in the future; a tier never raises for what a device does.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

PLACE_NBYTES = 4096
BLOCK_NBYTES_MAX = 1 << 30  # of any tier; one may have a lower limit of its own

Places = NDArray[np.uint32]
Outcomes = NDArray[np.uint8]
Entries = NDArray[Any]
Buffer = memoryview

# What a tier is told of each block it writes, and what a durable tier hands back at restart (docs/formats.md).
# `offset` (in PLACE_NBYTES inside the segment), `nbytes` and `checksum` are filled in by the tier.
ENTRY = np.dtype(
    [
        ("key", "u1", 32),
        ("parent", "u1", 32),  # zero for the first block of a prompt
        ("offset", "<u4"),
        ("nbytes", "<u4"),
        ("checksum", "<u8"),  # XXH3-64 of the block's bytes
        ("num_tokens", "<u4"),
        ("time_s", "<u4"),  # seconds since 1970 when the block was written
        ("namespace", "<u4"),
        ("flags", "<u4"),
    ]
)
assert ENTRY.itemsize == 96


class Outcome(enum.IntEnum):
    """What became of one block of a batch."""

    OK = 0
    CORRUPT = 1  # read, but the checksum differs: nothing of it may be used
    IO_ERROR = 2  # the device refused
    TIMEOUT = 3  # not done before the deadline
    CLOSED = 4  # the tier was closed before this block's turn


@dataclass(frozen=True, slots=True)
class Usage:
    """A tier's fill and health at one moment."""

    num_blocks: int
    used_nbytes: int  # of allocated places, each rounded up to PLACE_NBYTES
    capacity_nbytes: int  # what `used_nbytes` may reach
    healthy: bool
    reason: str  # why not healthy; "" when it is
    facts: Mapping[str, str] = field(default_factory=dict)  # what else an operator has to know of this kind of tier
    doubtful: bool = False  # some blocks would not outlive the process, whatever flush does: vacate names them first

    def stats(self, num_blocks: int, capacity_nbytes: int | None = None) -> dict[str, Any]:
        """As statistics have it: with the blocks that the index counts, and the capacity if the store sets it."""
        return {
            "blocks": num_blocks,
            "used_nbytes": self.used_nbytes,
            "capacity_nbytes": self.capacity_nbytes if capacity_nbytes is None else capacity_nbytes,
            "healthy": self.healthy,
            "reason": self.reason,
            **self.facts,
        }


class Tier(Protocol):
    """One storage level. See the module's text for threads and ownership."""

    name: str

    def allocate(self, nbytes: int, num_blocks: int, *, moving: bool = False) -> Places:
        """Up to `num_blocks` places for blocks of `nbytes`; fewer (also none) when full or not healthy. `moving`: for
        blocks that leave a range which `vacate` named; they may use what the tier keeps back for that."""

    def free(self, places: Places, nbytes: int, *, forget: bool = False) -> None:
        """Give back places of blocks of `nbytes`. `forget`: a durable tier must not bring them back at restart."""

    def write(
        self, places: Places, entries: Entries, buffers: Sequence[Buffer], deadline_us: int | None = None
    ) -> Future[Outcomes]:
        """Store one buffer per place. `entries` (ENTRY rows, one per place) gets its checksum filled in before the
        future is done. Done means readable, not durable; `deadline_us` is CLOCK_MONOTONIC. Errors: InvalidRequest for
        a place that is not allocated for a block of its buffer's size, and nothing is written."""

    def read(
        self,
        places: Places,
        checksums: NDArray[np.uint64],
        buffers: Sequence[Buffer],
        deadline_us: int | None = None,
    ) -> Future[Outcomes]:
        """Fill one writable buffer per place and verify it; a buffer whose outcome is not OK holds rubbish."""

    def vacate(self, nbytes: int) -> tuple[int, int] | None:
        """The range of places [first, last) to be emptied so that blocks of `nbytes` can be allocated: the cheapest
        one. None when there is room already or emptying would not help."""

    def usage(self) -> Usage:
        """Fill and health now."""

    def flush(self) -> Future[None]:
        """Done when everything written before this call is durable (at once where nothing can be)."""

    def close(self) -> None:
        """Finish what is under way and let go of the device; give up waiting for one that does not answer: then futures
        are left, and their buffers are the tier's for ever. Idempotent."""


@runtime_checkable
class DurableTier(Tier, Protocol):
    """A tier whose blocks outlive the process."""

    @property
    def num_dropped(self) -> int:
        """Blocks, or whole records of them, that an earlier run left and that cannot be used. After recover."""

    @property
    def is_released(self) -> bool:
        """Whether a closed tier has let go of its files; else it does when its device answers."""

    def namespaces(self) -> dict[int, str]:
        """Canonical texts of the namespaces that an earlier run remembered, by number."""

    def remember_namespace(self, number: int, text: str) -> None:
        """Durable with the next flush, and before any block of it."""

    def quotas(self) -> dict[int, int]:
        """Bytes that an earlier run said the namespace of a number may take."""

    def remember_quota(self, number: int, nbytes: int) -> None:
        """Durable with the next flush; 0 is no limit."""

    def recover(self) -> Iterator[tuple[Places, Entries, NDArray[np.uint32]]]:
        """What an earlier run left, in write order: places, entries, and when each was last used (unix seconds).
        Once, before anything else is asked of the tier."""

    def note_usage(self, places: Places, last_used_s: NDArray[np.uint32]) -> None:
        """When blocks were last used (unix seconds), for `recover` of a later run; durable with the next flush."""

    @property
    def block_nbytes_max(self) -> int:
        """No larger block can be allocated."""

    def adopt(self, places: Places, nbytes: NDArray[np.uint32]) -> None:
        """Which recovered blocks live on; the space of all others is free. Once, after recover."""


def outcome_before(closed: bool, deadline_us: int | None) -> Outcome | None:
    """The outcome of a batch that is not even started: the tier is closed, or the deadline has passed."""
    if closed:
        return Outcome.CLOSED
    return Outcome.TIMEOUT if deadline_us is not None and time.monotonic_ns() // 1000 >= deadline_us else None


def done(outcomes: Outcomes) -> Future[Outcomes]:
    """A future that is done already: the answer of tiers that need no waiting."""
    future: Future[Outcomes] = Future()
    future.set_result(outcomes)
    return future
