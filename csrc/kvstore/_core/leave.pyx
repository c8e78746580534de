"""A far tier that leaves an index in use, or comes to one: thin wrappers over leave.h and kv_index_rejoin.

All of it is the writer's: the caller holds the store's lock.
"""

import numpy as np

from kvstore._core.index cimport Index
from kvstore._core.records cimport *

from kvstore.errors import InvalidRequest

cdef uint32_t _TAKE_MAX = 4096


def lose(Index index not None, ids):
    """These blocks have no far copy any more. A block that is only far keeps it."""
    cdef uint32_t[::1] view = index._ids(ids)
    if view.shape[0]:
        kv_leave_lose(&index._index, &view[0], <uint32_t>view.shape[0])


def take_removed(Index index not None):
    """[(namespace, places)] of the far copies of removed blocks, whoever leases these; they have none any more."""
    out = []
    cdef uint32_t num = _TAKE_MAX
    cdef uint32_t[::1] places
    cdef uint16_t[::1] namespaces
    while num == _TAKE_MAX:
        places_out, ns_out = np.empty(_TAKE_MAX, dtype=np.uint32), np.empty(_TAKE_MAX, dtype=np.uint16)
        places, namespaces = places_out, ns_out
        num = kv_leave_take_removed(&index._index, &places[0], &namespaces[0], _TAKE_MAX)
        places_out, ns_out = places_out[:num], ns_out[:num]
        out.extend((int(ns), places_out[ns_out == ns]) for ns in np.unique(ns_out))
    return out


def rejoin(Index index not None, const uint8_t[:, :] keys, const uint8_t[:, :] parents, const uint32_t[:] namespaces,
           const uint32_t[:] places, const uint64_t[:] checksums):
    """Give stored blocks the far copies that these rows name, and take in those that are not stored; parents come
    before children. Returns their ids: NONE where the parent has no far copy, the index is full, or another far copy
    is known. A reservation of such a block is undone."""
    cdef Py_ssize_t num = keys.shape[0]
    cdef kv_found found
    out = np.empty(num, dtype=np.uint32)
    cdef uint32_t[::1] ids = out
    if not num == parents.shape[0] == namespaces.shape[0] == places.shape[0] == checksums.shape[0]:
        raise InvalidRequest(f"rejoin wants columns of one length, not of {num} keys and others")
    if num == 0:
        return out
    if (keys.shape[1], keys.strides[1], parents.shape[1], parents.strides[1]) != (KV_KEY_NBYTES, 1, KV_KEY_NBYTES, 1):
        raise InvalidRequest(f"keys and parents must be uint8 (num_blocks, {KV_KEY_NBYTES}), each key in one piece")
    found.num_rows = <uint32_t>num
    found.keys.first, found.keys.stride = <const char *>&keys[0, 0], keys.strides[0]
    found.parents.first, found.parents.stride = <const char *>&parents[0, 0], parents.strides[0]
    found.namespaces.first, found.namespaces.stride = <const char *>&namespaces[0], namespaces.strides[0]
    found.places.first, found.places.stride = <const char *>&places[0], places.strides[0]
    found.checksums.first, found.checksums.stride = <const char *>&checksums[0], checksums.strides[0]
    with nogil:
        kv_index_rejoin(&index._index, &found, &ids[0])
    return out


def relist(Index index not None, ids, const uint64_t[::1] words, const uint32_t[::1] accesses):
    """List those of `ids` that are only far, and to which nothing happened since their state words were `words`, at the
    hot end of the far order, in this order; each was last used at the access of that number."""
    cdef uint32_t[::1] view = index._ids(ids)
    if not view.shape[0] == words.shape[0] == accesses.shape[0]:
        raise InvalidRequest(f"{words.shape[0]} state words and {accesses.shape[0]} accesses for {view.shape[0]} ids")
    if view.shape[0]:
        kv_leave_relist(&index._index, &view[0], &words[0], &accesses[0], <uint32_t>view.shape[0])


def unwritten(Index index not None, uint32_t at, uint32_t look_max):
    """One piece of a walk, as walk.far_in_range: (visible near blocks without a far copy, the next piece's `at`)."""
    cdef kv_walk walk = kv_walk(at, look_max, look_max)
    out = np.empty(look_max, dtype=np.uint32)
    cdef uint32_t[::1] ids = out
    found = kv_leave_walk_unwritten(&index._index, &walk, &ids[0])
    return out[:found], walk.at
