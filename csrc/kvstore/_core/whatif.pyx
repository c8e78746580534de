"""Small stores without bytes beside an index, which play a sample of what it is asked for: thin wrappers over whatif.h.

Each call takes the core's own lock, and no call the store's.
"""

import os

from kvstore.errors import InvalidRequest, Unavailable

SIZES, TIERS, BLOCKS = KV_WHATIF_SIZES, KV_WHATIF_TIERS, KV_WHATIF_BLOCKS


cdef int _tier(int number) except -1:
    if not 0 <= number < KV_WHATIF_TIERS:
        raise InvalidRequest(f"tier {number} is not below {KV_WHATIF_TIERS}")
    return number


cdef class Shadows:
    """For `index`, whose policy remembers `ghosts_max` blocks that are not stored. Errors: MemoryError."""

    def __cinit__(self, Index index not None, uint32_t ghosts_max):
        if kv_whatif_create(&self._whatif, &index._index, ghosts_max) < 0:
            raise MemoryError
        self._index = index

    def __dealloc__(self):
        kv_whatif_destroy(&self._whatif)

    def begin(self, int tier, capacities_nbytes, int own, uint64_t slot_nbytes):
        """Play a tier anew, at SIZES capacities, number `own` what it has now, with blocks of about so many bytes.

        Errors: InvalidRequest; Unavailable without the memory, and there are no figures of this tier.
        """
        cdef uint64_t sizes[KV_WHATIF_SIZES]
        cdef int code, number = _tier(tier)
        if len(capacities_nbytes) != KV_WHATIF_SIZES or not 0 <= own < KV_WHATIF_SIZES or not slot_nbytes:
            raise InvalidRequest(f"{len(capacities_nbytes)} capacities, number {own}, slots of {slot_nbytes} bytes")
        for i, nbytes in enumerate(capacities_nbytes):
            sizes[i] = nbytes
        with nogil:
            code = kv_whatif_begin(&self._whatif, number, sizes, own, slot_nbytes)
        if code < 0:
            raise Unavailable(f"no memory for stores beside this one: {os.strerror(-code)}")

    def end(self, int tier):
        """There is no such tier any more."""
        cdef int number = _tier(tier)
        with nogil:
            kv_whatif_end(&self._whatif, number)

    def set_tokens(self, uint16_t ns, uint32_t block_tokens):
        """A block of this namespace stands for so many tokens."""
        self._whatif.block_tokens[ns] = block_tokens

    def play(self, uint32_t most):
        """Play what was heard, until about `most` blocks were; whether there is more."""
        cdef int is_more
        with nogil:
            is_more = kv_whatif_play(&self._whatif, most)
        return is_more != 0

    def figures(self, int tier, uint64_t now_ms):
        """[(recent, ever, full)] of each size, then share, requests, tokens a second, mean slot: see whatif.h."""
        cdef kv_whatif_figures found
        cdef int number = _tier(tier)
        with nogil:
            kv_whatif_describe(&self._whatif, number, now_ms, &found)
        sizes = [(found.sizes[i].recent, found.sizes[i].ever, found.sizes[i].full) for i in range(KV_WHATIF_SIZES)]
        return sizes, found.share, <uint64_t>found.num_requests, found.tokens_per_s, found.slot_nbytes

    @property
    def num_dropped(self):
        """Requests that were not played: more came than it keeps up with."""
        return self._whatif.tap.num_dropped

    @property
    def num_refused(self):
        """Requests that one of the stores refused; it never should."""
        return self._whatif.num_refused

    @property
    def nbytes(self):
        """Bytes that all of this takes, about."""
        cdef uint64_t nbytes
        with nogil:
            nbytes = kv_whatif_nbytes(&self._whatif)
        return nbytes

    def check(self):
        """Audit of all stores: 0, or the number of the broken rule."""
        cdef int broken
        with nogil:
            broken = kv_whatif_check(&self._whatif)
        return broken
