/* Processor time of the calling thread: what its work costs, whoever else runs meanwhile. */
#ifndef KV_THREAD_CLOCK_H
#define KV_THREAD_CLOCK_H

#include <stdint.h>
#include <time.h>

static inline uint64_t kv_thread_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

#endif
