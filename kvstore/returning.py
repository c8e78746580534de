"""Returning: what a durable tier holds when it comes to a store in use, parents before children."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kvstore.recovered import Recovered

Rows = NDArray[np.int64]

NOWHERE = -1


class Forest:
    """Rows that name each other as parents."""

    def __init__(self, parents: Rows) -> None:
        """`parents`: of each row the number of another one, or NOWHERE for a first one."""
        self._by_parent = np.argsort(parents, kind="stable")
        self._parents = parents[self._by_parent]
        self.roots: Rows = np.flatnonzero(parents == NOWHERE)

    def children(self, rows: Rows) -> Rows:
        """All rows that name one of `rows`."""
        first = np.searchsorted(self._parents, rows, side="left")
        counts = np.searchsorted(self._parents, rows, side="right") - first
        starts = np.repeat(first - np.cumsum(counts) + counts, counts)
        found: Rows = self._by_parent[starts + np.arange(counts.sum())]
        return found

    def order(self) -> Rows:
        """Every row that can be reached from a first one, parents before children."""
        levels, level = [self.roots[:0]], self.roots
        while len(level):
            levels.append(level)
            level = self.children(level)
        return np.concatenate(levels)


class Returning:
    """Blocks of the tier that can be reached from the first block of a prompt through others of them; of several with
    one key the first. `found` are all rows as they lie there."""

    def __init__(self, found: Recovered) -> None:
        self.found = found
        num = len(found.places)
        keys = _texts(found.entries["key"])
        self._sorted, self._rows = np.unique(keys, return_index=True)
        parents = _texts(found.entries["parent"])
        is_first = parents == b""
        above = np.where(is_first, NOWHERE, self._find(parents))
        repeated = np.ones(num, dtype=np.bool_)
        repeated[self._rows] = False
        above[(~is_first & (above == NOWHERE)) | repeated] = num  # reached from nowhere
        self._is_gone = np.zeros(num, dtype=np.bool_)
        self._order = Forest(above.astype(np.int64)).order()
        self._at = 0

    def _find(self, keys: NDArray[np.bytes_]) -> Rows:
        """The rows of these keys, or NOWHERE."""
        if not len(self._sorted):
            return np.full(len(keys), NOWHERE, dtype=np.int64)
        at = np.minimum(np.searchsorted(self._sorted, keys), len(self._sorted) - 1)
        return np.where(self._sorted[at] == keys, self._rows[at], NOWHERE)

    def remove(self, keys: set[bytes], namespaces: set[int]) -> None:
        """These blocks, and every block of these namespaces, do not come back. What extends them does not either, also
        where a block was put again since: a block comes back only when its parent has."""
        if namespaces:
            self._is_gone |= np.isin(self.found.entries["namespace"], list(namespaces))
        if keys:
            rows = self._find(np.frombuffer(b"".join(keys), dtype="S32"))
            self._is_gone[rows[rows != NOWHERE]] = True

    def begin(self) -> Rows:
        """All rows that were not removed so far, parents before children; `take` gives these."""
        self._order, self._at = self._order[~self._is_gone[self._order]], 0
        return self._order

    def take(self, most: int) -> tuple[Rows, Rows]:
        """The next up to `most` rows: those that come back, those removed since `begin`; both empty at the end."""
        rows = self._order[self._at : self._at + most]
        self._at += len(rows)
        gone = self._is_gone[rows]
        return rows[~gone], rows[gone]


def _texts(keys: NDArray[np.uint8]) -> NDArray[np.bytes_]:
    """32-byte keys as something that sorts; zeros at the end do not make two of them equal, all have one length."""
    return np.ascontiguousarray(keys).view("S32").reshape(len(keys))
