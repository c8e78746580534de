#include "lease.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int kv_table_create(kv_table *table, uint32_t entries_max) {
    memset(table, 0, sizeof *table);
    uint32_t num_groups = (entries_max + KV_GROUP - 1) / KV_GROUP;
    table->nbytes = kv_table_nbytes(num_groups);
    table->fd = memfd_create("kvstore-leases", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (table->fd < 0 || ftruncate(table->fd, (off_t)table->nbytes) != 0) goto failed;
    void *region = mmap(NULL, table->nbytes, PROT_READ | PROT_WRITE, MAP_SHARED, table->fd, 0);
    if (region == MAP_FAILED) goto failed;
    table->shared = region;
    table->shared->magic = KV_LEASE_MAGIC;
    table->shared->entries_max = num_groups * KV_GROUP;
    int code = kv_table_adopt(table, num_groups);
    if (code < 0) kv_table_destroy(table);
    return code;
failed: {
    int error = errno;
    if (table->fd >= 0) close(table->fd);
    return -error;
}
}

int kv_table_adopt(kv_table *table, uint32_t num_groups) {
    pthread_mutex_init(&table->lock, NULL);
    table->group_next = malloc(((size_t)num_groups + 1) * sizeof(uint32_t));
    if (table->group_next == NULL) return -ENOMEM;
    table->num_groups = table->groups_free = num_groups;
    table->touches_max = KV_TOUCHES;
    table->free_head = num_groups > 0 ? 0 : KV_NONE;
    table->turns = (kv_turn *)(table->shared->lease + (size_t)num_groups * KV_GROUP);
    for (uint32_t group = 0; group < num_groups; group++)
        table->group_next[group] = group + 1 < num_groups ? group + 1 : KV_NONE;
    return 0;
}

void kv_table_destroy(kv_table *table) {
    if (table->shared == NULL) return;
    munmap(table->shared, table->nbytes);
    if (table->fd >= 0) close(table->fd);
    free(table->group_next);
    free(table->revoked);
    pthread_mutex_destroy(&table->lock);
    table->shared = NULL;
}

uint32_t kv_lease_touches(const kv_table *table) {
    return atomic_load_explicit(&table->shared->touch_head, memory_order_relaxed) -
           atomic_load_explicit(&table->shared->touch_tail, memory_order_acquire);
}

uint32_t kv_lease_used(const kv_table *table) { return (table->num_groups - table->groups_free) * KV_GROUP; }

/* Take up to `wanted` groups; the list is linked through group_next. Returns how many. */
static uint32_t take_groups(kv_table *table, uint32_t wanted, uint32_t *head) {
    uint32_t taken = 0, last = KV_NONE, top = 0;
    *head = table->free_head;
    for (uint32_t group = table->free_head; taken < wanted && group != KV_NONE; group = table->group_next[group]) {
        last = group;
        if (group >= top) top = group + 1;
        uint32_t turn = atomic_load_explicit(&table->turns[group].turn, memory_order_relaxed);
        atomic_store_explicit(&table->turns[group].turn, turn + 1, memory_order_relaxed);
        taken++;
    }
    if (taken == 0) {
        *head = KV_NONE;
        return 0;
    }
    table->free_head = table->group_next[last];
    table->group_next[last] = KV_NONE;
    table->groups_free -= taken;
    /* Before any lease in these groups; the fence of the acquire orders it for the writer's scan. */
    if (top > atomic_load_explicit(&table->shared->groups_top, memory_order_relaxed))
        atomic_store_explicit(&table->shared->groups_top, top, memory_order_relaxed);
    return taken;
}

static void give_groups(kv_table *table, uint32_t head) {
    while (head != KV_NONE) {
        uint32_t next = table->group_next[head];
        table->group_next[head] = table->free_head;
        table->free_head = head;
        table->groups_free++;
        head = next;
    }
}

/* A hit leaves the id of its deepest block for the writer's eviction order; a full ring drops it. */
static void push_touch(kv_table *table, uint32_t id) {
    kv_leases *shared = table->shared;
    uint32_t head = atomic_load_explicit(&shared->touch_head, memory_order_relaxed);
    uint32_t tail = atomic_load_explicit(&shared->touch_tail, memory_order_acquire);
    if (head - tail >= KV_TOUCHES) return;
    shared->touch[head & (KV_TOUCHES - 1)] = id;
    atomic_store_explicit(&shared->touch_head, head + 1, memory_order_release);
}

/* First id at the home of a key whose tag fits and that is not `rejected`, else KV_NONE. A hint until the key is
 * compared under a lease. */
static inline uint32_t probe(const kv_index *index, const uint8_t *key, uint32_t skip) {
    uint64_t home = kv_home(index, key);
    uint64_t number = kv_home_bucket(index, home);
    uint32_t tag = kv_home_tag(home);
    for (uint64_t passed = 0; passed < index->num_buckets; passed++) {
        const kv_bucket *bucket = &index->buckets[number];
        for (int slot = 0; slot < KV_BUCKET_SLOTS; slot++) {
            uint64_t value = atomic_load_explicit(&bucket->slot[slot], memory_order_acquire);
            if ((uint32_t)(value >> 32) == tag && (uint32_t)value != 0 && skip-- == 0) return (uint32_t)value - 1;
        }
        if (atomic_load_explicit(&bucket->overflow, memory_order_acquire) == 0) break;
        if (++number == index->num_buckets) number = 0;
    }
    return KV_NONE;
}

enum verdict { HELD, BUSY, OTHER };

/* After the lease on `id` is visible: is it the wanted block, and may it be read? */
static inline enum verdict judge(const kv_record *record, uint32_t ns, const uint8_t *key) {
    uint8_t state = kv_state_of(record);
    if (state != KV_VALID && state != KV_EVICT) return OTHER;
    if (!kv_key_equals(record, key) || (ns != KV_NONE && record->ns != ns)) return OTHER;
    return state == KV_VALID ? HELD : BUSY;
}

/* The one-by-one path, for tag collisions and for entries that moved between probe and check. */
static enum verdict acquire_slowly(const kv_index *index, _Atomic uint32_t *lease, uint32_t ns, const uint8_t *key,
                                   uint32_t *id) {
    for (uint32_t skip = 0;; skip++) {
        *id = probe(index, key, skip);
        if (*id == KV_NONE) break;
        atomic_store_explicit(lease, *id + 1, memory_order_relaxed);
        atomic_thread_fence(memory_order_seq_cst);
        enum verdict verdict = judge(&index->records[*id], ns, key);
        if (verdict != OTHER) return verdict;
    }
    return OTHER;
}

/* One group: probe all with the homes and records prefetched, publish the leases, ONE fence, then check. */
static uint32_t acquire_group(const kv_index *index, _Atomic uint32_t *leases, uint32_t ns, const uint8_t *keys,
                              uint32_t num_keys, kv_held *held, uint32_t *deepest) {
    uint32_t ids[KV_GROUP];
    for (uint32_t i = 0; i < num_keys; i++)
        __builtin_prefetch(&index->buckets[kv_home_bucket(index, kv_home(index, keys + (size_t)i * KV_KEY_NBYTES))]);
    uint32_t probed = 0;
    for (; probed < num_keys; probed++) {
        uint32_t id = probe(index, keys + (size_t)probed * KV_KEY_NBYTES, 0);
        if (id == KV_NONE) break;
        __builtin_prefetch(&index->records[id]);
        ids[probed] = id;
        atomic_store_explicit(&leases[probed], id + 1, memory_order_relaxed);
    }
#ifndef KV_NO_READER_FENCE
    atomic_thread_fence(memory_order_seq_cst);
#else
    atomic_signal_fence(memory_order_seq_cst); /* the litmus test proves that this is not enough */
#endif
    uint32_t got = 0;
    for (; got < probed; got++) {
        const uint8_t *key = keys + (size_t)got * KV_KEY_NBYTES;
        const kv_record *record = &index->records[ids[got]];
        enum verdict verdict = judge(record, ns, key);
        if (verdict == OTHER) verdict = acquire_slowly(index, &leases[got], ns, key, &ids[got]);
        if (verdict != HELD) {
            held->stop = verdict == BUSY ? KV_STOP_BUSY : KV_STOP_MISS;
            break;
        }
        if (held->num_near == held->num_blocks && kv_is_near(&index->records[ids[got]])) held->num_near++;
        held->num_blocks++;
        *deepest = ids[got];
    }
    if (got == probed && probed < num_keys) held->stop = KV_STOP_MISS;
    for (uint32_t i = got; i < probed; i++) atomic_store_explicit(&leases[i], 0, memory_order_release);
    return got;
}

/* After the leases, and a fence behind them: the owner closes, fences and looks for leases. */
static int is_closed(const kv_table *table) {
    return (int)atomic_load_explicit(&table->shared->is_closed, memory_order_relaxed);
}

/* Under the table's lock; the owner of the index may be reading. */
static void add(_Atomic uint64_t *counter, uint64_t amount) {
    atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + amount, memory_order_relaxed);
}

void kv_lease_acquire(const kv_index *index, kv_table *table, uint32_t ns, const uint8_t *keys, uint32_t num_keys,
                      int counted, kv_held *held) {
    *held = (kv_held){.group = KV_NONE, .stop = KV_STOP_END};
    uint32_t num_asked = num_keys;
    uint32_t group, deepest = KV_NONE;
    pthread_mutex_lock(&table->lock);
    uint32_t num_groups = take_groups(table, (num_keys + KV_GROUP - 1) / KV_GROUP, &group);
    pthread_mutex_unlock(&table->lock);
    if (num_groups < (num_keys + KV_GROUP - 1) / KV_GROUP) num_keys = num_groups * KV_GROUP, held->stop = KV_STOP_FULL;
    held->group = group;
    uint32_t last = group;
    for (uint32_t first = 0; first < num_keys; first += KV_GROUP) {
        uint32_t wanted = num_keys - first < KV_GROUP ? num_keys - first : KV_GROUP;
        uint32_t got = acquire_group(index, table->shared->lease + (size_t)group * KV_GROUP, ns,
                                     keys + (size_t)first * KV_KEY_NBYTES, wanted, held, &deepest);
        if (got > 0) last = group;
        if (got < wanted) break;
        group = table->group_next[group];
    }
    if (is_closed(table)) {
        kv_lease_release(table, held);
        held->stop = KV_STOP_MISS;
        deepest = KV_NONE;
    }
    pthread_mutex_lock(&table->lock);
    if (counted) {
        kv_lookups *sum = &table->shared->counted;
        add(&sum->num_acquires, 1);
        add(&sum->num_keys, num_asked);
        add(&sum->num_held, held->num_blocks);
        add(&sum->num_near, held->num_near);
        if (deepest != KV_NONE) push_touch(table, deepest);
    }
    if (held->num_blocks == 0) { /* nothing held: all groups go back */
        give_groups(table, held->group);
        held->group = KV_NONE;
    } else if (table->group_next[last] != KV_NONE) {
        give_groups(table, table->group_next[last]);
        table->group_next[last] = KV_NONE;
    }
    pthread_mutex_unlock(&table->lock);
}

int kv_lease_hold(kv_table *table, const uint32_t *ids, uint32_t num_ids, kv_held *held) {
    *held = (kv_held){.group = KV_NONE, .stop = KV_STOP_END};
    uint32_t wanted = (num_ids + KV_GROUP - 1) / KV_GROUP, group;
    pthread_mutex_lock(&table->lock);
    uint32_t taken = take_groups(table, wanted, &group);
    if (taken < wanted) give_groups(table, group);
    pthread_mutex_unlock(&table->lock);
    if (taken < wanted) return -1;
    held->group = group;
    held->num_blocks = num_ids;
    for (uint32_t i = 0; i < num_ids; i++) {
        if (i > 0 && i % KV_GROUP == 0) group = table->group_next[group];
        _Atomic uint32_t *leases = table->shared->lease + (size_t)group * KV_GROUP;
        atomic_store_explicit(&leases[i % KV_GROUP], ids[i] + 1, memory_order_relaxed);
    }
    atomic_thread_fence(memory_order_seq_cst);
    if (!is_closed(table)) return 0;
    kv_lease_release(table, held);
    return -1;
}

void kv_lease_release(kv_table *table, kv_held *held) {
    pthread_mutex_lock(&table->lock); /* two threads may let go of one lease: its groups go back once */
    uint32_t left = held->num_blocks;
    /* Release: what was read under the lease was read before it ends. */
    atomic_thread_fence(memory_order_release);
    for (uint32_t group = held->group; group != KV_NONE; group = table->group_next[group]) {
        _Atomic uint32_t *leases = table->shared->lease + (size_t)group * KV_GROUP;
        uint32_t used = left < KV_GROUP ? left : KV_GROUP;
        for (uint32_t i = 0; i < used; i++) atomic_store_explicit(&leases[i], 0, memory_order_relaxed);
        left -= used;
    }
    give_groups(table, held->group);
    held->group = KV_NONE;
    held->num_blocks = held->num_near = 0;
    pthread_mutex_unlock(&table->lock);
}

int kv_lease_intact(const kv_table *table, const kv_held *held) {
    /* Pairs with the release of `revoked`: what overwrote the bytes came after it. */
    atomic_thread_fence(memory_order_acquire);
    for (uint32_t group = held->group; group != KV_NONE; group = table->group_next[group]) {
        const kv_turn *turn = &table->turns[group];
        if (atomic_load_explicit(&turn->revoked, memory_order_relaxed) ==
            atomic_load_explicit(&turn->turn, memory_order_relaxed))
            return 0;
    }
    return 1;
}

void kv_lease_ids(const kv_table *table, const kv_held *held, uint32_t *ids) {
    uint32_t left = held->num_blocks;
    for (uint32_t group = held->group; group != KV_NONE && left > 0; group = table->group_next[group]) {
        const _Atomic uint32_t *leases = table->shared->lease + (size_t)group * KV_GROUP;
        uint32_t used = left < KV_GROUP ? left : KV_GROUP;
        for (uint32_t i = 0; i < used; i++)
            *ids++ = atomic_load_explicit(&leases[i], memory_order_relaxed) - 1;
        left -= used;
    }
}
