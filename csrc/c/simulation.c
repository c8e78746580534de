#include "simulation.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "eviction.h"
#include "thread_clock.h"
#include "xxh3.h"

#define NS 1 /* of a trace */
#define SLOT_NBYTES KV_PLACE_NBYTES
#define SPARE_CHUNKS 4 /* slots are never what is short: capacity is */

static int create_parts(kv_simulation *simulation, const kv_simulation_size *size) {
    static const uint64_t seed[2] = {0x9c41e3d2b7a65f08, 0x37d5f1a9026bce84}; /* the same run, the same hits */
    int code = kv_index_create(&simulation->index, size->entries_max, seed, size->policy, size->ghosts_max);
    if (code < 0) return code;
    if (size->policy->sampled != NULL) size->policy->sampled(&simulation->index, size->share);
    code = kv_table_create(&simulation->table, size->chain_max);
    if (code < 0) return code;
    kv_evict_attach(&simulation->index, &simulation->table);
    if (kv_slots_create(&simulation->slots, size->arena_nbytes) < 0) return -ENOMEM;
    return kv_put_create(&simulation->put, &simulation->index, &simulation->slots, size->capacity_nbytes, 1);
}

int kv_simulation_create(kv_simulation *simulation, const kv_simulation_size *size) {
    memset(simulation, 0, sizeof *simulation);
    simulation->chain_max = size->chain_max;
    simulation->keys = malloc((size_t)simulation->chain_max * KV_KEY_NBYTES);
    simulation->plan = malloc(simulation->chain_max);
    simulation->ids = malloc((size_t)simulation->chain_max * sizeof(uint32_t));
    simulation->places = malloc((size_t)simulation->chain_max * sizeof(uint32_t));
    int code = -ENOMEM;
    if (simulation->keys && simulation->plan && simulation->ids && simulation->places)
        code = create_parts(simulation, size);
    if (code < 0) kv_simulation_destroy(simulation);
    return code;
}

int kv_simulation_size_of(kv_simulation_size *size, const kv_policy *policy, uint64_t capacity, uint32_t num_ids,
                          uint32_t chain_max) {
    chain_max = chain_max > 0 ? chain_max : 1;
    const uint64_t stored_max = capacity < num_ids ? capacity : num_ids;
    const uint64_t entries_max = stored_max + chain_max; /* looked at before room is made */
    if (entries_max >= KV_NONE) return -EOVERFLOW;
    /* Nothing is forgotten for want of room, as in a daemon that remembers its default number of blocks. */
    *size = (kv_simulation_size){.policy = policy, .entries_max = (uint32_t)entries_max, .ghosts_max = num_ids};
    size->capacity_nbytes = capacity * SLOT_NBYTES;
    size->arena_nbytes = (stored_max / KV_CHUNK_PLACES + SPARE_CHUNKS) * KV_CHUNK_PLACES * SLOT_NBYTES;
    size->chain_max = chain_max;
    size->share = 1;
    return 0;
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

/* Blocks of a namespace that changed its size are not worth keeping apart. */
static void begin(kv_simulation *simulation, const kv_simulation_request *request) {
    kv_index *index = &simulation->index;
    kv_ns *space = &index->namespaces[request->ns];
    index->now_s = (uint32_t)(request->now_ms / 1000);
    kv_eviction_tend(index, request->now_ms); /* as a store's mover does */
    if (space->slot_nbytes == request->slot_nbytes) return;
    if (space->num_entries > 0) {
        kv_index_clear(index, request->ns);
        kv_put_reap(&simulation->put);
    }
    *space = (kv_ns){.slot_nbytes = request->slot_nbytes, .all_parts = 1};
}

static kv_held look(kv_simulation *simulation, const kv_simulation_request *request, int counted) {
    kv_held held;
    kv_lease_acquire(&simulation->index, &simulation->table, request->ns, request->keys, request->num_keys, counted,
                     &held);
    const kv_held found = held;
    kv_lease_release(&simulation->table, &held);
    return found;
}

static enum kv_put_code reserve(kv_simulation *simulation, const kv_simulation_request *request, uint32_t flags) {
    kv_wish wish = {.keys = request->keys, .num_keys = request->num_keys, .ns = request->ns, .hint = request->hint};
    wish.flags = flags | KV_LATE | KV_PAST_QUOTA | KV_PAST_ENTRIES;
    kv_grant grant = {.plan = simulation->plan, .ids = simulation->ids, .places = simulation->places};
    return kv_put_reserve(&simulation->put, &simulation->table, &wish, &grant);
}

uint32_t kv_simulation_look(kv_simulation *simulation, const kv_simulation_request *request) {
    begin(simulation, request);
    const uint32_t prefix = look(simulation, request, 0).num_blocks;
    if (prefix < request->num_keys && reserve(simulation, request, KV_AGAIN) == KV_PUT_OK)
        commit(simulation, request->num_keys);
    look(simulation, request, 1);
    return prefix;
}

int kv_simulation_ask(kv_simulation *simulation, const kv_simulation_request *request, kv_simulation_outcome *outcome) {
    begin(simulation, request);
    kv_held found = look(simulation, request, request->num_told == 0);
    if (request->num_told > 0 && found.num_blocks > request->num_told) found = look(simulation, request, 1);
    *outcome = (kv_simulation_outcome){.prefix = found.num_blocks, .blocks = found.num_blocks};
    if (reserve(simulation, request, 0) != KV_PUT_OK) return 0;
    outcome->blocks = 0;
    for (uint32_t i = 0; i < request->num_keys; i++) outcome->blocks += simulation->plan[i] == KV_PRESENT;
    outcome->fills = commit(simulation, request->num_keys);
    return found.stop == KV_STOP_END || found.stop == KV_STOP_MISS;
}

uint32_t kv_simulation_play(kv_simulation *simulation, const kv_requests *requests, const uint8_t *keys, uint32_t first,
                            uint32_t last, const kv_request_hits *hits, uint64_t *cpu_ns) {
    uint32_t num_refused = 0;
    uint64_t began_ns = kv_thread_ns();
    for (uint32_t number = first; number < last; number++) {
        const uint32_t *ids = requests->ids + requests->starts[number];
        kv_simulation_request request = {.keys = simulation->keys, .num_keys = requests->num_blocks[number], .ns = NS};
        kv_simulation_outcome outcome = {0};
        for (uint32_t i = 0; i < request.num_keys; i++)
            memcpy(simulation->keys + (size_t)i * KV_KEY_NBYTES, keys + (size_t)ids[i] * KV_KEY_NBYTES, KV_KEY_NBYTES);
        request.now_ms = requests->times_ms[number];
        request.slot_nbytes = SLOT_NBYTES;
        request.hint = (kv_hint){.ending = requests->stops[number], .output_tokens = requests->output_tokens[number]};
        if (request.num_keys > 0) num_refused += !kv_simulation_ask(simulation, &request, &outcome);
        else begin(simulation, &request);
        hits->prefix[number] = outcome.prefix;
        hits->blocks[number] = outcome.blocks;
        hits->fills[number] = outcome.fills;
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
