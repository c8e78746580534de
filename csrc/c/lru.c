/* Least recently used, leaf first.
 *
 * An access covers a whole chain. Only its deepest block is listed, at the hot end: the blocks above it were used at
 * the same moment and can leave only after it, so they need no place of their own. When the deepest block leaves, its
 * parent, if nothing else covers it, inherits the position. The order that results is exactly that of a plain LRU
 * which touches the blocks of a request from the last to the first (Caching study in docs/design.md), with one list
 * operation per access instead of one per block.
 *
 * The far order lists every block whose nearest copy is far: they arrive there one by one as they leave the near tier,
 * children before parents.
 */
#include "order.h"
#include "policy.h"

static kv_order *order_of(kv_index *index, uint16_t listed) {
    return listed == KV_LISTED_NEAR ? &index->near_order : &index->far_order;
}

static void unlink_entry(kv_index *index, uint32_t id) {
    kv_record *record = &index->records[id];
    uint16_t listed = record->flags & (KV_LISTED_NEAR | KV_LISTED_FAR);
    if (listed == 0) return;
    kv_order_remove(index->links, order_of(index, listed), id);
    record->flags &= (uint16_t)~listed;
}

static void link_hot(kv_index *index, uint32_t id, uint16_t listed) {
    kv_order_add_hot(index->links, order_of(index, listed), id);
    index->records[id].flags |= listed;
}

static void link_cold(kv_index *index, uint32_t id, uint16_t listed) {
    kv_order_add_cold(index->links, order_of(index, listed), id);
    index->records[id].flags |= listed;
}

static void lru_access(kv_index *index, uint32_t deepest) {
    uint32_t now = ++index->clock;
    int covered = 0; /* a listed near block below stands for this one */
    for (uint32_t id = deepest; id != KV_NONE; id = index->records[id].parent) {
        kv_record *record = &index->records[id];
        index->links[id].access = now;
        if (kv_is_near(record)) {
            /* A gap in the chain (a block between is only far) leaves a second near leaf. */
            if (!covered || index->links[id].near_kids == 0) {
                unlink_entry(index, id);
                link_hot(index, id, KV_LISTED_NEAR);
            } else if (record->flags & KV_LISTED_NEAR) {
                unlink_entry(index, id);
            }
            covered = 1;
        } else {
            unlink_entry(index, id);
            link_hot(index, id, KV_LISTED_FAR);
        }
    }
}

/* A put of what is all there is a use of it. */
static void lru_asked(kv_index *index, const kv_request *request) {
    const uint32_t last = request->num_keys - 1;
    if (request->num_keys > 0 && request->plan[last] == KV_PRESENT) lru_access(index, request->ids[last]);
}

static void lru_demoted(kv_index *index, uint32_t id) {
    unlink_entry(index, id);
    link_hot(index, id, KV_LISTED_FAR);
}

static void lru_bared(kv_index *index, uint32_t id) {
    link_cold(index, id, kv_is_near(&index->records[id]) ? KV_LISTED_NEAR : KV_LISTED_FAR);
}

static void lru_leave(kv_index *index, uint32_t id, uint32_t heir) {
    kv_record *record = &index->records[id];
    uint16_t listed = record->flags & (KV_LISTED_NEAR | KV_LISTED_FAR);
    if (heir == KV_NONE || listed == 0) {
        unlink_entry(index, id);
        if (heir != KV_NONE) lru_bared(index, heir);
        return;
    }
    kv_links *links = &index->links[id], *taken = &index->links[heir];
    kv_order *order = order_of(index, listed);
    taken->prev = links->prev;
    taken->next = links->next;
    if (links->prev != KV_NONE) index->links[links->prev].next = heir;
    else order->cold = heir;
    if (links->next != KV_NONE) index->links[links->next].prev = heir;
    else order->hot = heir;
    record->flags &= (uint16_t)~listed;
    index->records[heir].flags |= listed;
}

static uint32_t lru_coldest(const kv_index *index, enum kv_tier tier, uint32_t after) {
    if (after != KV_NONE) return index->links[after].next;
    return tier == KV_NEAR ? index->near_order.cold : index->far_order.cold;
}

/* Every listed entry is in exactly one order, linked both ways. */
static int check_order(const kv_index *index, const kv_order *order, uint16_t listed, uint64_t num_listed) {
    uint64_t length = 0;
    uint32_t before = KV_NONE;
    for (uint32_t id = order->cold; id != KV_NONE; id = index->links[id].next) {
        if (!(index->records[id].flags & listed) || index->links[id].prev != before) return 1;
        if (kv_state_of(&index->records[id]) != KV_VALID) return 2;
        if (kv_is_near(&index->records[id]) != (listed == KV_LISTED_NEAR)) return 3;
        before = id;
        if (++length > index->ids_used) return 4;
    }
    return order->hot != before || length != order->length || length != num_listed ? 5 : 0;
}

static int lru_check(const kv_index *index, uint64_t near_listed, uint64_t far_listed) {
    int broken = check_order(index, &index->near_order, KV_LISTED_NEAR, near_listed);
    return broken ? broken : check_order(index, &index->far_order, KV_LISTED_FAR, far_listed);
}

const kv_policy kv_lru = {
    .name = "lru",
    .touched = lru_access,
    .covered = lru_access,
    .spared = lru_access, /* in use now: as good as used just now */
    .demoted = lru_demoted,
    .leave = lru_leave,
    .bared = lru_bared,
    .coldest = lru_coldest,
    .check = lru_check,
    .asked = lru_asked,
};
