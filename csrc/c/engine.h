/* The disk I/O engine: batches of block transfers, each block with its own outcome and checksum.
 *
 * One thread drives an io_uring and keeps it full; a second one checksums, so that the device never waits for a hash.
 * Where io_uring is not to be had, worker threads do both with preadv and pwritev. Reads go before writes, and while
 * reads are under way writes take at most half of the depth. Nothing here knows what a block means or opens a file. Every function may be called
 * from any thread.
 *
 * Transfers are issued as direct I/O wants them: whole 4 KiB pages from aligned memory. What of a block does not fit
 * that (the last page of a length that is no multiple, or all of a misaligned buffer) goes through bounce memory, and
 * is padded with zeros on its way out.
 */
#ifndef KV_ENGINE_H
#define KV_ENGINE_H

#include <stddef.h>
#include <stdint.h>

#define KV_PAGE_NBYTES 4096u
#define KV_ENGINE_DEPTH_MAX 64u

/* What became of one block; the values of kvstore.tiers.base.Outcome. */
enum kv_outcome {
    KV_BLOCK_OK = 0,
    KV_BLOCK_CORRUPT = 1,  /* read, but the checksum differs or the file ends inside the block */
    KV_BLOCK_IO_ERROR = 2, /* errnos[i] says why */
    KV_BLOCK_TIMEOUT = 3,  /* its turn came after deadline_us */
    KV_BLOCK_CLOSED = 4,   /* its turn came after kv_engine_stop, or its batch was cancelled before */
};

/* One batch. Everything up to `owner` is the submitter's and stays unchanged until the batch is taken back; buffers
 * are only read from when writing. */
typedef struct kv_batch {
    size_t num_blocks;
    int writing;
    const int32_t *fds;     /* a negative one yields IO_ERROR with EBADF */
    const int64_t *offsets; /* in bytes; non-negative multiples of KV_PAGE_NBYTES */
    void *const *buffers;
    const uint64_t *nbytes; /* > 0; in the file a block occupies this rounded up to KV_PAGE_NBYTES */
    uint64_t *checksums;    /* XXH3-64: wanted ones of a read (NULL: none, whatever was read is OK); filled in by a
                             * write, 0 where the outcome is not OK */
    int64_t deadline_us;    /* CLOCK_MONOTONIC; INT64_MAX for none; looked at before each block */
    uint8_t *outcomes;      /* out */
    int32_t *errnos;        /* out; 0 where the device did not refuse */
    void *owner;
    /* The engine's, guarded by its lock. */
    int cancelled;
    size_t next; /* first block that was not begun */
    size_t left; /* blocks that have no outcome yet */
    struct kv_batch *link;
} kv_batch;

typedef struct kv_engine kv_engine;

enum kv_engine_kind { KV_ENGINE_RING = 0, KV_ENGINE_THREADS = 1 };

/* Start an engine with up to `depth` transfers under way at a time. `allow_ring`: try io_uring first; else, or where it
 * is refused, `num_threads` workers, which are its depth then. 0, or -errno. */
int kv_engine_create(kv_engine **engine, int allow_ring, unsigned depth, unsigned num_threads);
enum kv_engine_kind kv_engine_kind_of(const kv_engine *engine);
/* errno with which io_uring was refused; 0 when it was not, or not asked for. */
int kv_engine_refusal(const kv_engine *engine);
/* Take over a batch of at least one block. 0, or -ESHUTDOWN after kv_engine_stop. */
int kv_engine_submit(kv_engine *engine, kv_batch *batch);
/* Blocks of the batch that were not begun become CLOSED. REQUIRES: submitted and not yet taken back. */
void kv_engine_cancel(kv_engine *engine, kv_batch *batch);
/* A finished batch, waiting up to `wait_us` for one (< 0: as long as it takes); NULL when there is none, and at once
 * when the engine has stopped and all are taken. */
kv_batch *kv_engine_take(kv_engine *engine, int64_t wait_us);
/* An eventfd that is readable while a finished batch waits to be taken, and for ever after kv_engine_stop. */
int kv_engine_fileno(const kv_engine *engine);
/* What was not begun becomes CLOSED; returns when nothing is under way any more. Idempotent. */
void kv_engine_stop(kv_engine *engine);
/* REQUIRES: stopped, all batches taken. */
void kv_engine_destroy(kv_engine *engine);

/* Write zeros over [offset, offset + nbytes), both multiples of KV_PAGE_NBYTES, in the calling thread.
 * Returns 0, an errno, or ECANCELED once *cancel is non-zero. */
int kv_zero_fill(int fd, int64_t offset, uint64_t nbytes, const int32_t *cancel);

#endif
