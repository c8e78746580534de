"""A client whose daemon dies, comes back, hangs or answers nonsense."""

from __future__ import annotations

import asyncio
import threading
from concurrent import futures
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from service_helpers import Way, config_for, start, wait_for
from store_helpers import BLOCK, all_right, chain, make_spec, payload, put_chain

import kvstore
import kvstore.aio
from kvstore import Hint, Match
from kvstore.client.circuit import Circuit
from kvstore.client.putting import UNAVAILABLE
from kvstore.errors import KVStoreError, LeaseExpired, NamespaceMismatch, Unavailable
from kvstore.v1 import kvstore_pb2 as pb


@pytest.fixture
def nobody(tmp_path: Path):
    """A client whose daemon is not there."""
    with kvstore.connect(f"unix:{tmp_path / 's'}", timeout_ms=2_000) as store:
        yield store


def test_without_a_daemon_everything_is_a_miss(nobody):
    ns = nobody.namespace(make_spec())
    keys = chain(ns, 3)
    assert ns.match(keys) == Match(0)
    num_blocks, out = ns.get(keys)
    assert num_blocks == 0 and out.shape == (0, BLOCK)
    assert ns.get(keys, np.zeros((3, BLOCK), dtype=np.uint8))[0] == 0
    with ns.lease(keys) as lease:
        assert (lease.num_blocks, lease.pending, lease.views) == (0, 0, [])
    result = ns.put(keys, payload(keys))
    assert (result.stored, result.rejected) == (0, dict.fromkeys(range(3), UNAVAILABLE))
    with ns.reserve(keys) as room:
        assert room.wanted.size == 0 and set(room.rejected) == {0, 1, 2} and room.views == []
        room.fill(np.empty((0, BLOCK), dtype=np.uint8))
        assert room.commit().stored == 0
    assert ns.explain(keys) == [UNAVAILABLE] * 3
    assert ns.prefetch(keys).result(5) == Match(0)
    assert ns.put(keys, payload(keys), hint=Hint(ttl_s=1)).stored == 0 and ns.lease(keys, hint=Hint()).num_blocks == 0
    assert ns.hint(keys, Hint()) == ns.pin(keys, 60) == ns.unpin(keys) == 0
    assert not nobody.flush()


def test_what_changes_something_says_that_it_could_not(nobody):
    ns = nobody.namespace(make_spec())
    for call in (lambda: ns.remove(chain(ns, 1)), ns.clear, nobody.stats):
        with pytest.raises(Unavailable):
            call()


def test_a_gone_daemon_is_asked_by_one_thread_and_by_no_call(nobody, monkeypatch: pytest.MonkeyPatch):
    ns = nobody.namespace(make_spec())
    keys = chain(ns, 4)
    ns.match(keys)
    assert nobody.link.circuit.is_open

    def asked(*_: object) -> None:
        raise AssertionError("a call went to a daemon that is gone")

    nobody.link.circuit.end()  # the thread that asks whether it is back would trip over the same
    monkeypatch.setattr(nobody.link, "_read", asked)
    monkeypatch.setattr(nobody.link, "_write", asked)
    monkeypatch.setattr(nobody.link, "_unary", {name: asked for name in ("Match", "OpenNamespace", "GetCapabilities")})
    assert ns.match(keys) == Match(0) and ns.get(keys)[0] == 0 and ns.put(keys, payload(keys)).stored == 0
    assert sum(thread.name == "kvstore-reconnect" for thread in threading.enumerate()) <= 1


def test_it_goes_on_by_itself_when_the_daemon_is_there(nobody, tmp_path: Path):
    ns = nobody.namespace(make_spec())
    keys = chain(ns, 3)
    assert ns.match(keys) == Match(0)
    with ExitStack() as stack:
        start(config_for(tmp_path), stack)
        assert wait_for(lambda: ns.put(keys, payload(keys)).stored == 3)
        assert all_right(keys, ns.get(keys)[1])


def test_another_life_of_the_daemon_is_another_handle(tmp_path: Path):
    with kvstore.connect(f"unix:{tmp_path / 's'}", timeout_ms=10_000) as store:
        disk = {"nbytes": "16 MiB", "path": str(tmp_path / "disk")}
        with ExitStack() as stack:
            start(config_for(tmp_path, disk=disk), stack)
            ns = store.namespace(make_spec())
            keys = put_chain(ns, 4)
            assert store.flush()
            handle = ns._handle
            room = ns.reserve(chain(ns, 2, 7))
        assert ns.match(keys) == Match(0)
        with pytest.raises(LeaseExpired):
            room.commit()
        with ExitStack() as stack:
            start(config_for(tmp_path, disk=disk), stack)
            assert wait_for(lambda: ns.match(keys).num_blocks == 4), "what was durable is there again"
            assert ns._handle != handle and all_right(keys, ns.get(keys)[1])
            assert put_chain(ns, 2, 8) is not None


def test_a_namespace_that_differs_after_the_restart_is_named(tmp_path: Path):
    with kvstore.connect(f"unix:{tmp_path / 's'}", timeout_ms=10_000) as store:
        ns = store.namespace(make_spec())  # nobody is there yet
        with ExitStack() as stack:
            inner, _ = start(config_for(tmp_path), stack)
            inner.namespace(make_spec(dtype="float16"))

            def refused() -> bool:
                try:
                    return ns.match(chain(ns, 1)).num_blocks > 0
                except NamespaceMismatch as error:
                    return error.field == "dtype"

            assert wait_for(refused)


def test_a_draining_server_refuses_and_the_client_misses(remote: Way):
    ns = remote.store.namespace(make_spec())
    keys = put_chain(ns, 2)
    remote.server._door.close()
    assert ns.match(keys) == Match(0) and ns.get(keys)[0] == 0
    assert set(ns.put(keys, payload(keys)).rejected) == {0, 1}
    with pytest.raises(Unavailable):
        ns.clear()


class Nonsense(grpc.GenericRpcHandler):
    """A server that answers every method with the same bytes."""

    def __init__(self, answers: dict[str, bytes]) -> None:
        self.answers = answers

    def service(self, details: Any) -> Any:
        name = details.method.rpartition("/")[2]
        answer = self.answers.get(name, self.answers["*"])
        if name == "Read":
            return grpc.unary_stream_rpc_method_handler(lambda request, context: iter([answer, answer]))
        if name == "Write":
            return grpc.stream_stream_rpc_method_handler(lambda requests, context: iter([answer]))
        return grpc.unary_unary_rpc_method_handler(lambda request, context: answer)


GOOD = {
    "GetCapabilities": pb.Capabilities(
        protocol=1, keys_max=100, piece_nbytes_max=BLOCK, call_nbytes_max=1 << 30, call_ms_max=5_000, near_tier="host"
    ).SerializeToString(),
    "OpenNamespace": pb.OpenNamespaceReply(namespace=1).SerializeToString(),
}


@pytest.mark.parametrize(
    "answers",
    [
        {"*": b"\xff\xff\xff"},
        {"*": b""},
        GOOD | {"*": b"\xff\xff\xff"},
        GOOD | {"*": pb.ReadReply(header=pb.ReadHeader(num_blocks=1)).SerializeToString()},
        GOOD | {"*": pb.ReadReply(header=pb.ReadHeader(num_blocks=2**31)).SerializeToString()},
        GOOD | {"*": pb.ReadReply(data=b"x").SerializeToString()},
        GOOD | {"*": pb.WriteReply(result=pb.WriteResult(num_stored=7)).SerializeToString()},
    ],
    ids=["garbage", "nothing", "garbage later", "header twice", "too many", "data first", "result first"],
)
def test_a_server_that_answers_nonsense_does_no_harm(tmp_path: Path, answers: dict[str, bytes]):
    server = grpc.server(futures.ThreadPoolExecutor(4), handlers=(Nonsense(answers),))
    server.add_insecure_port(f"unix:{tmp_path / 's'}")
    server.start()
    try:
        with kvstore.connect(f"unix:{tmp_path / 's'}", timeout_ms=2_000) as store:
            try:
                ns = store.namespace(make_spec())
            except Unavailable:
                return
            keys = chain(ns, 2)
            out = np.zeros((2, BLOCK), dtype=np.uint8)
            for call in (
                lambda: ns.get(keys, out),
                lambda: ns.lease(keys),
                lambda: ns.put(keys, payload(keys)),
                lambda: ns.match(keys),
                lambda: ns.explain(keys),
            ):
                try:
                    call()
                except KVStoreError:
                    continue
            assert not out.any()
    finally:
        server.stop(0).wait()


def test_a_daemon_that_hangs_is_taken_for_gone(tmp_path: Path):
    """A stopped process accepts connections and never answers: the first call waits for the time-out, no other does."""
    held = threading.Event()
    server = grpc.server(futures.ThreadPoolExecutor(4), handlers=(Stuck(held),))
    server.add_insecure_port(f"unix:{tmp_path / 's'}")
    server.start()
    try:
        with kvstore.connect(f"unix:{tmp_path / 's'}", timeout_ms=200) as store:
            ns = store.namespace(make_spec())
            assert store.link.circuit.is_open
            for _ in range(1_000):  # each would take 200 ms
                assert ns.match(chain(ns, 1)) == Match(0)
    finally:
        held.set()
        server.stop(0).wait()


class Stuck(grpc.GenericRpcHandler):
    """A server that answers once it is too late."""

    def __init__(self, held: threading.Event) -> None:
        self.held = held

    def service(self, details: Any) -> Any:
        def wait(request: bytes, context: grpc.ServicerContext) -> bytes:
            self.held.wait(20)
            return b""

        return grpc.unary_unary_rpc_method_handler(wait)


def test_the_circuit_asks_until_there_is_an_answer():
    answers = iter([False, False, True])
    asked = threading.Event()

    def probe() -> bool:
        found = next(answers)
        if found:
            asked.set()
        return found

    circuit = Circuit(probe)
    circuit.require_closed()
    circuit.trip("it is gone")
    circuit.trip("it is still gone")
    assert circuit.is_open
    with pytest.raises(Unavailable, match="it is gone"):
        circuit.require_closed()
    assert asked.wait(20) and wait_for(lambda: not circuit.is_open)
    circuit.end()
    circuit.trip("nobody cares any more")
    assert not circuit.is_open


def test_aio_has_the_same_verbs(remote: Way):
    async def use() -> None:
        async with kvstore.aio.connect(remote.target) as store:
            ns = await store.namespace(make_spec())
            keys = ns.keys(np.arange(12))
            assert (await ns.put(keys, payload(keys))).stored == 3
            assert (await ns.match(keys)).num_blocks == 3
            num_blocks, blocks = await ns.get(keys)
            assert num_blocks == 3 and all_right(keys, blocks)
            async with await ns.lease(keys) as lease:
                assert all_right(keys, lease.views) and lease.num_blocks == 3
                assert await lease.copy_into(np.zeros((3, BLOCK), dtype=np.uint8)) == 3
            more = ns.keys(np.arange(20))
            async with await ns.reserve(more) as room:
                assert room.wanted.tolist() == [3, 4]
                await room.fill(payload(more)[3:])
                assert (await room.commit()).stored == 2
            assert (await ns.prefetch(more)).num_blocks == 5
            assert (await asyncio.gather(*(ns.match(more) for _ in range(20))))[7].num_blocks == 5
            assert await ns.explain(keys) == ["host"] * 3 and await ns.remove(keys[:1]) == 5 and await ns.clear() == 0
            assert (await store.stats())["index"]["entries"] == 0 and await store.flush()
            with pytest.raises(NamespaceMismatch):
                await store.namespace(make_spec(dtype="float16"))

    asyncio.run(use())


def test_aio_works_over_an_embedded_store(tmp_path: Path):
    async def use() -> None:
        async with await kvstore.aio.open(config_for(tmp_path)) as store:
            ns = await store.namespace(make_spec())
            keys = ns.keys(np.arange(8))
            assert (await ns.put(keys, payload(keys))).stored == 2 and (await ns.match(keys)).num_blocks == 2

    asyncio.run(use())
