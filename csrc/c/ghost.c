/* Ghosts: why blocks that are absent are so, as far as it is remembered. */
#include "policy.h"

void kv_index_note_ghost(kv_index *index, uint32_t id, enum kv_reason reason) {
    uint8_t key[KV_KEY_NBYTES];
    kv_record_key(&index->records[id], key);
    uint64_t home = kv_home(index, key);
    const int has_level = index->policy->level != NULL && kv_state_of(&index->records[id]) != KV_WRITING;
    const uint32_t level = has_level ? index->policy->level(index, id) + 1 : 0;
    index->ghosts[home % KV_GHOSTS] = (kv_ghost){home, index->now_s, (uint16_t)reason, (uint16_t)level};
}

void kv_index_note_bypass(kv_index *index, const uint8_t *key, uint32_t level) {
    const uint64_t home = kv_home(index, key);
    index->ghosts[home % KV_GHOSTS] = (kv_ghost){home, index->now_s, KV_WAS_BYPASSED, (uint16_t)(level + 1)};
}

kv_ghost kv_index_ghost(const kv_index *index, const uint8_t *key) {
    KV_AS_WRITER(index);
    const uint64_t home = kv_home(index, key);
    const kv_ghost *ghost = &index->ghosts[home % KV_GHOSTS];
    return ghost->fingerprint == home ? *ghost : (kv_ghost){.reason = KV_NEVER};
}
