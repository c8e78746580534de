"""Drain: only who may and says so drains; and under load the server still ends clean."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from daemon_process import Process
from google.protobuf.message import DecodeError
from service_helpers import config_for, start, wait_for
from store_helpers import TOKENS, all_right, chain, make_spec, payload, put_chain
from test_fuzz import ROUNDS, mutations

import kvstore
from kvstore.errors import KVStoreError
from kvstore.v1 import kvstore_pb2 as pb

DRAIN = "/kvstore.v1.Admin/Drain"
READ, WRITE = "/kvstore.v1.KVStore/Read", "/kvstore.v1.KVStore/Write"
CODES = grpc.StatusCode
WORDS = ("read", "write", "remove", "stats", "admin")


class Target:
    """A server with a table of tenants that counts how often it was drained."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.drains: list[None] = []
        table = folder / "access.toml"
        rows = {"most": WORDS[:-1], "none": (), "admin": ("admin",)}
        table.write_text("".join(_row(name, verbs) for name, verbs in rows.items()))
        config = config_for(folder, serve={"access": str(table)})
        self.inner, self.server = start(config, stack, lambda: self.drains.append(None))
        self.target = f"unix:{config.serve.socket}"
        self.channel = stack.enter_context(grpc.insecure_channel(self.target))

    def send(self, message: bytes, token: str, path: str = DRAIN) -> grpc.StatusCode:
        try:
            self.channel.unary_unary(path)(message, timeout=10, metadata=[("authorization", f"Bearer {token}")])
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()
            return code
        return CODES.OK


def _row(name: str, verbs: tuple[str, ...]) -> str:
    digest = hashlib.sha256(name.encode()).hexdigest()
    return f'[[tenant]]\nname = "{name}"\ntoken_sha256 = ["{digest}"]\nverbs = {list(verbs)}\n'


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Target]:
    with ExitStack() as stack:
        yield Target(tmp_path, stack)


def is_request(message: bytes) -> bool:
    """Would a server take this for a DrainRequest? Fields that it does not know are ignored."""
    try:
        pb.DrainRequest.FromString(message)
    except DecodeError:
        return False
    return True


def hostile(rng: random.Random) -> Iterator[bytes]:
    """Bytes around every request of the protocol, and none that are right."""
    kinds = [kind for kind in pb.DESCRIPTOR.message_types_by_name if kind.endswith("Request")]
    for _ in range(ROUNDS):
        good = pb.MatchRequest(namespace=rng.getrandbits(64), keys=rng.randbytes(32)).SerializeToString()
        yield from mutations(rng, rng.choice([good, rng.choice(kinds).encode(), b"\x08\x01"]))


def test_bytes_never_drain_for_somebody_who_may_not(target: Target):
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    for message in hostile(random.Random(seed)):
        code = CODES.PERMISSION_DENIED if is_request(message) else CODES.INVALID_ARGUMENT
        for token in ("most", "none"):
            assert target.send(message, token) == code, message.hex()
        for token in ("nobody's", "", "ADMIN", " admin", "admin" * 1000):
            assert target.send(message, token) == CODES.UNAUTHENTICATED, token
    assert target.drains == []
    with kvstore.connect(target.target, token="most") as store:
        assert len(put_chain(store.namespace(make_spec()), 2)) == 2


def test_malformed_bytes_drain_for_nobody(target: Target):
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    wrong = [message for message in hostile(random.Random(seed)) if not is_request(message)]
    assert len(wrong) > ROUNDS
    for message in wrong:
        assert target.send(message, "admin") == CODES.INVALID_ARGUMENT, message.hex()
    for path in (DRAIN.lower(), DRAIN.replace("Admin", "KVStore"), f"{DRAIN}/", "/Admin/Drain", "/"):
        assert target.send(b"", "admin", path) == CODES.UNIMPLEMENTED, path
    assert target.drains == []
    assert target.send(b"", "admin") == CODES.OK and len(target.drains) == 1


def test_calls_that_end_early_drain_nothing(target: Target):
    """Of somebody who may not: wherever a cancel or a deadline meets the call, the server serves on."""
    for _ in range(20):
        call = target.channel.unary_unary(DRAIN).future(b"", timeout=10, metadata=[("authorization", "Bearer most")])
        call.cancel()
    with pytest.raises(grpc.RpcError):
        target.channel.unary_unary(DRAIN)(b"", timeout=1e-9, metadata=[("authorization", "Bearer most")])
    assert target.send(b"", "most") == CODES.PERMISSION_DENIED and target.drains == []


# ---- under load ----


class Load:
    """Threads that put and read until they are told to stop, and keep what went wrong."""

    def __init__(self, store: Any, num_threads: int) -> None:
        self._namespace = store.namespace(make_spec())
        self.wrong: list[str] = []
        self.num_done = 0
        self.durable: list[Any] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._work, args=(n,), daemon=True) for n in range(num_threads)]
        for thread in self._threads:
            thread.start()

    def _work(self, number: int) -> None:
        rng = np.random.default_rng(number)
        while not self._stop.wait(0.001):
            keys = self._namespace.keys(rng.integers(0, 1 << 32, 3 * TOKENS))
            try:
                if self._namespace.put(keys, payload(keys), durable=number == 0, deadline_ms=2_000).durable:
                    self.durable.append(keys)
                num_blocks, blocks = self._namespace.get(keys, deadline_ms=500)
                if not all_right(keys[:num_blocks], list(blocks)):
                    self.wrong.append("wrong bytes")
            except KVStoreError as error:
                self.wrong.append(repr(error))
            self.num_done += 1

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)


def hold_streams(channel: grpc.Channel, ns: Any, stack: ExitStack) -> list[Any]:
    """A Write that says nothing after its header, one that says nothing at all, a Read that nobody reads."""
    forever = threading.Event()
    stack.callback(forever.set)

    def silent(*messages: bytes) -> Iterator[bytes]:
        yield from messages
        forever.wait()

    keys = chain(ns, 2, prompt=77)
    header = pb.WriteRequest(header=pb.WriteHeader(namespace=ns._handle, keys=keys.tobytes())).SerializeToString()
    stored = put_chain(ns, 8, 78)
    read = pb.ReadRequest(namespace=ns._handle, keys=stored.tobytes()).SerializeToString()
    open_write = channel.stream_stream(WRITE)(silent(header), timeout=60)
    next(open_write)
    return [
        open_write,
        channel.stream_stream(WRITE)(silent(), timeout=60),
        channel.unary_stream(READ)(read, timeout=60),
    ]


@pytest.mark.parametrize("num_drains", [1, 5])
def test_a_drain_under_load_ends_clean(daemon: Process, num_drains: int):
    daemon.write(serve="drain_ms = 300", disk="512 MiB")  # nothing that is durable has to go
    daemon.start()
    options = (("grpc.use_local_subchannel_pool", 1),)
    with ExitStack() as stack:
        store = stack.enter_context(daemon.connect(timeout_ms=1_000))
        load = Load(store, 3)
        stack.callback(load.stop)
        assert wait_for(lambda: load.num_done >= 20 and len(load.durable) >= 3, 60), load.wrong[:3]
        channel = stack.enter_context(grpc.insecure_channel(f"unix:{daemon.socket}", options=options))
        held = hold_streams(channel, store.namespace(make_spec()), stack)
        assert wait_for(lambda: store.stats()["service"]["long_calls"] >= 2)
        drains = [channel.unary_unary(DRAIN).future(b"", timeout=20) for _ in range(num_drains)]
        assert {drain.code() for drain in drains} <= {CODES.OK, CODES.UNAVAILABLE, CODES.CANCELLED}
        assert CODES.OK in {drain.code() for drain in drains}
        assert daemon.process.wait(60) == 0
        assert held[0].code() != CODES.OK and held[1].code() != CODES.OK
        load.stop()
        assert load.wrong == []
    assert [line for line in daemon.lines() if line["level"] not in ("INFO", "WARNING")] == []
    assert daemon.said("asked to drain by") >= 1 and daemon.said("draining:") == 1
    daemon.start()
    with daemon.connect() as store:
        ns = store.namespace(make_spec())
        assert [ns.match(keys).num_blocks for keys in load.durable[-5:]] == [3] * len(load.durable[-5:])
        assert ns.match(chain(ns, 2, prompt=77)).num_blocks == 0, "what was not committed left no trace"
    assert daemon.end(signal.SIGTERM) == 0
