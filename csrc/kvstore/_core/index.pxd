from kvstore._core.records cimport *
from kvstore._core.view cimport IndexView

cdef extern from "policies.h" nogil:
    const kv_policy *kv_policy_find(const char *name)
    const char *kv_policy_name(uint32_t number)
    uint32_t KV_LEVEL_ANY

cdef extern from "survival.h" nogil:
    float kv_level_value(uint32_t level)

ctypedef void (*marker)(kv_index *, const uint32_t *, uint32_t, uint8_t *) noexcept nogil


cdef class Index(IndexView):
    # Owns the index's memory. Every method but `match` is the writer's: the caller holds the store's lock, which keeps
    # the steps of a caller together; the index's own lock keeps single calls apart, also those of other threads.
    cdef bint _open
    cdef list _tables           # keeps the attached tables alive as long as evictions scan them
    cdef kv_freed _freed        # scratch of the evicting methods; one writer, so one is enough
    # Let evictions scan `table`; `owner` lives as long as this index. LimitExceeded over 256 tables.
    cdef int attach(self, kv_table *table, object owner) except -1
    cdef uint32_t[::1] _ids(self, object ids)
    cdef object _take_freed(self)
    cdef object _marked(self, object ids, marker mark)
