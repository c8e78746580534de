"""The block index and evictions: thin wrappers over index.h and evict.h.

Ids, places and namespaces cross here as numpy arrays; one call handles one batch.
"""

from cpython.buffer cimport PyBuffer_Release
from cpython.mem cimport PyMem_Free, PyMem_Malloc

from kvstore._core.view cimport IndexView, keys_of, u32_of

import errno as _errno
import os

import numpy as np

from kvstore._core.view import ENTRIES_MAX
from kvstore.errors import InvalidRequest, LimitExceeded, Unavailable

NONE = KV_NONE
KEY_NBYTES = KV_KEY_NBYTES
SHARDS_MAX = KV_SHARDS_MAX
PRESENT, BUSY, JOIN, WANTED = 0, 1, 2, 3
FREE, WRITING, VALID = 0, 1, 2
NEVER, EVICTED, UNWRITTEN, REMOVED, CORRUPT, ABANDONED, OVER_QUOTA, EXPIRED, BYPASSED = range(9)


def _policies():
    cdef uint32_t number = 0
    names = []
    while kv_policy_name(number) != NULL:
        names.append(kv_policy_name(number).decode())
        number += 1
    return tuple(names)


POLICIES = _policies()

cdef uint32_t _FREED_CAPACITY = 1 << 16


cdef class Index(IndexView):
    """An index of at most `entries_max` blocks (memory is taken as it is used), whose order is the eviction policy's;
    that may remember `ghosts_max` blocks that are not stored.

    Errors: InvalidRequest for a size out of range or an unknown policy, Unavailable when the memory cannot be had.
    """

    def __cinit__(self, entries_max, seed=None, policy="lru", uint32_t ghosts_max=0):
        cdef uint64_t words[2]
        if not 1 <= entries_max <= ENTRIES_MAX:
            raise InvalidRequest(f"entries_max={entries_max} is not between 1 and {ENTRIES_MAX}")
        random = os.urandom(16) if seed is None else seed
        words[0] = int.from_bytes(random[:8], "little")
        words[1] = int.from_bytes(random[8:16], "little") | 1
        cdef const kv_policy *found = kv_policy_find(policy.encode())
        if found == NULL:
            raise InvalidRequest(f"policy={policy!r} is not one of {', '.join(POLICIES)}")
        cdef int code = kv_index_create(&self._index, entries_max, words, found, ghosts_max)
        if code < 0:
            raise Unavailable(f"no memory for an index of {entries_max} entries: {_errno.errorcode.get(-code, code)}")
        self._open = True
        self._tables = []
        self._freed.capacity = _FREED_CAPACITY
        self._freed.near_places = <uint32_t *>PyMem_Malloc(_FREED_CAPACITY * 4)
        self._freed.far_places = <uint32_t *>PyMem_Malloc(_FREED_CAPACITY * 4)
        self._freed.near_ns = <uint16_t *>PyMem_Malloc(_FREED_CAPACITY * 2)
        self._freed.far_ns = <uint16_t *>PyMem_Malloc(_FREED_CAPACITY * 2)
        if not (self._freed.near_places and self._freed.far_places and self._freed.near_ns and self._freed.far_ns):
            raise MemoryError

    def __dealloc__(self):
        if self._open:
            kv_index_destroy(&self._index)
        PyMem_Free(self._freed.near_places)
        PyMem_Free(self._freed.far_places)
        PyMem_Free(self._freed.near_ns)
        PyMem_Free(self._freed.far_ns)

    cdef int attach(self, kv_table *table, object owner) except -1:
        if kv_evict_attach(&self._index, table) < 0:
            raise LimitExceeded("256 lease tables are attached already")
        self._tables.append(owner)
        return 0

    # ---- reading ----

    def find(self, keys, int ns=-1):
        """Ids of stored or reserved keys (`ns`: of this namespace), NONE where there is none; uint32 (n,)."""
        cdef Py_buffer view
        keys_of(keys, &view)
        cdef uint32_t i, num_keys = <uint32_t>(view.len // KV_KEY_NBYTES)
        out = np.empty(num_keys, dtype=np.uint32)
        cdef uint32_t[::1] ids = out
        for i in range(num_keys):
            ids[i] = kv_index_find(&self._index, <const uint8_t *>view.buf + <size_t>i * KV_KEY_NBYTES)
            if ns >= 0 and ids[i] != KV_NONE and self._index.records[ids[i]].ns != ns:
                ids[i] = KV_NONE
        PyBuffer_Release(&view)
        return out

    def ghosts(self, keys):
        """Why absent blocks are absent, as far as is remembered: (reason, unix seconds, hits per second that the policy
        expected of it, or None) per key."""
        cdef Py_buffer view
        cdef uint32_t i
        cdef kv_ghost ghost
        keys_of(keys, &view)
        out = []
        for i in range(<uint32_t>(view.len // KV_KEY_NBYTES)):
            ghost = kv_index_ghost(&self._index, <const uint8_t *>view.buf + <size_t>i * KV_KEY_NBYTES)
            out.append((ghost.reason, ghost.time_s, kv_level_value(ghost.level - 1) if ghost.level else None))
        PyBuffer_Release(&view)
        return out

    cdef uint32_t[::1] _ids(self, object ids):
        cdef uint32_t[::1] view = u32_of(ids)
        cdef Py_ssize_t i
        for i in range(view.shape[0]):
            if view[i] >= self._index.ids_used:
                raise InvalidRequest(f"id {view[i]} was never handed out")
        return view

    def words(self, ids):
        """State words (generation and state) of ids, uint64 (n,): equal later ⇔ nothing happened to the block."""
        cdef uint32_t[::1] view = self._ids(ids)
        out = np.empty(view.shape[0], dtype=np.uint64)
        cdef uint64_t[::1] words = out
        cdef Py_ssize_t i
        for i in range(view.shape[0]):
            words[i] = kv_record_word(&self._index.records[view[i]])
        return out

    def describe(self, ids):
        """Columns of ids: near place or NONE, far place or NONE, checksum, namespace, parent id or NONE."""
        cdef uint32_t[::1] view = self._ids(ids)
        cdef Py_ssize_t i, num = view.shape[0]
        near_out, far_out = np.empty(num, dtype=np.uint32), np.empty(num, dtype=np.uint32)
        sum_out, ns_out = np.empty(num, dtype=np.uint64), np.empty(num, dtype=np.uint16)
        parent_out = np.empty(num, dtype=np.uint32)
        cdef uint32_t[::1] near = near_out, far = far_out, parent = parent_out
        cdef uint64_t[::1] checksum = sum_out
        cdef uint16_t[::1] ns = ns_out
        cdef kv_record *record
        kv_index_lock(&self._index)
        for i in range(num):
            record = &self._index.records[view[i]]
            near[i] = kv_record_place(record) if kv_is_near(record) else KV_NONE
            far[i] = self._index.links[view[i]].far
            checksum[i] = record.checksum
            ns[i] = record.ns
            parent[i] = record.parent
        pthread_mutex_unlock(&self._index.lock)
        return near_out, far_out, sum_out, ns_out, parent_out

    def keys(self, ids):
        """Keys of ids, uint8 (n, 32); zero for NONE."""
        cdef uint32_t[::1] view = u32_of(ids)
        out = np.zeros((view.shape[0], KEY_NBYTES), dtype=np.uint8)
        cdef uint8_t[:, ::1] keys = out
        cdef Py_ssize_t i
        for i in range(view.shape[0]):
            if view[i] < self._index.ids_used:
                kv_record_key(&self._index.records[view[i]], &keys[i, 0])
        return out

    # ---- namespaces and reservations ----

    def set_namespace(self, ns, slot_nbytes, shards, spare_nbytes=0):
        """Tell the index how large a block of `ns` is in a tier, how many parts make it complete, and what new blocks
        may take on top of the near capacity before any have to go."""
        if not (0 <= ns <= KV_NAMESPACES_MAX and 1 <= shards <= KV_SHARDS_MAX):
            raise InvalidRequest(f"namespace {ns} (max {KV_NAMESPACES_MAX}) with {shards} shards (max {SHARDS_MAX})")
        kv_index_lock(&self._index)
        self._index.namespaces[<uint32_t>ns].spare_nbytes = spare_nbytes
        self._index.namespaces[<uint32_t>ns].slot_nbytes = slot_nbytes
        self._index.namespaces[<uint32_t>ns].all_parts = (1 << shards) - 1
        pthread_mutex_unlock(&self._index.lock)

    def set_quota(self, uint16_t ns, num_blocks):
        """What the blocks of a namespace may come to, those being written included; None: no limit."""
        cdef uint32_t end = 0 if num_blocks is None else min(num_blocks + 1, ENTRIES_MAX + 1)
        kv_index_lock(&self._index)
        self._index.namespaces[ns].quota_end = end
        pthread_mutex_unlock(&self._index.lock)

    def set_tenant(self, uint16_t ns, uint16_t tenant):
        """Whose namespace it is, while it has no blocks; 0 is nobody's."""
        kv_index_lock(&self._index)
        empty = self._index.namespaces[ns].num_entries == 0
        if empty:
            self._index.namespaces[ns].tenant = tenant
        pthread_mutex_unlock(&self._index.lock)
        if not empty:
            raise InvalidRequest(f"namespace {ns} has blocks")

    def limit_tenant(self, uint16_t tenant, uint64_t nbytes):
        """What all blocks of a tenant, those being written included, may take in slots; 0: no limit."""
        self._index.tenants[tenant].limit_nbytes = nbytes if tenant else 0

    def tenant_nbytes(self, uint16_t tenant):
        """What they take."""
        return self._index.tenants[tenant].used_nbytes

    def num_blocks(self, ns):
        """Blocks of a namespace that are stored or being written."""
        return self._index.namespaces[<uint16_t>ns].num_entries

    def plan(self, keys, uint32_t shard, int ns=-1):
        """What a put of these keys needs: (number wanted, per position PRESENT/BUSY/JOIN/WANTED, ids or NONE).

        Errors: InvalidRequest when a key is stored in another namespace than `ns`.
        """
        cdef Py_buffer view
        keys_of(keys, &view)
        cdef uint32_t num_keys = <uint32_t>(view.len // KV_KEY_NBYTES), wanted = 0, i
        plan_out, ids_out = np.empty(num_keys, dtype=np.uint8), np.empty(num_keys, dtype=np.uint32)
        cdef uint8_t[::1] plan = plan_out
        cdef uint32_t[::1] ids = ids_out
        if num_keys:
            wanted = kv_index_plan(&self._index, <const uint8_t *>view.buf, num_keys, shard, &plan[0], &ids[0])
        PyBuffer_Release(&view)
        for i in range(num_keys if ns >= 0 else 0):
            if ids[i] != KV_NONE and self._index.records[ids[i]].ns != ns:
                raise InvalidRequest(f"keys[{i}] is a key of another namespace")
        return wanted, plan_out, ids_out

    def begin(self, keys, uint32_t shard, uint32_t ns, uint8_t[::1] plan, uint32_t[::1] ids,
              const uint32_t[::1] places):
        """Reserve what `plan` found wanted, as far as `places` reach; fills `ids` (and `plan`: BUSY where a key
        repeats an earlier one). Returns the places used."""
        cdef Py_buffer view
        cdef uint32_t used = 0
        keys_of(keys, &view)
        if plan.shape[0]:
            used = kv_index_begin(&self._index, <const uint8_t *>view.buf, <uint32_t>plan.shape[0], shard,
                                  <uint16_t>ns, &plan[0], &ids[0], &places[0] if places.shape[0] else NULL,
                                  <uint32_t>places.shape[0])
        PyBuffer_Release(&view)
        return used

    def commit(self, ids, uint32_t shard, uint32_t now_s=0):
        """Commit part `shard`; returns (ids that became visible, per id 1, or 0 where it never can)."""
        cdef uint32_t[::1] view = self._ids(ids)
        self._index.now_s = now_s
        out = np.empty(view.shape[0], dtype=np.uint8)
        published_out = np.empty(view.shape[0] + self._index.counts.num_waiting, dtype=np.uint32)
        cdef uint8_t[::1] committed = out
        cdef uint32_t[::1] published = published_out
        cdef uint32_t num_published = 0
        kv_evict_drain(&self._index)
        if view.shape[0]:
            num_published = kv_index_commit(&self._index, &view[0], <uint32_t>view.shape[0], shard, &committed[0],
                                            &published[0])
        return published_out[:num_published], out

    def abandon(self, ids, uint32_t shard, uint32_t now_s=0):
        """Undo part `shard` of a reservation; `reap` hands out what came free."""
        cdef uint32_t[::1] view = self._ids(ids)
        self._index.now_s = now_s
        if view.shape[0]:
            kv_index_abandon(&self._index, &view[0], <uint32_t>view.shape[0], shard)

    def adopt(self, const uint8_t[:, :] keys, const uint8_t[:, :] parents, const uint32_t[:] namespaces,
              const uint32_t[:] places, const uint64_t[:] checksums):
        """Take recovered blocks in, in any order; columns may be fields of a table. Returns their ids: NONE where the
        parent is neither there nor among them, the key is there already, or the index is full."""
        cdef Py_ssize_t num = keys.shape[0]
        cdef kv_found found
        cdef int code
        if not num == parents.shape[0] == namespaces.shape[0] == places.shape[0] == checksums.shape[0]:
            raise InvalidRequest(f"adopt wants columns of one length, not of {num} keys and others")
        out = np.empty(num, dtype=np.uint32)
        cdef uint32_t[::1] ids = out
        if num == 0:
            return out
        for name, width, stride in (("keys", keys.shape[1], keys.strides[1]), ("parents", parents.shape[1],
                                                                               parents.strides[1])):
            if width != KV_KEY_NBYTES or stride != 1:
                raise InvalidRequest(f"{name} must be uint8 (num_blocks, {KEY_NBYTES}), each key in one piece")
        found.num_rows = <uint32_t>num
        found.keys.first, found.keys.stride = <const char *>&keys[0, 0], keys.strides[0]
        found.parents.first, found.parents.stride = <const char *>&parents[0, 0], parents.strides[0]
        found.namespaces.first, found.namespaces.stride = <const char *>&namespaces[0], namespaces.strides[0]
        found.places.first, found.places.stride = <const char *>&places[0], places.strides[0]
        found.checksums.first, found.checksums.stride = <const char *>&checksums[0], checksums.strides[0]
        with nogil:
            code = kv_index_adopt_all(&self._index, &found, &ids[0])
        if code < 0:
            raise MemoryError(f"no memory to put {num} recovered blocks in order")
        return out

    def reorder_far(self, ids):
        """List blocks that are only far anew, the coldest first, each with an access number of its own."""
        cdef uint32_t[::1] view = self._ids(ids)
        cdef Py_ssize_t i
        for i in range(view.shape[0]):
            self._index.clock += 1
            self._index.links[view[i]].access = self._index.clock
            self._index.policy.demoted(&self._index, view[i])

    # ---- making room ----

    cdef object _take_freed(self):
        """[(tier, namespace, places)] of what came free, near (0) and far (1)."""
        out = []
        cdef uint32_t i, num
        cdef uint32_t *freed_places
        cdef uint16_t *freed_ns
        cdef uint32_t[::1] places
        cdef bint one_ns
        for tier in (0, 1):
            num = self._freed.num_near if tier == 0 else self._freed.num_far
            if num == 0:
                continue
            freed_places = self._freed.near_places if tier == 0 else self._freed.far_places
            freed_ns = self._freed.near_ns if tier == 0 else self._freed.far_ns
            places_out = np.empty(num, dtype=np.uint32)
            places = places_out
            one_ns = True
            for i in range(num):
                places[i] = freed_places[i]
                one_ns &= freed_ns[i] == freed_ns[0]
            if one_ns:
                out.append((tier, freed_ns[0], places_out))
                continue
            ns_out = np.array(<uint16_t[:num]>freed_ns)
            out.extend((tier, int(ns), places_out[ns_out == ns]) for ns in np.unique(ns_out))
        self._freed.num_near = self._freed.num_far = 0
        return out

    def evict_near(self, uint64_t wanted_nbytes, bint keep_unwritten, uint32_t now_s):
        """Evict the coldest near copies; returns (bytes freed, [(tier, namespace, places)])."""
        cdef uint64_t freed_nbytes
        self._index.now_s = now_s
        with nogil:
            freed_nbytes = kv_evict_near(&self._index, wanted_nbytes, keep_unwritten, KV_LEVEL_ANY, &self._freed)
        return freed_nbytes, self._take_freed()

    def evict_far(self, uint64_t wanted_nbytes, uint32_t now_s):
        """Evict the coldest blocks that are only far; as evict_near."""
        cdef uint64_t freed_nbytes
        self._index.now_s = now_s
        with nogil:
            freed_nbytes = kv_evict_far(&self._index, wanted_nbytes, &self._freed)
        return freed_nbytes, self._take_freed()

    def evict_these(self, ids, bint keep_unwritten, uint32_t now_s):
        """Evict the near copies of these ids as far as they may go; as evict_near."""
        cdef uint32_t[::1] view = self._ids(ids)
        cdef uint64_t freed_nbytes = 0
        self._index.now_s = now_s
        if view.shape[0]:
            freed_nbytes = kv_evict_these(&self._index, &view[0], <uint32_t>view.shape[0], keep_unwritten, &self._freed)
        return freed_nbytes, self._take_freed()

    def evict_namespace(self, uint16_t ns, uint32_t num_blocks, uint32_t now_s):
        """Evict a namespace's coldest blocks from every tier; returns (how many are gone, places as evict_near)."""
        self._index.now_s = now_s
        num_gone = kv_evict_namespace(&self._index, ns, num_blocks, &self._freed)
        return num_gone, self._take_freed()

    def reap(self):
        """Places of removed and undone blocks that nobody leases any more: [(tier, namespace, places)]."""
        kv_evict_reap(&self._index, &self._freed)
        return self._take_freed()

    def remove(self, ids, int reason, uint32_t now_s):
        """Make ids and all that extends them unfindable; returns how many blocks went."""
        cdef uint32_t[::1] view = self._ids(ids)
        self._index.now_s = now_s
        if not view.shape[0]:
            return 0
        return kv_index_remove(&self._index, &view[0], <uint32_t>view.shape[0], <kv_reason>reason)

    def remove_keys(self, keys, uint16_t ns, uint32_t now_s):
        """As remove, of the blocks of namespace `ns` that these keys name now, because they were asked away."""
        cdef Py_buffer view
        cdef uint32_t removed
        keys_of(keys, &view)
        self._index.now_s = now_s
        with nogil:
            removed = kv_index_remove_keys(&self._index, ns, <const uint8_t *>view.buf,
                                           <uint32_t>(view.len // KV_KEY_NBYTES), KV_WAS_REMOVED)
        PyBuffer_Release(&view)
        return removed

    def clear(self, uint32_t ns, uint32_t now_s):
        """Remove every block of a namespace; returns how many."""
        self._index.now_s = now_s
        return kv_index_clear(&self._index, <uint16_t>ns)

    # ---- moving ----

    cdef object _marked(self, object ids, marker mark):
        cdef uint32_t[::1] view = self._ids(ids)
        out = np.zeros(view.shape[0], dtype=np.uint8)
        cdef uint8_t[::1] marked = out
        if view.shape[0]:
            mark(&self._index, &view[0], <uint32_t>view.shape[0], &marked[0])
        return out

    def writeback_mark(self, ids, const uint64_t[::1] words, int ns=-1):
        """Which ids (of namespace `ns`; -1: of any) may be written to the far tier now, if their state words are still
        `words`; those keep their near copy until unmarked."""
        cdef uint32_t[::1] view = self._ids(ids)
        out = np.zeros(view.shape[0], dtype=np.uint8)
        cdef uint8_t[::1] marked = out
        if view.shape[0]:
            kv_writeback_mark(&self._index, <uint32_t>ns, &view[0], &words[0], <uint32_t>view.shape[0],
                              &marked[0])
        return out

    def writeback_unmark(self, ids, const uint32_t[::1] places, const uint64_t[::1] checksums,
                         const uint8_t[::1] written):
        """End a write-back; returns per id whether its far copy at `places` counts now."""
        cdef uint32_t[::1] view = self._ids(ids)
        out = np.zeros(view.shape[0], dtype=np.uint8)
        cdef uint8_t[::1] kept = out
        if view.shape[0]:
            kv_writeback_unmark(&self._index, &view[0], &places[0], &checksums[0], &written[0],
                                <uint32_t>view.shape[0], &kept[0])
        return out

    def promote_mark(self, ids):
        """Which ids are far only and may be read near now; those keep their far copy until unmarked."""
        return self._marked(ids, kv_promote_mark)

    def promote_unmark(self, ids, const uint32_t[::1] places, const uint8_t[::1] read):
        """End a promotion; returns per id whether its near copy at `places` counts now."""
        cdef uint32_t[::1] view = self._ids(ids)
        out = np.zeros(view.shape[0], dtype=np.uint8)
        cdef uint8_t[::1] kept = out
        kv_evict_drain(&self._index)
        if view.shape[0]:
            kv_promote_unmark(&self._index, &view[0], &places[0], &read[0], <uint32_t>view.shape[0], &kept[0])
        return out

    def carry_mark(self, ids):
        """Which ids have a far copy that may be moved now; it stays where it is until unmarked."""
        return self._marked(ids, kv_carry_mark)

    def carry_unmark(self, ids, const uint32_t[::1] places, const uint8_t[::1] written):
        """End a move of far copies; returns per id whether the copy at `places` counts now."""
        cdef uint32_t[::1] view = self._ids(ids)
        out = np.zeros(view.shape[0], dtype=np.uint8)
        cdef uint8_t[::1] kept = out
        if view.shape[0]:
            kv_carry_unmark(&self._index, &view[0], &places[0], &written[0], <uint32_t>view.shape[0], &kept[0])
        return out

    def drain(self):
        """Bring waiting touches into the eviction order."""
        kv_evict_drain(&self._index)

    # ---- numbers ----

    def lookups(self):
        """What was asked by leases so far, in all tables: how many, keys asked for, blocks found, of these near when
        first asked; and lease entries in use, whole groups."""
        cdef kv_lookups sum
        cdef uint32_t in_use = kv_evict_lookups(&self._index, &sum)
        return {"leases": sum.num_acquires, "blocks_asked": sum.num_keys, "blocks_found": sum.num_held,
                "blocks_near": sum.num_near, "leases_in_use": in_use}

    def tell_readers(self, bint far_is_well, uint64_t arriving_nbytes, uint64_t read_nbytes_per_s):
        """What readers in other processes estimate by how long it takes until a far block is near."""
        self._index.header.far_is_well = far_is_well
        self._index.header.arriving_nbytes = arriving_nbytes
        self._index.header.read_nbytes_per_s = read_nbytes_per_s

    def counts(self):
        """Counters and gauges of the index as a dict."""
        cdef kv_counts *counts = &self._index.counts
        return {
            "entries": counts.num_entries, "entries_max": self._index.entries_max, "writing": counts.num_writing,
            "waiting": counts.num_waiting, "near": counts.num_near, "far": counts.num_far,
            "removed_pending": counts.num_removed, "near_nbytes": counts.near_nbytes,
            "far_nbytes": counts.far_nbytes, "writing_nbytes": counts.writing_nbytes,
            "evicted_near": counts.evicted_near, "evicted_far": counts.evicted_far,
            "dropped_unwritten": counts.dropped_unwritten, "spared": counts.spared, "hints": counts.num_hints,
        }

    @property
    def clock(self):
        """Number of the latest access; goes round after 2^32."""
        return self._index.clock

    @property
    def near_nbytes(self):
        """Bytes of near slots in use: stored and reserved."""
        return self._index.counts.near_nbytes + self._index.counts.writing_nbytes

    @property
    def far_nbytes(self):
        return self._index.counts.far_nbytes

    @property
    def num_free(self):
        """Entries that can still be made."""
        return self._index.entries_max - self._index.counts.num_entries - self._index.counts.num_removed

    @property
    def num_removed(self):
        """Removed blocks that wait for their last lease."""
        return self._index.counts.num_removed

    @property
    def nbytes_per_entry(self):
        """Metadata bytes per block when full: record, bucket share and private links."""
        return kv_index_nbytes_per_entry(&self._index)

    def check(self):
        """Audit everything; 0, or the number of the rule that is broken (audit.c)."""
        return kv_index_check(&self._index)
