/* Batches of block reads and writes at 4 KiB-aligned file offsets, each block with its own outcome and checksum.
 *
 * Nothing here knows what a block means, opens a file or takes a lock; every function may be called from any number
 * of threads at once. Buffers belong to the caller and must stay mapped until the call returns. Descriptors may or
 * may not be open with O_DIRECT: every transfer is issued as if they were. A buffer that direct I/O cannot take
 * (address or length no multiple of 4096) passes through an aligned bounce buffer, zero-padded on the way out.
 */
#ifndef KVSTORE_BLOCKIO_H
#define KVSTORE_BLOCKIO_H

#include <stddef.h>
#include <stdint.h>

#define KV_BLOCKIO_ALIGN 4096u

/* What became of one block; the values of kvstore.tiers.base.Outcome. */
enum {
    KV_BLOCK_OK = 0,
    KV_BLOCK_CORRUPT = 1,  /* read, but the checksum differs or the file ends inside the block */
    KV_BLOCK_IO_ERROR = 2, /* errnos[i] says why */
    KV_BLOCK_TIMEOUT = 3,  /* its turn came after deadline_us */
    KV_BLOCK_CLOSED = 4,   /* its turn came after *cancel had become non-zero */
};

typedef struct {
    size_t num_blocks;
    const int32_t *fds;     /* a negative one yields IO_ERROR */
    const int64_t *offsets; /* in bytes; non-negative multiples of KV_BLOCKIO_ALIGN */
    void *const *buffers;   /* only read from when writing */
    const uint64_t *nbytes; /* > 0; in the file a block occupies this rounded up to KV_BLOCKIO_ALIGN */
    const uint8_t *tails;   /* non-zero: the rounded-up tail behind the buffer is mapped and ours; NULL: none is */
    int64_t deadline_us;    /* CLOCK_MONOTONIC; INT64_MAX for none; looked at before each block */
    const int32_t *cancel;  /* looked at before each block; another thread may set it */
    uint8_t *outcomes;      /* out */
    int32_t *errnos;        /* out; 0 where the device did not refuse */
} kv_blockio_batch;

/* Write every block and put the XXH3-64 of its nbytes into checksums[i]. A tail that is ours is zeroed before it is
 * written, so that no neighbouring byte ever reaches the file. checksums[i] is 0 where the outcome is not OK. */
void kv_blockio_write(const kv_blockio_batch *batch, uint64_t *checksums);

/* Read every block and compare its XXH3-64 with checksums[i]. */
void kv_blockio_read(const kv_blockio_batch *batch, const uint64_t *checksums);

/* Write zeros over [offset, offset + nbytes), both multiples of KV_BLOCKIO_ALIGN.
 * Returns 0, an errno, or ECANCELED once *cancel is non-zero. */
int kv_blockio_zero(int fd, int64_t offset, uint64_t nbytes, const int32_t *cancel);

#endif
