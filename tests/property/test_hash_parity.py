"""Every hash of the core, bit for bit against hashlib and xxhash."""

import hashlib

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore._core import hash as core
from kvstore.hashing import reference_keys

POOL = np.random.default_rng(7).integers(0, 256, 9000, dtype=np.uint8).tobytes()
LENGTHS = sorted({*range(300), *(64 * k + d for k in range(3, 40) for d in (-1, 0, 1)), 1023, 1024, 1025, 5000, 8999})


@pytest.mark.parametrize("lanes", core.LANES)
def test_xxh3_of_every_length_class(lanes):
    if core.xxh3_with(lanes, b"x" * 300) is None:
        pytest.skip(f"this processor has no {lanes}")
    for nbytes in LENGTHS:
        data = POOL[:nbytes]
        expected = xxhash.xxh3_64_intdigest(data), xxhash.xxh3_128_digest(data)
        assert core.xxh3_with(lanes, data) == expected, nbytes
        assert (core.xxh3_64(data), core.xxh3_128(data)) == expected, nbytes


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 5000), st.integers(0, 63))
def test_hashes_of_unaligned_buffers(nbytes, offset):
    view = memoryview(POOL)[offset : offset + nbytes]
    assert core.xxh3_64(view) == xxhash.xxh3_64_intdigest(view)
    assert core.xxh3_128(view) == xxhash.xxh3_128_digest(view)
    for portable in (False, True):
        assert core.sha256(view, portable=portable) == hashlib.sha256(view).digest()


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(0, 2**32 - 1), max_size=300),
    st.integers(1, 40),
    st.binary(min_size=32, max_size=32),
    st.booleans(),
)
def test_sha256_chain_is_what_the_reference_says(tokens, block_tokens, seed, portable):
    keys = core.chain_keys(seed, tokens, block_tokens, "sha256", portable=portable)
    assert [bytes(key) for key in keys] == reference_keys(seed, tokens, block_tokens)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 2**32 - 1), max_size=600), st.integers(1, 300), st.binary(min_size=32, max_size=32))
def test_xxh3_chain_against_xxhash(tokens, block_tokens, seed):
    keys = core.chain_keys(seed, np.array(tokens, dtype=np.uint32), block_tokens, "xxh3_128")
    parent = seed[:16]
    assert len(keys) == len(tokens) // block_tokens
    for number, key in enumerate(keys):
        block = np.array(tokens[number * block_tokens : (number + 1) * block_tokens], dtype="<u4").tobytes()
        parent = xxhash.xxh3_128_digest(parent + block)
        assert bytes(key) == parent + seed[16:]


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 64), st.integers(0, 20), st.binary(min_size=32, max_size=32))
def test_mixed_keys_against_hashlib(width, num, seed):
    hashes = [POOL[i * width : (i + 1) * width] for i in range(num)]
    expected = [hashlib.sha256(seed + one).digest() for one in hashes]
    assert [bytes(key) for key in core.mix_keys(seed, hashes)] == expected
