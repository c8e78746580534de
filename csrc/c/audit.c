/* The index's audit: every count and order held against the records themselves. For tests; O(entries). */
#include <stdlib.h>

#include "policy.h"

typedef struct {
    uint64_t live, near, far, writing, removed, waiting, near_nbytes, far_nbytes;
} tally;

static void count_one(const kv_index *index, uint32_t id, tally *sum, uint32_t *kids, uint32_t *near_kids) {
    const kv_record *record = &index->records[id];
    const kv_ns *ns = &index->namespaces[record->ns];
    uint8_t state = kv_state_of(record);
    if (state == KV_FREE) return;
    int near = kv_is_near(record);
    if (state == KV_WRITING) {
        sum->writing++;
        sum->waiting += index->links[id].next == ns->all_parts;
        if (record->flags & KV_ORPHAN) sum->live++;
    } else {
        sum->near += (uint64_t)near;
        sum->near_nbytes += near ? ns->slot_nbytes : 0;
        int far = index->links[id].far != KV_NONE;
        sum->far += (uint64_t)far;
        sum->far_nbytes += far ? ns->slot_nbytes : 0;
    }
    if (state == KV_REMOVED) {
        sum->removed++;
        return;
    }
    if (!(record->flags & KV_ORPHAN)) sum->live++;
    if (record->parent == KV_NONE) return;
    kids[record->parent]++;
    near_kids[record->parent] += (uint32_t)near;
}

static int check_entry(const kv_index *index, uint32_t id, const uint32_t *kids, const uint32_t *near_kids) {
    const kv_record *record = &index->records[id];
    const kv_links *links = &index->links[id];
    uint8_t state = kv_state_of(record);
    if (state == KV_FREE || state == KV_REMOVED) return kids[id] != 0 ? 10 : 0;
    if (state == KV_EVICT) return 11;
    if (links->kids != kids[id] || links->near_kids != near_kids[id]) return 12;
    uint8_t key[KV_KEY_NBYTES];
    kv_record_key(record, key);
    if (!(record->flags & KV_ORPHAN) && kv_index_find(index, key) != id) return 13;
    if (state != KV_VALID) return 0;
    if (record->parent != KV_NONE && kv_state_of(&index->records[record->parent]) != KV_VALID) return 14; /* closure */
    if (!kv_is_near(record) && links->far == KV_NONE) return 15;
    /* Nothing is out of sight of eviction: a leaf of its tier is listed. */
    int leaf = kv_is_near(record) ? links->near_kids == 0 : links->kids == 0;
    int stuck = kv_is_near(record) && links->far == KV_NONE && links->kids > 0;
    if (leaf && !stuck && !(record->flags & (KV_LISTED_NEAR | KV_LISTED_FAR))) return 16;
    return 0;
}

static int compare(const kv_index *index, const tally *sum) {
    const kv_counts *counts = &index->counts;
    if (sum->live != counts->num_entries || sum->writing != counts->num_writing) return 20;
    if (sum->near != counts->num_near || sum->near_nbytes != counts->near_nbytes) return 21;
    if (sum->far != counts->num_far || sum->far_nbytes != counts->far_nbytes) return 22;
    if (sum->removed != counts->num_removed || sum->waiting != counts->num_waiting) return 23;
    return 0;
}

int kv_index_check(const kv_index *index) {
    KV_AS_WRITER(index);
    uint32_t *kids = calloc(2 * (size_t)index->ids_used + 1, sizeof(uint32_t));
    if (kids == NULL) return 99;
    uint32_t *near_kids = kids + index->ids_used;
    tally sum = {0};
    uint64_t near_listed = 0, far_listed = 0;
    int broken = 0;
    for (uint32_t id = 0; id < index->ids_used; id++) {
        count_one(index, id, &sum, kids, near_kids);
        near_listed += (index->records[id].flags & KV_LISTED_NEAR) != 0;
        far_listed += (index->records[id].flags & KV_LISTED_FAR) != 0;
    }
    for (uint32_t id = 0; id < index->ids_used && !broken; id++) broken = check_entry(index, id, kids, near_kids);
    if (!broken) broken = compare(index, &sum);
    if (!broken) broken = index->policy->check(index, near_listed, far_listed);
    free(kids);
    return broken;
}
