/* Room for what the gittins policy has not seen before: the oldest of what is not stored is forgotten. */
#include "gittins.h"

#define CANDIDATES 8 /* the longest unasked of so many is forgotten */
#define FORGOTTEN 8  /* at a time */

/* 0: none but those of this very moment, which the request under way may still need. */
static uint32_t oldest_candidate(kv_ranks *ranks) {
    uint32_t numbers[CANDIDATES], num = kv_known_candidates(&ranks->knowledge, numbers, CANDIDATES);
    uint32_t oldest = 0, oldest_age = 0;
    for (uint32_t i = 0; i < num; i++) {
        const uint32_t age = age_of(ranks, known_at(ranks, numbers[i])->cohort);
        if (age > oldest_age) oldest = numbers[i], oldest_age = age;
    }
    return oldest;
}

/* Several at a time, so that their places in the table come from memory together. */
static void forget_some(kv_ranks *ranks) {
    uint32_t numbers[FORGOTTEN], num = 0;
    for (uint32_t number; num < FORGOTTEN && (number = oldest_candidate(ranks)) != 0; num++) {
        if (num > 0 && number == numbers[0]) break; /* once round: there are no more */
        numbers[num] = number;
        kv_known_prefetch(&ranks->knowledge, known_at(ranks, number)->fingerprint);
    }
    for (uint32_t i = 0; i < num; i++)
        kv_known_prefetch_first(&ranks->knowledge, known_at(ranks, numbers[i])->fingerprint);
    for (uint32_t i = 0; i < num; i++) {
        if (known_at(ranks, numbers[i])->cohort == 0) continue; /* it was there twice */
        kv_cohort_part(&ranks->cohorts, known_at(ranks, numbers[i])->cohort, KV_PART_FORGOTTEN);
        kv_known_forget(&ranks->knowledge, numbers[i]);
    }
}

uint32_t kv_gittins_remember(kv_ranks *ranks, uint64_t fingerprint) {
    uint32_t number = kv_known_add(&ranks->knowledge, fingerprint);
    if (number == 0) {
        forget_some(ranks);
        number = kv_known_add(&ranks->knowledge, fingerprint);
    }
    if (number) known_at(ranks, number)->pace_ds = KV_PACE_UNKNOWN;
    return number;
}
