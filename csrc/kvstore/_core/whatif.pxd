from kvstore._core.index cimport Index
from kvstore._core.records cimport *


cdef extern from "tap.h" nogil:
    ctypedef struct kv_tap:
        uint64_t num_dropped

cdef extern from "whatif.h" nogil:
    enum: KV_WHATIF_SIZES
    enum: KV_WHATIF_TIERS
    enum: KV_WHATIF_BLOCKS
    ctypedef struct kv_whatif:
        kv_tap tap
        uint32_t *block_tokens
        uint64_t num_refused
    ctypedef struct kv_whatif_figure:
        double recent, ever, full
    ctypedef struct kv_whatif_figures:
        kv_whatif_figure sizes[KV_WHATIF_SIZES]
        double share, num_requests, tokens_per_s, slot_nbytes
    int kv_whatif_create(kv_whatif *whatif, kv_index *index, uint32_t ghosts_max)
    void kv_whatif_destroy(kv_whatif *whatif)
    int kv_whatif_begin(kv_whatif *whatif, int tier, const uint64_t *capacities_nbytes, int own, uint64_t slot_nbytes)
    void kv_whatif_end(kv_whatif *whatif, int tier)
    int kv_whatif_play(kv_whatif *whatif, uint32_t most)
    void kv_whatif_describe(kv_whatif *whatif, int tier, uint64_t now_ms, kv_whatif_figures *figures)
    uint64_t kv_whatif_nbytes(kv_whatif *whatif)
    int kv_whatif_check(kv_whatif *whatif)


cdef class Shadows:
    # Owns its stores, and the tap of the index, which outlives it. The core's own lock keeps calls apart.
    cdef kv_whatif _whatif
    cdef Index _index
