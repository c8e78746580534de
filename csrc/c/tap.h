/* A tap: what a store is asked for, for whoever wants to know what another store would have made of it (whatif.h).
 *
 * Whole chains pass two points of the core, both under the index's lock: a reservation names all blocks of a prompt, and
 * a touch the deepest block that a lookup found. Of each the tap keeps how many blocks were asked for, how many of the
 * leading ones were there and how long ago these were used before (kinds), and of the blocks themselves a sample: those
 * whose keyed hash is below a threshold, so that a block is always in it or never (spatial sampling: Waldspurger et al.,
 * SHARDS, 2015). What is left of a chain is a chain.
 *
 * A prompt may come as a lookup and a reservation, or as several reservations, each a piece longer: then the later one
 * says which it continues, and what it adds was not there. The ring is bounded: what does not fit is counted and
 * forgotten, nobody waits.
 */
#ifndef KV_TAP_H
#define KV_TAP_H

#include "hint.h"
#include "policy.h"

#define KV_TAP_WORDS (1u << 16)    /* of the ring: half a MiB */
#define KV_TAP_CHAIN_MAX (1u << 13) /* sampled blocks of one request */
#define KV_TAP_PASTS 4096u          /* requests that may still be continued */
#define KV_TAP_KINDS 8             /* blocks that were there, by accesses since their last one: below 16, 64, ... 4^7, */
#define KV_TAP_ABSENT 7            /* or more; and blocks that were not there */

typedef struct {
    uint64_t time_ms, slot_nbytes;
    uint32_t number, continues;            /* 0: it is the first of its prompt */
    uint32_t num_of[KV_TAP_KINDS];         /* blocks that were asked for, without those of what it continues */
    uint32_t num_sampled;                  /* in the sample, with those */
    uint16_t ns;
    uint16_t is_lookup;
    kv_hint hint;
} kv_tapped;
_Static_assert(sizeof(kv_tapped) % 8 == 0, "it is copied into the ring as words");

/* The end of a chain that was asked for lately. */
typedef struct {
    uint64_t home; /* its lowest bit says whether a lookup ended here */
    uint64_t time_ms;
    uint32_t number, reserved;
} kv_tap_end;

struct kv_tap {
    /* guarded by the index's lock */
    uint64_t threshold; /* homes below it are in the sample */
    uint32_t number;    /* of the latest request; never 0 */
    uint32_t *earlier;  /* by number: the lookup before that ended with the same block and was not continued */
    kv_tap_end *ends;
    uint64_t num_dropped; /* requests for which there was no room */
    /* the ring: the head is the writer's, the tail the reader's */
    uint64_t *words;
    _Atomic uint64_t head, tail;
};

/* 0 or -ENOMEM. */
int kv_tap_create(kv_tap *tap);
void kv_tap_destroy(kv_tap *tap);
/* From now on this index is tapped at this threshold, and what was not read yet is forgotten; with NULL it is not. The
 * reader holds still. */
void kv_tap_set(kv_index *index, kv_tap *tap, uint64_t threshold);
/* The index's: a reservation, once for each request; a lookup that ended with `deepest`. */
void kv_tap_asked(kv_index *index, uint16_t ns, const kv_request *request);
/* Before the policy hears of it: it still knows when the blocks were used last. */
void kv_tap_touched(kv_index *index, uint32_t deepest);
/* The next request, and its sampled blocks, first block first (room for KV_TAP_CHAIN_MAX): their hashes, in the lowest
 * bits the kind. 0: there is none. One reader at a time. */
int kv_tap_take(kv_tap *tap, kv_tapped *request, uint64_t *homes);
static inline uint32_t kv_tap_kind(uint64_t home) { return home % KV_TAP_KINDS; }

#endif
