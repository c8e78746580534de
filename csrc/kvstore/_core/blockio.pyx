"""The disk I/O engine: batches of block transfers and checksums on threads of its own, without the GIL.

Files are named by descriptor; whoever opened them keeps them open until the batch is finished. Outcomes are the
values of kvstore.tiers.base.Outcome, checksums are XXH3-64.
"""

from cpython.buffer cimport PyBUF_C_CONTIGUOUS, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport INT64_MAX, int32_t, int64_t, uint8_t, uint64_t

import errno as _errno
import os

import numpy as np

from kvstore.errors import InvalidRequest, Unavailable

DEPTH_MAX = KV_ENGINE_DEPTH_MAX
THREADS_MAX = 256


cdef class Batch:
    """Blocks to write or read: `fds` int32, `offsets` int64 (bytes, multiples of 4096), `buffers` C-contiguous and
    not empty; of a read writable, with the wanted `checksums` (uint64; None: not verified, which is for measurements
    alone). `deadline_us` is in CLOCK_MONOTONIC.

    Once the engine has given it back: `outcomes` uint8, `errnos` int32 (0 where the device did not refuse), and of a
    write `checksums`, 0 where the outcome is not OK; a read buffer whose outcome is not OK holds rubbish. A block
    takes its length in the file, rounded up to 4096 with zeros. `owner` is the caller's. Errors: InvalidRequest.
    """

    def __cinit__(self, bint writing, fds, offsets, buffers, *, checksums=None, deadline_us=None, owner=None):
        cdef Py_ssize_t num_blocks = len(buffers), i
        cdef const int32_t[::1] fd_view
        cdef const int64_t[::1] offset_view
        cdef uint64_t[::1] checksum_view
        cdef uint8_t[::1] outcome_view
        cdef int32_t[::1] errno_view
        if num_blocks == 0:
            raise InvalidRequest("a batch of 0 blocks; allowed: at least 1")
        self._fds = fd_view = _vector("fds", fds, np.int32, num_blocks)
        self._offsets = offset_view = _vector("offsets", offsets, np.int64, num_blocks)
        for i in range(num_blocks):
            if offset_view[i] < 0 or offset_view[i] % KV_PAGE_NBYTES:
                raise InvalidRequest(
                    f"offsets[{i}]={offset_view[i]}; allowed: non-negative multiples of {KV_PAGE_NBYTES}")
        if writing or checksums is None:
            self.checksums = np.zeros(num_blocks, dtype=np.uint64)
        else:
            self.checksums = _vector("checksums", checksums, np.uint64, num_blocks).copy()
        self.outcomes, self.errnos = np.zeros(num_blocks, dtype=np.uint8), np.zeros(num_blocks, dtype=np.int32)
        checksum_view, outcome_view, errno_view = self.checksums, self.outcomes, self.errnos
        self._hold(buffers, not writing)
        self.owner = owner
        self._batch.num_blocks, self._batch.writing = num_blocks, writing
        self._batch.fds, self._batch.offsets = &fd_view[0], &offset_view[0]
        self._batch.buffers, self._batch.nbytes = self._addresses, self._nbytes
        self._batch.checksums = &checksum_view[0] if writing or checksums is not None else NULL
        self._batch.outcomes = &outcome_view[0]
        self._batch.errnos = &errno_view[0]
        self._batch.deadline_us = INT64_MAX if deadline_us is None else min(deadline_us, INT64_MAX)
        self._batch.owner = <void *>self

    cdef int _hold(self, buffers, bint writable) except -1:
        cdef Py_ssize_t num_blocks = len(buffers), i
        cdef int flags = PyBUF_C_CONTIGUOUS | (PyBUF_WRITABLE if writable else 0)
        self._views = <Py_buffer *>PyMem_Calloc(num_blocks, sizeof(Py_buffer))
        self._addresses = <void **>PyMem_Calloc(num_blocks, sizeof(void *))
        self._nbytes = <uint64_t *>PyMem_Calloc(num_blocks, sizeof(uint64_t))
        if self._views == NULL or self._addresses == NULL or self._nbytes == NULL:
            raise MemoryError(f"no memory for a batch of {num_blocks} blocks")
        for i in range(num_blocks):
            try:
                PyObject_GetBuffer(buffers[i], &self._views[i], flags)
            except (BufferError, TypeError, ValueError) as error:
                kind = "C-contiguous and writable" if writable else "C-contiguous"
                raise InvalidRequest(f"buffers[{i}] is {type(buffers[i]).__name__} ({error}); "
                                     f"allowed: a buffer that is {kind}") from None
            self._num_open = i + 1
            self._addresses[i] = self._views[i].buf
            self._nbytes[i] = self._views[i].len
            if self._views[i].len == 0:
                raise InvalidRequest(f"buffers[{i}] is empty; allowed: at least 1 byte")
        return 0

    cdef int _release(self) except -1:
        """Let go of the buffers: nobody transfers any more."""
        cdef Py_ssize_t i, num_open = self._num_open
        self._num_open = 0
        for i in range(num_open):
            PyBuffer_Release(&self._views[i])
        return 0

    def __dealloc__(self):
        self._release()
        PyMem_Free(self._views)
        PyMem_Free(self._addresses)
        PyMem_Free(self._nbytes)


cdef class Engine:
    """Transfers batches: over io_uring with up to `depth` blocks under way, or, where that is refused or `allow_ring`
    is False, on `num_threads` threads.

    Reads go before writes. Thread-safe. Errors: InvalidRequest for a number out of range, Unavailable when threads
    or descriptors cannot be had.
    """

    def __cinit__(self, num_threads, *, depth=32, bint allow_ring=True):
        for name, value, low, high in (("num_threads", num_threads, 1, THREADS_MAX), ("depth", depth, 2, DEPTH_MAX)):
            if not low <= value <= high:
                raise InvalidRequest(f"{name}={value}; allowed: from {low} to {high}")
        cdef int code = kv_engine_create(&self._engine, allow_ring, depth, num_threads)
        if code < 0:
            self._engine = NULL
            raise Unavailable(f"the disk I/O engine cannot start: {os.strerror(-code)}")

    def __dealloc__(self):
        cdef kv_batch *taken
        if self._engine == NULL:
            return
        with nogil:
            kv_engine_stop(self._engine)
        taken = kv_engine_take(self._engine, 0)
        while taken != NULL:
            Py_DECREF(<Batch>taken.owner)
            taken = kv_engine_take(self._engine, 0)
        kv_engine_destroy(self._engine)

    @property
    def kind(self):
        """What it runs on: "io_uring" or "threads"."""
        return "io_uring" if kv_engine_kind_of(self._engine) == KV_ENGINE_RING else "threads"

    @property
    def refusal(self):
        """Why io_uring could not be used; "" when it is, or was not asked for."""
        cdef int code = kv_engine_refusal(self._engine)
        return f"{_errno.errorcode.get(code, code)}: {os.strerror(code)}" if code else ""

    @property
    def fileno(self):
        """An eventfd that is readable while a finished batch waits to be taken."""
        return kv_engine_fileno(self._engine)

    def submit(self, Batch batch not None):
        """Begin a batch; its buffers stay as they are until it is taken back. Errors: Unavailable once stopped."""
        if batch._under_way:
            raise InvalidRequest("a batch was submitted twice; allowed: once")
        batch._under_way = True
        Py_INCREF(batch)
        if kv_engine_submit(self._engine, &batch._batch) < 0:
            Py_DECREF(batch)
            raise Unavailable("the disk I/O engine has stopped")

    def cancel(self, Batch batch not None):
        """What of a batch was not begun becomes CLOSED; without effect on a finished one."""
        if batch._under_way and batch._num_open:
            kv_engine_cancel(self._engine, &batch._batch)

    def take(self, wait_us=None):
        """A finished batch, waited for at most `wait_us` (None: as long as it takes).

        None when there is none, and at once when the engine has stopped and all were taken.
        """
        cdef int64_t left_us = -1 if wait_us is None else wait_us
        cdef kv_batch *taken
        with nogil:
            taken = kv_engine_take(self._engine, left_us)
        if taken == NULL:
            return None
        batch = <Batch>taken.owner
        Py_DECREF(batch)
        batch._release()
        return batch

    def stop(self):
        """Blocks not begun become CLOSED; returns when nothing is under way. Idempotent."""
        if self._stopped:
            return
        self._stopped = True
        with nogil:
            kv_engine_stop(self._engine)


def zero_fill(int fd, int64_t offset, int64_t nbytes, *, cancel):
    """Write zeros over [offset, offset + nbytes) of a file: 0, or the errno (ECANCELED once cancel[0] is non-zero).

    Errors: InvalidRequest unless offset and nbytes are non-negative multiples of 4096.
    """
    cdef const int32_t[::1] flag = _vector("cancel", cancel, np.int32, 1)
    cdef int error
    for name, value in (("offset", offset), ("nbytes", nbytes)):
        if value < 0 or value % KV_PAGE_NBYTES:
            raise InvalidRequest(f"{name}={value}; allowed: non-negative multiples of {KV_PAGE_NBYTES}")
    with nogil:
        error = kv_zero_fill(fd, offset, nbytes, &flag[0])
    return error


cdef _vector(name, value, dtype, Py_ssize_t length):
    """`value` itself if it is a one-dimensional contiguous array of `dtype` and `length`."""
    if not isinstance(value, np.ndarray) or value.dtype != dtype or value.ndim != 1 or not value.flags.c_contiguous:
        raise InvalidRequest(f"{name} is {_described(value)}; allowed: a contiguous {np.dtype(dtype)} vector")
    if value.shape[0] != length:
        raise InvalidRequest(f"{name} has {value.shape[0]} elements; allowed: {length}")
    return value


cdef _described(value):
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} and shape {value.shape}"
    return f"a {type(value).__name__}"
