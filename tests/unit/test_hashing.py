"""Block keys, bit for bit: fixed vectors, hashlib and xxhash, hardware and portable code."""

import hashlib
import struct

import numpy as np
import pytest
import xxhash

from kvstore._core import hash as core
from kvstore.errors import InvalidRequest
from kvstore.hashing import chain_keys, mix_keys, reference_keys, xxh3_64

SEED = bytes(range(32))
TOKENS = [0, 1, 2**32 - 1, 3, 4, 5, 6, 7, 8]  # two blocks of four, and one token that has no key

VECTORS = {
    "sha256": [
        "4a231371b89b49fd5ad8313396fbc4f03f93d5816056e8d3574c31e08b8241b5",
        "09b9ca3006734530571ae5488d19033c8b782e78415630f4f7bd25142990dc27",
    ],
    "xxh3_128": [
        "718c6d55a264c9a44c5d6fe513507bbc101112131415161718191a1b1c1d1e1f",
        "5f2898e57b2b789d9df870fbddf04598101112131415161718191a1b1c1d1e1f",
    ],
}


@pytest.mark.parametrize("portable", [False, True], ids=["hardware", "portable"])
@pytest.mark.parametrize("algorithm", VECTORS)
def test_keys_are_what_they_were_on_the_first_day(algorithm, portable):
    """Stored blocks are found by these bytes: they may never change."""
    keys = chain_keys(SEED, TOKENS, 4, algorithm, portable=portable)
    assert [bytes(key).hex() for key in keys] == VECTORS[algorithm]


def test_a_mixed_key_is_what_it_was_on_the_first_day():
    (key,) = mix_keys(SEED, [b"\1" * 8])
    assert bytes(key).hex() == "b13a0085e5195fb4aa2bf53d3571e76b91af5b2b921624f1719304ebc61841b3"
    assert bytes(key) == hashlib.sha256(SEED + b"\1" * 8).digest()


@pytest.mark.parametrize("block_tokens", [1, 2, 7, 16, 17, 256, 4096])
def test_hardware_portable_and_hashlib_agree(block_tokens):
    tokens = np.random.default_rng(block_tokens).integers(0, 2**32, 2 * block_tokens + 3, dtype=np.uint32)
    expected = reference_keys(SEED, tokens.tolist(), block_tokens)
    for portable in (False, True):
        keys = chain_keys(SEED, tokens, block_tokens, "sha256", portable=portable)
        assert [bytes(key) for key in keys] == expected
    parent, expected = SEED[:16], []
    for start in range(0, len(tokens) - block_tokens + 1, block_tokens):
        block = struct.pack(f"<{block_tokens}I", *tokens[start : start + block_tokens].tolist())
        parent = xxhash.xxh3_128_digest(parent + block)
        expected.append(parent + SEED[16:])
    assert [bytes(key) for key in chain_keys(SEED, tokens, block_tokens, "xxh3_128")] == expected


@pytest.mark.parametrize("algorithm", VECTORS)
def test_a_key_depends_on_all_that_comes_before_it(algorithm):
    keys = chain_keys(SEED, TOKENS, 4, algorithm)
    for changed in range(8):
        tokens = [token ^ (position == changed) for position, token in enumerate(TOKENS)]
        others = chain_keys(SEED, tokens, 4, algorithm)
        same = [(one == other).all() for one, other in zip(keys, others, strict=True)]
        assert same == [changed >= 4, False]
    assert (chain_keys(b"\1" + SEED[1:], TOKENS, 4, algorithm) != keys).any(axis=1).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.int64, np.uint32, np.uint64])
def test_tokens_of_every_integer_type_in_any_stride(dtype):
    tokens = np.arange(16, dtype=dtype)
    expected = chain_keys(SEED, list(range(0, 16, 2)), 4, "sha256")
    assert (chain_keys(SEED, tokens[::2], 4, "sha256") == expected).all()


@pytest.mark.parametrize(
    ("seed", "tokens", "block_tokens", "algorithm", "text"),
    [
        (b"short", [1], 1, "sha256", "32 bytes"),
        ("x" * 32, [1], 1, "sha256", "32 bytes"),
        (SEED, [1], 0, "sha256", "block_tokens=0"),
        (SEED, [1], 4097, "sha256", "block_tokens=4097"),
        (SEED, [1], True, "sha256", "block_tokens=True"),
        (SEED, [1], 1.0, "sha256", r"block_tokens=1\.0"),
        (SEED, [1], 1, "md5", "'md5'"),
        (SEED, [1, -1], 1, "sha256", r"token_ids\[1\]=-1"),
        (SEED, [2**32], 1, "sha256", r"token_ids\[0\]=4294967296"),
        (SEED, [2**70], 1, "sha256", "token_ids"),
        (SEED, [1.0], 1, "sha256", "float64"),
        (SEED, [[1]], 1, "sha256", "2 axes"),
        (SEED, [True], 1, "sha256", "bool"),
        (SEED, [[1], [1, 2]], 1, "sha256", "token_ids"),
        (SEED, None, 1, "sha256", "token_ids"),
    ],
)
def test_wrong_values_are_named(seed, tokens, block_tokens, algorithm, text):
    with pytest.raises(InvalidRequest, match=text):
        chain_keys(seed, tokens, block_tokens, algorithm)


@pytest.mark.parametrize("hashes", [[b""], [b"a", b""], [b"a", b"bc"], ["a"], [b"x" * 65], 5, np.zeros(3, np.uint8)])
def test_wrong_block_hashes_are_named(hashes):
    with pytest.raises(InvalidRequest, match="block_hashes"):
        mix_keys(SEED, hashes)


def test_the_checksum_of_a_block():
    assert xxh3_64(b"") == 0x2D06800538D394C2
    for nbytes in (1, 4096, 1 << 20):
        data = np.random.default_rng(nbytes).bytes(nbytes)
        assert xxh3_64(data) == xxhash.xxh3_64_intdigest(data) == xxh3_64(memoryview(data))


def test_sha256_in_hardware_and_not():
    data = np.random.default_rng(1).bytes(1000)
    for nbytes in (0, 1, 55, 56, 63, 64, 65, 119, 120, 1000):
        expected = hashlib.sha256(data[:nbytes]).digest()
        assert core.sha256(data[:nbytes]) == core.sha256(data[:nbytes], portable=True) == expected
