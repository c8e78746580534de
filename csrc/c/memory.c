#include "memory.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MFD_HUGETLB
#define MFD_HUGETLB 0x0004U
#endif
#define BOTH (PROT_READ | PROT_WRITE)
#define PREFAULT_NBYTES ((size_t)64 << 20)

/* First line of a small file of the kernel's that starts with `prefix`; what follows it, as a number. */
static int64_t read_number(const char *path, const char *prefix) {
    char line[256];
    int64_t number = -1;
    FILE *file = fopen(path, "re");
    if (file == NULL) return -1;
    while (number < 0 && fgets(line, sizeof line, file))
        if (strncmp(line, prefix, strlen(prefix)) == 0) sscanf(line + strlen(prefix), "%" SCNd64, &number);
    fclose(file);
    return number;
}

static int64_t min_known(int64_t a, int64_t b) { return a < 0 ? b : b < 0 || a < b ? a : b; }

/* What the machine and the control group (v2, then v1) leave. */
static int64_t available_nbytes(void) {
    int64_t kib = read_number("/proc/meminfo", "MemAvailable:");
    int64_t left = kib < 0 ? -1 : kib * 1024;
    int64_t most = read_number("/sys/fs/cgroup/memory.max", "");
    int64_t used = read_number("/sys/fs/cgroup/memory.current", "");
    if (most >= 0 && used >= 0) left = min_known(left, most > used ? most - used : 0);
    most = read_number("/sys/fs/cgroup/memory/memory.limit_in_bytes", "");
    used = read_number("/sys/fs/cgroup/memory/memory.usage_in_bytes", "");
    if (most >= 0 && used >= 0) left = min_known(left, most > used ? most - used : 0);
    return left;
}

/* The word in brackets, as in "always [madvise] never". */
static void read_choice(const char *path, char *choice, size_t size) {
    char line[128] = "";
    snprintf(choice, size, "unknown");
    FILE *file = fopen(path, "re");
    if (file == NULL) return;
    if (fgets(line, sizeof line, file)) {
        char *open = strchr(line, '['), *close = strchr(line, ']');
        if (open && close && close > open) {
            *close = '\0';
            snprintf(choice, size, "%s", open + 1);
        }
    }
    fclose(file);
}

/* Kilobytes of `field` that the kernel reports for the mapping at `address`. */
static int64_t mapping_kib(const void *address, const char *field) {
    char line[512];
    int64_t kib = 0;
    int inside = 0;
    FILE *file = fopen("/proc/self/smaps", "re");
    if (file == NULL) return 0;
    while (fgets(line, sizeof line, file)) {
        uintptr_t from, to;
        if (sscanf(line, "%" SCNxPTR "-%" SCNxPTR " ", &from, &to) == 2)
            inside = (uintptr_t)address >= from && (uintptr_t)address < to;
        else if (inside && strncmp(line, field, strlen(field)) == 0)
            sscanf(line + strlen(field), "%" SCNd64, &kib);
    }
    fclose(file);
    return kib;
}

static int map_hugetlb(kv_memory *memory) {
    memory->fd = memfd_create("kvstore-arena", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_HUGETLB);
    if (memory->fd < 0) return 0;
    if (ftruncate(memory->fd, (off_t)memory->nbytes) == 0) {
        /* Without MAP_NORESERVE the kernel refuses now what it could not back later. */
        void *base = mmap(NULL, memory->nbytes, PROT_READ | PROT_WRITE, MAP_SHARED, memory->fd, 0);
        if (base != MAP_FAILED) {
            memory->base = base;
            return 1;
        }
    }
    close(memory->fd);
    return 0;
}

/* Reserve an address range that starts on a chunk, then map into it. */
static int map_aligned(kv_memory *memory, int flags, int fd, int protection) {
    size_t span = memory->nbytes + KV_CHUNK_NBYTES;
    uint8_t *range = mmap(NULL, span, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (range == MAP_FAILED) return -errno;
    uintptr_t start = ((uintptr_t)range + KV_CHUNK_NBYTES - 1) & ~(uintptr_t)(KV_CHUNK_NBYTES - 1);
    uint8_t *base = mmap((void *)start, memory->nbytes, protection, flags | MAP_FIXED, fd, 0);
    if (base == MAP_FAILED) {
        int error = errno;
        munmap(range, span);
        return -error;
    }
    if (base > range) munmap(range, (size_t)(base - range));
    uint8_t *end = base + memory->nbytes;
    if (end < range + span) munmap(end, (size_t)(range + span - end));
    memory->base = base;
    return 0;
}

static int map_memfd(kv_memory *memory) {
    memory->fd = memfd_create("kvstore-arena", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (memory->fd < 0) return -errno;
    int code = ftruncate(memory->fd, (off_t)memory->nbytes) != 0 ? -errno : map_aligned(memory, MAP_SHARED, memory->fd, BOTH);
    if (code < 0) {
        close(memory->fd);
        memory->fd = -1;
    }
    return code;
}

/* Does a touch of the first chunk really bring a huge page? */
static int took_huge_pages(kv_memory *memory, const char *field) {
    if (madvise(memory->base, memory->nbytes, MADV_HUGEPAGE) != 0) return 0;
    memory->base[0] = 0;
    return mapping_kib(memory->base, field) > 0;
}

static int map_private_thp(kv_memory *memory) {
    memory->fd = -1;
    if (map_aligned(memory, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, BOTH) < 0) return 0;
    if (took_huge_pages(memory, "AnonHugePages:")) return 1;
    munmap(memory->base, memory->nbytes);
    return 0;
}

int kv_memory_map(kv_memory *memory, size_t nbytes, int shared, int base_pages, uint64_t *available) {
    memset(memory, 0, sizeof *memory);
    memory->fd = -1;
    memory->nbytes = (nbytes + KV_CHUNK_NBYTES - 1) / KV_CHUNK_NBYTES * KV_CHUNK_NBYTES;
    memory->pages = KV_PAGES_HUGETLB;
    if (!base_pages && map_hugetlb(memory)) return 0;
    int64_t left = available_nbytes();
    *available = left < 0 ? 0 : (uint64_t)left;
    if (left >= 0 && (uint64_t)left < memory->nbytes) return -ENOMEM;
    char shmem[32], anonymous[32];
    read_choice("/sys/kernel/mm/transparent_hugepage/shmem_enabled", shmem, sizeof shmem);
    read_choice("/sys/kernel/mm/transparent_hugepage/enabled", anonymous, sizeof anonymous);
    int try_shmem = strcmp(shmem, "never") != 0 && strcmp(shmem, "deny") != 0 && strcmp(shmem, "unknown") != 0;
    if (base_pages || (!shared && !try_shmem && strcmp(anonymous, "never") != 0)) try_shmem = 0;
    snprintf(memory->reason, sizeof memory->reason,
             "no hugetlb pages reserved; transparent huge pages: shmem_enabled=%s, enabled=%s", shmem, anonymous);
    if (try_shmem) {
        int code = map_memfd(memory);
        if (code < 0) return code;
        memory->pages = KV_PAGES_SHARED_THP;
        if (took_huge_pages(memory, "ShmemPmdMapped:")) return 0;
        memory->pages = KV_PAGES_BASE;
        if (shared) return 0;
        munmap(memory->base, memory->nbytes);
        close(memory->fd);
    }
    memory->pages = KV_PAGES_PRIVATE_THP;
    if (!shared && !base_pages && map_private_thp(memory)) return 0;
    memory->pages = KV_PAGES_BASE;
    if (base_pages) snprintf(memory->reason, sizeof memory->reason, "4 KiB pages were asked for");
    return map_memfd(memory);
}

int kv_memory_adopt(kv_memory *memory, size_t nbytes, int fd, int writable) {
    memset(memory, 0, sizeof *memory);
    memory->fd = -1;
    memory->nbytes = nbytes;
    memory->pages = KV_PAGES_BASE;
    struct stat status;
    int seals = fcntl(fd, F_GET_SEALS);
    if (seals < 0 || !(seals & F_SEAL_SHRINK) || fstat(fd, &status) != 0 || (uint64_t)status.st_size < nbytes)
        return -EPROTO;
    int code = map_aligned(memory, MAP_SHARED, fd, PROT_READ | (writable ? PROT_WRITE : 0));
    if (code == 0) madvise(memory->base, nbytes, MADV_HUGEPAGE); /* where the owner got huge pages, map them as such */
    return code;
}

void kv_memory_unmap(kv_memory *memory) {
    if (memory->base == NULL) return;
    munmap(memory->base, memory->nbytes);
    if (memory->fd >= 0) close(memory->fd);
    memory->base = NULL;
}

static void touch(uint8_t *from, size_t nbytes) {
    for (size_t offset = 0; offset < nbytes; offset += 4096) {
        /* Atomic and adding nothing: somebody may be filling the page at this moment. */
        __atomic_fetch_or(from + offset, 0, __ATOMIC_RELAXED);
    }
}

int kv_memory_prefault(kv_memory *memory) {
    for (size_t offset = 0; offset < memory->nbytes; offset += PREFAULT_NBYTES) {
        if (atomic_load(&memory->stop)) return 0;
        size_t nbytes = memory->nbytes - offset < PREFAULT_NBYTES ? memory->nbytes - offset : PREFAULT_NBYTES;
        if (madvise(memory->base + offset, nbytes, MADV_POPULATE_WRITE) != 0) {
            if (errno != EINVAL) return -errno;
            touch(memory->base + offset, nbytes); /* kernels before 5.14 */
        }
        atomic_store(&memory->prefaulted_nbytes, offset + nbytes);
    }
    return 0;
}
