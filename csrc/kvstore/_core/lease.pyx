"""Lease tables, one per client: thin wrappers over lease.h."""

cimport cython
from cpython.buffer cimport PyBuffer_Release

import os

import numpy as np

from kvstore.errors import InvalidRequest, LimitExceeded, Unavailable

cdef uint8_t VALID = 2
STOP_END, STOP_MISS, STOP_BUSY, STOP_FULL = KV_STOP_END, KV_STOP_MISS, KV_STOP_BUSY, KV_STOP_FULL


@cython.freelist(64)
@cython.no_gc_clear    # collected within somebody's cycle, it still needs its table to end the leases
cdef class Grip:
    """The leases of one acquire: `num_blocks` leading blocks, the first `num_near` of them readable in place.

    `stop` says why it ended: STOP_END, STOP_MISS, STOP_BUSY (an eviction was looking at the next block: ask again) or
    STOP_FULL (the lease table has no room for the rest). `is_near`: nothing stands in the way of reading all that is
    stored of the keys in place.
    """

    def __dealloc__(self):
        if self._table is not None and self._table._open:
            kv_lease_release(&self._table._table, &self._held)

    def release(self):
        """End the leases. Idempotent."""
        kv_lease_release(&self._table._table, &self._held)

    def ids(self):
        """Ids of the leased blocks, uint32 (num_blocks,)."""
        out = np.empty(self._held.num_blocks, dtype=np.uint32)
        cdef uint32_t[::1] view = out
        if self._held.num_blocks:
            kv_lease_ids(&self._table._table, &self._held, &view[0])
        return out

    def advance(self):
        """Count the leading near blocks anew: leased ones only come nearer. False when the block behind them is not
        stored any more. The caller holds the store's lock."""
        cdef uint32_t[::1] view
        if not kv_lease_intact(&self._table._table, &self._held):
            return False
        view = self.ids()
        cdef kv_index *index = &self._table._index._index
        while self.num_near < self.num_blocks and kv_is_near(&index.records[view[self.num_near]]):
            self.num_near += 1
        if self.num_near == self.num_blocks:
            return True
        return <uint8_t>kv_record_word(&index.records[view[self.num_near]]) == VALID

    @property
    def intact(self):
        """Whether nothing of it was revoked until now: what was copied before is good. Leases of this process never
        are."""
        return kv_lease_intact(&self._table._table, &self._held)

    def near_places(self):
        """Places of the leading near blocks as they are now, uint32 (num,); none once something of it was revoked."""
        cdef uint32_t num = self._held.num_blocks, num_near = 0
        cdef uint64_t where
        out = self.ids()
        cdef uint32_t[::1] view = out
        cdef kv_index *index = &self._table._index._index
        if not kv_lease_intact(&self._table._table, &self._held):    # of a parent's lease there are not even ids
            return out[:0]
        while num_near < num:
            where = kv_record_where(&index.records[view[num_near]])
            if kv_where_tier(where) != KV_NEAR:
                break
            view[num_near] = kv_where_place(where)
            num_near += 1
        # The place of another block may be no place of one of this size.
        return out[:num_near] if kv_lease_intact(&self._table._table, &self._held) else out[:0]


cdef class LeaseTable:
    """One client's leases on blocks of `index`: `entries_max` blocks at a time, in groups of 64.

    With `fd` it is the table that another process, the owner of the index, made for this one. Errors: InvalidRequest
    for a size out of range, LimitExceeded over 256 tables, Unavailable without memory or for an `fd` that is no table.
    """

    def __cinit__(self, IndexView index not None, entries_max=KV_GROUP, int fd=-1):
        if not KV_GROUP <= entries_max <= 1 << 24:
            raise InvalidRequest(f"leases_max={entries_max} is not between {KV_GROUP} and {1 << 24}")
        cdef int code = kv_table_create(&self._table, entries_max) if fd < 0 else kv_table_map(&self._table, fd)
        if code < 0:
            raise Unavailable(f"no memory for {entries_max} leases: {os.strerror(-code)}")
        self._open = True
        self._index = index
        if fd < 0:
            (<Index?>index).attach(&self._table, self)

    def __dealloc__(self):
        if self._open:
            kv_table_destroy(&self._table)

    def acquire(self, keys, bint counted=True, int ns=-1):
        """Lease the leading stored blocks of `keys` (uint8 (n, 32)); returns a Grip. Safe beside the writer.

        `counted`: False for a second try of the same question, which the statistics count once. `ns`: a block of
        another namespace than this one is a miss; -1: of any.
        """
        cdef Py_buffer view
        cdef uint32_t num_keys
        cdef Grip grip = Grip.__new__(Grip)
        keys_of(keys, &view)
        num_keys = <uint32_t>(view.len // KV_KEY_NBYTES)
        if num_keys <= 256:
            kv_lease_acquire(&self._index._index, &self._table, <uint32_t>ns, <const uint8_t *>view.buf, num_keys,
                             counted, &grip._held)
        else:
            with nogil:
                kv_lease_acquire(&self._index._index, &self._table, <uint32_t>ns, <const uint8_t *>view.buf, num_keys,
                                 counted, &grip._held)
        PyBuffer_Release(&view)
        grip._table = self
        grip.num_blocks = grip._held.num_blocks
        grip.num_near = grip._held.num_near
        grip.stop = grip._held.stop
        grip.is_near = grip.stop <= KV_STOP_MISS and grip.num_near == grip.num_blocks
        return grip

    def hold(self, ids):
        """A Grip on reserved ids, so that nobody is given their places while it lives; the caller holds the store's
        lock. Errors: LimitExceeded when the table has no room for all of them."""
        cdef uint32_t[::1] view = self._index.checked_ids(ids)
        cdef uint32_t none = 0
        cdef Grip grip = Grip.__new__(Grip)
        cdef uint32_t num_ids = <uint32_t>view.shape[0]
        grip._held.group = KV_NONE
        grip._table = self
        if kv_lease_hold(&self._table, &view[0] if num_ids else &none, num_ids, &grip._held) < 0:
            raise LimitExceeded(f"{num_ids} more blocks do not fit into index.leases_max={self.entries_max}; "
                                "release some leases")
        grip.num_blocks = num_ids
        return grip

    def disown(self):
        """In a child after a fork: the leases stay the parent's. From here on nothing can be leased, and no lease of
        before counts as intact. Errors: Unavailable when the system refuses it."""
        cdef int code = kv_table_disown(&self._table)
        if code < 0:
            raise Unavailable(f"the parent's leases cannot be let go of: {os.strerror(-code)}")

    @property
    def touches(self):
        """Accesses that wait to be brought into the eviction order."""
        return kv_lease_touches(&self._table)

    @property
    def used(self):
        """Lease entries in use, whole groups."""
        return kv_lease_used(&self._table)

    @property
    def entries_max(self):
        """Blocks that can be leased at a time."""
        return self._table.num_groups * KV_GROUP
