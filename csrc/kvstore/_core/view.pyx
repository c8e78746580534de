"""What a reader sees of an index, its owner or another process, and how keys, ids and hints cross from Python."""

from cpython.buffer cimport PyBUF_C_CONTIGUOUS, PyBUF_FORMAT, PyBUF_ND, PyBuffer_Release, PyObject_GetBuffer

import numpy as np

from kvstore.errors import InvalidRequest

ENTRIES_MAX = 2**31


cdef int keys_of(object keys, Py_buffer *view) except -1:
    """Fill `view` with keys of 32 bytes: a (n, 32) array of bytes, or bytes whose length is a multiple of 32."""
    try:
        PyObject_GetBuffer(keys, view, PyBUF_C_CONTIGUOUS | PyBUF_ND | PyBUF_FORMAT)
    except (BufferError, TypeError, ValueError) as error:
        raise InvalidRequest(f"keys must be a contiguous uint8 array (num_blocks, {KV_KEY_NBYTES}): {error}") from None
    cdef bint fits = view.itemsize == 1 and (
        (view.ndim == 2 and view.shape[1] == KV_KEY_NBYTES) or (view.ndim == 1 and view.len % KV_KEY_NBYTES == 0)
    )
    if not fits or view.len // KV_KEY_NBYTES > ENTRIES_MAX:
        shape = tuple([view.shape[i] for i in range(view.ndim)])
        itemsize = view.itemsize
        PyBuffer_Release(view)
        raise InvalidRequest(
            f"keys must be uint8 of shape (num_blocks, {KV_KEY_NBYTES}), not {itemsize}-byte items of shape {shape}"
        )
    return 0


cdef uint32_t[::1] u32_of(object array):
    try:
        return array
    except (TypeError, ValueError):    # not contiguous, or no uint32
        return np.ascontiguousarray(array, dtype=np.uint32)


cdef kv_hint hint_of(object numbers) except *:
    cdef kv_hint hint
    hint.ending = hint.priority = hint.zero = 0
    hint.output_tokens = KV_TOKENS_UNKNOWN
    if numbers is not None:
        hint.ending, hint.priority, tokens = numbers
        if tokens >= 0:
            hint.output_tokens = tokens
    return hint


cdef class IndexView:
    """What a reader sees of an index, in this process or another."""

    cdef uint32_t[::1] checked_ids(self, object ids):
        cdef uint32_t[::1] view = u32_of(ids)
        cdef Py_ssize_t i
        for i in range(view.shape[0]):
            if view[i] >= self._index.entries_max:
                raise InvalidRequest(f"id {view[i]} is over the index's {self._index.entries_max} entries")
        return view

    def match(self, keys, int ns=-1):
        """(leading blocks stored, leading ones of them near, near ones in all). Protects nothing.

        `ns`: a block of another namespace than this one is a miss; -1: of any.
        """
        cdef Py_buffer view
        cdef uint32_t near = 0, near_total = 0, matched
        keys_of(keys, &view)
        matched = kv_index_match(&self._index, <uint32_t>ns, <const uint8_t *>view.buf,
                                 <uint32_t>(view.len // KV_KEY_NBYTES), &near, &near_total)
        PyBuffer_Release(&view)
        return matched, near, near_total
