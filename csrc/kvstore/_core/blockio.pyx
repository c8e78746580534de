"""Batches of block reads and writes without the GIL: one call per batch, one outcome per block, checksums included.

Files are named by descriptor, so whoever opened them keeps them open until the call returns. Outcomes are the values
of kvstore.tiers.base.Outcome, checksums are XXH3-64.
"""

cimport cython
from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS,
    PyBUF_WRITABLE,
    PyBuffer_Release,
    PyObject_GetBuffer,
)
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from libc.stdint cimport INT64_MAX, int32_t, int64_t, uint8_t, uint64_t

import numpy as np

from kvstore.errors import InvalidRequest


def write_blocks(fds, offsets, buffers, *, cancel, deadline_us=None, tails=None):
    """Write buffers[i] at offsets[i] of the file fds[i]: (outcomes uint8, checksums uint64, errnos int32).

    `fds` int32, `offsets` int64 (bytes, multiples of 4096), `buffers` C-contiguous and not empty; `cancel` is an int32
    array of one element, looked at before every block: non-zero ends the batch with CLOSED. `deadline_us` is in
    CLOCK_MONOTONIC microseconds. `tails`, a uint8 array or None: where non-zero, the bytes behind the buffer up to the
    next multiple of 4096 are mapped and may be zeroed and written. What the file holds behind a block up to that
    multiple is zeros. A checksum is 0 where its outcome is not OK.
    Errors: InvalidRequest, before anything is written.
    """
    cdef kv_blockio_batch batch
    cdef uint64_t[::1] out
    held = Held(buffers, False)
    outcomes, errnos = _open_batch(&batch, held, fds, offsets, cancel, deadline_us, tails)
    checksums = np.zeros(held.num_open, dtype=np.uint64)
    if held.num_open:
        out = checksums
        with nogil:
            kv_blockio_write(&batch, &out[0])
    return outcomes, checksums, errnos


def read_blocks(fds, offsets, checksums, buffers, *, cancel, deadline_us=None, tails=None):
    """Fill buffers[i] from offsets[i] of the file fds[i] and verify it: (outcomes uint8, errnos int32).

    As write_blocks, with writable buffers and `checksums` a uint64 array. `tails`: where non-zero, the bytes behind
    the buffer may be overwritten. A buffer whose outcome is not OK holds rubbish.
    Errors: InvalidRequest, before anything is read.
    """
    cdef kv_blockio_batch batch
    cdef const uint64_t[::1] wanted
    held = Held(buffers, True)
    outcomes, errnos = _open_batch(&batch, held, fds, offsets, cancel, deadline_us, tails)
    wanted = _vector("checksums", checksums, np.uint64, held.num_open)
    if held.num_open:
        with nogil:
            kv_blockio_read(&batch, &wanted[0])
    return outcomes, errnos


def zero_fill(int fd, int64_t offset, int64_t nbytes, *, cancel):
    """Write zeros over [offset, offset + nbytes) of a file: 0, or the errno (ECANCELED once cancel[0] is non-zero).

    Errors: InvalidRequest unless offset and nbytes are non-negative multiples of 4096.
    """
    cdef const int32_t[::1] flag = _vector("cancel", cancel, np.int32, 1)
    cdef int error
    for name, value in (("offset", offset), ("nbytes", nbytes)):
        if value < 0 or value % KV_BLOCKIO_ALIGN:
            raise InvalidRequest(f"{name}={value}; allowed: non-negative multiples of {KV_BLOCKIO_ALIGN}")
    with nogil:
        error = kv_blockio_zero(fd, offset, nbytes, &flag[0])
    return error


@cython.internal
cdef class Held:
    def __cinit__(self, buffers, bint writable):
        cdef Py_ssize_t num_blocks = len(buffers), i
        cdef int flags = PyBUF_C_CONTIGUOUS | (PyBUF_WRITABLE if writable else 0)
        if num_blocks == 0:
            return
        self.views = <Py_buffer *>PyMem_Calloc(num_blocks, sizeof(Py_buffer))
        self.addresses = <void **>PyMem_Calloc(num_blocks, sizeof(void *))
        self.nbytes = <uint64_t *>PyMem_Calloc(num_blocks, sizeof(uint64_t))
        if self.views == NULL or self.addresses == NULL or self.nbytes == NULL:
            raise MemoryError(f"no memory for a batch of {num_blocks} blocks")
        for i in range(num_blocks):
            try:
                PyObject_GetBuffer(buffers[i], &self.views[i], flags)
            except (BufferError, TypeError, ValueError) as error:
                kind = "C-contiguous and writable" if writable else "C-contiguous"
                raise InvalidRequest(f"buffers[{i}] is {type(buffers[i]).__name__} ({error}); "
                                     f"allowed: a buffer that is {kind}") from None
            self.num_open = i + 1
            self.addresses[i] = self.views[i].buf
            self.nbytes[i] = self.views[i].len
            if self.views[i].len == 0:
                raise InvalidRequest(f"buffers[{i}] is empty; allowed: at least 1 byte")

    def __dealloc__(self):
        cdef Py_ssize_t i
        for i in range(self.num_open):
            PyBuffer_Release(&self.views[i])
        PyMem_Free(self.views)
        PyMem_Free(self.addresses)
        PyMem_Free(self.nbytes)


cdef _open_batch(kv_blockio_batch *batch, Held held, fds, offsets, cancel, deadline_us, tails):
    """Fill `batch`, whose pointers are borrowed from the arguments: (outcomes, errnos), owned by the caller."""
    cdef Py_ssize_t num_blocks = held.num_open
    cdef const int32_t[::1] fd_view = _vector("fds", fds, np.int32, num_blocks)
    cdef const int64_t[::1] offset_view = _vector("offsets", offsets, np.int64, num_blocks)
    cdef const int32_t[::1] cancel_view = _vector("cancel", cancel, np.int32, 1)
    cdef const uint8_t[::1] tail_view
    cdef uint8_t[::1] outcome_view
    cdef int32_t[::1] errno_view
    cdef Py_ssize_t i
    outcomes, errnos = np.zeros(num_blocks, dtype=np.uint8), np.zeros(num_blocks, dtype=np.int32)
    batch.num_blocks = num_blocks
    batch.deadline_us = INT64_MAX if deadline_us is None else min(deadline_us, INT64_MAX)
    batch.cancel = &cancel_view[0]
    batch.tails = NULL
    if tails is not None:
        tail_view = _vector("tails", tails, np.uint8, num_blocks)
    if num_blocks == 0:
        return outcomes, errnos
    for i in range(num_blocks):
        if offset_view[i] < 0 or offset_view[i] % KV_BLOCKIO_ALIGN:
            raise InvalidRequest(
                f"offsets[{i}]={offset_view[i]}; allowed: non-negative multiples of {KV_BLOCKIO_ALIGN}")
    outcome_view, errno_view = outcomes, errnos
    batch.fds, batch.offsets = &fd_view[0], &offset_view[0]
    batch.buffers, batch.nbytes = held.addresses, held.nbytes
    batch.outcomes, batch.errnos = &outcome_view[0], &errno_view[0]
    if tails is not None:
        batch.tails = &tail_view[0]
    return outcomes, errnos


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
