#include "tiered.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "eviction.h"

#define NS 1 /* of slots of one byte, so that bytes are blocks */

/* ---- set-up ---- */

static uint32_t at_most(uint64_t num_blocks, uint32_t num_ids) {
    return num_blocks < num_ids ? (uint32_t)num_blocks : num_ids;
}

static int make_tables(kv_tiered *tiered) {
    int code = kv_table_create(&tiered->leases, tiered->chain_max);
    if (code < 0) return code;
    kv_evict_attach(&tiered->index, &tiered->leases);
    if (!tiered->tiering.takes_victims) return 0;
    code = kv_table_create(&tiered->hbm_leases, tiered->hbm.capacity + 1);
    if (code < 0) return code;
    tiered->hbm_leases.shared->groups_top = tiered->hbm_leases.num_groups; /* all of its entries are always looked at */
    return kv_evict_attach(&tiered->index, &tiered->hbm_leases);
}

static int make_arrays(kv_tiered *tiered, uint32_t entries_max, uint32_t num_ids) {
    const size_t chain = tiered->chain_max, freed_max = 2 * (chain + KV_BATCH);
    tiered->freed.capacity = (uint32_t)freed_max;
    tiered->freed.near_places = malloc(freed_max * sizeof(uint32_t));
    tiered->freed.far_places = malloc(freed_max * sizeof(uint32_t));
    tiered->freed.near_ns = malloc(freed_max * sizeof(uint16_t));
    tiered->freed.far_ns = malloc(freed_max * sizeof(uint16_t));
    tiered->arrived = malloc((size_t)entries_max * sizeof(uint32_t));
    tiered->is_arrived = calloc(entries_max, 1);
    tiered->id_of = calloc(entries_max, sizeof(uint32_t));
    tiered->times_asked = calloc((size_t)num_ids + 1, 1);
    tiered->keys = malloc(chain * KV_KEY_NBYTES);
    tiered->plan = malloc(chain);
    tiered->marks = malloc(chain);
    tiered->entries = malloc(chain * sizeof(uint32_t));
    tiered->places = calloc(chain, sizeof(uint32_t)); /* nobody looks at where a block lies */
    tiered->moved = malloc(2 * chain * sizeof(uint32_t));
    tiered->words = calloc(chain, sizeof(uint64_t));
    const kv_freed *freed = &tiered->freed;
    const int has_freed = freed->near_places && freed->far_places && freed->near_ns && freed->far_ns;
    const int has_blocks = tiered->arrived && tiered->is_arrived && tiered->id_of && tiered->times_asked;
    const int has_request = tiered->keys && tiered->plan && tiered->marks && tiered->entries && tiered->places &&
                            tiered->moved && tiered->words;
    return has_freed && has_blocks && has_request ? 0 : -ENOMEM;
}

int kv_tiered_create(kv_tiered *tiered, const kv_policy *policy, const kv_tiering *tiering, uint32_t num_ids,
                     uint32_t chain_max) {
    static const uint64_t seed[2] = {0x9c41e3d2b7a65f08, 0x37d5f1a9026bce84}; /* the same run, the same hits */
    memset(tiered, 0, sizeof *tiered);
    tiered->tiering = *tiering;
    tiered->gain_levels = kv_gain_levels(tiering->gain_min);
    tiered->chain_max = chain_max > 0 ? chain_max : 1;
    /* A chain comes in before room is made for it, and what HBM has may be in no other tier. */
    const uint64_t stored_max = (uint64_t)at_most(tiering->near_blocks, num_ids) + at_most(tiering->far_blocks, num_ids) +
                                at_most(tiering->hbm_blocks, num_ids) + 1;
    const uint64_t entries_max = at_most(stored_max, num_ids) + (uint64_t)tiered->chain_max;
    if (entries_max >= KV_NONE) return -EOVERFLOW;
    int code = kv_hbm_create(&tiered->hbm, at_most(tiering->hbm_blocks, num_ids), num_ids);
    if (code < 0) return code;
    code = kv_index_create(&tiered->index, (uint32_t)entries_max, seed, policy, num_ids);
    if (code == 0) {
        tiered->index.namespaces[NS] = (kv_ns){.slot_nbytes = 1, .all_parts = 1};
        code = make_tables(tiered);
    }
    if (code == 0) code = make_arrays(tiered, (uint32_t)entries_max, num_ids);
    if (code < 0) kv_tiered_destroy(tiered);
    return code;
}

void kv_tiered_destroy(kv_tiered *tiered) {
    kv_index_destroy(&tiered->index);
    kv_table_destroy(&tiered->leases);
    kv_table_destroy(&tiered->hbm_leases);
    kv_hbm_destroy(&tiered->hbm);
    void *arrays[] = {tiered->freed.near_places, tiered->freed.far_places, tiered->freed.near_ns, tiered->freed.far_ns,
                      tiered->arrived, tiered->is_arrived, tiered->id_of, tiered->times_asked, tiered->keys, tiered->plan,
                      tiered->marks, tiered->entries, tiered->places, tiered->moved, tiered->words};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) free(arrays[i]);
    memset(tiered, 0, sizeof *tiered);
}

/* ---- far copies ---- */

static int is_unwritten(const kv_tiered *tiered, uint32_t entry) { return tiered->index.links[entry].far == KV_NONE; }

static int is_near(const kv_tiered *tiered, uint32_t entry) { return kv_is_near(&tiered->index.records[entry]); }

static int is_worth_far(const kv_tiered *tiered, uint32_t entry) {
    const kv_index *index = &tiered->index;
    if (tiered->times_asked[tiered->id_of[entry]] < tiered->tiering.asked_min) return 0;
    if (tiered->tiering.chance_min <= 0 || index->policy->chances == NULL) return 1;
    float chance;
    index->policy->chances(index, &entry, 1, KV_TIERED_CHANCE_S, &chance);
    return chance >= tiered->tiering.chance_min;
}

/* To a policy with levels: is the block not worth so much more than what would have to go that it is worth a write? */
static int is_too_cheap(const kv_tiered *tiered, uint32_t entry) {
    const kv_index *index = &tiered->index;
    if (index->policy->has_learned == NULL || tiered->gain_levels == KV_ANY_GAIN) return 0;
    if (!index->policy->has_learned(index)) return 0;
    const uint32_t coldest = index->policy->coldest(index, KV_FAR, KV_NONE);
    if (coldest == KV_NONE) return 0;
    const int64_t least = (int64_t)index->policy->level(index, coldest) + tiered->gain_levels;
    return (int64_t)index->policy->level(index, entry) < least;
}

/* Room for so many far copies, the last of which is `entry`'s. A block that others hang on has to stay somewhere. */
static int make_far_room(kv_tiered *tiered, uint32_t entry, uint32_t num_blocks) {
    const uint64_t most = tiered->tiering.far_blocks;
    kv_index *index = &tiered->index;
    while (index->counts.num_far + num_blocks > most) {
        if (index->links[entry].kids == 0 && is_too_cheap(tiered, entry)) return 0;
        tiered->freed.num_near = tiered->freed.num_far = 0;
        if (kv_evict_far(index, index->counts.num_far + num_blocks - most, &tiered->freed) == 0) return 0;
    }
    return 1;
}

static void set_far_copy(kv_index *index, uint32_t entry, int is_there) {
    index->links[entry].far = is_there ? 0 : KV_NONE;
    index->counts.num_far += is_there ? 1 : UINT64_MAX;
    index->counts.far_nbytes += is_there ? 1 : UINT64_MAX;
}

/* As the mover does it: what the block extends and has no far copy gets one first, so that the far tier is prefix-closed
 * by itself. */
static void write_chain(kv_tiered *tiered, uint32_t entry) {
    kv_index *index = &tiered->index;
    uint32_t num = 0, *chain = tiered->moved + 2 * (size_t)tiered->chain_max; /* filled from its end on: parents first */
    for (uint32_t at = entry; at != KV_NONE && is_unwritten(tiered, at); at = index->records[at].parent)
        *--chain = at, num++;
    if (!make_far_room(tiered, entry, num)) return;
    for (uint32_t i = 0; i < num; i++) tiered->words[i] = kv_record_word(&index->records[chain[i]]);
    kv_writeback_mark(index, NS, chain, tiered->words, num, tiered->marks);
    kv_writeback_unmark(index, chain, tiered->places, tiered->words, tiered->marks, num, tiered->plan);
    for (uint32_t i = 0; i < num; i++) tiered->sums.far_writes += tiered->plan[i];
}

/* Make a far copy of a near block that has none; or none where there is no room, or what is there is worth too much. */
static void write_back(kv_tiered *tiered, uint32_t entry) {
    if (tiered->tiering.writes_chains) {
        write_chain(tiered, entry);
    } else if (make_far_room(tiered, entry, 1)) {
        set_far_copy(&tiered->index, entry, 1);
        tiered->sums.far_writes++;
    }
}

/* ---- DRAM ---- */

static uint64_t near_used(const kv_tiered *tiered) { return tiered->index.counts.num_near - tiered->num_in_hbm; }

static int is_held(const kv_tiered *tiered, uint32_t entry) {
    return tiered->tiering.takes_victims && kv_hbm_has(&tiered->hbm, tiered->id_of[entry]);
}

static void arrive(kv_tiered *tiered, uint32_t entry) {
    if (tiered->is_arrived[entry]) return;
    tiered->is_arrived[entry] = 1;
    tiered->arrived[tiered->num_arrived++] = entry;
}

/* Does the near block go? It gets its far copy now, if it is to have one, and has to where others hang on it. */
static int evict_one(kv_tiered *tiered, uint32_t entry) {
    kv_index *index = &tiered->index;
    const int is_due = !tiered->tiering.writes_at_put && is_worth_far(tiered, entry);
    if (is_unwritten(tiered, entry) && (is_due || index->links[entry].kids > 0)) write_back(tiered, entry);
    tiered->freed.num_near = tiered->freed.num_far = 0;
    if (kv_evict_these(index, &entry, 1, 0, &tiered->freed) == 0) return 0;
    tiered->is_arrived[entry] = 0;
    return 1;
}

static void make_near_room(kv_tiered *tiered) {
    kv_index *index = &tiered->index;
    const uint32_t began = index->clock;
    uint32_t after = KV_NONE;
    while (near_used(tiered) > tiered->tiering.near_blocks) {
        const uint32_t entry = index->policy->coldest(index, KV_NEAR, after);
        if (entry == KV_NONE) return; /* what is left has far blocks on it, and there is no room for far copies */
        if (index->links[entry].near_kids > 0)
            index->policy->leave(index, entry, KV_NONE);
        else if (!is_held(tiered, entry))
            after = evict_one(tiered, entry) ? KV_NONE : entry;
        else if ((int32_t)(index->links[entry].access - began) > 0)
            after = entry;
        else
            index->policy->spared(index, entry);
    }
}

/* What came into DRAM in this request and has not left it, nor come back into HBM, was written there. */
static void settle_arrived(kv_tiered *tiered) {
    for (uint32_t i = 0; i < tiered->num_arrived; i++) {
        const uint32_t entry = tiered->arrived[i];
        tiered->sums.near_writes += tiered->is_arrived[entry] && !is_held(tiered, entry);
        tiered->is_arrived[entry] = 0;
    }
    tiered->num_arrived = 0;
}

/* ---- HBM ---- */

static void enter_hbm(kv_tiered *tiered, uint32_t id, uint32_t entry) {
    const uint32_t slot = tiered->hbm.slot_of[id];
    atomic_store_explicit(&tiered->hbm_leases.shared->lease[slot], entry + 1, memory_order_relaxed);
    tiered->num_in_hbm += (uint64_t)is_near(tiered, entry);
}

/* What has no place but HBM's comes into DRAM. */
static void leave_hbm(kv_tiered *tiered, uint32_t slot) {
    _Atomic uint32_t *lease = &tiered->hbm_leases.shared->lease[slot];
    const uint32_t entry = atomic_load_explicit(lease, memory_order_relaxed) - 1;
    atomic_store_explicit(lease, 0, memory_order_relaxed);
    if (!is_near(tiered, entry)) return;
    tiered->num_in_hbm--;
    arrive(tiered, entry);
}

/* The engine has computed or loaded all of the request, and used it. */
static void use_hbm(kv_tiered *tiered, const uint32_t *ids, uint32_t num_ids) {
    for (uint32_t i = num_ids; i-- > 0;) {
        const int is_new = kv_hbm_use(&tiered->hbm, ids[i]);
        if (is_new && tiered->tiering.takes_victims) enter_hbm(tiered, ids[i], tiered->entries[i]);
        const uint32_t slot = kv_hbm_evict(&tiered->hbm);
        if (slot != KV_HBM_NONE && tiered->tiering.takes_victims) leave_hbm(tiered, slot);
    }
}

/* ---- a request ---- */

/* The far ones of these blocks of one chain come near. */
static void promote(kv_tiered *tiered, const uint32_t *entries, uint32_t num_entries) {
    kv_index *index = &tiered->index;
    uint32_t num = 0, *moved = tiered->moved;
    if (tiered->tiering.promotion == KV_PROMOTION_NO_REFILL) return;
    for (uint32_t i = 0; i < num_entries; i++)
        if (!is_near(tiered, entries[i])) moved[num++] = entries[i];
    kv_promote_mark(index, moved, num, tiered->marks);
    kv_promote_unmark(index, moved, tiered->places, tiered->marks, num, tiered->plan);
    for (uint32_t i = 0; i < num; i++) {
        if (tiered->tiering.promotion == KV_PROMOTION_MOVE) set_far_copy(index, moved[i], 0);
        arrive(tiered, moved[i]);
    }
}

/* Look the request up, and bring near what it found. */
static void find(kv_tiered *tiered, const uint32_t *ids, uint32_t num_ids) {
    uint32_t num_in_hbm = 0;
    kv_held held;
    kv_lease_acquire(&tiered->index, &tiered->leases, NS, tiered->keys, num_ids, 1, &held);
    const uint32_t num_stored = held.num_blocks;
    kv_lease_ids(&tiered->leases, &held, tiered->entries);
    kv_lease_release(&tiered->leases, &held); /* nothing is evicted before all of the request is there */
    kv_evict_drain(&tiered->index);
    while (num_in_hbm < num_ids && kv_hbm_has(&tiered->hbm, ids[num_in_hbm])) num_in_hbm++;
    const uint32_t num_hits = num_stored > num_in_hbm ? num_stored : num_in_hbm;
    tiered->sums.hbm_hits += num_in_hbm;
    tiered->sums.misses += num_ids - num_hits;
    for (uint32_t i = num_in_hbm; i < num_hits; i++) {
        if (is_near(tiered, tiered->entries[i])) tiered->sums.near_hits++;
        else tiered->sums.far_hits++;
    }
    promote(tiered, tiered->entries + num_in_hbm, num_hits - num_in_hbm);
}

/* What of the request is not stored becomes near blocks, whether there is room or not. */
static void put(kv_tiered *tiered, const uint32_t *ids, uint32_t num_ids, const kv_hint *hint) {
    kv_index *index = &tiered->index;
    uint32_t *mine = tiered->moved, *published = tiered->moved + tiered->chain_max, num_mine = 0;
    const uint32_t num_wanted = kv_index_plan(index, tiered->keys, num_ids, 0, tiered->plan, tiered->entries);
    const kv_request request = {tiered->keys, tiered->plan, tiered->entries, num_ids, *hint};
    if (index->policy->asked != NULL) index->policy->asked(index, &request);
    tiered->sums.num_refused += num_wanted - kv_index_begin(index, tiered->keys, num_ids, 0, NS, tiered->plan,
                                                            tiered->entries, tiered->places, num_wanted);
    for (uint32_t i = 0; i < num_ids; i++) {
        if (tiered->plan[i] != KV_WANTED || tiered->entries[i] == KV_NONE) continue;
        tiered->id_of[tiered->entries[i]] = ids[i];
        mine[num_mine++] = tiered->entries[i];
    }
    if (num_mine == 0) return;
    const uint32_t num_published = kv_index_commit(index, mine, num_mine, 0, tiered->marks, published);
    for (uint32_t i = 0; i < num_published; i++) arrive(tiered, published[i]);
}

/* Far copies of what is worth one and is in DRAM. */
static void write_early(kv_tiered *tiered, const uint32_t *entries, uint32_t num_entries) {
    const int is_full = tiered->index.counts.num_far >= tiered->tiering.far_blocks;
    for (uint32_t i = 0; i < num_entries; i++)
        if (is_near(tiered, entries[i]) && !is_held(tiered, entries[i]) && is_unwritten(tiered, entries[i]) &&
            is_worth_far(tiered, entries[i]) && !(is_full && is_too_cheap(tiered, entries[i])))
            write_back(tiered, entries[i]);
}

static void play_one(kv_tiered *tiered, const uint32_t *ids, uint32_t num_ids, const kv_hint *hint) {
    for (uint32_t i = 0; i < num_ids; i++)
        if (tiered->times_asked[ids[i]] < UINT8_MAX) tiered->times_asked[ids[i]]++;
    find(tiered, ids, num_ids);
    put(tiered, ids, num_ids, hint);
    if (tiered->sums.num_refused > 0) return;
    use_hbm(tiered, ids, num_ids);
    if (tiered->tiering.writes_at_put) {
        write_early(tiered, tiered->entries, num_ids);
        write_early(tiered, tiered->arrived, tiered->num_arrived);
    }
    make_near_room(tiered);
    settle_arrived(tiered);
}

void kv_tiered_play(kv_tiered *tiered, const kv_requests *requests, const uint8_t *keys, uint32_t first, uint32_t last) {
    KV_AS_WRITER(&tiered->index);
    for (uint32_t number = first; number < last && tiered->sums.num_refused == 0; number++) {
        const uint32_t *ids = requests->ids + requests->starts[number];
        const uint32_t num_ids = requests->num_blocks[number];
        for (uint32_t i = 0; i < num_ids; i++)
            memcpy(tiered->keys + (size_t)i * KV_KEY_NBYTES, keys + (size_t)ids[i] * KV_KEY_NBYTES, KV_KEY_NBYTES);
        tiered->index.now_s = (uint32_t)(requests->times_ms[number] / 1000);
        kv_eviction_tend(&tiered->index, requests->times_ms[number]);
        const kv_hint hint = {.ending = requests->stops[number], .output_tokens = requests->output_tokens[number]};
        if (num_ids > 0) play_one(tiered, ids, num_ids, &hint);
    }
}

/* ---- audit ---- */

static int check_hbm(const kv_tiered *tiered) {
    uint64_t num_blocks = 0, num_near = 0;
    for (uint32_t slot = tiered->hbm.oldest; slot != KV_HBM_NONE; slot = tiered->hbm.newer[slot]) {
        if (tiered->hbm.slot_of[tiered->hbm.ids[slot]] != slot) return 201;
        if (++num_blocks > tiered->hbm.capacity) return 202;
        if (!tiered->tiering.takes_victims) continue;
        const uint32_t entry = tiered->hbm_leases.shared->lease[slot] - 1;
        if (entry >= tiered->index.ids_used || tiered->id_of[entry] != tiered->hbm.ids[slot]) return 203;
        if (kv_state_of(&tiered->index.records[entry]) != KV_VALID) return 204;
        num_near += (uint64_t)is_near(tiered, entry);
    }
    if (num_blocks != tiered->hbm.num_blocks) return 205;
    return num_near == tiered->num_in_hbm ? 0 : 206;
}

int kv_tiered_check(const kv_tiered *tiered) {
    const int broken = kv_index_check(&tiered->index);
    if (broken) return broken;
    if (near_used(tiered) > tiered->tiering.near_blocks) return 210;
    if (tiered->index.counts.num_far > tiered->tiering.far_blocks) return 211;
    return check_hbm(tiered);
}
