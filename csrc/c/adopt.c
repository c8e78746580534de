#include "adopt.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define AHEAD 16 /* rows between the prefetch of a bucket and its use */

/* Rows whose parent is not there yet, in buckets by the parent's key. */
typedef struct {
    uint32_t *heads; /* per bucket a list of rows through `next`, the latest first; NULL until a row waits */
    uint32_t *next;
    uint64_t mask;
} kv_waiting;

static const uint8_t *key_at(const kv_column *column, uint32_t row) {
    return (const uint8_t *)column->first + row * column->stride;
}

static uint32_t u32_at(const kv_column *column, uint32_t row) {
    uint32_t value;
    memcpy(&value, column->first + row * column->stride, sizeof value);
    return value;
}

static uint64_t u64_at(const kv_column *column, uint32_t row) {
    uint64_t value;
    memcpy(&value, column->first + row * column->stride, sizeof value);
    return value;
}

static int is_zero(const uint8_t *key) {
    uint64_t bits = 0;
    for (int word = 0; word < KV_KEY_WORDS; word++) bits |= kv_load_word(key, word);
    return bits == 0;
}

static int create(kv_waiting *waiting, uint32_t num_rows) {
    uint64_t num_buckets = 1;
    while (num_buckets < num_rows) num_buckets *= 2;
    waiting->mask = num_buckets - 1;
    waiting->heads = malloc(num_buckets * sizeof(uint32_t));
    waiting->next = malloc(num_rows * sizeof(uint32_t));
    if (waiting->heads == NULL || waiting->next == NULL) return -ENOMEM;
    memset(waiting->heads, 0xFF, num_buckets * sizeof(uint32_t)); /* KV_NONE */
    return 0;
}

static int park(kv_waiting *waiting, const kv_index *index, const kv_found *found, uint32_t row) {
    if (waiting->heads == NULL && create(waiting, found->num_rows) < 0) return -ENOMEM;
    uint32_t *head = &waiting->heads[kv_home(index, key_at(&found->parents, row)) & waiting->mask];
    waiting->next[row] = *head;
    *head = row;
    return 0;
}

/* Move the rows that wait for `key` onto the list `ready`, the earliest of them first. */
static void release(kv_waiting *waiting, const kv_index *index, const kv_found *found, const uint8_t *key,
                    uint32_t *ready) {
    uint32_t *link = &waiting->heads[kv_home(index, key) & waiting->mask];
    while (*link != KV_NONE) {
        const uint32_t row = *link;
        if (memcmp(key_at(&found->parents, row), key, KV_KEY_NBYTES) != 0) {
            link = &waiting->next[row];
            continue;
        }
        *link = waiting->next[row];
        waiting->next[row] = *ready;
        *ready = row;
    }
}

/* One row into the index, or among those that wait; whoever waited for it gets ready. */
static int take_in(kv_index *index, const kv_found *found, uint32_t row, uint32_t *ids, kv_waiting *waiting,
                   uint32_t *ready) {
    const uint8_t *key = key_at(&found->keys, row), *parent_key = key_at(&found->parents, row);
    uint32_t parent = KV_NONE;
    if (!is_zero(parent_key)) {
        parent = kv_index_find(index, parent_key);
        if (parent == KV_NONE) return park(waiting, index, found, row);
    }
    ids[row] = kv_index_adopt(index, key, parent, (uint16_t)u32_at(&found->namespaces, row),
                              u32_at(&found->places, row), u64_at(&found->checksums, row));
    if (ids[row] != KV_NONE && waiting->heads != NULL) release(waiting, index, found, key, ready);
    return 0;
}

static void prefetch_buckets(const kv_index *index, const kv_found *found, uint32_t row) {
    __builtin_prefetch(&index->buckets[kv_home_bucket(index, kv_home(index, key_at(&found->keys, row)))], 1);
    __builtin_prefetch(&index->buckets[kv_home_bucket(index, kv_home(index, key_at(&found->parents, row)))]);
}

int kv_index_adopt_all(kv_index *index, const kv_found *found, uint32_t *ids) {
    KV_AS_WRITER(index);
    kv_waiting waiting = {0};
    int code = 0;
    memset(ids, 0xFF, found->num_rows * sizeof(uint32_t)); /* KV_NONE */
    for (uint32_t row = 0; row < found->num_rows && code == 0; row++) {
        if (row + AHEAD < found->num_rows) prefetch_buckets(index, found, row + AHEAD);
        uint32_t ready = KV_NONE;
        code = take_in(index, found, row, ids, &waiting, &ready);
        while (ready != KV_NONE && code == 0) {
            const uint32_t next = ready;
            ready = waiting.next[next];
            code = take_in(index, found, next, ids, &waiting, &ready);
        }
    }
    free(waiting.heads);
    free(waiting.next);
    return code;
}

/* A stored block whose far copy is where a row says. */
static int give_far(kv_index *index, uint32_t id, uint32_t parent, const kv_found *found, uint32_t row) {
    kv_record *record = &index->records[id];
    if (kv_state_of(record) != KV_VALID || record->ns != u32_at(&found->namespaces, row) || record->parent != parent ||
        index->links[id].far != KV_NONE)
        return 0;
    record->checksum = u64_at(&found->checksums, row);
    record->flags |= KV_CHECKED;
    index->links[id].far = u32_at(&found->places, row);
    index->counts.num_far++;
    index->counts.far_nbytes += index->namespaces[record->ns].slot_nbytes;
    kv_index_bare(index, id);
    return 1;
}

static uint32_t rejoin_one(kv_index *index, const kv_found *found, uint32_t row) {
    const uint8_t *key = key_at(&found->keys, row), *parent_key = key_at(&found->parents, row);
    const uint32_t ns = u32_at(&found->namespaces, row);
    uint32_t parent = KV_NONE;
    if (!is_zero(parent_key)) {
        parent = kv_index_find(index, parent_key);
        if (parent == KV_NONE || index->links[parent].far == KV_NONE || index->records[parent].ns != ns ||
            kv_state_of(&index->records[parent]) != KV_VALID)
            return KV_NONE;
    }
    uint32_t id = kv_index_find(index, key);
    if (id != KV_NONE && kv_state_of(&index->records[id]) == KV_WRITING) {
        kv_index_remove(index, &id, 1, KV_WAS_ABANDONED);
        id = kv_index_find(index, key);
    }
    if (id != KV_NONE) return give_far(index, id, parent, found, row) ? id : KV_NONE;
    return kv_index_adopt(index, key, parent, (uint16_t)ns, u32_at(&found->places, row),
                          u64_at(&found->checksums, row));
}

void kv_index_rejoin(kv_index *index, const kv_found *found, uint32_t *ids) {
    KV_AS_WRITER(index);
    for (uint32_t row = 0; row < found->num_rows; row++) {
        if (row + AHEAD < found->num_rows) prefetch_buckets(index, found, row + AHEAD);
        ids[row] = rejoin_one(index, found, row);
    }
}
