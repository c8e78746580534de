/* One mapped region for an arena, in the largest pages that can be had, and an honest word on what was had.
 *
 * Order: memfd in hugetlb pages, if the kernel has them reserved; memfd in transparent huge pages, if shmem_enabled
 * allows; anonymous private memory in transparent huge pages, if nobody else has to map the region; memfd in 4 KiB
 * pages. A kind counts only when the kernel reports huge pages in the mapping after a touch. Never fallocate first: it
 * would fix 4 KiB pages for ever.
 */
#ifndef KV_MEMORY_H
#define KV_MEMORY_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#define KV_CHUNK_NBYTES (2u << 20)

enum kv_pages { KV_PAGES_HUGETLB = 0, KV_PAGES_SHARED_THP = 1, KV_PAGES_PRIVATE_THP = 2, KV_PAGES_BASE = 3 };

typedef struct {
    uint8_t *base;
    size_t nbytes; /* whole chunks */
    int fd;        /* -1 for private memory */
    enum kv_pages pages;
    char reason[160]; /* why the pages are not larger; "" for hugetlb */
    _Atomic uint64_t prefaulted_nbytes;
    _Atomic int stop; /* set to end a prefault under way */
} kv_memory;

/* Map `nbytes` rounded up to chunks. `shared`: other processes must be able to map it. `base_pages`: 4 KiB pages even
 * where larger could be had. 0, or -errno; -ENOMEM when `*available` bytes are all that can be had. */
int kv_memory_map(kv_memory *memory, size_t nbytes, int shared, int base_pages, uint64_t *available);
/* Map the region of another process, which must not be able to shrink. `fd` is duplicated. 0, or -errno. */
int kv_memory_adopt(kv_memory *memory, size_t nbytes, int fd, int writable);
void kv_memory_unmap(kv_memory *memory);
/* Touch every page, a part at a time, until done or `stop`. 0, or -errno. */
int kv_memory_prefault(kv_memory *memory);

#endif
