"""One namespace's blocks in an attached daemon's memory: what leases and rooms of this process ask for."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kvstore import copying, hashing
from kvstore._core.link import KEYS_MAX, WAIT_DEFAULT
from kvstore.arrays import Ids, Keys
from kvstore.block import BlockLayout
from kvstore.client.attachment import Attachment
from kvstore.clock import SystemClock
from kvstore.copying import Located
from kvstore.errors import LeaseExpired, Unavailable
from kvstore.hint import Hint
from kvstore.namespace import NamespaceSpec
from kvstore.room import BUSY_REASON, Grant
from kvstore.tiers.base import Places

if TYPE_CHECKING:
    from kvstore._core.arena import Window
    from kvstore._core.lease import Grip

CLOCK = SystemClock()
PAUSE_S_MIN, PAUSE_S_MAX = 0.000_1, 0.002  # between two looks at a reservation that waits for room
FULL = {
    "memory": "no room in the daemon's memory: it is leased or being written",
    "index": "no free index entry in the daemon",
    "quota": "over the quota, and nothing more within it can go",
}


class Space:
    """As far as an attachment lives; `number`, `seed` and the names of the `tiers` (near, far) are of one life of the
    daemon, which may be over when they are looked at."""

    def __init__(
        self, attachment: Attachment, number: int, seed: bytes, spec: NamespaceSpec, tiers: tuple[str, str]
    ) -> None:
        self.attachment, self.number, self.seed, self.spec, self.tiers = attachment, number, seed, spec, tiers
        self.leases, self._arena = attachment.leases, attachment.arena

    def known_by(self, keys: Keys) -> Keys:
        """What the daemon's index knows the caller's keys by: a tenant's are mixed with the tenant."""
        return hashing.mix_keys(self.seed, keys) if self.seed else keys

    # ---- what Lease asks for ----

    def read_window(self, places: Places, on_release: Callable[[], None]) -> Window:
        """Read-only views of leased blocks."""
        return self._arena.window(places, self.spec.block_nbytes, readonly=True, on_release=on_release)

    def locate(self, other: Any, layout: BlockLayout | None, block_ids: Any, *, writable: bool) -> Located:
        """As Namespace.locate."""
        nbytes = self.spec.block_nbytes if writable else self.spec.part_nbytes
        return copying.locate(other, nbytes, layout, block_ids, writable=writable)

    def copy_out(self, places: Places, out: Located) -> None:
        """Copy leased blocks out."""
        copying.out_of_arena(self._arena, places, out)

    # ---- reservations ----

    def reserve(
        self, keys: Keys, shard: int, deadline_ms: float | None, hint: Hint | None = None
    ) -> tuple[Reserved, Grant]:
        """Places for what is not stored of the chain `keys`, which the index knows by these. Errors: Unavailable,
        InvalidRequest, LimitExceeded, AccessDenied."""
        attachment, began_us = self.attachment, CLOCK.now_us()
        numbers = None if hint is None else hint.numbers

        def wait_ms() -> int:
            if deadline_ms is None:
                return WAIT_DEFAULT
            return max(0, min(int(deadline_ms - (CLOCK.now_us() - began_us) / 1000), WAIT_DEFAULT - 1))

        attachment.settle()
        pause_s = PAUSE_S_MIN
        answer = attachment.link.reserve(keys, self.number, shard, wait_ms(), numbers)
        while isinstance(answer, int):
            attachment.ended.wait(pause_s)
            pause_s = min(2 * pause_s, PAUSE_S_MAX)
            if answer:
                answer = attachment.link.retry(answer, len(keys))
            else:
                answer = attachment.link.reserve(keys, self.number, shard, wait_ms(), numbers)
        reservation, positions, ids, places, present, refused, why = answer
        rejected = {position: BUSY_REASON if busy else FULL[why] for position, busy in refused}
        return Reserved(self, reservation), Grant(positions, ids, places, present, rejected)

    @staticmethod
    def takes(keys: Keys) -> bool:
        """Can a chain of so many keys be reserved by the attach socket?"""
        return 1 <= len(keys) <= KEYS_MAX

    def promote(self, keys: Keys) -> None:
        """Ask for the stored prefix to come near; does not wait. Errors: Unavailable, LimitExceeded."""
        self.attachment.link.promote(keys[:KEYS_MAX], self.number, 0)

    def load_us(self, num_blocks: int) -> int:
        """Estimate until so many far blocks are near."""
        _, arriving_nbytes, nbytes_per_s = self.attachment.index.far
        if not num_blocks or not nbytes_per_s:
            return 0
        return int((num_blocks * self.spec.block_nbytes + arriving_nbytes) / nbytes_per_s * 1e6)


class Reserved:
    """One reservation, as Room and a put want it; ids and places are the daemon's."""

    def __init__(self, space: Space, number: int) -> None:
        self._space, self._number = space, number

    def locate(self, other: Any, layout: BlockLayout | None, block_ids: Any, *, writable: bool) -> Located:
        """As Space.locate."""
        return self._space.locate(other, layout, block_ids, writable=writable)

    def part_window(self, places: Places, shard: int, on_release: Callable[[], None]) -> Window:
        """Writable views of one shard's parts."""
        space = self._space
        nbytes = space.spec.part_nbytes
        return space._arena.window(places, nbytes, offset=shard * nbytes, readonly=False, on_release=on_release)

    def copy_in(self, places: Places, shard: int, blocks: Located, chosen: NDArray[np.intp] | None) -> None:
        """Copy one shard's parts in."""
        space = self._space
        copying.into_arena(space._arena, places, shard * space.spec.part_nbytes, blocks, chosen)

    def hold(self, ids: Ids) -> Grip:
        """Leases on the blocks, whatever becomes of the reservation. Errors: LimitExceeded."""
        return self._space.leases.hold(ids)

    def commit(self, ids: Ids, shard: int) -> int:
        """Make the blocks count; how many had been undone before. Errors: LeaseExpired when the daemon has gone."""
        number, self._number = self._number, 0
        if not number:
            return 0
        try:
            return self._space.attachment.link.commit(number)
        except Unavailable as error:
            raise LeaseExpired(f"the reservation is gone: {error}") from None

    def abandon_later(self, ids: Ids, shard: int) -> None:
        """Note that it was left; whoever lets go of the last view may hold any lock."""
        number, self._number = self._number, 0
        if number:
            self._space.attachment.left.append(number)

    def settle(self) -> None:
        """Give back what was left."""
        self._space.attachment.settle()
