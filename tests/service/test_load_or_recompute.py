"""What is far and computed sooner is left out, over every way to a store."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from pathlib import Path

import grpc
import numpy as np
import pytest
from service_helpers import WAYS, Way, open_way
from store_helpers import BLOCK, TOKENS, all_right, chain, make_spec, put_chain

from kvstore import Lookup, aio
from kvstore.errors import InvalidRequest
from kvstore.v1 import kvstore_pb2 as pb

LOAD_US = 1_000_000  # of a block, as `slow` has it measured
FAST = TOKENS * 1e6 / (LOAD_US / 2)  # tokens a second
SLOW = TOKENS * 1e6 / (LOAD_US * 2)


class Slow:
    """A disk that was measured to need LOAD_US for each block just now, whatever is read meanwhile."""

    nbytes, busy_us, total_nbytes, total_us = float(BLOCK), float(LOAD_US), 0, 0
    nbytes_per_s = BLOCK * 1e6 / LOAD_US
    busy_until_us = 2**62

    def record(self, nbytes: int, began_us: int, ended_us: int) -> None:
        """Nothing changes it."""

    def estimate_us(self, nbytes: int) -> int:
        return nbytes * LOAD_US // BLOCK


def far_chain(way: Way):
    """A namespace and a chain of 8 blocks that are on disk alone, which is slow."""
    ns = way.store.namespace(make_spec())
    keys = put_chain(ns, 8)
    assert way.store.flush()
    put_chain(ns, 125, 9)
    with way.inner.lock:
        way.inner.mover.read_bandwidth = Slow()  # type: ignore[assignment]
        way.inner.mover.step()
    near = ns.match(keys).by_tier.get("host", 0)
    assert ns.match(keys).num_blocks == 8 and near < 8
    return ns, keys, near


def test_lookups_leave_out_what_is_computed_sooner(disk_way: Way) -> None:
    ns, keys, near = far_chain(disk_way)
    num_far = 8 - near
    match = ns.match(keys, prefill_tokens_per_s=FAST)
    assert (match.num_blocks, match.skipped, match.load_us) == (near, num_far, 0)
    assert match.recompute_us == num_far * LOAD_US // 2 and "disk" not in match.by_tier
    match = ns.prefetch(keys, prefill_tokens_per_s=FAST).result(30)
    assert (match.num_blocks, match.skipped) == (near, num_far)
    for deadline_ms in (None, 0, 100):
        with ns.lease(keys, deadline_ms, prefill_tokens_per_s=FAST) as lease:
            assert (lease.num_blocks, lease.pending, lease.skipped, lease.num_promoted) == (near, 0, num_far, 0)
            assert lease.recompute_us == num_far * LOAD_US // 2
            assert lease.lookups == [Lookup.HIT] * near + [Lookup.MISS] * num_far
    assert ns.get(keys, prefill_tokens_per_s=FAST)[0] == near
    assert ns.get(keys, np.zeros((8, BLOCK), dtype=np.uint8), prefill_tokens_per_s=FAST)[0] == near
    stats = disk_way.store.stats()
    assert stats["mover"]["promoted_blocks"] == 0 and stats["lookups"]["blocks_skipped"] >= 4 * num_far


@pytest.mark.parametrize("rate", [None, 0, SLOW])
def test_others_load_it(disk_way: Way, rate: float | None) -> None:
    ns, keys, near = far_chain(disk_way)
    match = ns.match(keys, prefill_tokens_per_s=rate)
    assert (match.num_blocks, match.skipped, match.recompute_us) == (8, 0, 0)
    with ns.lease(keys, prefill_tokens_per_s=rate) as lease:
        assert (lease.num_blocks, lease.skipped, lease.recompute_us) == (8, 0, 0)
        assert lease.num_promoted == 8 - near and all_right(keys, lease.views)
    assert disk_way.store.stats()["lookups"]["blocks_skipped"] == 0


def test_what_was_computed_is_learned(disk_way: Way) -> None:
    ns, keys, near = far_chain(disk_way)
    ns.computed(100 * TOKENS, 100 * LOAD_US / 2)
    assert ns.match(keys).skipped == 8 - near
    assert ns.get(keys)[0] == near
    with ns.lease(keys) as lease:
        assert lease.skipped == 8 - near
    assert ns.match(keys, prefill_tokens_per_s=0).skipped == 0
    assert ns.prefetch(keys, prefill_tokens_per_s=SLOW).result(30).num_blocks == 8
    for arguments in ((0, 1), (1, 0), (1, "soon")):
        with pytest.raises(InvalidRequest, match=r"num_tokens|elapsed_us"):
            ns.computed(*arguments)


@pytest.mark.parametrize("name", WAYS)
def test_what_is_configured_beats_what_was_learned(name: str, tmp_path: Path) -> None:
    disk = {"nbytes": "32 MiB", "path": str(tmp_path / "disk")}
    with ExitStack() as stack:
        way = open_way(name, tmp_path, stack, disk=disk, mover={"prefill_tokens_per_s": int(FAST)})
        ns = way.store.namespace(make_spec())
        keys = put_chain(ns, 8)
        assert way.store.flush()
        put_chain(ns, 125, 9)
        with way.inner.lock:
            way.inner.mover.read_bandwidth = Slow()  # type: ignore[assignment]
        skipped = ns.match(keys).skipped
        assert skipped > 0
        ns.computed(TOKENS, 1000 * LOAD_US)
        assert ns.match(keys).skipped == skipped
        with ns.lease(keys, deadline_ms=0) as lease:
            assert (lease.skipped, lease.pending) == (skipped, 0)
        assert ns.match(keys, prefill_tokens_per_s=SLOW).skipped == 0


@pytest.mark.parametrize("rate", [-1, float("nan"), "fast", True])
@pytest.mark.parametrize("verb", ["match", "lease", "get", "prefetch"])
def test_malformed_rates_are_refused(way: Way, verb: str, rate: object) -> None:
    ns = way.store.namespace(make_spec())
    with pytest.raises(InvalidRequest, match="prefill_tokens_per_s"):
        getattr(ns, verb)(chain(ns, 1), prefill_tokens_per_s=rate)


def test_a_daemon_refuses_malformed_rates_of_anybody(tmp_path: Path) -> None:
    with ExitStack() as stack:
        way = open_way("remote", tmp_path, stack)
        ns = way.store.namespace(make_spec())
        keys, handle = chain(ns, 1).tobytes(), ns.handle()
        for kind, name in ((pb.MatchRequest, "Match"), (pb.PrefetchRequest, "Prefetch")):
            for rate in (-1.0, float("nan"), 2e9):
                request = kind(namespace=handle, keys=keys, prefill_tokens_per_s=rate)
                with pytest.raises(InvalidRequest, match="prefill_tokens_per_s"):
                    way.store.link.ask(name, request, pb.MatchReply, repeat=True)
        with way.raw() as channel:
            read = channel.unary_stream("/kvstore.v1.KVStore/Read")
            request = pb.ReadRequest(namespace=handle, keys=keys, prefill_tokens_per_s=-1).SerializeToString()
            with pytest.raises(grpc.RpcError) as caught:
                list(read(request, timeout=30))
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_coroutines_take_it_too(tmp_path: Path) -> None:
    disk = {"nbytes": "32 MiB", "path": str(tmp_path / "disk")}

    async def run(way: Way, keys: object) -> None:
        async with aio.connect(way.target) as store:
            ns = await store.namespace(make_spec())
            assert (await ns.match(keys, prefill_tokens_per_s=FAST)).skipped > 0
            async with await ns.lease(keys, prefill_tokens_per_s=FAST) as lease:
                assert lease.skipped > 0
            ns.computed(TOKENS, LOAD_US / 2)
            assert (await ns.prefetch(keys)).skipped > 0

    with ExitStack() as stack:
        way = open_way("remote", tmp_path, stack, disk=disk)
        _, keys, _ = far_chain(way)
        asyncio.run(run(way, keys))
