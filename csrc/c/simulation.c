#include "simulation.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "thread_clock.h"
#include "xxh3.h"

#define NS 1
#define SLOT_NBYTES KV_PLACE_NBYTES
#define SPARE_CHUNKS 4 /* slots are never what is short: capacity is */

static int create_parts(kv_simulation *simulation, const kv_policy *policy, uint64_t capacity, uint32_t num_ids) {
    static const uint64_t seed[2] = {0x9c41e3d2b7a65f08, 0x37d5f1a9026bce84}; /* the same run, the same hits */
    uint64_t stored_max = capacity < num_ids ? capacity : num_ids;
    uint64_t entries_max = stored_max + simulation->chain_max; /* looked at before room is made */
    uint64_t num_chunks = stored_max / KV_CHUNK_PLACES + SPARE_CHUNKS;
    if (entries_max >= KV_NONE) return -EOVERFLOW;
    /* Nothing is forgotten for want of room, as in a daemon that remembers its default number of blocks. */
    int code = kv_index_create(&simulation->index, (uint32_t)entries_max, seed, policy, num_ids);
    if (code < 0) return code;
    simulation->index.namespaces[NS] = (kv_ns){.slot_nbytes = SLOT_NBYTES, .all_parts = 1};
    code = kv_table_create(&simulation->table, simulation->chain_max);
    if (code < 0) return code;
    kv_evict_attach(&simulation->index, &simulation->table);
    if (kv_slots_create(&simulation->slots, num_chunks * KV_CHUNK_PLACES * SLOT_NBYTES) < 0) return -ENOMEM;
    return kv_put_create(&simulation->put, &simulation->index, &simulation->slots, capacity * SLOT_NBYTES, 1);
}

int kv_simulation_create(kv_simulation *simulation, const kv_policy *policy, uint64_t capacity, uint32_t num_ids,
                         uint32_t chain_max) {
    memset(simulation, 0, sizeof *simulation);
    simulation->chain_max = chain_max > 0 ? chain_max : 1;
    simulation->keys = malloc((size_t)simulation->chain_max * KV_KEY_NBYTES);
    simulation->plan = malloc(simulation->chain_max);
    simulation->ids = malloc((size_t)simulation->chain_max * sizeof(uint32_t));
    simulation->places = malloc((size_t)simulation->chain_max * sizeof(uint32_t));
    int code = -ENOMEM;
    if (simulation->keys && simulation->plan && simulation->ids && simulation->places)
        code = create_parts(simulation, policy, capacity, num_ids);
    if (code < 0) kv_simulation_destroy(simulation);
    return code;
}

void kv_simulation_destroy(kv_simulation *simulation) {
    kv_put_destroy(&simulation->put);
    kv_slots_destroy(&simulation->slots);
    kv_index_destroy(&simulation->index);
    kv_table_destroy(&simulation->table);
    free(simulation->keys);
    free(simulation->plan);
    free(simulation->ids);
    free(simulation->places);
    memset(simulation, 0, sizeof *simulation);
}

void kv_simulation_keys(uint8_t *keys, uint32_t num_ids) {
    for (uint64_t half = 0; half < 2 * (uint64_t)num_ids; half++) {
        kv_hash128 hash = kv_xxh3_128(&half, sizeof half);
        memcpy(keys + half * sizeof hash, &hash, sizeof hash);
    }
}

/* Commit what was granted; how many blocks became visible. */
static uint32_t commit(kv_simulation *simulation, uint32_t num_keys) {
    uint32_t num_mine = 0;
    for (uint32_t i = 0; i < num_keys; i++)
        if (simulation->plan[i] == KV_WANTED && simulation->ids[i] != KV_NONE)
            simulation->ids[num_mine++] = simulation->ids[i];
    if (num_mine == 0) return 0;
    return num_mine - kv_put_commit(&simulation->put, simulation->ids, num_mine, 0);
}

typedef struct {
    uint32_t prefix, blocks, fills;
} outcome;

/* 0 when the store refused it. Where a chain is longer than the capacity, less is granted: that is no refusal. */
static int play_one(kv_simulation *simulation, uint32_t num_keys, const kv_hint *hint, outcome *out) {
    kv_held held;
    kv_lease_acquire(&simulation->index, &simulation->table, NS, simulation->keys, num_keys, 1, &held);
    enum kv_stop stop = (enum kv_stop)held.stop;
    *out = (outcome){.prefix = held.num_blocks, .blocks = held.num_blocks};
    kv_lease_release(&simulation->table, &held);
    kv_wish wish = {.keys = simulation->keys, .num_keys = num_keys, .ns = NS, .hint = *hint};
    wish.flags = KV_LATE | KV_PAST_QUOTA | KV_PAST_ENTRIES;
    kv_grant grant = {.plan = simulation->plan, .ids = simulation->ids, .places = simulation->places};
    if (kv_put_reserve(&simulation->put, &simulation->table, &wish, &grant) != KV_PUT_OK) return 0;
    out->blocks = 0;
    for (uint32_t i = 0; i < num_keys; i++) out->blocks += simulation->plan[i] == KV_PRESENT;
    out->fills = commit(simulation, num_keys);
    return stop == KV_STOP_END || stop == KV_STOP_MISS;
}

uint32_t kv_simulation_play(kv_simulation *simulation, const kv_requests *requests, const uint8_t *keys, uint32_t first,
                            uint32_t last, const kv_request_hits *hits, uint64_t *cpu_ns) {
    uint32_t num_refused = 0;
    uint64_t began_ns = kv_thread_ns();
    for (uint32_t number = first; number < last; number++) {
        const uint32_t *ids = requests->ids + requests->starts[number];
        uint32_t num_keys = requests->num_blocks[number];
        outcome out = {0};
        for (uint32_t i = 0; i < num_keys; i++)
            memcpy(simulation->keys + (size_t)i * KV_KEY_NBYTES, keys + (size_t)ids[i] * KV_KEY_NBYTES, KV_KEY_NBYTES);
        simulation->index.now_s = (uint32_t)(requests->times_ms[number] / 1000);
        simulation->index.now_ms = requests->times_ms[number];
        const kv_hint hint = {.ending = requests->stops[number], .output_tokens = requests->output_tokens[number]};
        if (num_keys > 0) num_refused += !play_one(simulation, num_keys, &hint, &out);
        hits->prefix[number] = out.prefix;
        hits->blocks[number] = out.blocks;
        hits->fills[number] = out.fills;
    }
    *cpu_ns = kv_thread_ns() - began_ns;
    return num_refused;
}

int kv_simulation_check(const kv_simulation *simulation) {
    int broken = kv_index_check(&simulation->index);
    if (broken) return broken;
    broken = kv_slots_check(&simulation->slots);
    if (broken) return broken + 100;
    return simulation->slots.num_blocks == simulation->index.counts.num_near ? 0 : 200;
}
