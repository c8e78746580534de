/* XXH3 with seed 0 and the default secret (the algorithm of Y. Collet's xxHash, written from its specification).
 * Long inputs run over SSE2, AVX2 or AVX-512 lanes, whatever the processor has; the result is the same. */
#ifndef KV_XXH3_H
#define KV_XXH3_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    uint64_t low, high;
} kv_hash128;

enum kv_lanes { KV_LANES_BEST = 0, KV_LANES_SCALAR = 1, KV_LANES_AVX2 = 2, KV_LANES_AVX512 = 3 };

uint64_t kv_xxh3_64(const void *data, size_t nbytes);
kv_hash128 kv_xxh3_128(const void *data, size_t nbytes);
/* The same with chosen lanes, for tests: 0 when the processor has them not. */
int kv_xxh3_with(enum kv_lanes lanes, const void *data, size_t nbytes, uint64_t *hash64, kv_hash128 *hash128);

#endif
