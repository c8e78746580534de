from libc.stdint cimport uint8_t, uint32_t, uint64_t, int64_t


cdef extern from "memory.h" nogil:
    enum: KV_CHUNK_NBYTES
    ctypedef struct kv_memory:
        uint8_t *base
        size_t nbytes
        int fd
        int pages
        char *reason
        uint64_t prefaulted_nbytes
        int stop
    int kv_memory_map(kv_memory *memory, size_t nbytes, int shared, int base_pages, uint64_t *available)
    int kv_memory_adopt(kv_memory *memory, size_t nbytes, int fd, int writable)
    void kv_memory_unmap(kv_memory *memory)
    int kv_memory_prefault(kv_memory *memory)

cdef extern from "slots.h" nogil:
    enum: KV_PLACE_NBYTES
    enum: KV_CHUNK_PLACES
    enum: KV_CLASSES_MAX
    enum: KV_SLOTS_FOREIGN
    enum: KV_SLOTS_CLASSES
    ctypedef struct kv_slots:
        uint32_t num_chunks
        uint64_t used_nbytes, num_blocks
    int kv_slots_create(kv_slots *slots, uint64_t nbytes)
    void kv_slots_destroy(kv_slots *slots)
    int kv_slots_class(kv_slots *slots, uint64_t nbytes)
    int64_t kv_slots_allocate(kv_slots *slots, int class_number, uint32_t num, uint32_t *places)
    int kv_slots_free(kv_slots *slots, int class_number, const uint32_t *places, uint32_t num)
    int kv_slots_hold(const kv_slots *slots, int class_number, const uint32_t *places, uint32_t num)
    uint64_t kv_slots_available(const kv_slots *slots, int class_number)
    int kv_slots_vacate(const kv_slots *slots, int class_number, uint32_t *first, uint32_t *last)
    int kv_slots_check(const kv_slots *slots)


cdef class Arena:
    # Owns the memory; freed only when no view of it is left.
    cdef kv_memory _memory
    cdef kv_slots _slots
    cdef bint _open
    cdef readonly Py_ssize_t exports    # views handed out and not released, and copies by address under way
    cdef int _prefaulting               # threads inside kv_memory_prefault
    cdef int _class(self, object nbytes) except -1


cdef class _Exporter:
    # The object behind every view of one window: keeps the arena alive and counts.
    cdef Arena _arena
    cdef object _on_release
    cdef uint8_t *_cursor               # what the next buffer request gets
    cdef Py_ssize_t _nbytes
    cdef Py_ssize_t _num_exports
    cdef bint _readonly
    cdef bint _closed
    cdef int _finish(self) except -1
