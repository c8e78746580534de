#include "engine_queue.h"

#include <errno.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

static int64_t now_us(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

int kv_queue_create(kv_queue *queue, unsigned writes_max) {
    *queue = (kv_queue){.writes_max = writes_max};
    queue->finished_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (queue->finished_fd < 0) return -errno;
    pthread_mutex_init(&queue->lock, NULL);
    pthread_cond_init(&queue->work, NULL);
    return 0;
}

void kv_queue_destroy(kv_queue *queue) {
    pthread_cond_destroy(&queue->work);
    pthread_mutex_destroy(&queue->lock);
    close(queue->finished_fd);
}

static void append(kv_line *line, kv_batch *batch) {
    batch->link = NULL;
    if (line->last != NULL) line->last->link = batch;
    else line->first = batch;
    line->last = batch;
}

static kv_batch *pop(kv_line *line) {
    kv_batch *batch = line->first;
    line->first = batch->link;
    if (line->first == NULL) line->last = NULL;
    return batch;
}

void kv_queue_add(kv_queue *queue, kv_batch *batch) {
    batch->next = 0;
    batch->left = batch->num_blocks;
    batch->cancelled = 0;
    append(batch->writing ? &queue->writes : &queue->reads, batch);
}

void kv_queue_cancel(kv_queue *queue, kv_batch *batch) {
    (void)queue;
    batch->cancelled = 1;
}

int kv_queue_is_empty(const kv_queue *queue) { return queue->reads.first == NULL && queue->writes.first == NULL; }

static void finish_block(kv_queue *queue, kv_batch *batch) {
    if (--batch->left > 0) return;
    const uint64_t one = 1;
    int was_empty = queue->finished.first == NULL;
    append(&queue->finished, batch);
    if (was_empty) (void)!write(queue->finished_fd, &one, sizeof one);
}

/* OK when a block of `batch` may begin now. */
static uint8_t may_begin(const kv_queue *queue, const kv_batch *batch) {
    if (queue->stopping || batch->cancelled) return KV_BLOCK_CLOSED;
    if (batch->deadline_us != INT64_MAX && now_us() >= batch->deadline_us) return KV_BLOCK_TIMEOUT;
    return KV_BLOCK_OK;
}

static void refuse(kv_queue *queue, kv_batch *batch, size_t block, uint8_t outcome, int error) {
    batch->outcomes[block] = outcome;
    batch->errnos[block] = error;
    if (batch->writing) batch->checksums[block] = 0;
    finish_block(queue, batch);
}

static unsigned *under_way(kv_queue *queue, const kv_batch *batch) {
    return batch->writing ? &queue->writes_under_way : &queue->reads_under_way;
}

int kv_queue_next(kv_queue *queue, kv_op *op) {
    for (;;) {
        int may_write = queue->stopping || queue->reads_under_way == 0 || queue->writes_under_way < queue->writes_max;
        kv_line *line = queue->reads.first != NULL ? &queue->reads : &queue->writes;
        if (line->first == NULL || (line == &queue->writes && !may_write)) return 0;
        kv_batch *batch = line->first;
        size_t block = batch->next++;
        if (batch->next == batch->num_blocks) pop(line); /* before its last block may finish it */
        uint8_t outcome = may_begin(queue, batch);
        int error = 0;
        if (outcome == KV_BLOCK_OK && batch->fds[block] < 0) error = EBADF;
        if (outcome == KV_BLOCK_OK && error == 0) error = kv_op_begin(op, batch, block);
        if (outcome == KV_BLOCK_OK && error == 0) {
            *under_way(queue, batch) += 1;
            return 1;
        }
        refuse(queue, batch, block, error ? KV_BLOCK_IO_ERROR : outcome, error);
    }
}

void kv_queue_moved(kv_queue *queue, const kv_op *op) { *under_way(queue, op->batch) -= 1; }

void kv_queue_end(kv_queue *queue, kv_op *op) {
    kv_op_end(op);
    finish_block(queue, op->batch);
}

kv_batch *kv_queue_take(kv_queue *queue, int64_t wait_us, const int *stopped) {
    const int64_t end_us = wait_us < 0 ? INT64_MAX : now_us() + wait_us;
    for (;;) {
        uint64_t count;
        kv_batch *batch = NULL;
        pthread_mutex_lock(&queue->lock);
        if (queue->finished.first != NULL) batch = pop(&queue->finished);
        int is_over = *stopped;
        if (queue->finished.first == NULL && !is_over) (void)!read(queue->finished_fd, &count, sizeof count);
        pthread_mutex_unlock(&queue->lock);
        if (batch != NULL || is_over) return batch;
        int64_t left_us = wait_us < 0 ? -1 : end_us - now_us();
        if (wait_us >= 0 && left_us <= 0) return NULL;
        struct pollfd waited = {queue->finished_fd, POLLIN, 0};
        int64_t left_ms = (left_us + 999) / 1000;
        poll(&waited, 1, wait_us < 0 ? -1 : left_ms > 1000000 ? 1000000 : (int)left_ms);
    }
}
