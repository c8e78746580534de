#include "chain.h"

#include <string.h>

#include "xxh3.h"

/* Whole message of one block: parent, tokens, padding. Only the parent and the tokens change from block to block. */
typedef struct {
    uint8_t bytes[32 + 4 * KV_BLOCK_TOKENS_MAX + 128];
    size_t num_blocks;
} message;

static void pad(message *message, size_t nbytes) {
    message->num_blocks = (nbytes + 9 + 63) / 64;
    size_t total = message->num_blocks * 64;
    memset(message->bytes + nbytes, 0, total - nbytes);
    message->bytes[nbytes] = 0x80;
    uint64_t num_bits = __builtin_bswap64((uint64_t)nbytes * 8);
    memcpy(message->bytes + total - 8, &num_bits, 8);
}

void kv_chain_sha256(kv_sha256_compress compress, const uint8_t seed[32], const uint32_t *tokens, size_t num_blocks,
                     uint32_t block_tokens, uint8_t *keys) {
    message message;
    size_t token_nbytes = 4 * (size_t)block_tokens;
    const uint8_t *parent = seed;
    pad(&message, 32 + token_nbytes);
    for (size_t i = 0; i < num_blocks; i++) {
        uint32_t state[8];
        memcpy(message.bytes, parent, 32);
        memcpy(message.bytes + 32, tokens + i * block_tokens, token_nbytes);
        kv_sha256_start(state);
        compress(state, message.bytes, message.num_blocks);
        kv_sha256_output(state, keys + 32 * i);
        parent = keys + 32 * i;
    }
}

void kv_chain_xxh3_128(const uint8_t seed[32], const uint32_t *tokens, size_t num_blocks, uint32_t block_tokens,
                       uint8_t *keys) {
    uint8_t bytes[16 + 4 * KV_BLOCK_TOKENS_MAX];
    size_t token_nbytes = 4 * (size_t)block_tokens;
    memcpy(bytes, seed, 16);
    for (size_t i = 0; i < num_blocks; i++) {
        memcpy(bytes + 16, tokens + i * block_tokens, token_nbytes);
        kv_hash128 hash = kv_xxh3_128(bytes, 16 + token_nbytes);
        uint64_t canonical[2] = {__builtin_bswap64(hash.high), __builtin_bswap64(hash.low)};
        memcpy(bytes, canonical, 16);
        memcpy(keys + 32 * i, canonical, 16);
        memcpy(keys + 32 * i + 16, seed + 16, 16);
    }
}

void kv_chain_mix(kv_sha256_compress compress, const uint8_t seed[32], const uint8_t *hashes, size_t num_hashes,
                  size_t width, uint8_t *keys) {
    message message;
    memcpy(message.bytes, seed, 32);
    pad(&message, 32 + width);
    for (size_t i = 0; i < num_hashes; i++) {
        uint32_t state[8];
        memcpy(message.bytes + 32, hashes + i * width, width);
        kv_sha256_start(state);
        compress(state, message.bytes, message.num_blocks);
        kv_sha256_output(state, keys + 32 * i);
    }
}
