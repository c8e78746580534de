/* Duel: is what was learned better than least recently used? LRU holds the youngest blocks, as many as fit; how old the
 * known blocks are is known, stored or not, so each block that is asked for says whether LRU would have had it.
 *
 * While LRU is ahead, age alone orders the blocks; after some time what was learned has another try.
 */
#ifndef KV_DUEL_H
#define KV_DUEL_H

#include "survival.h"

typedef struct {
    float share[KV_BINS];       /* of the blocks of each age, those that LRU would have now */
    double ours, lru, asked;    /* hits and blocks asked for, the past fading */
    uint32_t faded;             /* tick up to which it has */
    uint32_t until, hold_ticks; /* age alone counts until then; for how long the next time */
    int is_lost;
} kv_duel;

void kv_duel_create(kv_duel *duel, uint32_t tick);
/* Before blocks are counted: how many known blocks there are of each age, and how many are stored. */
void kv_duel_begin(kv_duel *duel, const uint64_t *population, uint64_t num_stored);
static inline void kv_duel_count(kv_duel *duel, uint32_t bin, int is_stored) {
    duel->asked++;
    duel->ours += is_stored;
    duel->lru += duel->share[bin];
}
/* After a request: whether age alone is to count from now on. Of all blocks that are asked for, `share` is seen. */
int kv_duel_end(kv_duel *duel, uint32_t tick, float share);

#endif
