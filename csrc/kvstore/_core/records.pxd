# What index.h, hint.h, policy.h, lease.h and evict.h declare; no code.
from libc.stdint cimport int8_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t


cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_unlock(pthread_mutex_t *mutex)

cdef extern from "events.h" nogil:
    enum kv_event_kind:
        KV_EVENT_STORED
        KV_EVENT_REMOVED
        KV_EVENT_CLEARED
    ctypedef struct kv_event:
        uint16_t ns
    ctypedef struct kv_events:
        uint32_t capacity
        uint64_t newest
    int kv_events_create(kv_events *events, uint32_t capacity)
    uint64_t kv_events_oldest(const kv_events *events)
    uint32_t kv_events_read(const kv_events *events, uint64_t since, uint32_t most, kv_event *out)


cdef extern from "index.h" nogil:
    const uint32_t KV_NONE
    enum: KV_KEY_NBYTES
    enum: KV_SHARDS_MAX
    enum: KV_NAMESPACES_MAX
    enum: KV_TABLES_MAX
    enum kv_reason:
        KV_NEVER
        KV_WAS_EVICTED
        KV_WAS_UNWRITTEN
        KV_WAS_REMOVED
        KV_WAS_CORRUPT
        KV_WAS_ABANDONED
        KV_WAS_OVER_QUOTA
        KV_WAS_EXPIRED
        KV_WAS_BYPASSED
    enum kv_plan:
        KV_PRESENT
        KV_BUSY
        KV_JOIN
    enum kv_tier:
        KV_NEAR
        KV_FAR
    ctypedef struct kv_record:
        uint64_t checksum
        uint32_t parent
        uint16_t ns
        uint16_t flags
    ctypedef struct kv_links:
        uint32_t access
        uint32_t kids
        uint32_t far
    ctypedef struct kv_ns:
        uint64_t slot_nbytes, spare_nbytes
        uint32_t quota_end
        uint32_t all_parts
        uint32_t num_entries
        uint32_t tenant
    ctypedef struct kv_tenant:
        uint64_t used_nbytes, limit_nbytes
    ctypedef struct kv_order:
        uint64_t length
    ctypedef struct kv_counts:
        uint64_t num_entries, num_writing, num_waiting, num_near, num_far, num_removed
        uint64_t near_nbytes, far_nbytes, writing_nbytes
        uint64_t evicted_near, evicted_far, dropped_unwritten, spared, num_hints
    ctypedef struct kv_table
    ctypedef struct kv_policy
    ctypedef struct kv_header:
        uint64_t far_is_well, arriving_nbytes, read_nbytes_per_s
    ctypedef struct kv_lookups:
        uint64_t num_acquires, num_keys, num_held, num_near
    ctypedef struct kv_index:
        kv_header *header
        pthread_mutex_t lock
        kv_record *records
        kv_links *links
        kv_ns *namespaces
        kv_tenant *tenants
        uint32_t entries_max
        uint32_t ids_used
        uint32_t clock
        uint32_t now_s
        uint64_t now_ms
        uint32_t num_tables
        kv_order near_order
        kv_order far_order
        kv_counts counts
        kv_events events
        const kv_policy *policy
    # Between these two nothing may need the GIL: whoever has it may be waiting for the lock.
    pthread_mutex_t *kv_index_lock(const kv_index *index)
    int kv_index_create(kv_index *index, uint32_t entries_max, const uint64_t *seed, const kv_policy *policy,
                        uint32_t ghosts_max)
    void kv_index_destroy(kv_index *index)
    double kv_index_nbytes_per_entry(const kv_index *index)
    uint32_t kv_index_find(const kv_index *index, const uint8_t *key)
    uint32_t kv_index_match(const kv_index *index, uint32_t ns, const uint8_t *keys, uint32_t num_keys,
                            uint32_t *num_near, uint32_t *near_total)
    uint32_t kv_index_plan(const kv_index *index, const uint8_t *keys, uint32_t num_keys, uint32_t shard,
                           uint8_t *plan, uint32_t *ids)
    uint32_t kv_index_begin(kv_index *index, const uint8_t *keys, uint32_t num_keys, uint32_t shard, uint16_t ns,
                            uint8_t *plan, uint32_t *ids, const uint32_t *places, uint32_t num_places)
    uint32_t kv_index_commit(kv_index *index, const uint32_t *ids, uint32_t num_ids, uint32_t shard,
                             uint8_t *committed, uint32_t *published)
    void kv_index_abandon(kv_index *index, const uint32_t *ids, uint32_t num_ids, uint32_t shard)
    uint32_t kv_index_remove(kv_index *index, const uint32_t *ids, uint32_t num_ids, kv_reason reason)
    uint32_t kv_index_remove_keys(kv_index *index, uint16_t ns, const uint8_t *keys, uint32_t num_keys,
                                  kv_reason reason)
    uint32_t kv_index_clear(kv_index *index, uint16_t ns)
    uint32_t kv_index_in_range(const kv_index *index, kv_tier tier, uint32_t first, uint32_t last, uint32_t *ids,
                               uint32_t ids_max)
    ctypedef struct kv_walk:
        uint32_t at, look_max, found_max
    uint32_t kv_index_walk_far(const kv_index *index, kv_walk *walk, uint32_t first, uint32_t last, uint32_t *ids)
    uint32_t kv_index_walk_used(const kv_index *index, kv_walk *walk, uint32_t since, uint32_t *ids)
    ctypedef struct kv_ghost:
        uint32_t time_s
        uint16_t reason, level
    kv_ghost kv_index_ghost(const kv_index *index, const uint8_t *key)
    int kv_index_check(const kv_index *index)
    int kv_is_near(const kv_record *record)
    uint64_t kv_record_word(const kv_record *record)
    uint32_t kv_record_place(const kv_record *record)
    uint64_t kv_record_where(const kv_record *record)
    uint32_t kv_where_tier(uint64_t where)
    uint32_t kv_where_place(uint64_t where)
    void kv_record_key(const kv_record *record, uint8_t *key)


cdef extern from "adopt.h" nogil:
    ctypedef struct kv_column:
        const char *first
        ptrdiff_t stride
    ctypedef struct kv_found:
        uint32_t num_rows
        kv_column keys
        kv_column parents
        kv_column namespaces
        kv_column places
        kv_column checksums
    int kv_index_adopt_all(kv_index *index, const kv_found *found, uint32_t *ids)
    void kv_index_rejoin(kv_index *index, const kv_found *found, uint32_t *ids)

cdef extern from "leave.h" nogil:
    void kv_leave_lose(kv_index *index, const uint32_t *ids, uint32_t num_ids)
    uint32_t kv_leave_take_removed(kv_index *index, uint32_t *places, uint16_t *ns, uint32_t max)
    void kv_leave_relist(kv_index *index, const uint32_t *ids, const uint64_t *words, const uint32_t *accesses,
                         uint32_t num_ids)
    uint32_t kv_leave_walk_unwritten(const kv_index *index, kv_walk *walk, uint32_t *ids)

cdef extern from "hint.h" nogil:
    const uint32_t KV_TOKENS_UNKNOWN
    ctypedef struct kv_hint:
        uint8_t ending
        int8_t priority
        uint16_t zero
        uint32_t output_tokens
    bint kv_hint_is_given(const kv_hint *hint)
    void kv_index_hint(kv_index *index, uint32_t deepest, const kv_hint *hint)
    uint32_t kv_index_chain(const kv_index *index, uint32_t deepest, uint32_t *ids, uint32_t ids_max)
    uint32_t kv_index_mark(kv_index *index)
    uint32_t kv_index_expire(kv_index *index, const uint8_t *keys, uint32_t num_keys, uint32_t mark, uint8_t *gone)

cdef extern from "policy.h" nogil:
    ctypedef struct kv_policy:
        const char *name
        void access(kv_index *index, uint32_t deepest) noexcept
        void demoted(kv_index *index, uint32_t id) noexcept

cdef extern from "lease.h" nogil:
    enum: KV_GROUP
    enum: KV_TOUCHES
    ctypedef struct kv_held:
        uint32_t group, num_blocks, num_near, stop
    ctypedef struct kv_leases:
        uint32_t entries_max
    ctypedef struct kv_table:
        kv_leases *shared
        uint32_t num_groups
    enum kv_stop:
        KV_STOP_END
        KV_STOP_MISS
        KV_STOP_BUSY
        KV_STOP_FULL
    int kv_table_create(kv_table *table, uint32_t entries_max)
    void kv_table_destroy(kv_table *table)
    void kv_lease_acquire(const kv_index *index, kv_table *table, uint32_t ns, const uint8_t *keys,
                          uint32_t num_keys, int counted, kv_held *held)
    int kv_lease_hold(kv_table *table, const uint32_t *ids, uint32_t num_ids, kv_held *held)
    void kv_lease_release(kv_table *table, kv_held *held)
    int kv_lease_intact(const kv_table *table, const kv_held *held)
    void kv_lease_ids(const kv_table *table, const kv_held *held, uint32_t *ids)
    uint32_t kv_lease_touches(const kv_table *table)
    uint32_t kv_lease_used(const kv_table *table)

cdef extern from "evict.h" nogil:
    enum: KV_BATCH
    ctypedef struct kv_freed:
        uint32_t *near_places
        uint32_t *far_places
        uint16_t *near_ns
        uint16_t *far_ns
        uint32_t capacity, num_near, num_far
    int kv_evict_attach(kv_index *index, kv_table *table)
    void kv_evict_detach(kv_index *index, kv_table *table)
    uint32_t kv_evict_lookups(const kv_index *index, kv_lookups *sum)
    void kv_evict_drain(kv_index *index)
    uint64_t kv_evict_near(kv_index *index, uint64_t wanted_nbytes, int keep_unwritten, uint32_t level,
                           kv_freed *freed)
    uint64_t kv_evict_far(kv_index *index, uint64_t wanted_nbytes, kv_freed *freed)
    uint64_t kv_evict_these(kv_index *index, const uint32_t *ids, uint32_t num_ids, int keep_unwritten,
                            kv_freed *freed)
    uint32_t kv_evict_namespace(kv_index *index, uint16_t ns, uint32_t num_blocks, kv_freed *freed)
    uint32_t kv_evict_reap(kv_index *index, kv_freed *freed)
    void kv_writeback_mark(kv_index *index, uint32_t ns, const uint32_t *ids, const uint64_t *words,
                           uint32_t num_ids, uint8_t *marked)
    void kv_writeback_unmark(kv_index *index, const uint32_t *ids, const uint32_t *places,
                             const uint64_t *checksums, const uint8_t *written, uint32_t num_ids, uint8_t *kept)
    void kv_promote_mark(kv_index *index, const uint32_t *ids, uint32_t num_ids, uint8_t *marked) noexcept
    void kv_promote_unmark(kv_index *index, const uint32_t *ids, const uint32_t *places, const uint8_t *read,
                           uint32_t num_ids, uint8_t *kept)
    void kv_carry_mark(kv_index *index, const uint32_t *ids, uint32_t num_ids, uint8_t *marked) noexcept
    void kv_carry_unmark(kv_index *index, const uint32_t *ids, const uint32_t *places, const uint8_t *written,
                         uint32_t num_ids, uint8_t *kept)

cdef extern from "shared.h" nogil:
    int kv_index_map(kv_index *index, int fd)
    void kv_index_unmap(kv_index *index)
    int kv_table_map(kv_table *table, int fd)
    int kv_table_disown(kv_table *table)
