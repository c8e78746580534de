/* A store without bytes: index, slots, put path and one lease table as a daemon has them, and no arena.
 *
 * Requests are played in their order, each as one client: lease the chain, let go, reserve it, commit what was granted.
 * What is hit and what is kept is decided by the same code as in a daemon, with blocks of one slot each and no far tier.
 */
#ifndef KV_SIMULATION_H
#define KV_SIMULATION_H

#include "policy.h"
#include "put.h"
#include "requests.h"

typedef struct {
    kv_index index;
    kv_slots slots;
    kv_put put;
    kv_table table;
    uint32_t chain_max;
    /* of one request; room for chain_max each */
    uint8_t *keys, *plan;
    uint32_t *ids, *places;
} kv_simulation;

/* At most `capacity` blocks stored at a time, of `num_ids` that will ever be named; no request has more than `chain_max`.
 * 0, or -errno and nothing to destroy. */
int kv_simulation_create(kv_simulation *simulation, const kv_policy *policy, uint64_t capacity, uint32_t num_ids,
                         uint32_t chain_max);
void kv_simulation_destroy(kv_simulation *simulation);
/* A key for each of `num_ids`: `keys` has room for as many times KV_KEY_NBYTES. */
void kv_simulation_keys(uint8_t *keys, uint32_t num_ids);
/* Play requests [first, last). Returns how many of them the store refused, which it never should; `*cpu_ns`: the thread's
 * processor time for them all. */
uint32_t kv_simulation_play(kv_simulation *simulation, const kv_requests *requests, const uint8_t *keys, uint32_t first,
                            uint32_t last, const kv_request_hits *hits, uint64_t *cpu_ns);
/* Audit: 0, or the number of the broken rule: of the index, of the slots + 100, or 200: they differ. */
int kv_simulation_check(const kv_simulation *simulation);

#endif
