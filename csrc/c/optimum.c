/* No block is looked at alone. What is cached and due at the same request lies on that request's chain, so a number per
 * request says which blocks these are, and the farthest request with any of them is where the next block leaves: at the
 * deepest end. The farthest is found in a tree of bits, 64 to a word. */
#include "optimum.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "thread_clock.h"

#define LEVELS 6 /* 64^6 requests are more than there can be */
#define NEVER UINT32_MAX

/* How many blocks are cached and due at one request, and the latest request that brought any of them anew. */
typedef struct {
    uint32_t num, bringer;
} due;

typedef struct {
    due *dues;              /* per request */
    uint32_t *last;         /* per id: scratch */
    uint32_t *next;         /* per access: number of the next request for the same block, or NEVER */
    uint64_t *bits[LEVELS]; /* which requests have any; each word of a level is a bit of the one above it */
    uint32_t num_levels;
} plan;

static void destroy(plan *plan) {
    free(plan->dues);
    free(plan->last);
    free(plan->next);
    for (uint32_t level = 0; level < LEVELS; level++) free(plan->bits[level]);
}

static int create(plan *plan, const kv_requests *requests) {
    uint64_t num_words = requests->num_requests;
    memset(plan, 0, sizeof *plan);
    plan->dues = calloc((size_t)requests->num_requests + 1, sizeof(due));
    plan->last = malloc(((size_t)requests->num_ids + 1) * sizeof(uint32_t));
    plan->next = malloc((requests->starts[requests->num_requests] + 1) * sizeof(uint32_t));
    if (!plan->dues || !plan->last || !plan->next) return 0;
    do {
        num_words = num_words / 64 + 1;
        plan->bits[plan->num_levels] = calloc(num_words, sizeof(uint64_t));
        if (plan->bits[plan->num_levels++] == NULL) return 0;
    } while (num_words > 1);
    return 1;
}

static void set_bit(plan *plan, uint32_t at) {
    for (uint32_t level = 0; level < plan->num_levels; level++, at /= 64)
        plan->bits[level][at / 64] |= 1ULL << at % 64;
}

static void clear_bit(plan *plan, uint32_t at) {
    for (uint32_t level = 0; level < plan->num_levels; level++, at /= 64)
        if ((plan->bits[level][at / 64] &= ~(1ULL << at % 64)) != 0) return;
}

/* The farthest request with anything due; there is one, so that those which are past never are the farthest. */
static uint32_t farthest(const plan *plan) {
    uint32_t at = 0;
    for (uint32_t level = plan->num_levels; level-- > 0;)
        at = at * 64 + 63 - (uint32_t)__builtin_clzll(plan->bits[level][at]);
    return at;
}

static void look_ahead(plan *plan, const kv_requests *requests) {
    memset(plan->last, 0xff, requests->num_ids * sizeof(uint32_t));
    for (uint32_t number = requests->num_requests; number-- > 0;) {
        uint64_t start = requests->starts[number];
        for (uint64_t i = start; i < start + requests->num_blocks[number]; i++) {
            plan->next[i] = plan->last[requests->ids[i]];
            plan->last[requests->ids[i]] = number;
        }
    }
}

/* The blocks of request `number`, of which the first `num_hits` were cached, become due at their next requests. Returns
 * how many have one. */
static uint32_t add_all(plan *plan, const kv_requests *requests, uint32_t number, uint32_t num_hits) {
    const uint32_t *next = plan->next + requests->starts[number];
    uint32_t num_added = 0;
    for (uint32_t i = 0; i < requests->num_blocks[number]; i++) {
        if (next[i] == NEVER) continue;
        due *at = &plan->dues[next[i]];
        if (at->num == 0) set_bit(plan, next[i]);
        at->num++;
        if (i >= num_hits) at->bringer = number;
        num_added++;
    }
    return num_added;
}

/* Let the `excess` blocks go that are due last, at one request the deepest first. Returns how many of them the request
 * that is being played had only just brought. Where it brought any, it brought the deepest ones: what is below them on
 * the chain was not cached, or they would have been. And what it hit stays: without what it brought nothing is over. */
static uint32_t trim(plan *plan, uint32_t player, uint64_t excess) {
    uint32_t num_passed_by = 0;
    while (excess > 0) {
        uint32_t number = farthest(plan);
        due *at = &plan->dues[number];
        uint32_t num = at->num < excess ? at->num : (uint32_t)excess;
        if (at->bringer == player) num_passed_by += num;
        at->num -= num;
        excess -= num;
        if (at->num == 0) clear_bit(plan, number);
    }
    return num_passed_by;
}

static void play(plan *plan, const kv_requests *requests, uint64_t capacity, const kv_request_hits *hits) {
    uint64_t num_cached = 0;
    for (uint32_t number = 0; number < requests->num_requests; number++) {
        uint32_t num_hits = plan->dues[number].num, num_new = 0;
        num_cached += add_all(plan, requests, number, num_hits) - (uint64_t)num_hits;
        const uint32_t *next = plan->next + requests->starts[number];
        for (uint32_t i = num_hits; i < requests->num_blocks[number]; i++) num_new += next[i] != NEVER;
        uint64_t excess = num_cached > capacity ? num_cached - capacity : 0;
        hits->prefix[number] = hits->blocks[number] = num_hits;
        hits->fills[number] = num_new - trim(plan, number, excess);
        num_cached -= excess;
    }
}

int kv_optimum_play(const kv_requests *requests, uint64_t capacity, const kv_request_hits *hits, uint64_t *cpu_ns) {
    plan plan;
    uint64_t began_ns = kv_thread_ns();
    int is_made = create(&plan, requests);
    if (is_made) {
        look_ahead(&plan, requests);
        play(&plan, requests, capacity, hits);
    }
    destroy(&plan);
    *cpu_ns = kv_thread_ns() - began_ns;
    return is_made ? 0 : -ENOMEM;
}
