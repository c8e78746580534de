#include "tap.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define ENDS 4096u        /* of chains that are looked for */
#define SAME_MS 120000u   /* a reservation so long after a lookup may belong to it */
#define NEXT_MS 5000u     /* prompts are put piece by piece, as they are computed */
#define HEADER_WORDS (sizeof(kv_tapped) / 8)

int kv_tap_create(kv_tap *tap) {
    memset(tap, 0, sizeof *tap);
    tap->words = malloc(KV_TAP_WORDS * sizeof(uint64_t));
    tap->ends = calloc(ENDS, sizeof(kv_tap_end));
    tap->earlier = calloc(KV_TAP_PASTS, sizeof(uint32_t));
    if (tap->words && tap->ends && tap->earlier) return 0;
    kv_tap_destroy(tap);
    return -ENOMEM;
}

void kv_tap_destroy(kv_tap *tap) {
    free(tap->words);
    free(tap->ends);
    free(tap->earlier);
    memset(tap, 0, sizeof *tap);
}

void kv_tap_set(kv_index *index, kv_tap *tap, uint64_t threshold) {
    KV_AS_WRITER(index);
    index->tap = tap;
    if (tap == NULL) return;
    tap->threshold = threshold;
    atomic_store_explicit(&tap->tail, atomic_load_explicit(&tap->head, memory_order_relaxed), memory_order_release);
}

/* ---- which requests are one ---- */

static uint64_t marked(uint64_t home, int is_lookup) { return (home & ~1ULL) | (is_lookup ? 1 : 0); }

static kv_tap_end *end_at(const kv_tap *tap, uint64_t home) { return &tap->ends[(home >> 32 ^ home) % ENDS]; }

/* The latest request that ended with this block, not longer ago than `within_ms`; 0: none. */
static uint32_t latest(const kv_tap *tap, uint64_t home, int is_lookup, uint64_t now_ms, uint64_t within_ms) {
    const kv_tap_end *end = end_at(tap, marked(home, is_lookup));
    const int fits = end->home == marked(home, is_lookup) && now_ms - end->time_ms <= within_ms;
    return fits && tap->number - end->number < KV_TAP_PASTS ? end->number : 0;
}

static void note_end(kv_tap *tap, uint64_t home, int is_lookup, uint64_t now_ms, uint32_t number) {
    tap->earlier[number % KV_TAP_PASTS] = is_lookup ? latest(tap, home, 1, now_ms, SAME_MS) : 0;
    *end_at(tap, marked(home, is_lookup)) =
        (kv_tap_end){.home = marked(home, is_lookup), .time_ms = now_ms, .number = number};
}

/* Callers with the same beginning look it up one after the other before the first of them reserves: each reservation
 * takes one lookup. */
static uint32_t take_end(kv_tap *tap, uint64_t home, int is_lookup, uint64_t now_ms, uint64_t within_ms) {
    const uint32_t number = latest(tap, home, is_lookup, now_ms, within_ms);
    if (number) end_at(tap, marked(home, is_lookup))->number = tap->earlier[number % KV_TAP_PASTS];
    return number;
}

static uint32_t next_number(kv_tap *tap) {
    if (++tap->number == 0) tap->number = 1;
    return tap->number;
}

/* ---- the ring ---- */

/* Where the sampled hashes of a request go; it is told to nobody before `publish`. */
typedef struct {
    kv_tap *tap;
    uint64_t head, room; /* words behind the header */
    uint32_t num;
} kv_draft;

static kv_draft draft_of(kv_tap *tap) {
    const uint64_t head = atomic_load_explicit(&tap->head, memory_order_relaxed);
    const uint64_t used = head - atomic_load_explicit(&tap->tail, memory_order_acquire);
    const uint64_t left = KV_TAP_WORDS - used;
    return (kv_draft){.tap = tap, .head = head, .room = left > HEADER_WORDS ? left - HEADER_WORDS : 0};
}

static void add_home(kv_draft *draft, uint64_t home) {
    if (draft->num < draft->room)
        draft->tap->words[(draft->head + HEADER_WORDS + draft->num) % KV_TAP_WORDS] = home;
    draft->num++;
}

static void publish(kv_draft *draft, kv_tapped *request) {
    kv_tap *tap = draft->tap;
    uint64_t header[HEADER_WORDS];
    if (draft->room == 0 || draft->num > draft->room || draft->num > KV_TAP_CHAIN_MAX) {
        tap->num_dropped++;
        return;
    }
    request->num_sampled = draft->num;
    memcpy(header, request, sizeof header);
    for (uint64_t i = 0; i < HEADER_WORDS; i++) tap->words[(draft->head + i) % KV_TAP_WORDS] = header[i];
    atomic_store_explicit(&tap->head, draft->head + HEADER_WORDS + draft->num, memory_order_release);
}

int kv_tap_take(kv_tap *tap, kv_tapped *request, uint64_t *homes) {
    uint64_t header[HEADER_WORDS], tail = atomic_load_explicit(&tap->tail, memory_order_relaxed);
    if (tail == atomic_load_explicit(&tap->head, memory_order_acquire)) return 0;
    for (uint64_t i = 0; i < HEADER_WORDS; i++) header[i] = tap->words[(tail + i) % KV_TAP_WORDS];
    memcpy(request, header, sizeof header);
    tail += HEADER_WORDS;
    for (uint32_t i = 0; i < request->num_sampled; i++) /* a lookup was written from its end on */
        homes[request->is_lookup ? request->num_sampled - 1 - i : i] = tap->words[(tail + i) % KV_TAP_WORDS];
    atomic_store_explicit(&tap->tail, tail + request->num_sampled, memory_order_release);
    return 1;
}

/* ---- what is heard ---- */

static uint64_t now_of(const kv_index *index) { return atomic_load_explicit(&index->now_ms, memory_order_relaxed); }

static uint32_t kind_of(const kv_index *index, uint32_t id) {
    const uint32_t log = 31 - (uint32_t)__builtin_clz((index->clock - index->links[id].access) | 1);
    return log < 4 ? 0 : log / 2 - 1 < KV_TAP_ABSENT ? log / 2 - 1 : KV_TAP_ABSENT - 1;
}

static void hear(kv_draft *draft, kv_tapped *request, uint64_t home, uint32_t kind, int is_new) {
    request->num_of[kind] += is_new != 0;
    if (home < draft->tap->threshold) add_home(draft, (home & ~(uint64_t)(KV_TAP_KINDS - 1)) | kind);
}

static uint64_t home_at(const kv_index *index, const kv_request *request, uint32_t at) {
    return kv_home(index, request->keys + (size_t)at * KV_KEY_NBYTES);
}

static kv_tapped tapped_of(kv_index *index, uint16_t ns, const kv_hint *hint) {
    return (kv_tapped){.time_ms = now_of(index),
                       .slot_nbytes = index->namespaces[ns].slot_nbytes,
                       .number = next_number(index->tap),
                       .hint = *hint,
                       .ns = ns};
}

void kv_tap_asked(kv_index *index, uint16_t ns, const kv_request *request) {
    kv_tap *tap = index->tap;
    uint32_t num_hit = 0, num_there = 0; /* leading ones that are stored, and also those that are just being written */
    if (request->num_keys == 0) return;
    while (num_hit < request->num_keys && request->plan[num_hit] == KV_PRESENT) num_hit++;
    for (num_there = num_hit; num_there < request->num_keys && request->plan[num_there] != KV_WANTED;) num_there++;
    kv_tapped tapped = tapped_of(index, ns, &request->hint);
    uint32_t first_new = num_hit;
    if (num_hit > 0)
        tapped.continues = take_end(tap, home_at(index, request, num_hit - 1), 1, tapped.time_ms, SAME_MS);
    if (tapped.continues == 0 && num_there > 0) {
        tapped.continues = take_end(tap, home_at(index, request, num_there - 1), 0, tapped.time_ms, NEXT_MS);
        first_new = tapped.continues ? num_there : 0;
    }
    kv_draft draft = draft_of(tap);
    for (uint32_t i = 0; i < request->num_keys; i++) {
        const uint32_t kind = i < num_hit ? kind_of(index, request->ids[i]) : KV_TAP_ABSENT;
        hear(&draft, &tapped, home_at(index, request, i), kind, i >= first_new);
    }
    note_end(tap, home_at(index, request, request->num_keys - 1), 0, tapped.time_ms, tapped.number);
    publish(&draft, &tapped);
}

static uint64_t home_of(const kv_index *index, uint32_t id) {
    uint8_t key[KV_KEY_NBYTES];
    kv_record_key(&index->records[id], key);
    return kv_home(index, key);
}

void kv_tap_touched(kv_index *index, uint32_t deepest) {
    kv_tap *tap = index->tap;
    const uint64_t end = home_of(index, deepest);
    kv_tapped tapped = tapped_of(index, index->records[deepest].ns, &KV_NO_HINT);
    tapped.is_lookup = 1;
    kv_draft draft = draft_of(tap);
    for (uint32_t id = deepest; id != KV_NONE; id = index->records[id].parent)
        hear(&draft, &tapped, home_of(index, id), kind_of(index, id), 1);
    note_end(tap, end, 1, tapped.time_ms, tapped.number);
    publish(&draft, &tapped);
}
