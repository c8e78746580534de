from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t


cdef extern from "blockio.h" nogil:
    const unsigned int KV_BLOCKIO_ALIGN

    ctypedef struct kv_blockio_batch:
        size_t num_blocks
        const int32_t *fds
        const int64_t *offsets
        void **buffers
        const uint64_t *nbytes
        const uint8_t *tails
        int64_t deadline_us
        const int32_t *cancel
        uint8_t *outcomes
        int32_t *errnos

    void kv_blockio_write(const kv_blockio_batch *batch, uint64_t *checksums) noexcept
    void kv_blockio_read(const kv_blockio_batch *batch, const uint64_t *checksums) noexcept
    int kv_blockio_zero(int fd, int64_t offset, uint64_t nbytes, const int32_t *cancel) noexcept


cdef class Held:
    # The open views of one batch's buffers: they keep the memory where it is until this object goes.
    cdef Py_ssize_t num_open
    cdef Py_buffer *views       # owned; the first num_open are ours to release
    cdef void **addresses       # owned; NULL together with views and nbytes while empty
    cdef uint64_t *nbytes       # owned
