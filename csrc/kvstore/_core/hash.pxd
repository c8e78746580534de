from libc.stdint cimport uint8_t, uint32_t, uint64_t


cdef extern from "xxh3.h" nogil:
    ctypedef struct kv_hash128:
        uint64_t low, high
    enum kv_lanes:
        KV_LANES_BEST
    uint64_t kv_xxh3_64(const void *data, size_t nbytes)
    kv_hash128 kv_xxh3_128(const void *data, size_t nbytes)
    int kv_xxh3_with(kv_lanes lanes, const void *data, size_t nbytes, uint64_t *hash64, kv_hash128 *hash128)

cdef extern from "chain.h" nogil:
    enum: KV_BLOCK_TOKENS_MAX
    ctypedef void (*kv_sha256_compress)(uint32_t *state, const uint8_t *blocks, size_t num_blocks) noexcept
    void kv_sha256_compress_portable(uint32_t *state, const uint8_t *blocks, size_t num_blocks) noexcept
    kv_sha256_compress kv_sha256_best()
    int kv_sha256_hardware()
    void kv_sha256_start(uint32_t *state)
    void kv_sha256(kv_sha256_compress compress, const uint8_t *data, size_t nbytes, uint8_t *digest)
    void kv_chain_sha256(kv_sha256_compress compress, const uint8_t *seed, const uint32_t *tokens, size_t num_blocks,
                         uint32_t block_tokens, uint8_t *keys)
    void kv_chain_xxh3_128(const uint8_t *seed, const uint32_t *tokens, size_t num_blocks, uint32_t block_tokens,
                           uint8_t *keys)
    void kv_chain_mix(kv_sha256_compress compress, const uint8_t *seed, const uint8_t *hashes, size_t num_hashes,
                      size_t width, uint8_t *keys)
