"""docs/protocol.md followed to the letter, with gRPC and hashlib and nothing of ours but the messages."""

from __future__ import annotations

import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from service_helpers import Way, config_for, start

from kvstore.hashing import chain_keys
from kvstore.namespace import NamespaceSpec
from kvstore.v1 import kvstore_pb2 as pb

PAGE = Path(__file__).parents[2] / "docs" / "protocol.md"
KV = "/kvstore.v1.KVStore/"


@pytest.fixture(scope="module")
def said() -> dict[str, Any]:
    """What the page's example computes: `spec`, `tokens` and `keys`."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, PAGE.name, "exec"), names)
    return names


def test_the_keys_of_the_example_are_ours(said: dict[str, Any]):
    spec = NamespaceSpec(**said["spec"])
    assert len(said["keys"]) == 2 * 32
    assert chain_keys(spec.digest(), said["tokens"], spec.block_tokens, spec.hash).tobytes() == said["keys"]


def test_a_client_of_another_language(tmp_path: Path, said: dict[str, Any]):
    spec, keys = said["spec"], said["keys"]
    block = np.random.default_rng(0).integers(0, 256, spec["block_nbytes"] * 2, dtype=np.uint8).tobytes()
    with ExitStack() as stack:
        config = config_for(tmp_path)
        start(config, stack)
        channel = stack.enter_context(grpc.insecure_channel(f"unix:{config.serve.socket}"))

        def ask(name: str, request: Any, reply: Any) -> Any:
            return reply.FromString(channel.unary_unary(KV + name)(request.SerializeToString(), timeout=10))

        limits = ask("GetCapabilities", pb.GetCapabilitiesRequest(), pb.Capabilities)
        assert limits.protocol == 1
        request = pb.OpenNamespaceRequest(spec=pb.NamespaceSpec(**spec))
        handle = ask("OpenNamespace", request, pb.OpenNamespaceReply).namespace
        piece = limits.piece_nbytes_max
        messages = [
            pb.WriteRequest(header=pb.WriteHeader(namespace=handle, keys=keys)),
            *(pb.WriteRequest(data=block[at : at + piece]) for at in range(0, len(block), piece)),
            pb.WriteRequest(commit=pb.WriteCommit()),
        ]
        write = channel.stream_stream(KV + "Write")(iter([m.SerializeToString() for m in messages]), timeout=10)
        grant, result = (pb.WriteReply.FromString(reply) for reply in write)
        assert list(grant.grant.wanted) == [0, 1] and grant.grant.num_considered == 2
        assert (result.result.num_stored, result.result.num_lost) == (2, 0)
        assert ask("Match", pb.MatchRequest(namespace=handle, keys=keys), pb.MatchReply).num_blocks == 2
        ask_read = pb.ReadRequest(namespace=handle, keys=keys, deadline_ms=50).SerializeToString()
        header, *pieces = map(pb.ReadReply.FromString, channel.unary_stream(KV + "Read")(ask_read, timeout=10))
        assert header.header.num_blocks == 2 and b"".join(one.data for one in pieces) == block


def test_a_field_that_is_absent_is_no_default(remote: Way, said: dict[str, Any]):
    """The page says so: a spec without its hash is not one with the usual hash."""
    spec = {name: value for name, value in said["spec"].items() if name != "hash"}
    request = pb.OpenNamespaceRequest(spec=pb.NamespaceSpec(**spec)).SerializeToString()
    with remote.raw() as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(KV + "OpenNamespace")(request, timeout=10)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT and "hash" in caught.value.details()
