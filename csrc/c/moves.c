/* The index's side of moving blocks between tiers: marks that keep a copy in place while its bytes are under way. */
#include "evict.h"
#include "policy.h"

static uint64_t slot_nbytes(const kv_index *index, uint32_t id) {
    return index->namespaces[index->records[id].ns].slot_nbytes;
}

static void set_far(kv_index *index, uint32_t id, uint32_t place) {
    if (index->links[id].far == KV_NONE) {
        index->counts.num_far++;
        index->counts.far_nbytes += slot_nbytes(index, id);
    }
    index->links[id].far = place;
}

void kv_writeback_mark(kv_index *index, uint32_t ns, const uint32_t *ids, const uint64_t *words, uint32_t num_ids,
                       uint8_t *marked) {
    KV_AS_WRITER(index);
    for (uint32_t i = 0; i < num_ids; i++) {
        kv_record *record = &index->records[ids[i]];
        uint64_t word = atomic_load_explicit(&record->state, memory_order_relaxed);
        uint32_t parent = record->parent;
        /* The far tier stays prefix-closed: a parent goes before or with its child. */
        int parent_far = parent == KV_NONE || index->links[parent].far != KV_NONE ||
                         (index->records[parent].flags & KV_WRITEBACK);
        marked[i] = word == words[i] && (uint8_t)word == KV_VALID && kv_is_near(record) &&
                    (ns == KV_NONE || record->ns == ns) &&
                    index->links[ids[i]].far == KV_NONE && !(record->flags & KV_WRITEBACK) && parent_far;
        if (marked[i]) record->flags |= KV_WRITEBACK;
    }
}

void kv_writeback_unmark(kv_index *index, const uint32_t *ids, const uint32_t *places, const uint64_t *checksums,
                         const uint8_t *written, uint32_t num_ids, uint8_t *kept) {
    KV_AS_WRITER(index);
    for (uint32_t i = 0; i < num_ids; i++) {
        kv_record *record = &index->records[ids[i]];
        uint32_t parent = record->parent;
        record->flags &= (uint16_t)~KV_WRITEBACK;
        int parent_far = parent == KV_NONE || index->links[parent].far != KV_NONE;
        kept[i] = written[i] && kv_state_of(record) == KV_VALID && parent_far;
        if (!kept[i]) continue;
        record->checksum = checksums[i];
        record->flags |= KV_CHECKED;
        set_far(index, ids[i], places[i]);
    }
}

void kv_promote_mark(kv_index *index, const uint32_t *ids, uint32_t num_ids, uint8_t *marked) {
    KV_AS_WRITER(index);
    for (uint32_t i = 0; i < num_ids; i++) {
        kv_record *record = &index->records[ids[i]];
        marked[i] = kv_state_of(record) == KV_VALID && !kv_is_near(record) && !(record->flags & KV_PROMOTING);
        if (marked[i]) record->flags |= KV_PROMOTING;
    }
}

void kv_promote_unmark(kv_index *index, const uint32_t *ids, const uint32_t *places, const uint8_t *read,
                       uint32_t num_ids, uint8_t *kept) {
    KV_AS_WRITER(index);
    uint32_t deepest = KV_NONE;
    for (uint32_t i = 0; i < num_ids; i++) {
        kv_record *record = &index->records[ids[i]];
        record->flags &= (uint16_t)~KV_PROMOTING;
        kept[i] = read[i] && kv_state_of(record) == KV_VALID;
        if (!kept[i]) continue;
        index->policy->leave(index, ids[i], KV_NONE);
        /* Release: whoever sees the new place sees the bytes. Leases on the block stay good: it only came nearer. */
        atomic_store_explicit(&record->where, kv_where(KV_NEAR, places[i]), memory_order_release);
        if (record->parent != KV_NONE) index->links[record->parent].near_kids++;
        index->counts.num_near++;
        index->counts.near_nbytes += slot_nbytes(index, ids[i]);
        deepest = ids[i];
    }
    if (deepest != KV_NONE) index->policy->covered(index, deepest);
}

void kv_carry_mark(kv_index *index, const uint32_t *ids, uint32_t num_ids, uint8_t *marked) {
    KV_AS_WRITER(index);
    for (uint32_t i = 0; i < num_ids; i++) {
        kv_record *record = &index->records[ids[i]];
        marked[i] = kv_state_of(record) == KV_VALID && index->links[ids[i]].far != KV_NONE &&
                    !(record->flags & KV_PROMOTING);
        if (marked[i]) record->flags |= KV_PROMOTING;
    }
}

void kv_carry_unmark(kv_index *index, const uint32_t *ids, const uint32_t *places, const uint8_t *written,
                     uint32_t num_ids, uint8_t *kept) {
    KV_AS_WRITER(index);
    for (uint32_t i = 0; i < num_ids; i++) {
        kv_record *record = &index->records[ids[i]];
        record->flags &= (uint16_t)~KV_PROMOTING;
        kept[i] = written[i] && kv_state_of(record) == KV_VALID;
        if (!kept[i]) continue;
        index->links[ids[i]].far = places[i];
        if (!kv_is_near(record))
            atomic_store_explicit(&record->where, kv_where(KV_FAR, places[i]), memory_order_release);
        kv_set_state(index, ids[i], KV_VALID, 1); /* whoever looked at the old copy sees by the word that it is gone */
    }
}
