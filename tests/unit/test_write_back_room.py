"""Room for blocks that come near: what has no far copy yet stays, as long as a wait is allowed."""

from concurrent.futures import Future
from threading import RLock
from typing import Any

import numpy as np

from kvstore._core.index import Index
from kvstore._core.lease import LeaseTable
from kvstore.clock import SystemClock
from kvstore.handle import Namespace
from kvstore.mover import Mover
from kvstore.namespace import NamespaceSpec
from kvstore.space import Limits
from kvstore.store import BlockStore
from kvstore.tiers.base import Outcomes
from kvstore.tiers.host import HostTier
from kvstore.tiers.memory import MemoryTier
from kvstore.workload import check_payloads, fill_payloads

NBYTES = 4096
NEAR_BLOCKS = 4


class HeldTier(MemoryTier):
    """A far tier whose writes are done when the test says so."""

    def __init__(self) -> None:
        super().__init__(1 << 20)
        self.is_holding = False
        self._held: list[tuple[Future[Outcomes], Outcomes]] = []

    def write(self, *arguments: Any) -> Future[Outcomes]:
        future = super().write(*arguments)
        if not self.is_holding:
            return future
        held: Future[Outcomes] = Future()
        self._held.append((held, future.result()))
        return held

    def let_go(self) -> None:
        self.is_holding = False
        for future, outcomes in self._held:
            future.set_result(outcomes)
        self._held.clear()


class Waiting(SystemClock):
    """Time passes only in waits. Each is noted with its limit, and lets the far tier finish if it is told to."""

    def __init__(self, far: HeldTier, *, finishes: bool) -> None:
        self.far, self.finishes = far, finishes
        self.mover: Mover | None = None
        self.time_us = 1_000_000
        self.waits_us: list[int | None] = []

    def now_us(self) -> int:
        return self.time_us

    def wait(self, future: Future[Any], timeout_us: int | None) -> bool:
        self.waits_us.append(timeout_us)
        if self.finishes:
            assert self.mover is not None
            self.mover.step()
            self.far.let_go()
            self.mover.step()
        if not future.done() and timeout_us is not None:
            self.time_us += timeout_us
        assert future.done() or timeout_us is not None, "this would wait for ever"
        return future.done()


def opened(
    *, finishes: bool, put_wait_ms: int, write_nbytes_per_s: int = 0
) -> tuple[BlockStore, Namespace, HeldTier, Waiting]:
    near, far = HostTier(1 << 20, base_pages=True), HeldTier()
    clock = Waiting(far, finishes=finishes)
    index = Index(65_536)
    limits = Limits(near_nbytes=NEAR_BLOCKS * NBYTES, write_nbytes_per_s=write_nbytes_per_s)
    mover = Mover(index, near, far, RLock(), clock, limits)
    clock.mover = mover
    store = BlockStore(
        index=index,
        leases=LeaseTable(index, 1024),
        near=near,
        far=far,
        mover=mover,
        clock=clock,
        reservation_ttl_ms=30_000,
        put_wait_ms=put_wait_ms,
    )
    return store, store.namespace(NamespaceSpec(model="m", block_nbytes=NBYTES)), far, clock


def put(namespace: Namespace, first_token: int) -> Any:
    """Four blocks of their own."""
    keys = namespace.keys(np.arange(first_token, first_token + 16 * NEAR_BLOCKS))
    blocks = np.empty((len(keys), NBYTES), np.uint8)
    fill_payloads(keys, blocks)
    assert namespace.put(keys, blocks).stored == NEAR_BLOCKS
    return keys


def far_and_unwritten(namespace: Namespace, store: BlockStore, far: HeldTier) -> tuple[Any, Any]:
    """Memory is full of blocks that wait for their write-back; others lie in the far tier too."""
    written = put(namespace, 0)
    for _ in range(2):  # half of memory at a time
        store.clock.time_us += 100_000 * 1_000_000  # also when the one before was far over the budget
        store.mover.step()  # starts the write,
    store.mover.step()  # settles it
    far.is_holding = True
    unwritten = put(namespace, 1000)
    assert namespace.match(written).by_tier == {"memory": NEAR_BLOCKS}
    return written, unwritten


def test_a_lease_waits_for_write_back_instead_of_dropping_blocks() -> None:
    store, namespace, far, clock = opened(finishes=True, put_wait_ms=1000)
    with store:
        written, unwritten = far_and_unwritten(namespace, store, far)
        with namespace.lease(written) as lease:
            assert (lease.num_blocks, lease.num_promoted) == (NEAR_BLOCKS, NEAR_BLOCKS)
            out = np.empty((NEAR_BLOCKS, NBYTES), np.uint8)
            lease.copy_into(out)
            assert check_payloads(written, out).all()
        assert clock.waits_us[0] == 1_000_000
        assert namespace.match(unwritten).num_blocks == NEAR_BLOCKS
        assert store.stats()["index"]["dropped_unwritten"] == 0


def test_after_put_wait_ms_a_lease_takes_the_room_of_what_is_not_written() -> None:
    store, namespace, far, clock = opened(finishes=False, put_wait_ms=1000, write_nbytes_per_s=1)
    with store:  # the first write has used up the budget for hours, so that the second does not even start
        written, unwritten = far_and_unwritten(namespace, store, far)
        with namespace.lease(written) as lease:
            assert (lease.num_blocks, lease.num_promoted) == (NEAR_BLOCKS, NEAR_BLOCKS)
        assert clock.waits_us[0] == 1_000_000
        assert namespace.match(unwritten).num_blocks == 0
        assert store.stats()["index"]["dropped_unwritten"] == NEAR_BLOCKS


def test_a_deadline_ends_the_wait_earlier() -> None:
    store, namespace, far, clock = opened(finishes=False, put_wait_ms=1000)
    written, unwritten = far_and_unwritten(namespace, store, far)
    with namespace.lease(written, deadline_ms=20) as lease:
        assert (lease.num_blocks, lease.pending) == (0, NEAR_BLOCKS)
    assert clock.waits_us == [20_000]
    with namespace.lease(written, deadline_ms=0) as lease:
        assert (lease.num_blocks, lease.pending) == (0, NEAR_BLOCKS)
    assert clock.waits_us == [20_000]
    assert namespace.match(unwritten).num_blocks == NEAR_BLOCKS
    far.let_go()
    store.close()
