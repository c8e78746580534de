/* What the gittins policy keeps; for its own files. */
#ifndef KV_GITTINS_H
#define KV_GITTINS_H

#include "cohort.h"
#include "duel.h"
#include "known.h"
#include "policy.h"

typedef struct kv_ranks {
    kv_cohorts cohorts;
    kv_knowledge knowledge;
    kv_duel duel;
    uint32_t *known_of;        /* per id: the known block, 0 for none */
    uint32_t num_attached;     /* how many of those there are */
    uint64_t epoch_ms;         /* the first time that it was told: blocks that were there before are as old as that */
    uint32_t now;
    uint32_t stray;            /* cohort of stored blocks that there was no room to know */
    uint32_t held[2];          /* per tier: id + 1 of the first that a lease held, linked as candidates are */
    uint32_t held_until;
    uint32_t *scratch, scratch_max; /* known blocks of a request */
} kv_ranks;

static inline kv_ranks *ranks_of(const kv_index *index) { return index->ranks; }
static inline kv_known *known_at(const kv_ranks *ranks, uint32_t number) { return &ranks->knowledge.blocks[number]; }

static inline uint32_t cohort_of(const kv_ranks *ranks, uint32_t id) {
    const uint32_t number = ranks->known_of[id];
    return number ? known_at(ranks, number)->cohort : ranks->stray;
}

/* How long ago, in ticks, its blocks were asked for. */
static inline uint32_t age_of(const kv_ranks *ranks, uint32_t cohort) {
    return ranks->now - ranks->cohorts.cohorts[cohort].time;
}

/* A block that is not known, from now on known; 0 when there is no room, and nothing that may be forgotten. */
uint32_t kv_gittins_remember(kv_ranks *ranks, uint64_t fingerprint);
uint32_t kv_gittins_coldest(const kv_index *index, enum kv_tier tier, uint32_t after);
uint32_t kv_gittins_level(const kv_index *index, uint32_t id);
int kv_gittins_check(const kv_index *index, uint64_t near_listed, uint64_t far_listed);
void kv_gittins_describe(const kv_index *index, kv_policy_figures *figures);

#endif
