"""A store without threads of its own: time passes and tiers answer only when the test says so.

Built from the same parts as kvstore.open. The far tier is held: what it is asked to read or write waits until the clock
or the test lets it happen, so that a run is a function of the calls made.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np

from kvstore import policy
from kvstore._core import events
from kvstore._core.index import Index
from kvstore._core.lease import LeaseTable
from kvstore.mover import Mover
from kvstore.space import Limits
from kvstore.store import BlockStore
from kvstore.tiers.base import Outcome
from kvstore.tiers.disk import DiskTier
from kvstore.tiers.host import HostTier
from kvstore.tiers.memory import MemoryTier
from kvstore.tiers.segments import State

MIB = 1 << 20
NEAR_NBYTES = 4 * MIB
FAR_NBYTES = 6 * MIB  # of the memory tier; a disk of 8 segments keeps two back and has as much
ENTRIES_MAX = 40
LEASES_MAX = 1024
EVENTS_MAX = 4096  # more than happens between two looks of a test
TTL_MS = 5_000
PUT_WAIT_MS = 1_000
IDLE_TURNS_MAX = 3


class WaitsForEver(AssertionError):
    """Somebody waits without a deadline for something that nothing under way can bring."""


class StepClock:
    """Time that passes when it is waited for, or told to. Waiting works the store, one step at a time."""

    def __init__(self) -> None:
        self.us = 1_000_000
        self.work: Callable[[], bool] = lambda: False  # one step; whether anything happened

    def now_us(self) -> int:
        return self.us

    def time_s(self) -> int:
        return 1_800_000_000 + self.us // 1_000_000

    def wait(self, future: Future[Any], timeout_us: int | None) -> bool:
        end_us = None if timeout_us is None else self.us + max(0, timeout_us)
        idle_turns = 0
        while not future.done():
            if end_us is not None and self.us >= end_us:
                return False
            idle_turns = 0 if self.work() else idle_turns + 1
            self.us += 1_000
            if idle_turns > IDLE_TURNS_MAX:
                if end_us is None:
                    raise WaitsForEver
                self.us = max(self.us, end_us)
        return True


class HeldTier:
    """A tier whose reads and writes wait until `let_go`; the rest passes through."""

    def __init__(self, inner: Any, clock: StepClock) -> None:
        self.name, self._inner, self._clock = inner.name, inner, clock
        self.held: list[tuple[Callable[..., Any], tuple[Any, ...], int | None, Future[Any]]] = []

    def write(self, places: Any, entries: Any, buffers: Any, deadline_us: int | None = None) -> Future[Any]:
        return self._hold(self._inner.write, (places, entries, buffers), deadline_us)

    def read(self, places: Any, checksums: Any, buffers: Any, deadline_us: int | None = None) -> Future[Any]:
        return self._hold(self._inner.read, (places, checksums, buffers), deadline_us)

    def _hold(self, call: Any, args: tuple[Any, ...], deadline_us: int | None) -> Future[Any]:
        future: Future[Any] = Future()
        self.held.append((call, args, deadline_us, future))
        return future

    def let_go(self, position: int = 0, fault: tuple[int, Outcome] | None = None) -> None:
        """Let one held call happen. `fault`: (block of it, what becomes of that block instead)."""
        call, args, deadline_us, future = self.held.pop(position)
        num_blocks = len(args[0])
        if deadline_us is not None and self._clock.now_us() >= deadline_us:
            future.set_result(np.full(num_blocks, Outcome.TIMEOUT, dtype=np.uint8))
            return
        outcomes = call(*args, None).result(60)
        if fault is not None:
            outcomes[fault[0] % num_blocks] = fault[1]
        future.set_result(outcomes)

    def is_write(self, position: int) -> bool:
        return bool(self.held[position][0] == self._inner.write)

    def allocate(self, nbytes: int, num_blocks: int, *, moving: bool = False) -> Any:
        self._settle()
        return self._inner.allocate(nbytes, num_blocks, moving=moving)

    def vacate(self, nbytes: int) -> Any:
        self._settle()
        return self._inner.vacate(nbytes)

    def free(self, places: Any, nbytes: int, *, forget: bool = False) -> None:
        self._inner.free(places, nbytes, forget=forget)

    def usage(self) -> Any:
        return self._inner.usage()

    def flush(self) -> Future[None]:
        while self.held:
            self.let_go()
        answer: Future[None] = self._inner.flush()
        answer.exception(60)
        return answer

    def close(self) -> None:
        while self.held:
            _, args, _, future = self.held.pop(0)
            future.set_result(np.full(len(args[0]), Outcome.CLOSED, dtype=np.uint8))
        self._inner.close()

    def _settle(self) -> None:
        """What the inner tier does on threads of its own is over."""


class HeldDiskTier(HeldTier):
    """The same, durable."""

    num_dropped = 0
    is_released = True

    def namespaces(self) -> dict[int, str]:
        return dict(self._inner.namespaces())

    def remember_namespace(self, number: int, text: str) -> None:
        self._inner.remember_namespace(number, text)

    def quotas(self) -> dict[int, int]:
        return dict(self._inner.quotas())

    def remember_quota(self, number: int, nbytes: int) -> None:
        self._inner.remember_quota(number, nbytes)

    def note_usage(self, places: Any, last_used_s: Any) -> None:
        self._inner.note_usage(places, last_used_s)

    def recover(self) -> Iterator[Any]:
        return iter(list(self._inner.recover()))

    @property
    def block_nbytes_max(self) -> int:
        return int(self._inner.block_nbytes_max)

    def adopt(self, places: Any, nbytes: Any) -> None:
        self._inner.adopt(places, nbytes)

    def _settle(self) -> None:
        table = self._inner._table
        end_s = time.monotonic() + 60
        while (table.state == State.CLEANING).any() or table.num_ready < min(2, (table.state <= State.FREE).sum()):
            assert time.monotonic() < end_s, "segments are never cleaned"
            time.sleep(0.0005)


def far_tier(kind: str, folder: Path, clock: StepClock) -> HeldTier | None:
    if kind == "none":
        return None
    if kind == "memory":
        return HeldTier(MemoryTier(FAR_NBYTES), clock)
    return HeldDiskTier(DiskTier(folder, capacity_nbytes=8 * MIB, segment_nbytes=MIB, io_threads=2), clock)


class SteppedStore(BlockStore):
    """A BlockStore whose mover moves in `turn` only."""

    far: HeldTier | None

    @classmethod
    def make(cls, kind: str, folder: Path, clock: StepClock, eviction: str = "lru") -> SteppedStore:
        index = Index(ENTRIES_MAX, seed=bytes(range(16)), policy=eviction)
        events.keep(index, EVENTS_MAX)
        near, far = HostTier(NEAR_NBYTES, base_pages=True), far_tier(kind, folder, clock)
        limits = Limits(NEAR_NBYTES, batches=policy.WriteBack(batch_blocks=2, batches_max=2))
        store = cls(
            index=index,
            leases=LeaseTable(index, LEASES_MAX),
            near=near,
            far=far,
            mover=Mover(index, near, far, RLock(), clock, limits),
            clock=clock,
            reservation_ttl_ms=TTL_MS,
            put_wait_ms=PUT_WAIT_MS,
        )
        clock.work = store.work
        return store

    def step(self) -> None:
        with self.lock:
            self.mover.step()

    def work(self) -> bool:
        """Let the oldest held call happen and step; whether something was held before or is now."""
        busy = self.far is not None and bool(self.far.held)
        if busy:
            assert self.far is not None
            self.far.let_go()
        self.step()
        return busy or (self.far is not None and bool(self.far.held))
