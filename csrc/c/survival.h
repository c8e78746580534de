/* Survival: how long blocks of a class stay unasked, learned while they do, and what that makes a block worth.
 *
 * A class is what was known of a request when it came. For each class and bin of age three numbers are kept: how many
 * of its blocks wait at that age now, how many waits ended there, and how many of these because the block was asked for.
 * Waits that ended count less as time goes by (half after HALF_LIFE_S). From them follows the hazard of each bin: a
 * class that has not seen much yet leans on an estimate from its features, one by one (additive in the logit). What a
 * block is worth is the Gittins index of its wait: the most hits per second of occupied space that any moment to give
 * up promises (Gittins 1979; the optimal order for arms that are played one at a time). Levels are its logarithm.
 */
#ifndef KV_SURVIVAL_H
#define KV_SURVIVAL_H

#include <stdint.h>

#include "hint.h"

#define KV_BINS 56 /* edges 0, then 1.2^j seconds: up to 5 hours and beyond */
#define KV_LEVELS 4096
#define KV_TICKS_PER_S 62.5f /* a tick is 16 ms: 32 bits of them are two years */

enum { KV_FREQS = 7, KV_ENDINGS = 4, KV_PACES = 5, KV_NEWS = 5, KV_OUTPUTS = 7, KV_FEATURES = 5 };
#define KV_CLASSES (KV_FREQS * KV_ENDINGS * KV_PACES * KV_NEWS * KV_OUTPUTS)
#define KV_PACE_UNKNOWN UINT16_MAX

/* What was known of a request. */
typedef struct {
    uint16_t pace_ds;    /* tenths of a second between earlier requests of the same conversation, or unknown */
    uint32_t num_new;    /* blocks that were never seen before */
    kv_hint hint;
} kv_traits;

typedef struct {
    uint32_t waiting[KV_BINS]; /* blocks of this age now */
    float ended[KV_BINS];      /* waits that ended, in units that grow with time (weight) */
    float asked[KV_BINS];      /* of these, because the block was asked for */
    uint16_t level[KV_BINS];   /* what its blocks are worth, by age */
} kv_curve;

typedef struct {
    kv_curve *curves;             /* KV_CLASSES of them; pages of unused ones are never touched */
    uint8_t is_used[KV_CLASSES];
    uint16_t used[KV_CLASSES];    /* those, in the order in which they came up */
    uint32_t num_used;
    float share;                  /* of all blocks, of which it sees so many: 1, or less of a sample */
    double weight;                /* of what ends now */
    uint32_t weighed;             /* tick at which it was 1 */
    uint32_t now;                 /* the latest tick */
    int is_cautious;              /* LRU does better than what was learned: age alone counts for now */
    int is_blind;                 /* too little was ever asked for again: age alone counts, as in LRU */
    /* a pass over all classes, a few at a time */
    uint32_t at, num_pass;
    enum { KV_PASS_REST, KV_PASS_SUM, KV_PASS_CURVES } pass;
    uint32_t next_pass;           /* tick */
    float sum_asked[KV_FEATURES + 1][KV_FREQS][KV_BINS], sum_risk[KV_FEATURES + 1][KV_FREQS][KV_BINS];
    float pooled[KV_BINS], lean[KV_FEATURES][KV_FREQS][KV_BINS]; /* logits: of all together, and what a feature adds */
} kv_survival;

/* 0 or -ENOMEM. */
int kv_survival_create(kv_survival *survival);
void kv_survival_destroy(kv_survival *survival);
/* Class of a block that has been asked for `freq` times. */
uint16_t kv_survival_class(const kv_survival *survival, const kv_traits *traits, uint32_t freq);
/* The class of blocks of this one now that something is known of their request. */
uint16_t kv_survival_hinted(const kv_survival *survival, uint16_t class_number, const kv_hint *hint);
/* Start using a class: its levels are known from here on. */
void kv_survival_use(kv_survival *survival, uint16_t class_number);
void kv_survival_set_now(kv_survival *survival, uint32_t tick);
/* A block of this class stops waiting in `bin`: it was asked for, or is forgotten. */
void kv_survival_end(kv_survival *survival, uint16_t class_number, uint32_t bin, int asked);
/* The age in ticks at which a bin begins. */
uint32_t kv_bin_edge(uint32_t bin);
uint32_t kv_bin_of(uint32_t age_ticks);
/* Go on with learning: returns how many classes got new levels in `levels` (written, not yet in the curves), and which
 * in `classes`; at most KV_STEP_CLASSES. */
#define KV_STEP_CLASSES 16
uint32_t kv_survival_step(kv_survival *survival, uint16_t *classes, uint16_t (*levels)[KV_BINS]);
/* Age alone counts from now on, or no more: levels follow, a piece at a time. */
void kv_survival_be_cautious(kv_survival *survival, int is_cautious);
/* How likely a block of this class and bin is asked for within so many seconds. */
float kv_survival_chance(const kv_survival *survival, uint16_t class_number, uint32_t bin, uint32_t within_s);
/* Hits per block and second at the lower end of a level. */
float kv_level_value(uint32_t level);

#endif
