#include "events.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "index.h"

static size_t ring_nbytes(const kv_events *events) { return (size_t)events->capacity * sizeof(kv_event); }

int kv_events_create(kv_events *events, uint32_t capacity) {
    kv_events_destroy(events);
    if (capacity == 0) return 0;
    events->capacity = capacity;
    void *pages = mmap(NULL, ring_nbytes(events), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                       -1, 0);
    if (pages == MAP_FAILED) return -errno;
    events->ring = pages;
    return 0;
}

void kv_events_destroy(kv_events *events) {
    if (events->ring) munmap(events->ring, ring_nbytes(events));
    memset(events, 0, sizeof *events);
}

uint32_t kv_events_read(const kv_events *events, uint64_t since, uint32_t most, kv_event *out) {
    if (since < kv_events_oldest(events) || since >= events->newest) return 0;
    uint64_t num_new = events->newest - since;
    uint32_t num = num_new < most ? (uint32_t)num_new : most;
    uint32_t first = (uint32_t)(since % events->capacity); /* number since + 1 lies there */
    uint32_t to_end = events->capacity - first, num_first = num < to_end ? num : to_end;
    memcpy(out, events->ring + first, num_first * sizeof(kv_event));
    memcpy(out + num_first, events->ring, (num - num_first) * sizeof(kv_event));
    return num;
}

void kv_index_tell_stored(kv_index *index, uint32_t id) {
    kv_event *event = kv_events_next(&index->events);
    if (event == NULL) return;
    const kv_record *record = &index->records[id];
    kv_record_key(record, event->key);
    if (record->parent == KV_NONE) memset(event->parent, 0, sizeof event->parent);
    else kv_record_key(&index->records[record->parent], event->parent);
    event->ns = record->ns;
    event->kind = KV_EVENT_STORED;
    event->reason = KV_NEVER;
}

void kv_index_tell_removed(kv_index *index, uint32_t id, enum kv_reason reason) {
    kv_event *event = kv_events_next(&index->events);
    if (event == NULL) return;
    kv_record_key(&index->records[id], event->key);
    memset(event->parent, 0, sizeof event->parent);
    event->ns = index->records[id].ns;
    event->kind = KV_EVENT_REMOVED;
    event->reason = (uint8_t)reason;
}

void kv_index_tell_cleared(kv_index *index, uint16_t ns) {
    kv_event *event = kv_events_next(&index->events);
    if (event == NULL) return;
    *event = (kv_event){.ns = ns, .kind = KV_EVENT_CLEARED, .reason = KV_WAS_REMOVED};
}
