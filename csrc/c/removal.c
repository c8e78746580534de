/* Removal: a block that is asked away, or is rotten, takes everything that extends it along. */
#include <stdlib.h>

#include "index.h"

enum mark { UNKNOWN = 0, STAYS = 1, GOES = 2 };

static int is_live(uint8_t state) { return state == KV_VALID || state == KV_WRITING; }

/* Does `id` hang below a block that goes? Climbs until it knows, then labels the whole climb. */
static void label(const kv_index *index, uint8_t *marks, uint32_t id) {
    uint32_t at = id;
    while (at != KV_NONE && marks[at] == UNKNOWN) at = index->records[at].parent;
    uint8_t verdict = at == KV_NONE ? STAYS : marks[at];
    for (at = id; at != KV_NONE && marks[at] == UNKNOWN; at = index->records[at].parent) marks[at] = verdict;
}

/* A reservation below a removed block becomes an orphan; its memory waits for its owner. */
static void let_go(kv_index *index, uint32_t id, enum kv_reason reason) {
    kv_record *record = &index->records[id];
    if (kv_state_of(record) == KV_VALID || index->links[id].prev == 0) {
        kv_index_retire(index, id, reason);
        return;
    }
    if (record->flags & KV_ORPHAN) return;
    kv_index_note_ghost(index, id, reason);
    kv_index_unhash(index, id);
    kv_index_detach(index, id);
    if (index->links[id].next == index->namespaces[record->ns].all_parts) index->counts.num_waiting--;
    index->links[id].next = 0;
    record->flags |= KV_ORPHAN;
}

static int has_kids(const kv_index *index, const uint32_t *ids, uint32_t num_ids) {
    for (uint32_t i = 0; i < num_ids; i++)
        if (index->links[ids[i]].kids > 0) return 1;
    return 0;
}

uint32_t kv_index_remove(kv_index *index, const uint32_t *ids, uint32_t num_ids, enum kv_reason reason) {
    KV_AS_WRITER(index);
    uint64_t before = index->counts.num_entries;
    if (!has_kids(index, ids, num_ids)) {
        for (uint32_t i = 0; i < num_ids; i++)
            if (is_live(kv_state_of(&index->records[ids[i]]))) let_go(index, ids[i], reason);
        return (uint32_t)(before - index->counts.num_entries);
    }
    uint8_t *marks = calloc(index->ids_used, 1);
    if (marks == NULL) return 0;
    for (uint32_t i = 0; i < num_ids; i++)
        if (is_live(kv_state_of(&index->records[ids[i]]))) marks[ids[i]] = GOES;
    for (uint32_t id = 0; id < index->ids_used; id++)
        if (is_live(kv_state_of(&index->records[id]))) label(index, marks, id);
    for (uint32_t id = 0; id < index->ids_used; id++)
        if (marks[id] == GOES && is_live(kv_state_of(&index->records[id]))) let_go(index, id, reason);
    free(marks);
    return (uint32_t)(before - index->counts.num_entries);
}

uint32_t kv_index_remove_keys(kv_index *index, uint16_t ns, const uint8_t *keys, uint32_t num_keys,
                              enum kv_reason reason) {
    uint32_t *ids = malloc(((size_t)num_keys + 1) * sizeof(uint32_t)), num_ids = 0;
    if (ids == NULL) return 0;
    KV_AS_WRITER(index); /* between look-up and removal an id could become another block's */
    for (uint32_t i = 0; i < num_keys; i++) {
        uint32_t id = kv_index_find(index, keys + (size_t)i * KV_KEY_NBYTES);
        if (id != KV_NONE && index->records[id].ns == ns) ids[num_ids++] = id;
    }
    uint32_t removed = kv_index_remove(index, ids, num_ids, reason);
    free(ids);
    return removed;
}

uint32_t kv_index_clear(kv_index *index, uint16_t ns) {
    KV_AS_WRITER(index);
    uint64_t before = index->counts.num_entries;
    index->events.is_quiet = 1; /* one event says it all, and does not push everything else out of the ring */
    for (uint32_t id = 0; id < index->ids_used; id++) {
        const kv_record *record = &index->records[id];
        if (record->ns == ns && is_live(kv_state_of(record))) let_go(index, id, KV_WAS_REMOVED);
    }
    index->events.is_quiet = 0;
    kv_index_tell_cleared(index, ns);
    return (uint32_t)(before - index->counts.num_entries);
}
