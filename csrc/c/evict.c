#include "evict.h"

#include <errno.h>
#include <string.h>

#include "lease.h"
#include "policy.h"
#include "tap.h"

/* What a client counted is its own word: nothing but statistics hangs on it. */
static void add_lookups(kv_lookups *sum, const kv_lookups *counted) {
    sum->num_acquires += counted->num_acquires;
    sum->num_keys += counted->num_keys;
    sum->num_held += counted->num_held;
    sum->num_near += counted->num_near;
}

uint32_t kv_evict_lookups(const kv_index *index, kv_lookups *sum) {
    KV_AS_WRITER(index);
    uint32_t num_groups = 0;
    *sum = (kv_lookups){0};
    add_lookups(sum, &index->past);
    for (uint32_t i = 0; i < index->num_tables; i++) {
        add_lookups(sum, &index->tables[i]->shared->counted);
        num_groups += kv_lease_num_held(index->tables[i]);
    }
    return num_groups * KV_GROUP;
}

int kv_evict_attach(kv_index *index, kv_table *table) {
    KV_AS_WRITER(index);
    if (index->num_tables == KV_TABLES_MAX) return -ENOSPC;
    index->tables[index->num_tables++] = table;
    return 0;
}

void kv_evict_detach(kv_index *index, kv_table *table) {
    KV_AS_WRITER(index);
    for (uint32_t i = 0; i < index->num_tables; i++)
        if (index->tables[i] == table) {
            add_lookups(&index->past, &table->shared->counted);
            index->tables[i] = index->tables[--index->num_tables];
            return;
        }
}

/* A touch is a hint: the id may have been given to another block since. */
static int is_touchable(const kv_index *index, uint32_t id) {
    return id < index->ids_used && kv_state_of(&index->records[id]) == KV_VALID;
}

#define CHAINS_SIDE_BY_SIDE 32

/* Bring what accesses to these chains will need into the caches. A chain lies scattered, and each block is found
 * through the one below it: chain by chain every block waits for memory, side by side the waits overlap. */
static void fetch_chains(const kv_index *index, const uint32_t *ids, uint32_t num_ids) {
    uint32_t at[CHAINS_SIDE_BY_SIDE], num_left = 0;
    for (uint32_t i = 0; i < num_ids; i++)
        if (ids[i] < index->ids_used) at[num_left++] = ids[i];
    for (uint32_t i = 0; i < num_left; i++) __builtin_prefetch(&index->records[at[i]]);
    while (num_left > 0) {
        uint32_t num_going_on = 0;
        for (uint32_t i = 0; i < num_left; i++) {
            uint32_t parent = index->records[at[i]].parent;
            __builtin_prefetch(&index->links[at[i]], 1);
            if (parent == KV_NONE) continue;
            __builtin_prefetch(&index->records[parent]);
            at[num_going_on++] = parent;
        }
        num_left = num_going_on;
    }
}

void kv_evict_drain(kv_index *index) {
    KV_AS_WRITER(index);
    for (uint32_t i = 0; i < index->num_tables; i++) {
        kv_leases *shared = index->tables[i]->shared;
        uint32_t head = atomic_load_explicit(&shared->touch_head, memory_order_acquire);
        uint32_t tail = atomic_load_explicit(&shared->touch_tail, memory_order_relaxed);
        if (head - tail > KV_TOUCHES) tail = head - KV_TOUCHES; /* a client wrote rubbish */
        if (head - tail > index->tables[i]->touches_max) head = tail + index->tables[i]->touches_max;
        while (tail != head) {
            uint32_t ids[CHAINS_SIDE_BY_SIDE], num_ids = 0;
            while (tail != head && num_ids < CHAINS_SIDE_BY_SIDE)
                ids[num_ids++] = shared->touch[tail++ & (KV_TOUCHES - 1)];
            if (num_ids > 1) fetch_chains(index, ids, num_ids);
            for (uint32_t j = 0; j < num_ids; j++) {
                if (!is_touchable(index, ids[j])) continue;
                if (index->tap != NULL) kv_tap_touched(index, ids[j]);
                index->policy->touched(index, ids[j]);
            }
        }
        atomic_store_explicit(&shared->touch_tail, tail, memory_order_release);
    }
}

/* Candidates in a small hash, and in a bitmap that most lease entries miss. */
typedef struct {
    uint64_t bits[1024];
    uint16_t slot[4 * KV_BATCH]; /* candidate + 1 */
} kv_sieve;

static inline uint32_t sieve_hash(uint32_t id) { return id * 2654435761u; }

static void sieve_fill(kv_sieve *sieve, const uint32_t *ids, uint32_t num_ids) {
    memset(sieve, 0, sizeof *sieve);
    for (uint32_t i = 0; i < num_ids; i++) {
        uint32_t hash = sieve_hash(ids[i]), at = hash >> 22;
        sieve->bits[hash >> 22] |= 1ULL << (hash >> 16 & 63);
        while (sieve->slot[at] != 0) at = (at + 1) % (4 * KV_BATCH);
        sieve->slot[at] = (uint16_t)(i + 1);
    }
}

void kv_evict_revoke(kv_index *index, kv_table *table, uint32_t group, uint32_t turn) {
    KV_AS_WRITER(index);
    atomic_store_explicit(&table->turns[group].revoked, turn, memory_order_seq_cst);
    table->revoked[group] = turn; /* only from here on does an eviction pass over its leases */
}

/* Leases in this group do not count: its client was told. */
static int is_revoked(const kv_table *table, uint32_t group) {
    return table->revoked != NULL && table->revoked[group] != 0 &&
           table->revoked[group] == atomic_load_explicit(&table->turns[group].turn, memory_order_relaxed);
}

void kv_evict_leased(const kv_index *index, const uint32_t *ids, uint32_t num_ids, uint8_t *leased) {
    kv_sieve sieve;
    sieve_fill(&sieve, ids, num_ids);
    memset(leased, 0, num_ids);
    for (uint32_t t = 0; t < index->num_tables; t++) {
        const kv_leases *shared = index->tables[t]->shared;
        uint32_t top = atomic_load_explicit(&shared->groups_top, memory_order_relaxed);
        if (top > index->tables[t]->num_groups) top = index->tables[t]->num_groups;
        for (uint32_t entry = 0; entry < top * KV_GROUP; entry++) {
            if (entry % KV_GROUP == 0 && is_revoked(index->tables[t], entry / KV_GROUP)) {
                entry += KV_GROUP - 1;
                continue;
            }
            uint32_t id = atomic_load_explicit(&shared->lease[entry], memory_order_relaxed) - 1;
            uint32_t hash = sieve_hash(id);
            if (!(sieve.bits[hash >> 22] >> (hash >> 16 & 63) & 1)) continue;
            for (uint32_t at = hash >> 22; sieve.slot[at] != 0; at = (at + 1) % (4 * KV_BATCH))
                if (ids[sieve.slot[at] - 1] == id) leased[sieve.slot[at] - 1] = 1;
        }
    }
    /* Pairs with the release of leases: what readers read under one that has ended was read before it is overwritten. */
    atomic_thread_fence(memory_order_acquire);
}

/* After the marks of a batch and before the scan of the leases. */
static void writer_fence(void) {
#ifndef KV_NO_WRITER_FENCE
    atomic_thread_fence(memory_order_seq_cst);
#else
    atomic_signal_fence(memory_order_seq_cst); /* the litmus test proves that this is not enough */
#endif
}

static uint64_t slot_nbytes(const kv_index *index, uint32_t id) {
    return index->namespaces[index->records[id].ns].slot_nbytes;
}

static void free_near(kv_index *index, uint32_t id, kv_freed *freed) {
    kv_record *record = &index->records[id];
    uint64_t where = atomic_load_explicit(&record->where, memory_order_relaxed);
    freed->near_places[freed->num_near] = kv_where_place(where);
    freed->near_ns[freed->num_near++] = record->ns;
    index->counts.num_near--;
    index->counts.near_nbytes -= slot_nbytes(index, id);
}

static void free_far(kv_index *index, uint32_t id, kv_freed *freed) {
    freed->far_places[freed->num_far] = index->links[id].far;
    freed->far_ns[freed->num_far++] = index->records[id].ns;
    index->links[id].far = KV_NONE;
    index->counts.num_far--;
    index->counts.far_nbytes -= slot_nbytes(index, id);
}

/* Does the block leave the cache when it leaves `tier`? `whole`: it leaves all of them. */
static int is_last(const kv_index *index, uint32_t id, enum kv_tier tier, int whole) {
    return whole || tier == KV_FAR || index->links[id].far == KV_NONE;
}

/* Takes `id` out of its order as a candidate, and out of its parent's child counts as if it were gone, so that the
 * parent may be the next candidate of the same batch; then the parent inherits the position. */
static void take(kv_index *index, uint32_t id, enum kv_tier tier, int whole) {
    uint32_t parent = index->records[id].parent, heir = KV_NONE;
    if (parent != KV_NONE) {
        const kv_record *above = &index->records[parent];
        kv_links *links = &index->links[parent];
        if (tier == KV_NEAR) links->near_kids--;
        if (is_last(index, id, tier, whole)) links->kids--;
        uint32_t left = tier == KV_NEAR ? links->near_kids : links->kids;
        int listed = above->flags & (KV_LISTED_NEAR | KV_LISTED_FAR);
        if (left == 0 && !listed && kv_is_near(above) == (tier == KV_NEAR) && kv_state_of(above) == KV_VALID)
            heir = parent;
    }
    index->policy->leave(index, id, heir);
    kv_set_state(index, id, KV_EVICT, 0);
}

/* A lease won: the block stays, and so does everything above it (which the access covers). */
static void spare(kv_index *index, uint32_t id, enum kv_tier tier, int whole, int leased) {
    uint32_t parent = index->records[id].parent;
    kv_set_state(index, id, KV_VALID, 0);
    if (parent != KV_NONE) {
        if (tier == KV_NEAR) index->links[parent].near_kids++;
        if (is_last(index, id, tier, whole)) index->links[parent].kids++;
    }
    if (leased) index->policy->spared(index, id);
    index->counts.spared++;
}

/* The block leaves the cache. It is unlisted, has no children and no lease, and `take` has uncounted it. */
static void drop(kv_index *index, uint32_t id, enum kv_reason reason) {
    uint32_t parent = index->records[id].parent;
    kv_index_note_ghost(index, id, reason);
    kv_index_tell_removed(index, id, reason);
    kv_index_part(index, id);
    kv_index_unhash(index, id);
    if (parent != KV_NONE) kv_index_bare(index, parent);
    index->records[id].parent = KV_NONE;
    kv_set_state(index, id, KV_FREE, 1);
    kv_index_count(index, index->records[id].ns, -1);
    kv_index_give_id(index, id);
}

/* What dropping a block will touch: its bucket and its ghost. */
static void prefetch_homes(const kv_index *index, const uint32_t *ids, uint32_t num_ids) {
    for (uint32_t i = 0; i < num_ids; i++) {
        uint8_t key[KV_KEY_NBYTES];
        kv_record_key(&index->records[ids[i]], key);
        uint64_t home = kv_home(index, key);
        __builtin_prefetch(&index->buckets[kv_home_bucket(index, home)]);
        __builtin_prefetch(&index->ghosts[home % KV_GHOSTS]);
    }
}

/* The verdicts on a batch, children before parents. Returns the bytes that came free. */
static uint64_t settle_near(kv_index *index, const uint32_t *ids, uint32_t num_ids, kv_freed *freed) {
    uint8_t leased[KV_BATCH];
    uint64_t freed_nbytes = 0;
    writer_fence();
    prefetch_homes(index, ids, num_ids);
    kv_evict_leased(index, ids, num_ids, leased);
    for (uint32_t i = 0; i < num_ids; i++) {
        uint32_t id = ids[i];
        if (leased[i] || index->links[id].near_kids > 0) {
            spare(index, id, KV_NEAR, 0, leased[i]);
            continue;
        }
        freed_nbytes += slot_nbytes(index, id);
        free_near(index, id, freed);
        index->counts.evicted_near++;
        kv_record *record = &index->records[id];
        if (index->links[id].far == KV_NONE) {
            const int was_meant_to = (record->flags & KV_STAYS_NEAR) == 0;
            index->counts.dropped_unwritten += was_meant_to;
            drop(index, id, was_meant_to ? KV_WAS_UNWRITTEN : KV_WAS_EVICTED);
        } else {
            atomic_store_explicit(&record->where, kv_where(KV_FAR, index->links[id].far), memory_order_relaxed);
            kv_set_state(index, id, KV_VALID, 1);
            index->policy->demoted(index, id);
        }
    }
    return freed_nbytes;
}

enum choice { TAKE, SKIP, HIDE, STOP };

/* Leased blocks that were spared since access number `began` are back at the hot end: the order has been walked. */
static int walked(const kv_index *index, uint32_t id, uint32_t began) {
    return (int32_t)(index->links[id].access - began) > 0;
}

static enum choice choose_near(const kv_index *index, uint32_t id, int keep_unwritten, uint32_t began) {
    const kv_record *record = &index->records[id];
    const kv_links *links = &index->links[id];
    if (walked(index, id, began)) return STOP;
    if (links->near_kids > 0) return HIDE;
    int unwritten = links->far == KV_NONE;
    if (unwritten && links->kids > 0) return HIDE;
    if (unwritten && keep_unwritten && !(record->flags & KV_STAYS_NEAR)) return STOP;
    if (record->flags & KV_WRITEBACK) return keep_unwritten ? STOP : SKIP;
    return TAKE;
}

uint64_t kv_evict_near(kv_index *index, uint64_t wanted_nbytes, int keep_unwritten, uint32_t level, kv_freed *freed) {
    KV_AS_WRITER(index);
    uint64_t freed_nbytes = 0;
    int stopped = 0, has_levels = level != KV_LEVEL_ANY && index->policy->level != NULL;
    freed->is_dearer = 0;
    kv_evict_drain(index);
    uint32_t began = index->clock;
    while (freed_nbytes < wanted_nbytes && !stopped && freed->num_near + KV_BATCH <= freed->capacity) {
        uint32_t batch[KV_BATCH], num_batch = 0, id;
        uint64_t batch_nbytes = 0;
        /* A skipped block stays listed and is stepped over; a taken one is gone, and `id` asks from the same point. */
        uint32_t after = KV_NONE;
        while (num_batch < KV_BATCH && freed_nbytes + batch_nbytes < wanted_nbytes &&
               (id = index->policy->coldest(index, KV_NEAR, after)) != KV_NONE) {
            enum choice choice = choose_near(index, id, keep_unwritten, began);
            if (has_levels && choice != STOP && index->policy->level(index, id) > level) {
                freed->is_dearer = 1;
                choice = STOP;
            }
            if (choice == STOP) {
                stopped = 1;
                break;
            }
            if (choice == SKIP) {
                after = id;
            } else if (choice == HIDE) {
                index->policy->leave(index, id, KV_NONE);
            } else {
                take(index, id, KV_NEAR, 0);
                batch[num_batch++] = id;
                batch_nbytes += slot_nbytes(index, id);
            }
        }
        if (num_batch == 0) break;
        freed_nbytes += settle_near(index, batch, num_batch, freed);
    }
    return freed_nbytes;
}

uint64_t kv_evict_these(kv_index *index, const uint32_t *ids, uint32_t num_ids, int keep_unwritten, kv_freed *freed) {
    KV_AS_WRITER(index);
    uint64_t freed_nbytes = 0;
    kv_evict_drain(index);
    for (int progress = 1; progress;) { /* each pass takes what the pass before bared */
        progress = 0;
        for (uint32_t i = 0; i < num_ids && freed->num_near < freed->capacity; i++) {
            const kv_record *record = &index->records[ids[i]];
            if (kv_state_of(record) != KV_VALID || !kv_is_near(record)) continue;
            if (choose_near(index, ids[i], keep_unwritten, index->clock) != TAKE) continue;
            take(index, ids[i], KV_NEAR, 0);
            uint64_t nbytes = settle_near(index, &ids[i], 1, freed);
            freed_nbytes += nbytes;
            progress |= nbytes > 0;
        }
    }
    return freed_nbytes;
}

static uint64_t settle_far(kv_index *index, const uint32_t *ids, uint32_t num_ids, kv_freed *freed) {
    uint8_t leased[KV_BATCH];
    uint64_t freed_nbytes = 0;
    writer_fence();
    kv_evict_leased(index, ids, num_ids, leased);
    for (uint32_t i = 0; i < num_ids; i++) {
        uint32_t id = ids[i];
        if (leased[i] || index->links[id].kids > 0) {
            spare(index, id, KV_FAR, 0, leased[i]);
            continue;
        }
        freed_nbytes += slot_nbytes(index, id);
        free_far(index, id, freed);
        index->counts.evicted_far++;
        drop(index, id, KV_WAS_EVICTED);
    }
    return freed_nbytes;
}

uint64_t kv_evict_far(kv_index *index, uint64_t wanted_nbytes, kv_freed *freed) {
    KV_AS_WRITER(index);
    uint64_t freed_nbytes = 0;
    kv_evict_drain(index);
    uint32_t began = index->clock;
    for (;;) {
        uint32_t batch[KV_BATCH], num_batch = 0, id, after = KV_NONE;
        uint64_t batch_nbytes = 0;
        while (num_batch < KV_BATCH && freed_nbytes + batch_nbytes < wanted_nbytes &&
               freed->num_far + num_batch < freed->capacity &&
               (id = index->policy->coldest(index, KV_FAR, after)) != KV_NONE) {
            if (walked(index, id, began)) break;
            if (index->records[id].flags & KV_PROMOTING) {
                after = id;
                continue;
            }
            if (index->links[id].kids > 0) {
                index->policy->leave(index, id, KV_NONE); /* listed again when its last child goes */
                continue;
            }
            take(index, id, KV_FAR, 0);
            batch[num_batch++] = id;
            batch_nbytes += slot_nbytes(index, id);
        }
        if (num_batch == 0) return freed_nbytes;
        freed_nbytes += settle_far(index, batch, num_batch, freed);
        if (freed_nbytes >= wanted_nbytes) return freed_nbytes;
    }
}

static int may_leave(const kv_index *index, uint32_t id, uint16_t ns) {
    const kv_record *record = &index->records[id];
    const kv_links *links = &index->links[id];
    return record->ns == ns && links->kids == 0 && links->near_kids == 0 &&
           !(record->flags & (KV_WRITEBACK | KV_PROMOTING));
}

static uint32_t settle_whole(kv_index *index, const uint32_t *ids, uint32_t num_ids, enum kv_tier tier,
                             kv_freed *freed) {
    uint8_t leased[KV_BATCH];
    uint32_t num_gone = 0;
    writer_fence();
    prefetch_homes(index, ids, num_ids);
    kv_evict_leased(index, ids, num_ids, leased);
    for (uint32_t i = 0; i < num_ids; i++) {
        uint32_t id = ids[i];
        int is_written = index->links[id].far != KV_NONE;
        if (leased[i] || index->links[id].kids > 0 || index->links[id].near_kids > 0) {
            spare(index, id, tier, 1, leased[i]);
            continue;
        }
        index->counts.dropped_unwritten += !is_written;
        index->counts.evicted_near += tier == KV_NEAR;
        index->counts.evicted_far += tier == KV_FAR;
        if (tier == KV_NEAR) free_near(index, id, freed);
        if (is_written) free_far(index, id, freed);
        drop(index, id, KV_WAS_OVER_QUOTA);
        num_gone++;
    }
    return num_gone;
}

typedef struct {
    uint16_t ns;
    enum kv_tier tier;
    uint32_t began;   /* number of the last access before the walk */
    uint32_t visits;  /* what may still be looked at */
    int wrapped;      /* it began at the cold end, or is there again */
} kv_search;

/* One batch of a namespace out of one order, from its cursor on; fewer than wanted at the end of the walk. */
static uint32_t take_of_namespace(kv_index *index, kv_search *walk, uint32_t *batch, uint32_t num_wanted) {
    const uint16_t listed = walk->tier == KV_NEAR ? KV_LISTED_NEAR : KV_LISTED_FAR;
    uint32_t *cursor = &index->namespaces[walk->ns].cursor[walk->tier], num_batch = 0;
    uint32_t after = *cursor > 0 && index->records[*cursor - 1].flags & listed ? *cursor - 1 : KV_NONE;
    if (after == KV_NONE) walk->wrapped = 1;
    while (num_batch < num_wanted && walk->visits > 0) {
        uint32_t id = index->policy->coldest(index, walk->tier, after);
        if (id == KV_NONE || walked(index, id, walk->began)) {
            after = KV_NONE;
            if (walk->wrapped) break;
            walk->wrapped = 1;
            continue;
        }
        walk->visits--;
        if (may_leave(index, id, walk->ns)) {
            take(index, id, walk->tier, 1);
            batch[num_batch++] = id;
        } else {
            after = id;
        }
    }
    *cursor = after == KV_NONE ? 0 : after + 1;
    return num_batch;
}

uint32_t kv_evict_namespace(kv_index *index, uint16_t ns, uint32_t num_blocks, kv_freed *freed) {
    KV_AS_WRITER(index);
    kv_evict_drain(index);
    kv_search walk = {.ns = ns, .tier = KV_FAR, .began = index->clock, .visits = KV_WALK_MAX};
    uint32_t num_gone = 0;
    int num_barren = 0; /* walks in a row that took nothing; a near child that left may have bared a far parent */
    while (num_gone < num_blocks && walk.visits > 0 && num_barren < 2 && freed->num_near + KV_BATCH <= freed->capacity &&
           freed->num_far + KV_BATCH <= freed->capacity) {
        uint32_t batch[KV_BATCH], num_left = num_blocks - num_gone;
        uint32_t most = num_left < KV_BATCH ? num_left : KV_BATCH;
        uint32_t num_batch = take_of_namespace(index, &walk, batch, most);
        uint32_t num_now = settle_whole(index, batch, num_batch, walk.tier, freed);
        num_gone += num_now;
        num_barren = num_now ? 0 : num_barren + 1;
        if (num_batch == most) continue;
        walk.tier = walk.tier == KV_FAR ? KV_NEAR : KV_FAR;
        walk.wrapped = 0;
    }
    return num_gone;
}

uint32_t kv_evict_reap(kv_index *index, kv_freed *freed) {
    KV_AS_WRITER(index);
    uint32_t reaped = 0, kept = KV_NONE;
    while (index->removed_head != KV_NONE && freed->num_near + KV_BATCH <= freed->capacity &&
           freed->num_far + KV_BATCH <= freed->capacity) {
        uint32_t batch[KV_BATCH], num_batch = 0;
        uint8_t leased[KV_BATCH];
        for (; num_batch < KV_BATCH && index->removed_head != KV_NONE; num_batch++) {
            batch[num_batch] = index->removed_head;
            index->removed_head = index->links[index->removed_head].next;
        }
        writer_fence();
        kv_evict_leased(index, batch, num_batch, leased);
        for (uint32_t i = 0; i < num_batch; i++) {
            uint32_t id = batch[i];
            if (leased[i] || (index->records[id].flags & (KV_WRITEBACK | KV_PROMOTING))) {
                index->links[id].next = kept;
                kept = id;
                continue;
            }
            if (kv_is_near(&index->records[id])) free_near(index, id, freed);
            if (index->links[id].far != KV_NONE) free_far(index, id, freed);
            kv_set_state(index, id, KV_FREE, 1);
            kv_index_give_id(index, id);
            index->counts.num_removed--;
            reaped++;
        }
    }
    while (kept != KV_NONE) {
        uint32_t next = index->links[kept].next;
        index->links[kept].next = index->removed_head;
        index->removed_head = kept;
        kept = next;
    }
    return reaped;
}
