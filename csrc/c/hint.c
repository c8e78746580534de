#include "hint.h"

#include "policy.h"

static int is_visible(const kv_index *index, uint32_t id) {
    return id < index->ids_used && kv_state_of(&index->records[id]) == KV_VALID;
}

void kv_index_hint(kv_index *index, uint32_t deepest, const kv_hint *hint) {
    KV_AS_WRITER(index);
    if (!is_visible(index, deepest)) return;
    index->counts.num_hints++;
    if (index->policy->hint != NULL) index->policy->hint(index, deepest, hint);
}

void kv_index_hint_last(kv_index *index, const uint32_t *ids, uint32_t num_ids, const kv_hint *hint) {
    KV_AS_WRITER(index);
    for (uint32_t i = num_ids; i-- > 0;)
        if (is_visible(index, ids[i])) {
            kv_index_hint(index, ids[i], hint);
            return;
        }
}

uint32_t kv_index_chain(const kv_index *index, uint32_t deepest, uint32_t *ids, uint32_t ids_max) {
    KV_AS_WRITER(index);
    if (!is_visible(index, deepest)) return 0;
    uint32_t num = 0;
    for (uint32_t id = deepest; id != KV_NONE; id = index->records[id].parent, num++)
        if (num < ids_max) ids[num] = id;
    return num;
}
