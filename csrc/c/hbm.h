/* An engine's own cache in front of the store: least recently used first, a chain from its end on.
 *
 * Blocks are the dense ids of requests.h. Each that is in has a slot of its own below `capacity` + 1.
 */
#ifndef KV_HBM_H
#define KV_HBM_H

#include <stdint.h>

#define KV_HBM_NONE UINT32_MAX

typedef struct {
    uint32_t capacity, num_blocks;
    uint32_t oldest, newest; /* slots, or KV_HBM_NONE */
    uint32_t *slot_of;       /* per id: its slot, or KV_HBM_NONE */
    uint32_t *ids, *older, *newer; /* per slot */
    uint32_t free_head;      /* slots that are free, linked through `newer` */
} kv_hbm;

/* 0, or -ENOMEM and nothing to destroy. */
int kv_hbm_create(kv_hbm *hbm, uint32_t capacity, uint32_t num_ids);
void kv_hbm_destroy(kv_hbm *hbm);
static inline int kv_hbm_has(const kv_hbm *hbm, uint32_t id) { return hbm->slot_of[id] != KV_HBM_NONE; }
/* It is the newest from now on. Returns whether it was not in before; kv_hbm_evict comes before the next use then. */
int kv_hbm_use(kv_hbm *hbm, uint32_t id);
/* While it holds more than its capacity: the oldest goes. Its slot, where `ids` still names it, or KV_HBM_NONE. */
uint32_t kv_hbm_evict(kv_hbm *hbm);

#endif
