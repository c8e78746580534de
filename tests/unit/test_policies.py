"""What every eviction policy owes the index, whatever its order: nothing gets lost, and everything can go."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

from kvstore._core import eviction
from kvstore._core import index as core
from kvstore._core.index import POLICIES, Index
from kvstore._core.lease import Grip, LeaseTable

SLOT = 4096
NS = 1
DAY_MS = 86_400_000


def keys_of(path: tuple[int, ...]) -> np.ndarray:
    rows = [Random(str(path[: depth + 1])).randbytes(32) for depth in range(len(path))]
    return np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(-1, 32)


class Life:
    """Random calls on one index; its audit after each."""

    def __init__(self, policy: str, seed: int) -> None:
        self.rng = Random(seed)
        self.index = Index(64, seed=bytes(range(16)), policy=policy, ghosts_max=20)
        self.index.set_namespace(NS, SLOT, 1)
        self.leases = LeaseTable(self.index, 4096)
        self.held: list[Grip] = []
        self.now_ms = 0
        self.far = 0

    def path(self) -> tuple[int, ...]:
        return tuple(self.rng.randrange(2) for _ in range(self.rng.randint(1, 7)))

    def put(self) -> None:
        keys = keys_of(self.path())
        grip = self.leases.acquire(keys)
        _, plan, ids = self.index.plan(keys, 0)
        self.index.begin(keys, 0, NS, plan, ids, np.arange(self.rng.randint(0, 8), dtype=np.uint32))
        grip.release()
        mine = ids[(plan == core.WANTED) & (ids != core.NONE)]
        if self.rng.random() < 0.8:
            self.index.commit(mine, 0)
        else:
            self.index.abandon(mine, 0)
            self.index.reap()

    def look(self) -> None:
        self.leases.acquire(keys_of(self.path())).release()

    def hold(self) -> None:
        self.held.append(self.leases.acquire(keys_of(self.path())))
        if len(self.held) > 3:
            self.held.pop(0).release()

    def write_back(self) -> None:
        ids = self.index.find(keys_of(self.path()))
        ids = ids[ids != core.NONE]
        marked = self.index.writeback_mark(ids, self.index.words(ids))
        ids = ids[marked.astype(bool)]
        if len(ids) == 0:
            return
        places = np.arange(self.far, self.far + len(ids), dtype=np.uint32)
        self.far += len(ids)
        written = np.array([self.rng.random() < 0.8 for _ in ids], dtype=np.uint8)
        self.index.writeback_unmark(ids, places, np.zeros(len(ids), dtype=np.uint64), written)

    def promote(self) -> None:
        ids = self.index.find(keys_of(self.path()))
        ids = ids[ids != core.NONE]
        ids = ids[self.index.promote_mark(ids).astype(bool)]
        if len(ids):
            self.index.promote_unmark(ids, np.arange(len(ids), dtype=np.uint32), np.ones(len(ids), dtype=np.uint8))

    def evict_near(self) -> None:
        self.index.evict_near(self.rng.randint(1, 9) * SLOT, self.rng.random() < 0.3, 0)

    def evict_far(self) -> None:
        self.index.evict_far(self.rng.randint(1, 5) * SLOT, 0)

    def evict_namespace(self) -> None:
        self.index.evict_namespace(NS, self.rng.randint(1, 5), 0)

    def remove(self) -> None:
        ids = self.index.find(keys_of(self.path()))
        self.index.remove(ids[ids != core.NONE], core.REMOVED, 0)
        self.index.reap()

    def wait(self) -> None:
        """Most often a while; sometimes the clock jumps, and a clock that goes back must do no harm."""
        self.now_ms = max(0, self.now_ms + self.rng.choice((1, 500, 5_000, 100_000, 30 * DAY_MS, -40 * DAY_MS)))
        eviction.tend(self.index, self.now_ms)


CALLS = (
    (Life.put, 12),
    (Life.look, 8),
    (Life.hold, 3),
    (Life.write_back, 5),
    (Life.promote, 4),
    (Life.evict_near, 4),
    (Life.evict_far, 2),
    (Life.evict_namespace, 1),
    (Life.remove, 1),
    (Life.wait, 3),
)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("policy", POLICIES)
def test_whatever_happens_the_audit_is_content(policy: str, seed: int) -> None:
    life = Life(policy, seed)
    calls, weights = zip(*CALLS, strict=True)
    for _ in range(1500):
        call = life.rng.choices(calls, weights)[0]
        call(life)
        assert life.index.check() == 0, f"after {call.__name__} of seed {seed}"


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("policy", POLICIES)
def test_everything_that_nobody_holds_can_go(policy: str, seed: int) -> None:
    life = Life(policy, seed)
    calls, weights = zip(*CALLS, strict=True)
    for _ in range(300):
        life.rng.choices(calls, weights)[0](life)
    for grip in life.held:
        grip.release()
    life.index.evict_near(64 * SLOT, False, 0)
    life.index.evict_far(64 * SLOT, 0)
    life.index.reap()
    counts = life.index.counts()
    assert (counts["entries"], life.index.near_nbytes, life.index.far_nbytes) == (0, 0, 0)
    assert life.index.check() == 0


@pytest.mark.parametrize("policy", POLICIES)
def test_leased_candidates_do_not_hide_the_others(policy: str) -> None:
    """However many leased blocks an eviction meets first, what is behind them can go."""
    life = Life(policy, 0)
    for number in range(30):
        keys = np.frombuffer(Random(number).randbytes(32), dtype=np.uint8).reshape(1, 32)
        _, plan, ids = life.index.plan(keys, 0)
        life.index.begin(keys, 0, NS, plan, ids, np.zeros(1, dtype=np.uint32))
        life.index.commit(ids, 0)
        for _ in range(number % 4):
            life.leases.acquire(keys).release()
        if number % 3:
            life.held.append(life.leases.acquire(keys))
    life.index.drain()
    freed, _ = life.index.evict_near(10 * SLOT, False, 0)
    assert freed == 10 * SLOT
    assert life.index.check() == 0


def test_a_candidate_that_gittins_had_no_room_to_know_keeps_its_place_when_there_is() -> None:
    """All that may be remembered was asked for in this very moment: further blocks are stored without being known."""
    index = Index(8, policy="gittins", ghosts_max=0)
    index.set_namespace(NS, SLOT, 1)
    leases = LeaseTable(index, 64)

    def put(number: int) -> np.ndarray:
        keys = np.frombuffer(Random(number).randbytes(32), dtype=np.uint8).reshape(1, 32)
        _, plan, ids = index.plan(keys, 0)
        index.begin(keys, 0, NS, plan, ids, np.zeros(1, dtype=np.uint32))
        index.commit(ids, 0)
        return keys

    eviction.tend(index, 10_000)
    for number in range(8):
        put(number)
    index.evict_near(8 * SLOT, False, 0)
    later = [put(number) for number in range(8, 12)]
    eviction.tend(index, 20_000)
    for keys in reversed(later):
        leases.acquire(keys).release()
        index.drain()
        assert index.check() == 0
    freed, _ = index.evict_near(4 * SLOT, False, 0)
    assert (freed, index.check()) == (4 * SLOT, 0)
