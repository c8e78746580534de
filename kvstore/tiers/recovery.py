"""Which of a segment's manifest entries can be used after a restart."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvstore.tiers.base import ENTRY, PLACE_NBYTES, Entries
from kvstore.tiers.manifest_rows import Row


def surviving_entries(rows: list[Row], pages_per_segment: int) -> tuple[Entries, int]:
    """The entries of `rows`, in the order of their places, that lie inside the segment and touch no other; and how many
    do not.

    Of entries that overlap none is used: a manifest that says two blocks lie in one place is wrong about at
    least one.
    """
    if not rows:
        return np.empty(0, dtype=ENTRY), 0
    entries = joined([row.entries for row in rows])
    starts = entries["offset"].astype(np.int64)
    ends = starts + -(-entries["nbytes"].astype(np.int64) // PLACE_NBYTES)
    if (ends > starts).all() and (ends[:-1] <= starts[1:]).all() and ends[-1] <= pages_per_segment:
        return entries, 0  # as a segment is filled: front to back
    inside = (ends > starts) & (ends <= pages_per_segment)
    order = np.flatnonzero(inside)[np.argsort(starts[inside], kind="stable")]
    usable = order[~overlapping(starts[order], ends[order])]
    return entries[usable], len(entries) - len(usable)


def joined(parts: list[Entries]) -> Entries:
    """All parts behind one another, in memory of their own."""
    # As plain bytes: numpy compares the fields of structured arrays one by one, for each part.
    return np.concatenate([part.view(f"V{ENTRY.itemsize}") for part in parts]).view(ENTRY)


def overlapping(starts: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of the ranges [start, end), sorted by start, touch another one."""
    if starts.size == 0:
        return np.zeros(0, dtype=np.bool_)
    reached = np.maximum.accumulate(ends)
    into_earlier = np.concatenate([[False], starts[1:] < reached[:-1]])
    into_later = np.concatenate([starts[1:] < ends[:-1], [False]])
    both: NDArray[np.bool_] = into_earlier | into_later
    return both


def last_uses(entries: Entries, uses: NDArray[Any]) -> NDArray[np.uint32]:
    """When each block was last used, in seconds: what was noted, but never before it was written."""
    last_used_s: NDArray[np.uint32] = entries["time_s"].astype(np.uint32)
    if len(uses):
        uses = uses[np.argsort(uses["offset"], kind="stable")]
        at = np.minimum(np.searchsorted(uses["offset"], entries["offset"]), len(uses) - 1)
        noted = np.where(uses["offset"][at] == entries["offset"], uses["last_used_s"][at], 0)
        last_used_s = np.maximum(last_used_s, noted.astype(np.uint32))
    return last_used_s
