"""Chained block keys and checksums: thin wrappers over chain.h, sha256.h and xxh3.h."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer

import numpy as np

from kvstore.errors import InvalidRequest

HASH_WIDTH_MAX = 64
LANES = ("best", "scalar", "avx2", "avx512")

cdef size_t _NOGIL_NBYTES = 64 << 10


cdef kv_sha256_compress _compress(bint portable) noexcept:
    return kv_sha256_compress_portable if portable else kv_sha256_best()


cdef object _tokens(object token_ids):
    """Token ids as contiguous uint32; InvalidRequest names the first that does not fit."""
    try:
        array = np.asarray(token_ids)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidRequest(f"token_ids must be a flat sequence of integers: {error}") from None
    if array.dtype == np.uint32 and array.ndim == 1:
        return np.ascontiguousarray(array)
    if array.size == 0 and array.ndim == 1:
        return np.empty(0, dtype=np.uint32)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise InvalidRequest(f"token_ids must be a flat sequence of integers, not {array.dtype} of {array.ndim} axes")
    wrong = np.flatnonzero((array < 0) | (array > 0xFFFFFFFF)) if array.dtype != np.uint32 else ()
    if len(wrong):
        raise InvalidRequest(f"token_ids[{wrong[0]}]={array[wrong[0]]} is not between 0 and 4294967295")
    return np.ascontiguousarray(array, dtype=np.uint32)


cdef int _check_seed(object seed) except -1:
    if not isinstance(seed, bytes) or len(seed) != 32:
        raise InvalidRequest("seed must be 32 bytes")
    return 0


def chain_keys(seed, token_ids, block_tokens, algorithm, *, bint portable=False):
    """Keys uint8 (num_tokens // block_tokens, 32) of the full blocks of a prompt.

    `algorithm`: "sha256" or "xxh3_128" (layouts in chain.h). `portable`: without SHA instructions. Errors:
    InvalidRequest for tokens outside [0, 2^32), a wrong seed, block size or algorithm.
    """
    _check_seed(seed)
    is_int = isinstance(block_tokens, int) and not isinstance(block_tokens, bool)
    if not is_int or not 1 <= block_tokens <= KV_BLOCK_TOKENS_MAX:
        raise InvalidRequest(f"block_tokens={block_tokens!r} is not between 1 and {KV_BLOCK_TOKENS_MAX}")
    if algorithm not in ("sha256", "xxh3_128"):
        raise InvalidRequest(f"hash={algorithm!r} is not one of sha256, xxh3_128")
    array = _tokens(token_ids)
    cdef const uint32_t[::1] tokens = array
    cdef uint32_t each = block_tokens
    cdef size_t num_blocks = tokens.shape[0] // each
    out = np.empty((num_blocks, 32), dtype=np.uint8)
    if num_blocks == 0:
        return out
    cdef uint8_t[:, ::1] keys = out
    cdef const uint8_t *start = seed
    cdef kv_sha256_compress compress = _compress(portable)
    cdef bint sha = algorithm == "sha256"
    with nogil:
        if sha:
            kv_chain_sha256(compress, start, &tokens[0], num_blocks, each, &keys[0, 0])
        else:
            kv_chain_xxh3_128(start, &tokens[0], num_blocks, each, &keys[0, 0])
    return out


def mix_keys(seed, hashes):
    """Keys uint8 (n, 32) for an engine's own chained block hashes: SHA-256 of seed and hash, one each.

    `hashes`: n byte strings of one length, or uint8 (n, width); 1 to 64 bytes each. Errors: InvalidRequest.
    """
    _check_seed(seed)
    if not isinstance(hashes, np.ndarray):
        try:
            hashes = list(hashes)
        except TypeError:
            raise InvalidRequest(f"block_hashes={hashes!r:.80} is not a sequence of byte strings") from None
        widths = {len(one) if isinstance(one, bytes) else 0 for one in hashes}
        if len(widths) > 1 or 0 in widths:
            raise InvalidRequest(
                f"block_hashes must be byte strings of one length, 1 to {HASH_WIDTH_MAX} bytes, not {hashes!r:.80}"
            )
        width = widths.pop() if widths else 1
        hashes = np.frombuffer(b"".join(hashes), dtype=np.uint8).reshape(-1, width)
    if hashes.dtype != np.uint8 or hashes.ndim != 2 or not 1 <= hashes.shape[1] <= HASH_WIDTH_MAX:
        raise InvalidRequest(
            f"block_hashes must be uint8 (n, 1 to {HASH_WIDTH_MAX}), not {hashes.dtype} {hashes.shape}"
        )
    cdef const uint8_t[:, ::1] rows = np.ascontiguousarray(hashes)
    out = np.empty((rows.shape[0], 32), dtype=np.uint8)
    cdef uint8_t[:, ::1] keys = out
    if rows.shape[0]:
        kv_chain_mix(kv_sha256_best(), <const uint8_t *>seed, &rows[0, 0], rows.shape[0], rows.shape[1], &keys[0, 0])
    return out


cdef object _canonical(kv_hash128 hash):
    return int(hash.high).to_bytes(8, "big") + int(hash.low).to_bytes(8, "big")


def xxh3_64(data):
    """XXH3-64 of a contiguous buffer."""
    cdef Py_buffer view
    cdef uint64_t hash
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    if view.len >= <Py_ssize_t>_NOGIL_NBYTES:
        with nogil:
            hash = kv_xxh3_64(view.buf, view.len)
    else:
        hash = kv_xxh3_64(view.buf, view.len)
    PyBuffer_Release(&view)
    return hash


def xxh3_128(data):
    """XXH3-128 of a contiguous buffer, 16 bytes in canonical order."""
    cdef Py_buffer view
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    hash = _canonical(kv_xxh3_128(view.buf, view.len))
    PyBuffer_Release(&view)
    return hash


def xxh3_with(lanes, data):
    """(XXH3-64, canonical XXH3-128) by the named lanes of LANES; None where the processor has them not. For tests."""
    cdef Py_buffer view
    cdef uint64_t hash64 = 0
    cdef kv_hash128 hash128
    hash128.low = hash128.high = 0
    which = LANES.index(lanes)
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    known = kv_xxh3_with(<kv_lanes><int>which, view.buf, view.len, &hash64, &hash128)
    PyBuffer_Release(&view)
    return (hash64, _canonical(hash128)) if known else None


def sha256(data, *, bint portable=False):
    """SHA-256 of a contiguous buffer, 32 bytes."""
    cdef Py_buffer view
    cdef uint8_t[32] digest
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    kv_sha256(_compress(portable), <const uint8_t *>view.buf, view.len, digest)
    PyBuffer_Release(&view)
    return digest[:32]


def sha256_compress(data):
    """Only the compression function over the whole 64-byte blocks of `data`: the ceiling of hashing. For benchmarks."""
    cdef Py_buffer view
    cdef uint32_t[8] state
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    kv_sha256_start(state)
    with nogil:
        kv_sha256_best()(state, <const uint8_t *>view.buf, view.len // 64)
    PyBuffer_Release(&view)
    return state[0]


def hardware_sha():
    """Does this processor run SHA-256 in hardware?"""
    return bool(kv_sha256_hardware())
