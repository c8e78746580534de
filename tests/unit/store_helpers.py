"""Small stores that step by hand, a clock that stands still, a far tier that obeys, blocks that prove themselves."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import numpy as np

from kvstore import policy
from kvstore._core.index import Index
from kvstore._core.lease import LeaseTable
from kvstore.clock import SystemClock
from kvstore.mover import Mover
from kvstore.namespace import NamespaceSpec
from kvstore.space import Limits
from kvstore.store import BlockStore
from kvstore.tiers.base import Outcome, Tier
from kvstore.tiers.host import HostTier
from kvstore.tiers.memory import MemoryTier
from kvstore.workload import check_payloads, fill_payloads

MIB = 1 << 20
BLOCK = 64 << 10
TOKENS = 4  # per block
SECOND_US = 1_000_000


class FakeClock:
    """Time moves only when a test moves it, or when somebody waits in vain."""

    def __init__(self) -> None:
        self.us = 10 * SECOND_US
        self.num_waits = 0

    def now_us(self) -> int:
        return self.us

    def time_s(self) -> int:
        return 1_700_000_000 + self.us // SECOND_US

    def wait(self, future: Future[Any], timeout_us: int | None) -> bool:
        self.num_waits += 1
        assert future.done() or timeout_us is not None, "this would wait for ever"
        if not future.done():
            self.us += max(0, timeout_us or 0)
        return future.done()


class ObedientTier(MemoryTier):
    """A MemoryTier whose answers can be held back, and that fails, rots or falls ill when told to."""

    def __init__(self, capacity_nbytes: int, name: str = "far") -> None:
        super().__init__(capacity_nbytes, name)
        self.holding = False
        self.answer = Outcome.OK  # what becomes of reads and writes from now on
        self.ill = ""
        self.deadlines: list[int | None] = []
        self._held: list[tuple[Future[Any], Future[Any]]] = []

    def _when_told(self, future: Future[Any]) -> Future[Any]:
        if self.answer != Outcome.OK:
            future.result()[:] = self.answer
        if not self.holding:
            return future
        later: Future[Any] = Future()
        self._held.append((later, future))
        return later

    def write(self, places: Any, entries: Any, buffers: Any, deadline_us: int | None = None) -> Future[Any]:
        return self._when_told(super().write(places, entries, buffers, None))

    def read(self, places: Any, checksums: Any, buffers: Any, deadline_us: int | None = None) -> Future[Any]:
        self.deadlines.append(deadline_us)
        return self._when_told(super().read(places, checksums, buffers, None))

    def let_go(self) -> None:
        self.holding = False
        held, self._held = self._held, []
        for later, future in held:
            later.set_result(future.result())

    def rot(self) -> None:
        """Flip a bit in every block that is stored."""
        self._blocks = {place: bytes([block[0] ^ 1]) + block[1:] for place, block in self._blocks.items()}

    def usage(self) -> Any:
        return replace(super().usage(), healthy=not self.ill, reason=self.ill)


def make_store(
    num_blocks: int = 8,
    far: Tier | None = None,
    *,
    clock: Any = None,
    leases_max: int = 4096,
    ttl_ms: int = 30_000,
    put_wait_ms: int = 0,
    entries_max: int = 4096,
    block_nbytes: int = BLOCK,
    eviction: str = "lru",
    **limits: Any,
) -> BlockStore:
    """A store for `num_blocks` blocks in memory, without a thread: `store.mover.step()` moves it on."""
    nbytes = num_blocks * block_nbytes
    index = Index(entries_max, policy=eviction, ghosts_max=entries_max)
    near = HostTier(max(8 * MIB, nbytes + nbytes // policy.SPARE_SHARE), base_pages=True)
    clock = SystemClock() if clock is None else clock
    mover = Mover(index, near, far, threading.RLock(), clock, Limits(near_nbytes=nbytes, **limits))
    return BlockStore(
        index=index,
        leases=LeaseTable(index, leases_max),
        near=near,
        far=far,
        mover=mover,
        clock=clock,
        reservation_ttl_ms=ttl_ms,
        put_wait_ms=put_wait_ms,
    )


def make_spec(**fields: Any) -> NamespaceSpec:
    return NamespaceSpec(**{"model": "tiny", "block_nbytes": BLOCK, "block_tokens": TOKENS, **fields})


def chain(namespace: Any, num_blocks: int, prompt: int = 0) -> Any:
    """Keys of prompt number `prompt`; two prompts have no block in common."""
    return namespace.keys(np.arange(num_blocks * TOKENS, dtype=np.uint32) + np.uint32(prompt * 1_000_000))


def payload(keys: Any, nbytes: int = BLOCK) -> Any:
    """Block bytes that follow from the keys."""
    blocks = np.empty((len(keys), nbytes), dtype=np.uint8)
    if len(keys):
        fill_payloads(keys, blocks)
    return blocks


def put_chain(namespace: Any, num_blocks: int, prompt: int = 0) -> Any:
    """Store a prompt's blocks and give their keys."""
    keys = chain(namespace, num_blocks, prompt)
    result = namespace.put(keys, payload(keys, namespace.spec.block_nbytes))
    assert (result.stored, result.rejected) == (num_blocks, {}), result
    return keys


def all_right(keys: Any, views: Any) -> bool:
    """Are these the payloads of these keys?"""
    return len(keys) == len(views) and all(
        bool(check_payloads(keys[number : number + 1], np.frombuffer(view, np.uint8)[None]).all())
        for number, view in enumerate(views)
    )


def settle(store: BlockStore, num_steps: int = 8) -> None:
    """Move everything that can be moved without waiting."""
    for _ in range(num_steps):
        with store.lock:
            store.mover.step()


def snapshot(store: BlockStore) -> dict[str, Any]:
    """What must not change when a call is refused."""
    stats = store.stats()
    return {part: stats[part] for part in ("lookups", "tiers", "index", "namespaces")}
