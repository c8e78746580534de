/* What became stored and what is stored no more, for those who watch: a ring that overwrites its oldest event.
 *
 * The ring lies in the writer's private memory and is written and read by the writer alone: whoever reads it does so as
 * every other call of the writer, one call for many events. Writing one takes no memory and waits for nobody. Events are
 * numbered from 1; who has seen all up to number n asks for what is behind n.
 */
#ifndef KV_EVENTS_H
#define KV_EVENTS_H

#include <stddef.h>
#include <stdint.h>

#define KV_EVENT_KEY_NBYTES 32

enum kv_event_kind {
    KV_EVENT_STORED = 1,  /* became visible, or was there already when the index was filled at start */
    KV_EVENT_REMOVED = 2, /* is found no more, in no tier */
    KV_EVENT_CLEARED = 3, /* every block of the namespace, at once; `key` says nothing */
};

typedef struct {
    uint8_t key[KV_EVENT_KEY_NBYTES];
    uint8_t parent[KV_EVENT_KEY_NBYTES]; /* of STORED: the key of the block before, zero for the first of a prompt */
    uint16_t ns;
    uint8_t kind;   /* kv_event_kind */
    uint8_t reason; /* kv_reason, of REMOVED */
} kv_event;
_Static_assert(sizeof(kv_event) == 68, "what docs/operations.md says an event takes");

typedef struct {
    kv_event *ring;    /* NULL: nobody can watch, and nothing is written */
    uint32_t capacity;
    uint32_t at;       /* where the next one goes */
    uint64_t newest;   /* number of the latest event; 0 before the first */
    int is_quiet;      /* what goes on now is told by one event of its own */
} kv_events;

/* Memory is touched only as it is used; 0 keeps none. 0, or -errno. Events that were kept before are dropped. */
int kv_events_create(kv_events *events, uint32_t capacity);
void kv_events_destroy(kv_events *events);

/* Where the next event is to be written; it counts from now on. NULL when none is wanted. */
static inline kv_event *kv_events_next(kv_events *events) {
    if (events->ring == NULL || events->is_quiet) return NULL;
    kv_event *event = &events->ring[events->at];
    events->at = events->at + 1 == events->capacity ? 0 : events->at + 1;
    events->newest++;
    return event;
}

/* The number behind which everything is still there. */
static inline uint64_t kv_events_oldest(const kv_events *events) {
    return events->newest > events->capacity ? events->newest - events->capacity : 0;
}

/* Copy what is behind number `since`, up to `most` events in their order. Returns how many; 0 where `since` is not between
 * oldest and newest. */
uint32_t kv_events_read(const kv_events *events, uint64_t since, uint32_t most, kv_event *out);

#endif
