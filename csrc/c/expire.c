/* Expiry: a chain whose time is over goes, as far as nobody has used it since it was marked. */
#include <string.h>

#include "evict.h"
#include "hint.h"

/* An access covers a whole chain: whoever used a block has used its parents. */
static int is_over(const kv_index *index, uint32_t id, uint32_t mark) {
    const kv_record *record = &index->records[id];
    const kv_links *links = &index->links[id];
    return kv_state_of(record) == KV_VALID && links->kids == 0 && (int32_t)(links->access - mark) <= 0;
}

uint32_t kv_index_mark(kv_index *index) {
    KV_AS_WRITER(index);
    kv_evict_drain(index);
    return index->clock++;
}

uint32_t kv_index_expire(kv_index *index, const uint8_t *keys, uint32_t num_keys, uint32_t mark, uint8_t *gone) {
    KV_AS_WRITER(index);
    uint32_t num_gone = 0;
    kv_evict_drain(index); /* what was used by now was used in time */
    memset(gone, 0, num_keys);
    for (uint32_t i = num_keys; i-- > 0;) { /* children before parents */
        uint32_t id = kv_index_find(index, keys + (size_t)i * KV_KEY_NBYTES);
        if (id == KV_NONE || !is_over(index, id, mark)) continue;
        kv_index_retire(index, id, KV_WAS_EXPIRED);
        gone[i] = 1;
        num_gone++;
    }
    return num_gone;
}
