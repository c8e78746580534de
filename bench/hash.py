"""Keys of a prompt of 131,072 tokens in blocks of 16, by the core's chains and by loops in Python.

Thread CPU time of whole calls, rounds interleaved. A SHA-256 chain compresses two 64-byte blocks a key (parent,
tokens, padding), and its ceiling is the bare compression function over as many bytes. An XXH3 chain hashes 80 bytes a
key; its ceiling is one hash over all of them at once, which no chain can reach: each key waits for the one before it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

import numpy as np
import xxhash

from bench.clock import SEED, cpu_ns, interleaved, time_result
from bench.report import Result
from kvstore._core import hash as core

NUM_TOKENS, BLOCK_TOKENS = 131_072, 16
NUM_BLOCKS = NUM_TOKENS // BLOCK_TOKENS
TOKENS_NBYTES = 4 * BLOCK_TOKENS
SHA256_NBYTES = 128 * NUM_BLOCKS
XXH3_NBYTES = (16 + TOKENS_NBYTES) * NUM_BLOCKS


def hashlib_loop(seed: bytes, tokens: bytes) -> list[bytes]:
    """The SHA-256 chain, a call of hashlib per block."""
    keys, key = [], seed
    for start in range(0, len(tokens), TOKENS_NBYTES):
        key = hashlib.sha256(key + tokens[start : start + TOKENS_NBYTES]).digest()
        keys.append(key)
    return keys


def xxhash_loop(seed: bytes, tokens: bytes) -> list[bytes]:
    """The XXH3 chain, a call of xxhash per block."""
    keys, key, rest = [], seed[:16], seed[16:]
    for start in range(0, len(tokens), TOKENS_NBYTES):
        key = xxhash.xxh3_128_digest(key + tokens[start : start + TOKENS_NBYTES])
        keys.append(key + rest)
    return keys


def cases(quick: bool) -> Iterator[Result]:
    rng = np.random.default_rng(SEED)
    seed, tokens = rng.bytes(32), rng.integers(0, 150_000, NUM_TOKENS, dtype=np.uint32)
    raw, padded, unpadded = tokens.tobytes(), rng.bytes(SHA256_NBYTES), rng.bytes(XXH3_NBYTES)
    work: dict[str, Callable[[], object]] = {
        "sha256": lambda: core.chain_keys(seed, tokens, BLOCK_TOKENS, "sha256"),
        "xxh3_128": lambda: core.chain_keys(seed, tokens, BLOCK_TOKENS, "xxh3_128"),
        "python_sha256": lambda: hashlib_loop(seed, raw),
        "python_xxh3_128": lambda: xxhash_loop(seed, raw),
        "compress": lambda: core.sha256_compress(padded),
        "flat": lambda: core.xxh3_128(unpadded),
    }
    assert core.chain_keys(seed, tokens, BLOCK_TOKENS, "sha256").tobytes() == b"".join(hashlib_loop(seed, raw))
    assert core.chain_keys(seed, tokens, BLOCK_TOKENS, "xxh3_128").tobytes() == b"".join(xxhash_loop(seed, raw))
    parts = {name: (lambda call=call: cpu_ns(call)) for name, call in work.items()}
    ms = {name: times / 1e6 for name, times in interleaved(parts, 2 if quick else 100).items()}
    p50 = {name: float(np.median(times)) for name, times in ms.items()}
    sha, xxh3 = (p50["compress"], "compression only"), (p50["flat"], "one flat hash")
    hardware = "SHA instructions" if core.hardware_sha() else "no SHA instructions"
    detail = {name: f"{p50['python_sha256'] / value:.1f} x hashlib loop" for name, value in p50.items()}
    yield time_result("hash", "sha256", ms["sha256"], "ms", sha, f"{detail['sha256']}, {hardware}")
    yield time_result("hash", "xxh3_128", ms["xxh3_128"], "ms", xxh3, detail["xxh3_128"])
    yield time_result("hash", "python_sha256", ms["python_sha256"], "ms", sha)
    yield time_result("hash", "python_xxh3_128", ms["python_xxh3_128"], "ms", xxh3, detail["python_xxh3_128"])
