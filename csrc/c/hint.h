/* Hints: what an engine knows of the request behind a chain and an eviction policy could not find out by itself.
 *
 * Nobody has to give one, and one that is wrong costs hits and nothing else: what a hint says is never relied on.
 */
#ifndef KV_HINT_H
#define KV_HINT_H

#include "index.h"

enum kv_ending { /* how the answer behind the chain ended */
    KV_ENDING_UNKNOWN = 0,
    KV_ENDING_TOOL_USE = 1,       /* it goes on when a tool has answered */
    KV_ENDING_END_TURN = 2,       /* it goes on when a person has */
    KV_ENDING_SESSION_CLOSED = 3, /* it does not go on */
};

#define KV_TOKENS_UNKNOWN UINT32_MAX

typedef struct {
    uint8_t ending;  /* kv_ending */
    int8_t priority; /* -1 to 1 */
    uint16_t zero;
    uint32_t output_tokens; /* of the answer that follows the chain */
} kv_hint;
_Static_assert(sizeof(kv_hint) == 8, "docs/formats.md says so");

#define KV_NO_HINT ((kv_hint){.output_tokens = KV_TOKENS_UNKNOWN})

/* It may come from a client. */
static inline int kv_hint_is_valid(const kv_hint *hint) {
    return hint->ending <= KV_ENDING_SESSION_CLOSED && hint->priority >= -1 && hint->priority <= 1 && hint->zero == 0;
}
static inline int kv_hint_is_given(const kv_hint *hint) {
    return hint->ending != KV_ENDING_UNKNOWN || hint->priority != 0 || hint->output_tokens != KV_TOKENS_UNKNOWN;
}

/* Tell the eviction policy what is known of the chain that ends at `deepest`; a block that is not visible is not told of. */
void kv_index_hint(kv_index *index, uint32_t deepest, const kv_hint *hint);
/* Likewise of the last of `ids` that is visible; parents come before children in it. */
void kv_index_hint_last(kv_index *index, const uint32_t *ids, uint32_t num_ids, const kv_hint *hint);

/* The ids of the chain that ends at `deepest`, that first: its length, of which `ids` gets up to `ids_max`. */
uint32_t kv_index_chain(const kv_index *index, uint32_t deepest, uint32_t *ids, uint32_t ids_max);
/* A number that is not smaller than that of any access so far, and smaller than that of each later one. */
uint32_t kv_index_mark(kv_index *index);
/* Remove the blocks of a chain that nobody has used since access number `mark`, from its end on: `gone[i]` is 1 for those.
 * What something extends stays, also when that is only being written. Returns how many went. */
uint32_t kv_index_expire(kv_index *index, const uint8_t *keys, uint32_t num_keys, uint32_t mark, uint8_t *gone);

#endif
