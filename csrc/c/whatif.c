#include "whatif.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define HALF_LIFE_MS 1800000.0 /* of what counts as lately */
#define WEIGHT_MAX 1e12
#define SLOT_NBYTES_MAX (1u << 19) /* of the stores: larger blocks are played as smaller ones, in as much less room */
#define ARENA_MARGIN (64u << 21)   /* beyond twice the capacity: slots are never what is short */

/* Every function that looks at more than the tap opens with it. */
#define AS_OWNER(whatif) \
    pthread_mutex_t *whatif_lock_ __attribute__((cleanup(kv_index_unlock), unused)) = lock_of(whatif)

static pthread_mutex_t *lock_of(kv_whatif *whatif) {
    pthread_mutex_lock(&whatif->lock);
    return &whatif->lock;
}

int kv_whatif_create(kv_whatif *whatif, kv_index *index, uint32_t ghosts_max) {
    memset(whatif, 0, sizeof *whatif);
    pthread_mutex_init(&whatif->lock, NULL);
    whatif->index = index;
    whatif->ghosts_max = ghosts_max;
    whatif->pasts = calloc(KV_TAP_PASTS, sizeof(kv_whatif_past));
    whatif->block_tokens = calloc(KV_NAMESPACES_MAX + 1, sizeof(uint32_t));
    whatif->homes = malloc(KV_TAP_CHAIN_MAX * sizeof(uint64_t));
    whatif->keys = malloc((size_t)KV_TAP_CHAIN_MAX * KV_KEY_NBYTES);
    whatif->kinds = malloc(KV_TAP_CHAIN_MAX);
    const int made = whatif->pasts && whatif->block_tokens && whatif->homes && whatif->keys && whatif->kinds;
    if (kv_tap_create(&whatif->tap) == 0 && made) return 0;
    kv_whatif_destroy(whatif);
    return -ENOMEM;
}

static void end_tier(kv_whatif_tier *tier) {
    for (int size = 0; size < KV_WHATIF_SIZES; size++) kv_simulation_destroy(&tier->stores[size]);
    memset(tier, 0, sizeof *tier);
}

void kv_whatif_destroy(kv_whatif *whatif) {
    if (whatif->index == NULL) return;
    kv_tap_set(whatif->index, NULL, 0);
    for (int tier = 0; tier < KV_WHATIF_TIERS; tier++) end_tier(&whatif->tiers[tier]);
    kv_tap_destroy(&whatif->tap);
    free(whatif->pasts);
    free(whatif->block_tokens);
    free(whatif->homes);
    free(whatif->keys);
    free(whatif->kinds);
    pthread_mutex_destroy(&whatif->lock);
    whatif->index = NULL;
}

/* ---- tiers ---- */

static uint64_t shifted_slot(const kv_whatif_tier *tier, uint64_t slot_nbytes) {
    const uint64_t places = (slot_nbytes >> tier->shift) / KV_PLACE_NBYTES;
    return (places > 0 ? places : 1) * KV_PLACE_NBYTES;
}

static void tap(kv_whatif *whatif) {
    uint64_t threshold = 0;
    int is_on = 0;
    for (int tier = 0; tier < KV_WHATIF_TIERS; tier++) {
        if (!whatif->tiers[tier].is_on) continue;
        is_on = 1;
        if (whatif->tiers[tier].threshold > threshold) threshold = whatif->tiers[tier].threshold;
    }
    kv_tap_set(whatif->index, is_on ? &whatif->tap : NULL, threshold);
}

void kv_whatif_end(kv_whatif *whatif, int tier) {
    AS_OWNER(whatif);
    end_tier(&whatif->tiers[tier]);
    tap(whatif);
}

static int create_store(const kv_whatif *whatif, const kv_whatif_tier *tier, uint64_t capacity_nbytes,
                        uint64_t slot_nbytes, kv_simulation *store) {
    const double ghosts = (double)whatif->ghosts_max * tier->share;
    const double sampled = (double)(capacity_nbytes >> tier->shift) * tier->share;
    kv_simulation_size size = {.policy = whatif->index->policy, .chain_max = KV_TAP_CHAIN_MAX, .share = tier->share};
    size.capacity_nbytes = (uint64_t)sampled;
    size.arena_nbytes = 2 * size.capacity_nbytes + ARENA_MARGIN;
    /* Twice: blocks may turn out to be smaller than they were. */
    size.entries_max = (uint32_t)(2 * sampled / (double)shifted_slot(tier, slot_nbytes)) + KV_TAP_CHAIN_MAX;
    size.ghosts_max = ghosts < KV_WHATIF_GHOSTS ? (uint32_t)ghosts : KV_WHATIF_GHOSTS;
    return kv_simulation_create(store, &size);
}

int kv_whatif_begin(kv_whatif *whatif, int number, const uint64_t *capacities_nbytes, int own, uint64_t slot_nbytes) {
    AS_OWNER(whatif);
    kv_whatif_tier *tier = &whatif->tiers[number];
    int code = 0;
    end_tier(tier);
    const double num_blocks = (double)capacities_nbytes[own] / (double)slot_nbytes;
    const double share = num_blocks > KV_WHATIF_BLOCKS ? KV_WHATIF_BLOCKS / num_blocks : 1;
    tier->share = (float)share;
    tier->threshold = share < 1 ? (uint64_t)ldexp(share, 64) : UINT64_MAX;
    tier->since_ms = UINT64_MAX;
    while (slot_nbytes >> tier->shift > SLOT_NBYTES_MAX) tier->shift++;
    for (int size = 0; size < KV_WHATIF_SIZES && code == 0; size++)
        code = create_store(whatif, tier, capacities_nbytes[size], slot_nbytes, &tier->stores[size]);
    if (code < 0) end_tier(tier);
    else tier->is_on = 1;
    tap(whatif);
    return code;
}

/* ---- requests ---- */

/* Sums of the recent past are in units that grow: what came HALF_LIFE_MS later weighs twice as much. */
static double weight_at(const kv_whatif *whatif, uint64_t now_ms) {
    return now_ms > whatif->weighed_ms ? exp2((double)(now_ms - whatif->weighed_ms) / HALF_LIFE_MS) : 1;
}

static void scale(kv_whatif_sums *sums, double by) {
    double *values = (double *)sums;
    for (size_t i = 0; i < sizeof *sums / sizeof(double); i++) values[i] *= by;
}

static double weigh(kv_whatif *whatif, uint64_t now_ms) {
    const double weight = weight_at(whatif, now_ms);
    if (weight < WEIGHT_MAX) return weight;
    for (int tier = 0; tier < KV_WHATIF_TIERS; tier++) scale(&whatif->tiers[tier].recent, 1 / weight);
    whatif->weighed_ms = now_ms;
    return 1;
}

static void add_request(kv_whatif_sums *sums, const kv_tapped *request, uint32_t block_tokens, double weight) {
    double num_blocks = 0;
    for (int kind = 0; kind < KV_TAP_KINDS; kind++) {
        sums->num_of[kind] += weight * request->num_of[kind];
        num_blocks += weight * request->num_of[kind];
    }
    sums->num_requests += request->continues ? 0 : weight;
    sums->num_tokens += num_blocks * block_tokens;
    sums->num_nbytes += num_blocks * (double)request->slot_nbytes;
}

/* The sample of a tier out of what was tapped, as keys made of the hashes, with the kinds of its blocks. */
static uint32_t sample(kv_whatif *whatif, const kv_whatif_tier *tier, const kv_tapped *request) {
    uint32_t num = 0;
    for (uint32_t i = 0; i < request->num_sampled; i++) {
        const uint64_t home = whatif->homes[i], unique = home - kv_tap_kind(home);
        if (unique >= tier->threshold) continue;
        const uint64_t words[KV_KEY_WORDS] = {unique, unique * 0x9e3779b97f4a7c15ULL};
        memcpy(whatif->keys + (size_t)num * KV_KEY_NBYTES, words, sizeof words);
        whatif->kinds[num++] = (uint8_t)kv_tap_kind(home);
    }
    return num;
}

static uint32_t hits_of(kv_whatif *whatif, kv_simulation *store, const kv_simulation_request *request, int is_lookup) {
    kv_simulation_outcome outcome;
    if (is_lookup) return kv_simulation_look(store, request);
    whatif->num_refused += !kv_simulation_ask(store, request, &outcome);
    return outcome.prefix;
}

static void play_tier(kv_whatif *whatif, int number, const kv_tapped *tapped, const kv_whatif_past *before,
                      kv_whatif_past *now, double weight) {
    kv_whatif_tier *tier = &whatif->tiers[number];
    const uint32_t first = before->num_sampled[number];
    kv_simulation_request request = {.keys = whatif->keys, .ns = tapped->ns, .num_told = first, .hint = tapped->hint};
    request.num_keys = sample(whatif, tier, tapped);
    request.now_ms = tapped->time_ms;
    request.slot_nbytes = shifted_slot(tier, tapped->slot_nbytes);
    now->num_sampled[number] = request.num_keys;
    for (uint32_t i = first; i < request.num_keys; i++) {
        tier->recent.sampled_of[whatif->kinds[i]] += weight;
        tier->ever.sampled_of[whatif->kinds[i]] += 1;
    }
    for (int size = 0; size < KV_WHATIF_SIZES; size++) {
        uint32_t hits = 0;
        if (request.num_keys > 0) hits = hits_of(whatif, &tier->stores[size], &request, tapped->is_lookup);
        now->is_broken[number][size] = before->is_broken[number][size] || hits < request.num_keys;
        for (uint32_t i = first; i < hits && !before->is_broken[number][size]; i++) {
            tier->recent.hits_of[size][whatif->kinds[i]] += weight;
            tier->ever.hits_of[size][whatif->kinds[i]] += 1;
        }
    }
}

static void play(kv_whatif *whatif, const kv_tapped *tapped) {
    static const kv_whatif_past nothing = {0};
    const kv_whatif_past *before = &whatif->pasts[tapped->continues % KV_TAP_PASTS];
    if (tapped->continues == 0 || before->number != tapped->continues) before = &nothing;
    const double weight = weigh(whatif, tapped->time_ms);
    const uint32_t tokens = whatif->block_tokens[tapped->ns];
    kv_whatif_past now = {.number = tapped->number};
    for (int number = 0; number < KV_WHATIF_TIERS; number++) {
        kv_whatif_tier *tier = &whatif->tiers[number];
        if (!tier->is_on) continue;
        if (tier->since_ms > tapped->time_ms) tier->since_ms = tapped->time_ms;
        add_request(&tier->recent, tapped, tokens, weight);
        add_request(&tier->ever, tapped, tokens, 1);
        play_tier(whatif, number, tapped, before, &now, weight);
    }
    whatif->pasts[now.number % KV_TAP_PASTS] = now;
}

int kv_whatif_play(kv_whatif *whatif, uint32_t most) {
    AS_OWNER(whatif);
    kv_tapped tapped;
    for (uint64_t num = 0; num < most; num += 1 + (uint64_t)tapped.num_sampled * KV_WHATIF_SIZES) {
        if (!kv_tap_take(&whatif->tap, &tapped, whatif->homes)) return 0;
        play(whatif, &tapped);
    }
    return 1;
}

/* ---- figures ---- */

static double blocks_of(const kv_whatif_sums *sums) {
    double num = 0;
    for (int kind = 0; kind < KV_TAP_KINDS; kind++) num += sums->num_of[kind];
    return num;
}

static double ratio_of(const kv_whatif_sums *sums, int size) {
    const double num_blocks = blocks_of(sums);
    double hits = 0;
    for (int kind = 0; kind < KV_TAP_KINDS; kind++) {
        /* Of a kind that is not in the sample a store has as a rule what the store itself has. */
        const double sampled = sums->sampled_of[kind], share = kind == KV_TAP_ABSENT ? 0 : 1;
        hits += sums->num_of[kind] * (sampled > 0 ? sums->hits_of[size][kind] / sampled : share);
    }
    return num_blocks > 0 ? hits / num_blocks : 0;
}

static double full_of(const kv_simulation *store) {
    const uint64_t most = store->put.near_nbytes;
    return most > 0 ? (double)store->index.counts.near_nbytes / (double)most : 1;
}

void kv_whatif_describe(kv_whatif *whatif, int number, uint64_t now_ms, kv_whatif_figures *figures) {
    AS_OWNER(whatif);
    kv_whatif_tier *tier = &whatif->tiers[number];
    memset(figures, 0, sizeof *figures);
    if (!tier->is_on) return;
    for (int size = 0; size < KV_WHATIF_SIZES; size++)
        figures->sizes[size] = (kv_whatif_figure){.recent = ratio_of(&tier->recent, size),
                                                  .ever = ratio_of(&tier->ever, size),
                                                  .full = full_of(&tier->stores[size])};
    figures->share = tier->share;
    figures->num_requests = tier->ever.num_requests;
    if (blocks_of(&tier->recent) > 0) figures->slot_nbytes = tier->recent.num_nbytes / blocks_of(&tier->recent);
    if (now_ms <= tier->since_ms) return;
    /* A steady stream of one a second, half of it forgotten each HALF_LIFE_MS, sums up to so much by now. */
    const double age = (double)(now_ms - tier->since_ms) / HALF_LIFE_MS;
    const double steady = HALF_LIFE_MS / 1000 / M_LN2 * (1 - exp2(-age));
    figures->tokens_per_s = tier->recent.num_tokens / weight_at(whatif, now_ms) / steady;
}

static uint64_t nbytes_of(const kv_simulation *store) {
    kv_policy_figures figures = {0};
    const kv_index *index = &store->index;
    if (index->policy->describe != NULL) index->policy->describe(index, &figures);
    return figures.nbytes + (uint64_t)(kv_index_nbytes_per_entry(index) * index->ids_used) + sizeof *store;
}

uint64_t kv_whatif_nbytes(kv_whatif *whatif) {
    AS_OWNER(whatif);
    uint64_t nbytes = sizeof *whatif + KV_TAP_WORDS * sizeof(uint64_t) + KV_TAP_PASTS * sizeof(kv_whatif_past);
    for (int tier = 0; tier < KV_WHATIF_TIERS; tier++)
        for (int size = 0; size < KV_WHATIF_SIZES && whatif->tiers[tier].is_on; size++)
            nbytes += nbytes_of(&whatif->tiers[tier].stores[size]);
    return nbytes;
}

int kv_whatif_check(kv_whatif *whatif) {
    AS_OWNER(whatif);
    int broken = 0;
    for (int tier = 0; tier < KV_WHATIF_TIERS; tier++)
        for (int size = 0; size < KV_WHATIF_SIZES && whatif->tiers[tier].is_on && broken == 0; size++)
            broken = kv_simulation_check(&whatif->tiers[tier].stores[size]);
    return broken;
}
