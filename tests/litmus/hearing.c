/* What an eviction policy hears of hints.
 *
 * A chain of three is stored in two parts each, and a policy that is LRU but for its ear counts what it is told. Prints
 * a line "deepest ending priority tokens" for each, with the position in the chain, and "-" between the questions.
 */
#include "evict.h"
#include "hint.h"
#include "policy.h"

#include <stdio.h>
#include <stdlib.h>

#define CHAIN 3

static kv_index index_;
static uint8_t keys[CHAIN * KV_KEY_NBYTES], plan[CHAIN], committed[CHAIN];
static uint32_t ids[CHAIN], places[CHAIN] = {0, 1, 2}, published[CHAIN];

static void hear(kv_index *index, uint32_t deepest, const kv_hint *hint) {
    uint32_t position = 0;
    while (position < CHAIN && ids[position] != deepest) position++;
    if (index != &index_) abort();
    printf("%u %u %d %u\n", position, hint->ending, hint->priority, hint->output_tokens);
}

static void reserve(uint32_t num, uint32_t shard) {
    kv_index_plan(&index_, keys, num, shard, plan, ids);
    kv_index_begin(&index_, keys, num, shard, 1, plan, ids, places, num);
}

int main(void) {
    const uint64_t seed[2] = {1, 3};
    const kv_hint hint = {KV_ENDING_TOOL_USE, -1, 0, 5}, nothing = KV_NO_HINT;
    if (kv_index_create(&index_, 64, seed, &kv_lru, 0) != 0) return 1;
    index_.namespaces[1].slot_nbytes = 4096;
    index_.namespaces[1].all_parts = 3;
    for (int i = 0; i < CHAIN; i++) keys[i * KV_KEY_NBYTES] = (uint8_t)(i + 1);
    reserve(CHAIN, 0);
    reserve(CHAIN, 1);
    kv_index_hint(&index_, ids[2], &hint); /* LRU has no ear */
    static kv_policy listening;
    listening = kv_lru;
    listening.hint = hear;
    index_.policy = &listening;
    kv_index_commit(&index_, ids, CHAIN, 0, committed, published);
    kv_index_hint_last(&index_, ids, CHAIN, &hint); /* half of each is there: none is visible */
    kv_index_hint(&index_, ids[0], &hint);
    kv_index_hint(&index_, 60, &hint); /* never handed out */
    printf("-\n");
    kv_index_commit(&index_, ids, 2, 1, committed, published);
    kv_index_hint_last(&index_, ids, CHAIN, &hint);
    printf("-\n");
    kv_index_commit(&index_, ids + 2, 1, 1, committed, published);
    kv_index_hint_last(&index_, ids, CHAIN, &nothing);
    uint32_t clock = index_.clock;
    kv_index_hint(&index_, ids[0], &hint);
    printf("- %d %d %u %d\n", kv_hint_is_given(&nothing), kv_hint_is_given(&hint), (uint32_t)index_.counts.num_hints,
           index_.clock == clock);
    kv_index_destroy(&index_);
    return 0;
}
