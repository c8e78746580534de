"""A program as a user writes it: checked by mypy, never run."""

from concurrent.futures import Future
from typing import Any, assert_type

import numpy as np
from numpy.typing import NDArray

import kvstore
from kvstore.errors import NamespaceMismatch
from kvstore.lease import Lease
from kvstore.room import Room


def opened() -> None:
    config = kvstore.Config.load("kvstore.toml")
    assert_type(config, kvstore.Config)
    with kvstore.open(config) as store:
        assert_type(store, kvstore.BlockStore)
        assert_type(store.stats(), dict[str, Any])
        assert_type(store.flush(deadline_ms=50), bool)


def handshake(store: kvstore.BlockStore) -> kvstore.Namespace | None:
    spec = kvstore.NamespaceSpec(model="llama-3-8b", block_nbytes=2 << 20, dtype="bfloat16", block_tokens=16)
    try:
        return store.namespace(spec)
    except NamespaceMismatch as error:
        assert_type(str(error), str)
        return None


def asked(namespace: kvstore.Namespace, token_ids: list[int]) -> NDArray[np.uint8]:
    keys = namespace.keys(token_ids)
    assert_type(keys, NDArray[np.uint8])
    match = namespace.match(keys)
    assert_type(match, kvstore.Match)
    assert_type(match.num_blocks, int)
    assert_type(match.by_tier["host"], int)
    assert_type(match.load_us, int)
    assert_type(match.skipped, int)
    namespace.computed(2048, 150_000)
    assert_type(namespace.explain(keys), list[str])
    assert_type(namespace.prefetch(keys, tier="host", deadline_ms=None), Future[kvstore.Match])
    return namespace.keys(block_hashes=[bytes(32)])


def read(namespace: kvstore.Namespace, keys: NDArray[np.uint8], out: NDArray[np.uint8]) -> int:
    with namespace.lease(keys, deadline_ms=50, prefill_tokens_per_s=12_000) as lease:
        assert_type(lease, Lease)
        assert_type(lease.views, list[memoryview])
        assert_type(lease.lookups, list[kvstore.Lookup])
        lease.copy_into(out)
        num_leased = lease.num_blocks
    num_blocks, _ = namespace.get(keys)
    assert_type(num_blocks, int)
    return num_blocks + num_leased


def written(namespace: kvstore.Namespace, keys: NDArray[np.uint8], blocks: NDArray[np.uint8]) -> kvstore.PutResult:
    with namespace.reserve(keys) as room:
        assert_type(room, Room)
        assert_type(room.views, list[memoryview])
        assert_type(room.commit(), kvstore.PutResult)
    hint = kvstore.Hint(stop="tool_use", output_tokens=120, ttl_s=600)
    assert_type(namespace.hint(keys, hint), int)
    assert_type(namespace.pin(keys, ttl_s=60.0), int)
    assert_type(namespace.unpin(keys), int)
    result = namespace.put(keys, blocks, hint=hint)
    assert_type(result.stored, int)
    assert_type(result.rejected.get(0), str | None)
    assert_type(namespace.remove(keys), int)
    assert_type(namespace.clear(), int)
    return result


def misused(namespace: kvstore.Namespace, match: kvstore.Match, layout: kvstore.BlockLayout) -> None:
    namespace.put(keys=None, blocks=None)  # type: ignore[arg-type]  # keys are an array
    match.num_blocks = 3  # type: ignore[misc]  # values are frozen
    layout.pieces[0] = 1  # type: ignore[index]  # and so is what they hold
    namespace.lease(keys=match, hint="tool_use")  # type: ignore[arg-type]  # a Hint, not its text
    kvstore.NamespaceSpec("llama", 4096)  # type: ignore[call-arg]  # fields go by name
    kvstore.open({"host": {}})  # type: ignore[arg-type]  # a Config, not a dict
