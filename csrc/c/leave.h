/* A far tier that leaves while the index lives, or has come: what its copies are to the index then. */
#ifndef KV_LEAVE_H
#define KV_LEAVE_H

#include "index.h"

/* These blocks have no far copy any more; its place is not handed out. What is stored nowhere else keeps it: such a
 * block has to leave the index first. */
void kv_leave_lose(kv_index *index, const uint32_t *ids, uint32_t num_ids);
/* Hand out far places of removed blocks, whoever leases these: nobody reads a far place under a lease. Returns how many
 * it put into `places` and `ns`, at most `max`; fewer are all. */
uint32_t kv_leave_take_removed(kv_index *index, uint32_t *places, uint16_t *ns, uint32_t max);
/* List those of `ids` whose state words are still `words` and that are only far at the hot end of the far order, one
 * after the other, as if each was last used at access number `accesses[i]`. */
void kv_leave_relist(kv_index *index, const uint32_t *ids, const uint64_t *words, const uint32_t *accesses,
                     uint32_t num_ids);
/* VALID near blocks without a far copy: a piece of a walk, as kv_index_walk_far. */
uint32_t kv_leave_walk_unwritten(const kv_index *index, kv_walk *walk, uint32_t *ids);

#endif
