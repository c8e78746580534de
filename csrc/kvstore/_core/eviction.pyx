"""The eviction policy of an index; thin wrappers over eviction.h. The caller holds the store's lock."""

from kvstore._core.index cimport Index
from kvstore._core.records cimport *


cdef extern from "eviction.h" nogil:
    ctypedef struct kv_policy_figures:
        uint64_t num_ghosts, nbytes
        uint32_t num_classes
    const char *kv_eviction_name(const kv_index *index)
    void kv_eviction_tend(kv_index *index, uint64_t now_ms)
    kv_policy_figures kv_eviction_figures(const kv_index *index)


def name(Index index not None):
    """Name of the policy."""
    return kv_eviction_name(&index._index).decode()


def tend(Index index not None, uint64_t now_ms):
    """The policy's time is `now_ms`, on a clock that never goes back; it may do a piece of what can wait."""
    with nogil:
        kv_eviction_tend(&index._index, now_ms)


def figures(Index index not None):
    """What the policy remembers of blocks that are not stored, in bytes, and how many classes it tells apart."""
    cdef kv_policy_figures found = kv_eviction_figures(&index._index)
    return {"ghosts": found.num_ghosts, "ghosts_nbytes": found.nbytes, "classes": found.num_classes}
