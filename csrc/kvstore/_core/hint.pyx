"""Hints and expiry in the core: thin wrappers over hint.h.

All of it is the writer's: the caller holds the store's lock.
"""

from cpython.buffer cimport PyBuffer_Release

import numpy as np

from kvstore._core.index cimport Index
from kvstore._core.records cimport *
from kvstore._core.view cimport hint_of, keys_of


def tell(Index index not None, uint32_t deepest, numbers not None):
    """Tell the eviction policy the numbers of a Hint about the chain that ends at this id, after every access by now.
    An id that is not visible is not told of."""
    cdef kv_hint hint = hint_of(numbers)
    kv_evict_drain(&index._index)
    kv_index_hint(&index._index, deepest, &hint)


def chain(Index index not None, uint32_t deepest):
    """Ids of the chain that ends at this id, from its first block on, uint32 (n,); none if that is not visible."""
    cdef uint32_t none = 0
    cdef uint32_t num = kv_index_chain(&index._index, deepest, &none, 0)
    out = np.empty(num, dtype=np.uint32)
    cdef uint32_t[::1] ids = out
    if num and kv_index_chain(&index._index, deepest, &ids[0], num) != num:
        return out[:0]    # it went between the two calls
    return out[::-1].copy()


def mark(Index index not None):
    """A number for `expire`: every access so far is not later, and each that comes is."""
    return kv_index_mark(&index._index)


def expire(Index index not None, keys, uint32_t mark, uint32_t now_s):
    """Remove the blocks of a chain that nobody has used since `mark`; what something extends stays.
    Returns which of the keys are gone, bool (n,)."""
    cdef Py_buffer view
    cdef uint8_t[::1] gone
    cdef uint32_t num_keys
    keys_of(keys, &view)
    try:
        num_keys = <uint32_t>(view.len // KV_KEY_NBYTES)
        out = np.zeros(num_keys, dtype=np.uint8)
        gone = out
        index._index.now_s = now_s
        if num_keys:
            with nogil:
                kv_index_expire(&index._index, <const uint8_t *>view.buf, num_keys, mark, &gone[0])
    finally:
        PyBuffer_Release(&view)
    return out.view(np.bool_)
