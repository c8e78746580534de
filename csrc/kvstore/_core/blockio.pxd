from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t


cdef extern from "engine.h" nogil:
    const unsigned int KV_PAGE_NBYTES
    const unsigned int KV_ENGINE_DEPTH_MAX
    enum kv_engine_kind:
        KV_ENGINE_RING
        KV_ENGINE_THREADS

    ctypedef struct kv_batch:
        size_t num_blocks
        int writing
        const int32_t *fds
        const int64_t *offsets
        void **buffers
        const uint64_t *nbytes
        uint64_t *checksums
        int64_t deadline_us
        uint8_t *outcomes
        int32_t *errnos
        void *owner

    ctypedef struct kv_engine:
        pass

    int kv_engine_create(kv_engine **engine, int allow_ring, unsigned depth, unsigned num_threads)
    kv_engine_kind kv_engine_kind_of(const kv_engine *engine)
    int kv_engine_refusal(const kv_engine *engine)
    int kv_engine_submit(kv_engine *engine, kv_batch *batch)
    void kv_engine_cancel(kv_engine *engine, kv_batch *batch)
    kv_batch *kv_engine_take(kv_engine *engine, int64_t wait_us)
    int kv_engine_fileno(const kv_engine *engine)
    void kv_engine_stop(kv_engine *engine)
    void kv_engine_destroy(kv_engine *engine)
    int kv_zero_fill(int fd, int64_t offset, uint64_t nbytes, const int32_t *cancel)


cdef class Batch:
    # One batch under way or finished. The engine holds a reference from submit until it is taken back.
    cdef kv_batch _batch
    cdef Py_ssize_t _num_open
    cdef Py_buffer *_views      # owned; the first _num_open are ours to release
    cdef void **_addresses      # owned
    cdef uint64_t *_nbytes      # owned
    cdef object _fds, _offsets  # keep alive what _batch points at
    cdef bint _under_way
    cdef readonly object outcomes
    cdef readonly object checksums
    cdef readonly object errnos
    cdef public object owner
    cdef int _hold(self, buffers, bint writable) except -1
    cdef int _release(self) except -1


cdef class Engine:
    cdef kv_engine *_engine     # owned; NULL before it started
    cdef bint _stopped
