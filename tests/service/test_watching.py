"""Watches over every way to a store, and what only a daemon's have: tenants, limits, lives, slow clients."""

from __future__ import annotations

import asyncio
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from service_helpers import WAYS, Way, config_for, open_way, start, wait_for
from store_helpers import chain, make_spec, put_chain
from test_access import digest, table

import kvstore
from kvstore import aio
from kvstore.access import Access, Rule
from kvstore.errors import AccessDenied, InvalidRequest, LimitExceeded, Unavailable
from kvstore.events import START, Cleared, Events, Position, Reason, Removed, Stored, cut_keys
from kvstore.service.limits import HANDLES_MAX
from kvstore.v1 import kvstore_pb2 as pb

WATCH = "/kvstore.v1.KVStore/Watch"
HOUR_US = 3_600_000_000


def names(keys: Any) -> tuple[bytes, ...]:
    return cut_keys(np.ascontiguousarray(keys).tobytes())


def until(watch: Any, num_blocks: int) -> list[Any]:
    """The events of a watch until they are of so many blocks; none may be lost."""
    told: list[Any] = []
    while sum(len(getattr(event, "keys", ())) or 1 for event in told) < num_blocks:
        found = next(watch)
        assert isinstance(found, Events) and not found.gap and found.position == watch.position
        told += found.events
    return told


def num_watches(way: Way) -> int:
    assert way.server is not None
    return way.server.held.counts()["watches"]


# ---- every way ----


def test_a_watch_tells_puts_removals_and_clears(way: Way):
    ns = way.store.namespace(make_spec())
    before = put_chain(ns, 2, 1)
    with way.store.watch() as watch:
        assert until(watch, 2) == [Stored("tiny", names(before), None)]
        keys = names(put_chain(ns, 4, 2))
        assert until(watch, 4) == [Stored("tiny", keys, None)]
        ns.remove(chain(ns, 4, 2)[2:])
        assert until(watch, 2) == [Removed("tiny", keys[2:], Reason.REMOVED)]
        ns.clear()
        assert until(watch, 1) == [Cleared("tiny")]
        assert next(watch).events == (), "a sign of life"
    assert list(watch) == []


def test_a_watch_goes_on_from_a_position(way: Way):
    ns = way.store.namespace(make_spec())
    put_chain(ns, 2, 1)
    with way.store.watch() as watch:
        position = next(watch).position
    keys = put_chain(ns, 3, 2)
    with way.store.watch(since=position) as watch:
        assert until(watch, 3) == [Stored("tiny", names(keys), None)]
    with way.store.watch(since=Position(position.epoch ^ 2, 1)) as watch:
        found = next(watch)
    assert found.gap and sum(len(event.keys) for event in found.events) == 5


def test_a_watch_of_some_namespaces_leaves_the_others_out(way: Way):
    one, two = (way.store.namespace(make_spec(salt=salt)) for salt in ("x", "y"))
    put_chain(one, 2)
    keys = names(put_chain(two, 3))
    with way.store.watch([two]) as watch:
        assert until(watch, 3) == [Stored("tiny salt=y", keys, None)]
        assert watch.position.seq == 5
        put_chain(one, 2, 5)
        put_chain(two, 1, 5)
        assert {event.namespace for event in until(watch, 1)} == {"tiny salt=y"}
    with way.store.watch() as watch:
        assert {event.namespace for event in until(watch, 8)} == {"tiny salt=x", "tiny salt=y"}


def test_events_call_blocks_by_their_event_keys(way: Way):
    ns = way.store.namespace(make_spec())
    keys = put_chain(ns, 3)
    with way.store.watch([ns]) as watch:
        assert until(watch, 3)[0].keys == names(ns.event_keys(keys))
    with pytest.raises(InvalidRequest, match="keys"):
        ns.event_keys("keys")


def test_a_watch_that_is_overtaken_gets_a_gap(tmp_path: Path):
    for name in WAYS:
        with ExitStack() as stack:
            folder = tmp_path / name
            folder.mkdir()
            way = open_way(name, folder, stack, index={"events_max": 16})
            ns = way.store.namespace(make_spec())
            with way.store.watch() as watch:
                position = next(watch).position
            put_chain(ns, 40)
            with way.store.watch(since=position) as watch:
                found = next(watch)
                assert found.gap and found.position.seq == 40
                assert found.events == (Stored("tiny", names(chain(ns, 40))[32:], names(chain(ns, 40))[31]),)


def test_what_is_malformed_is_refused_and_no_events_are_a_limit(way: Way, tmp_path: Path):
    ns = way.store.namespace(make_spec())
    for namespaces in ([], ns, [None], "tiny"):
        with pytest.raises(InvalidRequest, match="namespaces"):
            way.store.watch(namespaces)
    for since in (None, (1,), (1, -1)):
        with pytest.raises(InvalidRequest, match="since"):
            way.store.watch(since=since)
    with ExitStack() as stack:
        deaf = open_way(way.name, tmp_path / "deaf", stack, index={"events_max": 0})
        with pytest.raises(LimitExceeded, match=r"index\.events_max=0"):
            next(deaf.store.watch())


def test_a_closed_store_ends_its_watches(way: Way):
    watch = way.store.watch()
    next(watch)
    threading.Timer(0.05, way.store.close).start()
    with pytest.raises(Unavailable, match="closed"):
        list(watch)


@pytest.mark.parametrize("name", WAYS)
def test_a_watch_is_an_asynchronous_iterator_that_loses_nothing(name: str, tmp_path: Path):
    async def run(stack: ExitStack) -> None:
        config = config_for(tmp_path)
        if name == "embedded":
            store = await aio.open(config)
        else:
            start(config, stack)
            store = aio.connect(f"unix:{config.serve.socket}")
        async with store:
            ns = await store.namespace(make_spec())
            async with store.watch([ns]) as watch:
                assert (await anext(watch)).events == ()
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(anext(watch), 0.05)
                keys = chain(ns, 3)
                await ns.put(keys, np.zeros((3, ns.spec.block_nbytes), dtype=np.uint8))
                await asyncio.sleep(0.2)  # the batch comes while nobody waits for it
                async for found in watch:
                    if found.events:
                        break
                assert found.events == (Stored("tiny", names(keys), None),) and found.position == watch.position
            with pytest.raises(StopAsyncIteration):
                await anext(watch)

    with ExitStack() as stack:
        asyncio.run(run(stack))


# ---- a daemon's ----


def test_a_watch_outlives_the_daemon(tmp_path: Path):
    disk = {"nbytes": "16 MiB", "path": str(tmp_path / "disk")}
    with ExitStack() as stack:
        way = open_way("remote", tmp_path, stack, disk=disk)
        ns = way.store.namespace(make_spec())
        keys = names(put_chain(ns, 3))
        ours, all_ = (stack.enter_context(way.store.watch(namespaces)) for namespaces in ([ns], None))
        for watch in (ours, all_):
            until(watch, 3)
        assert way.store.flush()
        epoch = ours.position.epoch
        way.server.drain(0)
        way.inner.close()
        assert next(ours) == Events(ours.position, False, ()), "while it is gone nothing is known to happen"
        start(config_for(tmp_path, disk=disk), stack)
        for watch in (ours, all_):
            found = next(found for found in watch if found.gap)
            assert found.position.epoch != epoch
            assert found.events == (Stored("tiny", keys, None),), "what was on disk, also before anybody opened it"


def test_tenants_see_their_own_events_only(tmp_path: Path):
    rows = [{"name": name, "token_sha256": [digest(name)], "verbs": ["read", "write"]} for name in ("a", "b")]
    (tmp_path / "access.toml").write_text(table(*rows))
    with ExitStack() as stack:
        config = config_for(tmp_path, serve={"access": str(tmp_path / "access.toml")})
        _, server = start(config, stack)
        target = f"unix:{config.serve.socket}"
        a, b, operator = (stack.enter_context(kvstore.connect(target, token=token)) for token in ("a", "b", None))
        spaces = [store.namespace(make_spec()) for store in (a, b, operator)]
        keys = [put_chain(ns, 2 + at) for at, ns in enumerate(spaces)]
        for at, store in enumerate((a, b, operator)):
            with store.watch() as watch:
                (told,) = until(watch, 2 + at)
                assert told == Stored("tiny", names(spaces[at].event_keys(keys[at])), None)
                assert watch.position.seq == 2 + 3 + 4
        assert names(spaces[2].event_keys(keys[2])) == names(keys[2]) != names(spaces[0].event_keys(keys[2]))
        channel = stack.enter_context(grpc.insecure_channel(target))
        request = pb.WatchRequest(namespaces=[spaces[0].handle()]).SerializeToString()
        with pytest.raises(grpc.RpcError) as caught:
            next(channel.unary_stream(WATCH)(request, metadata=(("authorization", "Bearer b"),)))
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND

        watch = a.watch()
        next(watch)
        server.gatekeeper.replace(Access([Rule(name="a", token_sha256=(digest("a"),), verbs=("write",))]))
        with pytest.raises(AccessDenied, match="may not read"):
            list(watch)
        server.gatekeeper.replace(Access([Rule(name="a", token_sha256=(digest("a"),), namespaces=("big*",))]))
        with a.watch() as watch:
            assert next(watch).events == (), "it may not use this namespace any more"


def test_watches_are_limited_and_take_no_thread_from_others(tmp_path: Path):
    (tmp_path / "access.toml").write_text(table({"name": "a", "token_sha256": [digest("a")]}))
    serve = {"watches_max": 3, "threads": 8, "access": str(tmp_path / "access.toml")}
    with ExitStack() as stack:
        way = open_way("remote", tmp_path, stack, serve=serve)
        tenant = stack.enter_context(kvstore.connect(way.target, token="a"))
        assert (way.store.link.capabilities.watches_max, tenant.link.capabilities.watches_max) == (3, 2)
        theirs = [stack.enter_context(tenant.watch()) for _ in range(3)]
        for watch in theirs[:2]:
            next(watch)
        with pytest.raises(LimitExceeded, match=r"serve\.watches_max"):
            next(theirs[2])
        mine = [stack.enter_context(way.store.watch()) for _ in range(2)]
        next(mine[0])
        with pytest.raises(LimitExceeded, match=r"serve\.watches_max"):
            next(mine[1])
        ns = way.store.namespace(make_spec())
        with ExitStack() as rooms:
            for prompt in range(4):  # all the long calls there may be
                rooms.enter_context(ns.reserve(chain(ns, 1, prompt)))
            assert way.store.stats()["service"]["watches"] == 3
        theirs[0].close()
        assert wait_for(lambda: num_watches(way) == 2)
        next(way.store.watch())


def test_a_client_that_is_gone_ends_its_watch(remote: Way, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        remote.inner.feed, "idle_us", lambda: remote.inner.clock.now_us() + HOUR_US
    )  # nothing but the end of the call wakes them
    channel = remote.raw()
    calls = [channel.unary_stream(WATCH)(b"") for _ in range(3)]
    for call in calls:
        next(call)
    assert num_watches(remote) == 3
    calls[0].cancel()
    assert wait_for(lambda: num_watches(remote) == 2)
    channel.close()
    assert wait_for(lambda: num_watches(remote) == 0)
    with remote.raw() as other:
        with pytest.raises(grpc.RpcError) as caught:
            list(other.unary_stream(WATCH)(b"", timeout=0.1))
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert wait_for(lambda: num_watches(remote) == 0)


def test_a_drain_ends_watches_at_once(remote: Way, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        remote.inner.feed, "idle_us", lambda: remote.inner.clock.now_us() + HOUR_US
    )  # nothing but the drain wakes them
    with remote.raw() as channel:
        call = channel.unary_stream(WATCH)(b"")
        next(call)
        assert wait_for(lambda: remote.inner.feed._news is not None), "it waits"
        drained = threading.Thread(target=remote.server.drain, args=(60_000,))
        drained.start()
        with pytest.raises(grpc.RpcError) as caught:
            list(call)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE and "draining" in caught.value.details()
        drained.join(10)
        assert not drained.is_alive(), "the grace of a drain is for calls that end by themselves"


def test_a_client_that_takes_nothing_is_overtaken(tmp_path: Path):
    """Its messages wait in the transport, which holds some; then its thread waits, and the ring goes on."""
    with ExitStack() as stack:
        way = open_way("remote", tmp_path, stack, index={"events_max": 1024})
        ns = way.inner.namespace(make_spec(block_nbytes=4096))
        blocks = np.zeros((64, 4096), dtype=np.uint8)
        options = (("grpc.http2.bdp_probe", 0), ("grpc.use_local_subchannel_pool", 1))
        channel = stack.enter_context(grpc.insecure_channel(way.target, options=options))
        call = channel.unary_stream(WATCH)(b"")
        next(call)
        rng = np.random.default_rng(1)
        found = START

        def put(num: int) -> None:
            for _ in range(num):
                ns.put(rng.integers(0, 256, (64, 32), dtype=np.uint8), blocks)

        def gap_behind() -> bool:
            nonlocal found
            put(200)
            reply = pb.WatchReply.FromString(next(call))
            found = Position(reply.epoch, reply.seq)
            return reply.gap

        put(200)
        assert wait_for(gap_behind)
        assert num_watches(way) == 1 and found.seq > 0
        call.cancel()
        assert wait_for(lambda: num_watches(way) == 0)


def test_too_many_handles_are_refused(remote: Way):
    request = pb.WatchRequest(namespaces=range(HANDLES_MAX + 1)).SerializeToString()
    with remote.raw() as channel, pytest.raises(grpc.RpcError) as caught:
        next(channel.unary_stream(WATCH)(request))
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED and "handles_max" in caught.value.details()
    found = remote.store.link.capabilities
    assert (found.handles_max, found.events_max, found.heartbeat_ms) == (HANDLES_MAX, 65_536, 2_000)
