"""Lease: blocks that stay where they are until they are released."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from kvstore.block import BlockLayout, Lookup
from kvstore.errors import LeaseExpired

if TYPE_CHECKING:
    from kvstore._core.arena import Window
    from kvstore._core.lease import Grip
    from kvstore.copying import Located
    from kvstore.tiers.base import Places


REVOKED = "this lease was held for too long and taken away"


class Far(NamedTuple):
    """What became of the far part of a leased prefix."""

    load_us: int = 0
    num_promoted: int = 0
    skipped: int = 0
    recompute_us: int = 0


NO_FAR = Far()


class Lending(Protocol):
    """Whoever has the blocks that a lease is on."""

    def read_window(self, places: Places, on_release: Callable[[], None]) -> Window:
        """Read-only views of leased blocks."""

    def locate(self, other: Any, layout: BlockLayout | None, block_ids: Any, *, writable: bool) -> Located:
        """The caller's memory, checked."""

    def copy_out(self, places: Places, out: Located) -> None:
        """Copy leased blocks out."""


class Lease:
    """The longest prefix of some keys that is readable now; use it in a `with`, or call `release`.

    `num_blocks` leading blocks are readable, `num_promoted` of them were read from a farther tier for it; `pending`
    more are stored farther away and not here yet (`load_us`: when they may be), and `skipped` are left there because
    they can be computed sooner, in `recompute_us`. While the lease lives none of them is evicted. Views that are still
    in use when it is released keep it alive: a block is never overwritten while somebody can see it.
    """

    __slots__ = (
        *("_grip", "_namespace", "_num_keys", "_window", "load_us", "num_blocks", "num_promoted", "pending"),
        *("recompute_us", "skipped"),
    )

    def __init__(self, namespace: Lending, grip: Grip, num_keys: int, far: Far = NO_FAR) -> None:
        self._namespace = namespace
        self._grip: Grip | None = grip
        self._window: Window | None = None
        self._num_keys = num_keys
        self.num_blocks: int = grip.num_near
        self.load_us, self.num_promoted, self.skipped, self.recompute_us = far
        self.pending: int = grip.num_blocks - grip.num_near - self.skipped

    def _held(self) -> Grip:
        if self._grip is None:
            raise LeaseExpired("this lease was released; take a new one")
        return self._grip

    @property
    def lookups(self) -> list[Lookup]:
        """Per key of the question: HIT, PENDING or MISS."""
        absent = self._num_keys - self.num_blocks - self.pending
        return [Lookup.HIT] * self.num_blocks + [Lookup.PENDING] * self.pending + [Lookup.MISS] * absent

    @property
    def views(self) -> list[memoryview]:
        """Read-only buffers of block_nbytes, one per readable block; nothing is copied. LeaseExpired after release, or
        when the lease was held for too long and taken away before."""
        grip = self._held()
        if self._window is None:
            places = grip.near_places()[: self.num_blocks]
            if len(places) < self.num_blocks:
                raise LeaseExpired(REVOKED)
            self._window = self._namespace.read_window(places, grip.release)
        return self._window.views

    def copy_into(
        self,
        out: Any,
        layout: BlockLayout | None = None,
        block_ids: NDArray[np.integer[Any]] | None = None,
    ) -> int:
        """Copy the readable blocks out; returns how many.

        `out` is a writable array of at least (num_blocks, block_nbytes); or, with a `layout`, one tensor per piece and
        `block_ids` (num_blocks,) says in which row of the tensors each block goes. Errors: InvalidRequest for a wrong
        shape, LeaseExpired after release.
        """
        grip = self._held()
        places = grip.near_places()[: self.num_blocks]
        found = self._namespace.locate(out, layout, block_ids, writable=True)
        found = found.require_room(self.num_blocks) if layout is None else found.require(self.num_blocks)
        self._namespace.copy_out(places, found)
        if not grip.intact:
            raise LeaseExpired(f"{REVOKED}: the copy may have other blocks' bytes")
        return self.num_blocks

    @property
    def is_intact(self) -> bool:
        """Whether the blocks have stayed where they were until now; what was read through views before is good then.
        A lease of this process's own store always is; one of an attached process that was held over the daemon's
        serve.lease_ms_max may have been taken away. LeaseExpired after release."""
        return self._held().intact

    def release(self) -> None:
        """Let go of the blocks (of those still visible through a view: when the last such view dies). Idempotent."""
        grip, self._grip = self._grip, None
        if grip is None:
            return
        if self._window is None:
            grip.release()
        else:
            self._window.close()  # calls grip.release when no view is in use any more

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        grip, window = self._grip, self._window
        if window is None and grip is not None:  # as release, without another call
            self._grip = None
            grip.release()
        else:
            self.release()

    def __repr__(self) -> str:
        state = "released" if self._grip is None else f"{self.num_blocks} blocks, {self.pending} pending"
        return f"<Lease {state} of {self._num_keys} keys>"
