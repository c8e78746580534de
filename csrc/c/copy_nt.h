/* The two loops of a non-temporal copy for one instruction set. copy.c includes this file once for each, with
 *   KV_NT_NAME(x)      x with the instruction set's suffix
 *   KV_NT_TARGET       the target attribute
 *   KV_NT_LINE(d, s)   copies 64 bytes; d is aligned to 64, s need not be
 * The caller fences: these stores are ordered with nothing until it does. */

/* One run of whole lines. `distance` bytes ahead of the loads the source is prefetched, running on into
 * `follow`, where the next run begins; 0 leaves all prefetching to the processor. */
KV_NT_TARGET static void KV_NT_NAME(copy_single)(unsigned char *dst, const unsigned char *src, size_t nbytes,
                                                 const unsigned char *follow, size_t distance)
{
    size_t at = 0;
    if (distance > nbytes)
        distance = nbytes;
    if (distance > 0)
        for (; at < nbytes - distance; at += LINE_NBYTES) {
            kv_prefetch(src + at + distance);
            KV_NT_LINE(dst + at, src + at);
        }
    for (; at < nbytes && distance > 0; at += LINE_NBYTES) {
        kv_prefetch(follow + at - (nbytes - distance));
        KV_NT_LINE(dst + at, src + at);
    }
    for (; at < nbytes; at += LINE_NBYTES)
        KV_NT_LINE(dst + at, src + at);
}

/* The next `nbytes` (whole lines) of four runs, a line of each in turn: four streams keep more misses under
 * way than one, and hide that the processor's prefetcher starts anew at every run. */
KV_NT_TARGET static void KV_NT_NAME(copy_lockstep)(const struct run lanes[NUM_LANES],
                                                   const unsigned char *const follow[NUM_LANES],
                                                   size_t nbytes)
{
    unsigned char *dst[NUM_LANES];
    const unsigned char *src[NUM_LANES];
    const size_t distance = nbytes < LANE_DISTANCE_NBYTES ? nbytes : LANE_DISTANCE_NBYTES;
    const size_t own = nbytes - distance;
    size_t at = 0;
    for (int lane = 0; lane < NUM_LANES; lane++) {
        dst[lane] = lanes[lane].dst;
        src[lane] = lanes[lane].src;
    }
    for (; at < own; at += LINE_NBYTES)
        for (int lane = 0; lane < NUM_LANES; lane++) {
            kv_prefetch(src[lane] + at + distance);
            KV_NT_LINE(dst[lane] + at, src[lane] + at);
        }
    for (; at < nbytes; at += LINE_NBYTES)
        for (int lane = 0; lane < NUM_LANES; lane++) {
            kv_prefetch(follow[lane] + at - own);
            KV_NT_LINE(dst[lane] + at, src[lane] + at);
        }
}

#undef KV_NT_NAME
#undef KV_NT_TARGET
#undef KV_NT_LINE
