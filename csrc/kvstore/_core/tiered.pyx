"""A trace through HBM, DRAM and NVMe without bytes: tiered.h.

It plays without the GIL, so that runs go on side by side.
"""

import os
from typing import NamedTuple

from kvstore._core.records cimport *
from kvstore._core.simulation cimport Requests, kv_policy_find, kv_requests

from kvstore._core.simulation import CAPACITY_MAX, policies
from kvstore.errors import InvalidRequest, Unavailable

cdef extern from "tiered.h" nogil:
    enum: KV_TIERED_CHANCE_S
    enum kv_promotion:
        KV_PROMOTION_KEEP
        KV_PROMOTION_MOVE
        KV_PROMOTION_NO_REFILL
    ctypedef struct kv_tiering:
        uint64_t hbm_blocks, near_blocks, far_blocks
        int takes_victims
        int writes_at_put
        int writes_chains
        uint32_t promotion
        uint32_t asked_min
        float chance_min
        float gain_min
    ctypedef struct kv_tiered_sums:
        uint64_t hbm_hits, near_hits, far_hits, misses
        uint64_t near_writes, far_writes
        uint64_t num_refused
    ctypedef struct kv_tiered:
        kv_tiered_sums sums
    int kv_tiered_create(kv_tiered *tiered, const kv_policy *policy, const kv_tiering *tiering, uint32_t num_ids,
                         uint32_t chain_max)
    void kv_tiered_destroy(kv_tiered *tiered)
    void kv_tiered_play(kv_tiered *tiered, const kv_requests *requests, const uint8_t *keys, uint32_t first,
                        uint32_t last)
    int kv_tiered_check(const kv_tiered *tiered)

CHANCE_S = KV_TIERED_CHANCE_S
KEEP, MOVE, NO_REFILL = KV_PROMOTION_KEEP, KV_PROMOTION_MOVE, KV_PROMOTION_NO_REFILL
GAIN_MAX = 1024.0
ASKED_MAX = 255  # how often a block was asked for is counted up to here


class Tiering(NamedTuple):
    """Capacities in blocks, and when blocks move: tiered.h."""

    hbm_blocks: int
    near_blocks: int
    far_blocks: int
    takes_victims: bool = False
    writes_at_put: bool = False
    writes_chains: bool = False
    promotion: int = KEEP
    asked_min: int = 0
    chance_min: float = 0.0
    gain_min: float = 0.0


class Sums(NamedTuple):
    """Blocks so far: where they were found, and how many were written where."""

    hbm_hits: int
    near_hits: int
    far_hits: int
    misses: int
    near_writes: int
    far_writes: int


cdef kv_tiering _checked(object tiering) except *:
    cdef kv_tiering checked
    for name in ("hbm_blocks", "near_blocks", "far_blocks"):
        if not 1 <= getattr(tiering, name) <= CAPACITY_MAX:
            raise InvalidRequest(f"{name} {getattr(tiering, name)} is not from 1 to {CAPACITY_MAX}")
    if tiering.promotion not in (KEEP, MOVE, NO_REFILL):
        raise InvalidRequest(f"promotion {tiering.promotion} is none of {KEEP}, {MOVE}, {NO_REFILL}")
    if not 0 <= tiering.asked_min <= ASKED_MAX:
        raise InvalidRequest(f"asked_min {tiering.asked_min} is not from 0 to {ASKED_MAX}")
    if not 0 <= tiering.chance_min <= 1:
        raise InvalidRequest(f"chance_min {tiering.chance_min} is not from 0 to 1")
    if not 0 <= tiering.gain_min <= GAIN_MAX:
        raise InvalidRequest(f"gain_min {tiering.gain_min} is not from 0 to {GAIN_MAX}")
    checked.hbm_blocks, checked.near_blocks, checked.far_blocks = tiering[:3]
    checked.takes_victims, checked.writes_at_put = bool(tiering.takes_victims), bool(tiering.writes_at_put)
    checked.promotion, checked.asked_min = tiering.promotion, tiering.asked_min
    checked.writes_chains = bool(tiering.writes_chains)
    checked.chance_min, checked.gain_min = tiering.chance_min, tiering.gain_min
    return checked


cdef class Tiered:
    """Three tiers with nothing in them, DRAM and NVMe under the policy of this name, for `requests`.

    Errors: InvalidRequest for a policy that is not in `policies()` and for a tiering out of its limits, Unavailable
    without the memory.
    """
    # Owns its tiers; one thread at a time plays.
    cdef kv_tiered _tiered
    cdef Requests _played

    def __cinit__(self, Requests requests not None, str policy not None, tiering not None):
        cdef const kv_policy *found = kv_policy_find(policy.encode())
        cdef kv_tiering checked = _checked(tiering)
        cdef uint32_t i, chain_max = 0
        if found == NULL:
            raise InvalidRequest(f"policy {policy!r} is none of {', '.join(policies())}")
        for i in range(requests._requests.num_requests):
            chain_max = max(chain_max, requests._requests.num_blocks[i])
        code = kv_tiered_create(&self._tiered, found, &checked, requests._requests.num_ids, chain_max)
        if code < 0:
            raise Unavailable(f"no memory to simulate {tiering}: {os.strerror(-code)}")
        self._played = requests

    def __dealloc__(self):
        kv_tiered_destroy(&self._tiered)

    def play(self, uint32_t first, uint32_t last):
        """Play requests [first, last).

        Errors: InvalidRequest for a range that is not within the requests; Unavailable when the index refuses one.
        """
        if not first <= last <= self._played._requests.num_requests:
            raise InvalidRequest(f"requests [{first}, {last}) of {self._played._requests.num_requests}")
        with nogil:
            kv_tiered_play(&self._tiered, &self._played._requests, &self._played._keys[0], first, last)
        if self._tiered.sums.num_refused:
            raise Unavailable(f"the index refused {self._tiered.sums.num_refused} blocks of requests [{first}, {last})")

    @property
    def sums(self):
        """What came of what was played."""
        cdef const kv_tiered_sums *sums = &self._tiered.sums
        return Sums(sums.hbm_hits, sums.near_hits, sums.far_hits, sums.misses, sums.near_writes, sums.far_writes)

    def check(self):
        """Audit of index and tiers: 0, or the number of the broken rule."""
        return kv_tiered_check(&self._tiered)
