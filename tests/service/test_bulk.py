"""Read and Write on the wire: their order, their limits, and that whatever ends them frees what they held."""

from __future__ import annotations

import itertools
import queue
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from service_helpers import Way, idle, open_way, wait_for
from store_helpers import BLOCK, all_right, chain, make_spec, payload, put_chain

from kvstore import frames
from kvstore.errors import LimitExceeded
from kvstore.service.limits import CLIENTS_MAX, Held, Limits
from kvstore.v1 import kvstore_pb2 as pb

READ, WRITE = "/kvstore.v1.KVStore/Read", "/kvstore.v1.KVStore/Write"
COMMIT = pb.WriteRequest(commit=pb.WriteCommit()).SerializeToString()


class Talk:
    """A Write held message by message, without our client."""

    def __init__(self, channel: grpc.Channel, timeout: float | None = 30) -> None:
        self._out: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self.call = channel.stream_stream(WRITE)(iter(self._out.get, None), timeout=timeout)

    def say(self, *messages: bytes | None) -> Talk:
        for message in messages:
            self._out.put(message)
        return self

    def hear(self) -> pb.WriteReply:
        return pb.WriteReply.FromString(next(self.call))

    def code(self) -> tuple[grpc.StatusCode, str]:
        """How the call ended."""
        with pytest.raises(grpc.RpcError):
            for _ in self.call:
                pass
        self._out.put(None)
        return self.call.code(), self.call.details()


def header(ns: Any, keys: Any, **more: Any) -> bytes:
    return pb.WriteRequest(header=pb.WriteHeader(namespace=ns._handle, keys=keys.tobytes(), **more)).SerializeToString()


@pytest.fixture
def ns(remote: Way):
    return remote.store.namespace(make_spec())


# ---- frames ----


@given(st.lists(st.binary(max_size=300), max_size=4))
def test_data_is_what_protobuf_says(parts):
    message = frames.encode_data(parts)
    assert message == pb.ReadReply(data=b"".join(parts)).SerializeToString()
    assert message == pb.WriteRequest(data=b"".join(parts)).SerializeToString()
    data = frames.decode_data(message)
    assert data is not None and bytes(data) == b"".join(parts)


@given(st.binary(max_size=40))
def test_no_bytes_are_mistaken_for_data(message):
    data = frames.decode_data(message)
    if data is not None:
        assert pb.ReadReply.FromString(message).data == bytes(data)


@given(st.integers(1, 40), st.integers(0, 20), st.integers(1, 30))
def test_cuts_cover_every_byte_once_and_in_order(block_nbytes, num_blocks, piece_nbytes):
    at = 0
    for first, count, offset, nbytes in frames.cuts(block_nbytes, num_blocks, piece_nbytes):
        assert first * block_nbytes + offset == at and 0 < nbytes <= piece_nbytes
        assert offset + nbytes <= block_nbytes if count == 1 else (offset, nbytes) == (0, count * block_nbytes)
        at += nbytes
    assert at == block_nbytes * num_blocks


# ---- Write ----


def test_a_write_in_odd_pieces_is_stored_right(remote: Way, ns):
    keys = chain(ns, 3)
    blocks = payload(keys).tobytes()
    with remote.raw() as channel:
        talk = Talk(channel).say(header(ns, keys))
        assert list(talk.hear().grant.wanted) == [0, 1, 2]
        cuts = [0, 1, BLOCK - 1, BLOCK, BLOCK + 5, 3 * BLOCK - 7, 3 * BLOCK]
        talk.say(*(frames.encode_data([blocks[a:b]]) for a, b in itertools.pairwise(cuts)), COMMIT)
        assert talk.hear().result.num_stored == 3
        talk.say(None)
    assert all_right(keys, ns.get(keys)[1])


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([COMMIT], "after 0 of"),
        ([None], "without a commit"),
        ([frames.encode_data([bytes(BLOCK)]), COMMIT], "after 65536 of"),
        ([frames.encode_data([bytes(2 * BLOCK)]), None], "without a commit"),
        ([frames.encode_data([bytes(2 * BLOCK + 1)])], "a piece of 131073 bytes"),
        ([frames.encode_data([bytes(2 * BLOCK)]), frames.encode_data([b"x"])], "a piece of 1 bytes"),
        ([frames.encode_data([b""])], "a piece of 0 bytes"),
        ([b"\xff\xff"], "not a WriteRequest"),
        ([b""], "an empty message"),
        ([pb.WriteRequest(header=pb.WriteHeader()).SerializeToString()], "header where a commit"),
    ],
)
def test_a_write_out_of_order_leaves_no_trace(remote: Way, ns, messages, said):
    keys = chain(ns, 2)
    with remote.raw() as channel:
        talk = Talk(channel).say(header(ns, keys))
        assert len(talk.hear().grant.wanted) == 2
        code, details = talk.say(*messages).code()
        assert code == grpc.StatusCode.INVALID_ARGUMENT and said in details
    assert wait_for(lambda: idle(remote)) and ns.match(keys).num_blocks == 0
    assert ns.put(keys, payload(keys)).stored == 2


@pytest.mark.parametrize("how", ["cancel", "deadline", "connection"])
def test_a_write_that_ends_early_is_undone(remote: Way, ns, how):
    keys = chain(ns, 3)
    channel = remote.raw()
    talk = Talk(channel, timeout=0.2 if how == "deadline" else 30).say(header(ns, keys))
    assert len(talk.hear().grant.wanted) == 3
    talk.say(frames.encode_data([payload(keys)[0].tobytes()]))
    if how == "cancel":
        talk.call.cancel()
    elif how == "connection":
        channel.close()
    else:
        assert talk.code()[0] == grpc.StatusCode.DEADLINE_EXCEEDED
    talk.say(None)
    assert wait_for(lambda: idle(remote)) and ns.match(keys).num_blocks == 0
    assert ns.put(keys, payload(keys)).stored == 3
    channel.close()


@pytest.mark.parametrize("timeout", [None, 10_000])
@pytest.mark.parametrize("method", ["Read", "Write", "Prefetch", "Flush"])
def test_calls_that_hold_or_wait_need_a_deadline(remote: Way, ns, method, timeout):
    keys = chain(ns, 1)
    with remote.raw() as channel:
        with pytest.raises(grpc.RpcError) as caught:
            if method == "Write":
                list(channel.stream_stream(WRITE)(iter([header(ns, keys)]), timeout=timeout))
            elif method == "Read":
                request = pb.ReadRequest(namespace=ns._handle, keys=keys.tobytes())
                list(channel.unary_stream(READ)(request.SerializeToString(), timeout=timeout))
            else:
                kind = pb.PrefetchRequest(namespace=ns._handle) if method == "Prefetch" else pb.FlushRequest()
                channel.unary_unary(f"/kvstore.v1.KVStore/{method}")(kind.SerializeToString(), timeout=timeout)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT and "call_ms_max" in caught.value.details()
    assert wait_for(lambda: idle(remote))


# ---- Read ----


def test_a_read_that_is_left_frees_its_leases(remote: Way, ns):
    keys = put_chain(ns, 100)
    with remote.raw() as channel:
        request = pb.ReadRequest(namespace=ns._handle, keys=keys.tobytes()).SerializeToString()
        call = channel.unary_stream(READ)(request, timeout=30)
        assert pb.ReadReply.FromString(next(call)).header.num_blocks == 100
        assert remote.inner.stats()["lookups"]["leases_in_use"] > 0
        call.cancel()
        assert wait_for(lambda: idle(remote))


def test_what_is_being_read_is_not_evicted(remote: Way, ns):
    keys = put_chain(ns, 100)
    with remote.raw() as channel:
        request = pb.ReadRequest(namespace=ns._handle, keys=keys.tobytes()).SerializeToString()
        call = channel.unary_stream(READ)(request, timeout=30)
        next(call)
        more = chain(ns, 120, 9)
        assert ns.put(more, payload(more)).stored < 120, "memory is held by the read"
        views = [piece for message in call for piece in (frames.decode_data(message),)]
    data = b"".join(views)
    assert all_right(keys, [data[at : at + BLOCK] for at in range(0, len(data), BLOCK)])


def test_long_chains_go_in_several_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Limits.__init__, "__defaults__", (65_536, 2 << 20, 5 * BLOCK + 1))
    with ExitStack() as stack:
        way = open_way("remote", tmp_path, stack)
        assert way.store.link.capabilities.call_nbytes_max == 5 * BLOCK + 1
        ns = way.store.namespace(make_spec())
        keys = chain(ns, 23)
        assert ns.put(keys[:7], payload(keys)[:7]).stored == 7
        result = ns.put(keys, payload(keys))
        assert (result.stored, result.present, result.rejected) == (16, 7, {})
        for found in (ns.get(keys)[1], ns.lease(keys).views):
            assert all_right(keys, found)
        out = bytearray(23 * BLOCK)
        assert ns.get(keys, [memoryview(out)[at : at + BLOCK] for at in range(0, len(out), BLOCK)])[0] == 23
        ns.remove(keys[11:12])
        assert ns.get(keys)[0] == 11
        with ns.reserve(keys) as room:
            assert room.wanted.tolist() == [11, 12, 13, 14, 15], "one room is one call"


# ---- limits ----


def test_a_client_may_hold_so_much_and_no_more():
    held = Held(Limits(threads=8, client_nbytes_max=10, call_ms_max=1))
    with held.blocks("a", 100), held.blocks("b", 4), held.blocks("b", 6):
        for client in ("a", "b"):
            with pytest.raises(LimitExceeded, match="client_nbytes_max=10"), held.blocks(client, 1):
                pass
        assert held.counts()["held_nbytes"] == 110 and held.counts()["clients_holding"] == 2
        assert {name: row["held_nbytes"] for name, row in held.clients().items()} == {"b": 10, "a": 100}
    assert held.counts()["held_nbytes"] == 0 and held.counts()["clients_holding"] == 0


def test_clients_that_hold_nothing_are_forgotten_and_others_never():
    held = Held(Limits(threads=8, client_nbytes_max=10, call_ms_max=1))
    with held.long_call("waits"), held.blocks("holds", 5, leased=2, reserved=1):
        for number in range(2 * CLIENTS_MAX):
            held.seen(f"c{number}", "acme")
        rows = held.clients()
        assert len(rows) == CLIENTS_MAX and next(iter(rows)) == f"c{2 * CLIENTS_MAX - 1}"
        assert rows["waits"]["long_calls"] == 1
        assert (rows["holds"]["leased_blocks"], rows["holds"]["reserved_blocks"]) == (2, 1)
    assert held.counts()["long_calls"] == held.counts()["held_nbytes"] == 0
    held.seen("c1", "acme")
    assert held.clients()["holds"]["leased_blocks"] == held.clients()["holds"]["reserved_blocks"] == 0
    for number in range(CLIENTS_MAX):
        held.seen(f"d{number}", "acme")
    assert not {"waits", "holds", "c1"} & held.clients().keys()


def test_some_threads_are_left_for_short_calls(tmp_path: Path):
    with ExitStack() as stack:
        way = open_way("remote", tmp_path, stack, serve={"threads": 8})
        ns = way.store.namespace(make_spec())
        rooms = [stack.enter_context(ns.reserve(chain(ns, 1, prompt))) for prompt in range(4)]
        assert all(len(room.wanted) == 1 for room in rooms)
        keys = put_chain_of(way.inner, 3)
        with pytest.raises(LimitExceeded, match=r"serve\.threads"):
            ns.get(keys)
        assert ns.match(keys).num_blocks == 3, "a short call is served"
        rooms[0].release()
        assert wait_for(lambda: way.server.held.counts()["long_calls"] == 3)
        assert ns.get(keys)[0] == 3


def put_chain_of(inner: Any, num_blocks: int) -> Any:
    return put_chain(inner.namespace(make_spec()), num_blocks, 50)


def test_too_many_keys_are_refused(remote: Way, ns):
    with pytest.raises(LimitExceeded, match="keys_max"):
        ns.match(bytes(32 * 65_537))


def test_what_does_not_fit_a_message_is_refused(remote: Way, ns):
    with pytest.raises(LimitExceeded):
        ns.match(bytes(32 * 100_000))
    assert ns.match(chain(ns, 1)).num_blocks == 0


def test_many_clients_at_a_time_get_right_bytes(remote: Way, ns):
    chains = [put_chain(ns, 8, prompt) for prompt in range(4)]
    wrong: list[object] = []

    def work(number: int) -> None:
        for turn in range(15):
            keys = chains[(number + turn) % 4]
            num_blocks, blocks = ns.get(keys)
            if num_blocks != 8 or not all_right(keys, blocks):
                wrong.append((number, turn, num_blocks))
            own = chain(ns, 2, 100 + number)
            ns.put(own, payload(own))
            if ns.remove(own) != 2:
                wrong.append((number, turn, "remove"))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [] and wait_for(lambda: idle(remote))
    assert remote.server.held.counts()["sent_nbytes"] == 6 * 15 * 8 * BLOCK


@pytest.mark.parametrize(
    "path", ["/kvstore.v1.KVStore/Write", "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"]
)
@pytest.mark.parametrize("timeout", [None, 30])
def test_clients_that_say_nothing_do_not_hold_every_thread(tmp_path: Path, path: str, timeout: float | None):
    with ExitStack() as stack:
        way = open_way("remote", tmp_path, stack, serve={"threads": 8})
        ns = way.store.namespace(make_spec())
        channel = stack.enter_context(way.raw())
        silence = threading.Event()
        stack.callback(silence.set)

        def nothing():
            silence.wait(60)
            return
            yield b""

        silent = [channel.stream_stream(path)(nothing(), timeout=timeout) for _ in range(16)]
        keys = chain(ns, 2)
        for _ in range(20):
            assert ns.match(keys).num_blocks == 0 and not way.store.link.circuit.is_open
        for call in silent:
            call.cancel()
        assert wait_for(lambda: idle(way) and ns.put(keys, payload(keys)).stored + ns.match(keys).num_blocks >= 2)
