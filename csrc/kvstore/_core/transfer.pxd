from libc.stdint cimport uint64_t


cdef extern from "copy.h" nogil:
    int KV_COPY_NUM_KERNELS
    const char* kv_copy_kernel_name(int kernel) noexcept
    bint kv_copy_kernel_usable(int kernel) noexcept
    size_t kv_copy_find_bad(
        const uint64_t* dst, const uint64_t* src, size_t num_pieces, uint64_t nbytes
    ) noexcept
    void kv_copy_pieces(
        const uint64_t* dst, const uint64_t* src, size_t num_pieces, size_t nbytes, int kernel
    ) noexcept
