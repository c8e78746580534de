"""Bytes that no client of ours would send, to every method: named errors, nothing held, nothing of another tenant."""

from __future__ import annotations

import hashlib
import os
import random
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from service_helpers import Way, config_for, idle, open_way, start, wait_for
from store_helpers import chain, make_spec, payload, put_chain

import kvstore
from kvstore.service.server import ADMIN, STORE
from kvstore.v1 import kvstore_pb2 as pb

ROUNDS = int(os.environ.get("KVSTORE_FUZZ_ROUNDS", "60"))  # for each method
# What the protocol names, and what gRPC itself answers: UNKNOWN or INTERNAL would be a defect of ours.
NAMED = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.ABORTED,
}
SERVICES = {name: pb.DESCRIPTOR.services_by_name[name.rpartition(".")[2]] for name in (STORE, ADMIN)}
METHODS = [  # Drain has its tests in test_drain.py: it ends the server
    (service, method) for service, found in SERVICES.items() for method in found.methods if method.name != "Drain"
]


def mutations(rng: random.Random, good: bytes) -> list[bytes]:
    """Messages near a good one, and far from it."""
    cut = good[: rng.randrange(len(good) + 1)]
    flipped = bytearray(good)
    for _ in range(rng.randint(1, 8) if good else 0):
        flipped[rng.randrange(len(flipped))] = rng.randrange(256)
    return [cut, bytes(flipped), good + rng.randbytes(rng.randrange(40)), rng.randbytes(rng.randrange(200)), b""]


def good_message(method: Any, handle: int, keys: bytes) -> bytes:
    """A request that the method takes."""
    kind = getattr(pb, method.input_type.name)
    if method.name == "Write":
        header = pb.WriteHeader(namespace=handle, keys=keys, hint=pb.RequestHint(priority=1, ttl_s=3600))
        return kind(header=header).SerializeToString()
    names = {field.name for field in kind.DESCRIPTOR.fields}
    values: dict[str, Any] = {"namespace": handle, "namespaces": [handle], "keys": keys, "deadline_ms": 5.0}
    hint = pb.RequestHint(ending=pb.ENDING_TOOL_USE, output_tokens=7, priority=-1, ttl_s=3600)
    values |= {"tier": "disk", "force": True, "ttl_s": 0.01, "hint": hint, "prefill_tokens_per_s": 1000.0}
    return kind(**{name: value for name, value in values.items() if name in names}).SerializeToString()


def send(channel: grpc.Channel, service: str, method: Any, messages: list[bytes], token: str = "") -> grpc.StatusCode:
    """Call a method with bytes and take everything that it answers."""
    path = f"/{service}/{method.name}"
    metadata = [("authorization", f"Bearer {token}")] if token else []
    try:
        if method.client_streaming:
            list(channel.stream_stream(path)(iter(messages), timeout=10, metadata=metadata))
        elif method.name == "Watch":  # has no end of its own
            call = channel.unary_stream(path)(messages[0], timeout=10, metadata=metadata)
            next(call)
            call.cancel()
        elif method.server_streaming:
            list(channel.unary_stream(path)(messages[0], timeout=10, metadata=metadata))
        else:
            channel.unary_unary(path)(messages[0], timeout=10, metadata=metadata)
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code
    return grpc.StatusCode.OK


@pytest.mark.parametrize(("service", "method"), METHODS, ids=lambda value: getattr(value, "name", None))
def test_any_bytes_get_a_named_error_and_leave_nothing_behind(tmp_path: Path, service: str, method: Any):
    with ExitStack() as stack:
        disk = {"nbytes": "16 MiB", "path": str(tmp_path / "disk")} if "Tier" in method.name else {"nbytes": 0}
        way: Way = open_way("remote", tmp_path, stack, disk=disk)
        if method.name == "AttachTier":
            way.inner.detach_tier("disk")
        ns = way.store.namespace(make_spec())
        keys = put_chain(ns, 3)
        seed = int.from_bytes(os.urandom(4), "little")
        print(f"seed {seed}")
        rng = random.Random(seed)
        channel = stack.enter_context(way.raw())
        good = good_message(method, ns._handle, keys.tobytes())
        for _ in range(ROUNDS):
            for message in mutations(rng, good):
                messages = [message, *rng.sample([good, b"\x1a\x00", rng.randbytes(9)], rng.randrange(3))]
                code = send(channel, service, method, messages)
                assert code in NAMED, f"{method.name}({message.hex()}): {code}"
        assert wait_for(lambda: idle(way))
        others = chain(ns, 2, prompt=7)
        assert ns.put(others, payload(others)).stored == 2
        way.inner.check()


def test_a_handle_of_another_tenant_is_no_handle(tmp_path: Path):
    """Every method with the handle and keys of another tenant: as if they did not exist."""
    table = tmp_path / "access.toml"
    row = '[[tenant]]\nname = "{0}"\ntoken_sha256 = ["{1}"]\nverbs = {2}\n'
    verbs = '["read", "write", "remove", "admin", "stats", "attach"]'
    tokens = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("one", "two")}
    table.write_text("".join(row.format(name, token, verbs) for name, token in tokens.items()))
    with ExitStack() as stack:
        config = config_for(tmp_path, serve={"access": str(table)})
        start(config, stack)
        target = f"unix:{config.serve.socket}"
        ns = stack.enter_context(kvstore.connect(target, token="one")).namespace(make_spec())
        keys = put_chain(ns, 3)
        channel = stack.enter_context(grpc.insecure_channel(target))
        for service, method in METHODS:
            kind = getattr(pb, method.input_type.name)
            names = {field.name for field in kind.DESCRIPTOR.fields}
            if not names & {"namespace", "namespaces"} and method.name != "Write":
                continue
            code = send(channel, service, method, [good_message(method, ns._handle, keys.tobytes())], token="two")
            assert code == grpc.StatusCode.NOT_FOUND, f"{method.name}: {code}"
        other = stack.enter_context(kvstore.connect(target, token="two")).namespace(make_spec())
        assert other.match(keys).num_blocks == other.remove(keys) == other.clear() == 0
        assert ns.match(keys).num_blocks == 3
