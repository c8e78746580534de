#include "queues.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "order.h"

#define HELD_MS 1000
#define FORGOTTEN_MAX 64 /* echoes more than came, in one call */
#define PREFETCH 8

enum mark {
    OFTEN = 1 << 0, /* kv_list */
    FAR = 1 << 1,   /* kv_tier */
    MEMBER = 1 << 2,
    HIDDEN = 1 << 3,
    TOLD = 1 << 4,  /* a lookup ended here: the reservation of the same request may follow */
    USES_SHIFT = 5,
};

static size_t marks_nbytes(const kv_index *index) { return index->entries_max; }

int kv_queues_create(kv_index *index, const kv_queue_rules *rules) {
    kv_ranks *ranks = calloc(1, sizeof *ranks);
    index->ranks = ranks;
    if (ranks == NULL) return -ENOMEM;
    ranks->rules = rules;
    for (int tier = 0; tier < 2; tier++)
        for (int list = 0; list < KV_LISTS; list++) ranks->tiers[tier].lists[list] = (kv_order){KV_NONE, KV_NONE, 0};
    void *pages = mmap(NULL, marks_nbytes(index), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                       -1, 0);
    ranks->marks = pages == MAP_FAILED ? NULL : pages;
    /* Members and echoes of a tier are at most twice its blocks. */
    const uint32_t echoes_max = index->entries_max < UINT32_MAX / 2 ? index->entries_max : UINT32_MAX / 2;
    if (ranks->marks && kv_echoes_create(&ranks->echoes, echoes_max) == 0) return 0;
    kv_queues_destroy(index);
    return -ENOMEM;
}

void kv_queues_destroy(kv_index *index) {
    kv_ranks *ranks = index->ranks;
    if (ranks == NULL) return;
    kv_echoes_destroy(&ranks->echoes);
    if (ranks->marks) munmap(ranks->marks, marks_nbytes(index));
    free(ranks);
    index->ranks = NULL;
}

/* ---- members ---- */

static enum kv_tier tier_of(const kv_ranks *ranks, uint32_t id) { return ranks->marks[id] & FAR ? KV_FAR : KV_NEAR; }
static int is_member(const kv_ranks *ranks, uint32_t id) { return (ranks->marks[id] & MEMBER) != 0; }
static enum kv_tier real_tier(const kv_index *index, uint32_t id) {
    return kv_is_near(&index->records[id]) ? KV_NEAR : KV_FAR;
}

enum kv_list kv_member_list(const kv_ranks *ranks, uint32_t id) { return ranks->marks[id] & OFTEN ? KV_OFTEN : KV_ONCE; }
uint32_t kv_member_uses(const kv_ranks *ranks, uint32_t id) { return ranks->marks[id] >> USES_SHIFT & KV_USES_MAX; }

void kv_member_set_uses(kv_ranks *ranks, uint32_t id, uint32_t uses) {
    ranks->marks[id] = (uint8_t)((ranks->marks[id] & ~(KV_USES_MAX << USES_SHIFT)) | uses << USES_SHIFT);
}

int kv_member_is_held(const kv_index *index, uint32_t id) {
    const kv_ranks *ranks = index->ranks;
    return (index->records[id].flags & KV_HELD) && (int32_t)(index->links[id].access - ranks->held_from) >= 0 &&
           atomic_load_explicit(&index->now_ms, memory_order_relaxed) < ranks->held_until_ms;
}

static kv_order *order_of(kv_ranks *ranks, uint32_t id) {
    return &ranks->tiers[tier_of(ranks, id)].lists[kv_member_list(ranks, id)];
}

/* Out of sight; it is a member still. */
static void unlist(const kv_index *index, uint32_t id) {
    kv_ranks *ranks = index->ranks;
    kv_record *record = &index->records[id];
    if (record->flags & (KV_LISTED_NEAR | KV_LISTED_FAR)) kv_order_remove(index->links, order_of(ranks, id), id);
    if (ranks->marks[id] & HIDDEN) ranks->tiers[tier_of(ranks, id)].num_hidden[kv_member_list(ranks, id)]--;
    ranks->marks[id] &= (uint8_t)~HIDDEN;
    record->flags &= (uint16_t)~(KV_LISTED_NEAR | KV_LISTED_FAR | KV_HELD);
}

enum end { COLD, HOT };

static void list(const kv_index *index, uint32_t id, enum end end) {
    kv_ranks *ranks = index->ranks;
    unlist(index, id);
    if (end == HOT) kv_order_add_hot(index->links, order_of(ranks, id), id);
    else kv_order_add_cold(index->links, order_of(ranks, id), id);
    index->records[id].flags |= ranks->marks[id] & FAR ? KV_LISTED_FAR : KV_LISTED_NEAR;
}

void kv_member_move(const kv_index *index, uint32_t id, enum kv_list to) {
    kv_ranks *ranks = index->ranks;
    unlist(index, id);
    ranks->marks[id] = (uint8_t)(to == KV_OFTEN ? ranks->marks[id] | OFTEN : ranks->marks[id] & ~OFTEN);
    list(index, id, HOT);
}

static uint64_t fingerprint_of(const kv_index *index, uint32_t id) {
    uint8_t key[KV_KEY_NBYTES];
    kv_record_key(&index->records[id], key);
    return kv_home(index, key);
}

/* A block came into a tier. */
static void enter(kv_index *index, uint32_t id) {
    kv_ranks *ranks = index->ranks;
    const enum kv_tier tier = real_tier(index, id);
    const uint32_t echo = kv_echo_find(&ranks->echoes, tier, fingerprint_of(index, id));
    ranks->marks[id] = (uint8_t)(MEMBER | (echo ? OFTEN : 0) | (tier == KV_FAR ? FAR : 0));
    if (echo) kv_echo_forget(&ranks->echoes, echo);
    list(index, id, HOT);
}

/* It left its tier: `by_eviction`, or it is removed. */
static void part(kv_index *index, uint32_t id, int by_eviction) {
    kv_ranks *ranks = index->ranks;
    if (!is_member(ranks, id)) return;
    const enum kv_list left = kv_member_list(ranks, id);
    unlist(index, id);
    if (by_eviction && ranks->rules->is_remembered[left])
        kv_echo_add(&ranks->echoes, tier_of(ranks, id), left, fingerprint_of(index, id));
    ranks->marks[id] = 0;
}

/* Blocks have come, `num` of them. */
static void settle(kv_ranks *ranks, enum kv_tier tier, uint32_t num) {
    kv_queues *queues = &ranks->tiers[tier];
    queues->capacity = kv_queue_count(queues, KV_ONCE) + kv_queue_count(queues, KV_OFTEN);
    queues->num_due = 0;
    for (uint32_t left = 2 * num + FORGOTTEN_MAX, number; left-- > 0;) {
        if ((number = ranks->rules->surplus(ranks, tier)) == 0) return;
        kv_echo_forget(&ranks->echoes, number);
    }
}

/* ---- events ---- */

/* A block that is not in a tier is asked for there: what is remembered of it stays until it comes. */
static int miss(kv_ranks *ranks, enum kv_tier tier, uint64_t fingerprint) {
    const uint32_t echo = kv_echo_find(&ranks->echoes, tier, fingerprint);
    if (echo == 0) return 0;
    if (ranks->rules->missed != NULL) ranks->rules->missed(ranks, tier, ranks->echoes.echoes[echo].list % KV_LISTS);
    kv_echo_renew(&ranks->echoes, echo);
    return 1;
}

static void use(kv_index *index, uint32_t id) {
    kv_ranks *ranks = index->ranks;
    if (!is_member(ranks, id)) return; /* not seen yet: `covered` or `bared` brings it */
    ranks->rules->used(index, id);
    if (tier_of(ranks, id) == KV_FAR) miss(ranks, KV_NEAR, fingerprint_of(index, id));
}

void kv_queues_touched(kv_index *index, uint32_t deepest) {
    kv_ranks *ranks = index->ranks;
    const uint32_t number = ++index->clock;
    for (uint32_t id = deepest; id != KV_NONE; id = index->records[id].parent) {
        index->links[id].access = number;
        use(index, id);
    }
    ranks->marks[deepest] |= TOLD;
}

void kv_queues_asked(kv_index *index, const kv_request *request) {
    kv_ranks *ranks = index->ranks;
    kv_queues *queues = &ranks->tiers[KV_NEAR];
    if (request->num_keys == 0) return;
    const uint32_t last = request->num_keys - 1;
    if (request->plan[last] == KV_PRESENT) {
        const int is_told = ranks->marks[request->ids[last]] & TOLD;
        if (!is_told) kv_queues_touched(index, request->ids[last]);
        ranks->marks[request->ids[last]] &= (uint8_t)~TOLD;
    }
    queues->num_due = 0;
    for (uint32_t i = request->num_keys; i-- > 0;) {
        if (i % PREFETCH == PREFETCH - 1 || i == last)
            for (uint32_t j = i / PREFETCH * PREFETCH; j <= i; j++)
                kv_echo_prefetch(&ranks->echoes, kv_home(index, request->keys + (size_t)j * KV_KEY_NBYTES));
        if (request->plan[i] != KV_WANTED) continue;
        queues->num_due += !miss(ranks, KV_NEAR, kv_home(index, request->keys + (size_t)i * KV_KEY_NBYTES));
    }
}

void kv_queues_covered(kv_index *index, uint32_t deepest) {
    kv_ranks *ranks = index->ranks;
    const uint32_t number = ++index->clock;
    uint32_t num[2] = {0, 0};
    for (uint32_t id = deepest; id != KV_NONE; id = index->records[id].parent) {
        index->links[id].access = number;
        if (is_member(ranks, id) && tier_of(ranks, id) != real_tier(index, id)) part(index, id, 0);
        if (!is_member(ranks, id)) {
            enter(index, id);
            num[real_tier(index, id)]++;
        } else if (ranks->rules->moves_to_hot) {
            list(index, id, HOT); /* its root ends as the hottest of a request */
        } else if (!(index->records[id].flags & (KV_LISTED_NEAR | KV_LISTED_FAR)) && !(ranks->marks[id] & HIDDEN)) {
            list(index, id, HOT);
        }
    }
    for (int tier = 0; tier < 2; tier++)
        if (num[tier] > 0) settle(ranks, tier, num[tier]);
}

void kv_queues_spared(kv_index *index, uint32_t id) {
    kv_ranks *ranks = index->ranks;
    const uint64_t now_ms = atomic_load_explicit(&index->now_ms, memory_order_relaxed);
    if (!is_member(ranks, id)) enter(index, id);
    index->links[id].access = ++index->clock;
    if (now_ms >= ranks->held_until_ms) {
        ranks->held_from = index->clock;
        ranks->held_until_ms = now_ms + HELD_MS;
    }
    list(index, id, HOT);
    index->records[id].flags |= KV_HELD;
}

void kv_queues_demoted(kv_index *index, uint32_t id) {
    kv_ranks *ranks = index->ranks;
    if (is_member(ranks, id) && tier_of(ranks, id) == KV_FAR) {
        list(index, id, HOT); /* listed anew, in the order of the calls */
        return;
    }
    part(index, id, 1);
    enter(index, id);
    settle(ranks, KV_FAR, 1);
}

void kv_queues_bared(kv_index *index, uint32_t id) {
    const kv_ranks *ranks = index->ranks;
    if (is_member(ranks, id) && tier_of(ranks, id) != real_tier(index, id)) part(index, id, 0);
    if (is_member(ranks, id)) list(index, id, COLD);
    else enter(index, id);
}

/* May the block not go as long as it has these children? Then it comes back. */
static int has_heirs(const kv_index *index, uint32_t id) {
    const kv_links *links = &index->links[id];
    return kv_is_near(&index->records[id]) ? links->near_kids > 0 || (links->far == KV_NONE && links->kids > 0)
                                           : links->kids > 0;
}

void kv_queues_leave(kv_index *index, uint32_t id, uint32_t heir) {
    kv_ranks *ranks = index->ranks;
    unlist(index, id);
    if (is_member(ranks, id) && has_heirs(index, id)) {
        ranks->marks[id] |= HIDDEN;
        ranks->tiers[tier_of(ranks, id)].num_hidden[kv_member_list(ranks, id)]++;
    }
    if (heir != KV_NONE) kv_queues_bared(index, heir);
}

void kv_queues_gone(kv_index *index, uint32_t id) {
    part(index, id, kv_state_of(&index->records[id]) == KV_EVICT);
    index->ranks->marks[id] = 0;
}

void kv_queues_describe(const kv_index *index, kv_policy_figures *figures) {
    const kv_echoes *echoes = &index->ranks->echoes;
    for (int list = 0; list < 2 * KV_LISTS; list++) figures->num_ghosts += echoes->length[list];
    figures->nbytes = kv_echoes_nbytes(echoes);
}

/* ---- what is offered ---- */

static enum kv_list first_list(const kv_index *index, enum kv_tier tier) {
    const kv_ranks *ranks = index->ranks;
    const kv_queues *queues = &ranks->tiers[tier];
    const enum kv_list loser = ranks->rules->loser(ranks, tier), other = loser == KV_ONCE ? KV_OFTEN : KV_ONCE;
    const uint32_t first = queues->lists[loser].cold, second = queues->lists[other].cold;
    if (second == KV_NONE) return loser;
    return first == KV_NONE || (kv_member_is_held(index, first) && !kv_member_is_held(index, second)) ? other : loser;
}

uint32_t kv_queues_coldest(const kv_index *index, enum kv_tier tier, uint32_t after) {
    const kv_ranks *ranks = index->ranks;
    const kv_queues *queues = &ranks->tiers[tier];
    if (after == KV_NONE) {
        if (ranks->rules->put_off != NULL) ranks->rules->put_off(index, tier);
        return queues->lists[first_list(index, tier)].cold;
    }
    if (index->links[after].next != KV_NONE) return index->links[after].next;
    const enum kv_list walked = kv_member_list(ranks, after);
    return walked == first_list(index, tier) ? queues->lists[walked == KV_ONCE ? KV_OFTEN : KV_ONCE].cold : KV_NONE;
}

/* ---- audit ---- */

static int check_list(const kv_index *index, enum kv_tier tier, enum kv_list number) {
    const kv_ranks *ranks = index->ranks;
    const kv_order *order = &ranks->tiers[tier].lists[number];
    const uint16_t listed = tier == KV_NEAR ? KV_LISTED_NEAR : KV_LISTED_FAR;
    uint64_t length = 0;
    uint32_t before = KV_NONE;
    for (uint32_t id = order->cold; id != KV_NONE; id = index->links[id].next) {
        const kv_record *record = &index->records[id];
        if (!(record->flags & listed) || index->links[id].prev != before) return 51;
        if (kv_state_of(record) != KV_VALID || real_tier(index, id) != tier) return 52;
        if (!is_member(ranks, id) || tier_of(ranks, id) != tier || kv_member_list(ranks, id) != number) return 53;
        before = id;
        if (++length > index->ids_used) return 54;
    }
    return order->hot != before || length != order->length ? 55 : 0;
}

int kv_queues_check(const kv_index *index, uint64_t near_listed, uint64_t far_listed) {
    const kv_ranks *ranks = index->ranks;
    uint64_t num_hidden[2][KV_LISTS] = {{0}};
    const uint64_t listed[2] = {near_listed, far_listed};
    for (uint32_t id = 0; id < index->ids_used; id++) {
        if (is_member(ranks, id) && kv_state_of(&index->records[id]) != KV_VALID) return 56;
        num_hidden[tier_of(ranks, id)][kv_member_list(ranks, id)] += (ranks->marks[id] & HIDDEN) != 0;
    }
    for (int tier = 0; tier < 2; tier++) {
        const kv_queues *queues = &ranks->tiers[tier];
        for (int list = 0; list < KV_LISTS; list++) {
            const int broken = check_list(index, tier, list);
            if (broken) return broken;
            if (queues->num_hidden[list] != num_hidden[tier][list]) return 57;
        }
        if (queues->lists[KV_ONCE].length + queues->lists[KV_OFTEN].length != listed[tier]) return 58;
    }
    return kv_echoes_check(&ranks->echoes);
}
