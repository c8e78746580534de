/* The best that any cache could do with a trace, with the whole of it known in advance.
 *
 * After each request it keeps, of what is cached and what was asked for, the blocks with the nearest next request; of
 * those with the same next request the shallower ones; blocks that are never asked for again go. A block is never
 * asked for later than one that extends it, so what is kept is closed under prefixes, and no cache of the same size has
 * more hits, whether of blocks or of prefixes.
 */
#ifndef KV_OPTIMUM_H
#define KV_OPTIMUM_H

#include "requests.h"

/* Hits and fills of a cache of `capacity` blocks. 0 or -ENOMEM; `*cpu_ns`: the thread's processor time. */
int kv_optimum_play(const kv_requests *requests, uint64_t capacity, const kv_request_hits *hits, uint64_t *cpu_ns);

#endif
