/* Batch copies between blocks and the pieces of engine memory they are made of.
 *
 * A batch is a list of equally long pieces, each with its own destination and source address. A gather has
 * consecutive destinations, a scatter consecutive sources; neither is a case of its own. Pieces that continue
 * their predecessor on both sides are copied as one run.
 *
 * Why the kernels are what they are, with the numbers of the losers: docs/decisions/0001-copy-kernels.md.
 */
#ifndef KV_COPY_H
#define KV_COPY_H

#include <stddef.h>
#include <stdint.h>

enum kv_copy_kernel {
    KV_COPY_AUTO = 0,     /* by the size of the runs and by what this processor can do */
    KV_COPY_MEMCPY,       /* the C library's, run by run; leaves the destination in cache */
    KV_COPY_SSE2_NT,      /* non-temporal stores, one run after the other, no prefetch of our own */
    KV_COPY_AVX2_NT,
    KV_COPY_AVX512_NT,
    KV_COPY_SSE2_LANES,   /* non-temporal stores, four runs at a time, each prefetched ahead */
    KV_COPY_AVX2_LANES,
    KV_COPY_AVX512_LANES,
    KV_COPY_NUM_KERNELS
};

/* Runs shorter than this go through memcpy under KV_COPY_AUTO: so little is often read again at once. */
#define KV_COPY_NT_NBYTES_MIN 2048

/* The kernel's name, or NULL when there is none of that number. */
const char *kv_copy_kernel_name(int kernel);

/* 1 when this processor can run the kernel, 0 when it cannot or there is none of that number. */
int kv_copy_kernel_usable(int kernel);

/* The first piece that cannot be copied, `num_pieces` when all can. A piece cannot be copied when an address
 * is zero, when it would pass the end of the address space, or when its source and destination overlap. */
size_t kv_copy_find_bad(const uint64_t *dst, const uint64_t *src, size_t num_pieces, uint64_t nbytes);

/* Copy `nbytes` from src[i] to dst[i] for every i; any alignment, any size, 0 included.
 *
 * REQUIRES: kv_copy_kernel_usable(kernel); kv_copy_find_bad() finds none; no destination overlaps a source or
 * another destination anywhere in the batch (the order of pieces is not promised); the memory stays mapped.
 * Memory ordering: one fence ends the batch. On return its stores are ordered before every later store of the
 * calling thread, as if they had been plain ones: a release store, a lock or a system call publishes them.
 * The destination is as a rule not in this processor's caches afterwards. */
void kv_copy_pieces(const uint64_t *dst, const uint64_t *src, size_t num_pieces, size_t nbytes, int kernel);

#endif
