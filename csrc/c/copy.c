#include "copy.h"

#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#define KV_COPY_X86 1
#else
#define KV_COPY_X86 0
#endif

#define LINE_NBYTES ((size_t)64)
#define NUM_LANES 4
/* Runs looked at together; on the stack, 6 KiB. The lanes drain once per so many runs. */
#define NUM_RUNS_MAX 256
/* How far ahead the source is prefetched into L1, per lane and for a run on its own. */
#define LANE_DISTANCE_NBYTES ((size_t)2560)
#define SINGLE_DISTANCE_NBYTES ((size_t)6144)
/* From this size on, a run on its own is faster with the processor's prefetcher alone. */
#define SINGLE_PREFETCH_NBYTES_MAX ((size_t)256 << 10)
/* Below this, runs whose sources follow one another are faster one by one: the source is a single stream. */
#define SINGLE_STREAM_NBYTES_MAX ((size_t)32 << 10)

/* A stretch of memory that is contiguous on both sides. */
struct run {
    unsigned char *dst;
    const unsigned char *src;
    size_t nbytes;
};

/* The loops of one instruction set; see copy_nt.h. */
struct loops {
    void (*copy_single)(unsigned char *, const unsigned char *, size_t, const unsigned char *, size_t);
    void (*copy_lockstep)(const struct run[NUM_LANES], const unsigned char *const[NUM_LANES], size_t);
};

static inline void kv_prefetch(const unsigned char *address)
{
    __builtin_prefetch(address, 0, 3);
}

#if KV_COPY_X86

/* A loop of a few instructions that straddles two cache lines of code loses up to 5 %. */
#if defined(__GNUC__) && !defined(__clang__)
#define ALIGNED_LOOPS , optimize("align-loops=64")
#else
#define ALIGNED_LOOPS
#endif

__attribute__((always_inline, target("sse2"))) static inline void line_sse2(unsigned char *dst,
                                                                            const unsigned char *src)
{
    const __m128i *from = (const __m128i *)(const void *)src;
    __m128i *to = (__m128i *)(void *)dst;
    const __m128i a = _mm_loadu_si128(from), b = _mm_loadu_si128(from + 1);
    const __m128i c = _mm_loadu_si128(from + 2), d = _mm_loadu_si128(from + 3);
    _mm_stream_si128(to, a);
    _mm_stream_si128(to + 1, b);
    _mm_stream_si128(to + 2, c);
    _mm_stream_si128(to + 3, d);
}

__attribute__((always_inline, target("avx2"))) static inline void line_avx2(unsigned char *dst,
                                                                            const unsigned char *src)
{
    const __m256i *from = (const __m256i *)(const void *)src;
    __m256i *to = (__m256i *)(void *)dst;
    const __m256i a = _mm256_loadu_si256(from), b = _mm256_loadu_si256(from + 1);
    _mm256_stream_si256(to, a);
    _mm256_stream_si256(to + 1, b);
}

__attribute__((always_inline, target("avx512f"))) static inline void line_avx512(unsigned char *dst,
                                                                                 const unsigned char *src)
{
    _mm512_stream_si512((__m512i *)(void *)dst, _mm512_loadu_si512(src));
}

#define KV_NT_NAME(x) x##_sse2
#define KV_NT_TARGET __attribute__((target("sse2") ALIGNED_LOOPS))
#define KV_NT_LINE(d, s) line_sse2(d, s)
#include "copy_nt.h"

#define KV_NT_NAME(x) x##_avx2
#define KV_NT_TARGET __attribute__((target("avx2") ALIGNED_LOOPS))
#define KV_NT_LINE(d, s) line_avx2(d, s)
#include "copy_nt.h"

#define KV_NT_NAME(x) x##_avx512
#define KV_NT_TARGET __attribute__((target("avx512f") ALIGNED_LOOPS))
#define KV_NT_LINE(d, s) line_avx512(d, s)
#include "copy_nt.h"

static const struct loops loops_sse2 = {copy_single_sse2, copy_lockstep_sse2};
static const struct loops loops_avx2 = {copy_single_avx2, copy_lockstep_avx2};
static const struct loops loops_avx512 = {copy_single_avx512, copy_lockstep_avx512};

static int has_sse2(void) { return 1; }
static int has_avx2(void) { return __builtin_cpu_supports("avx2") != 0; }
static int has_avx512(void) { return __builtin_cpu_supports("avx512f") != 0; }

/* Orders the non-temporal stores before every later store of this thread. */
static void fence(void) { _mm_sfence(); }

#define LOOPS(isa) &loops_##isa, has_##isa

#else

static int has_none(void) { return 0; } /* not this processor's */
static void fence(void) {}

#define LOOPS(isa) NULL, has_none

#endif

static int has_always(void) { return 1; }

static const struct kernel {
    const char *name;
    int lanes; /* four runs at a time, or one after the other */
    const struct loops *loops; /* NULL: memcpy */
    int (*usable)(void);
} kernels[KV_COPY_NUM_KERNELS] = {
    [KV_COPY_AUTO] = {"auto", 0, NULL, has_always},
    [KV_COPY_MEMCPY] = {"memcpy", 0, NULL, has_always},
    [KV_COPY_SSE2_NT] = {"sse2-nt", 0, LOOPS(sse2)},
    [KV_COPY_AVX2_NT] = {"avx2-nt", 0, LOOPS(avx2)},
    [KV_COPY_AVX512_NT] = {"avx512-nt", 0, LOOPS(avx512)},
    [KV_COPY_SSE2_LANES] = {"sse2-lanes", 1, LOOPS(sse2)},
    [KV_COPY_AVX2_LANES] = {"avx2-lanes", 1, LOOPS(avx2)},
    [KV_COPY_AVX512_LANES] = {"avx512-lanes", 1, LOOPS(avx512)},
};

const char *kv_copy_kernel_name(int kernel)
{
    return kernel >= 0 && kernel < KV_COPY_NUM_KERNELS ? kernels[kernel].name : NULL;
}

int kv_copy_kernel_usable(int kernel)
{
    return kernel >= 0 && kernel < KV_COPY_NUM_KERNELS && kernels[kernel].usable();
}

size_t kv_copy_find_bad(const uint64_t *dst, const uint64_t *src, size_t num_pieces, uint64_t nbytes)
{
    const uint64_t address_max = (uint64_t)UINTPTR_MAX;
    if (nbytes == 0)
        return num_pieces;
    for (size_t i = 0; i < num_pieces; i++) {
        const uint64_t low = dst[i] < src[i] ? dst[i] : src[i];
        const uint64_t high = dst[i] < src[i] ? src[i] : dst[i];
        if (low == 0 || high > address_max || nbytes > address_max - high || high - low < nbytes)
            return i;
    }
    return num_pieces;
}

static void copy_head(struct run *run, size_t nbytes)
{
    memcpy(run->dst, run->src, nbytes);
    run->dst += nbytes;
    run->src += nbytes;
    run->nbytes -= nbytes;
}

/* Copies what lies before the destination's first whole line. */
static struct run open_run(const struct run *run)
{
    struct run opened = *run;
    const size_t head = (size_t)(-(uintptr_t)run->dst % LINE_NBYTES);
    copy_head(&opened, head < run->nbytes ? head : run->nbytes);
    return opened;
}

/* The rest of an opened run, whole lines and then the tail. */
static void finish_run(const struct run *run, const struct loops *loops, const unsigned char *follow,
                       size_t distance)
{
    const size_t lines_nbytes = run->nbytes - run->nbytes % LINE_NBYTES;
    loops->copy_single(run->dst, run->src, lines_nbytes, follow, distance);
    memcpy(run->dst + lines_nbytes, run->src + lines_nbytes, run->nbytes - lines_nbytes);
}

/* Advances all four lanes by as many lines as the shortest has left, then gives each lane that is done its
 * next run. Returns how many of `runs` have been given out; a lane that gets none stays with 0 bytes. */
static size_t advance_lanes(struct run lanes[NUM_LANES], const struct loops *loops, const struct run *runs,
                            size_t num_runs, size_t next)
{
    const unsigned char *follow[NUM_LANES];
    size_t step = lanes[0].nbytes, upcoming = next;
    for (int lane = 1; lane < NUM_LANES; lane++)
        step = lanes[lane].nbytes < step ? lanes[lane].nbytes : step;
    step -= step % LINE_NBYTES;
    for (int lane = 0; lane < NUM_LANES; lane++) {
        const int done = lanes[lane].nbytes - step < LINE_NBYTES;
        follow[lane] = done && upcoming < num_runs ? runs[upcoming].src : lanes[lane].src + step;
        upcoming += (size_t)done;
        /* One line of the run after that: its address is translated by the time its head is prefetched. */
        if (done && upcoming + NUM_LANES <= num_runs)
            kv_prefetch(runs[upcoming + NUM_LANES - 1].src);
    }
    loops->copy_lockstep(lanes, follow, step);
    for (int lane = 0; lane < NUM_LANES; lane++) {
        struct run *run = &lanes[lane];
        run->dst += step;
        run->src += step;
        run->nbytes -= step;
        if (run->nbytes >= LINE_NBYTES)
            continue;
        copy_head(run, run->nbytes);
        if (next < num_runs)
            *run = open_run(&runs[next++]);
    }
    return next;
}

static int any_idle(const struct run lanes[NUM_LANES])
{
    int idle = 0;
    for (int lane = 0; lane < NUM_LANES; lane++)
        idle |= lanes[lane].nbytes == 0;
    return idle;
}

/* Four lanes, each refilled when its run is done; the last few runs, too few for four lanes, one by one. */
static void copy_in_lanes(const struct run *runs, size_t num_runs, const struct loops *loops)
{
    struct run lanes[NUM_LANES] = {{NULL, NULL, 0}};
    size_t next = 0, num_open = num_runs < NUM_LANES ? num_runs : NUM_LANES;
    for (; next < num_open; next++)
        lanes[next] = open_run(&runs[next]);
    while (num_open == NUM_LANES && (next < num_runs || !any_idle(lanes)))
        next = advance_lanes(lanes, loops, runs, num_runs, next);
    for (size_t lane = 0; lane < num_open; lane++) {
        const unsigned char *follow = lane + 1 < num_open ? lanes[lane + 1].src : lanes[lane].src;
        const int alone = lanes[lane].nbytes >= SINGLE_PREFETCH_NBYTES_MAX || num_runs == 1;
        if (lanes[lane].nbytes > 0)
            finish_run(&lanes[lane], loops, follow, alone ? 0 : SINGLE_DISTANCE_NBYTES);
    }
}

static void copy_runs(const struct run *runs, size_t num_runs, const struct kernel *kernel)
{
    if (kernel->loops != NULL && kernel->lanes) {
        copy_in_lanes(runs, num_runs, kernel->loops);
        return;
    }
    for (size_t i = 0; i < num_runs; i++)
        if (kernel->loops == NULL) {
            memcpy(runs[i].dst, runs[i].src, runs[i].nbytes);
        } else {
            struct run run = open_run(&runs[i]);
            finish_run(&run, kernel->loops, NULL, 0);
        }
}

/* Fills `runs` from the pieces at *first on and moves *first past them. */
static size_t merge_runs(struct run runs[NUM_RUNS_MAX], const uint64_t *dst, const uint64_t *src,
                         size_t num_pieces, size_t nbytes, size_t *first)
{
    size_t num_runs = 0, i = *first;
    while (i < num_pieces && num_runs < NUM_RUNS_MAX) {
        struct run run = {(void *)(uintptr_t)dst[i], (const void *)(uintptr_t)src[i], nbytes};
        for (i++; i < num_pieces && dst[i] == dst[i - 1] + nbytes && src[i] == src[i - 1] + nbytes; i++)
            run.nbytes += nbytes;
        runs[num_runs++] = run;
    }
    *first = i;
    return num_runs;
}

static int is_single_stream(const struct run *runs, size_t num_runs)
{
    for (size_t i = 1; i < num_runs; i++)
        if (runs[i].src != runs[i - 1].src + runs[i - 1].nbytes)
            return 0;
    return 1;
}

/* The kernel for runs of this mean size. AVX-512 is not chosen: no faster in lanes, slower for one stream. */
static int choose_kernel(const struct run *runs, size_t num_runs, size_t run_nbytes)
{
    if (run_nbytes < KV_COPY_NT_NBYTES_MIN || !kv_copy_kernel_usable(KV_COPY_SSE2_NT))
        return KV_COPY_MEMCPY;
    if (run_nbytes < SINGLE_STREAM_NBYTES_MAX && is_single_stream(runs, num_runs))
        return kv_copy_kernel_usable(KV_COPY_AVX2_NT) ? KV_COPY_AVX2_NT : KV_COPY_SSE2_NT;
    return kv_copy_kernel_usable(KV_COPY_AVX2_LANES) ? KV_COPY_AVX2_LANES : KV_COPY_SSE2_LANES;
}

void kv_copy_pieces(const uint64_t *dst, const uint64_t *src, size_t num_pieces, size_t nbytes, int kernel)
{
    struct run runs[NUM_RUNS_MAX];
    size_t next = 0;
    if (nbytes == 0)
        return;
    while (next < num_pieces) {
        const size_t first = next;
        const size_t num_runs = merge_runs(runs, dst, src, num_pieces, nbytes, &next);
        const size_t run_nbytes = (next - first) * nbytes / num_runs;
        const int chosen = kernel == KV_COPY_AUTO ? choose_kernel(runs, num_runs, run_nbytes) : kernel;
        copy_runs(runs, num_runs, &kernels[chosen]);
    }
    if (kernel != KV_COPY_MEMCPY)
        fence();
}
