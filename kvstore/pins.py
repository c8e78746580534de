"""Pins: chains that the store itself leases for somebody, for a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kvstore._core import index as core
from kvstore._core.lease import STOP_BUSY, STOP_FULL, LeaseTable
from kvstore.arrays import Ids, Keys
from kvstore.errors import LimitExceeded

if TYPE_CHECKING:
    from kvstore._core.lease import Grip
    from kvstore.mover import Mover

ROUNDS_MAX = 50  # of asking again for a block that an eviction was looking at
STATE = np.uint64(0xFF)  # of a state word

Name = tuple[int, bytes]  # of a pin: the namespace, and the last key asked for, which stands for the whole chain


@dataclass(slots=True, eq=False)
class Pin:
    """The stored prefix of a chain, as it was when it was asked for."""

    ns: int
    keys: Keys
    until_us: int
    grip: Grip
    ids: Ids


class Pins:
    """Leases on blocks of a mover's index, in a table of their own: no eviction, near or far, takes a block while a pin
    is on it, nor does it expire. Removal takes it, and a pin goes on with what is left. Caller holds the store's lock.
    Not kept over a restart.
    """

    def __init__(self, mover: Mover) -> None:
        self._mover, self._index, self._clock = mover, mover.index, mover.clock
        self._nbytes_max = mover.limits.pins_nbytes_max or mover.limits.near_nbytes // 10
        self._table = LeaseTable(mover.index, mover.limits.pin_leases_max)
        self._pins: dict[Name, Pin] = {}
        self._counts: Counter[int] = Counter()  # pins on each block
        self._nbytes = 0  # of the blocks, each once
        self._next_us = 0  # no pin ends before

    def pin(self, ns: int, keys: Keys, ttl_us: int) -> int:
        """Pin the stored prefix of `keys` from now on, instead of what was pinned by the same keys before; how many
        blocks that is. Errors: LimitExceeded, and everything is as it was."""
        if not len(keys):
            return 0
        grip = self._acquire(ns, keys)
        ids = grip.ids()
        slot_nbytes = self._mover.sizes[ns].slot_nbytes
        more_nbytes = sum(slot_nbytes for number in set(ids.tolist()) if number not in self._counts)
        name = ns, keys[-1].tobytes()
        old = self._pins.get(name)
        freed_nbytes = self._alone(old, set(ids.tolist())) * slot_nbytes if old is not None else 0
        if (nbytes := self._nbytes + more_nbytes - freed_nbytes) > self._nbytes_max:
            grip.release()
            raise LimitExceeded(
                f"{len(ids)} blocks more would be {nbytes} bytes of pins; policy.pins_nbytes_max={self._nbytes_max}"
            )
        pin = Pin(ns, keys[: len(ids)].copy(), self._clock.now_us() + ttl_us, grip, ids)
        self._count(pin, 1)
        if old is not None:
            self._end(name)
        if len(ids):
            self._pins[name] = pin
            self._next_us = min(pin.until_us for pin in self._pins.values())
        return len(ids)

    def _acquire(self, ns: int, keys: Keys) -> Grip:
        """Errors: LimitExceeded when the table is full."""
        for _ in range(ROUNDS_MAX):
            grip = self._table.acquire(keys, False, ns)
            if grip.stop == STOP_FULL:
                grip.release()
                raise LimitExceeded(
                    f"pins of {len(keys)} more blocks do not fit into index.leases_max={self._table.entries_max}"
                )
            if grip.stop != STOP_BUSY:
                break
            self._index.drain()  # waits for the eviction
        return grip

    def _alone(self, pin: Pin, others: set[int]) -> int:
        """How many blocks nothing else pins, nor is about to."""
        return sum(self._counts[number] == 1 and number not in others for number in pin.ids.tolist())

    def _count(self, pin: Pin, change: int) -> None:
        slot_nbytes = self._mover.sizes[pin.ns].slot_nbytes
        for number in pin.ids.tolist():
            before = self._counts[number]
            self._counts[number] = before + change
            if before + change == 0:
                del self._counts[number]
            if 0 in (before, before + change):
                self._nbytes += change * slot_nbytes

    def _end(self, name: Name) -> None:
        pin = self._pins.pop(name)
        self._count(pin, -1)
        pin.grip.release()

    def unpin(self, ns: int, keys: Keys) -> int:
        """End the pins that were asked for by these keys or a beginning of them; how many blocks no pin is on now."""
        before = len(self._counts)
        for key in keys if self._pins else ():
            if (name := (ns, key.tobytes())) in self._pins:
                self._end(name)
        return before - len(self._counts)

    def step(self) -> None:
        """End pins whose time is over, and let go of what was removed."""
        if not self._pins:
            return
        now_us = self._clock.now_us()
        if now_us >= self._next_us:
            for name in [name for name, pin in self._pins.items() if now_us >= pin.until_us]:
                self._end(name)
            self._next_us = min((pin.until_us for pin in self._pins.values()), default=0)
        if self._index.num_removed:
            for name, pin in list(self._pins.items()):
                if ((self._index.words(pin.ids) & STATE) != core.VALID).any():
                    self._shorten(name, pin)

    def _shorten(self, name: Name, pin: Pin) -> None:
        """A block of it has left: pin what is still stored of the chain in front of that."""
        self._end(name)
        grip = self._acquire(pin.ns, pin.keys)  # there is room: it is what was just given back
        if grip.num_blocks:
            left = Pin(pin.ns, pin.keys[: grip.num_blocks], pin.until_us, grip, grip.ids())
            self._count(left, 1)
            self._pins[name] = left

    def stats(self) -> dict[str, Any]:
        """Numbers of the section `policy`."""
        return {
            "pins": len(self._pins),
            "pinned_blocks": len(self._counts),
            "pinned_nbytes": self._nbytes,
            "pins_nbytes_max": self._nbytes_max,
        }

    @property
    def ids(self) -> Container[int]:
        """The blocks that are pinned."""
        return self._counts

    @property
    def num_leases(self) -> int:
        """Lease entries in use, whole groups."""
        return int(self._table.used)
