/* Keys of the blocks of a prompt: each is the hash of the key before it and of the block's tokens. */
#ifndef KV_CHAIN_H
#define KV_CHAIN_H

#include "sha256.h"

#define KV_SEED_NBYTES 32
#define KV_BLOCK_TOKENS_MAX 4096

/* key[i] = SHA-256(key[i-1] || tokens of block i as little-endian u32), key[-1] = seed. `keys`: 32 bytes a block. */
void kv_chain_sha256(kv_sha256_compress compress, const uint8_t seed[32], const uint32_t *tokens, size_t num_blocks,
                     uint32_t block_tokens, uint8_t *keys);
/* digest[i] = XXH3-128(digest[i-1] || tokens) in canonical byte order, digest[-1] = seed[0..16);
 * key[i] = digest[i] || seed[16..32). */
void kv_chain_xxh3_128(const uint8_t seed[32], const uint32_t *tokens, size_t num_blocks, uint32_t block_tokens,
                       uint8_t *keys);
/* key = SHA-256(seed || hash) for an engine's own block hashes of `width` bytes each. */
void kv_chain_mix(kv_sha256_compress compress, const uint8_t seed[32], const uint8_t *hashes, size_t num_hashes,
                  size_t width, uint8_t *keys);

#endif
