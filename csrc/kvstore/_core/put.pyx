"""The put path: room, reservations and commits in one call each; thin wrappers over put.h.

Other threads, also ones without an interpreter, may be in the same calls at the same time.
"""

from cpython.buffer cimport PyBuffer_Release
from cpython.mem cimport PyMem_Free, PyMem_Realloc

import numpy as np

from kvstore._core.lease cimport LeaseTable
from kvstore._core.view cimport hint_of, keys_of

from kvstore.errors import InvalidRequest

OK, SHORT_LEASES, FOREIGN = KV_PUT_OK, KV_PUT_LEASES, KV_PUT_FOREIGN
SHORT_QUOTA, SHORT_ENTRIES, SHORT_ROOM, NO_MEMORY = KV_PUT_QUOTA, KV_PUT_ENTRIES, KV_PUT_ROOM, KV_PUT_MEMORY
LATE, PAST_QUOTA, PAST_ENTRIES, AGAIN = KV_LATE, KV_PAST_QUOTA, KV_PAST_ENTRIES, KV_AGAIN
WHY = ("memory", "index", "quota", "worth")

cdef uint32_t _TAKE_MAX = 4096


cdef class PutPath:
    """Puts into `arena` and `index`: at most `near_nbytes` in slots, and `queue_blocks` waiting for their write-back.

    `has_far`: blocks get a far copy, and room is made of those that have one first. Errors: MemoryError.
    """

    def __cinit__(self, Index index not None, Arena arena not None, uint64_t near_nbytes, uint32_t queue_blocks,
                  bint has_far):
        if kv_put_create(&self._put, &index._index, &arena._slots, near_nbytes, queue_blocks) < 0:
            raise MemoryError
        kv_put_set_far(&self._put, has_far)
        self._index, self._arena = index, arena

    def __dealloc__(self):
        kv_put_destroy(&self._put)
        PyMem_Free(self._plan)
        PyMem_Free(self._ids)
        PyMem_Free(self._places)

    def set_far(self, bint has_far):
        """From now on there is a far tier, or none. The caller holds the store's lock."""
        kv_put_set_far(&self._put, has_far)

    cdef int _make_scratch(self, uint32_t num_keys) except -1:
        cdef void *plan
        cdef void *ids
        cdef void *places
        if num_keys <= self._scratch_keys and self._plan != NULL:
            return 0
        num_keys = max(num_keys, 256)
        plan, ids = PyMem_Realloc(self._plan, num_keys), PyMem_Realloc(self._ids, num_keys * 4)
        places = PyMem_Realloc(self._places, num_keys * 4)
        self._plan = <uint8_t *>plan if plan != NULL else self._plan
        self._ids = <uint32_t *>ids if ids != NULL else self._ids
        self._places = <uint32_t *>places if places != NULL else self._places
        if plan == NULL or ids == NULL or places == NULL:
            raise MemoryError
        self._scratch_keys = num_keys
        return 0

    def reserve(self, LeaseTable leases not None, keys, uint32_t ns, uint32_t shard, uint32_t flags, uint32_t now_s,
                hint=None):
        """Reserve part `shard` of what is not stored of the chain `keys`, of which the numbers of a Hint may be known.

        Returns (OK, positions, ids, places, state words, number present, [(position, is busy)] of the others, why those
        got nothing), or (code, number) without having reserved anything: of blocks that are wanted, for FOREIGN the
        position of a key of another namespace. The caller holds the store's lock.
        """
        cdef Py_buffer view
        cdef kv_wish wish
        cdef kv_grant grant
        cdef int code
        wish.hint = hint_of(hint)
        keys_of(keys, &view)
        try:
            wish.keys, wish.num_keys = <const uint8_t *>view.buf, <uint32_t>(view.len // KV_KEY_NBYTES)
            wish.shard, wish.flags, wish.ns = shard, flags, <uint16_t>ns
            self._make_scratch(wish.num_keys)
            grant.plan, grant.ids, grant.places = self._plan, self._ids, self._places
            grant.num_wanted = 0
            self._index._index.now_s = now_s
            with nogil:
                code = kv_put_reserve(&self._put, &leases._table, &wish, &grant)
        finally:
            PyBuffer_Release(&view)
        if code != KV_PUT_OK:
            return code, grant.num_wanted
        return self._granted(wish.num_keys, grant.why)

    def _granted(self, uint32_t num_keys, int why):
        cdef uint32_t i, num = 0, num_mine = 0, present = 0
        for i in range(num_keys):
            num_mine += self._plan[i] >= KV_JOIN and self._ids[i] != KV_NONE
        positions_out, mine_out = np.empty(num_mine, dtype=np.intp), np.empty(num_mine, dtype=np.uint32)
        places_out, words_out = np.empty(num_mine, dtype=np.uint32), np.empty(num_mine, dtype=np.uint64)
        cdef Py_ssize_t[::1] positions = positions_out
        cdef uint32_t[::1] mine = mine_out, places = places_out
        cdef uint64_t[::1] words = words_out
        cdef kv_record *record
        refused = []
        for i in range(num_keys):
            if self._plan[i] == KV_PRESENT:
                present += 1
            elif self._plan[i] == KV_BUSY or self._ids[i] == KV_NONE:
                refused.append((i, self._plan[i] == KV_BUSY))
            else:
                record = &self._index._index.records[self._ids[i]]
                positions[num], mine[num] = i, self._ids[i]
                places[num], words[num] = kv_record_place(record), kv_record_word(record)
                num += 1
        return KV_PUT_OK, positions_out, mine_out, places_out, words_out, present, refused, WHY[why]

    def commit(self, ids, uint32_t shard, uint32_t now_s):
        """Commit part `shard` of reserved ids; how many of them can never become visible. With a far tier `take_fresh`
        hands out what became visible."""
        cdef uint32_t[::1] view = self._index._ids(ids)
        self._index._index.now_s = now_s
        return kv_put_commit(&self._put, &view[0], <uint32_t>view.shape[0], shard) if view.shape[0] else 0

    def abandon(self, ids, uint32_t shard, uint32_t now_s):
        """Undo part `shard` of reserved ids."""
        cdef uint32_t[::1] view = self._index._ids(ids)
        self._index._index.now_s = now_s
        if view.shape[0]:
            kv_put_abandon(&self._put, &view[0], <uint32_t>view.shape[0], shard)

    def expire(self, ids, const uint64_t[::1] words not None, bint is_over, uint32_t now_s):
        """Whether any of `ids` are still being written, as when their state words were `words`; undone if `is_over`."""
        cdef uint32_t[::1] view = self._index._ids(ids)
        if view.shape[0] != words.shape[0]:
            raise InvalidRequest(f"{words.shape[0]} state words for {view.shape[0]} ids")
        self._index._index.now_s = now_s
        if not view.shape[0]:
            return False
        return kv_put_expire(&self._put, &view[0], &words[0], <uint32_t>view.shape[0], is_over) > 0

    def room(self, uint16_t ns, uint32_t num_blocks, bint drop_unwritten, uint32_t now_s):
        """Near places for up to `num_blocks` far blocks, evicting as needed, uint32; they count as arriving until
        `arrived`. Fewer when what is left is leased, or waits for its write-back and may not be dropped."""
        self._index._index.now_s = now_s
        out = np.empty(num_blocks, dtype=np.uint32)
        cdef uint32_t[::1] places = out
        cdef uint32_t given = 0
        if num_blocks:
            with nogil:
                given = kv_put_room(&self._put, ns, num_blocks, drop_unwritten, &places[0])
        return out[:given]

    def arrived(self, uint64_t nbytes):
        """Blocks that took so much in near slots are not arriving any more."""
        kv_put_arrived(&self._put, nbytes)

    def evict(self, uint64_t nbytes, bint keep_unwritten, uint32_t now_s):
        """Evict the coldest near copies until `nbytes` came free or nothing more may go; returns how much came free."""
        cdef uint64_t freed_nbytes
        self._index._index.now_s = now_s
        with nogil:
            freed_nbytes = kv_put_evict(&self._put, nbytes, keep_unwritten)
        return freed_nbytes

    def reap(self):
        """Give back what removed blocks occupied near, as far as nobody leases them; `take_far` has the far places."""
        kv_put_reap(&self._put)

    def take_fresh(self):
        """[(ids, state words, namespace)] of blocks that became visible and have no far copy, in that order."""
        cdef kv_fresh fresh[256]
        cdef uint32_t i, first, num = 256
        cdef uint32_t[::1] ids
        cdef uint64_t[::1] words
        out = []
        while num == 256:
            num = kv_put_take_fresh(&self._put, fresh, 256)
            ids_out, words_out = np.empty(num, dtype=np.uint32), np.empty(num, dtype=np.uint64)
            ids, words = ids_out, words_out
            first = 0
            for i in range(num):
                ids[i], words[i] = fresh[i].id, fresh[i].word
                if i + 1 == num or fresh[i + 1].ns != fresh[first].ns:
                    out.append((ids_out[first:i + 1], words_out[first:i + 1], fresh[first].ns))
                    first = i + 1
        return out

    def take_far(self):
        """[(namespace, places)] of far places that came free."""
        out = []
        while True:
            places, namespaces = np.empty(_TAKE_MAX, dtype=np.uint32), np.empty(_TAKE_MAX, dtype=np.uint16)
            num = self._take_far(places, namespaces)
            if not num:
                return out
            out.extend((int(ns), places[:num][namespaces[:num] == ns]) for ns in np.unique(namespaces[:num]))

    def _take_far(self, uint32_t[::1] places, uint16_t[::1] namespaces):
        return kv_put_take_far(&self._put, &places[0], &namespaces[0], <uint32_t>places.shape[0])

    @property
    def has_freed_far(self):
        """Does `take_far` have anything?"""
        return self._put.freed.num_far > 0

    def used_nbytes(self):
        """(stored, reserved or arriving, given out by the arena): bytes of near slots, the same. For tests."""
        cdef uint64_t taken_nbytes
        used_nbytes = kv_put_used_nbytes(&self._put, &taken_nbytes)
        return used_nbytes, taken_nbytes

    @property
    def arriving_nbytes(self):
        """Bytes of near slots that are being filled from the far tier."""
        return self._put.arriving_nbytes

    @property
    def put_nbytes(self):
        """Bytes of slots that were committed so far; of a block with shards its part."""
        return kv_put_nbytes(&self._put)

    @property
    def num_fresh(self):
        """How many blocks became visible so far, modulo 2^32."""
        return kv_put_num_fresh(&self._put)

    def set_worth(self, float chance_min, float gain_min):
        """Blocks that are less likely than this to be asked for again get no far copy; nor, while the far tier is full,
        those that are not worth so many times what has to go for them."""
        kv_put_set_worth(&self._put, chance_min, gain_min)

    def set_far_full(self, bint is_full):
        """Whether something has to go for a far copy. The caller holds the store's lock."""
        kv_put_set_far_full(&self._put, is_full)

    @property
    def num_bypassed(self):
        """Blocks that got no place because everything that could make room was worth more."""
        return self._put.num_bypassed

    @property
    def num_unworthy(self):
        """Blocks that were not worth a far copy when they became visible."""
        return self._put.num_unworthy

    @property
    def num_unqueued(self):
        """Blocks that became visible while the queue was full: they stay near only."""
        return self._put.num_unqueued
