/* What the engine's threads share: waiting batches, finished batches, and the lock over both. Private to the engine. */
#ifndef KV_ENGINE_QUEUE_H
#define KV_ENGINE_QUEUE_H

#include <pthread.h>

#include "transfer_op.h"

typedef struct {
    kv_batch *first, *last;
} kv_line; /* of batches, linked through `link` */

typedef struct {
    pthread_mutex_t lock; /* guards everything here, and the engine's part of every batch */
    pthread_cond_t work;  /* signalled for worker threads: a block waits, or it is the end */
    kv_line reads, writes, finished;
    unsigned reads_under_way, writes_under_way; /* transfers; a block that waits for its checksum does not count */
    unsigned writes_max;                        /* while reads are under way */
    int stopping;
    int finished_fd; /* eventfd: readable while `finished` holds something, and for ever after the stop */
} kv_queue;

int kv_queue_create(kv_queue *queue, unsigned writes_max); /* 0 or -errno */
void kv_queue_destroy(kv_queue *queue);
/* Caller holds the lock. */
void kv_queue_add(kv_queue *queue, kv_batch *batch);
void kv_queue_cancel(kv_queue *queue, kv_batch *batch);
/* The next block whose transfer may begin, with its op prepared: 1, or 0 when there is none now. Blocks that may not
 * begin (deadline, cancel, stop, no memory) get their outcome here. */
int kv_queue_next(kv_queue *queue, kv_op *op);
int kv_queue_is_empty(const kv_queue *queue);
/* The op's transfer is over: another may begin. */
void kv_queue_moved(kv_queue *queue, const kv_op *op);
/* The op is over: its block has its outcome, and its batch is finished if it was the last. */
void kv_queue_end(kv_queue *queue, kv_op *op);
/* Caller does not hold the lock. */
kv_batch *kv_queue_take(kv_queue *queue, int64_t wait_us, const int *stopped);

#endif
