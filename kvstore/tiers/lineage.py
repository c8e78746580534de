"""Which blocks can be reached from the first block of a prompt, through parents that are good."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvstore.tiers.base import Entries

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Lineage:
    """Masks over the blocks asked about; a good block is in at most one of them but `repeated`."""

    lost: Mask  # good, but an ancestor is stored only with a fault
    unreachable: Mask  # good, but an ancestor is not stored, or the parents go in a circle
    repeated: Mask  # good, but an earlier good block has the same key


def trace(entries: Entries, good: Mask) -> Lineage:
    """Follow the parents of all blocks at once: each step doubles how far back every block has looked."""
    keys, first, of_entry = np.unique(_texts(entries, "key"), return_index=True, return_inverse=True)
    chosen = first.copy()  # of each key the first good block, or else the first
    backwards = np.flatnonzero(good)[::-1]
    chosen[of_entry[backwards]] = backwards
    parents = _texts(entries[chosen], "parent")
    at = np.minimum(np.searchsorted(keys, parents), max(0, len(keys) - 1))
    is_first = parents == b""
    ancestor = np.where((keys[at] == parents) & ~is_first, at, np.arange(len(keys)))
    blocked = ~good[chosen]
    for _ in range(len(keys).bit_length()):
        blocked |= blocked[ancestor]
        ancestor = ancestor[ancestor]
    complete = is_first[ancestor]
    return Lineage(
        lost=good & blocked[of_entry],
        unreachable=good & ~blocked[of_entry] & ~complete[of_entry],
        repeated=good & (chosen[of_entry] != np.arange(len(entries))),
    )


def _texts(entries: Entries, name: str) -> NDArray[np.bytes_]:
    """32-byte keys as something that sorts; zeros at the end do not make two of them equal, all have one length."""
    return np.ascontiguousarray(entries[name]).view("S32").reshape(len(entries))
