/* The block index: which blocks are stored, and where the nearest copy of each lies.
 *
 * One writer at a time (whoever holds `lock`), any number of readers in this or other processes. The shared region
 * holds a header, buckets and 64-byte records; readers map it read-only and never write to it. What only the writer
 * needs (eviction order, child counts, farther copies) lies in private memory. Records are named by ids (their
 * number), never by pointers, so that every process may map the region where it likes.
 *
 * Protocol (docs/design.md, "Index and leases"): a reader publishes a lease, fences, then checks state and full key;
 * the writer marks EVICT, fences, then scans the leases. Either the reader sees the mark or the writer sees the
 * lease. A reader that dies anywhere leaves at most a lease behind.
 */
#ifndef KV_INDEX_H
#define KV_INDEX_H

#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "events.h"

#define KV_KEY_NBYTES 32
#define KV_KEY_WORDS 4
#define KV_BUCKET_SLOTS 7
#define KV_NONE UINT32_MAX /* no id, no place */
#define KV_TABLES_MAX 256
#define KV_NAMESPACES_MAX 65535
#define KV_SHARDS_MAX 32

enum kv_state {
    KV_FREE = 0,
    KV_WRITING = 1, /* reserved: found by writers, invisible to readers */
    KV_VALID = 2,
    KV_EVICT = 3,   /* an eviction is looking at it; for microseconds */
    KV_REMOVED = 4, /* no longer found; waits for its last lease to end */
};

enum kv_tier { KV_NEAR = 0, KV_FAR = 1 }; /* the tier in `where`: readable in place, or to be promoted first */

enum kv_flag {
    KV_LISTED_NEAR = 1 << 0, /* in the near eviction order */
    KV_LISTED_FAR = 1 << 1,  /* in the far eviction order */
    KV_WRITEBACK = 1 << 2,   /* its bytes are being copied to the far tier: the near copy must stay */
    KV_PROMOTING = 1 << 3,   /* its bytes are being copied near: the far copy must stay */
    KV_ORPHAN = 1 << 4,      /* a reservation that can no longer become visible */
    KV_CHECKED = 1 << 5,     /* `checksum` is known */
    KV_HELD = 1 << 6,        /* the policy's: listed, and not to be offered for a while */
    KV_STAYS_NEAR = 1 << 7,  /* it is not worth a far copy: what takes its place need not wait for one */
};

typedef struct {
    _Atomic uint64_t state; /* generation:56 | kv_state:8 */
    _Atomic uint64_t key[KV_KEY_WORDS];
    _Atomic uint64_t where; /* kv_tier:32 | place:32 */
    uint64_t checksum;      /* XXH3-64 of the bytes, once written to the far tier */
    uint32_t parent;        /* id, KV_NONE for the first block of a prompt; a stored child keeps its parent stored */
    uint16_t ns;
    uint16_t flags; /* kv_flag; the writer's */
} kv_record;
_Static_assert(sizeof(kv_record) == 64, "a record is one cache line");

typedef struct {
    _Atomic uint64_t slot[KV_BUCKET_SLOTS]; /* tag:32 | id + 1:32; 0 = empty */
    _Atomic uint64_t overflow;              /* entries whose probe passed over this bucket */
} kv_bucket;
_Static_assert(sizeof(kv_bucket) == 64, "a bucket is one cache line");

#define KV_INDEX_MAGIC 0x3178646e49766bULL /* "kvIndx1" */
#define KV_INDEX_ABI 2
typedef struct {
    uint64_t magic, abi;
    uint64_t entries_max, num_buckets;
    uint64_t seed[2];                     /* random per index: keys come from clients */
    uint64_t buckets_offset, records_offset, total_nbytes;
    /* For estimates: whether the far tier answers, bytes on their way near, and how fast they come (0: not known). */
    _Atomic uint64_t far_is_well, arriving_nbytes, read_nbytes_per_s;
} kv_header;

/* Writer-private, one per record. While WRITING, `prev` holds the parts that are out in a reservation and `next`
 * the parts that were committed (bit = shard). */
typedef struct {
    uint32_t prev, next; /* eviction order: towards the cold, towards the hot end is `next` */
    uint32_t access;     /* number of the last access that covered this block */
    uint32_t kids;       /* children stored in any tier, reservations included */
    uint32_t near_kids;  /* children with a near copy, reservations included */
    uint32_t far;        /* place of the far copy, or KV_NONE */
} kv_links;
_Static_assert(sizeof(kv_links) == 24, "private metadata is part of the 100 bytes per block");

typedef struct {
    uint32_t cold, hot; /* ends of the order, KV_NONE when empty */
    uint64_t length;
} kv_order;

/* What readers asked for: acquires, keys, blocks that were found, and of these those that were near when first asked. */
typedef struct {
    _Atomic uint64_t num_acquires, num_keys, num_held, num_near;
} kv_lookups;

typedef struct kv_table kv_table; /* lease.h */
typedef struct kv_policy kv_policy; /* policy.h */
typedef struct kv_ranks kv_ranks;   /* of the policy's own */

typedef struct {
    uint64_t num_entries; /* in any state but FREE and REMOVED */
    uint64_t num_writing;
    uint64_t num_waiting; /* of the writing: complete, but a parent is not visible yet */
    uint64_t num_near;    /* near copies of VALID and REMOVED entries, and near_nbytes likewise */
    uint64_t num_far;
    uint64_t num_removed; /* waiting for their last lease */
    uint64_t near_nbytes, far_nbytes, writing_nbytes;
    uint64_t evicted_near, evicted_far, dropped_unwritten, spared;
    uint64_t num_hints; /* that the policy was told */
} kv_counts;

typedef struct {
    uint64_t slot_nbytes; /* bytes that one block takes in a tier */
    uint32_t all_parts;   /* bit mask of the shards that make a block complete */
    uint32_t num_entries; /* stored or being written */
    uint64_t spare_nbytes; /* near bytes that may be used on top of the capacity, so that evictions come in batches */
    uint32_t quota_end;    /* num_entries stays below it; 0: no limit */
    uint32_t tenant;       /* whose it is: number in `tenants`; 0: nobody's */
    uint32_t cursor[2];   /* id + 1 behind which the walk of an order went on to look for its blocks; 0: from the cold end */
} kv_ns;

/* What the blocks of all namespaces of a tenant take, in slots, and may take; 0: no limit. */
typedef struct {
    uint64_t used_nbytes, limit_nbytes;
} kv_tenant;

typedef struct {
    uint64_t fingerprint;
    uint32_t time_s;
    uint16_t reason; /* kv_reason */
    uint16_t level;  /* what it was worth to a policy with levels, + 1; 0: not known */
} kv_ghost;

enum kv_reason {
    KV_NEVER = 0,
    KV_WAS_EVICTED = 1,   /* from its last tier */
    KV_WAS_UNWRITTEN = 2, /* evicted before its write-back was done */
    KV_WAS_REMOVED = 3,
    KV_WAS_CORRUPT = 4,
    KV_WAS_ABANDONED = 5, /* reserved, never committed */
    KV_WAS_OVER_QUOTA = 6, /* evicted to make room within its namespace */
    KV_WAS_EXPIRED = 7,    /* its time was over, and nobody had used it again */
    KV_WAS_BYPASSED = 8,   /* never stored: everything that could have made room was worth more */
};

#define KV_NO_TIME UINT64_MAX
#define KV_GHOSTS (1u << 16)

/* The handle of one process. Readers use only the first block of fields. */
typedef struct {
    kv_header *header;
    kv_bucket *buckets;
    kv_record *records;
    uint64_t num_buckets, seed0, seed1;
    uint32_t entries_max;
    int fd;
    /* the writer's */
    pthread_mutex_t lock; /* recursive; held for one call of the core, never while anything is waited for */
    kv_links *links;
    kv_ghost *ghosts;
    kv_ns *namespaces;
    kv_tenant *tenants;       /* as many */
    uint32_t *writing;        /* ids in state WRITING, `counts.num_writing` long; place in it is links.access */
    uint32_t free_head;       /* list of freed ids through links.next */
    uint32_t ids_used;        /* ids below this were handed out at least once */
    uint32_t removed_head;    /* list of REMOVED ids through links.next */
    uint32_t clock;           /* number of the latest access */
    _Atomic uint32_t now_s;   /* set by the caller with every writing call that can make ghosts */
    _Atomic uint64_t now_ms;  /* the policy's time, set by the caller; KV_NO_TIME until it was */
    kv_order near_order, far_order;
    const kv_policy *policy;
    kv_ranks *ranks; /* what the policy keeps */
    kv_table *tables[KV_TABLES_MAX];
    uint32_t num_tables;
    kv_lookups past; /* of tables that were detached */
    kv_counts counts;
    kv_events events; /* none are kept until kv_events_create */
} kv_index;

/* Every function that changes the index, or looks at what only the writer may see, opens with KV_AS_WRITER: from there
 * to its end the calling thread is the writer. */
static inline pthread_mutex_t *kv_index_lock(const kv_index *index) {
    pthread_mutex_t *lock = (pthread_mutex_t *)&index->lock; /* const: what the function does not change itself */
    pthread_mutex_lock(lock);
    return lock;
}
static inline void kv_index_unlock(pthread_mutex_t **lock) { pthread_mutex_unlock(*lock); }
#define KV_AS_WRITER(index) \
    pthread_mutex_t *writer_lock_ __attribute__((cleanup(kv_index_unlock), unused)) = kv_index_lock(index)

/* One entry of a namespace more, or (-1) less. */
static inline void kv_index_count(kv_index *index, uint32_t ns, int change) {
    kv_ns *space = &index->namespaces[ns];
    index->counts.num_entries += (uint64_t)(int64_t)change;
    space->num_entries += (uint32_t)change;
    index->tenants[space->tenant].used_nbytes += (uint64_t)(int64_t)change * space->slot_nbytes;
}

static inline uint64_t kv_load_word(const uint8_t *bytes, int word) {
    uint64_t value;
    __builtin_memcpy(&value, bytes + 8 * word, 8);
    return value;
}

static inline uint64_t kv_where(enum kv_tier tier, uint32_t place) { return (uint64_t)tier << 32 | place; }
static inline enum kv_tier kv_where_tier(uint64_t where) { return (enum kv_tier)(where >> 32); }
static inline uint32_t kv_where_place(uint64_t where) { return (uint32_t)where; }

static inline uint8_t kv_state_of(const kv_record *record) {
    return (uint8_t)atomic_load_explicit(&record->state, memory_order_acquire);
}

/* Home of a key: 32 bits choose the bucket, 32 others are the tag. */
static inline uint64_t kv_home(const kv_index *index, const uint8_t *key) {
    __uint128_t mixed =
        (__uint128_t)(kv_load_word(key, 0) ^ index->seed0) * (kv_load_word(key, 1) ^ index->seed1);
    return (uint64_t)mixed ^ (uint64_t)(mixed >> 64);
}
static inline uint64_t kv_home_bucket(const kv_index *index, uint64_t home) {
    return (home >> 32) * index->num_buckets >> 32;
}
static inline uint32_t kv_home_tag(uint64_t home) { return (uint32_t)home; }

static inline int kv_key_equals(const kv_record *record, const uint8_t *key) {
    uint64_t differs = 0;
    for (int word = 0; word < KV_KEY_WORDS; word++)
        differs |= atomic_load_explicit(&record->key[word], memory_order_relaxed) ^ kv_load_word(key, word);
    return differs == 0;
}

/* Make an index of `entries_max` records; memory is touched only as it is used. `policy` orders its blocks, and may
 * remember `ghosts_max` that are not stored. 0, or -errno. */
int kv_index_create(kv_index *index, uint32_t entries_max, const uint64_t seed[2], const kv_policy *policy,
                    uint32_t ghosts_max);
void kv_index_destroy(kv_index *index);
/* Bytes of metadata per entry at full load: records, buckets and private links. */
double kv_index_nbytes_per_entry(const kv_index *index);

/* Is this, at the start of a region of `nbytes`, the header of an index of this version that fits into it? */
int kv_header_is_valid(const kv_header *header, uint64_t nbytes);

/* Exact lookup for the writer: the id in whatever state but FREE and REMOVED, or KV_NONE. */
uint32_t kv_index_find(const kv_index *index, const uint8_t *key);

/* Readers: leading blocks that are VALID, of namespace `ns` unless that is KV_NONE; protects nothing. Returns how many;
 * `*num_near` of them lead in the near tier without a gap, `*near_total` are near anywhere. */
uint32_t kv_index_match(const kv_index *index, uint32_t ns, const uint8_t *keys, uint32_t num_keys, uint32_t *num_near,
                        uint32_t *near_total);

enum kv_plan { KV_PRESENT = 0, KV_BUSY = 1, KV_JOIN = 2, KV_WANTED = 3 };
/* First half of a reservation of part `shard`: what each position needs. Returns the number of WANTED positions. The
 * caller leased the stored prefix before and holds it until `begin`, so that making room cannot take it away. */
uint32_t kv_index_plan(const kv_index *index, const uint8_t *keys, uint32_t num_keys, uint32_t shard, uint8_t *plan,
                       uint32_t *ids);
/* Second half: gives WANTED positions the places in order; a position without one ends the run and stays KV_NONE
 * in `ids`, as do WANTED and JOIN positions behind it, and behind one that is not as planned any more. A position that
 * repeats an earlier one becomes BUSY in `plan`, with the id of that one. Joined and new ids belong to this reservation
 * now. */
uint32_t kv_index_begin(kv_index *index, const uint8_t *keys, uint32_t num_keys, uint32_t shard, uint16_t ns,
                        uint8_t *plan, uint32_t *ids, const uint32_t *places, uint32_t num_places);
/* Commit part `shard` of reserved ids; complete blocks become visible once their parents are. Returns how many
 * became visible now; `committed[i]` = 0 where the id can no longer become visible. A commit is an access: touches that
 * came before it are drained before it (kv_evict_drain), or the order is wrong. `published` (room for num_ids +
 * counts.num_waiting) gets the ids that became visible. */
uint32_t kv_index_commit(kv_index *index, const uint32_t *ids, uint32_t num_ids, uint32_t shard, uint8_t *committed,
                         uint32_t *published);
/* Take part `shard` of reserved ids back. A block with no part left out and none committed is undone, and so is all
 * that was reserved on top of it; kv_evict_reap hands the places out. */
void kv_index_abandon(kv_index *index, const uint32_t *ids, uint32_t num_ids, uint32_t shard);
/* A recovered block: VALID with a far copy only. KV_NONE when the key exists or the index is full. */
uint32_t kv_index_adopt(kv_index *index, const uint8_t *key, uint32_t parent, uint16_t ns, uint32_t far,
                        uint64_t checksum);

/* Removal (asked for, or rotten): the ids and every block that extends them stop being found at once. Returns how
 * many were removed; kv_evict_reap hands their places out as their leases end. */
uint32_t kv_index_remove(kv_index *index, const uint32_t *ids, uint32_t num_ids, enum kv_reason reason);
/* Likewise what these keys of namespace `ns` name at this moment. */
uint32_t kv_index_remove_keys(kv_index *index, uint16_t ns, const uint8_t *keys, uint32_t num_keys,
                              enum kv_reason reason);
uint32_t kv_index_clear(kv_index *index, uint16_t ns);

/* Records that hold a copy in [first, last) of a tier: up to `ids_max` ids. */
uint32_t kv_index_in_range(const kv_index *index, enum kv_tier tier, uint32_t first, uint32_t last, uint32_t *ids,
                           uint32_t ids_max);
/* A walk over all records in pieces. Each call looks at `look_max` records from `at` on, or at fewer once it found
 * `found_max`, and moves `at` on: KV_NONE at the end. Ids that are handed out meanwhile may be missed. */
typedef struct {
    uint32_t at, look_max, found_max;
} kv_walk;
/* VALID blocks with a far copy in [first, last). Returns how many it put into `ids`; likewise below. */
uint32_t kv_index_walk_far(const kv_index *index, kv_walk *walk, uint32_t first, uint32_t last, uint32_t *ids);
/* VALID blocks with a far copy and an access later than number `since`. */
uint32_t kv_index_walk_used(const kv_index *index, kv_walk *walk, uint32_t since, uint32_t *ids);

/* Why a block is absent; with a reason but KV_NEVER also when it left, and its level + 1 then, or 0. */
kv_ghost kv_index_ghost(const kv_index *index, const uint8_t *key);
/* A block was not stored although a caller wanted it. */
void kv_index_note_bypass(kv_index *index, const uint8_t *key, uint32_t level);

/* Audit: child counts, orders, counters and buckets against the records. 0, or the number of the broken rule. */
int kv_index_check(const kv_index *index);

/* For the files of the index only. */
void kv_index_detach(kv_index *index, uint32_t id);
void kv_index_bare(kv_index *index, uint32_t parent);
void kv_index_part(kv_index *index, uint32_t id); /* it leaves the index: the policy has no more to do with it */
void kv_index_retire(kv_index *index, uint32_t id, enum kv_reason reason);
void kv_index_unhash(kv_index *index, uint32_t id);
void kv_index_note_ghost(kv_index *index, uint32_t id, enum kv_reason reason);
void kv_index_tell_stored(kv_index *index, uint32_t id);
void kv_index_tell_removed(kv_index *index, uint32_t id, enum kv_reason reason);
void kv_index_tell_cleared(kv_index *index, uint16_t ns);
uint32_t kv_index_take_id(kv_index *index);
void kv_index_give_id(kv_index *index, uint32_t id);
static inline void kv_set_state(kv_index *index, uint32_t id, enum kv_state state, int new_generation) {
    kv_record *record = &index->records[id];
    uint64_t old = atomic_load_explicit(&record->state, memory_order_relaxed);
    uint64_t generation = (old >> 8) + (new_generation ? 1 : 0);
    atomic_store_explicit(&record->state, generation << 8 | state, memory_order_release);
}
static inline uint64_t kv_record_word(const kv_record *record) {
    return atomic_load_explicit(&record->state, memory_order_acquire);
}
static inline uint64_t kv_record_where(const kv_record *record) {
    return atomic_load_explicit(&record->where, memory_order_acquire);
}
static inline uint32_t kv_record_place(const kv_record *record) {
    return kv_where_place(atomic_load_explicit(&record->where, memory_order_acquire));
}
static inline void kv_record_key(const kv_record *record, uint8_t *key) {
    for (int word = 0; word < KV_KEY_WORDS; word++) {
        uint64_t value = atomic_load_explicit(&record->key[word], memory_order_relaxed);
        __builtin_memcpy(key + 8 * word, &value, 8);
    }
}
static inline int kv_is_near(const kv_record *record) {
    return kv_where_tier(atomic_load_explicit(&record->where, memory_order_relaxed)) == KV_NEAR;
}

#endif
