#include "index.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "policy.h"

/* Buckets are 78 % full when every record is in use: 11.7 bytes per record, and a home bucket nearly always holds. */
#define LOAD 0.78
#define HEADER_NBYTES 4096

static void *private_pages(size_t nbytes) {
    void *pages = mmap(NULL, nbytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return pages == MAP_FAILED ? NULL : pages;
}

static size_t links_nbytes(const kv_index *index) { return (size_t)index->entries_max * sizeof(kv_links); }
static size_t writing_nbytes(const kv_index *index) { return (size_t)index->entries_max * sizeof(uint32_t); }

/* Sizes and offsets of an index of so many records; what is random, and what changes, is zero. */
static kv_header header_of(uint32_t entries_max) {
    kv_header header = {.magic = KV_INDEX_MAGIC, .abi = KV_INDEX_ABI, .entries_max = entries_max};
    header.num_buckets = (uint64_t)((double)entries_max / (KV_BUCKET_SLOTS * LOAD)) + 1;
    header.buckets_offset = HEADER_NBYTES;
    header.records_offset = HEADER_NBYTES + header.num_buckets * sizeof(kv_bucket);
    header.total_nbytes = header.records_offset + (uint64_t)entries_max * sizeof(kv_record);
    return header;
}

int kv_header_is_valid(const kv_header *header, uint64_t nbytes) {
    if (header->magic != KV_INDEX_MAGIC || header->abi != KV_INDEX_ABI || header->entries_max >= KV_NONE) return 0;
    kv_header wanted = header_of((uint32_t)header->entries_max);
    return header->num_buckets == wanted.num_buckets && header->buckets_offset == wanted.buckets_offset &&
           header->records_offset == wanted.records_offset && header->total_nbytes == wanted.total_nbytes &&
           wanted.total_nbytes == nbytes;
}

int kv_index_create(kv_index *index, uint32_t entries_max, const uint64_t seed[2], const kv_policy *policy,
                    uint32_t ghosts_max) {
    memset(index, 0, sizeof *index);
    kv_header header = header_of(entries_max);
    index->entries_max = entries_max;
    index->num_buckets = header.num_buckets;
    size_t total = header.total_nbytes;
    index->fd = memfd_create("kvstore-index", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (index->fd < 0) return -errno;
    if (ftruncate(index->fd, (off_t)total) != 0) goto failed;
    uint8_t *region = mmap(NULL, total, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, index->fd, 0);
    if (region == MAP_FAILED) goto failed;
    index->header = (kv_header *)region;
    header.seed[0] = seed[0];
    header.seed[1] = seed[1];
    *index->header = header;
    index->buckets = (kv_bucket *)(region + HEADER_NBYTES);
    index->records = (kv_record *)(region + header.records_offset);
    index->seed0 = seed[0];
    index->seed1 = seed[1];
    index->links = private_pages(links_nbytes(index));
    index->writing = private_pages(writing_nbytes(index));
    index->ghosts = private_pages(KV_GHOSTS * sizeof(kv_ghost));
    index->namespaces = private_pages((KV_NAMESPACES_MAX + 1) * sizeof(kv_ns));
    index->tenants = private_pages((KV_NAMESPACES_MAX + 1) * sizeof(kv_tenant));
    if (!index->links || !index->writing || !index->ghosts || !index->namespaces || !index->tenants) {
        kv_index_destroy(index);
        return -ENOMEM;
    }
    index->free_head = index->removed_head = KV_NONE;
    index->near_order = index->far_order = (kv_order){KV_NONE, KV_NONE, 0};
    index->now_ms = KV_NO_TIME;
    index->policy = policy;
    if (policy->create != NULL && policy->create(index, ghosts_max) < 0) {
        kv_index_destroy(index);
        return -ENOMEM;
    }
    pthread_mutexattr_t recursive;
    pthread_mutexattr_init(&recursive);
    pthread_mutexattr_settype(&recursive, PTHREAD_MUTEX_RECURSIVE);
    pthread_mutex_init(&index->lock, &recursive);
    pthread_mutexattr_destroy(&recursive);
    return 0;
failed: {
    int error = errno;
    close(index->fd);
    return -error;
}
}

void kv_index_destroy(kv_index *index) {
    if (index->header == NULL) return;
    kv_events_destroy(&index->events);
    if (index->ranks) index->policy->destroy(index);
    if (index->links) munmap(index->links, links_nbytes(index));
    if (index->writing) munmap(index->writing, writing_nbytes(index));
    if (index->ghosts) munmap(index->ghosts, KV_GHOSTS * sizeof(kv_ghost));
    if (index->namespaces) munmap(index->namespaces, (KV_NAMESPACES_MAX + 1) * sizeof(kv_ns));
    if (index->tenants) munmap(index->tenants, (KV_NAMESPACES_MAX + 1) * sizeof(kv_tenant));
    munmap(index->header, index->header->total_nbytes);
    close(index->fd);
    index->header = NULL;
}

double kv_index_nbytes_per_entry(const kv_index *index) {
    double buckets = (double)index->num_buckets * sizeof(kv_bucket) / index->entries_max;
    return sizeof(kv_record) + sizeof(kv_links) + buckets;
}

/* ---- ids ---- */

uint32_t kv_index_take_id(kv_index *index) {
    uint32_t id = index->free_head;
    if (id != KV_NONE) index->free_head = index->links[id].next;
    else if (index->ids_used < index->entries_max) id = index->ids_used++;
    return id;
}

void kv_index_give_id(kv_index *index, uint32_t id) {
    index->records[id].flags = 0;
    index->links[id].next = index->free_head;
    index->free_head = id;
}

/* ---- buckets ---- */

uint32_t kv_index_find(const kv_index *index, const uint8_t *key) {
    uint64_t home = kv_home(index, key);
    uint64_t number = kv_home_bucket(index, home);
    for (uint64_t passed = 0; passed < index->num_buckets; passed++) {
        const kv_bucket *bucket = &index->buckets[number];
        for (int slot = 0; slot < KV_BUCKET_SLOTS; slot++) {
            uint64_t value = atomic_load_explicit(&bucket->slot[slot], memory_order_relaxed);
            if ((uint32_t)(value >> 32) != kv_home_tag(home) || (uint32_t)value == 0) continue;
            if (kv_key_equals(&index->records[(uint32_t)value - 1], key)) return (uint32_t)value - 1;
        }
        if (atomic_load_explicit(&bucket->overflow, memory_order_relaxed) == 0) break;
        if (++number == index->num_buckets) number = 0;
    }
    return KV_NONE;
}

/* The record is complete before its slot is published. There is always an empty slot: fewer records than slots. */
static void hash_in(kv_index *index, uint32_t id, const uint8_t *key) {
    uint64_t home = kv_home(index, key);
    uint64_t number = kv_home_bucket(index, home);
    for (;;) {
        kv_bucket *bucket = &index->buckets[number];
        for (int slot = 0; slot < KV_BUCKET_SLOTS; slot++)
            if (atomic_load_explicit(&bucket->slot[slot], memory_order_relaxed) == 0) {
                uint64_t value = (uint64_t)kv_home_tag(home) << 32 | (id + 1);
                atomic_store_explicit(&bucket->slot[slot], value, memory_order_release);
                return;
            }
        atomic_fetch_add_explicit(&bucket->overflow, 1, memory_order_release);
        if (++number == index->num_buckets) number = 0;
    }
}

/* Items never move: a reader can only miss what is really gone. */
void kv_index_unhash(kv_index *index, uint32_t id) {
    uint8_t key[KV_KEY_NBYTES];
    kv_record_key(&index->records[id], key);
    uint64_t home = kv_home(index, key);
    uint64_t first = kv_home_bucket(index, home), number = first;
    uint64_t wanted = (uint64_t)kv_home_tag(home) << 32 | (id + 1);
    for (uint64_t passed = 0; passed < index->num_buckets; passed++) {
        kv_bucket *bucket = &index->buckets[number];
        for (int slot = 0; slot < KV_BUCKET_SLOTS; slot++)
            if (atomic_load_explicit(&bucket->slot[slot], memory_order_relaxed) == wanted) {
                atomic_store_explicit(&bucket->slot[slot], 0, memory_order_release);
                for (uint64_t on_path = first; on_path != number;) {
                    atomic_fetch_sub_explicit(&index->buckets[on_path].overflow, 1, memory_order_release);
                    if (++on_path == index->num_buckets) on_path = 0;
                }
                return;
            }
        if (++number == index->num_buckets) number = 0;
    }
}

#define PREFETCH_KEYS 64

/* The home buckets of up to PREFETCH_KEYS keys from `first` on. */
static void prefetch_homes(const kv_index *index, const uint8_t *keys, uint32_t first, uint32_t num_keys) {
    for (uint32_t i = first; i < num_keys && i < first + PREFETCH_KEYS; i++)
        __builtin_prefetch(&index->buckets[kv_home_bucket(index, kv_home(index, keys + (size_t)i * KV_KEY_NBYTES))]);
}

uint32_t kv_index_match(const kv_index *index, uint32_t ns, const uint8_t *keys, uint32_t num_keys, uint32_t *num_near,
                        uint32_t *near_total) {
    uint32_t matched = 0;
    *num_near = *near_total = 0;
    for (; matched < num_keys; matched++) {
        if (matched % PREFETCH_KEYS == 0) prefetch_homes(index, keys, matched, num_keys);
        uint32_t id = kv_index_find(index, keys + (size_t)matched * KV_KEY_NBYTES);
        if (id == KV_NONE) break;
        uint8_t state = kv_state_of(&index->records[id]);
        if (state != KV_VALID && state != KV_EVICT) break;
        if (ns != KV_NONE && index->records[id].ns != ns) break;
        if (kv_is_near(&index->records[id])) {
            if (*num_near == matched) ++*num_near;
            ++*near_total;
        }
    }
    return matched;
}

/* ---- chains: who extends whom ---- */

/* A block that lost a child may have become the next to go. */
void kv_index_bare(kv_index *index, uint32_t parent) {
    const kv_record *record = &index->records[parent];
    const kv_links *links = &index->links[parent];
    if (kv_state_of(record) != KV_VALID || (record->flags & (KV_LISTED_NEAR | KV_LISTED_FAR))) return;
    if (kv_is_near(record) ? links->near_kids == 0 : links->kids == 0) index->policy->bared(index, parent);
}

void kv_index_part(kv_index *index, uint32_t id) {
    if (index->policy->gone != NULL) index->policy->gone(index, id);
}

/* `id` stops counting as a child of its parent. */
void kv_index_detach(kv_index *index, uint32_t id) {
    kv_record *record = &index->records[id];
    uint32_t parent = record->parent;
    if (parent == KV_NONE) return;
    index->links[parent].kids--;
    if (kv_is_near(record)) index->links[parent].near_kids--;
    record->parent = KV_NONE;
    kv_index_bare(index, parent);
}

static kv_ns *ns_of(const kv_index *index, uint32_t id) { return &index->namespaces[index->records[id].ns]; }
static uint64_t slot_nbytes(const kv_index *index, uint32_t id) { return ns_of(index, id)->slot_nbytes; }
static int is_complete(const kv_index *index, uint32_t id) {
    return index->links[id].next == ns_of(index, id)->all_parts;
}

static void forget_writing(kv_index *index, uint32_t id) {
    uint32_t at = index->links[id].access, last = index->writing[--index->counts.num_writing];
    index->writing[at] = last;
    index->links[last].access = at;
    index->counts.writing_nbytes -= slot_nbytes(index, id);
}

/* From VALID, or WRITING with no part out, to REMOVED: not found any more, its memory waits for the last lease. */
void kv_index_retire(kv_index *index, uint32_t id, enum kv_reason reason) {
    kv_record *record = &index->records[id];
    kv_links *links = &index->links[id];
    int was_writing = kv_state_of(record) == KV_WRITING;
    if (was_writing) {
        if (is_complete(index, id)) index->counts.num_waiting--;
        forget_writing(index, id);
        links->prev = links->next = KV_NONE;
    } else {
        index->policy->leave(index, id, KV_NONE);
        kv_index_tell_removed(index, id, reason);
    }
    kv_index_note_ghost(index, id, reason);
    kv_index_part(index, id);
    if (!(record->flags & KV_ORPHAN)) kv_index_unhash(index, id);
    kv_index_detach(index, id);
    kv_set_state(index, id, KV_REMOVED, 1);
    /* The near bytes of a reservation were not counted as stored; they are until they are reaped. */
    if (was_writing) {
        index->counts.num_near++;
        index->counts.near_nbytes += slot_nbytes(index, id);
    }
    links->next = index->removed_head;
    index->removed_head = id;
    index->counts.num_removed++;
    kv_index_count(index, index->records[id].ns, -1);
}

/* ---- reservations ---- */

uint32_t kv_index_plan(const kv_index *index, const uint8_t *keys, uint32_t num_keys, uint32_t shard, uint8_t *plan,
                       uint32_t *ids) {
    KV_AS_WRITER(index);
    uint32_t wanted = 0;
    for (uint32_t i = 0; i < num_keys; i++) {
        if (i % PREFETCH_KEYS == 0) prefetch_homes(index, keys, i, num_keys);
        uint32_t id = kv_index_find(index, keys + (size_t)i * KV_KEY_NBYTES);
        ids[i] = id;
        if (id == KV_NONE) {
            plan[i] = KV_WANTED;
            wanted++;
        } else if (kv_state_of(&index->records[id]) == KV_VALID) {
            plan[i] = KV_PRESENT;
        } else {
            const kv_links *links = &index->links[id];
            plan[i] = (links->prev | links->next) >> shard & 1 ? KV_BUSY : KV_JOIN;
        }
    }
    return wanted;
}

static uint32_t begin_one(kv_index *index, const uint8_t *key, uint32_t parent, uint32_t shard, uint16_t ns,
                          uint32_t place) {
    uint32_t id = kv_index_take_id(index);
    if (id == KV_NONE) return KV_NONE;
    kv_record *record = &index->records[id];
    for (int word = 0; word < KV_KEY_WORDS; word++)
        atomic_store_explicit(&record->key[word], kv_load_word(key, word), memory_order_relaxed);
    atomic_store_explicit(&record->where, kv_where(KV_NEAR, place), memory_order_relaxed);
    record->parent = parent;
    record->ns = ns;
    record->flags = 0;
    record->checksum = 0;
    index->links[id] = (kv_links){.prev = 1u << shard, .next = 0, .far = KV_NONE};
    index->links[id].access = (uint32_t)index->counts.num_writing;
    index->writing[index->counts.num_writing++] = id;
    index->counts.writing_nbytes += slot_nbytes(index, id);
    if (parent != KV_NONE) {
        index->links[parent].kids++;
        index->links[parent].near_kids++;
    }
    kv_set_state(index, id, KV_WRITING, 0);
    hash_in(index, id, key);
    kv_index_count(index, ns, 1);
    return id;
}

/* Does what the plan found still hold? Making room may have evicted a block that was not leased, a chain may name a
 * block twice, and a block of another namespace goes when that is cleared: nothing may hang on any of them. */
static int still_holds(const kv_index *index, const uint8_t *key, enum kv_plan plan, uint32_t id, uint32_t shard,
                       uint16_t ns) {
    if (plan == KV_WANTED) return kv_index_find(index, key) == KV_NONE;
    const kv_record *record = &index->records[id];
    uint8_t state = kv_state_of(record);
    if (record->ns != ns || !kv_key_equals(record, key)) return 0;
    if (plan == KV_PRESENT) return state == KV_VALID;
    uint32_t mine = (index->links[id].prev | index->links[id].next) >> shard & 1;
    return state == KV_WRITING && mine == (plan == KV_BUSY);
}

/* A chain that names a block a second time: that position is BUSY, like any block which is being written already. */
static int is_repeat(const kv_index *index, const uint8_t *key, enum kv_plan plan, uint32_t *id, uint32_t shard) {
    if (plan == KV_WANTED) *id = kv_index_find(index, key);
    else if (plan != KV_JOIN) return 0;
    return *id != KV_NONE && kv_state_of(&index->records[*id]) == KV_WRITING && index->links[*id].prev >> shard & 1;
}

uint32_t kv_index_begin(kv_index *index, const uint8_t *keys, uint32_t num_keys, uint32_t shard, uint16_t ns,
                        uint8_t *plan, uint32_t *ids, const uint32_t *places, uint32_t num_places) {
    KV_AS_WRITER(index);
    uint32_t used = 0;
    int broken = 0;
    for (uint32_t i = 0; i < num_keys; i++) {
        const uint8_t *key = keys + (size_t)i * KV_KEY_NBYTES;
        if (is_repeat(index, key, (enum kv_plan)plan[i], &ids[i], shard)) {
            plan[i] = KV_BUSY;
            continue;
        }
        broken |= !still_holds(index, key, (enum kv_plan)plan[i], ids[i], shard, ns);
        if (plan[i] == KV_PRESENT || plan[i] == KV_BUSY) continue;
        if (plan[i] == KV_JOIN && !broken) {
            index->links[ids[i]].prev |= 1u << shard;
            continue;
        }
        ids[i] = KV_NONE;
        if (broken) continue;
        uint32_t parent = i > 0 ? ids[i - 1] : KV_NONE;
        if (used < num_places) ids[i] = begin_one(index, key, parent, shard, ns, places[used]);
        if (ids[i] == KV_NONE) broken = 1;
        else used++;
    }
    return used;
}

static int may_publish(const kv_index *index, uint32_t id) {
    uint32_t parent = index->records[id].parent;
    return parent == KV_NONE || kv_state_of(&index->records[parent]) == KV_VALID;
}

static void publish(kv_index *index, uint32_t id) {
    forget_writing(index, id);
    index->links[id].prev = index->links[id].next = KV_NONE;
    index->links[id].access = index->clock;
    index->counts.num_near++;
    index->counts.near_nbytes += slot_nbytes(index, id);
    kv_set_state(index, id, KV_VALID, 0);
    kv_index_tell_stored(index, id);
}

/* Blocks that were complete before their parents: published as soon as these are. */
static uint32_t publish_waiting(kv_index *index, uint32_t *published) {
    uint32_t num_published = 0;
    for (uint64_t i = 0; i < index->counts.num_writing && index->counts.num_waiting > 0;) {
        uint32_t id = index->writing[i];
        if (!is_complete(index, id) || !may_publish(index, id)) {
            i++;
            continue;
        }
        index->counts.num_waiting--;
        publish(index, id);
        index->policy->covered(index, id);
        published[num_published++] = id;
        i = 0; /* its children may lie before it */
    }
    return num_published;
}

uint32_t kv_index_commit(kv_index *index, const uint32_t *ids, uint32_t num_ids, uint32_t shard, uint8_t *committed,
                         uint32_t *published) {
    KV_AS_WRITER(index);
    uint32_t num_published = 0, deepest = KV_NONE;
    /* The blocks' bytes have just been copied, and have pushed all this out of the caches. */
    for (uint32_t i = 0; i < num_ids; i++) {
        __builtin_prefetch(&index->records[ids[i]]);
        __builtin_prefetch(&index->links[ids[i]]);
    }
    for (uint32_t i = 0; i < num_ids; i++) {
        uint32_t id = ids[i];
        kv_links *links = &index->links[id];
        links->prev &= ~(1u << shard);
        committed[i] = !(index->records[id].flags & KV_ORPHAN);
        if (!committed[i]) {
            if (links->prev == 0) kv_index_retire(index, id, KV_WAS_ABANDONED);
            continue;
        }
        links->next |= 1u << shard;
        if (!is_complete(index, id)) continue;
        if (may_publish(index, id)) {
            publish(index, id);
            deepest = published[num_published++] = id;
        } else {
            index->counts.num_waiting++;
        }
    }
    if (deepest != KV_NONE) index->policy->covered(index, deepest);
    /* A caller's keys may not be one chain to us: what the deepest does not cover must be in sight of eviction, too. */
    for (uint32_t i = 0; i < num_published; i++)
        if (index->links[published[i]].near_kids == 0) kv_index_bare(index, published[i]);
    if (num_published > 0 && index->counts.num_waiting > 0)
        num_published += publish_waiting(index, published + num_published);
    return num_published;
}

/* What was reserved on top of a block that is gone can never become visible. */
static void orphan_children(kv_index *index, uint32_t parent) {
    for (uint64_t i = 0; i < index->counts.num_writing && index->links[parent].kids > 0; i++) {
        uint32_t id = index->writing[i];
        if (index->records[id].parent != parent) continue;
        kv_index_unhash(index, id);
        kv_index_detach(index, id);
        if (is_complete(index, id)) index->counts.num_waiting--;
        index->links[id].next = 0;
        index->records[id].flags |= KV_ORPHAN;
    }
}

/* Orphans and what hangs on them: those with no part out go now, the others when their reservation ends. */
static void sweep_orphans(kv_index *index) {
    for (uint64_t i = 0; i < index->counts.num_writing;) {
        uint32_t id = index->writing[i];
        if (!(index->records[id].flags & KV_ORPHAN)) {
            i++;
            continue;
        }
        int has_kids = index->links[id].kids > 0, is_over = index->links[id].prev == 0;
        if (has_kids) orphan_children(index, id);
        if (is_over) kv_index_retire(index, id, KV_WAS_ABANDONED);
        /* Retiring fills position i from the end, and the new orphans may lie before it: look again from the start. */
        i = has_kids || is_over ? 0 : i + 1;
    }
}

static void undo(kv_index *index, uint32_t id) {
    if (index->links[id].kids > 0) orphan_children(index, id);
    kv_index_retire(index, id, KV_WAS_ABANDONED);
}

void kv_index_abandon(kv_index *index, const uint32_t *ids, uint32_t num_ids, uint32_t shard) {
    KV_AS_WRITER(index);
    int orphans = 0;
    for (uint32_t i = num_ids; i-- > 0;) { /* children before parents */
        kv_links *links = &index->links[ids[i]];
        links->prev &= ~(1u << shard);
        if (links->prev != 0 || links->next != 0) continue;
        orphans |= links->kids > 0;
        undo(index, ids[i]);
    }
    if (orphans) sweep_orphans(index);
}

uint32_t kv_index_adopt(kv_index *index, const uint8_t *key, uint32_t parent, uint16_t ns, uint32_t far,
                        uint64_t checksum) {
    if (kv_index_find(index, key) != KV_NONE) return KV_NONE;
    uint32_t id = kv_index_take_id(index);
    if (id == KV_NONE) return KV_NONE;
    kv_record *record = &index->records[id];
    for (int word = 0; word < KV_KEY_WORDS; word++)
        atomic_store_explicit(&record->key[word], kv_load_word(key, word), memory_order_relaxed);
    atomic_store_explicit(&record->where, kv_where(KV_FAR, far), memory_order_relaxed);
    record->parent = parent;
    record->ns = ns;
    record->flags = KV_CHECKED;
    record->checksum = checksum;
    index->links[id] = (kv_links){.prev = KV_NONE, .next = KV_NONE, .access = index->clock, .far = far};
    if (parent != KV_NONE) index->links[parent].kids++;
    kv_set_state(index, id, KV_VALID, 0);
    hash_in(index, id, key);
    index->policy->demoted(index, id);
    kv_index_count(index, ns, 1);
    index->counts.num_far++;
    index->counts.far_nbytes += slot_nbytes(index, id);
    kv_index_tell_stored(index, id);
    return id;
}
