/* Making room: everything that takes blocks out of a tier, in batches, with one scan of the leases per batch. */
#ifndef KV_EVICT_H
#define KV_EVICT_H

#include "index.h"

#define KV_BATCH 256

/* Places that came free, with the namespace that says how large each is. */
typedef struct {
    uint32_t *near_places, *far_places; /* room for `capacity` each */
    uint16_t *near_ns, *far_ns;
    uint32_t capacity, num_near, num_far;
    int is_dearer; /* the last eviction stopped at a block of a higher level */
} kv_freed;

/* Register a client's lease table with the writer. 0, or -ENOSPC over KV_TABLES_MAX. */
int kv_evict_attach(kv_index *index, kv_table *table);
void kv_evict_detach(kv_index *index, kv_table *table);
/* What all tables counted, detached ones included. Returns the lease entries in use now (whole groups). */
uint32_t kv_evict_lookups(const kv_index *index, kv_lookups *sum);
/* Bring the touches that clients left into the eviction order. */
void kv_evict_drain(kv_index *index);

/* Evict from the near tier, coldest first, until `wanted_nbytes` came free or nothing more can go. Blocks with a far
 * copy stay known there, others leave the cache. With `keep_unwritten` it stops at the first block that has no far
 * copy yet (its write-back is under way); without, that block is dropped. Of a policy with levels nothing above `level`
 * goes. */
uint64_t kv_evict_near(kv_index *index, uint64_t wanted_nbytes, int keep_unwritten, uint32_t level, kv_freed *freed);
/* Evict blocks whose only copy is far, coldest leaf first. */
uint64_t kv_evict_far(kv_index *index, uint64_t wanted_nbytes, kv_freed *freed);
/* Evict blocks of one namespace from every tier, until `num_blocks` of them are gone or no more can go: the coldest leaf
 * that is only far first, then the coldest near one. At most KV_WALK_MAX entries of the orders are looked at; the next
 * call goes on from there. Returns how many are gone. */
#define KV_WALK_MAX 65536
uint32_t kv_evict_namespace(kv_index *index, uint16_t ns, uint32_t num_blocks, kv_freed *freed);
/* Evict the near copies of exactly these ids as far as they may go (parents after children). */
uint64_t kv_evict_these(kv_index *index, const uint32_t *ids, uint32_t num_ids, int keep_unwritten, kv_freed *freed);
/* Hand out the places of removed blocks that no lease holds any more. */
uint32_t kv_evict_reap(kv_index *index, kv_freed *freed);

/* Write-back. `mark` keeps the near copies in place; returns which may be written (of namespace `ns` unless that is
 * KV_NONE, VALID, near, no far copy, parent has a far copy or is marked itself). `unmark` ends it; where `written[i]`, the block has the far copy `places[i]`. */
void kv_writeback_mark(kv_index *index, uint32_t ns, const uint32_t *ids, const uint64_t *words, uint32_t num_ids,
                       uint8_t *marked);
void kv_writeback_unmark(kv_index *index, const uint32_t *ids, const uint32_t *places, const uint64_t *checksums,
                         const uint8_t *written, uint32_t num_ids, uint8_t *kept);

/* Promotion of far blocks. `mark` returns which may be promoted; `unmark` ends it; where `read[i]`, the block has a
 * near copy at `places[i]` from now on. `kept[i]` = 0 where the block was removed meanwhile: the place is unused. */
void kv_promote_mark(kv_index *index, const uint32_t *ids, uint32_t num_ids, uint8_t *marked);
void kv_promote_unmark(kv_index *index, const uint32_t *ids, const uint32_t *places, const uint8_t *read,
                       uint32_t num_ids, uint8_t *kept);

/* A far copy moves to another far place (its segment is recycled). `mark` keeps the old copy where it is; `unmark` ends
 * it; where `written[i]`, the far copy is at `places[i]` from now on. `kept[i]` = 0: the new place is unused. */
void kv_carry_mark(kv_index *index, const uint32_t *ids, uint32_t num_ids, uint8_t *marked);
void kv_carry_unmark(kv_index *index, const uint32_t *ids, const uint32_t *places, const uint8_t *written,
                     uint32_t num_ids, uint8_t *kept);

/* Leases of this turn of a group do not count any more; who holds them finds out (kv_lease_intact) before anything that
 * they were on can be evicted. `table->revoked` is there. */
void kv_evict_revoke(kv_index *index, kv_table *table, uint32_t group, uint32_t turn);

/* For leases.h users and tests: which of up to KV_BATCH ids some client leases. Caller fenced after its marks. */
void kv_evict_leased(const kv_index *index, const uint32_t *ids, uint32_t num_ids, uint8_t *leased);

#endif
