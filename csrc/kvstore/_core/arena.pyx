"""Arenas: one mapped region, slots for blocks in it, and views that keep what they show in place."""

cimport cython
from cpython.buffer cimport PyBuffer_FillInfo
from cpython.memoryview cimport PyMemoryView_FromObject

import os

import numpy as np

from kvstore.errors import InvalidRequest, LeaseExpired, Unavailable

PAGE_KINDS = ("hugetlb", "thp-shared", "thp-private", "base")
ARENA_NBYTES_MAX = 1 << 44    # places are 32-bit numbers of 4 KiB
BLOCK_NBYTES_MAX = 1 << 30


cdef const uint32_t[::1] _u32(object array):
    try:
        return array
    except (TypeError, ValueError):    # not contiguous, or no uint32
        return np.ascontiguousarray(array, dtype=np.uint32)


cdef class Arena:
    """`nbytes` of memory (rounded up to 2 MiB) in the largest pages that can be had, cut into slots as asked.

    `shared`: other processes must be able to map it. `base_pages`: 4 KiB pages whatever could be had. Places are slot
    offsets in units of 4 KiB. With `fd` it is the arena of another process, which alone gives out places of it; it can
    be written to if it is `writable`. Errors: InvalidRequest for a size out of range,
    Unavailable when the memory cannot be had (says how much is there).
    """

    def __cinit__(self, nbytes, *, bint shared=False, bint base_pages=False, int fd=-1, bint writable=False):
        cdef uint64_t available = 0
        cdef int code
        if isinstance(nbytes, bool) or not isinstance(nbytes, int) or not 1 <= nbytes <= ARENA_NBYTES_MAX:
            raise InvalidRequest(f"arena nbytes={nbytes!r} is not an integer between 1 and {ARENA_NBYTES_MAX}")
        if fd >= 0:
            code = kv_memory_adopt(&self._memory, nbytes, fd, writable)
        else:
            code = kv_memory_map(&self._memory, nbytes, shared, base_pages, &available)
        if code < 0:
            raise Unavailable(
                f"{nbytes} bytes of memory cannot be had ({os.strerror(-code)}; {available} bytes are available)"
            )
        if kv_slots_create(&self._slots, self._memory.nbytes if fd < 0 else 0) < 0:
            kv_memory_unmap(&self._memory)
            raise Unavailable(f"no memory for the slots of an arena of {nbytes} bytes")
        self._open = True

    def __dealloc__(self):
        if self._open:
            kv_slots_destroy(&self._slots)
            kv_memory_unmap(&self._memory)

    cdef int _class(self, object nbytes) except -1:
        if not self._open:
            raise Unavailable("the arena is closed")
        if isinstance(nbytes, bool) or not isinstance(nbytes, (int, np.integer)) or not 1 <= nbytes <= BLOCK_NBYTES_MAX:
            raise InvalidRequest(f"nbytes={nbytes!r} of a block is not an integer between 1 and {BLOCK_NBYTES_MAX}")
        cdef int number = kv_slots_class(&self._slots, nbytes)
        if number < 0:
            raise InvalidRequest(f"an arena holds blocks of at most {KV_CLASSES_MAX} different sizes")
        return number

    def allocate(self, nbytes, num_blocks):
        """Places for up to `num_blocks` blocks of `nbytes`, uint32; fewer when the arena is full."""
        cdef int number = self._class(nbytes)
        if num_blocks < 0:
            raise InvalidRequest(f"num_blocks={num_blocks} is negative")
        cdef int64_t given = 0
        most = min(num_blocks, self._memory.nbytes // KV_PLACE_NBYTES)
        out = np.empty(most, dtype=np.uint32)
        cdef uint32_t[::1] places = out
        if most:
            given = kv_slots_allocate(&self._slots, number, <uint32_t>most, &places[0])
        if given < 0:
            raise Unavailable("no memory for the slots of another slab")
        return out[:given]

    def free(self, places, nbytes):
        """Give places of blocks of `nbytes` back; all or, when one is not allocated, none (InvalidRequest)."""
        cdef int number = self._class(nbytes)
        cdef const uint32_t[::1] view = _u32(places)
        if view.shape[0] and kv_slots_free(&self._slots, number, &view[0], <uint32_t>view.shape[0]) != 0:
            raise InvalidRequest(f"a place among {view.shape[0]} is not allocated for blocks of {nbytes} bytes")

    def require_allocated(self, places, nbytes):
        """InvalidRequest unless all of `places` are allocated for blocks of `nbytes`."""
        cdef int number = self._class(nbytes)
        cdef const uint32_t[::1] view = np.ascontiguousarray(places, dtype=np.uint32)
        if view.shape[0] and not kv_slots_hold(&self._slots, number, &view[0], <uint32_t>view.shape[0]):
            raise InvalidRequest(f"a place among {view.shape[0]} is not allocated for blocks of {nbytes} bytes")

    def vacate(self, nbytes):
        """Range of places [first, last) to empty so that a block of `nbytes` fits: the one with the least in it.

        None when there is room already, or when emptying would not help.
        """
        cdef int number = self._class(nbytes)
        cdef uint32_t first = 0, last = 0
        if not kv_slots_vacate(&self._slots, number, &first, &last):
            return None
        return first, last

    def num_free(self, nbytes):
        """How many blocks of `nbytes` could be allocated now."""
        return kv_slots_available(&self._slots, self._class(nbytes))

    def addresses(self, const uint32_t[::1] places not None, uint64_t offset=0):
        """Addresses `offset` bytes into places, uint64; valid while the blocks are leased or reserved, between
        begin_use and end_use."""
        cdef Py_ssize_t i
        if not self._open:
            raise Unavailable("the arena is closed")
        out = np.empty(places.shape[0], dtype=np.uint64)
        cdef uint64_t[::1] addresses = out
        for i in range(places.shape[0]):
            addresses[i] = <uint64_t><size_t>self._memory.base + <uint64_t>places[i] * KV_PLACE_NBYTES + offset
        return out

    def begin_use(self):
        """Keep the memory mapped until `end_use`: somebody copies by address. Errors: Unavailable once closed."""
        if not self._open:
            raise Unavailable("the arena is closed")
        self.exports += 1

    def end_use(self):
        """What `begin_use` began has ended."""
        self.exports -= 1

    def window(self, places, nbytes, *, bint readonly, offset=0, on_release=None):
        """A Window on `nbytes` from `offset` of each place; `on_release()` runs once nobody sees it any more."""
        cdef const uint32_t[::1] view = _u32(places)
        cdef Py_ssize_t i
        if not self._open:
            raise Unavailable("the arena is closed")
        if not (nbytes >= 1 and offset >= 0):
            raise InvalidRequest(f"a window of nbytes={nbytes} at offset={offset}")
        cdef uint64_t end = offset + nbytes
        for i in range(view.shape[0]):
            if <uint64_t>view[i] * KV_PLACE_NBYTES + end > self._memory.nbytes:
                raise InvalidRequest(f"place {view[i]} with {nbytes} bytes at {offset} ends outside the arena")
        return Window(self, np.asarray(view), nbytes, readonly, offset, on_release)

    def prefault(self):
        """Touch every page, without the GIL, until done or closed. Errors: Unavailable when memory runs out."""
        cdef int code
        if not self._open:
            return
        self._prefaulting += 1
        with nogil:
            code = kv_memory_prefault(&self._memory)
        self._prefaulting -= 1
        if code < 0:
            raise Unavailable(f"memory ran out while prefaulting: {os.strerror(-code)}")

    def require_unused(self):
        """Unavailable, naming how many, while views of blocks are in use."""
        if self.exports:
            raise Unavailable(f"{self.exports} views of blocks are still in use; release them first")

    def close(self):
        """Unmap. Idempotent. Errors: Unavailable while views are in use."""
        if not self._open:
            return
        self.require_unused()
        self._memory.stop = 1
        if self._prefaulting:
            return    # the prefault keeps the arena alive and unmaps nothing; collection does when it has ended
        self._open = False
        kv_slots_destroy(&self._slots)
        kv_memory_unmap(&self._memory)

    def check(self):
        """Audit of the slots; 0, or the number of the broken rule (slots.c)."""
        return kv_slots_check(&self._slots)

    @property
    def nbytes(self):
        return self._memory.nbytes

    @property
    def used_nbytes(self):
        """Bytes of allocated slots."""
        return self._slots.used_nbytes

    @property
    def num_blocks(self):
        return self._slots.num_blocks

    @property
    def page_kind(self):
        """What was obtained: hugetlb, thp-shared, thp-private or base (4 KiB)."""
        return PAGE_KINDS[self._memory.pages]

    @property
    def fallback_reason(self):
        """Why the pages are 4 KiB ones; "" when they are larger."""
        return self._memory.reason.decode() if self.page_kind == "base" else ""

    @property
    def prefaulted_nbytes(self):
        return self._memory.prefaulted_nbytes

    @property
    def fileno(self):
        """Descriptor that other processes can map; -1 for private memory."""
        return self._memory.fd


@cython.no_gc_clear    # collected within somebody's cycle, it still has to say that nobody sees the blocks any more
cdef class _Exporter:
    """Hands out the block at the cursor; only Window moves the cursor."""

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self._cursor, self._nbytes, self._readonly, flags)
        self._num_exports += 1
        self._arena.exports += 1

    def __releasebuffer__(self, Py_buffer *view):
        self._num_exports -= 1
        self._arena.exports -= 1
        self._finish()

    def __dealloc__(self):
        # A window that was dropped without close: nobody can see the blocks any more.
        self._closed = True
        if self._on_release is not None:
            self._finish()

    cdef int _finish(self) except -1:
        if self._closed and self._num_exports == 0 and self._on_release is not None:
            on_release, self._on_release = self._on_release, None
            on_release()
        return 0


cdef class Window:
    """Views of some blocks of an arena. What they show is not given to anybody else while one of them lives."""

    cdef _Exporter _exporter
    cdef object _places
    cdef size_t _offset
    cdef list _views

    def __cinit__(self, Arena arena not None, places, Py_ssize_t nbytes, bint readonly, size_t offset, on_release):
        cdef _Exporter exporter = _Exporter.__new__(_Exporter)
        exporter._arena = arena
        exporter._on_release = on_release
        exporter._nbytes = nbytes
        exporter._readonly = readonly
        self._exporter = exporter
        self._places = places
        self._offset = offset

    @property
    def views(self):
        """One memoryview (bytes) per place. LeaseExpired after close."""
        cdef const uint32_t[::1] places
        cdef Py_ssize_t i
        cdef _Exporter exporter = self._exporter
        if exporter._closed:
            raise LeaseExpired("the blocks were released; their views are gone")
        if self._views is None:
            places = self._places
            self._views = []
            for i in range(places.shape[0]):
                exporter._cursor = exporter._arena._memory.base + <size_t>places[i] * KV_PLACE_NBYTES + self._offset
                self._views.append(PyMemoryView_FromObject(exporter))
        return self._views

    def close(self):
        """Release every view that nothing else builds on; returns how many are still in use. Idempotent."""
        cdef _Exporter exporter = self._exporter
        exporter._closed = True
        views, self._views = self._views, None
        for view in views or ():
            try:
                view.release()
            except BufferError:
                pass    # an array was made of it: it ends when that does
        views = None
        exporter._finish()
        return exporter._num_exports
