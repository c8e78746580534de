"""Core calls in C loops under a clock, for benchmarks (csrc/c/clocked.h): C time apart from Python's.

Times are uint32 nanoseconds, one per prefix, each with one reading of the clock in it (`nothing`).
"""

from libc.stdint cimport uint8_t, uint32_t

from kvstore._core.index cimport Index
from kvstore._core.lease cimport LeaseTable
from kvstore._core.records cimport KV_GROUP, kv_index, kv_table

import numpy as np

from kvstore.errors import InvalidRequest

cdef extern from "clocked.h" nogil:
    void kv_time_nothing(uint32_t num, uint32_t *ns)
    void kv_time_leases(const kv_index *index, kv_table *table, const uint8_t *keys, uint32_t num_keys,
                        uint32_t num_prefixes, uint32_t *ns)
    void kv_time_lines(const kv_index *index, const uint8_t *keys, const uint32_t *ids, uint32_t num_keys,
                       uint32_t num_prefixes, uint32_t *ns)


cdef int _check(const uint8_t[:, :, ::1] keys) except -1:
    if keys.shape[0] < 1 or not 1 <= keys.shape[1] <= KV_GROUP or keys.shape[2] != 32:
        shape = (keys.shape[0], keys.shape[1], keys.shape[2])
        raise InvalidRequest(f"keys of shape {shape}; allowed: (1 or more, 1 to {KV_GROUP}, 32)")
    return 0


def nothing(uint32_t num):
    """What one reading of the clock adds to every time, `num` times."""
    cdef uint32_t[::1] ns = np.zeros(max(num, 1), dtype=np.uint32)
    kv_time_nothing(num, &ns[0])
    return np.asarray(ns)[:num]


def leases(Index index not None, LeaseTable table not None, const uint8_t[:, :, ::1] keys not None):
    """Acquire and release of each prefix; `keys`: (num_prefixes, at most 64, 32). 0 where it was not found whole."""
    _check(keys)
    cdef uint32_t[::1] ns = np.zeros(keys.shape[0], dtype=np.uint32)
    kv_time_leases(&index._index, &table._table, &keys[0, 0, 0], <uint32_t>keys.shape[1], <uint32_t>keys.shape[0],
                   &ns[0])
    return np.asarray(ns)


def lines(Index index not None, const uint8_t[:, :, ::1] keys not None, const uint32_t[:, ::1] ids not None):
    """Only reading the lines of each prefix, prefetched: home buckets, then records. `ids` are those of `keys`."""
    _check(keys)
    if ids.shape[0] != keys.shape[0] or ids.shape[1] != keys.shape[1] or \
            np.max(ids) >= index._index.entries_max:
        raise InvalidRequest("ids must be those of keys, and every key stored")
    cdef uint32_t[::1] ns = np.zeros(keys.shape[0], dtype=np.uint32)
    kv_time_lines(&index._index, &keys[0, 0, 0], &ids[0, 0], <uint32_t>keys.shape[1], <uint32_t>keys.shape[0], &ns[0])
    return np.asarray(ns)
