from kvstore._core.records cimport *


cdef class IndexView:
    # What a reader sees. Of the writer's fields of `_index` a view of another process has none.
    cdef kv_index _index
    cdef uint32_t[::1] checked_ids(self, object ids)


# Fill `view` with keys of 32 bytes; the caller releases it.
cdef int keys_of(object keys, Py_buffer *view) except -1
cdef uint32_t[::1] u32_of(object array)
# A hint of (ending, priority, output tokens or -1); None: of nothing known.
cdef kv_hint hint_of(object numbers) except *
