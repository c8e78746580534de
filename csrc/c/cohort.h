/* Cohorts: blocks that were last asked for by one request and are of one class, ranked by what they are worth.
 *
 * All blocks of a cohort are equally old and equally likely to be asked for, so they are worth the same. A cohort is in
 * the queue of its bin of age, whose oldest one moves on when it gets too old for it, and, while some of its blocks are
 * candidates of a tier, in the cell of its lane, class and bin. Cells are found by level: the lowest that is not empty
 * is two searches of a bitmap away. Nothing here depends on how many blocks there are.
 */
#ifndef KV_COHORT_H
#define KV_COHORT_H

#include "index.h"
#include "survival.h"

#define KV_LANES 3          /* low, normal and high priority */
#define KV_LANE_LEVELS 128  /* from one to the next: four times as much worth */
#define KV_CELLS (KV_LANES * KV_CLASSES * KV_BINS)

/* Cohorts are named by their number; 0 is none. */
typedef struct {
    uint32_t time; /* tick of the request */
    uint16_t class_number;
    uint8_t bin;
    uint8_t lane : 2, is_lookup : 1; /* a lookup alone made it: the reservation of the same request may follow */
    uint32_t num_blocks;             /* stored or remembered */
    uint32_t older, newer;           /* in the queue of its bin; `newer` also links unused ones */
    uint32_t leaf[2];                /* per tier: id + 1 of its first candidate */
    uint32_t before[2], behind[2];   /* in the cell */
} kv_cohort;

typedef struct {
    uint32_t first, last;        /* cohorts */
    uint32_t above, below;       /* cell + 1, in the list of its level */
} kv_cell;

typedef struct {
    kv_links *links;             /* of the index: prev and next link candidates */
    kv_survival survival;
    kv_cohort *cohorts;
    uint32_t cohorts_max, num_cohorts, unused;
    uint64_t population[KV_BINS]; /* known blocks of each age */
    uint32_t oldest[KV_BINS], newest[KV_BINS];
    uint32_t oldest_time[KV_BINS]; /* of each bin's oldest, side by side: they are looked at all the time */
    kv_cell *cells[2];           /* per tier KV_CELLS */
    uint32_t (*levels[2])[2];    /* per tier and level: the first cell + 1, and the last */
    uint64_t bits[2][KV_LEVELS / 64], words[2];
} kv_cohorts;

/* 0 or -ENOMEM. */
int kv_cohorts_create(kv_cohorts *cohorts, uint32_t cohorts_max, kv_links *links);
void kv_cohorts_destroy(kv_cohorts *cohorts);
/* The time is `tick` now: old cohorts move on, a bounded number of them in one call. */
void kv_cohorts_set_now(kv_cohorts *cohorts, uint32_t tick);
/* A new cohort without blocks, of a request that came at `tick`. There is always one: each has a block, and blocks are
 * bounded. */
uint32_t kv_cohort_begin(kv_cohorts *cohorts, uint32_t tick, uint16_t class_number, uint8_t lane);
/* A block joins, or leaves (`how`); a cohort without blocks ends. */
enum kv_parting { KV_PART_ASKED, KV_PART_FORGOTTEN, KV_PART_MOVED };
void kv_cohort_join(kv_cohorts *cohorts, uint32_t cohort);
void kv_cohort_part(kv_cohorts *cohorts, uint32_t cohort, enum kv_parting how);
/* A block of it becomes a candidate of a tier, the next one to go of its cohort; or is one no more. */
void kv_cohort_list(kv_cohorts *cohorts, uint32_t cohort, enum kv_tier tier, uint32_t id);
void kv_cohort_unlist(kv_cohorts *cohorts, uint32_t cohort, enum kv_tier tier, uint32_t id);
uint32_t kv_cohort_level(const kv_cohorts *cohorts, uint32_t cohort);
/* The first candidate of the tier; KV_NONE without any. */
uint32_t kv_cohorts_first(const kv_cohorts *cohorts, enum kv_tier tier);
/* The one behind `id`, of this cohort. */
uint32_t kv_cohorts_next(const kv_cohorts *cohorts, enum kv_tier tier, uint32_t cohort, uint32_t id);
/* A piece of learning. */
void kv_cohorts_tend(kv_cohorts *cohorts);

#endif
