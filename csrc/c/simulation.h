/* A store without bytes: index, slots, put path and one lease table as a daemon has them, and no arena.
 *
 * Requests are played in their order, each as one client: lease the chain, let go, reserve it, commit what was granted.
 * What is hit and what is kept is decided by the same code as in a daemon, without a far tier.
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

/* `capacity_nbytes`: what stored blocks may take in slots, of which there are `arena_nbytes`; `ghosts_max`: blocks that
 * its policy may remember beside them; `chain_max`: blocks of the longest request; `share`: of all blocks, of which it
 * is told so many. */
typedef struct {
    const kv_policy *policy;
    uint64_t capacity_nbytes, arena_nbytes;
    uint32_t entries_max, ghosts_max, chain_max;
    float share;
} kv_simulation_size;

/* A request for the chain `keys`; its blocks take `slot_nbytes` each. So many of the first ones were looked up before. */
typedef struct {
    const uint8_t *keys;
    uint32_t num_keys;
    uint32_t num_told;
    uint16_t ns;
    uint64_t now_ms, slot_nbytes;
    kv_hint hint;
} kv_simulation_request;

/* `prefix`: leading blocks that were stored; `blocks`: stored anywhere in it; `fills`: stored because of it. */
typedef struct {
    uint32_t prefix, blocks, fills;
} kv_simulation_outcome;

/* 0, or -errno and nothing to destroy. */
int kv_simulation_create(kv_simulation *simulation, const kv_simulation_size *size);
void kv_simulation_destroy(kv_simulation *simulation);
/* A lookup that found all of it in another store; how many leading blocks are stored here. The others come to be stored,
 * as whoever asked would have seen to, and only the lookup is told to the policy. */
uint32_t kv_simulation_look(kv_simulation *simulation, const kv_simulation_request *request);
/* The whole of a request. 0 when the store refused it. Where a chain is longer than the capacity, less is granted: that
 * is no refusal. */
int kv_simulation_ask(kv_simulation *simulation, const kv_simulation_request *request, kv_simulation_outcome *outcome);

/* For a trace: at most `capacity` blocks of a slot of one page stored at a time, of `num_ids` that will ever be named. */
int kv_simulation_size_of(kv_simulation_size *size, const kv_policy *policy, uint64_t capacity, uint32_t num_ids,
                          uint32_t chain_max);
/* A key for each of `num_ids`: `keys` has room for as many times KV_KEY_NBYTES. */
void kv_simulation_keys(uint8_t *keys, uint32_t num_ids);
/* Play requests [first, last). Returns how many of them the store refused, which it never should; `*cpu_ns`: the thread's
 * processor time for them all. */
uint32_t kv_simulation_play(kv_simulation *simulation, const kv_requests *requests, const uint8_t *keys, uint32_t first,
                            uint32_t last, const kv_request_hits *hits, uint64_t *cpu_ns);
/* Audit: 0, or the number of the broken rule: of the index, of the slots + 100, or 200: they differ. */
int kv_simulation_check(const kv_simulation *simulation);

#endif
