/* Known blocks: what is remembered of every block that was ever asked for, stored or not, within a limit.
 *
 * Found by 64 bits of the keyed hash of the block key. Over the limit a block that is not stored and was not asked for
 * in a long time is forgotten. Blocks are named by their number; 0 is none.
 */
#ifndef KV_KNOWN_H
#define KV_KNOWN_H

#include <stdint.h>

typedef struct {
    uint64_t fingerprint;
    uint32_t next;      /* in its bucket; also links unused ones */
    uint32_t cohort;    /* of its last request */
    uint32_t ended;     /* tick at which a request last ended with this block; 0: none did */
    uint16_t pace_ds;   /* of the conversation that ended here: tenths of a second between requests */
    uint8_t freq;       /* how often it was asked for, up to 255 */
    uint8_t kids : 2, is_stored : 1; /* blocks that were ever seen behind it, up to 3 */
} kv_known;
_Static_assert(sizeof(kv_known) == 24, "what is remembered of a block is to stay under 100 bytes, its cohort included");

typedef struct {
    kv_known *blocks;
    uint32_t *buckets; /* first of each, 0 for none */
    uint32_t mask;
    uint32_t blocks_max, num_used, unused, num_blocks;
    uint32_t hand;     /* where the search for one to forget goes on */
} kv_knowledge;

/* Room for `blocks_max`, at least one more than can be stored. 0 or -ENOMEM. */
int kv_knowledge_create(kv_knowledge *knowledge, uint32_t blocks_max);
void kv_knowledge_destroy(kv_knowledge *knowledge);
uint32_t kv_known_find(const kv_knowledge *knowledge, uint64_t fingerprint);
/* What finding it will need: its bucket, and then the first block there. */
void kv_known_prefetch(const kv_knowledge *knowledge, uint64_t fingerprint);
void kv_known_prefetch_first(const kv_knowledge *knowledge, uint64_t fingerprint);
/* One that is not known yet; 0 when there is no room: forget one first. */
uint32_t kv_known_add(kv_knowledge *knowledge, uint64_t fingerprint);
/* The next ones that are not stored, up to `num` of them; returns how many. */
uint32_t kv_known_candidates(kv_knowledge *knowledge, uint32_t *numbers, uint32_t num);
void kv_known_forget(kv_knowledge *knowledge, uint32_t number);

#endif
