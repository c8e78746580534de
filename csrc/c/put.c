#include "put.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "policy.h"
#include "tap.h"

#define FREED_MAX (1u << 16)
#define SLAB_ROUNDS 8 /* each empties one slab of another size class, or evicts for what is missing */

int kv_put_create(kv_put *put, kv_index *index, kv_slots *slots, uint64_t near_nbytes, uint32_t queue_blocks) {
    memset(put, 0, sizeof *put);
    put->index = index;
    put->slots = slots;
    put->near_nbytes = near_nbytes;
    put->gain_levels = KV_ANY_GAIN;
    put->fresh_mask = 1;
    while (put->fresh_mask + 1 < queue_blocks) put->fresh_mask = put->fresh_mask << 1 | 1;
    put->fresh = malloc(((size_t)put->fresh_mask + 1) * sizeof(kv_fresh));
    put->freed.capacity = FREED_MAX;
    put->freed.near_places = malloc(FREED_MAX * sizeof(uint32_t));
    put->freed.far_places = malloc(FREED_MAX * sizeof(uint32_t));
    put->freed.near_ns = malloc(FREED_MAX * sizeof(uint16_t));
    put->freed.far_ns = malloc(FREED_MAX * sizeof(uint16_t));
    const kv_freed *freed = &put->freed;
    if (put->fresh && freed->near_places && freed->far_places && freed->near_ns && freed->far_ns) return 0;
    kv_put_destroy(put);
    return -ENOMEM;
}

void kv_put_destroy(kv_put *put) {
    free(put->fresh);
    free(put->freed.near_places);
    free(put->freed.far_places);
    free(put->freed.near_ns);
    free(put->freed.far_ns);
    free(put->scratch);
    free(put->levels);
    free(put->chances);
    memset(put, 0, sizeof *put);
}

void kv_put_set_far(kv_put *put, int has_far) {
    KV_AS_WRITER(put->index);
    put->has_far = has_far;
    if (has_far) return;
    put->fresh_tail = put->fresh_head;
    put->freed.num_far = 0;
}

void kv_put_set_worth(kv_put *put, float chance_min, float gain_min) {
    KV_AS_WRITER(put->index);
    put->chance_min = chance_min;
    put->gain_levels = kv_gain_levels(gain_min);
}

void kv_put_set_far_full(kv_put *put, int is_full) {
    KV_AS_WRITER(put->index);
    put->far_is_full = is_full;
}

static uint64_t slot_nbytes(const kv_put *put, uint32_t ns) { return put->index->namespaces[ns].slot_nbytes; }

static uint64_t used_nbytes(const kv_put *put) {
    const kv_counts *counts = &put->index->counts;
    return counts->near_nbytes + counts->writing_nbytes + put->arriving_nbytes;
}

static void give_back(kv_put *put, uint32_t ns, const uint32_t *places, uint32_t num) {
    /* The class exists: the places are of it. Whatever could be wrong with them shows in the audit of the slots. */
    if (num > 0) kv_slots_free(put->slots, kv_slots_class(put->slots, slot_nbytes(put, ns)), places, num);
}

/* Near places that came free, run by run of one namespace. */
static void give_near(kv_put *put) {
    const kv_freed *freed = &put->freed;
    for (uint32_t first = 0, end; first < freed->num_near; first = end) {
        for (end = first + 1; end < freed->num_near && freed->near_ns[end] == freed->near_ns[first];) end++;
        give_back(put, freed->near_ns[first], freed->near_places + first, end - first);
    }
    put->freed.num_near = 0;
}

static uint64_t evict_up_to(kv_put *put, uint64_t nbytes, int keep_unwritten, uint32_t level) {
    uint64_t freed_nbytes = 0, now;
    while (freed_nbytes < nbytes) {
        now = kv_evict_near(put->index, nbytes - freed_nbytes, keep_unwritten, level, &put->freed);
        give_near(put);
        if (now == 0) break;
        freed_nbytes += now;
    }
    return freed_nbytes;
}

uint64_t kv_put_evict(kv_put *put, uint64_t nbytes, int keep_unwritten) {
    KV_AS_WRITER(put->index);
    return evict_up_to(put, nbytes, keep_unwritten, KV_LEVEL_ANY);
}

void kv_put_reap(kv_put *put) {
    KV_AS_WRITER(put->index);
    if (put->index->counts.num_removed > 0) kv_evict_reap(put->index, &put->freed);
    give_near(put);
}

/* Empty the cheapest slab of another size for one of this class. */
static uint64_t empty_slab(kv_put *put, int class_number, int keep_unwritten) {
    uint32_t first, last, num;
    if (!kv_slots_vacate(put->slots, class_number, &first, &last)) return 0;
    uint32_t *ids = malloc(((size_t)last - first) * sizeof(uint32_t));
    if (ids == NULL) return 0;
    num = kv_index_in_range(put->index, KV_NEAR, first, last, ids, last - first);
    uint64_t freed_nbytes = kv_evict_these(put->index, ids, num, keep_unwritten, &put->freed);
    give_near(put);
    free(ids);
    return freed_nbytes;
}

/* What a reservation wants: so many places, each for a block of a level; and how many of these are not worth what would
 * have to go. Without `levels` all are. */
typedef struct {
    uint32_t num, num_bypassed;
    const uint32_t *levels;
} kv_want;

/* Evict until what is wanted fits into the capacity; the deepest block is the first that does without a place. */
static uint32_t make_fit(kv_put *put, const kv_ns *space, int keep, kv_want *want) {
    const uint64_t slot = space->slot_nbytes, most = put->near_nbytes + space->spare_nbytes;
    uint32_t num = want->num;
    for (;;) {
        const uint64_t after = used_nbytes(put) + num * slot;
        if (after <= most) return num;
        const uint32_t level = want->levels != NULL ? want->levels[num - 1] : KV_LEVEL_ANY;
        evict_up_to(put, after - put->near_nbytes, keep, level);
        const uint64_t used = used_nbytes(put), fit = most > used ? (most - used) / slot : 0;
        if (num <= fit) return num;
        if (want->levels == NULL || !put->freed.is_dearer) return (uint32_t)fit;
        for (; num > fit && want->levels[num - 1] <= level; num--) want->num_bypassed++;
        if (num == fit) return num;
    }
}

/* Up to `want->num` near places, evicting as needed: fewer when what is left is leased, waits for its write-back and may
 * not be dropped, or is worth more. -1 without memory for the slots of another slab. */
static int64_t make_room(kv_put *put, uint16_t ns, int drop_unwritten, kv_want *want, uint32_t *places) {
    const kv_ns *space = &put->index->namespaces[ns];
    const uint64_t slot = space->slot_nbytes;
    const int keep = put->has_far && !drop_unwritten;
    const uint32_t num = make_fit(put, space, keep, want);
    int class_number = kv_slots_class(put->slots, slot);
    int64_t given = class_number < 0 ? -1 : kv_slots_allocate(put->slots, class_number, num, places);
    for (int round = 0; given >= 0 && given < num && round < SLAB_ROUNDS; round++) {
        uint32_t missing = num - (uint32_t)given;
        /* Slots of odd sizes leave a rest in every slab: the arena can be full below its capacity. */
        uint64_t wanted = missing * slot > space->spare_nbytes ? missing * slot : space->spare_nbytes;
        if (!empty_slab(put, class_number, keep) && !kv_put_evict(put, wanted, keep)) break;
        int64_t more = kv_slots_allocate(put->slots, class_number, missing, places + given);
        if (more > 0) given += more;
    }
    return given;
}

uint32_t kv_put_room(kv_put *put, uint16_t ns, uint32_t num, int drop_unwritten, uint32_t *places) {
    KV_AS_WRITER(put->index);
    kv_want want = {.num = num};
    int64_t given = make_room(put, ns, drop_unwritten, &want, places);
    if (given < 0) return 0;
    put->arriving_nbytes += (uint64_t)given * slot_nbytes(put, ns);
    return (uint32_t)given;
}

void kv_put_arrived(kv_put *put, uint64_t nbytes) {
    KV_AS_WRITER(put->index);
    put->arriving_nbytes -= nbytes;
}

/* ---- reservations ---- */

/* How many of the wanted blocks quota and index entries allow. */
static enum kv_put_code allowed_blocks(const kv_put *put, const kv_wish *wish, kv_grant *grant, uint32_t *allowed) {
    const kv_index *index = put->index;
    const kv_ns *space = &index->namespaces[wish->ns];
    const kv_tenant *tenant = &index->tenants[space->tenant];
    *allowed = grant->num_wanted;
    if (tenant->limit_nbytes > 0) {
        uint64_t free_nbytes =
            tenant->limit_nbytes > tenant->used_nbytes ? tenant->limit_nbytes - tenant->used_nbytes : 0;
        if (free_nbytes / space->slot_nbytes < *allowed) {
            if (!(wish->flags & KV_PAST_QUOTA)) return KV_PUT_QUOTA;
            *allowed = (uint32_t)(free_nbytes / space->slot_nbytes);
            grant->why = KV_SHORT_QUOTA;
        }
    }
    if (space->quota_end > 0) {
        uint32_t left = space->quota_end > space->num_entries ? space->quota_end - 1 - space->num_entries : 0;
        if (left < *allowed) {
            if (!(wish->flags & KV_PAST_QUOTA)) return KV_PUT_QUOTA;
            *allowed = left;
            grant->why = KV_SHORT_QUOTA;
        }
    }
    uint64_t left = index->entries_max - index->counts.num_entries - index->counts.num_removed;
    if (left < *allowed) {
        if (!(wish->flags & KV_PAST_ENTRIES)) {
            grant->num_wanted = *allowed;
            return KV_PUT_ENTRIES;
        }
        *allowed = (uint32_t)left;
        grant->why = KV_SHORT_ENTRIES;
    }
    return KV_PUT_OK;
}

static int reserve_appraisal(kv_put *put, uint32_t num) {
    if (num <= put->appraised_max) return 1;
    uint32_t *levels = realloc(put->levels, 2 * (size_t)num * sizeof(uint32_t));
    if (levels != NULL) put->levels = levels;
    float *chances = realloc(put->chances, 2 * (size_t)num * sizeof(float));
    if (chances != NULL) put->chances = chances;
    if (levels == NULL || chances == NULL) return 0;
    put->appraised_max = 2 * (size_t)num;
    return 1;
}

/* ---- what is worth a far copy ---- */

static void queue_one(kv_put *put, uint32_t id) {
    kv_record *record = &put->index->records[id];
    record->flags &= (uint16_t)~KV_STAYS_NEAR;
    if (put->fresh_head - put->fresh_tail > put->fresh_mask) {
        put->num_unqueued++;
        return;
    }
    put->fresh[put->fresh_head++ & put->fresh_mask] =
        (kv_fresh){.word = kv_record_word(record), .id = id, .ns = record->ns};
}

/* A far copy needs its parent's: those above that stayed near go first. */
static void queue_above(kv_put *put, uint32_t id) {
    const kv_record *records = put->index->records;
    uint32_t above[KV_BATCH], num = 0;
    for (uint32_t at = records[id].parent; at != KV_NONE && num < KV_BATCH; at = records[at].parent) {
        if (!(records[at].flags & KV_STAYS_NEAR)) break;
        above[num++] = at;
    }
    while (num > 0) queue_one(put, above[--num]);
}

/* The lowest level that is worth a write, for which something has to go while the far tier is full. */
static int64_t least_level(const kv_put *put) {
    const kv_index *index = put->index;
    if (!put->far_is_full || put->gain_levels == KV_ANY_GAIN || index->policy->has_learned == NULL) return INT64_MIN;
    if (!index->policy->has_learned(index)) return INT64_MIN;
    const uint32_t coldest = index->policy->coldest(index, KV_FAR, KV_NONE);
    return coldest == KV_NONE ? INT64_MIN : (int64_t)index->policy->level(index, coldest) + put->gain_levels;
}

static int is_worth_far(const kv_put *put, uint32_t id, float chance, int64_t least) {
    return chance >= put->chance_min && (least == INT64_MIN || (int64_t)put->index->policy->level(put->index, id) >= least);
}

/* Blocks that became visible, parents before children: those that are worth it, and what these extend, get a far copy. */
static void queue_fresh(kv_put *put, const uint32_t *published, uint32_t num) {
    kv_index *index = put->index;
    const int64_t least = least_level(put);
    const int is_choosy = index->policy->chances != NULL && (put->chance_min > 0 || least != INT64_MIN);
    const int asks = is_choosy && num > 0 && reserve_appraisal(put, num);
    if (asks) index->policy->chances(index, published, num, KV_CHANCE_S, put->chances);
    uint32_t worthy = asks ? 0 : num; /* leading ones */
    for (uint32_t i = 0; asks && i < num; i++)
        if (is_worth_far(put, published[i], put->chances[i], least)) worthy = i + 1;
    for (uint32_t i = 0; i < num; i++) {
        if (i >= worthy) {
            index->records[published[i]].flags |= KV_STAYS_NEAR;
            put->num_unworthy++;
            continue;
        }
        if (i == 0) queue_above(put, published[0]);
        queue_one(put, published[i]);
    }
}

/* What stayed near and is asked for again may be worth a far copy now. */
static void queue_again(kv_put *put, const kv_grant *grant, uint32_t num_keys) {
    kv_index *index = put->index;
    if (!put->has_far || index->policy->chances == NULL) return;
    const int64_t least = least_level(put);
    for (uint32_t i = 0; i < num_keys; i++) {
        if (grant->plan[i] != KV_PRESENT || !(index->records[grant->ids[i]].flags & KV_STAYS_NEAR)) continue;
        float chance;
        index->policy->chances(index, &grant->ids[i], 1, KV_CHANCE_S, &chance);
        if (!is_worth_far(put, grant->ids[i], chance, least)) continue;
        queue_above(put, grant->ids[i]);
        queue_one(put, grant->ids[i]);
    }
}

/* ---- wishes ---- */

/* Tell the policy, the first time, and learn what each wanted block would be worth; NULL where it has no opinion. */
static const uint32_t *appraise(kv_put *put, const kv_wish *wish, const kv_grant *grant) {
    kv_index *index = put->index;
    const kv_request request = {wish->keys, grant->plan, grant->ids, wish->num_keys, wish->hint};
    if (!(wish->flags & KV_AGAIN) && wish->shard == 0) {
        if (index->policy->asked != NULL || index->tap != NULL) kv_evict_drain(index); /* its lookup comes first */
        if (index->tap != NULL) kv_tap_asked(index, wish->ns, &request);
        if (index->policy->asked != NULL) index->policy->asked(index, &request);
    }
    if (index->policy->appraise == NULL || grant->num_wanted == 0 || wish->hint.priority > 0) return NULL;
    if (!reserve_appraisal(put, grant->num_wanted)) return NULL;
    index->policy->appraise(index, &request, put->levels);
    if (!put->has_far) return put->levels;
    /* What makes place for it is not lost, but far; and it comes to be there only by way of the near tier. */
    index->policy->wanted_chances(index, &request, KV_CHANCE_S, put->chances);
    const int64_t least = least_level(put);
    for (uint32_t i = 0; i < grant->num_wanted; i++)
        if (put->chances[i] >= put->chance_min && put->levels[i] >= least) put->levels[i] = KV_LEVEL_ANY;
    return put->levels;
}

/* The last wanted ones got no place. */
static void note_bypassed(kv_put *put, const kv_wish *wish, const kv_grant *grant, const kv_want *want) {
    uint32_t number = 0;
    put->num_bypassed += want->num_bypassed;
    for (uint32_t i = 0; i < wish->num_keys; i++) {
        if (grant->plan[i] != KV_WANTED) continue;
        if (number >= want->num - want->num_bypassed && number < want->num)
            kv_index_note_bypass(put->index, wish->keys + (size_t)i * KV_KEY_NBYTES, want->levels[number]);
        number++;
    }
}

/* A put uses what it finds stored, whatever the policy makes of that: it does not expire (expire.c). */
static void use_present(kv_index *index, const kv_grant *grant, uint32_t num_keys) {
    const uint32_t number = ++index->clock;
    for (uint32_t i = 0; i < num_keys; i++)
        if (grant->plan[i] == KV_PRESENT) index->links[grant->ids[i]].access = number;
}

static enum kv_put_code begin(kv_put *put, const kv_wish *wish, kv_grant *grant) {
    kv_index *index = put->index;
    grant->num_wanted = kv_index_plan(index, wish->keys, wish->num_keys, wish->shard, grant->plan, grant->ids);
    for (uint32_t i = 0; i < wish->num_keys; i++)
        if (grant->ids[i] != KV_NONE && index->records[grant->ids[i]].ns != wish->ns) {
            grant->num_wanted = i;
            return KV_PUT_FOREIGN;
        }
    kv_want want = {.levels = appraise(put, wish, grant)};
    use_present(index, grant, wish->num_keys); /* the tap still has to know when they were used before */
    enum kv_put_code code = allowed_blocks(put, wish, grant, &want.num);
    if (code != KV_PUT_OK) return code;
    int64_t given = make_room(put, wish->ns, wish->flags & KV_LATE, &want, grant->places);
    if (given < 0) return KV_PUT_MEMORY;
    if (given < want.num) {
        grant->why = want.num_bypassed ? KV_SHORT_WORTH : KV_SHORT_ROOM;
        if (!(wish->flags & KV_LATE) && given < want.num - want.num_bypassed) {
            give_back(put, wish->ns, grant->places, (uint32_t)given);
            return KV_PUT_ROOM;
        }
    }
    grant->num_places = kv_index_begin(index, wish->keys, wish->num_keys, wish->shard, wish->ns, grant->plan, grant->ids,
                                       grant->places, (uint32_t)given);
    give_back(put, wish->ns, grant->places + grant->num_places, (uint32_t)given - grant->num_places);
    if (want.num_bypassed > 0) note_bypassed(put, wish, grant, &want);
    return KV_PUT_OK;
}

enum kv_put_code kv_put_reserve(kv_put *put, kv_table *table, const kv_wish *wish, kv_grant *grant) {
    KV_AS_WRITER(put->index);
    kv_held held;
    grant->num_places = 0;
    grant->why = KV_SHORT_ROOM;
    kv_lease_acquire(put->index, table, wish->ns, wish->keys, wish->num_keys, 0, &held);
    enum kv_put_code code = held.stop == KV_STOP_FULL ? KV_PUT_LEASES : begin(put, wish, grant);
    if (code == KV_PUT_OK) queue_again(put, grant, wish->num_keys);
    kv_lease_release(table, &held);
    return code;
}

/* Room for what a commit tells: per id a byte, and every id that may become visible. */
static int reserve_scratch(kv_put *put, uint32_t num_ids) {
    size_t needed = 2 * (size_t)num_ids + put->index->counts.num_waiting + 1;
    if (needed <= put->scratch_max) return 1;
    uint32_t *grown = realloc(put->scratch, 2 * needed * sizeof(uint32_t));
    if (grown == NULL) return 0;
    put->scratch = grown;
    put->scratch_max = 2 * needed;
    return 1;
}

uint32_t kv_put_commit(kv_put *put, const uint32_t *ids, uint32_t num_ids, uint32_t shard) {
    KV_AS_WRITER(put->index);
    if (!reserve_scratch(put, num_ids)) {
        kv_put_abandon(put, ids, num_ids, shard);
        return num_ids;
    }
    uint8_t *committed = (uint8_t *)put->scratch;
    uint32_t *published = put->scratch + num_ids, num_lost = 0;
    kv_evict_drain(put->index);
    uint32_t num_published = kv_index_commit(put->index, ids, num_ids, shard, committed, published);
    if (put->has_far) queue_fresh(put, published, num_published);
    for (uint32_t i = 0; i < num_ids; i++) num_lost += !committed[i];
    const kv_ns *space = &put->index->namespaces[put->index->records[ids[0]].ns];
    put->put_nbytes += (num_ids - num_lost) * space->slot_nbytes / (uint32_t)__builtin_popcount(space->all_parts);
    if (num_lost > 0) kv_put_reap(put);
    return num_lost;
}

void kv_put_abandon(kv_put *put, const uint32_t *ids, uint32_t num_ids, uint32_t shard) {
    KV_AS_WRITER(put->index);
    kv_index_abandon(put->index, ids, num_ids, shard);
    kv_put_reap(put);
}

uint32_t kv_put_expire(kv_put *put, const uint32_t *ids, const uint64_t *words, uint32_t num_ids, int is_over) {
    KV_AS_WRITER(put->index);
    uint32_t num_pending = 0;
    if (!reserve_scratch(put, num_ids)) return num_ids;
    for (uint32_t i = 0; i < num_ids; i++) {
        uint64_t word = kv_record_word(&put->index->records[ids[i]]);
        if (word == words[i] && (uint8_t)word == KV_WRITING) put->scratch[num_pending++] = ids[i];
    }
    if (!is_over || num_pending == 0) return num_pending;
    kv_index_remove(put->index, put->scratch, num_pending, KV_WAS_ABANDONED);
    kv_put_reap(put);
    return num_pending;
}

/* ---- the queues ---- */

uint64_t kv_put_nbytes(const kv_put *put) {
    KV_AS_WRITER(put->index);
    return put->put_nbytes;
}

uint32_t kv_put_num_fresh(const kv_put *put) {
    KV_AS_WRITER(put->index);
    return (uint32_t)(put->fresh_head + put->num_unqueued);
}

uint32_t kv_put_take_fresh(kv_put *put, kv_fresh *out, uint32_t max) {
    KV_AS_WRITER(put->index);
    uint32_t num = 0;
    while (num < max && put->fresh_tail != put->fresh_head) out[num++] = put->fresh[put->fresh_tail++ & put->fresh_mask];
    return num;
}

uint32_t kv_put_take_far(kv_put *put, uint32_t *places, uint16_t *ns, uint32_t max) {
    KV_AS_WRITER(put->index);
    kv_freed *freed = &put->freed;
    uint32_t num = freed->num_far < max ? freed->num_far : max, rest = freed->num_far - num;
    memcpy(places, freed->far_places + rest, num * sizeof(uint32_t));
    memcpy(ns, freed->far_ns + rest, num * sizeof(uint16_t));
    freed->num_far = rest;
    return num;
}

uint64_t kv_put_used_nbytes(const kv_put *put, uint64_t *taken_nbytes) {
    KV_AS_WRITER(put->index);
    *taken_nbytes = put->slots->used_nbytes;
    return used_nbytes(put);
}
