#include "hbm.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

int kv_hbm_create(kv_hbm *hbm, uint32_t capacity, uint32_t num_ids) {
    const size_t num_slots = (size_t)capacity + 1;
    *hbm = (kv_hbm){.capacity = capacity, .oldest = KV_HBM_NONE, .newest = KV_HBM_NONE};
    hbm->slot_of = malloc(((size_t)num_ids + 1) * sizeof(uint32_t));
    hbm->ids = malloc(num_slots * sizeof(uint32_t));
    hbm->older = malloc(num_slots * sizeof(uint32_t));
    hbm->newer = malloc(num_slots * sizeof(uint32_t));
    if (!hbm->slot_of || !hbm->ids || !hbm->older || !hbm->newer) {
        kv_hbm_destroy(hbm);
        return -ENOMEM;
    }
    memset(hbm->slot_of, 0xff, ((size_t)num_ids + 1) * sizeof(uint32_t));
    for (uint32_t slot = 0; slot < num_slots; slot++) hbm->newer[slot] = slot < capacity ? slot + 1 : KV_HBM_NONE;
    return 0;
}

void kv_hbm_destroy(kv_hbm *hbm) {
    free(hbm->slot_of);
    free(hbm->ids);
    free(hbm->older);
    free(hbm->newer);
    memset(hbm, 0, sizeof *hbm);
}

static void unlink_slot(kv_hbm *hbm, uint32_t slot) {
    const uint32_t older = hbm->older[slot], newer = hbm->newer[slot];
    if (older != KV_HBM_NONE) hbm->newer[older] = newer;
    else hbm->oldest = newer;
    if (newer != KV_HBM_NONE) hbm->older[newer] = older;
    else hbm->newest = older;
}

int kv_hbm_use(kv_hbm *hbm, uint32_t id) {
    uint32_t slot = hbm->slot_of[id];
    const int is_new = slot == KV_HBM_NONE;
    if (is_new) {
        slot = hbm->slot_of[id] = hbm->free_head;
        hbm->free_head = hbm->newer[slot];
        hbm->ids[slot] = id;
        hbm->num_blocks++;
    } else {
        unlink_slot(hbm, slot);
    }
    hbm->older[slot] = hbm->newest;
    hbm->newer[slot] = KV_HBM_NONE;
    if (hbm->newest != KV_HBM_NONE) hbm->newer[hbm->newest] = slot;
    else hbm->oldest = slot;
    hbm->newest = slot;
    return is_new;
}

uint32_t kv_hbm_evict(kv_hbm *hbm) {
    const uint32_t slot = hbm->oldest;
    if (hbm->num_blocks <= hbm->capacity) return KV_HBM_NONE;
    unlink_slot(hbm, slot);
    hbm->slot_of[hbm->ids[slot]] = KV_HBM_NONE;
    hbm->newer[slot] = hbm->free_head;
    hbm->free_head = slot;
    hbm->num_blocks--;
    return slot;
}
