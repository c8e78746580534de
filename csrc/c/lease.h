/* Lease tables: one per client, the only memory a client writes.
 *
 * A lease on a block is its id + 1 stored in one entry of the client's table. Entries come in groups of
 * KV_GROUP; one lease of n blocks takes ceil(n / KV_GROUP) groups. A client that dies leaves a table that its owner
 * zeroes: nothing else has to be undone.
 */
#ifndef KV_LEASE_H
#define KV_LEASE_H

#include <pthread.h>

#include "index.h"

#define KV_GROUP 64
#define KV_TOUCHES 8192 /* power of two */

/* The shared part: header, touch ring, entries. */
typedef struct {
    uint64_t magic;
    uint32_t entries_max;
    _Atomic uint32_t groups_top; /* groups at and above this are zero; set before the entries of a group are */
    _Atomic uint32_t touch_head; /* next to write: the client's */
    _Atomic uint32_t touch_tail; /* next to read: the writer's */
    kv_lookups counted;          /* of counted acquires: the client's */
    _Atomic uint32_t is_closed;  /* the owner's: nothing that is leased from now on counts */
    uint32_t reserved;
    uint32_t touch[KV_TOUCHES]; /* ids of the deepest block of each access; lossy when full */
    _Atomic uint32_t lease[];   /* id + 1, or 0; behind the last one a kv_turn for each group */
} kv_leases;

/* A lease of another process may be taken away when it is held for too long (revocation): its client finds that out
 * after it has copied, by `revoked`. Each time a group is taken it has another `turn`. */
typedef struct {
    _Atomic uint32_t turn;    /* the client's; raised before the first lease of a turn */
    _Atomic uint32_t revoked; /* the owner's: the turn that it revoked last */
} kv_turn;

#define KV_LEASE_MAGIC 0x327365737361654cULL
static inline size_t kv_table_nbytes(uint32_t num_groups) {
    return sizeof(kv_leases) + (size_t)num_groups * (KV_GROUP * sizeof(uint32_t) + sizeof(kv_turn));
}

/* A process's handle: `shared` plus the client's private free list of groups. */
struct kv_table {
    kv_leases *shared;
    kv_turn *turns;
    uint32_t num_groups, groups_free, free_head;
    uint32_t touches_max; /* brought into the order by one drain */
    uint32_t *group_next;
    uint32_t *revoked; /* the owner's own copy of each turn's `revoked`, which the client cannot write; NULL: none was */
    size_t nbytes;
    int fd;
    pthread_mutex_t lock; /* guards the counters, the free list and the touch ring's head: threads of one client share a table */
};

/* What one acquire got. `group` heads the list of its groups, KV_NONE when it holds nothing. */
typedef struct {
    uint32_t group, num_blocks, num_near;
    uint32_t stop; /* kv_stop: why it ended before the last key */
} kv_held;

enum kv_stop {
    KV_STOP_END = 0,  /* every key was found */
    KV_STOP_MISS = 1, /* the next block is not stored */
    KV_STOP_BUSY = 2, /* an eviction was looking at the next block: ask again */
    KV_STOP_FULL = 3, /* the table has no free entries for the rest */
};

int kv_table_create(kv_table *table, uint32_t entries_max); /* 0 or -errno */
void kv_table_destroy(kv_table *table);
/* The private half of a table whose shared half is mapped already. 0 or -ENOMEM. */
int kv_table_adopt(kv_table *table, uint32_t num_groups);

/* Lease the leading VALID blocks of `keys`; a block of another namespace than `ns` (KV_NONE: of any) is a miss. Lock-free
 * towards the writer. `counted`: add it to the counters (a retry is not counted again). */
void kv_lease_acquire(const kv_index *index, kv_table *table, uint32_t ns, const uint8_t *keys, uint32_t num_keys,
                      int counted, kv_held *held);
/* The writer leases ids that it reserved, whatever their state, so that their places outlive the reservation: 0, or -1
 * and nothing held when the table has no free entries for all of them. */
int kv_lease_hold(kv_table *table, const uint32_t *ids, uint32_t num_ids, kv_held *held);
void kv_lease_release(kv_table *table, kv_held *held);
void kv_lease_ids(const kv_table *table, const kv_held *held, uint32_t *ids);
/* Whether all of these leases have held until now. What was copied under them is good only if they have. */
int kv_lease_intact(const kv_table *table, const kv_held *held);
uint32_t kv_lease_touches(const kv_table *table); /* waiting in the ring */
/* Whether a group has a lease in it, and how many do, as the owner of the index sees them. */
static inline int kv_lease_holds(const kv_table *table, uint32_t group) {
    uint32_t any = 0;
    for (uint32_t i = 0; i < KV_GROUP; i++)
        any |= atomic_load_explicit(&table->shared->lease[(size_t)group * KV_GROUP + i], memory_order_relaxed);
    return any != 0;
}
static inline uint32_t kv_lease_num_held(const kv_table *table) {
    uint32_t top = atomic_load_explicit(&table->shared->groups_top, memory_order_relaxed), num = 0;
    for (uint32_t group = 0; group < top && group < table->num_groups; group++) num += kv_lease_holds(table, group) != 0;
    return num;
}
/* Entries in use (whole groups), as its client sees them. */
uint32_t kv_lease_used(const kv_table *table);

#endif
