"""Room: reserved places that only their owner sees until they are committed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from kvstore.arrays import Ids
from kvstore.block import BlockLayout, PutResult
from kvstore.errors import LeaseExpired, LimitExceeded
from kvstore.hint import Hint, checked_hint
from kvstore.tiers.base import Places

if TYPE_CHECKING:
    from kvstore._core.arena import Window
    from kvstore._core.lease import Grip
    from kvstore.copying import Located

BUSY_REASON = "being written by another reservation"


class Grant(NamedTuple):
    """What a reservation got."""

    positions: NDArray[np.intp]  # in the keys, of the blocks to fill
    ids: Ids  # of the same
    places: Places  # of the same, in the arena; fixed until the blocks are committed
    present: int  # blocks that were stored before
    rejected: Mapping[int, str]  # the others: position and reason


class Told(NamedTuple):
    """What a reservation was told of its request, and whom a commit tells."""

    hint: Hint | None
    tell: Callable[[Hint], object]


class Granting(Protocol):
    """Whoever gave the grant."""

    def locate(self, other: Any, layout: BlockLayout | None, block_ids: Any, *, writable: bool) -> Located:
        """The caller's memory, checked."""

    def part_window(self, places: Places, shard: int, on_release: Callable[[], None]) -> Window:
        """Writable views of one shard's parts of reserved blocks."""

    def copy_in(self, places: Places, shard: int, blocks: Located, chosen: NDArray[np.intp] | None) -> None:
        """Copy one shard's parts into reserved blocks."""

    def hold(self, ids: Ids) -> Grip:
        """Leases on reserved blocks, whatever becomes of the reservation."""

    def commit(self, ids: Ids, shard: int) -> int:
        """Make them count; how many had been undone before."""

    def abandon_later(self, ids: Ids, shard: int) -> None:
        """Note that they were left; from any thread, holding whatever lock."""

    def settle(self) -> None:
        """Undo what was noted."""


class Ending:
    """What has to happen when the last view of a room is gone. Apart from the room, so that no cycle keeps both alive;
    called from wherever the last reference dies, so it only leaves notes."""

    __slots__ = ("abandoned", "grip", "ids", "namespace", "shard")

    def __init__(self, namespace: Granting, ids: Ids, shard: int) -> None:
        self.namespace, self.ids, self.shard = namespace, ids, shard
        self.abandoned = False
        self.grip: Grip | None = None

    def views_gone(self) -> None:
        """Undo what was not committed, and end the leases on what was there already."""
        if self.abandoned:
            self.namespace.abandon_later(self.ids, self.shard)
        if self.grip is not None:
            self.grip.release()


class Room:
    """Places for the blocks of a chain that are not stored yet; use it in a `with` and commit inside.

    `wanted`: positions (in the keys) to fill; `views`: one writable buffer of part_nbytes for each; `present`: how many
    blocks were there already; `rejected`: the others, with the reason. Leaving without `commit` undoes everything.
    Nobody may write through a view after the commit.
    """

    def __init__(self, namespace: Granting, shard: int, grant: Grant, told: Told) -> None:
        self._namespace, self._shard, self._told = namespace, shard, told
        self.wanted, self._ids, self._places, self.present, self.rejected = grant
        self._ending = Ending(namespace, self._ids, shard)
        self._window: Window | None = None
        self._open = True

    def _check_open(self) -> None:
        if not self._open:
            raise LeaseExpired("this reservation has ended; reserve again")

    @property
    def views(self) -> list[memoryview]:
        """Writable buffers of part_nbytes, one per wanted position. LeaseExpired once committed or undone."""
        self._check_open()
        if self._window is None:
            self._window = self._namespace.part_window(self._places, self._shard, self._ending.views_gone)
        return self._window.views

    @property
    def places(self) -> Places:
        """Arena places of the wanted blocks, for transfers by other means."""
        self._check_open()
        return self._places

    def fill(self, blocks: Any, layout: BlockLayout | None = None, block_ids: Any = None) -> None:
        """Copy the wanted blocks in from an array (len(wanted), part_nbytes), as many buffers, or, with a `layout`,
        tensors and the `block_ids` of their rows. Errors: InvalidRequest; nothing is copied then."""
        self._check_open()
        sources = self._namespace.locate(blocks, layout, block_ids, writable=False).require(len(self._ids))
        self._namespace.copy_in(self._places, self._shard, sources, None)

    def commit(self, *, hint: Hint | None = None) -> PutResult:
        """Make the blocks visible, parents before children; with shards, once every rank has committed its part.
        `hint`: what is known of the request by now, instead of what `reserve` was told.

        Errors: LeaseExpired when blocks of it were undone before (time-out, removal); the others became visible.
        LimitExceeded when views are still in use and their blocks cannot be leased; everything is undone then.
        """
        self._check_open()
        hint = self._told.hint if checked_hint(hint) is None else hint
        if self._window is not None and self._window.close():
            self._hold()
        lost = self._namespace.commit(self._ids, self._shard)
        self._open = False
        if hint is not None:
            self._told.tell(hint)
        if lost:
            text = f"{lost} of {len(self._ids)} reserved blocks were undone before the commit"
            raise LeaseExpired(text, lost)  # never by a name: the frame would hold the views as long as the traceback
        return PutResult(len(self._ids), self.present, self.rejected)

    def _hold(self) -> None:
        """A view outlives the commit: nobody is given its place while it does."""
        try:
            self._ending.grip = self._namespace.hold(self._ids)
        except LimitExceeded:
            self._abandon()
            raise

    def release(self) -> None:
        """Undo what was not committed. Idempotent."""
        if self._open:
            self._abandon()
            self._namespace.settle()

    def _abandon(self) -> None:
        self._open = False
        self._ending.abandoned = True
        if self._window is None:
            self._ending.views_gone()
        else:
            self._window.close()

    def __enter__(self) -> Room:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def __del__(self) -> None:
        if getattr(self, "_open", False):
            self._abandon()
