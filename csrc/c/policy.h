/* What an eviction policy owes the index: two orders over entries, near and far, kept through what happens to them.
 *
 * All calls come from the single writer. A policy never frees or moves anything: it only says who goes next, and what
 * a block is worth. Time is index->now_ms, which the callers of the core set; a policy takes it as going forward only.
 * `coldest` walks: start with KV_NONE for the first candidate, then pass the last one that was skipped. A candidate
 * that the caller cannot evict because it has children is taken out with `leave`; the policy lists it again when
 * `bared` says that its last child went.
 */
#ifndef KV_POLICY_H
#define KV_POLICY_H

#include <math.h>

#include "hint.h"

#define KV_LEVEL_ANY UINT32_MAX /* above every level */
#define KV_DOUBLING_LEVELS 64   /* what is worth twice as much is so many levels higher */
#define KV_ANY_GAIN INT32_MIN

/* A reservation: everything that a caller has computed or found of one prompt. */
typedef struct {
    const uint8_t *keys; /* the whole chain */
    const uint8_t *plan; /* kv_plan of each position */
    const uint32_t *ids; /* of what is there, else KV_NONE */
    uint32_t num_keys;
    kv_hint hint;
} kv_request;

/* What it remembers of blocks that are not stored, in how many bytes, and between how many classes it tells apart. */
typedef struct {
    uint64_t num_ghosts, nbytes;
    uint32_t num_classes;
} kv_policy_figures;

struct kv_policy {
    const char *name;
    /* Make index->ranks, with room to remember `ghosts_max` blocks that are not stored. 0 or -ENOMEM. NULL: needs none. */
    int (*create)(kv_index *index, uint32_t ghosts_max);
    void (*destroy)(kv_index *index);
    /* A lookup read the chain that ends at `deepest`: takes the next number of index->clock and leaves it in
     * links.access of every block of the chain. */
    void (*touched)(kv_index *index, uint32_t deepest);
    /* Blocks of the chain that ends at `deepest` became visible, or near; numbered as a touch is, but nobody asked. */
    void (*covered)(kv_index *index, uint32_t deepest);
    /* `id` was a candidate, and a lease holds it: numbered as a touch is, and not offered again for now. */
    void (*spared)(kv_index *index, uint32_t id);
    /* `id` lost its near copy and keeps a far one. */
    void (*demoted)(kv_index *index, uint32_t id);
    /* `id` is leaving an order, or must not be offered for now. `heir`: its parent, if that has just become the next
     * candidate of the same tier and inherits the position; else KV_NONE. */
    void (*leave)(kv_index *index, uint32_t id, uint32_t heir);
    /* `id` has no children left in the tier it would be evicted from and is in no order. */
    void (*bared)(kv_index *index, uint32_t id);
    uint32_t (*coldest)(const kv_index *index, enum kv_tier tier, uint32_t after);
    /* Listed as often as the records say, and linked both ways: 0, or the number of the broken rule. For tests. */
    int (*check)(const kv_index *index, uint64_t near_listed, uint64_t far_listed);

    /* The rest may be NULL. */

    /* A caller asks for places. Once for each request. */
    void (*asked)(kv_index *index, const kv_request *request);
    /* What each WANTED position of a request would be worth if it were stored now, one level each in their order: it
     * gets no place for which something of a higher level would have to go. */
    void (*appraise)(const kv_index *index, const kv_request *request, uint32_t *levels);
    /* Of a listed block; `coldest` offers them from the lowest level on. */
    uint32_t (*level)(const kv_index *index, uint32_t id);
    /* Whether levels say by now how much more one block is worth than another; before they only say which is older. */
    int (*has_learned)(const kv_index *index);
    /* `id` leaves the index: it is in no order any more, and still has its key. */
    void (*gone)(kv_index *index, uint32_t id);
    /* Something is known now about the last request of the chain that ends at `deepest`, a visible block. That is no
     * access. */
    void (*hint)(kv_index *index, uint32_t deepest, const kv_hint *hint);
    /* Do a bounded piece of what can wait: at most some hundred microseconds. */
    void (*tend)(kv_index *index);
    /* How likely each of these is asked for within so many seconds: stored blocks, or the WANTED positions of a request. */
    void (*chances)(const kv_index *index, const uint32_t *ids, uint32_t num_ids, uint32_t within_s, float *chances);
    void (*wanted_chances)(const kv_index *index, const kv_request *request, uint32_t within_s, float *chances);
    void (*describe)(const kv_index *index, kv_policy_figures *figures);
    /* From its start on the index is told of no more than so large a share of all blocks. */
    void (*sampled)(kv_index *index, float share);
};

/* By how many levels what is worth so many times as much is higher; KV_ANY_GAIN of 0. */
static inline int32_t kv_gain_levels(float times) {
    return times > 0 ? (int32_t)lroundf(KV_DOUBLING_LEVELS * log2f(times)) : KV_ANY_GAIN;
}

extern const kv_policy kv_lru;     /* least recently used leaf first (tail of the chain before its head) */
extern const kv_policy kv_gittins; /* the least hits per block and second to be expected first; leaves only */
extern const kv_policy kv_s3fifo;  /* first in, first out, but what was used meanwhile goes round again */
extern const kv_policy kv_arc;     /* least recently used of those used once, or of the others, by what is missed */

#endif
