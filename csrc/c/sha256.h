/* SHA-256 (FIPS 180-4), with the processor's SHA instructions where it has them. */
#ifndef KV_SHA256_H
#define KV_SHA256_H

#include <stddef.h>
#include <stdint.h>

/* Compress `num_blocks` 64-byte blocks into `state`. */
typedef void (*kv_sha256_compress)(uint32_t state[8], const uint8_t *blocks, size_t num_blocks);

void kv_sha256_compress_portable(uint32_t state[8], const uint8_t *blocks, size_t num_blocks);
/* The fastest that this processor runs. */
kv_sha256_compress kv_sha256_best(void);
int kv_sha256_hardware(void); /* does kv_sha256_best use SHA instructions? */

void kv_sha256_start(uint32_t state[8]);
void kv_sha256_output(const uint32_t state[8], uint8_t digest[32]);
/* Whole messages. */
void kv_sha256(kv_sha256_compress compress, const uint8_t *data, size_t nbytes, uint8_t digest[32]);

#endif
