"""Far blocks in the order of their places, found by walks of bounded pieces: no step looks at more than LOOK_MAX
records."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kvstore._core import index as core
from kvstore._core import walk
from kvstore._core.index import Index
from kvstore.arrays import NO_IDS, Ids

LOOK_MAX = 1 << 16
LIST_BLOCKS_MAX = 1 << 14


class Listing:
    """The far blocks at places in [first, last): the LIST_BLOCKS_MAX of them that lie first.

    `step` under the store's lock until it answers True; then `ids` is complete. Blocks may move or leave meanwhile and
    afterwards: whoever uses an id looks where it is now. When there were more, `last` is the place behind the listed
    ones.
    """

    def __init__(self, index: Index, first: int, last: int) -> None:
        self._index, self._first, self.last = index, first, last
        self._at = 0
        self._found: list[NDArray[np.uint64]] = []  # place << 32 | id
        self._num_found = 0
        self.ids: Ids = NO_IDS

    def step(self) -> bool:
        """Look at more records; True when that were all."""
        ids, self._at = walk.far_in_range(self._index, self._at, LOOK_MAX, self._first, self.last)
        if len(ids):
            places = self._index.describe(ids)[1]
            self._found.append(places.astype(np.uint64) << np.uint64(32) | ids)
            self._num_found += len(ids)
        if self._num_found > 2 * LIST_BLOCKS_MAX or (self._at == core.NONE and self._found):
            self._cut()
        return self._at == core.NONE

    def _cut(self) -> None:
        """Keep the first ones, and look for no others behind them from now on."""
        rows = np.concatenate(self._found)
        is_cut = len(rows) > LIST_BLOCKS_MAX
        if is_cut:
            rows = np.partition(rows, LIST_BLOCKS_MAX)[:LIST_BLOCKS_MAX]
        rows.sort()
        if is_cut:
            self.last = int(rows[-1] >> np.uint64(32)) + 1
        self._found, self._num_found = [rows], len(rows)
        self.ids = (rows & np.uint64(0xFFFFFFFF)).astype(np.uint32)
