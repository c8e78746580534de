"""Single defects that the simulator found, each in as few steps as it takes. The far tier answers when told to."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

from kvstore import policy
from kvstore._core import index as core
from kvstore._core.index import Index
from kvstore._core.lease import LeaseTable
from kvstore.errors import Unavailable
from kvstore.mover import Mover
from kvstore.namespace import NamespaceSpec
from kvstore.space import Limits
from kvstore.store import BlockStore
from kvstore.tiers.base import PLACE_NBYTES, Outcome
from kvstore.tiers.geometry import Geometry
from kvstore.tiers.host import HostTier
from sim.client import Space
from sim.clock import SimClock, SimLock
from sim.far import Faults, Medium, SimFar

SECOND_US = 1_000_000
NEVER_US = 1_000_000_000
SEGMENT_NBYTES = 8 * PLACE_NBYTES


class HandFar(SimFar):
    """Ends no batch by itself: `answer` does, with the outcomes it is given."""

    def _submit(self, job):
        self._jobs.append(job)
        return job.future

    def answer(self, number: int, outcomes: list[int] | None = None) -> None:
        job = self._jobs.pop(number)
        given = np.array(outcomes or [0] * len(job.places), dtype=np.uint8)
        for i in np.flatnonzero(given == Outcome.OK):
            if job.entries is None:
                self._read_one(job, i)
            else:
                self._write_one(job, i)
        self._done(job, given)

    @property
    def num_waiting(self) -> int:
        return len(self._jobs)


class Bench:
    """A store of one namespace with one-page blocks, and a device in hand."""

    def __init__(
        self, near_pages=64, num_segments=8, batch_blocks=256, entries_max=4096, block_nbytes=4096, leases=4096
    ):
        self.clock, lock = SimClock(), SimLock()
        self.clock.locked = lambda: lock.held
        self.medium = Medium(Geometry(SEGMENT_NBYTES, num_segments))
        self.far = HandFar(self.clock, Random(0), self.medium, Faults(), lambda _: None)
        index = Index(entries_max, seed=bytes(16))
        batches = policy.WriteBack(batch_blocks=batch_blocks)
        limits = Limits(near_nbytes=near_pages * PLACE_NBYTES, batches=batches)
        near = HostTier(2 << 20, base_pages=True)
        self.mover = Mover(index, near, self.far, lock, self.clock, limits)
        self.store = BlockStore(
            index=index,
            leases=LeaseTable(index, leases),
            near=near,
            far=self.far,
            mover=self.mover,
            clock=self.clock,
            reservation_ttl_ms=NEVER_US // 1000,
            put_wait_ms=0,
        )
        self.space = Space(NamespaceSpec(model="m", block_nbytes=block_nbytes, block_tokens=1))
        self.space.handle = self.ns = self.store.namespace(self.space.spec)
        self.clock.turn = self.mover.step

    def keys(self, num_blocks, first=0):
        keys = self.ns.keys(list(range(first, first + num_blocks)))
        self.space.learn(keys)
        return keys

    def put(self, keys):
        return self.ns.put(keys, self.space.payload(keys, 0))

    def written(self, keys):
        """Put and write back."""
        assert not self.put(keys).rejected
        while self.mover._backlog or self.mover._writes:
            self.mover.step()
            if self.far.num_waiting:
                self.far.answer(0)

    def far_places(self, keys):
        return self.store.index.describe(self.store.index.find(keys))[1]

    def to_far(self, keys):
        """Leave nothing of them near."""
        self.mover.put.evict(self.store.near_capacity, True, 0)
        assert self.store.index.match(keys)[1] == 0


def test_a_child_that_was_written_before_its_parent_failed_is_written_again():
    bench = Bench()
    keys = bench.keys(2)
    bench.put(keys)
    bench.mover.step()
    bench.far.answer(0, [Outcome.IO_ERROR, Outcome.OK])
    bench.mover.step()
    bench.far.answer(0)
    bench.mover.step()
    assert (bench.far_places(keys) != core.NONE).all()


def test_a_failed_write_goes_again_before_the_writes_that_extend_it():
    bench = Bench(batch_blocks=1)
    keys = bench.keys(4)
    bench.put(keys)
    bench.mover.step()
    bench.far.answer(0, [Outcome.IO_ERROR])
    bench.mover.step()
    while bench.far.num_waiting:
        bench.far.answer(0)
        bench.mover.step()
    assert (bench.far_places(keys) != core.NONE).all()


def test_reads_may_end_in_another_order_than_they_began():
    bench = Bench()
    chains = [bench.keys(2), bench.keys(3, first=100)]
    for keys in chains:
        bench.written(keys)
    bench.to_far(chains[0])
    answers = [bench.ns.prefetch(keys) for keys in chains]
    bench.far.answer(1)
    bench.mover.step()
    assert [answer.done() for answer in answers] == [False, True]
    bench.far.answer(0)
    bench.mover.step()
    assert [answer.result().by_tier for answer in answers] == [{"host": 2}, {"host": 3}]


def test_a_prefetch_that_the_end_of_the_store_overtakes_says_so():
    bench = Bench()
    keys = bench.keys(2)
    bench.written(keys)
    bench.to_far(keys)
    answer = bench.ns.prefetch(keys)
    bench.store.close(flush_ms=0)
    assert isinstance(answer.exception(0), Unavailable)


def test_nobody_waits_for_write_back_that_finds_no_far_place():
    bench = Bench(near_pages=32, num_segments=4)  # 16 blocks fit far
    bench.clock.turn = lambda: (bench.mover.step(), bench.far.num_waiting and bench.far.answer(0))
    bench.put(bench.keys(30))
    assert bench.store.flush() is False


def test_nobody_waits_for_write_back_to_a_tier_that_fell_ill():
    bench = Bench()
    bench.put(bench.keys(3))
    bench.clock.after(1, lambda: bench.far.fall_ill(NEVER_US))
    progress = bench.mover.progress()
    bench.clock.turn = lambda: bench.far.usage().healthy or bench.mover.step()
    assert bench.clock.wait(progress, None)
    assert bench.mover.progress() is None


def test_a_flush_that_the_device_refuses_is_not_done():
    bench = Bench()
    bench.written(bench.keys(2))
    bench.far._faults.commit = 1.0
    assert bench.store.flush() is False
    bench.far._faults.commit = 0.0
    assert bench.store.flush() is True


def test_a_block_that_is_removed_while_leased_stays_removed_after_a_restart():
    bench = Bench()
    keys = bench.keys(3)
    bench.written(keys)
    assert bench.store.flush()
    lease = bench.ns.lease(keys)
    bench.ns.remove(keys[2:])
    lease.release()
    bench.mover.step()
    assert bench.store.flush()
    assert {row["key"].tobytes() for row in bench.medium.rows.values()} == {key.tobytes() for key in keys[:2]}


def carrying(bench):
    """Fill the tier, make holes, and begin to empty a segment: its read is under way."""
    keys = [bench.keys(6, first=100 * i) for i in range(8)]
    for chain in keys:
        bench.written(chain)
    for chain in keys:
        bench.ns.remove(chain[4:])
    bench.put(bench.keys(6, first=900))
    while bench.mover._carry is None or bench.mover._carry._reading is None:
        if bench.far.num_waiting:
            bench.far.answer(0)
        bench.mover.step()
    assert bench.far.num_waiting == 1
    return [chain[:4] for chain in keys]


def test_a_carry_that_a_sick_tier_interrupts_loses_nothing():
    bench = Bench()
    kept = carrying(bench)
    bench.far.fall_ill(SECOND_US)
    bench.far.answer(0)
    bench.mover.step()
    assert [bench.ns.match(keys).num_blocks for keys in kept] == [4] * len(kept)
    bench.store.check()


def test_a_block_removed_while_it_is_carried_is_not_written_again():
    bench = Bench()
    kept = carrying(bench)
    for keys in kept:
        bench.ns.remove(keys[:1])
    num_bytes = len(bench.medium.content)
    bench.far.answer(0)
    bench.mover.step()
    assert bench.far.num_waiting == 0 and len(bench.medium.content) == num_bytes
    bench.store.check()


def test_a_segment_that_cannot_be_emptied_is_not_waited_for():
    bench = Bench(near_pages=32, num_segments=4)  # 16 blocks fit far
    bench.clock.turn = lambda: (bench.mover.step(), bench.far.num_waiting and bench.far.answer(0))
    keys = bench.keys(16)
    bench.written(keys)
    lease = bench.ns.lease(keys[:12])
    bench.ns.remove(keys[:1])  # and what extends it; the lease keeps twelve of them in place
    bench.put(bench.keys(8, first=100))
    assert bench.store.flush() is False
    lease.release()
    assert bench.store.flush() is True


def test_an_index_full_of_blocks_in_both_tiers_makes_room_at_once():
    bench = Bench(entries_max=6)
    bench.written(bench.keys(6))
    assert not bench.put(bench.keys(2, first=100)).rejected


def test_a_lease_of_more_than_half_the_table_can_still_promote():
    bench = Bench(near_pages=200, num_segments=40, leases=128)
    keys = bench.keys(100)
    bench.written(keys)
    bench.to_far(keys)
    bench.clock.turn = lambda: (bench.mover.step(), bench.far.num_waiting and bench.far.answer(0))
    with bench.ns.lease(keys) as lease:
        assert lease.num_blocks == 100


@pytest.mark.parametrize("block_nbytes", [3 * PLACE_NBYTES, 5 * PLACE_NBYTES])
def test_blocks_that_do_not_fill_a_segment_make_room_for_each_other(block_nbytes):
    bench = Bench(near_pages=20, block_nbytes=block_nbytes)
    bench.clock.turn = lambda: (bench.mover.step(), bench.far.num_waiting and bench.far.answer(0))
    for number in range(30):
        bench.put(bench.keys(2, first=100 * number))
        assert bench.store.flush(), number
    assert bench.store.index.counts()["evicted_far"] > 0


def test_a_view_that_outlives_its_commit_keeps_a_block_that_never_became_visible():
    bench = Bench(near_pages=4)
    keys = bench.keys(3)
    first = bench.ns.reserve(keys[:1])
    rest = bench.ns.reserve(keys)
    array = np.frombuffer(rest.views[0], dtype=np.uint8)
    rest.fill(bench.space.payload(keys[1:], 0))
    rest.commit()
    first.release()  # what extends it goes with it
    before = array.tobytes()
    bench.put(bench.keys(4, first=100))
    assert array.tobytes() == before == bench.space.known[keys[1].tobytes()]
