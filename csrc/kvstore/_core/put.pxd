from kvstore._core.arena cimport Arena, kv_slots
from kvstore._core.index cimport Index
from kvstore._core.records cimport *


cdef extern from "put.h" nogil:
    ctypedef struct kv_fresh:
        uint64_t word
        uint32_t id
        uint16_t ns
    ctypedef struct kv_put:
        int has_far
        uint64_t arriving_nbytes
        uint64_t num_unqueued, num_bypassed, num_unworthy
        uint32_t fresh_head, fresh_tail
        kv_freed freed
    enum kv_put_flag:
        KV_LATE
        KV_PAST_QUOTA
        KV_PAST_ENTRIES
        KV_AGAIN
    enum kv_put_code:
        KV_PUT_OK
        KV_PUT_LEASES
        KV_PUT_FOREIGN
        KV_PUT_QUOTA
        KV_PUT_ENTRIES
        KV_PUT_ROOM
        KV_PUT_MEMORY
    enum kv_put_short:
        KV_SHORT_ROOM
        KV_SHORT_ENTRIES
        KV_SHORT_QUOTA
        KV_SHORT_WORTH
    ctypedef struct kv_wish:
        const uint8_t *keys
        uint32_t num_keys, shard, flags
        uint16_t ns
        kv_hint hint
    ctypedef struct kv_grant:
        uint8_t *plan
        uint32_t *ids
        uint32_t *places
        uint32_t num_wanted, num_places
        int why
    int kv_put_create(kv_put *put, kv_index *index, kv_slots *slots, uint64_t near_nbytes, uint32_t queue_blocks)
    void kv_put_destroy(kv_put *put)
    void kv_put_set_far(kv_put *put, int has_far)
    void kv_put_set_worth(kv_put *put, float chance_min, float gain_min)
    void kv_put_set_far_full(kv_put *put, int is_full)
    int kv_put_reserve(kv_put *put, kv_table *table, const kv_wish *wish, kv_grant *grant)
    uint32_t kv_put_commit(kv_put *put, const uint32_t *ids, uint32_t num_ids, uint32_t shard)
    void kv_put_abandon(kv_put *put, const uint32_t *ids, uint32_t num_ids, uint32_t shard)
    uint32_t kv_put_expire(kv_put *put, const uint32_t *ids, const uint64_t *words, uint32_t num_ids, int is_over)
    uint32_t kv_put_room(kv_put *put, uint16_t ns, uint32_t num, int drop_unwritten, uint32_t *places)
    void kv_put_arrived(kv_put *put, uint64_t nbytes)
    uint64_t kv_put_evict(kv_put *put, uint64_t nbytes, int keep_unwritten)
    void kv_put_reap(kv_put *put)
    uint64_t kv_put_used_nbytes(const kv_put *put, uint64_t *taken_nbytes)
    uint32_t kv_put_num_fresh(const kv_put *put)
    uint64_t kv_put_nbytes(const kv_put *put)
    uint32_t kv_put_take_fresh(kv_put *put, kv_fresh *out, uint32_t max)
    uint32_t kv_put_take_far(kv_put *put, uint32_t *places, uint16_t *ns, uint32_t max)


cdef class PutPath:
    # Owns the queues; index and arena outlive it. Scratch is the reserving thread's, who holds the store's lock.
    cdef kv_put _put
    cdef Index _index
    cdef Arena _arena
    cdef uint8_t *_plan
    cdef uint32_t *_ids
    cdef uint32_t *_places
    cdef uint32_t _scratch_keys
    cdef int _make_scratch(self, uint32_t num_keys) except -1
