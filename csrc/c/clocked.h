/* Loops of core calls under a clock, for benchmarks: what C costs without Python around it.
 *
 * Single calls are timed with CLOCK_MONOTONIC, which is read without a system call: the thread's CPU clock would cost
 * as much as what is measured. A neighbour that takes the core away shows in the last percentiles only.
 */
#ifndef KV_CLOCKED_H
#define KV_CLOCKED_H

#include "index.h"
#include "lease.h"

/* ns[i] of nothing: what reading the clock adds to every figure below. */
void kv_time_nothing(uint32_t num, uint32_t *ns);
/* ns[i] of one acquire and release of the prefix keys[i], of num_keys (<= KV_GROUP) keys that are in cache, of the
 * namespace `space` or, with KV_NONE, of any. */
void kv_time_leases(const kv_index *index, kv_table *table, uint32_t space, const uint8_t *keys, uint32_t num_keys,
                    uint32_t num_prefixes, uint32_t *ns);
/* ns[i] of only reading the cache lines which that takes, each batch prefetched: home buckets, then records `ids`. */
void kv_time_lines(const kv_index *index, const uint8_t *keys, const uint32_t *ids, uint32_t num_keys,
                   uint32_t num_prefixes, uint32_t *ns);

/* One question over a socket of datagrams and its answer, in bytes; a question has at least four. */
typedef struct {
    uint32_t request_nbytes, reply_nbytes;
} kv_exchange;
#define KV_EXCHANGE_NBYTES_MAX (1u << 16)

/* ns[i] of asking all `exchanges` one after the other, to a peer that is in kv_answer_pings. 0, or -errno. */
int kv_time_pings(int fd, const kv_exchange *exchanges, uint32_t num_exchanges, uint32_t num, uint32_t *ns);
/* Answer until the other end is closed. */
void kv_answer_pings(int fd);

#endif
