/* What if a tier were half as large, or eight times: the hits that a store would have, found while it runs.
 *
 * Each tier has small stores without bytes (simulation.h), one for each size that is asked about, under the policy of the
 * store itself. They play the requests that a tap heard, but only a sample of the blocks, in a capacity that is as much
 * smaller. How many blocks of each kind the store itself was asked for (those that it had, by how long they were unused,
 * and those that it had not) is known of all of them; so what is estimated is only the share of hits of a size in each
 * kind, from the sample (post-stratification). A prompt that everybody sends is a few blocks and may be missing from the
 * sample: it is of a kind that is hit at any size, and this way it counts.
 *
 * Everything runs outside of the index's lock, under a lock of its own.
 */
#ifndef KV_WHATIF_H
#define KV_WHATIF_H

#include "simulation.h"
#include "tap.h"

#define KV_WHATIF_SIZES 5
#define KV_WHATIF_TIERS 2
#define KV_WHATIF_BLOCKS 4096u      /* a tier as it is has room for so many sampled blocks, or is played as a whole */
#define KV_WHATIF_GHOSTS (1u << 15) /* not stored blocks that each of its stores remembers */

/* Sums over requests: all blocks of each kind, those in the sample, and of these the hits at each size. */
typedef struct {
    double num_requests, num_tokens, num_nbytes;
    double num_of[KV_TAP_KINDS], sampled_of[KV_TAP_KINDS], hits_of[KV_WHATIF_SIZES][KV_TAP_KINDS];
} kv_whatif_sums;

typedef struct {
    int is_on;
    uint64_t threshold; /* of the hashes of its sample */
    float share;
    uint32_t shift; /* sizes of its stores are divided by 2^shift */
    kv_simulation stores[KV_WHATIF_SIZES];
    kv_whatif_sums recent, ever;
    uint64_t since_ms; /* its first request; UINT64_MAX before it */
} kv_whatif_tier;

/* What came of a request, in case that the next one continues it. A chain that was hit as far as it went goes on being
 * hit; one that was broken stays so, whatever was put since. */
typedef struct {
    uint32_t number, num_sampled[KV_WHATIF_TIERS];
    uint8_t is_broken[KV_WHATIF_TIERS][KV_WHATIF_SIZES];
} kv_whatif_past;

typedef struct {
    pthread_mutex_t lock; /* guards everything but the tap's own; taken before the index's */
    kv_index *index;
    kv_tap tap;
    uint32_t ghosts_max;
    kv_whatif_tier tiers[KV_WHATIF_TIERS];
    kv_whatif_past *pasts;  /* by number of the request */
    uint32_t *block_tokens; /* by namespace */
    uint64_t *homes;        /* of one request, */
    uint8_t *keys, *kinds;  /* and keys and kinds of one tier's sample of it */
    uint64_t weighed_ms;    /* when recent sums were in units of 1 */
    uint64_t num_refused;   /* requests that one of the stores refused: none should be */
} kv_whatif;

typedef struct {
    double recent, ever, full; /* shares: hits of the blocks asked for, since when it began; of its capacity that is in use */
} kv_whatif_figure;

typedef struct {
    kv_whatif_figure sizes[KV_WHATIF_SIZES];
    double share;                /* of all blocks that is in the sample */
    double num_requests;         /* since it began */
    double tokens_per_s;         /* that were asked for lately */
    double slot_nbytes;          /* of the blocks that were asked for lately, on average; 0: none were */
} kv_whatif_figures;

/* For an index that outlives it, whose policy remembers `ghosts_max` blocks. 0 or -ENOMEM. */
int kv_whatif_create(kv_whatif *whatif, kv_index *index, uint32_t ghosts_max);
void kv_whatif_destroy(kv_whatif *whatif);
/* Begin a tier anew: it is as large as capacities_nbytes[own], and its blocks take about `slot_nbytes`. 0, or -errno and
 * there are no figures of it. */
int kv_whatif_begin(kv_whatif *whatif, int tier, const uint64_t *capacities_nbytes, int own, uint64_t slot_nbytes);
/* There is no such tier any more. */
void kv_whatif_end(kv_whatif *whatif, int tier);
/* Play what was heard, until about `most` blocks were played. Returns whether there is more. */
int kv_whatif_play(kv_whatif *whatif, uint32_t most);
void kv_whatif_describe(kv_whatif *whatif, int tier, uint64_t now_ms, kv_whatif_figures *figures);
/* Bytes that it takes, about. */
uint64_t kv_whatif_nbytes(kv_whatif *whatif);
/* Audit of all stores: 0, or the number of the broken rule. */
int kv_whatif_check(kv_whatif *whatif);

#endif
