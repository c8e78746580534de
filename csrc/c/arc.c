/* ARC: two lists by last use, of blocks used once and of those used again, whose shares follow the echoes (Megiddo, Modha:
 * ARC: a self-tuning, low overhead replacement cache, 2003).
 *
 * An echo of a block that was used once and is asked for now says that the first list is too short, and one of a block
 * that was used often that the second is. Echoes of the first list and the list itself are at most as many as the tier
 * has blocks, all lists and echoes twice as many.
 */
#include "queues.h"

static void used(kv_index *index, uint32_t id) { kv_member_move(index, id, KV_OFTEN); }

static void missed(kv_ranks *ranks, enum kv_tier tier, enum kv_list left) {
    kv_queues *queues = &ranks->tiers[tier];
    const double own = (double)kv_echo_count(&ranks->echoes, tier, left);
    const double others = (double)kv_echo_count(&ranks->echoes, tier, left == KV_ONCE ? KV_OFTEN : KV_ONCE);
    const double step = others > own ? others / own : 1;
    if (left == KV_ONCE) queues->target += step;
    else queues->target -= step;
    if (queues->target < 0) queues->target = 0;
    if (queues->target > (double)queues->capacity) queues->target = (double)queues->capacity;
}

/* Before the last of the blocks that are to come. */
static enum kv_list loser(const kv_ranks *ranks, enum kv_tier tier) {
    const kv_queues *queues = &ranks->tiers[tier];
    const uint64_t num_once = kv_queue_count(queues, KV_ONCE) + (queues->num_due > 0 ? queues->num_due - 1 : 0);
    return (double)num_once > queues->target ? KV_ONCE : KV_OFTEN;
}

static uint32_t surplus(const kv_ranks *ranks, enum kv_tier tier) {
    const kv_queues *queues = &ranks->tiers[tier];
    const kv_echoes *echoes = &ranks->echoes;
    const uint64_t num_once = kv_echo_count(echoes, tier, KV_ONCE), num_often = kv_echo_count(echoes, tier, KV_OFTEN);
    if (kv_queue_count(queues, KV_ONCE) + num_once > queues->capacity) return kv_echo_oldest(echoes, tier, KV_ONCE);
    if (num_once + num_often > queues->capacity) return kv_echo_oldest(echoes, tier, num_often > 0 ? KV_OFTEN : KV_ONCE);
    return 0;
}

static const kv_queue_rules rules = {.is_remembered = {1, 1},
                                     .moves_to_hot = 1,
                                     .used = used,
                                     .missed = missed,
                                     .loser = loser,
                                     .surplus = surplus};

static int create(kv_index *index, uint32_t ghosts_max) {
    (void)ghosts_max; /* bounded by what is stored */
    return kv_queues_create(index, &rules);
}

const kv_policy kv_arc = {.name = "arc", .create = create, KV_QUEUES_CALLS};
