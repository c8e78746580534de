#include "ring.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__has_include)
#if __has_include(<linux/io_uring.h>)
#include <linux/io_uring.h>
#define HAVE_IO_URING 1
#endif
#endif

#if defined(HAVE_IO_URING) && defined(__NR_io_uring_setup)

static unsigned load_acquire(const unsigned *at) { return __atomic_load_n(at, __ATOMIC_ACQUIRE); }
static void store_release(unsigned *at, unsigned value) { __atomic_store_n(at, value, __ATOMIC_RELEASE); }

/* Does this kernel know the requests that we make? */
static int knows_requests(int fd) {
    union {
        struct io_uring_probe probe;
        uint8_t room[sizeof(struct io_uring_probe) + 256 * sizeof(struct io_uring_probe_op)];
    } found;
    memset(&found, 0, sizeof found);
    if (syscall(__NR_io_uring_register, fd, IORING_REGISTER_PROBE, &found, 256) != 0) return 0;
    const int wanted[] = {IORING_OP_READV, IORING_OP_WRITEV, IORING_OP_READ};
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++)
        if (wanted[i] > found.probe.last_op || !(found.probe.ops[wanted[i]].flags & IO_URING_OP_SUPPORTED)) return 0;
    return 1;
}

static void *map_part(const kv_ring *ring, size_t nbytes, off_t what) {
    void *part = mmap(NULL, nbytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring->fd, what);
    return part == MAP_FAILED ? NULL : part;
}

static int map_all(kv_ring *ring, const struct io_uring_params *params) {
    ring->sq_nbytes = params->sq_off.array + params->sq_entries * sizeof(unsigned);
    ring->cq_nbytes = params->cq_off.cqes + params->cq_entries * sizeof(struct io_uring_cqe);
    ring->sqes_nbytes = params->sq_entries * sizeof(struct io_uring_sqe);
    ring->sq_memory = map_part(ring, ring->sq_nbytes, IORING_OFF_SQ_RING);
    ring->cq_memory = map_part(ring, ring->cq_nbytes, IORING_OFF_CQ_RING);
    ring->sqes = map_part(ring, ring->sqes_nbytes, IORING_OFF_SQES);
    if (!ring->sq_memory || !ring->cq_memory || !ring->sqes) return -ENOMEM;
    char *sq = ring->sq_memory, *cq = ring->cq_memory;
    ring->sq_head = (unsigned *)(sq + params->sq_off.head);
    ring->sq_tail = (unsigned *)(sq + params->sq_off.tail);
    ring->sq_mask = (unsigned *)(sq + params->sq_off.ring_mask);
    ring->sq_array = (unsigned *)(sq + params->sq_off.array);
    ring->cq_head = (unsigned *)(cq + params->cq_off.head);
    ring->cq_tail = (unsigned *)(cq + params->cq_off.tail);
    ring->cq_mask = (unsigned *)(cq + params->cq_off.ring_mask);
    ring->cqes = (struct io_uring_cqe *)(cq + params->cq_off.cqes);
    return 0;
}

int kv_ring_create(kv_ring *ring, unsigned entries) {
    struct io_uring_params params;
    memset(&params, 0, sizeof params);
    memset(ring, 0, sizeof *ring);
    ring->entries = entries;
    ring->fd = (int)syscall(__NR_io_uring_setup, entries, &params);
    if (ring->fd < 0) return -errno;
    int code = knows_requests(ring->fd) ? map_all(ring, &params) : -ENOSYS;
    if (code < 0) kv_ring_destroy(ring);
    return code;
}

void kv_ring_destroy(kv_ring *ring) {
    if (ring->sq_memory) munmap(ring->sq_memory, ring->sq_nbytes);
    if (ring->cq_memory) munmap(ring->cq_memory, ring->cq_nbytes);
    if (ring->sqes) munmap(ring->sqes, ring->sqes_nbytes);
    if (ring->fd >= 0) close(ring->fd);
    memset(ring, 0, sizeof *ring);
    ring->fd = -1;
}

static void queue(kv_ring *ring, uint8_t opcode, int fd, const void *memory, unsigned length, uint64_t offset,
                  uint64_t number) {
    unsigned tail = *ring->sq_tail, at = tail & *ring->sq_mask;
    struct io_uring_sqe *sqe = &ring->sqes[at];
    memset(sqe, 0, sizeof *sqe);
    sqe->opcode = opcode;
    sqe->fd = fd;
    sqe->addr = (uint64_t)(uintptr_t)memory;
    sqe->len = length;
    sqe->off = offset;
    sqe->user_data = number;
    ring->sq_array[at] = at;
    store_release(ring->sq_tail, tail + 1);
    ring->num_unsubmitted++;
}

void kv_ring_transfer(kv_ring *ring, int writing, int fd, const struct iovec *vectors, unsigned num_vectors,
                      int64_t offset, uint64_t number) {
    queue(ring, writing ? IORING_OP_WRITEV : IORING_OP_READV, fd, vectors, num_vectors, (uint64_t)offset, number);
}

void kv_ring_read_event(kv_ring *ring, int event_fd, uint64_t *value, uint64_t number) {
    queue(ring, IORING_OP_READ, event_fd, value, sizeof *value, 0, number);
}

int kv_ring_enter(kv_ring *ring) {
    long taken = syscall(__NR_io_uring_enter, ring->fd, ring->num_unsubmitted, 1, IORING_ENTER_GETEVENTS, NULL, 0);
    if (taken < 0) return -errno;
    ring->num_unsubmitted -= (unsigned)taken;
    return 0;
}

unsigned kv_ring_events(kv_ring *ring, kv_ring_event *events, unsigned events_max) {
    unsigned head = *ring->cq_head, num = 0;
    const unsigned tail = load_acquire(ring->cq_tail);
    for (; head != tail && num < events_max; head++, num++) {
        const struct io_uring_cqe *cqe = &ring->cqes[head & *ring->cq_mask];
        events[num] = (kv_ring_event){cqe->user_data, cqe->res};
    }
    store_release(ring->cq_head, head);
    return num;
}

#else /* built without the kernel's header */

int kv_ring_create(kv_ring *ring, unsigned entries) {
    (void)entries;
    memset(ring, 0, sizeof *ring);
    ring->fd = -1;
    return -ENOSYS;
}
void kv_ring_destroy(kv_ring *ring) { (void)ring; }
void kv_ring_transfer(kv_ring *ring, int writing, int fd, const struct iovec *vectors, unsigned num_vectors,
                      int64_t offset, uint64_t number) {
    (void)ring, (void)writing, (void)fd, (void)vectors, (void)num_vectors, (void)offset, (void)number;
}
void kv_ring_read_event(kv_ring *ring, int event_fd, uint64_t *value, uint64_t number) {
    (void)ring, (void)event_fd, (void)value, (void)number;
}
int kv_ring_enter(kv_ring *ring) {
    (void)ring;
    return -ENOSYS;
}
unsigned kv_ring_events(kv_ring *ring, kv_ring_event *events, unsigned events_max) {
    (void)ring, (void)events, (void)events_max;
    return 0;
}

#endif
