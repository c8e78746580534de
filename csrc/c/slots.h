/* Slots: places for blocks of different sizes in one arena.
 *
 * The arena is cut into chunks of 2 MiB. A size class (a block size rounded up to 4 KiB) owns slabs: runs of chunks cut
 * into slots of its size. A slab whose last slot is freed goes back to the free chunks, so memory moves between classes.
 * A place is a slot's offset in units of 4 KiB. Each call holds `lock`; nothing here touches the arena's memory.
 */
#ifndef KV_SLOTS_H
#define KV_SLOTS_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

#define KV_PLACE_NBYTES 4096u
#define KV_CHUNK_PLACES 512u
#define KV_CLASSES_MAX 256

typedef struct {
    uint32_t first_chunk, num_chunks;
    uint32_t class_number;
    uint32_t num_slots, num_free;
    uint32_t next, prev; /* in the class's list of slabs with a free slot; `next` also links unused records */
    uint32_t free_head;  /* first free slot number, links in free_next */
    uint32_t *free_next; /* per slot: next free one; IN_USE while allocated */
} kv_slab;

typedef struct {
    uint32_t slot_places;      /* size in places */
    uint32_t chunks_per_slab;
    uint32_t slots_per_slab;
    uint32_t open;             /* slabs with a free slot, the one in use first */
    uint64_t num_free, num_used;
} kv_class;

typedef struct {
    pthread_mutex_t lock; /* taken last: under it no other lock is */
    uint32_t num_chunks, num_free_chunks, num_classes;
    uint32_t *chunk_slab; /* slab of each chunk, or KV_NO_SLAB */
    kv_slab *slabs;       /* as many as chunks */
    uint32_t unused_slab;
    uint32_t next_fit;    /* where the search for free chunks goes on */
    kv_class classes[KV_CLASSES_MAX];
    uint64_t used_nbytes, num_blocks;
} kv_slots;

#define KV_NO_SLAB UINT32_MAX

enum kv_slots_code { KV_SLOTS_OK = 0, KV_SLOTS_NO_MEMORY = -1, KV_SLOTS_CLASSES = -2, KV_SLOTS_FOREIGN = -3 };

int kv_slots_create(kv_slots *slots, uint64_t nbytes);
void kv_slots_destroy(kv_slots *slots);
/* Number of the class for blocks of `nbytes` (made on first use), or a code < 0. */
int kv_slots_class(kv_slots *slots, uint64_t nbytes);
/* Up to `num` places of a class; returns how many, or KV_SLOTS_NO_MEMORY. */
int64_t kv_slots_allocate(kv_slots *slots, int class_number, uint32_t num, uint32_t *places);
/* All of `places` go back, or none: KV_SLOTS_FOREIGN when one is not allocated or not of this class. */
int kv_slots_free(kv_slots *slots, int class_number, const uint32_t *places, uint32_t num);
/* Whether every one of `places` is allocated and of this class. */
int kv_slots_hold(const kv_slots *slots, int class_number, const uint32_t *places, uint32_t num);
/* Slots that `allocate` could give now: free ones and those that fit into free runs of chunks. */
uint64_t kv_slots_available(const kv_slots *slots, int class_number);
/* The cheapest range of places [first, last) that would make a slab for the class if it were empty: 1, or 0 when there
 * is room already or no such range. */
int kv_slots_vacate(const kv_slots *slots, int class_number, uint32_t *first, uint32_t *last);
int kv_slots_check(const kv_slots *slots); /* audit: 0, or the number of the broken rule */

#endif
