"""Walks over an index's records in bounded pieces: thin wrappers over the kv_walk part of index.h.

All of it is the writer's: the caller holds the store's lock.
"""

import numpy as np

from kvstore._core.index cimport Index
from kvstore._core.records cimport *


def in_range(Index index, int tier, uint32_t first, uint32_t last):
    """Ids with a copy of `tier` (0 near, 1 far) at a place in [first, last), all at once."""
    out = np.empty(index._index.ids_used + 1, dtype=np.uint32)
    cdef uint32_t[::1] ids = out
    found = kv_index_in_range(&index._index, <kv_tier>tier, first, last, &ids[0], <uint32_t>ids.shape[0])
    return out[:found]


def far_in_range(Index index, uint32_t at, uint32_t look_max, uint32_t first, uint32_t last):
    """One piece of a walk, which begins with `at` = 0: (ids with a far copy at a place in [first, last), the next
    piece's `at`, or NONE at the end). Looks at `look_max` records."""
    cdef kv_walk walk = kv_walk(at, look_max, look_max)
    out = np.empty(look_max, dtype=np.uint32)
    cdef uint32_t[::1] ids = out
    found = kv_index_walk_far(&index._index, &walk, first, last, &ids[0])
    return out[:found], walk.at


def used_since(Index index, uint32_t at, uint32_t look_max, uint32_t found_max, uint32_t since):
    """As far_in_range, of ids with a far copy whose last access is later than number `since`, up to `found_max`: (ids,
    the numbers of their last accesses, the next piece's `at`, or NONE)."""
    cdef kv_walk walk = kv_walk(at, look_max, found_max)
    out = np.empty(found_max, dtype=np.uint32)
    cdef uint32_t[::1] ids = out
    found = kv_index_walk_used(&index._index, &walk, since, &ids[0])
    return out[:found], accesses(index, out[:found]), walk.at


def accesses(Index index, ids):
    """Number of the last access to each id, uint32 (n,)."""
    cdef uint32_t[::1] view = index._ids(ids)
    out = np.empty(view.shape[0], dtype=np.uint32)
    cdef uint32_t[::1] numbers = out
    cdef Py_ssize_t i
    for i in range(view.shape[0]):
        numbers[i] = index._index.links[view[i]].access
    return out
