/* A reader copies under a lease, the owner takes the lease away and uses the places again: does the reader find out?
 *
 *   revoke ROUNDS CPU CPU
 *
 * In each round the owner stores a chain, lets the reader be for a moment, revokes whatever it leases, evicts the chain
 * and overwrites its places. The reader leases, copies and asks kv_lease_intact, all the time. Ends at ROUNDS, or with
 * the first copy that is wrong and counts as intact. Prints "rounds intact revoked torn bad": copies that were intact,
 * that were not, of these those with wrong bytes, and wrong ones that counted as intact.
 */
#include "evict.h"
#include "policy.h"
#include "lease.h"

#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>

#define CHAIN 8
#define WORDS 512 /* of a block */
#define SLOT_NBYTES (WORDS * 8)
#define PAUSE_MAX 8192 /* turns of an empty loop: about as long as all blocks are being copied */

static kv_index index_;
static kv_table table;
static uint8_t keys[CHAIN * KV_KEY_NBYTES];
static volatile uint64_t memory[CHAIN][WORDS]; /* place → block */
static _Atomic int stop;
static _Atomic uint64_t num_bad;
static uint64_t num_intact, num_revoked, num_torn;

static void pin(int cpu) {
    cpu_set_t cpus;
    CPU_ZERO(&cpus);
    CPU_SET(cpu, &cpus);
    if (pthread_setaffinity_np(pthread_self(), sizeof cpus, &cpus) != 0) abort();
}

static void fill(int place, uint64_t word) {
    for (int i = 0; i < WORDS; i++) memory[place][i] = word + (uint64_t)i;
}

/* ---- the reader ---- */

static void *read_chains(void *cpu) {
    static uint64_t copy[CHAIN][WORDS];
    pin(*(int *)cpu);
    while (!atomic_load_explicit(&stop, memory_order_relaxed)) {
        kv_held held;
        uint32_t ids[CHAIN];
        kv_lease_acquire(&index_, &table, KV_NONE, keys, CHAIN, 0, &held);
        if (held.num_blocks == 0) continue;
        kv_lease_ids(&table, &held, ids);
#ifdef LOOK_FIRST
        int is_intact = kv_lease_intact(&table, &held);
#endif
        for (uint32_t block = 0; block < held.num_blocks; block++) {
            uint32_t place = kv_record_place(&index_.records[ids[block]]);
            for (int i = 0; i < WORDS; i++) copy[block][i] = memory[place][i];
        }
#ifndef LOOK_FIRST
        int is_intact = kv_lease_intact(&table, &held);
#endif
        int is_right = 1;
        for (uint32_t block = 0; block < held.num_blocks; block++)
            for (int i = 0; i < WORDS; i++)
                is_right &= copy[block][i] == kv_load_word(keys + block * KV_KEY_NBYTES, 0) + (uint64_t)i;
        num_intact += is_intact;
        num_revoked += !is_intact;
        num_torn += !is_intact && !is_right;
        if (is_intact && !is_right) atomic_fetch_add(&num_bad, 1);
        kv_lease_release(&table, &held);
    }
    return NULL;
}

/* ---- the owner ---- */

static void insert(void) {
    static const uint32_t places[CHAIN] = {0, 1, 2, 3, 4, 5, 6, 7};
    uint8_t plan[CHAIN], committed[CHAIN];
    uint32_t ids[CHAIN], published[CHAIN];
    kv_index_plan(&index_, keys, CHAIN, 0, plan, ids);
    kv_index_begin(&index_, keys, CHAIN, 0, 1, plan, ids, places, CHAIN);
    for (int i = 0; i < CHAIN; i++) fill(i, kv_load_word(keys + i * KV_KEY_NBYTES, 0));
    kv_index_commit(&index_, ids, CHAIN, 0, committed, published);
}

/* Until nothing of the chain is left: a lease that was taken meanwhile counts until it is revoked, too. */
static void take_back(kv_freed *freed) {
    while (index_.counts.num_near > 0) {
        uint32_t turn = atomic_load_explicit(&table.turns[0].turn, memory_order_relaxed);
        if (kv_lease_holds(&table, 0)) kv_evict_revoke(&index_, &table, 0, turn);
        freed->num_near = 0;
        kv_evict_near(&index_, CHAIN * SLOT_NBYTES, 0, KV_LEVEL_ANY, freed);
        for (uint32_t i = 0; i < freed->num_near; i++) fill((int)freed->near_places[i], ~0ULL / 3);
    }
}

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    int cpus[2] = {atoi(argv[2]), atoi(argv[3])};
    uint64_t rounds = strtoull(argv[1], NULL, 10), round = 0;
    static const uint64_t seed[2] = {0x1234567, 0x7654321};
    uint32_t near_places[2 * KV_BATCH], far_places[2 * KV_BATCH], random = 1;
    uint16_t near_ns[2 * KV_BATCH], far_ns[2 * KV_BATCH];
    kv_freed freed = {near_places, far_places, near_ns, far_ns, 2 * KV_BATCH, 0, 0, 0};
    for (int i = 0; i < CHAIN * KV_KEY_NBYTES; i++) keys[i] = (uint8_t)((random = random * 1664525 + 1013904223) >> 24);
    if (kv_index_create(&index_, 4 * CHAIN, seed, &kv_lru, 0) < 0 || kv_table_create(&table, CHAIN) < 0) return 3;
    index_.namespaces[1] = (kv_ns){.slot_nbytes = SLOT_NBYTES, .all_parts = 1};
    table.revoked = calloc(table.num_groups, sizeof(uint32_t));
    if (table.revoked == NULL) return 3;
    kv_evict_attach(&index_, &table);
    pthread_t thread;
    pthread_create(&thread, NULL, read_chains, &cpus[0]);
    pin(cpus[1]);
    for (; round < rounds && num_bad == 0; round++) {
        insert();
        random = random * 1664525 + 1013904223;
        for (volatile uint32_t i = 0; i < (random >> 8) % PAUSE_MAX; i++) {}
        take_back(&freed);
    }
    atomic_store(&stop, 1);
    pthread_join(thread, NULL);
    printf("%lu %lu %lu %lu %lu\n", round, num_intact, num_revoked, num_torn, (uint64_t)num_bad);
    return kv_index_check(&index_);
}
