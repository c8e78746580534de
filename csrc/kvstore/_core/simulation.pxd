from kvstore._core.records cimport *


cdef extern from "policies.h" nogil:
    const kv_policy *kv_policy_find(const char *name)
    const char *kv_policy_name(uint32_t number)

cdef extern from "eviction.h" nogil:
    ctypedef struct kv_policy_figures:
        uint64_t num_ghosts, nbytes
    kv_policy_figures kv_eviction_figures(const kv_index *index)

cdef extern from "requests.h" nogil:
    ctypedef struct kv_requests:
        const uint32_t *ids
        const uint64_t *starts
        const uint32_t *num_blocks
        const uint64_t *times_ms
        const uint32_t *output_tokens
        const uint8_t *stops
        uint32_t num_requests, num_ids
    ctypedef struct kv_request_hits:
        uint32_t *prefix
        uint32_t *blocks
        uint32_t *fills

cdef extern from "simulation.h" nogil:
    ctypedef struct kv_simulation:
        kv_index index
    int kv_simulation_create(kv_simulation *simulation, const kv_policy *policy, uint64_t capacity, uint32_t num_ids,
                             uint32_t chain_max)
    void kv_simulation_destroy(kv_simulation *simulation)
    void kv_simulation_keys(uint8_t *keys, uint32_t num_ids)
    uint32_t kv_simulation_play(kv_simulation *simulation, const kv_requests *requests, const uint8_t *keys,
                                uint32_t first, uint32_t last, const kv_request_hits *hits, uint64_t *cpu_ns)
    int kv_simulation_check(const kv_simulation *simulation)

cdef extern from "optimum.h" nogil:
    int kv_optimum_play(const kv_requests *requests, uint64_t capacity, const kv_request_hits *hits, uint64_t *cpu_ns)


cdef class Requests:
    # Owns the arrays that `_requests` points into, and the keys; nothing changes them.
    cdef kv_requests _requests
    cdef object _arrays
    cdef const uint8_t[::1] _keys


cdef class Hits:
    # One thread at a time plays into it.
    cdef kv_request_hits _hits
    cdef readonly object prefix, blocks, fills


cdef class Simulation:
    # Owns its store; one thread at a time plays.
    cdef kv_simulation _simulation
    cdef Requests _played


cdef extern from "hint.h" nogil:
    enum kv_ending:
        KV_ENDING_UNKNOWN
        KV_ENDING_TOOL_USE
        KV_ENDING_END_TURN
