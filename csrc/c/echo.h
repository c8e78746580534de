/* Echoes: what left a list of a tier by eviction, remembered for a while in the order in which it left.
 *
 * Found by 64 bits of the keyed hash of the block key, in one tier. An echo takes 24 bytes and its share of the buckets,
 * and the oldest of a list is the first to be forgotten. Echoes are named by their number; 0 is none.
 */
#ifndef KV_ECHO_H
#define KV_ECHO_H

#include "index.h"

#define KV_LISTS 2 /* of each tier */

typedef struct {
    uint64_t fingerprint;
    uint32_t next;         /* in its bucket; also links unused ones */
    uint32_t older, newer; /* in its list */
    uint32_t list;         /* number of the tier * KV_LISTS + that of the list */
} kv_echo;
_Static_assert(sizeof(kv_echo) == 24, "an echo takes no more than the links of a stored block");

typedef struct {
    kv_echo *echoes;
    uint32_t *buckets; /* first of each, 0 for none */
    uint32_t mask, echoes_max, num_used, unused;
    uint32_t oldest[2 * KV_LISTS], newest[2 * KV_LISTS];
    uint64_t length[2 * KV_LISTS];
} kv_echoes;

/* Room for `echoes_max`. 0 or -ENOMEM. */
int kv_echoes_create(kv_echoes *echoes, uint32_t echoes_max);
void kv_echoes_destroy(kv_echoes *echoes);
uint32_t kv_echo_find(const kv_echoes *echoes, enum kv_tier tier, uint64_t fingerprint);
void kv_echo_prefetch(const kv_echoes *echoes, uint64_t fingerprint);
/* The newest of a list, in place of what was remembered of the same block and tier. Without room for it the list loses
 * its oldest. */
void kv_echo_add(kv_echoes *echoes, enum kv_tier tier, uint32_t list, uint64_t fingerprint);
/* As new as one that has just been added. */
void kv_echo_renew(kv_echoes *echoes, uint32_t number);
void kv_echo_forget(kv_echoes *echoes, uint32_t number);
static inline uint64_t kv_echo_count(const kv_echoes *echoes, enum kv_tier tier, uint32_t list) {
    return echoes->length[tier * KV_LISTS + list];
}
static inline uint32_t kv_echo_oldest(const kv_echoes *echoes, enum kv_tier tier, uint32_t list) {
    return echoes->oldest[tier * KV_LISTS + list];
}
/* Memory that they have touched, at most. */
uint64_t kv_echoes_nbytes(const kv_echoes *echoes);
/* Audit: 0, or the number of the broken rule. */
int kv_echoes_check(const kv_echoes *echoes);

#endif
