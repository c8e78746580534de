#include "engine.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "engine_queue.h"
#include "ring.h"

/* More ops than transfers under way, so that a block that waits for its checksum holds up no transfer. */
#define NUM_OPS (2 * KV_ENGINE_DEPTH_MAX)
#define WAKE UINT64_MAX
#define NUM_THREADS_MAX 256

struct kv_engine {
    kv_queue queue;
    enum kv_engine_kind kind;
    unsigned depth;
    int refusal;
    int stopped; /* guarded by queue.lock */
    pthread_t *threads;
    unsigned num_threads; /* that run */
    /* Of a ring: its thread drives `ring`, the other checksums. */
    kv_ring ring;
    int wake_fd;
    uint64_t wake_value;
    unsigned under_way;           /* transfers; the ring thread's */
    kv_op ops[NUM_OPS];
    uint32_t idle[NUM_OPS];       /* stack of ops not in use; guarded by queue.lock */
    unsigned num_idle;
    uint32_t to_sum[NUM_OPS];     /* circle of ops that wait for their checksum; guarded by queue.lock */
    unsigned sum_head, sum_count;
    pthread_cond_t sums;          /* signalled when to_sum gets something, and at the end */
    int is_starved;               /* the ring thread found no idle op; guarded by queue.lock */
    int ring_is_over;             /* no more sums will come; guarded by queue.lock */
};

/* ---- worker threads: transfer and checksum, one block after the other ---- */

static void *work(void *argument) {
    kv_engine *engine = argument;
    kv_queue *queue = &engine->queue;
    kv_op op;
    pthread_mutex_lock(&queue->lock);
    for (;;) {
        if (!kv_queue_next(queue, &op)) {
            if (queue->stopping) break;
            pthread_cond_wait(&queue->work, &queue->lock);
            continue;
        }
        pthread_mutex_unlock(&queue->lock);
        kv_op_run(&op);
        kv_op_checksum(&op);
        pthread_mutex_lock(&queue->lock);
        kv_queue_moved(queue, &op);
        kv_queue_end(queue, &op);
        pthread_cond_signal(&queue->work); /* a write that had to wait for this one */
    }
    pthread_mutex_unlock(&queue->lock);
    return NULL;
}

/* ---- io_uring: one thread transfers, one checksums ---- */

static void wake_ring(kv_engine *engine) {
    const uint64_t one = 1;
    (void)!write(engine->wake_fd, &one, sizeof one);
}

/* Queue an op for its checksum. Caller holds the lock. */
static void ask_sum(kv_engine *engine, uint32_t number) {
    engine->to_sum[(engine->sum_head + engine->sum_count++) % NUM_OPS] = number;
    pthread_cond_signal(&engine->sums);
}

/* One of transfer and checksum is done; the second one ends the op. Caller holds the lock. */
static void part_done(kv_engine *engine, uint32_t number) {
    if (--engine->ops[number].parts_left > 0) return;
    kv_queue_end(&engine->queue, &engine->ops[number]);
    engine->idle[engine->num_idle++] = number;
    if (engine->is_starved) {
        engine->is_starved = 0;
        wake_ring(engine);
    }
}

static void send_op(kv_engine *engine, uint32_t number) {
    kv_op *op = &engine->ops[number];
    kv_op_aim(op);
    kv_ring_transfer(&engine->ring, op->batch->writing, op->batch->fds[op->block], op->vectors, op->num_vectors,
                     op->batch->offsets[op->block] + (int64_t)op->done_nbytes, number);
}

/* Begin as many transfers as there is room for. Caller holds the lock. */
static void fill_ring(kv_engine *engine) {
    while (engine->under_way < engine->depth) {
        if (engine->num_idle == 0) {
            engine->is_starved = !kv_queue_is_empty(&engine->queue);
            return;
        }
        const uint32_t number = engine->idle[engine->num_idle - 1];
        if (!kv_queue_next(&engine->queue, &engine->ops[number])) return;
        engine->num_idle--;
        engine->under_way++;
        engine->ops[number].parts_left = 2;
        send_op(engine, number);
        if (engine->ops[number].batch->writing) ask_sum(engine, number); /* while the device writes */
    }
}

/* Caller holds the lock. */
static void take_event(kv_engine *engine, const kv_ring_event *event) {
    if (event->number == WAKE) {
        kv_ring_read_event(&engine->ring, engine->wake_fd, &engine->wake_value, WAKE);
        return;
    }
    const uint32_t number = (uint32_t)event->number;
    kv_op *op = &engine->ops[number];
    if (!kv_op_advance(op, event->result)) {
        send_op(engine, number);
        return;
    }
    engine->under_way--;
    kv_queue_moved(&engine->queue, op);
    if (!op->batch->writing) ask_sum(engine, number);
    part_done(engine, number);
}

static void *drive_ring(void *argument) {
    kv_engine *engine = argument;
    kv_ring_event events[KV_ENGINE_DEPTH_MAX + 1];
    kv_ring_read_event(&engine->ring, engine->wake_fd, &engine->wake_value, WAKE);
    pthread_mutex_lock(&engine->queue.lock);
    for (;;) {
        fill_ring(engine);
        if (engine->queue.stopping && engine->under_way == 0 && kv_queue_is_empty(&engine->queue)) break;
        pthread_mutex_unlock(&engine->queue.lock);
        kv_ring_enter(&engine->ring); /* what it could not take stays queued and is taken next time */
        const unsigned num_events = kv_ring_events(&engine->ring, events, KV_ENGINE_DEPTH_MAX + 1);
        pthread_mutex_lock(&engine->queue.lock);
        for (unsigned i = 0; i < num_events; i++) take_event(engine, &events[i]);
    }
    engine->ring_is_over = 1;
    pthread_cond_broadcast(&engine->sums);
    pthread_mutex_unlock(&engine->queue.lock);
    return NULL;
}

static void *checksum(void *argument) {
    kv_engine *engine = argument;
    pthread_mutex_lock(&engine->queue.lock);
    for (;;) {
        if (engine->sum_count == 0) {
            if (engine->ring_is_over) break;
            pthread_cond_wait(&engine->sums, &engine->queue.lock);
            continue;
        }
        const uint32_t number = engine->to_sum[engine->sum_head];
        engine->sum_head = (engine->sum_head + 1) % NUM_OPS;
        engine->sum_count--;
        pthread_mutex_unlock(&engine->queue.lock);
        kv_op_checksum(&engine->ops[number]);
        pthread_mutex_lock(&engine->queue.lock);
        part_done(engine, number);
    }
    pthread_mutex_unlock(&engine->queue.lock);
    return NULL;
}

/* ---- life of an engine ---- */

static int start_threads(kv_engine *engine, unsigned num_threads, void *(*const *mains)(void *), unsigned num_mains) {
    engine->threads = calloc(num_threads, sizeof(pthread_t));
    if (engine->threads == NULL) return -ENOMEM;
    for (unsigned i = 0; i < num_threads; i++) {
        int error = pthread_create(&engine->threads[i], NULL, mains[i % num_mains], engine);
        if (error != 0) return -error;
        engine->num_threads++;
    }
    return 0;
}

static int start_ring(kv_engine *engine) {
    static void *(*const mains[])(void *) = {drive_ring, checksum};
    int code = kv_ring_create(&engine->ring, 2 * KV_ENGINE_DEPTH_MAX);
    if (code < 0) return code;
    engine->kind = KV_ENGINE_RING;
    for (uint32_t i = 0; i < NUM_OPS; i++) engine->idle[i] = i;
    engine->num_idle = NUM_OPS;
    return start_threads(engine, 2, mains, 2);
}

static int start_workers(kv_engine *engine, unsigned num_threads) {
    static void *(*const mains[])(void *) = {work};
    engine->kind = KV_ENGINE_THREADS;
    return start_threads(engine, num_threads, mains, 1);
}

int kv_engine_create(kv_engine **out, int allow_ring, unsigned depth, unsigned num_threads) {
    if (depth < 2 || depth > KV_ENGINE_DEPTH_MAX || num_threads < 1 || num_threads > NUM_THREADS_MAX) return -EINVAL;
    kv_engine *engine = calloc(1, sizeof *engine);
    if (engine == NULL) return -ENOMEM;
    int code = kv_queue_create(&engine->queue, depth / 2);
    if (code < 0) {
        free(engine);
        return code;
    }
    engine->depth = depth;
    pthread_cond_init(&engine->sums, NULL);
    engine->ring.fd = -1;
    engine->wake_fd = eventfd(0, EFD_CLOEXEC);
    code = engine->wake_fd < 0 ? -errno : 0;
    if (code == 0 && allow_ring) {
        code = start_ring(engine);
        if (code < 0 && engine->num_threads == 0) {
            engine->refusal = -code;
            kv_ring_destroy(&engine->ring);
            code = 0;
        }
    }
    if (code == 0 && engine->num_threads == 0) code = start_workers(engine, num_threads);
    if (code < 0) {
        kv_engine_stop(engine);
        kv_engine_destroy(engine);
        return code;
    }
    *out = engine;
    return 0;
}

enum kv_engine_kind kv_engine_kind_of(const kv_engine *engine) { return engine->kind; }
int kv_engine_refusal(const kv_engine *engine) { return engine->refusal; }
int kv_engine_fileno(const kv_engine *engine) { return engine->queue.finished_fd; }

/* Tell whoever begins transfers that there is something to look at. Caller holds the lock. */
static void wake(kv_engine *engine) {
    if (engine->kind == KV_ENGINE_RING) wake_ring(engine);
    else pthread_cond_broadcast(&engine->queue.work);
}

int kv_engine_submit(kv_engine *engine, kv_batch *batch) {
    int code = 0;
    pthread_mutex_lock(&engine->queue.lock);
    if (engine->queue.stopping) {
        code = -ESHUTDOWN;
    } else {
        kv_queue_add(&engine->queue, batch);
        wake(engine);
    }
    pthread_mutex_unlock(&engine->queue.lock);
    return code;
}

void kv_engine_cancel(kv_engine *engine, kv_batch *batch) {
    pthread_mutex_lock(&engine->queue.lock);
    kv_queue_cancel(&engine->queue, batch);
    wake(engine);
    pthread_mutex_unlock(&engine->queue.lock);
}

kv_batch *kv_engine_take(kv_engine *engine, int64_t wait_us) {
    return kv_queue_take(&engine->queue, wait_us, &engine->stopped);
}

void kv_engine_stop(kv_engine *engine) {
    pthread_mutex_lock(&engine->queue.lock);
    engine->queue.stopping = 1;
    wake(engine);
    pthread_mutex_unlock(&engine->queue.lock);
    for (unsigned i = 0; i < engine->num_threads; i++) pthread_join(engine->threads[i], NULL);
    engine->num_threads = 0;
    const uint64_t one = 1;
    pthread_mutex_lock(&engine->queue.lock);
    if (!engine->stopped) (void)!write(engine->queue.finished_fd, &one, sizeof one);
    engine->stopped = 1;
    pthread_mutex_unlock(&engine->queue.lock);
}

void kv_engine_destroy(kv_engine *engine) {
    if (engine->ring.fd >= 0) kv_ring_destroy(&engine->ring);
    if (engine->wake_fd >= 0) close(engine->wake_fd);
    pthread_cond_destroy(&engine->sums);
    kv_queue_destroy(&engine->queue);
    free(engine->threads);
    free(engine);
}

int kv_zero_fill(int fd, int64_t offset, uint64_t nbytes, const int32_t *cancel) {
    enum { PIECE_NBYTES = 1 << 20 };
    void *zeros = NULL;
    if (posix_memalign(&zeros, KV_PAGE_NBYTES, PIECE_NBYTES) != 0) return ENOMEM;
    memset(zeros, 0, PIECE_NBYTES);
    int error = 0;
    for (uint64_t done_nbytes = 0; done_nbytes < nbytes && error == 0;) {
        const uint64_t left_nbytes = nbytes - done_nbytes;
        const size_t piece_nbytes = left_nbytes < PIECE_NBYTES ? (size_t)left_nbytes : PIECE_NBYTES;
        const ssize_t moved = pwrite(fd, zeros, piece_nbytes, (off_t)(offset + (int64_t)done_nbytes));
        if (__atomic_load_n(cancel, __ATOMIC_RELAXED) != 0) error = ECANCELED;
        else if (moved < 0 && errno != EINTR) error = errno;
        else if (moved >= 0 && moved < (ssize_t)KV_PAGE_NBYTES) error = EIO;
        else if (moved > 0) done_nbytes += (uint64_t)moved & ~(uint64_t)(KV_PAGE_NBYTES - 1);
    }
    free(zeros);
    return error;
}
