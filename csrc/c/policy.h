/* What an eviction policy owes the index: two orders over entries, near and far, kept through five events and what hints say.
 *
 * All calls come from the single writer. A policy never frees or moves anything: it only says who goes next.
 * `coldest` walks: start with KV_NONE for the first candidate, then pass the last one that was skipped. A candidate
 * that the caller cannot evict because it has children is taken out with `leave`; the policy lists it again when
 * `bared` says that its last child went.
 */
#ifndef KV_POLICY_H
#define KV_POLICY_H

#include "hint.h"

struct kv_policy {
    const char *name;
    /* A request read or wrote the chain that ends at `deepest`: takes the next number of index->clock and leaves it in
     * links.access of every block of the chain. */
    void (*access)(kv_index *index, uint32_t deepest);
    /* `id` lost its near copy and keeps a far one. */
    void (*demoted)(kv_index *index, uint32_t id);
    /* `id` is leaving an order, or must not be offered for now. `heir`: its parent, if that has just become the next
     * candidate of the same tier and inherits the position; else KV_NONE. */
    void (*leave)(kv_index *index, uint32_t id, uint32_t heir);
    /* `id` has no children left in the tier it would be evicted from and is in no order. */
    void (*bared)(kv_index *index, uint32_t id);
    uint32_t (*coldest)(const kv_index *index, enum kv_tier tier, uint32_t after);
    /* Somebody knows this of the request behind the chain that ends at `deepest`, a visible block. That is no access.
     * NULL: hints make no difference. */
    void (*hint)(kv_index *index, uint32_t deepest, const kv_hint *hint);
};

extern const kv_policy kv_lru; /* least recently used leaf first (tail of the chain before its head) */

#endif
