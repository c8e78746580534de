"""RemoteRoom: reserved places in a daemon, filled from buffers in this process."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvstore.block import BlockLayout, PutResult
from kvstore.client.blocks import copy_blocks, encoded
from kvstore.client.hints import sent
from kvstore.client.streams import Writing
from kvstore.copying import locate
from kvstore.errors import LeaseExpired, Unavailable
from kvstore.hint import Hint


class RemoteRoom:
    """As kvstore.room.Room, of a remote store. The bytes travel at the commit; until then `views` are this process's.

    The reservation lives as long as its call: this process's death undoes it.
    """

    def __init__(
        self, writing: Writing | None, rejected: Mapping[int, str], part_nbytes: int, piece_nbytes: int
    ) -> None:
        self._writing = writing
        self._part_nbytes, self._piece_nbytes = part_nbytes, piece_nbytes
        self.wanted: NDArray[np.intp] = np.array(writing.grant.wanted if writing else [], dtype=np.intp)
        self.present: int = writing.grant.num_present if writing else 0
        self.rejected = dict(rejected)
        self._bytes: bytearray | None = None
        self._open = True

    def _check_open(self) -> None:
        if not self._open:
            raise LeaseExpired("this reservation has ended; reserve again")

    def _memory(self) -> bytearray:
        self._check_open()
        if self._bytes is None:
            self._bytes = bytearray(len(self.wanted) * self._part_nbytes)
        return self._bytes

    @property
    def views(self) -> list[memoryview]:
        """Writable buffers of part_nbytes, one per wanted position. LeaseExpired once committed or undone."""
        whole = memoryview(self._memory())
        return [whole[at : at + self._part_nbytes] for at in range(0, len(whole), self._part_nbytes)]

    def fill(self, blocks: Any, layout: BlockLayout | None = None, block_ids: Any = None) -> None:
        """As Room.fill. Errors: InvalidRequest, LeaseExpired."""
        self._check_open()
        nbytes = self._part_nbytes
        sources = locate(blocks, nbytes, layout, block_ids, writable=False).require(len(self.wanted))
        if not len(self.wanted):
            return
        own = locate(self.views, nbytes, None, None, writable=True)
        for number, message in enumerate(encoded(sources, range(len(self.wanted)), nbytes, nbytes)):
            copy_blocks(own, number, 0, memoryview(message)[-nbytes:], nbytes)

    def commit(self, *, hint: Hint | None = None) -> PutResult:
        """Send the blocks and make them visible; `hint` as for Room.commit. Errors: LeaseExpired when blocks of it were
        undone before, or the daemon has gone."""
        message, memory = sent(hint), memoryview(self._memory())
        self._open = False
        if self._writing is None:
            return PutResult(0, self.present, self.rejected)
        try:
            result = self._writing.commit(self._pieces(memory), message)
        except Unavailable as error:
            raise LeaseExpired(f"the reservation is gone: {error}") from None
        if result.num_lost:
            raise LeaseExpired(f"{result.num_lost} of {len(self.wanted)} reserved blocks were undone before the commit")
        return PutResult(result.num_stored, self.present, self.rejected)

    def _pieces(self, memory: memoryview) -> Any:
        sources = locate(memory, self._part_nbytes, None, None, writable=False) if len(memory) else None
        return encoded(sources, range(len(self.wanted)), self._part_nbytes, self._piece_nbytes) if sources else ()

    def release(self) -> None:
        """Undo what was not committed. Idempotent."""
        if self._open:
            self._open = False
            if self._writing is not None:
                self._writing.close()

    def __enter__(self) -> RemoteRoom:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def __del__(self) -> None:
        if getattr(self, "_open", False):
            self.release()
