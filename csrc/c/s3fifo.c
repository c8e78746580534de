/* S3-FIFO: three queues in which blocks move only when they come to the end (Yang, Zhang, Qiu, Yue, Rashmi: FIFO queues
 * are all you need for cache eviction, 2023).
 *
 * New blocks come into the small queue (KV_ONCE), a tenth of the tier; what was used there more than once by the time it
 * is next to go moves on to the main one (KV_OFTEN), the rest goes, and its echo, if it is asked for again soon, brings
 * it into the main queue. There a block that was used goes round once for each use.
 */
#include "queues.h"

#define SMALL_SHARE 10   /* the small queue is one in so many blocks */
#define PUT_OFF_MAX 4096 /* in search of one candidate; then the next one goes as it is */

static void used(kv_index *index, uint32_t id) {
    const uint32_t uses = kv_member_uses(index->ranks, id);
    if (uses < KV_USES_MAX) kv_member_set_uses(index->ranks, id, uses + 1);
}

/* Before the last of the blocks that are to come. */
static enum kv_list loser(const kv_ranks *ranks, enum kv_tier tier) {
    const kv_queues *queues = &ranks->tiers[tier];
    const uint64_t num_small = kv_queue_count(queues, KV_ONCE) + (queues->num_due > 0 ? queues->num_due - 1 : 0);
    return num_small * SMALL_SHARE >= queues->capacity ? KV_ONCE : KV_OFTEN;
}

static void put_off(const kv_index *index, enum kv_tier tier) {
    kv_ranks *ranks = index->ranks;
    for (int left = PUT_OFF_MAX; left-- > 0;) {
        const kv_queues *queues = &ranks->tiers[tier];
        enum kv_list list = loser(ranks, tier);
        if (queues->lists[list].cold == KV_NONE) list = list == KV_ONCE ? KV_OFTEN : KV_ONCE;
        const uint32_t id = queues->lists[list].cold, uses = id != KV_NONE ? kv_member_uses(ranks, id) : 0;
        if (id == KV_NONE || kv_member_is_held(index, id) || uses <= (list == KV_ONCE)) return;
        kv_member_set_uses(ranks, id, list == KV_ONCE ? 0 : uses - 1);
        kv_member_move(index, id, KV_OFTEN);
    }
}

/* As many as the main queue is long when it has all that is not the small one's. */
static uint32_t surplus(const kv_ranks *ranks, enum kv_tier tier) {
    const uint64_t capacity = ranks->tiers[tier].capacity;
    const int is_over = kv_echo_count(&ranks->echoes, tier, KV_ONCE) > capacity - capacity / SMALL_SHARE;
    return is_over ? kv_echo_oldest(&ranks->echoes, tier, KV_ONCE) : 0;
}

static const kv_queue_rules rules = {
    .is_remembered = {[KV_ONCE] = 1}, .used = used, .loser = loser, .put_off = put_off, .surplus = surplus};

static int create(kv_index *index, uint32_t ghosts_max) {
    (void)ghosts_max; /* bounded by what is stored */
    return kv_queues_create(index, &rules);
}

const kv_policy kv_s3fifo = {.name = "s3fifo", .create = create, KV_QUEUES_CALLS};
