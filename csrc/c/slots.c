#include "slots.h"

#include <stdlib.h>
#include <string.h>

#define IN_USE (UINT32_MAX - 1)
#define LEAVING (UINT32_MAX - 2) /* named in the free that is under way */
#define END UINT32_MAX
#define TAIL_SHARE 16 /* a slab's unusable tail is at most this part of it, if some number of chunks allows */

static pthread_mutex_t *lock(const kv_slots *slots) {
    pthread_mutex_t *held = (pthread_mutex_t *)&slots->lock;
    pthread_mutex_lock(held);
    return held;
}
static void unlock(pthread_mutex_t **held) { pthread_mutex_unlock(*held); }
#define WHILE_LOCKED(slots) pthread_mutex_t *held_ __attribute__((cleanup(unlock), unused)) = lock(slots)

int kv_slots_create(kv_slots *slots, uint64_t nbytes) {
    memset(slots, 0, sizeof *slots);
    pthread_mutex_init(&slots->lock, NULL);
    slots->num_chunks = slots->num_free_chunks = (uint32_t)(nbytes / KV_PLACE_NBYTES / KV_CHUNK_PLACES);
    slots->chunk_slab = malloc(slots->num_chunks * sizeof(uint32_t) + 1);
    slots->slabs = calloc(slots->num_chunks + 1, sizeof(kv_slab));
    if (slots->chunk_slab == NULL || slots->slabs == NULL) {
        kv_slots_destroy(slots);
        return KV_SLOTS_NO_MEMORY;
    }
    for (uint32_t i = 0; i < slots->num_chunks; i++) {
        slots->chunk_slab[i] = KV_NO_SLAB;
        slots->slabs[i].next = i + 1 < slots->num_chunks ? i + 1 : KV_NO_SLAB;
    }
    slots->unused_slab = slots->num_chunks ? 0 : KV_NO_SLAB;
    return KV_SLOTS_OK;
}

void kv_slots_destroy(kv_slots *slots) {
    for (uint32_t i = 0; slots->slabs && i < slots->num_chunks; i++) free(slots->slabs[i].free_next);
    free(slots->slabs);
    free(slots->chunk_slab);
    slots->slabs = NULL;
    slots->chunk_slab = NULL;
}

/* Chunks per slab: the fewest that waste little, else those that waste least. */
static uint32_t chunks_for(uint32_t slot_places) {
    uint32_t fewest = (slot_places + KV_CHUNK_PLACES - 1) / KV_CHUNK_PLACES, best = fewest;
    double least = 1.0;
    for (uint32_t chunks = fewest; chunks <= 8 * fewest; chunks++) {
        uint32_t places = chunks * KV_CHUNK_PLACES, tail = places % slot_places;
        if (tail * TAIL_SHARE <= places) return chunks;
        if ((double)tail / places < least) {
            least = (double)tail / places;
            best = chunks;
        }
    }
    return best;
}

int kv_slots_class(kv_slots *slots, uint64_t nbytes) {
    WHILE_LOCKED(slots);
    uint32_t places = (uint32_t)((nbytes + KV_PLACE_NBYTES - 1) / KV_PLACE_NBYTES);
    for (uint32_t i = 0; i < slots->num_classes; i++)
        if (slots->classes[i].slot_places == places) return (int)i;
    if (slots->num_classes == KV_CLASSES_MAX) return KV_SLOTS_CLASSES;
    kv_class *added = &slots->classes[slots->num_classes];
    added->slot_places = places;
    added->chunks_per_slab = chunks_for(places);
    if (added->chunks_per_slab > slots->num_chunks) /* a small arena: as large a slab as it can hold */
        added->chunks_per_slab = (places + KV_CHUNK_PLACES - 1) / KV_CHUNK_PLACES;
    added->slots_per_slab = added->chunks_per_slab * KV_CHUNK_PLACES / places;
    added->open = KV_NO_SLAB;
    return (int)slots->num_classes++;
}

static void list_slab(kv_slots *slots, kv_class *owner, uint32_t number) {
    kv_slab *slab = &slots->slabs[number];
    slab->prev = KV_NO_SLAB;
    slab->next = owner->open;
    if (owner->open != KV_NO_SLAB) slots->slabs[owner->open].prev = number;
    owner->open = number;
}

static void unlist_slab(kv_slots *slots, kv_class *owner, uint32_t number) {
    kv_slab *slab = &slots->slabs[number];
    if (slab->prev != KV_NO_SLAB) slots->slabs[slab->prev].next = slab->next;
    else owner->open = slab->next;
    if (slab->next != KV_NO_SLAB) slots->slabs[slab->next].prev = slab->prev;
}

/* First run of `wanted` free chunks at or after next_fit, then from the start. */
static uint32_t find_run(const kv_slots *slots, uint32_t wanted) {
    for (int turn = 0; turn < 2; turn++) {
        uint32_t run = 0;
        for (uint32_t chunk = turn == 0 ? slots->next_fit : 0; chunk < slots->num_chunks; chunk++) {
            run = slots->chunk_slab[chunk] == KV_NO_SLAB ? run + 1 : 0;
            if (run == wanted) return chunk + 1 - wanted;
        }
    }
    return END;
}

static int open_slab(kv_slots *slots, int class_number) {
    kv_class *owner = &slots->classes[class_number];
    if (slots->num_free_chunks < owner->chunks_per_slab) return 0;
    uint32_t chunk = find_run(slots, owner->chunks_per_slab);
    if (chunk == END) return 0;
    uint32_t number = slots->unused_slab;
    kv_slab *slab = &slots->slabs[number];
    slab->free_next = malloc(owner->slots_per_slab * sizeof(uint32_t));
    if (slab->free_next == NULL) return KV_SLOTS_NO_MEMORY;
    slots->unused_slab = slab->next;
    slab->first_chunk = chunk;
    slab->num_chunks = owner->chunks_per_slab;
    slab->class_number = (uint32_t)class_number;
    slab->num_slots = slab->num_free = owner->slots_per_slab;
    slab->free_head = 0;
    for (uint32_t slot = 0; slot < slab->num_slots; slot++)
        slab->free_next[slot] = slot + 1 < slab->num_slots ? slot + 1 : END;
    for (uint32_t i = 0; i < slab->num_chunks; i++) slots->chunk_slab[chunk + i] = number;
    slots->next_fit = chunk + slab->num_chunks;
    slots->num_free_chunks -= slab->num_chunks;
    owner->num_free += slab->num_slots;
    list_slab(slots, owner, number);
    return 1;
}

static void close_slab(kv_slots *slots, kv_class *owner, uint32_t number) {
    kv_slab *slab = &slots->slabs[number];
    unlist_slab(slots, owner, number);
    for (uint32_t i = 0; i < slab->num_chunks; i++) slots->chunk_slab[slab->first_chunk + i] = KV_NO_SLAB;
    slots->num_free_chunks += slab->num_chunks;
    owner->num_free -= slab->num_slots;
    free(slab->free_next);
    slab->free_next = NULL;
    slab->next = slots->unused_slab;
    slots->unused_slab = number;
}

int64_t kv_slots_allocate(kv_slots *slots, int class_number, uint32_t num, uint32_t *places) {
    WHILE_LOCKED(slots);
    kv_class *owner = &slots->classes[class_number];
    for (uint32_t i = 0; i < num; i++) {
        if (owner->open == KV_NO_SLAB) {
            int opened = open_slab(slots, class_number);
            if (opened <= 0) return opened < 0 && i == 0 ? (int64_t)opened : (int64_t)i;
        }
        uint32_t number = owner->open;
        kv_slab *slab = &slots->slabs[number];
        uint32_t slot = slab->free_head;
        slab->free_head = slab->free_next[slot];
        slab->free_next[slot] = IN_USE;
        places[i] = slab->first_chunk * KV_CHUNK_PLACES + slot * owner->slot_places;
        if (--slab->num_free == 0) unlist_slab(slots, owner, number);
        owner->num_free--;
        owner->num_used++;
        slots->num_blocks++;
        slots->used_nbytes += (uint64_t)owner->slot_places * KV_PLACE_NBYTES;
    }
    return num;
}

/* Slab and slot of an allocated place of this class; 0 when it is none. */
static int locate(const kv_slots *slots, int class_number, uint32_t place, uint32_t *number, uint32_t *slot) {
    uint32_t chunk = place / KV_CHUNK_PLACES;
    if (chunk >= slots->num_chunks || slots->chunk_slab[chunk] == KV_NO_SLAB) return 0;
    *number = slots->chunk_slab[chunk];
    const kv_slab *slab = &slots->slabs[*number];
    uint32_t offset = place - slab->first_chunk * KV_CHUNK_PLACES;
    uint32_t slot_places = slots->classes[class_number].slot_places;
    if (slab->class_number != (uint32_t)class_number || offset % slot_places != 0) return 0;
    *slot = offset / slot_places;
    return *slot < slab->num_slots && slab->free_next[*slot] == IN_USE;
}

int kv_slots_hold(const kv_slots *slots, int class_number, const uint32_t *places, uint32_t num) {
    WHILE_LOCKED(slots);
    uint32_t number, slot;
    for (uint32_t i = 0; i < num; i++)
        if (!locate(slots, class_number, places[i], &number, &slot)) return 0;
    return 1;
}

static void free_one(kv_slots *slots, kv_class *owner, uint32_t number, uint32_t slot) {
    kv_slab *slab = &slots->slabs[number];
    slab->free_next[slot] = slab->free_head;
    slab->free_head = slot;
    if (slab->num_free++ == 0) list_slab(slots, owner, number);
    owner->num_free++;
    owner->num_used--;
    slots->num_blocks--;
    slots->used_nbytes -= (uint64_t)owner->slot_places * KV_PLACE_NBYTES;
    if (slab->num_free == slab->num_slots) close_slab(slots, owner, number);
}

int kv_slots_free(kv_slots *slots, int class_number, const uint32_t *places, uint32_t num) {
    WHILE_LOCKED(slots);
    kv_class *owner = &slots->classes[class_number];
    uint32_t number, slot, marked = 0;
    /* All are looked up and marked first, so that a wrong or doubled place changes nothing. */
    while (marked < num && locate(slots, class_number, places[marked], &number, &slot)) {
        slots->slabs[number].free_next[slot] = LEAVING;
        marked++;
    }
    for (uint32_t i = 0; i < marked; i++) {
        number = slots->chunk_slab[places[i] / KV_CHUNK_PLACES];
        slot = (places[i] - slots->slabs[number].first_chunk * KV_CHUNK_PLACES) / owner->slot_places;
        if (marked < num) slots->slabs[number].free_next[slot] = IN_USE;
        else free_one(slots, owner, number, slot);
    }
    return marked < num ? KV_SLOTS_FOREIGN : KV_SLOTS_OK;
}

uint64_t kv_slots_available(const kv_slots *slots, int class_number) {
    WHILE_LOCKED(slots);
    const kv_class *owner = &slots->classes[class_number];
    uint64_t slabs = 0;
    for (uint32_t chunk = 0, run = 0; chunk < slots->num_chunks; chunk++) {
        run = slots->chunk_slab[chunk] == KV_NO_SLAB ? run + 1 : 0;
        if (run == owner->chunks_per_slab) {
            slabs++;
            run = 0;
        }
    }
    return owner->num_free + slabs * owner->slots_per_slab;
}

static uint64_t live_nbytes(const kv_slots *slots, const kv_slab *slab) {
    uint64_t live = slab->num_slots - slab->num_free;
    return live * slots->classes[slab->class_number].slot_places * KV_PLACE_NBYTES;
}

int kv_slots_vacate(const kv_slots *slots, int class_number, uint32_t *first, uint32_t *last) {
    WHILE_LOCKED(slots);
    const kv_class *owner = &slots->classes[class_number];
    if (owner->num_free > 0 || find_run(slots, owner->chunks_per_slab) != END) return 0;
    uint64_t cheapest = UINT64_MAX;
    for (uint32_t start = 0; start + owner->chunks_per_slab <= slots->num_chunks; start++) {
        uint32_t from = start, chunk = start, end = start + owner->chunks_per_slab;
        uint64_t live = 0;
        int own = 0;
        while (chunk < end) {
            if (slots->chunk_slab[chunk] == KV_NO_SLAB) {
                chunk++;
                continue;
            }
            const kv_slab *slab = &slots->slabs[slots->chunk_slab[chunk]];
            own |= slab->class_number == (uint32_t)class_number; /* its own slabs would gain nothing */
            if (slab->first_chunk < from) from = slab->first_chunk;
            live += live_nbytes(slots, slab);
            chunk = slab->first_chunk + slab->num_chunks;
        }
        if (own || live >= cheapest) continue;
        cheapest = live;
        *first = from * KV_CHUNK_PLACES;
        *last = chunk * KV_CHUNK_PLACES;
    }
    return cheapest != UINT64_MAX;
}

static int check_slab(const kv_slots *slots, uint32_t number) {
    const kv_slab *slab = &slots->slabs[number];
    uint32_t free_slots = 0, in_use = 0;
    for (uint32_t slot = slab->free_head; slot != END; slot = slab->free_next[slot])
        if (++free_slots > slab->num_slots) return 1;
    for (uint32_t slot = 0; slot < slab->num_slots; slot++) in_use += slab->free_next[slot] == IN_USE;
    return free_slots != slab->num_free || free_slots + in_use != slab->num_slots ? 2 : 0;
}

int kv_slots_check(const kv_slots *slots) {
    WHILE_LOCKED(slots);
    uint64_t free_chunks = 0, used = 0, blocks = 0;
    for (uint32_t chunk = 0; chunk < slots->num_chunks;) {
        uint32_t number = slots->chunk_slab[chunk];
        if (number == KV_NO_SLAB) {
            free_chunks++;
            chunk++;
            continue;
        }
        const kv_slab *slab = &slots->slabs[number];
        if (slab->first_chunk != chunk) return 3;
        int broken = check_slab(slots, number);
        if (broken) return broken;
        used += live_nbytes(slots, slab);
        blocks += slab->num_slots - slab->num_free;
        chunk += slab->num_chunks;
    }
    return free_chunks != slots->num_free_chunks || used != slots->used_nbytes || blocks != slots->num_blocks ? 4 : 0;
}
