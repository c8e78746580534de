/* Queues: the state of policies that keep two lists of each tier, of blocks asked for once and of those asked for often,
 * and remember what left them.
 *
 * Every stored block is a member of one list. Its place there is lost for as long as it is hidden: it was the next to go
 * and had children. Then it is back at the cold end, where it stood, once the last of them goes. A block that comes into a
 * tier is asked for once, unless an echo says that it was there before. A request is seen twice, by its lookup and by its
 * reservation; the latter asks only for what is not stored, or, of a chain that is all there and was not looked up, for
 * all of it.
 */
#ifndef KV_QUEUES_H
#define KV_QUEUES_H

#include "echo.h"
#include "policy.h"

enum kv_list { KV_ONCE = 0, KV_OFTEN = 1 };
#define KV_USES_MAX 3 /* as far as uses of a block are counted */

/* Of one tier. */
typedef struct {
    kv_order lists[KV_LISTS];
    uint64_t num_hidden[KV_LISTS];
    uint64_t capacity; /* members when the last block came: what is evicted to make room does not shrink it */
    uint32_t num_due;  /* new blocks that room is being made for */
    double target;     /* of the first list's length, where a policy adapts it */
} kv_queues;

/* What a policy adds. */
typedef struct {
    uint8_t is_remembered[KV_LISTS]; /* leaves an echo when it is evicted */
    uint8_t moves_to_hot;            /* a use moves a block to the hot end of a list */
    /* `id` was asked for. */
    void (*used)(kv_index *index, uint32_t id);
    /* A block that left this list of the tier is asked for again. May be NULL. */
    void (*missed)(kv_ranks *ranks, enum kv_tier tier, enum kv_list left);
    /* The list that loses a block next. */
    enum kv_list (*loser)(const kv_ranks *ranks, enum kv_tier tier);
    /* Put off members that are next and shall not go yet, a bounded number of them. May be NULL. */
    void (*put_off)(const kv_index *index, enum kv_tier tier);
    /* The number of an echo that is too many, or 0. */
    uint32_t (*surplus)(const kv_ranks *ranks, enum kv_tier tier);
} kv_queue_rules;

struct kv_ranks {
    const kv_queue_rules *rules;
    kv_queues tiers[2];
    kv_echoes echoes;
    uint8_t *marks; /* per id: tier and list that it is a member of, and what else is known of it */
    uint32_t held_from; /* leased candidates, as far as their access is not before it, are offered last ... */
    uint64_t held_until_ms; /* ... until then */
};

static inline uint64_t kv_queue_count(const kv_queues *queues, enum kv_list list) {
    return queues->lists[list].length + queues->num_hidden[list];
}

/* For the policies' own files. */
int kv_queues_create(kv_index *index, const kv_queue_rules *rules);
uint32_t kv_member_uses(const kv_ranks *ranks, uint32_t id);
void kv_member_set_uses(kv_ranks *ranks, uint32_t id, uint32_t uses);
enum kv_list kv_member_list(const kv_ranks *ranks, uint32_t id);
int kv_member_is_held(const kv_index *index, uint32_t id);
/* To the hot end of a list of its tier. */
void kv_member_move(const kv_index *index, uint32_t id, enum kv_list list);

/* The calls of a policy (policy.h) that are the same for all of these. */
#define KV_QUEUES_CALLS                                                                                       \
    .destroy = kv_queues_destroy, .touched = kv_queues_touched, .covered = kv_queues_covered,                 \
    .spared = kv_queues_spared, .demoted = kv_queues_demoted, .leave = kv_queues_leave, .bared = kv_queues_bared, \
    .coldest = kv_queues_coldest, .check = kv_queues_check, .asked = kv_queues_asked, .gone = kv_queues_gone, \
    .describe = kv_queues_describe
void kv_queues_destroy(kv_index *index);
void kv_queues_touched(kv_index *index, uint32_t deepest);
void kv_queues_covered(kv_index *index, uint32_t deepest);
void kv_queues_spared(kv_index *index, uint32_t id);
void kv_queues_demoted(kv_index *index, uint32_t id);
void kv_queues_leave(kv_index *index, uint32_t id, uint32_t heir);
void kv_queues_bared(kv_index *index, uint32_t id);
uint32_t kv_queues_coldest(const kv_index *index, enum kv_tier tier, uint32_t after);
int kv_queues_check(const kv_index *index, uint64_t near_listed, uint64_t far_listed);
void kv_queues_asked(kv_index *index, const kv_request *request);
void kv_queues_gone(kv_index *index, uint32_t id);
void kv_queues_describe(const kv_index *index, kv_policy_figures *figures);

#endif
