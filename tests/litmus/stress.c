/* Readers that lease and verify blocks while one writer does everything that a writer can do to them.
 *
 *   stress SECONDS SEED NUM_READERS
 *
 * Every block's bytes are made of its key; a place that came free is overwritten at once. Readers look at each leased
 * block twice. Ends at the time, or with the first wrong byte. Prints "acquires blocks bad evicted promoted removed".
 * Exit 0: no bad read and, after everything was removed, no lease, entry or place left over.
 */
#include "evict.h"
#include "policy.h"
#include "lease.h"

#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define NUM_CHAINS 64
#define CHAIN 16
#define NUM_NEAR 160 /* places; less than the chains together, so that ids and places are used again at once */
#define NUM_FAR 256
#define WORDS 32 /* of a block */
#define READERS_MAX 16
#define CAPACITY 1024

typedef uint64_t block[WORDS];
typedef struct {
    uint32_t place[NUM_FAR], num_free, num_all;
    block bytes[NUM_FAR];
} tier;

static kv_index index_;
static kv_table tables[READERS_MAX];
static tier near_tier, far_tier;
static uint8_t keys[NUM_CHAINS][CHAIN * KV_KEY_NBYTES];
static _Atomic int stop;
static _Atomic uint64_t num_acquires, num_blocks, num_bad, num_promoted;
static uint64_t random_state;

static uint64_t mixed(uint64_t word) {
    word = (word ^ word >> 30) * 0xbf58476d1ce4e5b9ULL;
    word = (word ^ word >> 27) * 0x94d049bb133111ebULL;
    return word ^ word >> 31;
}
static uint32_t below(uint64_t *state, uint32_t end) {
    return (uint32_t)(mixed(*state += 0x9e3779b97f4a7c15ULL) >> 32) % end;
}

/* Volatile: a reader's second look must not be taken from its first. */
static void stamp(volatile uint64_t *bytes, uint64_t word) {
    for (int i = 0; i < WORDS; i++) bytes[i] = word + (uint64_t)i;
}
static int is_stamped(const volatile uint64_t *bytes, uint64_t word) {
    for (int i = 0; i < WORDS; i++)
        if (bytes[i] != word + (uint64_t)i) return 0;
    return 1;
}

/* ---- readers ---- */

static void verify(const kv_table *table, const kv_held *held, const uint8_t *wanted) {
    uint32_t ids[CHAIN];
    kv_lease_ids(table, held, ids);
    for (int look = 0; look < 2; look++)
        for (uint32_t i = 0; i < held->num_near; i++) {
            const kv_record *record = &index_.records[ids[i]];
            const uint8_t *key = wanted + (size_t)i * KV_KEY_NBYTES;
            if (!kv_is_near(record) || !is_stamped(near_tier.bytes[kv_record_place(record)], kv_load_word(key, 0)))
                atomic_fetch_add(&num_bad, 1);
        }
}

static void *read_chains(void *number) {
    kv_table *table = &tables[(intptr_t)number];
    uint64_t state = (uint64_t)(intptr_t)number + 77;
    while (!atomic_load_explicit(&stop, memory_order_relaxed)) {
        kv_held held[2];
        const uint8_t *wanted[2];
        for (int i = 0; i < 2; i++) { /* two leases at a time: groups come back in another order than they went */
            wanted[i] = keys[below(&state, NUM_CHAINS)];
            kv_lease_acquire(&index_, table, KV_NONE, wanted[i], 1 + below(&state, CHAIN), 1, &held[i]);
            verify(table, &held[i], wanted[i]);
        }
        for (int i = 0; i < 2; i++) {
            verify(table, &held[i], wanted[i]);
            atomic_fetch_add_explicit(&num_blocks, held[i].num_near, memory_order_relaxed);
            kv_lease_release(table, &held[i]);
        }
        atomic_fetch_add_explicit(&num_acquires, 2, memory_order_relaxed);
    }
    return NULL;
}

/* ---- the writer ---- */

static void give(tier *to, const uint32_t *places, uint32_t num) {
    for (uint32_t i = 0; i < num; i++) {
        stamp(to->bytes[places[i]], ~0ULL / 3); /* whoever still reads it sees that */
        to->place[to->num_free++] = places[i];
    }
}
static uint32_t take(tier *from, uint32_t num, uint32_t *places) {
    uint32_t taken = 0;
    while (taken < num && from->num_free > 0) places[taken++] = from->place[--from->num_free];
    return taken;
}
static void give_freed(kv_freed *freed) {
    give(&near_tier, freed->near_places, freed->num_near);
    give(&far_tier, freed->far_places, freed->num_far);
    freed->num_near = freed->num_far = 0;
}

static void put(const uint8_t *chain, uint32_t num_keys, int keep) {
    uint8_t plan[CHAIN], committed[CHAIN];
    uint32_t ids[CHAIN], places[CHAIN], mine[CHAIN], published[CHAIN], num_mine = 0;
    uint32_t wanted = kv_index_plan(&index_, chain, num_keys, 0, plan, ids);
    uint32_t taken = take(&near_tier, wanted, places);
    uint32_t used = kv_index_begin(&index_, chain, num_keys, 0, 1, plan, ids, places, taken);
    give(&near_tier, places + used, taken - used);
    for (uint32_t i = 0; i < num_keys; i++) {
        if (plan[i] != KV_WANTED || ids[i] == KV_NONE) continue;
        stamp(near_tier.bytes[kv_record_place(&index_.records[ids[i]])], kv_load_word(chain + i * KV_KEY_NBYTES, 0));
        mine[num_mine++] = ids[i];
    }
    if (keep) kv_index_commit(&index_, mine, num_mine, 0, committed, published);
    else kv_index_abandon(&index_, mine, num_mine, 0);
}

static uint32_t find(const uint8_t *chain, uint32_t *ids) {
    uint32_t num = 0;
    for (; num < CHAIN; num++)
        if ((ids[num] = kv_index_find(&index_, chain + num * KV_KEY_NBYTES)) == KV_NONE) break;
    return num;
}

/* A move runs to its end in one step of the writer, with a removal in the middle now and then. */
static void write_back(const uint8_t *chain, int removes) {
    uint32_t ids[CHAIN], places[CHAIN], num = find(chain, ids);
    uint64_t words[CHAIN], checksums[CHAIN] = {0};
    uint8_t marked[CHAIN], written[CHAIN], kept[CHAIN];
    num = take(&far_tier, num, places);
    for (uint32_t i = 0; i < num; i++) words[i] = kv_record_word(&index_.records[ids[i]]);
    kv_writeback_mark(&index_, 1, ids, words, num, marked);
    if (removes && num > 0) kv_index_remove(&index_, &ids[num / 2], 1, KV_WAS_REMOVED);
    for (uint32_t i = 0; i < num; i++) {
        written[i] = marked[i];
        if (!marked[i]) {
            give(&far_tier, &places[i], 1);
            continue;
        }
        memcpy(far_tier.bytes[places[i]], near_tier.bytes[kv_record_place(&index_.records[ids[i]])], sizeof(block));
        kv_writeback_unmark(&index_, &ids[i], &places[i], checksums, &written[i], 1, &kept[i]);
        if (!kept[i]) give(&far_tier, &places[i], 1);
    }
}

static void promote(const uint8_t *chain, int removes) {
    uint32_t ids[CHAIN], places[CHAIN], num = find(chain, ids);
    uint8_t marked[CHAIN], kept, read = 1;
    num = take(&near_tier, num, places);
    kv_promote_mark(&index_, ids, num, marked);
    if (removes && num > 0) kv_index_remove(&index_, &ids[num / 2], 1, KV_WAS_REMOVED);
    for (uint32_t i = 0; i < num; i++) {
        kept = 0;
        if (marked[i]) {
            memcpy(near_tier.bytes[places[i]], far_tier.bytes[index_.links[ids[i]].far], sizeof(block));
            kv_promote_unmark(&index_, &ids[i], &places[i], &read, 1, &kept);
        }
        if (!kept) give(&near_tier, &places[i], 1);
        num_promoted += kept;
    }
}

static void carry(const uint8_t *chain) {
    uint32_t ids[CHAIN], places[CHAIN], num = find(chain, ids);
    uint8_t marked[CHAIN], kept, written = 1;
    num = take(&far_tier, num, places);
    kv_carry_mark(&index_, ids, num, marked);
    for (uint32_t i = 0; i < num; i++) {
        uint32_t old = index_.links[ids[i]].far;
        kept = 0;
        if (marked[i]) {
            memcpy(far_tier.bytes[places[i]], far_tier.bytes[old], sizeof(block));
            kv_carry_unmark(&index_, &ids[i], &places[i], &written, 1, &kept);
        }
        give(&far_tier, kept ? &old : &places[i], 1);
    }
}

static void write_once(kv_freed *freed) {
    const uint8_t *chain = keys[below(&random_state, NUM_CHAINS)];
    uint32_t ids[CHAIN], choice = below(&random_state, 100);
    uint64_t some = 1 + below(&random_state, 2 * CHAIN);
    if (choice < 40) put(chain, 1 + below(&random_state, CHAIN), choice < 38);
    else if (choice < 60) kv_evict_near(&index_, some, choice < 45, KV_LEVEL_ANY, freed);
    else if (choice < 65) kv_evict_far(&index_, some, freed);
    else if (choice < 70) kv_evict_these(&index_, ids, find(chain, ids), 0, freed);
    else if (choice < 80) write_back(chain, choice == 70);
    else if (choice < 90) promote(chain, choice == 80);
    else if (choice < 93) carry(chain);
    else if (choice < 96 && find(chain, ids) > 0) kv_index_remove(&index_, ids, 1, KV_WAS_REMOVED);
    else kv_evict_drain(&index_);
    kv_evict_reap(&index_, freed);
    give_freed(freed);
}

static int left_over(uint32_t num_readers) {
    for (uint32_t i = 0; i < num_readers; i++) {
        if (kv_lease_used(&tables[i]) != 0 || tables[i].groups_free != tables[i].num_groups) return 10;
        for (uint32_t entry = 0; entry < tables[i].shared->entries_max; entry++)
            if (tables[i].shared->lease[entry] != 0) return 11;
    }
    if (near_tier.num_free != NUM_NEAR || far_tier.num_free != NUM_FAR) return 12;
    const kv_counts *counts = &index_.counts;
    return counts->num_entries || counts->num_removed || counts->num_near || counts->num_far ? 13 : 0;
}

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    double seconds = atof(argv[1]);
    uint32_t num_readers = (uint32_t)atoi(argv[3]), near_places[CAPACITY], far_places[CAPACITY];
    uint16_t near_ns[CAPACITY], far_ns[CAPACITY];
    kv_freed freed = {near_places, far_places, near_ns, far_ns, CAPACITY, 0, 0, 0};
    random_state = strtoull(argv[2], NULL, 10);
    uint64_t seed[2] = {random_state, random_state | 1}, removed = 0;
    pthread_t threads[READERS_MAX];
    struct timespec began, now;
    if (num_readers > READERS_MAX || kv_index_create(&index_, 2 * NUM_NEAR, seed, &kv_lru, 0) < 0) return 3;
    index_.namespaces[1] = (kv_ns){.slot_nbytes = 1, .all_parts = 1};
    for (uint32_t i = 0; i < NUM_FAR; i++) give(&far_tier, &i, 1);
    for (uint32_t i = 0; i < NUM_NEAR; i++) give(&near_tier, &i, 1);
    for (int i = 0; i < NUM_CHAINS * CHAIN * KV_KEY_NBYTES; i += 8) {
        uint64_t word = mixed(seed[0] + (uint64_t)i);
        memcpy(&keys[0][0] + i, &word, 8);
    }
    for (intptr_t i = 0; i < num_readers; i++) {
        if (kv_table_create(&tables[i], 2 * KV_GROUP) < 0 || kv_evict_attach(&index_, &tables[i]) < 0) return 3;
        pthread_create(&threads[i], NULL, read_chains, (void *)i);
    }
    clock_gettime(CLOCK_MONOTONIC, &began);
    int broken = 0;
    do {
        for (int i = 0; i < 2000; i++) write_once(&freed);
        broken = kv_index_check(&index_);
        clock_gettime(CLOCK_MONOTONIC, &now);
    } while (!broken && !num_bad &&
             (double)(now.tv_sec - began.tv_sec) + 1e-9 * (double)(now.tv_nsec - began.tv_nsec) < seconds);
    stop = 1;
    for (uint32_t i = 0; i < num_readers; i++) pthread_join(threads[i], NULL);
    removed = kv_index_clear(&index_, 1);
    kv_evict_reap(&index_, &freed);
    give_freed(&freed);
    printf("%lu %lu %lu %lu %lu %lu\n", num_acquires, num_blocks, num_bad, index_.counts.evicted_near, num_promoted,
           removed);
    if (!broken && !num_bad) broken = kv_index_check(&index_);
    if (broken) fprintf(stderr, "rule %d of the index is broken\n", broken);
    return broken ? 4 : num_bad ? 5 : left_over(num_readers);
}
