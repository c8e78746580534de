#include "shared.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010 /* Linux 5.1 */
#endif

int kv_shared_seal(int fd, int read_only) {
    int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL | (read_only ? F_SEAL_FUTURE_WRITE : 0);
    /* Nobody else's to open by another way, either. */
    return fcntl(fd, F_ADD_SEALS, seals) != 0 || fchmod(fd, S_IRUSR | S_IWUSR) != 0 ? -errno : 0;
}

int kv_shared_read_only(int fd) {
    char path[32];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int opened = open(path, O_RDONLY | O_CLOEXEC);
    return opened < 0 ? -errno : opened;
}

/* The size of a file that nobody can shrink, or 0. */
static size_t sealed_nbytes(int fd) {
    struct stat status;
    int seals = fcntl(fd, F_GET_SEALS);
    if (seals < 0 || !(seals & F_SEAL_SHRINK) || fstat(fd, &status) != 0 || status.st_size < 0) return 0;
    return (size_t)status.st_size;
}

int kv_index_map(kv_index *index, int fd) {
    memset(index, 0, sizeof *index);
    index->fd = -1;
    size_t nbytes = sealed_nbytes(fd);
    if (nbytes < sizeof(kv_header)) return -EPROTO;
    void *region = mmap(NULL, nbytes, PROT_READ, MAP_SHARED | MAP_NORESERVE, fd, 0);
    if (region == MAP_FAILED) return -errno;
    const kv_header *header = region;
    if (!kv_header_is_valid(header, nbytes)) {
        munmap(region, nbytes);
        return -EPROTO;
    }
    index->header = region;
    index->buckets = (kv_bucket *)((uint8_t *)region + header->buckets_offset);
    index->records = (kv_record *)((uint8_t *)region + header->records_offset);
    index->num_buckets = header->num_buckets;
    index->entries_max = (uint32_t)header->entries_max;
    index->seed0 = header->seed[0];
    index->seed1 = header->seed[1];
    return 0;
}

void kv_index_unmap(kv_index *index) {
    if (index->header != NULL) munmap(index->header, index->header->total_nbytes);
    index->header = NULL;
}

int kv_table_disown(kv_table *table) {
    /* In place: leases that the child collects are written to, and no thread of the parent is here that had the lock. */
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
    if (mmap(table->shared, table->nbytes, PROT_READ | PROT_WRITE, flags, -1, 0) == MAP_FAILED) return -errno;
    pthread_mutex_init(&table->lock, NULL);
    table->shared->is_closed = 1; /* and no turn has begun: nothing here is intact */
    return 0;
}

int kv_table_map(kv_table *table, int fd) {
    memset(table, 0, sizeof *table);
    table->fd = -1;
    size_t nbytes = sealed_nbytes(fd);
    if (nbytes < sizeof(kv_leases)) return -EPROTO;
    kv_leases *shared = mmap(NULL, nbytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (shared == MAP_FAILED) return -errno;
    uint32_t num_groups = shared->entries_max / KV_GROUP;
    if (shared->magic != KV_LEASE_MAGIC || kv_table_nbytes(num_groups) != nbytes) {
        munmap(shared, nbytes);
        return -EPROTO;
    }
    table->shared = shared;
    table->nbytes = nbytes;
    int code = kv_table_adopt(table, num_groups);
    if (code < 0) kv_table_destroy(table);
    return code;
}
