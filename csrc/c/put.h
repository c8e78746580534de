/* The put path: room in the near tier, reservations and commits, each one call under the index's lock.
 *
 * The embedded store and the thread that serves attached clients make the same calls, and the latter has no interpreter:
 * nothing here waits, and nothing here needs anybody else. Where room cannot be had without waiting for a write-back,
 * or without a decision of the store (quota, index entries), a call says so and changes nothing. What the store has to
 * learn later lies in two bounded queues until it takes it: blocks that became visible and have no far copy yet, and
 * far places that came free.
 */
#ifndef KV_PUT_H
#define KV_PUT_H

#include "evict.h"
#include "hint.h"
#include "lease.h"
#include "slots.h"

/* A block that became visible and has no far copy, as it was then. */
typedef struct {
    uint64_t word;
    uint32_t id;
    uint16_t ns;
} kv_fresh;

typedef struct {
    kv_index *index;
    kv_slots *slots;
    uint64_t put_nbytes;  /* committed so far */
    uint64_t near_nbytes; /* what stored, reserved and arriving blocks may take together, but for the spare slots */
    /* below: guarded by the index's lock */
    int has_far;
    float chance_min;    /* of being asked for within KV_CHANCE_S, for a far copy; policies without an opinion: any */
    int32_t gain_levels; /* and of a level so far above what has to go for it, while the far tier is full */
    int far_is_full;
    uint64_t arriving_nbytes; /* near slots that are being filled from the far tier */
    kv_freed freed;           /* near places go back to `slots` at once; far places wait here for the store */
    kv_fresh *fresh;          /* a ring, `fresh_mask` + 1 long */
    uint32_t fresh_mask, fresh_head, fresh_tail;
    uint64_t num_unqueued; /* blocks that became visible while the ring was full: they stay near only */
    uint32_t *scratch;     /* what a commit published, and whether it committed */
    size_t scratch_max;
    uint32_t *levels; /* of what a reservation wants, */
    float *chances;   /* and how likely each is asked for again; of a commit likewise */
    size_t appraised_max;
    uint64_t num_unworthy; /* blocks that were not worth a far copy when they became visible */
    uint64_t num_bypassed; /* blocks that got no place because nothing of less worth could go */
} kv_put;

/* `slots` and `index` outlive it; `queue_blocks` bounds the ring. 0 or -ENOMEM. */
int kv_put_create(kv_put *put, kv_index *index, kv_slots *slots, uint64_t near_nbytes, uint32_t queue_blocks);
void kv_put_destroy(kv_put *put);
#define KV_CHANCE_S 1800
/* From now on there is a far tier, or there is none: then nobody waits for a write-back any more, and what was to be told
 * of far copies is forgotten. */
void kv_put_set_far(kv_put *put, int has_far);
/* Far copies are for blocks that are asked for within KV_CHANCE_S so likely, and once there is no room, are worth so many
 * times what has to go for them; 0: for all. Policies without an opinion: for all. */
void kv_put_set_worth(kv_put *put, float chance_min, float gain_min);
void kv_put_set_far_full(kv_put *put, int is_full);

enum kv_put_flag {
    KV_LATE = 1 << 0,         /* take what is to be had: drop blocks without a far copy, grant less than is wanted */
    KV_PAST_QUOTA = 1 << 1,   /* the store made what room it could within the quota: grant what that allows */
    KV_PAST_ENTRIES = 1 << 2, /* likewise index entries */
    KV_AGAIN = 1 << 3,        /* this request was told before */
};

enum kv_put_code {
    KV_PUT_OK = 0,
    KV_PUT_LEASES = 1,  /* the lease table has no room for the stored prefix */
    KV_PUT_FOREIGN = 2, /* position `num_wanted` is a key of another namespace */
    KV_PUT_QUOTA = 3,   /* the store has to make room for `num_wanted` blocks within the quota */
    KV_PUT_ENTRIES = 4, /* the store has to make `num_wanted` index entries free */
    KV_PUT_ROOM = 5,    /* no room before a write-back is done, unless KV_LATE */
    KV_PUT_MEMORY = 6,  /* no memory for another slab, or over the number of slot sizes */
};

/* Why positions of a reservation that were wanted got nothing. */
enum kv_put_short {
    KV_SHORT_ROOM = 0,
    KV_SHORT_ENTRIES = 1,
    KV_SHORT_QUOTA = 2,
    KV_SHORT_WORTH = 3, /* everything that could make room is worth more */
};

typedef struct {
    const uint8_t *keys; /* the whole chain from the first block of the prompt */
    uint32_t num_keys, shard, flags; /* kv_put_flag */
    uint16_t ns;
    kv_hint hint; /* KV_NO_HINT: none was given */
} kv_wish;

/* The answer to a wish; the arrays have room for num_keys. */
typedef struct {
    uint8_t *plan;  /* kv_plan of each position */
    uint32_t *ids;  /* of what is there or was granted, else KV_NONE */
    uint32_t *places;
    uint32_t num_wanted, num_places;
    enum kv_put_short why;
} kv_grant;

/* Reserve part `shard` of what is not stored of a chain: lease the stored prefix in `table` (so that making room cannot
 * take away what this extends), plan, make room, begin. With any code but KV_PUT_OK nothing was reserved. */
enum kv_put_code kv_put_reserve(kv_put *put, kv_table *table, const kv_wish *wish, kv_grant *grant);
/* Commit a part of reserved ids. Returns how many of them can never become visible, or num_ids without memory. */
uint32_t kv_put_commit(kv_put *put, const uint32_t *ids, uint32_t num_ids, uint32_t shard);
void kv_put_abandon(kv_put *put, const uint32_t *ids, uint32_t num_ids, uint32_t shard);
/* Undo those of `ids` that are still being written as when their state words were `words`. Returns how many are; with
 * `is_over` they are removed now, and their slots wait for their owner. */
uint32_t kv_put_expire(kv_put *put, const uint32_t *ids, const uint64_t *words, uint32_t num_ids, int is_over);
/* Near places for up to `num` far blocks that are coming near; they count as arriving until kv_put_arrived. */
uint32_t kv_put_room(kv_put *put, uint16_t ns, uint32_t num, int drop_unwritten, uint32_t *places);
void kv_put_arrived(kv_put *put, uint64_t nbytes);
/* Evict near copies; returns the bytes that came free. */
uint64_t kv_put_evict(kv_put *put, uint64_t nbytes, int keep_unwritten);
/* Give back what removed blocks occupied, as far as nobody leases them. */
void kv_put_reap(kv_put *put);
/* Bytes of slots that were committed so far, of a block with shards its part. */
uint64_t kv_put_nbytes(const kv_put *put);
/* Bytes of near slots that are stored, reserved, or being filled from the far tier; `taken_nbytes`: those that `slots`
 * has given out. The same, whatever goes on meanwhile. */
uint64_t kv_put_used_nbytes(const kv_put *put, uint64_t *taken_nbytes);
/* How many blocks became visible so far, modulo 2^32: whoever found nothing to write at another number may look again. */
uint32_t kv_put_num_fresh(const kv_put *put);
/* Take up to `max` waiting blocks, or far places with their namespaces; return how many. */
uint32_t kv_put_take_fresh(kv_put *put, kv_fresh *out, uint32_t max);
uint32_t kv_put_take_far(kv_put *put, uint32_t *places, uint16_t *ns, uint32_t max);

#endif
