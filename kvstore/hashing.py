"""Block keys. The core computes them (csrc/c/chain.h); the reference here says in Python what they are."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from kvstore._core.hash import chain_keys, mix_keys, xxh3_64

__all__ = ["chain_keys", "mix_keys", "reference_keys", "xxh3_64"]


def reference_keys(seed: bytes, token_ids: Sequence[int], block_tokens: int) -> list[bytes]:
    """The definition of sha256 keys: hash of the parent's key and of the block's tokens as little-endian u32."""
    keys: list[bytes] = []
    for start in range(0, len(token_ids) - block_tokens + 1, block_tokens):
        tokens = b"".join(token.to_bytes(4, "little") for token in token_ids[start : start + block_tokens])
        keys.append(hashlib.sha256((keys[-1] if keys else seed) + tokens).digest())
    return keys
