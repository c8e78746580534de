"""A trace through a store without bytes, and through the best cache that knows the future: simulation.h, optimum.h.

Both play without the GIL, so that runs go on side by side.
"""

import os

import numpy as np

from kvstore.errors import InvalidRequest, Unavailable

TOKENS_UNKNOWN = KV_TOKENS_UNKNOWN
STOP_UNKNOWN, STOP_TOOL_USE, STOP_END_TURN = KV_ENDING_UNKNOWN, KV_ENDING_TOOL_USE, KV_ENDING_END_TURN
CAPACITY_MAX = 2**40
IDS_MAX = REQUESTS_MAX = 2**31


def policies():
    """Names of the policies that a Simulation takes."""
    names = []
    while kv_policy_name(<uint32_t>len(names)) != NULL:
        names.append(kv_policy_name(<uint32_t>len(names)).decode())
    return tuple(names)


cdef class Requests:
    """Requests of a trace in their order, as arrays.

    `ids` (uint32) are numbers below `num_ids`, chained, those of request i at [starts[i], starts[i + 1]) (uint64); a
    cache is asked for and offered the first `num_blocks[i]` (uint32) of them. `times_ms` (uint64) never goes back;
    `output_tokens` (uint32) and `stops` (uint8, STOP_*) are known when a request ends.

    Errors: InvalidRequest for arrays that do not fit together.
    """

    def __cinit__(self, const uint32_t[::1] ids not None, const uint64_t[::1] starts not None,
                  const uint32_t[::1] num_blocks not None, const uint64_t[::1] times_ms not None,
                  const uint32_t[::1] output_tokens not None, const uint8_t[::1] stops not None, uint32_t num_ids):
        cdef Py_ssize_t i, num = num_blocks.shape[0]
        if not starts.shape[0] - 1 == times_ms.shape[0] == output_tokens.shape[0] == stops.shape[0] == num:
            raise InvalidRequest(f"{starts.shape[0]} starts, {times_ms.shape[0]} times, {output_tokens.shape[0]} "
                                 f"answers and {stops.shape[0]} stops for {num} requests")
        if num > REQUESTS_MAX or num_ids > IDS_MAX:
            raise InvalidRequest(f"{num} requests and {num_ids} ids; at most {REQUESTS_MAX} and {IDS_MAX}")
        if starts[0] != 0 or starts[num] != <uint64_t>ids.shape[0]:
            raise InvalidRequest(f"starts from {starts[0]} to {starts[num]} of {ids.shape[0]} ids")
        for i in range(num):
            if starts[i] > starts[i + 1] or num_blocks[i] > starts[i + 1] - starts[i]:
                raise InvalidRequest(f"request {i}: {num_blocks[i]} blocks at [{starts[i]}, {starts[i + 1]})")
        for i in range(ids.shape[0]):
            if ids[i] >= num_ids:
                raise InvalidRequest(f"id {ids[i]} is not below {num_ids}")
        self._arrays = (ids, starts, num_blocks, times_ms, output_tokens, stops)
        self._requests.num_requests, self._requests.num_ids = <uint32_t>num, num_ids
        self._requests.ids = &ids[0] if ids.shape[0] else NULL
        self._requests.starts = &starts[0]
        if num:
            self._requests.num_blocks, self._requests.times_ms = &num_blocks[0], &times_ms[0]
            self._requests.output_tokens, self._requests.stops = &output_tokens[0], &stops[0]
        self._make_keys()

    def _make_keys(self):
        cdef uint8_t[::1] keys = np.empty(max(self._requests.num_ids, 1) * KV_KEY_NBYTES, dtype=np.uint8)
        kv_simulation_keys(&keys[0], self._requests.num_ids)
        self._keys = keys

    def __len__(self):
        return self._requests.num_requests


cdef class Hits:
    """What each of `num_requests` requests found and left, uint32 each: leading blocks that were stored, blocks stored
    anywhere among those it asked for, blocks that became stored for it."""

    def __cinit__(self, uint32_t num_requests):
        cdef uint32_t[::1] prefix, blocks, fills
        self.prefix, self.blocks, self.fills = (np.zeros(num_requests, dtype=np.uint32) for _ in range(3))
        prefix, blocks, fills = self.prefix, self.blocks, self.fills
        if num_requests:
            self._hits.prefix, self._hits.blocks, self._hits.fills = &prefix[0], &blocks[0], &fills[0]


cdef int _check(Requests requests, Hits hits) except -1:
    if len(hits.prefix) != <Py_ssize_t>requests._requests.num_requests:
        raise InvalidRequest(f"hits of {len(hits.prefix)} requests for {requests._requests.num_requests}")
    return 0


cdef class Simulation:
    """A store of at most `capacity` blocks under the policy of this name, with nothing in it, for `requests`.

    Errors: InvalidRequest for a policy that is not in `policies()`, Unavailable without the memory.
    """

    def __cinit__(self, str policy not None, uint64_t capacity, Requests requests not None):
        cdef const kv_policy *found = kv_policy_find(policy.encode())
        cdef uint32_t i, chain_max = 0
        cdef int code
        if found == NULL:
            raise InvalidRequest(f"policy {policy!r} is none of {', '.join(policies())}")
        if capacity > CAPACITY_MAX:
            raise InvalidRequest(f"capacity {capacity} is over {CAPACITY_MAX} blocks")
        for i in range(requests._requests.num_requests):
            chain_max = max(chain_max, requests._requests.num_blocks[i])
        code = kv_simulation_create(&self._simulation, found, capacity, requests._requests.num_ids, chain_max)
        if code < 0:
            raise Unavailable(f"no memory to simulate {capacity} blocks: {os.strerror(-code)}")
        self._played = requests

    def __dealloc__(self):
        kv_simulation_destroy(&self._simulation)

    def play(self, uint32_t first, uint32_t last, Hits hits not None):
        """Play requests [first, last) into `hits`; returns nanoseconds of this thread's processor time.

        Errors: InvalidRequest for a range that is not within the requests; Unavailable when the store refuses one.
        """
        cdef uint32_t num_refused
        cdef uint64_t cpu_ns = 0
        _check(self._played, hits)
        if not first <= last <= self._played._requests.num_requests:
            raise InvalidRequest(f"requests [{first}, {last}) of {self._played._requests.num_requests}")
        with nogil:
            num_refused = kv_simulation_play(&self._simulation, &self._played._requests, &self._played._keys[0], first,
                                             last, &hits._hits, &cpu_ns)
        if num_refused:
            raise Unavailable(f"the store refused {num_refused} of requests [{first}, {last})")
        return cpu_ns

    @property
    def num_stored(self):
        """Blocks that are stored now."""
        return self._simulation.index.counts.num_near

    def ghosts(self):
        """(blocks that the policy remembers and that are not stored, bytes that all its remembering takes)."""
        cdef kv_policy_figures figures = kv_eviction_figures(&self._simulation.index)
        return figures.num_ghosts, figures.nbytes

    def check(self):
        """Audit of index and slots: 0, or the number of the broken rule."""
        return kv_simulation_check(&self._simulation)


def optimum(Requests requests not None, uint64_t capacity, Hits hits not None):
    """The hits of the best cache of `capacity` blocks; returns nanoseconds of this thread's processor time.

    Errors: Unavailable without the memory.
    """
    cdef uint64_t cpu_ns = 0
    cdef int code
    _check(requests, hits)
    with nogil:
        code = kv_optimum_play(&requests._requests, capacity, &hits._hits, &cpu_ns)
    if code < 0:
        raise Unavailable(f"no memory for the optimum of {len(requests)} requests")
    return cpu_ns
