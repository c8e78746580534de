#include "blockio.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "xxh3.h"

#define BOUNCE_NBYTES ((size_t)1 << 20)
#define FILE_ENDED (-1) /* no errno is negative */

enum direction { READING, WRITING };

static size_t round_down(size_t nbytes) { return nbytes & ~(size_t)(KV_BLOCKIO_ALIGN - 1); }
static size_t round_up(size_t nbytes) { return round_down(nbytes + KV_BLOCKIO_ALIGN - 1); }

static int64_t now_us(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

/* All of [offset, offset + nbytes): 0, an errno, or FILE_ENDED. Goes on after a short transfer from the last whole
 * page, because direct I/O takes no other position; one that moved less than a page cannot be continued. */
static int transfer(enum direction direction, int fd, char *memory, size_t nbytes, int64_t offset) {
    size_t done_nbytes = 0;
    while (done_nbytes < nbytes) {
        const size_t left_nbytes = nbytes - done_nbytes;
        const off_t position = (off_t)(offset + (int64_t)done_nbytes);
        const ssize_t moved_nbytes = direction == WRITING ? pwrite(fd, memory + done_nbytes, left_nbytes, position)
                                                          : pread(fd, memory + done_nbytes, left_nbytes, position);
        if (moved_nbytes < 0) {
            if (errno == EINTR) continue;
            return errno;
        }
        if ((size_t)moved_nbytes == left_nbytes) return 0;
        if (round_down((size_t)moved_nbytes) == 0) return direction == WRITING ? EIO : FILE_ENDED;
        done_nbytes += round_down((size_t)moved_nbytes);
    }
    return 0;
}

/* The part of a block that direct I/O cannot take, piece by piece through `*bounce`, which is allocated on first use
 * and freed by whoever owns the batch. */
static int transfer_bounced(enum direction direction, int fd, char *memory, size_t nbytes, int64_t offset,
                            char **bounce) {
    if (*bounce == NULL && posix_memalign((void **)bounce, KV_BLOCKIO_ALIGN, BOUNCE_NBYTES) != 0) {
        *bounce = NULL;
        return ENOMEM;
    }
    for (size_t done_nbytes = 0; done_nbytes < nbytes; done_nbytes += BOUNCE_NBYTES) {
        const size_t left_nbytes = nbytes - done_nbytes;
        const size_t piece_nbytes = left_nbytes < BOUNCE_NBYTES ? left_nbytes : BOUNCE_NBYTES;
        const size_t padded_nbytes = round_up(piece_nbytes);
        if (direction == WRITING) {
            memcpy(*bounce, memory + done_nbytes, piece_nbytes);
            memset(*bounce + piece_nbytes, 0, padded_nbytes - piece_nbytes);
        }
        const int error = transfer(direction, fd, *bounce, padded_nbytes, offset + (int64_t)done_nbytes);
        if (error != 0) return error;
        if (direction == READING) memcpy(memory + done_nbytes, *bounce, piece_nbytes);
    }
    return 0;
}

/* How many of the block's leading bytes may go between file and buffer directly: all of them with the tail, else its
 * whole pages, else none. */
static size_t direct_part(const char *memory, size_t nbytes, bool owns_tail) {
    if ((uintptr_t)memory % KV_BLOCKIO_ALIGN != 0) return 0;
    return owns_tail ? round_up(nbytes) : round_down(nbytes);
}

static int transfer_block(enum direction direction, const kv_blockio_batch *batch, size_t i, char **bounce) {
    char *memory = batch->buffers[i];
    const size_t nbytes = batch->nbytes[i];
    const size_t direct_nbytes = direct_part(memory, nbytes, batch->tails != NULL && batch->tails[i] != 0);
    if (direction == WRITING && direct_nbytes > nbytes) memset(memory + nbytes, 0, direct_nbytes - nbytes);
    if (direct_nbytes > 0) {
        const int error = transfer(direction, batch->fds[i], memory, direct_nbytes, batch->offsets[i]);
        if (error != 0) return error;
    }
    if (direct_nbytes >= nbytes) return 0;
    return transfer_bounced(direction, batch->fds[i], memory + direct_nbytes, nbytes - direct_nbytes,
                            batch->offsets[i] + (int64_t)direct_nbytes, bounce);
}

/* OK when block i may start now. */
static uint8_t may_start(const kv_blockio_batch *batch) {
    if (__atomic_load_n(batch->cancel, __ATOMIC_RELAXED) != 0) return KV_BLOCK_CLOSED;
    if (batch->deadline_us != INT64_MAX && now_us() >= batch->deadline_us) return KV_BLOCK_TIMEOUT;
    return KV_BLOCK_OK;
}

/* Transfer block i if it may start: its outcome, short of comparing checksums. */
static uint8_t attempt(enum direction direction, const kv_blockio_batch *batch, size_t i, char **bounce) {
    batch->errnos[i] = 0;
    const uint8_t start = may_start(batch);
    if (start != KV_BLOCK_OK) return start;
    const int error = transfer_block(direction, batch, i, bounce);
    if (error == 0) return KV_BLOCK_OK;
    if (error == FILE_ENDED) return KV_BLOCK_CORRUPT;
    batch->errnos[i] = error;
    return KV_BLOCK_IO_ERROR;
}

void kv_blockio_write(const kv_blockio_batch *batch, uint64_t *checksums) {
    char *bounce = NULL;
    for (size_t i = 0; i < batch->num_blocks; i++) {
        batch->outcomes[i] = attempt(WRITING, batch, i, &bounce);
        checksums[i] = batch->outcomes[i] == KV_BLOCK_OK ? kv_xxh3_64(batch->buffers[i], batch->nbytes[i]) : 0;
    }
    free(bounce);
}

void kv_blockio_read(const kv_blockio_batch *batch, const uint64_t *checksums) {
    char *bounce = NULL;
    for (size_t i = 0; i < batch->num_blocks; i++) {
        uint8_t outcome = attempt(READING, batch, i, &bounce);
        if (outcome == KV_BLOCK_OK && kv_xxh3_64(batch->buffers[i], batch->nbytes[i]) != checksums[i])
            outcome = KV_BLOCK_CORRUPT;
        batch->outcomes[i] = outcome;
    }
    free(bounce);
}

int kv_blockio_zero(int fd, int64_t offset, uint64_t nbytes, const int32_t *cancel) {
    char *zeros = NULL;
    if (posix_memalign((void **)&zeros, KV_BLOCKIO_ALIGN, BOUNCE_NBYTES) != 0) return ENOMEM;
    memset(zeros, 0, BOUNCE_NBYTES);
    int error = 0;
    for (uint64_t done_nbytes = 0; done_nbytes < nbytes && error == 0; done_nbytes += BOUNCE_NBYTES) {
        const uint64_t left_nbytes = nbytes - done_nbytes;
        const size_t piece_nbytes = left_nbytes < BOUNCE_NBYTES ? (size_t)left_nbytes : BOUNCE_NBYTES;
        if (__atomic_load_n(cancel, __ATOMIC_RELAXED) != 0)
            error = ECANCELED;
        else
            error = transfer(WRITING, fd, zeros, piece_nbytes, offset + (int64_t)done_nbytes);
    }
    free(zeros);
    return error;
}
