#include "duel.h"

#include <math.h>
#include <string.h>

#define HALF_LIFE_TICKS (1800 * 62.5)
#define LEAD_BLOCKS 100.0  /* by so many hits and */
#define LEAD_SHARE 0.001   /* so many of those asked for LRU has to be ahead */
#define HOLD_TICKS 18750u  /* five minutes, twice as long each time, up to */
#define HOLD_TICKS_MAX 300000u

void kv_duel_create(kv_duel *duel, uint32_t tick) {
    memset(duel, 0, sizeof *duel);
    duel->faded = tick;
    duel->hold_ticks = HOLD_TICKS;
}

void kv_duel_begin(kv_duel *duel, const uint64_t *population, uint64_t num_stored) {
    uint64_t left = num_stored;
    for (int bin = 0; bin < KV_BINS; bin++) {
        const uint64_t there = population[bin] < left ? population[bin] : left;
        duel->share[bin] = population[bin] ? (float)there / (float)population[bin] : left > 0;
        left -= there;
    }
}

int kv_duel_end(kv_duel *duel, uint32_t tick, float share) {
    if (tick - duel->faded >= 62) {
        const double fading = exp2(-(double)(tick - duel->faded) / HALF_LIFE_TICKS);
        duel->ours *= fading;
        duel->lru *= fading;
        duel->asked *= fading;
        duel->faded = tick;
    }
    const double lead = duel->lru - duel->ours;
    if (!duel->is_lost && lead > LEAD_BLOCKS * share + LEAD_SHARE * duel->asked) {
        duel->is_lost = 1;
        duel->until = tick + duel->hold_ticks;
        if (duel->hold_ticks < HOLD_TICKS_MAX) duel->hold_ticks *= 2;
    } else if (duel->is_lost && (int32_t)(tick - duel->until) >= 0) {
        duel->is_lost = 0;
        duel->ours = duel->lru = duel->asked = 0; /* a new try */
    }
    return duel->is_lost;
}
