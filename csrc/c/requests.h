/* The requests of a trace as arrays, for the simulation and the optimum; whoever calls owns them.
 *
 * Ids are dense: numbers below `num_ids`, one for each block that the trace names. They are chained: a block follows the
 * same one wherever it occurs, so no request names one twice.
 */
#ifndef KV_REQUESTS_H
#define KV_REQUESTS_H

#include <stdint.h>

typedef struct {
    const uint32_t *ids;           /* of all requests, one behind the other */
    const uint64_t *starts;        /* of each request's ids, and the end of the last one's */
    const uint32_t *num_blocks;    /* how many leading ids of each request a cache is asked for and offered */
    const uint64_t *times_ms;      /* never goes back */
    const uint32_t *output_tokens; /* known when a request ends, with why it ended */
    const uint8_t *stops;          /* kv_ending */
    uint32_t num_requests, num_ids;
} kv_requests;

/* What each request found and left. `blocks`: stored anywhere among what it asked for, `prefix`: the leading ones. */
typedef struct {
    uint32_t *prefix, *blocks, *fills;
} kv_request_hits;

#endif
