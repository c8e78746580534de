/* Walks over the records by id: what has to look at all of them does so a bounded piece at a time. */
#include "index.h"

uint32_t kv_index_in_range(const kv_index *index, enum kv_tier tier, uint32_t first, uint32_t last, uint32_t *ids,
                           uint32_t ids_max) {
    KV_AS_WRITER(index);
    uint32_t found = 0;
    for (uint32_t id = 0; id < index->ids_used && found < ids_max; id++) {
        const kv_record *record = &index->records[id];
        if (kv_state_of(record) != KV_VALID) continue;
        uint64_t where = atomic_load_explicit(&record->where, memory_order_relaxed);
        uint32_t place = tier == KV_FAR ? index->links[id].far : kv_where_place(where);
        if (tier == KV_NEAR && kv_where_tier(where) != KV_NEAR) continue;
        if (place != KV_NONE && place >= first && place < last) ids[found++] = id;
    }
    return found;
}

static uint32_t walk_end(const kv_index *index, const kv_walk *walk) {
    uint32_t left = index->ids_used > walk->at ? index->ids_used - walk->at : 0;
    return walk->at + (left < walk->look_max ? left : walk->look_max);
}

static uint32_t walked_to(const kv_index *index, kv_walk *walk, uint32_t id, uint32_t found) {
    walk->at = id < index->ids_used ? id : KV_NONE;
    return found;
}

/* The links alone say where far copies lie: of the records only those are read that pass. */
uint32_t kv_index_walk_far(const kv_index *index, kv_walk *walk, uint32_t first, uint32_t last, uint32_t *ids) {
    KV_AS_WRITER(index);
    uint32_t found = 0, id = walk->at, end = walk_end(index, walk);
    for (; id < end && found < walk->found_max; id++) {
        uint32_t place = index->links[id].far;
        if (place < first || place >= last || place == KV_NONE) continue;
        if (kv_state_of(&index->records[id]) == KV_VALID) ids[found++] = id;
    }
    return walked_to(index, walk, id, found);
}

uint32_t kv_index_walk_used(const kv_index *index, kv_walk *walk, uint32_t since, uint32_t *ids) {
    KV_AS_WRITER(index);
    uint32_t found = 0, id = walk->at, end = walk_end(index, walk);
    for (; id < end && found < walk->found_max; id++) {
        const kv_links *links = &index->links[id];
        if (links->far == KV_NONE || (int32_t)(links->access - since) <= 0) continue;
        if (kv_state_of(&index->records[id]) == KV_VALID) ids[found++] = id;
    }
    return walked_to(index, walk, id, found);
}
