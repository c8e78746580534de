/* Two threads, one question: may a lease and an eviction both succeed on one block?
 *
 *   dekker MODE ROUNDS CPU CPU
 *
 * MODE evict: the writer calls kv_evict_near, whole. MODE mark: it marks a block and looks at its leases at once, with
 * the writer's own fence between. kv_evict_near clears 10 KiB between the two, which drains the store buffer of today's
 * processors and hides a missing writer's fence from the first mode. MODE turn: as mark, and the group's turn before was
 * revoked: leases of the new one count. MODE close: it closes the table and looks for leases.
 * In each round both threads start together; who loses starts earlier next time, so that they stay neck and neck.
 * Ends at ROUNDS, or with the first round that both won. Prints "rounds both reader writer".
 */
#include "evict.c" /* for the writer's fence, which is nobody else's business */
#include "lease.h"

#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>

#define CHAIN 8
#define SLOT_NBYTES 4096
#define LEAD_MAX 4000 /* turns of an empty loop that one thread starts later than the other */

static kv_index index_;
static kv_table table;
static uint8_t keys[CHAIN * KV_KEY_NBYTES];
static uint32_t ids[CHAIN];
static _Alignas(64) _Atomic uint64_t steps_begun; /* by the writer: it leads */
static _Alignas(64) _Atomic uint64_t steps_done;  /* by the reader */
static _Alignas(64) int num_held, reader_delay;   /* of this round; they belong to whom the steps give the turn */

static void pin(int cpu) {
    cpu_set_t cpus;
    CPU_ZERO(&cpus);
    CPU_SET(cpu, &cpus);
    if (pthread_setaffinity_np(pthread_self(), sizeof cpus, &cpus) != 0) abort();
}

static void wait_for(_Atomic uint64_t *steps, uint64_t step) {
    for (int spins = 0; atomic_load_explicit(steps, memory_order_acquire) < step; spins++)
        if (spins > 20000) sched_yield(), spins = 0; /* the other thread's core has other work */
}

static void step(_Atomic uint64_t *steps, uint64_t step) { atomic_store_explicit(steps, step, memory_order_release); }

static uint32_t next_random(uint32_t random) { return random * 1664525 + 1013904223; }

static void delay(int turns) {
    for (volatile int i = 0; i < turns; i++) {}
}

static void *read_rounds(void *cpu) {
    pin(*(int *)cpu);
    for (uint64_t at = 1;; at += 3) {
        kv_held held;
        uint32_t near, total;
        wait_for(&steps_begun, at);
        if (atomic_load_explicit(&steps_begun, memory_order_relaxed) == UINT64_MAX) return NULL;
        kv_index_match(&index_, KV_NONE, keys, CHAIN, &near, &total); /* the records lie in this core's cache now */
        step(&steps_done, at);
        wait_for(&steps_begun, at + 1);
        delay(reader_delay);
        kv_lease_acquire(&index_, &table, KV_NONE, keys, CHAIN, 0, &held);
        num_held = (int)held.num_blocks;
        step(&steps_done, at + 1);
        wait_for(&steps_begun, at + 2);
        kv_lease_release(&table, &held);
        step(&steps_done, at + 2);
    }
}

static void insert(void) {
    static const uint32_t places[CHAIN]; /* nothing reads a block's bytes here */
    uint8_t plan[CHAIN], committed[CHAIN];
    uint32_t fresh[CHAIN], published[CHAIN], num_fresh = 0;
    kv_index_plan(&index_, keys, CHAIN, 0, plan, ids);
    kv_index_begin(&index_, keys, CHAIN, 0, 1, plan, ids, places, CHAIN);
    for (int i = 0; i < CHAIN; i++)
        if (plan[i] == KV_WANTED) fresh[num_fresh++] = ids[i];
    kv_index_commit(&index_, fresh, num_fresh, 0, committed, published);
}

/* How many of the chain's last blocks the writer took. */
static int evict(kv_freed *freed) {
    freed->num_near = 0;
    return (int)(kv_evict_near(&index_, CHAIN * SLOT_NBYTES, 0, KV_LEVEL_ANY, freed) / SLOT_NBYTES);
}

static int mark(void) {
    int taken = CHAIN;
    kv_set_state(&index_, ids[0], KV_EVICT, 0);
    writer_fence();
    if (is_revoked(&table, 0)) return taken;
    for (int entry = 0; entry < CHAIN; entry++)
        if (atomic_load_explicit(&table.shared->lease[entry], memory_order_relaxed) == ids[0] + 1) taken = 0;
    return taken;
}

static int close_table(void) {
    atomic_store_explicit(&table.shared->is_closed, 1, memory_order_relaxed);
    writer_fence();
    return kv_lease_num_held(&table) == 0;
}

/* How much of what the reader may have at most the writer has taken. */
static int take_in_mode(char mode, kv_freed *freed) {
    return mode == 'e' ? evict(freed) : mode == 'c' ? CHAIN * close_table() : mark();
}

static void prepare(char mode) {
    atomic_store_explicit(&table.shared->is_closed, 0, memory_order_relaxed);
    if (mode == 't') kv_evict_revoke(&index_, &table, 0, atomic_load_explicit(&table.turns[0].turn, memory_order_relaxed));
    if (mode != 'e') kv_set_state(&index_, ids[0], KV_VALID, 0);
    else insert();
}

int main(int argc, char **argv) {
    if (argc != 5) return 2;
    int cpus[2] = {atoi(argv[3]), atoi(argv[4])}, lead = 0;
    const char mode = argv[1][0];
    uint64_t rounds = strtoull(argv[2], NULL, 10), round = 0, both = 0, reader = 0, writer = 0;
    static const uint64_t seed[2] = {0x1234567, 0x7654321};
    uint32_t near_places[2 * KV_BATCH], far_places[2 * KV_BATCH], jitter = 1;
    uint16_t near_ns[2 * KV_BATCH], far_ns[2 * KV_BATCH];
    kv_freed freed = {near_places, far_places, near_ns, far_ns, 2 * KV_BATCH, 0, 0, 0};
    for (int i = 0; i < CHAIN * KV_KEY_NBYTES; i++) keys[i] = (uint8_t)((jitter = next_random(jitter)) >> 24);
    if (kv_index_create(&index_, 4 * CHAIN, seed, &kv_lru, 0) < 0 || kv_table_create(&table, CHAIN) < 0) return 3;
    index_.namespaces[1] = (kv_ns){.slot_nbytes = SLOT_NBYTES, .all_parts = 1};
    table.revoked = calloc(table.num_groups, sizeof(uint32_t));
    if (table.revoked == NULL) return 3;
    kv_evict_attach(&index_, &table);
    insert();
    pthread_t thread;
    pthread_create(&thread, NULL, read_rounds, &cpus[0]);
    pin(cpus[1]);
    uint64_t at = 1;
    for (; round < rounds && both == 0; round++, at += 3) {
        prepare(mode);
        jitter = next_random(jitter);
        int now = lead + (int)(jitter >> 26) - 32;
        reader_delay = now > 0 ? now : 0;
        step(&steps_begun, at);
        wait_for(&steps_done, at);
        uint32_t leased = kv_lease_used(&table); /* and the leases in this one's */
        for (int entry = 0; entry < CHAIN; entry++)
            leased += atomic_load_explicit(&table.shared->lease[entry], memory_order_relaxed);
        if (leased != 0) abort();
        step(&steps_begun, at + 1);
        delay(now < 0 ? -now : 0);
        int taken = take_in_mode(mode, &freed);
        wait_for(&steps_done, at + 1);
        both += num_held + taken > CHAIN;
        reader += num_held > CHAIN / 2;
        writer += taken > CHAIN / 2;
        if (num_held > CHAIN / 2 && lead < LEAD_MAX) lead++;
        if (num_held <= CHAIN / 2 && lead > -LEAD_MAX) lead--;
        step(&steps_begun, at + 2);
        wait_for(&steps_done, at + 2);
    }
    step(&steps_begun, UINT64_MAX);
    pthread_join(thread, NULL);
    printf("%lu %lu %lu %lu\n", round, both, reader, writer);
    prepare(mode);
    return kv_index_check(&index_);
}
