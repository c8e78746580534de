#include "leave.h"

#include "policy.h"

static void clear_far(kv_index *index, uint32_t id) {
    index->links[id].far = KV_NONE;
    index->counts.num_far--;
    index->counts.far_nbytes -= index->namespaces[index->records[id].ns].slot_nbytes;
}

void kv_leave_lose(kv_index *index, const uint32_t *ids, uint32_t num_ids) {
    KV_AS_WRITER(index);
    for (uint32_t i = 0; i < num_ids; i++) {
        const kv_record *record = &index->records[ids[i]];
        if (index->links[ids[i]].far == KV_NONE) continue;
        if (kv_state_of(record) == KV_VALID && !kv_is_near(record)) continue;
        clear_far(index, ids[i]);
    }
}

uint32_t kv_leave_take_removed(kv_index *index, uint32_t *places, uint16_t *ns, uint32_t max) {
    KV_AS_WRITER(index);
    uint32_t found = 0;
    for (uint32_t id = index->removed_head; id != KV_NONE && found < max; id = index->links[id].next) {
        if (index->links[id].far == KV_NONE) continue;
        places[found] = index->links[id].far;
        ns[found++] = index->records[id].ns;
        clear_far(index, id);
    }
    return found;
}

void kv_leave_relist(kv_index *index, const uint32_t *ids, const uint64_t *words, const uint32_t *accesses,
                     uint32_t num_ids) {
    KV_AS_WRITER(index);
    for (uint32_t i = 0; i < num_ids; i++) {
        const kv_record *record = &index->records[ids[i]];
        if (kv_record_word(record) != words[i] || kv_state_of(record) != KV_VALID || kv_is_near(record)) continue;
        index->links[ids[i]].access = accesses[i];
        index->policy->demoted(index, ids[i]);
    }
}

uint32_t kv_leave_walk_unwritten(const kv_index *index, kv_walk *walk, uint32_t *ids) {
    KV_AS_WRITER(index);
    uint32_t found = 0, id = walk->at, left = index->ids_used > walk->at ? index->ids_used - walk->at : 0;
    uint32_t end = walk->at + (left < walk->look_max ? left : walk->look_max);
    for (; id < end && found < walk->found_max; id++) {
        if (index->links[id].far != KV_NONE) continue;
        const kv_record *record = &index->records[id];
        if (kv_state_of(record) == KV_VALID && kv_is_near(record)) ids[found++] = id;
    }
    walk->at = id < index->ids_used ? id : KV_NONE;
    return found;
}
