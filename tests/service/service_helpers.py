"""Servers and clients in one process, block payloads, and waiting without a clock."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import grpc

import kvstore
from kvstore.config import Config
from kvstore.embedded import open_shared
from kvstore.service.server import Server
from kvstore.store import BlockStore

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

WAYS = ("embedded", "remote", "attached")
MIB = 1 << 20


class Way(NamedTuple):
    """A store as an application has it, and what is behind it."""

    name: str
    store: Any
    inner: BlockStore
    server: Server | None
    target: str

    def raw(self) -> grpc.Channel:
        """A channel without our client, to send what no client of ours would."""
        return grpc.insecure_channel(self.target, options=(("grpc.use_local_subchannel_pool", 1),))


def config_for(folder: Path, **sections: Any) -> Config:
    """A small store whose server listens in `folder`."""
    serve = {"socket": str(folder / "s"), "attach": False, "drain_ms": 0, **sections.pop("serve", {})}
    defaults = {"host": {"nbytes": 8 * MIB}, "disk": {"nbytes": 0}}
    return Config(**{**defaults, **sections, "serve": serve})


def start(config: Config, stack: ExitStack, on_drain: Callable[[], None] = lambda: None) -> tuple[BlockStore, Server]:
    """A store and a server on it; both end with the stack, the server first."""
    inner = stack.enter_context(open_shared(config) if config.serve.attach else kvstore.open(config))
    server = Server(inner, config, "test", on_drain)
    server.start()
    stack.callback(server.drain, 0)
    return inner, server


def open_way(name: str, folder: Path, stack: ExitStack, **sections: Any) -> Way:
    """A store of 8 MiB reached by one of WAYS."""
    serve = {"attach": name == "attached", **sections.pop("serve", {})}
    config = config_for(folder, serve=serve, **sections)
    if name == "embedded":
        inner = stack.enter_context(kvstore.open(config))
        return Way(name, inner, inner, None, "")
    inner, server = start(config, stack)
    target = f"unix:{config.serve.socket}"
    return Way(name, stack.enter_context(kvstore.connect(target, timeout_ms=10_000)), inner, server, target)


def idle(way: Way) -> bool:
    """Does no call hold anything any more?"""
    assert way.server is not None
    counts = way.inner.stats()
    held = way.server.held.counts()
    lookups, index = counts["lookups"], counts["index"]
    return not any((lookups["leases_in_use"], index["writing"], held["long_calls"], held["watches"]))


def wait_for(done: Callable[[], bool], timeout_s: float = 20.0) -> bool:
    """Ask now and then until it is so; what happens on the other side of a connection happens a moment later."""
    end_s = time.monotonic() + timeout_s
    while not done():
        if time.monotonic() > end_s:
            return False
        time.sleep(0.002)
    return True
