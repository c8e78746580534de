"""RemoteLease: blocks that were copied into this process, with the interface of a lease."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvstore.block import BlockLayout, Lookup
from kvstore.client.blocks import copy_blocks
from kvstore.copying import locate
from kvstore.errors import LeaseExpired


class RemoteLease:
    """As kvstore.lease.Lease, of a remote store. The blocks are this process's own copies: nobody evicts them, and
    views that outlive the lease stay valid."""

    __slots__ = (
        *("_blocks", "_nbytes", "_num_keys", "load_us", "num_blocks", "num_promoted", "pending"),
        *("recompute_us", "skipped"),
    )

    def __init__(self, blocks: list[memoryview], num_keys: int, block_nbytes: int) -> None:
        self._blocks: list[memoryview] | None = blocks
        self._num_keys, self._nbytes = num_keys, block_nbytes
        self.num_blocks = len(blocks)
        self.pending = self.num_promoted = self.load_us = self.skipped = self.recompute_us = 0

    @property
    def lookups(self) -> list[Lookup]:
        """Per key of the question: HIT, PENDING or MISS."""
        absent = self._num_keys - self.num_blocks - self.pending
        return [Lookup.HIT] * self.num_blocks + [Lookup.PENDING] * self.pending + [Lookup.MISS] * absent

    @property
    def views(self) -> list[memoryview]:
        """Read-only buffers of block_nbytes, one per block. LeaseExpired after release."""
        if self._blocks is None:
            raise LeaseExpired("this lease was released; take a new one")
        return self._blocks

    def copy_into(
        self, out: Any, layout: BlockLayout | None = None, block_ids: NDArray[np.integer[Any]] | None = None
    ) -> int:
        """As Lease.copy_into. Errors: InvalidRequest, LeaseExpired."""
        blocks = self.views
        found = locate(out, self._nbytes, layout, block_ids, writable=True)
        found = found.require_room(len(blocks)) if layout is None else found.require(len(blocks))
        for number, block in enumerate(blocks):
            copy_blocks(found, number, 0, block, self._nbytes)
        return len(blocks)

    @property
    def is_intact(self) -> bool:
        """True: they are copies. LeaseExpired after release."""
        return self.views is not None

    def release(self) -> None:
        """Let go of the blocks. Idempotent."""
        self._blocks = None

    def __enter__(self) -> RemoteLease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def __repr__(self) -> str:
        state = "released" if self._blocks is None else f"{self.num_blocks} blocks, {self.pending} pending"
        return f"<RemoteLease {state} of {self._num_keys} keys>"
