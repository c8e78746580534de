"""Core calls in C loops under a clock, for benchmarks (csrc/c/clocked.h): C time apart from Python's.

Times are uint32 nanoseconds, one per prefix, each with one reading of the clock in it (`nothing`).
"""

from libc.stdint cimport uint8_t, uint32_t

from kvstore._core.view cimport IndexView
from kvstore._core.lease cimport LeaseTable
from kvstore._core.records cimport KV_GROUP, kv_index, kv_table

import os

import numpy as np

from kvstore.errors import InvalidRequest, Unavailable

cdef extern from "clocked.h" nogil:
    void kv_time_nothing(uint32_t num, uint32_t *ns)
    enum: KV_EXCHANGE_NBYTES_MAX
    ctypedef struct kv_exchange:
        uint32_t request_nbytes, reply_nbytes
    void kv_time_leases(const kv_index *index, kv_table *table, uint32_t space, const uint8_t *keys, uint32_t num_keys,
                        uint32_t num_prefixes, uint32_t *ns)
    void kv_time_lines(const kv_index *index, const uint8_t *keys, const uint32_t *ids, uint32_t num_keys,
                       uint32_t num_prefixes, uint32_t *ns)
    int kv_time_pings(int fd, const kv_exchange *exchanges, uint32_t num_exchanges, uint32_t num, uint32_t *ns)
    void kv_answer_pings(int fd)


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


def leases(IndexView index not None, LeaseTable table not None, const uint8_t[:, :, ::1] keys not None, int space=-1):
    """Acquire and release of each prefix; `keys`: (num_prefixes, at most 64, 32). 0 where it was not found whole.

    `space`: a block of another namespace than this number is a miss; -1: of any.
    """
    _check(keys)
    cdef uint32_t[::1] ns = np.zeros(keys.shape[0], dtype=np.uint32)
    kv_time_leases(&index._index, &table._table, <uint32_t>space, &keys[0, 0, 0], <uint32_t>keys.shape[1],
                   <uint32_t>keys.shape[0], &ns[0])
    return np.asarray(ns)


def lines(IndexView index not None, const uint8_t[:, :, ::1] keys not None, const uint32_t[:, ::1] ids not None):
    """Only reading the lines of each prefix, prefetched: home buckets, then records. `ids` are those of `keys`."""
    _check(keys)
    if ids.shape[0] != keys.shape[0] or ids.shape[1] != keys.shape[1] or \
            np.max(ids) >= index._index.entries_max:
        raise InvalidRequest("ids must be those of keys, and every key stored")
    cdef uint32_t[::1] ns = np.zeros(keys.shape[0], dtype=np.uint32)
    kv_time_lines(&index._index, &keys[0, 0, 0], &ids[0, 0], <uint32_t>keys.shape[1], <uint32_t>keys.shape[0], &ns[0])
    return np.asarray(ns)


def pings(int fd, uint32_t num, exchanges):
    """Questions over a socket of datagrams to a process in `answer_pings`: uint32 ns, `num` times, of asking all of
    `exchanges`, at most 8 pairs (bytes of the question, bytes of the answer), one after the other. Errors:
    InvalidRequest for a size out of range, Unavailable when nobody answers."""
    cdef kv_exchange wanted[8]
    cdef uint32_t num_exchanges = 0
    cdef int code
    cdef uint32_t[::1] ns = np.zeros(max(num, 1), dtype=np.uint32)
    for request_nbytes, reply_nbytes in exchanges:
        if num_exchanges == 8 or not 4 <= request_nbytes <= KV_EXCHANGE_NBYTES_MAX or \
                not 1 <= reply_nbytes <= KV_EXCHANGE_NBYTES_MAX:
            raise InvalidRequest(f"at most 8 exchanges of 4 to {KV_EXCHANGE_NBYTES_MAX} bytes")
        wanted[num_exchanges].request_nbytes = request_nbytes
        wanted[num_exchanges].reply_nbytes = reply_nbytes
        num_exchanges += 1
    with nogil:
        code = kv_time_pings(fd, wanted, num_exchanges, num, &ns[0])
    if code < 0:
        raise Unavailable(f"nobody answers: {os.strerror(-code)}")
    return np.asarray(ns)[:num]


def answer_pings(int fd):
    """Answer `pings` of another process until it closes its end."""
    with nogil:
        kv_answer_pings(fd)
