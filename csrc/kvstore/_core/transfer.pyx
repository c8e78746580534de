"""Batched copies between addresses, and the addresses of what callers hold.

Internal: an address keeps nothing alive. Whoever asks for addresses owns the lifetime of the memory behind
them until the last copy has returned.
"""

from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS,
    PyBUF_STRIDES,
    PyBUF_WRITABLE,
    PyBuffer_Release,
    PyObject_GetBuffer,
)
from cpython.number cimport PyNumber_Index
from libc.stdint cimport int64_t, uint64_t

import numpy as np

from kvstore.errors import InvalidRequest

# From this many bytes on a copy releases the GIL; below it, handing the GIL over costs more than the copy.
cdef uint64_t GIL_RELEASE_NBYTES = 65536

cdef dict _kernels = {
    kv_copy_kernel_name(number).decode(): number
    for number in range(KV_COPY_NUM_KERNELS) if kv_copy_kernel_usable(number)
}
cdef object _UINT64 = np.dtype(np.uint64)
cdef object _INT64 = np.dtype(np.int64)


def kernels():
    """The names `copy_pieces` takes on this processor, "auto" first."""
    return list(_kernels)


def copy_pieces(dst, src, nbytes, kernel="auto"):
    """Copy `nbytes` from address src[i] to address dst[i] for every i.

    `dst`, `src`: one-dimensional uint64 arrays of equal length; any alignment. No destination may overlap a
    source or another destination of the batch, and the caller keeps all of the memory alive and mapped
    meanwhile: only what one pair of addresses shows (zero, overlapping, past the end of the address space) is
    refused.
    On return the copy is ordered before every later store of this thread. `kernel` is one of kernels().
    Errors: InvalidRequest, before anything is copied.
    """
    cdef Py_buffer dst_view, src_view
    _open_addresses(dst, &dst_view, "dst")
    try:
        _open_addresses(src, &src_view, "src")
        try:
            _copy(&dst_view, &src_view, _size(nbytes, "nbytes", 0), _kernel_number(kernel))
        finally:
            PyBuffer_Release(&src_view)
    finally:
        PyBuffer_Release(&dst_view)


def piece_addresses(buffer, piece_nbytes, *, bint writable):
    """The address of every piece of `piece_nbytes` in a C-contiguous buffer, as a uint64 array.

    Errors: InvalidRequest for a buffer that is not contiguous, not writable though `writable` is asked for,
    or not a whole number of pieces long.
    """
    cdef Py_buffer view
    cdef uint64_t step = _size(piece_nbytes, "piece_nbytes", 1)
    _open_buffer(buffer, &view, PyBUF_C_CONTIGUOUS, writable, "buffer")
    try:
        if view.len % step:
            raise InvalidRequest(f"buffer has {view.len} bytes; allowed: a multiple of piece_nbytes={step}")
        return _progression(<uint64_t>view.buf, step, view.len // step)
    finally:
        PyBuffer_Release(&view)


def strided_addresses(tensor, block_ids, piece_nbytes, *, bint writable):
    """The addresses of tensor[block_id] for every one of `block_ids`, as a uint64 array.

    `tensor`: a buffer whose first axis is the engine's block number, in any stride; what lies behind one
    number must be contiguous and `piece_nbytes` long. `block_ids`: integers in [0, tensor.shape[0]); repeats
    are allowed, though copying to repeated destinations leaves the bytes of any one of them.
    Errors: InvalidRequest.
    """
    cdef Py_buffer view
    cdef uint64_t wanted_nbytes = _size(piece_nbytes, "piece_nbytes", 1)
    ids = _whole_numbers(block_ids)
    _open_buffer(tensor, &view, PyBUF_STRIDES, writable, "tensor")
    try:
        _check_rows(&view, wanted_nbytes)
        return _row_addresses(&view, ids)
    finally:
        PyBuffer_Release(&view)


def list_addresses(buffers, nbytes, *, bint writable):
    """The address of every one of `buffers`, each C-contiguous and exactly `nbytes` long, as a uint64 array.

    Errors: InvalidRequest, naming the first buffer that is something else.
    """
    cdef Py_buffer view
    cdef uint64_t found_nbytes, wanted_nbytes = _size(nbytes, "nbytes", 1)
    cdef uint64_t[::1] out
    cdef Py_ssize_t i
    addresses = np.empty(len(buffers), dtype=np.uint64)
    out = addresses
    for i in range(out.shape[0]):
        _open_buffer(buffers[i], &view, PyBUF_C_CONTIGUOUS, writable, "buffers", i)
        out[i] = <uint64_t>view.buf
        found_nbytes = view.len
        PyBuffer_Release(&view)
        if found_nbytes != wanted_nbytes:
            raise InvalidRequest(f"buffers[{i}] has {found_nbytes} bytes; allowed: nbytes={wanted_nbytes}")
    return addresses


cdef _copy(Py_buffer* dst_view, Py_buffer* src_view, uint64_t nbytes, int kernel):
    cdef const uint64_t* dst = <const uint64_t*>dst_view.buf
    cdef const uint64_t* src = <const uint64_t*>src_view.buf
    cdef uint64_t num_pieces = dst_view.shape[0]
    cdef uint64_t bad
    if dst_view.shape[0] != src_view.shape[0]:
        raise InvalidRequest(f"dst has {dst_view.shape[0]} addresses; allowed: {src_view.shape[0]}, like src")
    bad = kv_copy_find_bad(dst, src, num_pieces, nbytes)
    if bad < num_pieces:
        raise InvalidRequest(
            f"piece {bad} of {nbytes} bytes goes from {src[bad]:#x} to {dst[bad]:#x}; allowed: two stretches "
            "of memory that do not overlap, neither at address 0 nor past the end of the address space"
        )
    if num_pieces and nbytes >= (GIL_RELEASE_NBYTES + num_pieces - 1) // num_pieces:
        with nogil:
            kv_copy_pieces(dst, src, num_pieces, nbytes, kernel)
    else:
        kv_copy_pieces(dst, src, num_pieces, nbytes, kernel)


cdef int _kernel_number(kernel) except -1:
    number = _kernels.get(kernel) if isinstance(kernel, str) else None
    if number is None:
        raise InvalidRequest(f"kernel is {kernel!r}; allowed here: {', '.join(_kernels)}")
    return number


cdef uint64_t _size(value, str name, uint64_t least) except? 1:
    cdef uint64_t size = 0
    try:
        size = PyNumber_Index(value)
    except (TypeError, ValueError, OverflowError):
        raise InvalidRequest(f"{name} is {value!r}; allowed: an integer from {least} to 2**64 - 1") from None
    if size < least:
        raise InvalidRequest(f"{name} is {size}; allowed: {least} or more")
    return size


# Opens `view` on one dimension of uint64; the caller releases it.
cdef int _open_addresses(values, Py_buffer* view, str name) except -1:
    if type(values) is not np.ndarray or values.dtype != _UINT64 or values.ndim != 1:
        raise InvalidRequest(f"{name} is {_describe(values)}; allowed: a one-dimensional array of uint64")
    return _open_buffer(values, view, PyBUF_C_CONTIGUOUS, False, name)


cdef str _describe(value):
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape} and type {value.dtype}"
    return f"of type {type(value).__name__}"


# Bytes copied over references to Python objects would crash the process. A numpy type that has no name in the buffer
# protocol (bfloat16) can be opened without one, so that numpy is asked itself.
cdef bint _holds_objects(buffer):
    if isinstance(buffer, np.ndarray):
        return buffer.dtype.hasobject
    return isinstance(buffer, memoryview) and "O" in buffer.format


# Opens `view`; the caller releases it. `index` is the place of the buffer in a sequence, -1 for none.
cdef int _open_buffer(
    buffer, Py_buffer* view, int layout, bint writable, str name, Py_ssize_t index=-1
) except -1:
    if _holds_objects(buffer):
        raise InvalidRequest(f"{name} is {_describe(buffer)}, which holds Python objects; allowed: plain numbers")
    try:
        PyObject_GetBuffer(buffer, view, layout | (PyBUF_WRITABLE if writable else 0))
    except (TypeError, ValueError, BufferError) as error:
        place = f"{name}[{index}]" if index >= 0 else name
        access = "writable" if writable else "readable"
        order = " C-contiguous" if layout == PyBUF_C_CONTIGUOUS else ""
        raise InvalidRequest(
            f"{place} is {_describe(buffer)} ({error}); allowed: a {access}{order} buffer"
        ) from None
    return 0


# Refuses a tensor whose rows are not contiguous stretches of `wanted_nbytes`.
cdef int _check_rows(Py_buffer* view, uint64_t wanted_nbytes) except -1:
    cdef Py_ssize_t row_nbytes = view.itemsize
    cdef int axis
    if view.ndim < 1:
        raise InvalidRequest("tensor has no axis; allowed: block numbers along its first axis")
    for axis in range(view.ndim - 1, 0, -1):
        if view.shape[axis] > 1 and view.strides[axis] != row_nbytes:
            raise InvalidRequest(
                f"tensor's axis {axis} has a stride of {view.strides[axis]} bytes; allowed: {row_nbytes}, "
                "so that one block is contiguous"
            )
        row_nbytes *= view.shape[axis]
    if <uint64_t>row_nbytes != wanted_nbytes:
        raise InvalidRequest(f"tensor has {row_nbytes} bytes a block; allowed: piece_nbytes={wanted_nbytes}")
    return 0


cdef _whole_numbers(block_ids):
    try:
        ids = np.asarray(block_ids)
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"block_ids is {_describe(block_ids)} ({error}); allowed: integers") from None
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
        raise InvalidRequest(f"block_ids is {_describe(ids)}; allowed: integers in one dimension")
    # What is too large for int64 turns negative, and is refused with the negative ones.
    return ids if ids.dtype == _INT64 else ids.astype(_INT64)


cdef _row_addresses(Py_buffer* view, const int64_t[:] ids):
    cdef int64_t base = <int64_t>view.buf
    cdef int64_t stride = view.strides[0]
    cdef uint64_t[::1] out
    cdef Py_ssize_t i
    addresses = np.empty(ids.shape[0], dtype=np.uint64)
    out = addresses
    for i in range(out.shape[0]):
        if ids[i] < 0 or ids[i] >= view.shape[0]:
            raise InvalidRequest(f"block_ids[{i}] is {ids[i]}; allowed: 0 to {view.shape[0] - 1}")
        out[i] = <uint64_t>(base + ids[i] * stride)
    return addresses


cdef _progression(uint64_t start, uint64_t step, Py_ssize_t num):
    cdef uint64_t[::1] out
    cdef Py_ssize_t i
    addresses = np.empty(num, dtype=np.uint64)
    out = addresses
    for i in range(num):
        out[i] = start + <uint64_t>i * step
    return addresses
