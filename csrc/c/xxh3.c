#include "xxh3.h"

#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "written for little-endian machines"
#endif

#define PRIME32_1 0x9E3779B1ULL
#define PRIME32_2 0x85EBCA77ULL
#define PRIME32_3 0xC2B2AE3DULL
#define PRIME64_1 0x9E3779B185EBCA87ULL
#define PRIME64_2 0xC2B2AE3D27D4EB4FULL
#define PRIME64_3 0x165667B19E3779F9ULL
#define PRIME64_4 0x85EBCA77C2B2AE63ULL
#define PRIME64_5 0x27D4EB2F165667C5ULL
#define MIX_1 0x165667919E3779F9ULL
#define MIX_2 0x9FB21C651E98DF25ULL
#define SECRET_NBYTES 192
#define STRIPE 64
#define STRIPES_PER_ROUND ((SECRET_NBYTES - STRIPE) / 8)

static const uint8_t secret[SECRET_NBYTES] __attribute__((aligned(64))) = {
    0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c,
    0xde, 0xd4, 0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb, 0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f,
    0xcb, 0x79, 0xe6, 0x4e, 0xcc, 0xc0, 0xe5, 0x78, 0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21,
    0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43, 0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c,
    0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3, 0x00, 0xcb, 0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3,
    0x71, 0x64, 0x48, 0x97, 0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19, 0xef, 0x46, 0xa9, 0xde, 0xac, 0xd8,
    0xa8, 0xfa, 0x76, 0x3f, 0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7, 0xc7, 0x0b, 0x4f, 0x1d,
    0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31, 0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78, 0x73, 0x64,
    0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3, 0xc5, 0x81, 0xa0, 0xff, 0xfa, 0x13, 0x63, 0xeb,
    0x17, 0x0d, 0xdd, 0x51, 0xb7, 0xf0, 0xda, 0x49, 0xd3, 0x16, 0x55, 0x26, 0x29, 0xd4, 0x68, 0x9e,
    0x2b, 0x16, 0xbe, 0x58, 0x7d, 0x47, 0xa1, 0xfc, 0x8f, 0xf8, 0xb8, 0xd1, 0x7a, 0xd0, 0x31, 0xce,
    0x45, 0xcb, 0x3a, 0x8f, 0x95, 0x16, 0x04, 0x28, 0xaf, 0xd7, 0xfb, 0xca, 0xbb, 0x4b, 0x40, 0x7e,
};

static inline uint32_t read32(const uint8_t *at) {
    uint32_t value;
    memcpy(&value, at, 4);
    return value;
}
static inline uint64_t read64(const uint8_t *at) {
    uint64_t value;
    memcpy(&value, at, 8);
    return value;
}
static inline uint64_t rotate64(uint64_t value, int by) { return value << by | value >> (64 - by); }
static inline uint64_t fold(uint64_t a, uint64_t b) {
    __uint128_t product = (__uint128_t)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}
static inline uint64_t avalanche(uint64_t hash) {
    hash = (hash ^ hash >> 37) * MIX_1;
    return hash ^ hash >> 32;
}
static inline uint64_t avalanche_short(uint64_t hash) {
    hash = (hash ^ hash >> 33) * PRIME64_2;
    hash = (hash ^ hash >> 29) * PRIME64_3;
    return hash ^ hash >> 32;
}
static inline uint64_t mix16(const uint8_t *in, const uint8_t *key) {
    return fold(read64(in) ^ read64(key), read64(in + 8) ^ read64(key + 8));
}

/* ---- up to 16 bytes ---- */

static inline uint32_t combine_1to3(const uint8_t *in, size_t n) {
    return (uint32_t)in[0] << 16 | (uint32_t)in[n >> 1] << 24 | in[n - 1] | (uint32_t)n << 8;
}

static uint64_t short64(const uint8_t *in, size_t n) {
    if (n > 8) {
        uint64_t low = read64(in) ^ (read64(secret + 24) ^ read64(secret + 32));
        uint64_t high = read64(in + n - 8) ^ (read64(secret + 40) ^ read64(secret + 48));
        return avalanche(n + __builtin_bswap64(low) + high + fold(low, high));
    }
    if (n >= 4) {
        uint64_t both = read32(in + n - 4) + ((uint64_t)read32(in) << 32);
        uint64_t hash = both ^ (read64(secret + 8) ^ read64(secret + 16));
        hash ^= rotate64(hash, 49) ^ rotate64(hash, 24);
        hash *= MIX_2;
        hash ^= (hash >> 35) + n;
        hash *= MIX_2;
        return hash ^ hash >> 28;
    }
    if (n > 0) return avalanche_short(combine_1to3(in, n) ^ (uint64_t)(read32(secret) ^ read32(secret + 4)));
    return avalanche_short(read64(secret + 56) ^ read64(secret + 64));
}

static kv_hash128 short128(const uint8_t *in, size_t n) {
    kv_hash128 out;
    if (n > 8) {
        uint64_t low = read64(in), high = read64(in + n - 8);
        uint64_t flip_low = read64(secret + 32) ^ read64(secret + 40);
        __uint128_t product = (__uint128_t)(low ^ high ^ flip_low) * PRIME64_1;
        uint64_t m_low = (uint64_t)product + ((uint64_t)(n - 1) << 54), m_high = (uint64_t)(product >> 64);
        high ^= read64(secret + 48) ^ read64(secret + 56);
        m_high += high + (uint64_t)(uint32_t)high * (PRIME32_2 - 1);
        m_low ^= __builtin_bswap64(m_high);
        product = (__uint128_t)m_low * PRIME64_2;
        out.low = avalanche((uint64_t)product);
        out.high = avalanche((uint64_t)(product >> 64) + m_high * PRIME64_2);
    } else if (n >= 4) {
        uint64_t both = read32(in) + ((uint64_t)read32(in + n - 4) << 32);
        uint64_t keyed = both ^ (read64(secret + 16) ^ read64(secret + 24));
        __uint128_t product = (__uint128_t)keyed * (PRIME64_1 + (n << 2));
        uint64_t low = (uint64_t)product, high = (uint64_t)(product >> 64) + (low << 1);
        low ^= high >> 3;
        low = (low ^ low >> 35) * MIX_2;
        out.low = low ^ low >> 28;
        out.high = avalanche(high);
    } else if (n > 0) {
        uint32_t low = combine_1to3(in, n), swapped = __builtin_bswap32(low);
        uint32_t high = swapped << 13 | swapped >> 19;
        out.low = avalanche_short(low ^ (uint64_t)(read32(secret) ^ read32(secret + 4)));
        out.high = avalanche_short(high ^ (uint64_t)(read32(secret + 8) ^ read32(secret + 12)));
    } else {
        out.low = avalanche_short(read64(secret + 64) ^ read64(secret + 72));
        out.high = avalanche_short(read64(secret + 80) ^ read64(secret + 88));
    }
    return out;
}

/* ---- 17 to 240 bytes ---- */

static uint64_t middle64(const uint8_t *in, size_t n) {
    uint64_t sum = n * PRIME64_1;
    if (n <= 128) {
        for (size_t i = (n - 1) / 32 + 1; i-- > 0;) /* pairs from the middle outwards */
            sum += mix16(in + 16 * i, secret + 32 * i) + mix16(in + n - 16 * (i + 1), secret + 32 * i + 16);
        return avalanche(sum);
    }
    for (size_t i = 0; i < 8; i++) sum += mix16(in + 16 * i, secret + 16 * i);
    sum = avalanche(sum);
    for (size_t i = 8; i < n / 16; i++) sum += mix16(in + 16 * i, secret + 16 * (i - 8) + 3);
    return avalanche(sum + mix16(in + n - 16, secret + 136 - 17));
}

static inline void mix32(kv_hash128 *sum, const uint8_t *one, const uint8_t *two, const uint8_t *key) {
    sum->low += mix16(one, key);
    sum->low ^= read64(two) + read64(two + 8);
    sum->high += mix16(two, key + 16);
    sum->high ^= read64(one) + read64(one + 8);
}

static inline kv_hash128 finish128(kv_hash128 sum, size_t n) {
    kv_hash128 out = {.low = avalanche(sum.low + sum.high),
                      .high = 0 - avalanche(sum.low * PRIME64_1 + sum.high * PRIME64_4 + n * PRIME64_2)};
    return out;
}

static kv_hash128 middle128(const uint8_t *in, size_t n) {
    kv_hash128 sum = {.low = n * PRIME64_1, .high = 0};
    if (n <= 128) {
        for (size_t i = (n - 1) / 32 + 1; i-- > 0;) mix32(&sum, in + 16 * i, in + n - 16 * (i + 1), secret + 32 * i);
        return finish128(sum, n);
    }
    for (size_t i = 0; i < 128; i += 32) mix32(&sum, in + i, in + i + 16, secret + i);
    sum.low = avalanche(sum.low);
    sum.high = avalanche(sum.high);
    for (size_t i = 128; i + 32 <= n; i += 32) mix32(&sum, in + i, in + i + 16, secret + 3 + i - 128);
    mix32(&sum, in + n - 16, in + n - 32, secret + 136 - 17 - 16);
    return finish128(sum, n);
}

/* ---- more than 240 bytes: eight 64-bit accumulators over stripes of 64 bytes ---- */

typedef uint64_t lanes[8] __attribute__((aligned(64)));

static inline void step_scalar(uint64_t *sums, const uint8_t *at, const uint8_t *key) {
    for (int i = 0; i < 8; i++) {
        uint64_t data = read64(at + 8 * i), mixed = data ^ read64(key + 8 * i);
        sums[i ^ 1] += data;
        sums[i] += (mixed & 0xffffffff) * (mixed >> 32);
    }
}

static void accumulate_scalar(uint64_t *sums, const uint8_t *in, size_t num_stripes) {
    for (size_t stripe = 0; stripe < num_stripes; stripe++)
        step_scalar(sums, in + stripe * STRIPE, secret + stripe * 8);
}

static void scramble(uint64_t *sums) {
    const uint8_t *key = secret + SECRET_NBYTES - STRIPE;
    for (int i = 0; i < 8; i++) sums[i] = (sums[i] ^ sums[i] >> 47 ^ read64(key + 8 * i)) * PRIME32_1;
}

static void sum_scalar(uint64_t *sums, const uint8_t *in, size_t n) {
    size_t round_nbytes = STRIPE * STRIPES_PER_ROUND, rounds = (n - 1) / round_nbytes;
    for (size_t i = 0; i < rounds; i++) {
        accumulate_scalar(sums, in + i * round_nbytes, STRIPES_PER_ROUND);
        scramble(sums);
    }
    accumulate_scalar(sums, in + rounds * round_nbytes, (n - 1 - rounds * round_nbytes) / STRIPE);
    step_scalar(sums, in + n - STRIPE, secret + SECRET_NBYTES - STRIPE - 7);
}

#if defined(__x86_64__)
/* Both vector forms: product of the halves, plus the data with neighbouring lanes swapped. */
__attribute__((target("avx2"))) static inline __m256i step_avx2(__m256i sum, const uint8_t *in, const uint8_t *key) {
    __m256i data = _mm256_loadu_si256((const __m256i *)in);
    __m256i mixed = _mm256_xor_si256(data, _mm256_loadu_si256((const __m256i *)key));
    __m256i product = _mm256_mul_epu32(mixed, _mm256_srli_epi64(mixed, 32));
    return _mm256_add_epi64(product, _mm256_add_epi64(sum, _mm256_shuffle_epi32(data, 0x4e)));
}

__attribute__((target("avx2"))) static inline __m256i scramble_avx2(__m256i sum, const uint8_t *key) {
    const __m256i prime = _mm256_set1_epi32((int)PRIME32_1);
    __m256i mixed = _mm256_xor_si256(_mm256_xor_si256(sum, _mm256_srli_epi64(sum, 47)),
                                     _mm256_loadu_si256((const __m256i *)key));
    __m256i high = _mm256_mul_epu32(_mm256_srli_epi64(mixed, 32), prime);
    return _mm256_add_epi64(_mm256_mul_epu32(mixed, prime), _mm256_slli_epi64(high, 32));
}

__attribute__((target("avx2"))) static void sum_avx2(uint64_t *sums, const uint8_t *in, size_t n) {
    size_t round_nbytes = STRIPE * STRIPES_PER_ROUND, rounds = (n - 1) / round_nbytes;
    __m256i a = _mm256_load_si256((__m256i *)sums), b = _mm256_load_si256((__m256i *)sums + 1);
    for (size_t i = 0; i <= rounds; i++, in += round_nbytes) {
        size_t stripes = i < rounds ? STRIPES_PER_ROUND : (n - 1 - rounds * round_nbytes) / STRIPE;
        for (size_t s = 0; s < stripes; s++) {
            _mm_prefetch((const char *)in + s * STRIPE + 1024, _MM_HINT_T0);
            a = step_avx2(a, in + s * STRIPE, secret + 8 * s);
            b = step_avx2(b, in + s * STRIPE + 32, secret + 8 * s + 32);
        }
        if (i == rounds) break;
        a = scramble_avx2(a, secret + SECRET_NBYTES - STRIPE);
        b = scramble_avx2(b, secret + SECRET_NBYTES - STRIPE + 32);
    }
    in += n - rounds * round_nbytes - STRIPE;
    a = step_avx2(a, in, secret + SECRET_NBYTES - STRIPE - 7);
    b = step_avx2(b, in + 32, secret + SECRET_NBYTES - STRIPE - 7 + 32);
    _mm256_store_si256((__m256i *)sums, a);
    _mm256_store_si256((__m256i *)sums + 1, b);
}

__attribute__((target("avx512f"))) static inline __m512i step_avx512(__m512i sum, const uint8_t *in,
                                                                     const uint8_t *key) {
    __m512i data = _mm512_loadu_si512(in), mixed = _mm512_xor_si512(data, _mm512_loadu_si512(key));
    __m512i product = _mm512_mul_epu32(mixed, _mm512_srli_epi64(mixed, 32));
    return _mm512_add_epi64(product, _mm512_add_epi64(sum, _mm512_shuffle_epi32(data, (_MM_PERM_ENUM)0x4e)));
}

__attribute__((target("avx512f"))) static void sum_avx512(uint64_t *sums, const uint8_t *in, size_t n) {
    size_t round_nbytes = STRIPE * STRIPES_PER_ROUND, rounds = (n - 1) / round_nbytes;
    const __m512i prime = _mm512_set1_epi32((int)PRIME32_1);
    const __m512i key = _mm512_loadu_si512(secret + SECRET_NBYTES - STRIPE);
    __m512i a = _mm512_load_si512(sums);
    for (size_t i = 0; i <= rounds; i++, in += round_nbytes) {
        size_t stripes = i < rounds ? STRIPES_PER_ROUND : (n - 1 - rounds * round_nbytes) / STRIPE;
        for (size_t s = 0; s < stripes; s++) {
            _mm_prefetch((const char *)in + s * STRIPE + 1024, _MM_HINT_T0);
            a = step_avx512(a, in + s * STRIPE, secret + 8 * s);
        }
        if (i == rounds) break;
        __m512i mixed = _mm512_xor_si512(_mm512_xor_si512(a, _mm512_srli_epi64(a, 47)), key);
        __m512i high = _mm512_mul_epu32(_mm512_srli_epi64(mixed, 32), prime);
        a = _mm512_add_epi64(_mm512_mul_epu32(mixed, prime), _mm512_slli_epi64(high, 32));
    }
    in += n - rounds * round_nbytes - STRIPE;
    _mm512_store_si512(sums, step_avx512(a, in, secret + SECRET_NBYTES - STRIPE - 7));
}
#endif

static int sum_with(enum kv_lanes which, uint64_t *sums, const uint8_t *in, size_t n) {
#if defined(__x86_64__)
    int avx512 = __builtin_cpu_supports("avx512f"), avx2 = __builtin_cpu_supports("avx2");
    if (avx512 && (which == KV_LANES_BEST || which == KV_LANES_AVX512)) return sum_avx512(sums, in, n), 1;
    if (avx2 && (which == KV_LANES_BEST || which == KV_LANES_AVX2)) return sum_avx2(sums, in, n), 1;
#endif
    if (which != KV_LANES_BEST && which != KV_LANES_SCALAR) return 0;
    sum_scalar(sums, in, n);
    return 1;
}

static inline void start_lanes(uint64_t *sums) {
    const uint64_t start[8] = {PRIME32_3, PRIME64_1, PRIME64_2, PRIME64_3, PRIME64_4, PRIME32_2, PRIME64_5, PRIME32_1};
    memcpy(sums, start, sizeof start);
}

static uint64_t merge(const uint64_t *sums, const uint8_t *key, uint64_t start) {
    for (int i = 0; i < 4; i++) start += fold(sums[2 * i] ^ read64(key + 16 * i), sums[2 * i + 1] ^ read64(key + 16 * i + 8));
    return avalanche(start);
}

static uint64_t finish_long64(const uint64_t *sums, size_t n) { return merge(sums, secret + 11, n * PRIME64_1); }

static kv_hash128 finish_long128(const uint64_t *sums, size_t n) {
    kv_hash128 out = {.low = merge(sums, secret + 11, n * PRIME64_1),
                      .high = merge(sums, secret + SECRET_NBYTES - STRIPE - 11, ~(n * PRIME64_2))};
    return out;
}

uint64_t kv_xxh3_64(const void *data, size_t nbytes) {
    if (nbytes <= 16) return short64(data, nbytes);
    if (nbytes <= 240) return middle64(data, nbytes);
    lanes sums;
    start_lanes(sums);
    sum_with(KV_LANES_BEST, sums, data, nbytes);
    return finish_long64(sums, nbytes);
}

kv_hash128 kv_xxh3_128(const void *data, size_t nbytes) {
    if (nbytes <= 16) return short128(data, nbytes);
    if (nbytes <= 240) return middle128(data, nbytes);
    lanes sums;
    start_lanes(sums);
    sum_with(KV_LANES_BEST, sums, data, nbytes);
    return finish_long128(sums, nbytes);
}

int kv_xxh3_with(enum kv_lanes which, const void *data, size_t nbytes, uint64_t *hash64, kv_hash128 *hash128) {
    lanes sums;
    start_lanes(sums);
    if (nbytes <= 240) {
        *hash64 = kv_xxh3_64(data, nbytes);
        *hash128 = kv_xxh3_128(data, nbytes);
        return 1;
    }
    if (!sum_with(which, sums, data, nbytes)) return 0;
    *hash64 = finish_long64(sums, nbytes);
    *hash128 = finish_long128(sums, nbytes);
    return 1;
}
