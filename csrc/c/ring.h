/* One io_uring by raw system calls: as much of it as batches of block transfers need.
 *
 * One thread at a time. Requests carry a number that comes back with their result.
 */
#ifndef KV_RING_H
#define KV_RING_H

#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

struct io_uring_sqe;
struct io_uring_cqe;

typedef struct {
    int fd;
    unsigned entries, num_unsubmitted;
    unsigned *sq_head, *sq_tail, *sq_mask, *sq_array;
    unsigned *cq_head, *cq_tail, *cq_mask;
    struct io_uring_sqe *sqes;
    struct io_uring_cqe *cqes;
    void *sq_memory, *cq_memory;
    size_t sq_nbytes, cq_nbytes, sqes_nbytes;
} kv_ring;

typedef struct {
    uint64_t number;
    int32_t result; /* bytes moved, or -errno */
} kv_ring_event;

/* Room for `entries` requests under way. 0, or -errno where the kernel, seccomp or a limit refuses it. */
int kv_ring_create(kv_ring *ring, unsigned entries);
void kv_ring_destroy(kv_ring *ring);
/* Queue a vectored transfer at `offset`; `vectors` stay valid until its event.
 * REQUIRES: fewer than `entries` requests under way. */
void kv_ring_transfer(kv_ring *ring, int writing, int fd, const struct iovec *vectors, unsigned num_vectors,
                      int64_t offset, uint64_t number);
/* Queue a read of 8 bytes from an eventfd. REQUIRES: as kv_ring_transfer. */
void kv_ring_read_event(kv_ring *ring, int event_fd, uint64_t *value, uint64_t number);
/* Hand everything queued to the kernel and wait for at least one event: 0, or -errno (-EINTR, -EAGAIN, -EBUSY: again). */
int kv_ring_enter(kv_ring *ring);
/* Up to `events_max` events that have come. */
unsigned kv_ring_events(kv_ring *ring, kv_ring_event *events, unsigned events_max);

#endif
