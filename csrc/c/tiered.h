/* A trace through three tiers without bytes: the engine's HBM, and an index of blocks in DRAM (near) and on NVMe (far).
 *
 * What is near and far, and what goes first, is decided by the code of a daemon; when a block is put, promoted and
 * written is a set-up's (docs/decisions). A block that comes into DRAM and is what goes first was never written there.
 *
 * Where HBM's victims are put, the index knows what HBM has: as a near block that a lease of HBM's holds, which takes
 * no DRAM. That lease ends when HBM evicts it.
 */
#ifndef KV_TIERED_H
#define KV_TIERED_H

#include "evict.h"
#include "hbm.h"
#include "lease.h"
#include "policy.h"
#include "requests.h"

enum kv_promotion {
    KV_PROMOTION_KEEP = 0,      /* into DRAM, and the far copy stays */
    KV_PROMOTION_MOVE = 1,      /* into DRAM, and the far copy goes */
    KV_PROMOTION_NO_REFILL = 2, /* into HBM only, as long as there is a far copy */
};

typedef struct {
    uint64_t hbm_blocks, near_blocks, far_blocks;
    int takes_victims;  /* put when HBM evicts, else when missed */
    int writes_at_put;  /* far copies are made when a block comes near, else when it would leave */
    int writes_chains;  /* before a far copy of a block those of all that it extends are made */
    uint32_t promotion; /* kv_promotion */
    uint32_t asked_min; /* a far copy is for blocks that were asked for so often, */
    float chance_min;   /* and are asked for within KV_TIERED_CHANCE_S so likely, where the policy knows, */
    float gain_min;     /* and are worth so many times what has to go for it; 0: whatever goes */
} kv_tiering;

#define KV_TIERED_CHANCE_S 1800

typedef struct {
    uint64_t hbm_hits, near_hits, far_hits, misses;
    uint64_t near_writes, far_writes;
    uint64_t num_refused; /* blocks that the index had no entry for, which is never */
} kv_tiered_sums;

typedef struct {
    kv_index index;
    kv_table leases;     /* of requests */
    kv_table hbm_leases; /* one entry for each slot of HBM; used where it gives up its victims */
    kv_hbm hbm;
    kv_tiering tiering;
    kv_freed freed;
    kv_tiered_sums sums;
    uint64_t num_in_hbm; /* near entries that HBM holds: they take no DRAM */
    int32_t gain_levels; /* gain_min as levels */
    uint32_t chain_max, num_arrived;
    uint32_t *arrived;   /* entries that came into DRAM in this request */
    uint8_t *is_arrived; /* per entry */
    uint32_t *id_of;     /* per entry */
    uint8_t *times_asked; /* per id, at most UINT8_MAX */
    /* of one request */
    uint8_t *keys, *plan, *marks;
    uint32_t *entries, *places, *moved;
    uint64_t *words;
} kv_tiered;

/* No request has more than `chain_max` of the `num_ids` blocks. 0, or -errno and nothing to destroy. */
int kv_tiered_create(kv_tiered *tiered, const kv_policy *policy, const kv_tiering *tiering, uint32_t num_ids,
                     uint32_t chain_max);
void kv_tiered_destroy(kv_tiered *tiered);
/* Play requests [first, last) and add to `sums`. */
void kv_tiered_play(kv_tiered *tiered, const kv_requests *requests, const uint8_t *keys, uint32_t first, uint32_t last);
/* Audit: 0, or the number of the broken rule: of the index, or 200 and more. */
int kv_tiered_check(const kv_tiered *tiered);

#endif
