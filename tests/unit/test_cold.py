"""Cold reads in pieces: what has arrived is used while the rest is under way. The far tier reads when told to."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
from store_helpers import BLOCK, FakeClock, ObedientTier, all_right, make_spec, make_store, payload, put_chain, settle

from kvstore import policy
from kvstore.errors import InvalidRequest, Unavailable
from kvstore.tiers.base import Outcome

NUM = 8  # blocks that are far; two in each piece


class HandTier(ObedientTier):
    """Keeps reads until `finish`."""

    def __init__(self) -> None:
        super().__init__(64 * BLOCK)
        self.reads: list[tuple[Future[Any], Any, Any, Any]] = []

    def read(self, places: Any, checksums: Any, buffers: Any, deadline_us: int | None = None) -> Future[Any]:
        future: Future[Any] = Future()
        self.reads.append((future, places, checksums, buffers))
        return future

    def finish(self, number: int, outcomes: list[int] | None = None) -> None:
        future, places, checksums, buffers = self.reads[number]
        found = super().read(places, checksums, buffers).result()
        if outcomes is not None:
            found = np.array(outcomes, np.uint8)
            for buffer, outcome in zip(buffers, outcomes, strict=True):
                buffer[:] = buffer if outcome == Outcome.OK else bytes([0xEE]) * len(buffer)
        future.set_result(found)

    def finish_all(self, outcome: int = Outcome.OK) -> None:
        for number, (future, places, *_) in enumerate(self.reads):
            if not future.done():
                self.finish(number, [outcome] * len(places))

    def close(self) -> None:
        self.finish_all(Outcome.CLOSED)
        super().close()


class Script(FakeClock):
    """Whoever has to wait lets the next act happen first."""

    def __init__(self) -> None:
        super().__init__()
        self.acts: list[Callable[[], None]] = []

    def wait(self, future: Future[Any], timeout_us: int | None) -> bool:
        if not future.done() and self.acts:
            self.acts.pop(0)()
            if not future.done():
                return self.wait(future, timeout_us)
        return super().wait(future, timeout_us)


@pytest.fixture
def clock():
    return Script()


@pytest.fixture
def far():
    return HandTier()


@pytest.fixture
def store(far, clock, monkeypatch):
    monkeypatch.setattr(policy, "READ_NBYTES", 2 * BLOCK)
    made = make_store(NUM, far, clock=clock)
    yield made
    far.finish_all()
    if made.is_open:
        settle(made)
        made.check()
        assert made.mover.num_views == 0 and made.stats()["mover"]["reads_under_way"] == 0
        made.close()


@pytest.fixture
def ns(store):
    return store.namespace(make_spec())


@pytest.fixture
def cold(store, ns):
    """Blocks that are in the far tier only."""
    keys = put_chain(ns, NUM, prompt=1)
    settle(store)
    filling = put_chain(ns, NUM, prompt=2)
    settle(store)
    ns.remove(filling)
    settle(store)
    assert ns.match(keys).by_tier == {"far": NUM}
    return keys


def out_for(num_blocks: int = NUM) -> Any:
    return np.zeros((num_blocks, BLOCK), np.uint8)


def test_pieces_have_so_many_blocks():
    assert policy.read_blocks(BLOCK) == policy.READ_NBYTES // BLOCK
    assert policy.read_blocks(1 << 30) == 1


def test_a_get_copies_what_has_arrived_while_the_rest_is_under_way(ns, cold, far, clock):
    out, seen = out_for(), []

    def piece(number: int) -> None:
        assert len(far.reads) == 4, "all pieces are under way from the beginning"
        seen.append(sum(all_right(cold[i : i + 1], out[i : i + 1]) for i in range(NUM)))
        far.finish(number)

    clock.acts = [lambda number=number: piece(number) for number in range(4)]
    assert ns.get(cold, out)[0] == NUM
    assert all_right(cold, out) and seen == [0, 2, 4, 6]


def test_a_get_makes_room_for_what_it_returns(ns, cold, far, clock):
    clock.acts = [far.finish_all]
    num_blocks, out = ns.get(cold)
    assert num_blocks == NUM and out.shape == (NUM, BLOCK) and all_right(cold, out)


def test_pieces_may_come_in_any_order(ns, cold, far, clock):
    out = out_for()
    clock.acts = [lambda: [far.finish(number) for number in (3, 1)], lambda: [far.finish(number) for number in (2, 0)]]
    assert ns.get(cold, out)[0] == NUM and all_right(cold, out)


def test_what_is_near_is_copied_before_anybody_waits(ns, cold, far, clock):
    clock.acts = [far.finish_all]
    with ns.lease(cold[:3]):
        pass
    out = out_for()

    def first() -> None:
        assert all_right(cold[:3], out[:3]) and not out[3:].any()
        far.finish_all()

    clock.acts = [first]
    assert ns.get(cold, out)[0] == NUM and all_right(cold, out)


def test_a_lease_without_a_deadline_waits_for_all_pieces(ns, cold, far, clock):
    clock.acts = [lambda number=number: far.finish(number) for number in range(4)]
    with ns.lease(cold) as lease:
        assert (lease.num_blocks, lease.pending, lease.num_promoted) == (NUM, 0, NUM)
        assert all_right(cold, lease.views)
    assert not clock.acts


def test_a_deadline_ends_with_the_pieces_that_are_there(store, ns, cold, far, clock):
    clock.acts = [lambda: far.finish(0), lambda: far.finish(1)]
    began = clock.us
    with ns.lease(cold, deadline_ms=20) as lease:
        assert (lease.num_blocks, lease.pending, clock.us - began) == (4, 4, 20_000)
        assert all_right(cold[:4], lease.views)
    store.mover._wake.clear()
    far.finish_all()
    assert store.mover._wake.is_set(), "nobody waits any more: the mover has to settle it"
    settle(store)
    assert ns.match(cold).by_tier == {"host": NUM}


def test_a_get_has_a_deadline_too(ns, cold, far, clock):
    clock.acts = [lambda: far.finish(0)]
    out = out_for()
    assert ns.get(cold, out, deadline_ms=20) == (2, out)
    assert all_right(cold[:2], out[:2]) and not out[2:].any()
    assert ns.get(cold, deadline_ms=0)[1].shape == (2, BLOCK)


@pytest.mark.parametrize("outcome", [Outcome.IO_ERROR, Outcome.CORRUPT, Outcome.TIMEOUT])
def test_the_prefix_ends_at_a_block_that_fails(store, ns, cold, far, clock, outcome):
    clock.acts = [lambda: far.finish(0), lambda: far.finish(1, [Outcome.OK, outcome])]
    out = out_for()
    assert ns.get(cold, out)[0] == 3
    assert all_right(cold[:3], out[:3]) and not out[3:].any()
    far.finish_all()
    settle(store)
    store.check()
    assert ns.match(cold).num_blocks == (3 if outcome == Outcome.CORRUPT else NUM)
    assert store.stats()["mover"]["failed_reads"] == 1


def test_a_removal_under_way_ends_the_prefix_and_wrongs_nobody(store, ns, cold, far, clock):
    out = out_for()

    def removal() -> None:
        assert ns.remove(cold[5:6]) == 3
        far.finish_all()

    clock.acts = [lambda: far.finish(0), removal]
    num_blocks, _ = ns.get(cold, out)
    assert num_blocks == 5 and all_right(cold[:5], out[:5]) and not out[5:].any()
    assert ns.match(cold).by_tier == {"host": 5}


def test_what_was_removed_meanwhile_is_not_pending(ns, cold, far, clock):
    clock.acts = [lambda: far.finish(0), lambda: (ns.remove(cold[5:6]), far.finish_all())]
    with ns.lease(cold) as lease:
        assert (lease.num_blocks, lease.pending) == (5, 0)
        assert all_right(cold[:5], lease.views)


def test_a_removal_of_what_was_near_is_no_negative_promotion(store, ns, cold, far, clock):
    """The count of promoted blocks goes to remote clients as an unsigned number."""
    ns.prefetch(cold[:2])
    far.finish_all()
    settle(store)
    assert ns.match(cold).by_tier["host"] == 2
    clock.acts = [lambda: (ns.remove(cold[:1]), far.finish_all())]
    with ns.lease(cold) as lease:
        assert (lease.num_blocks, lease.pending, lease.num_promoted) == (0, 0, 0)
    store.check()


def test_a_removal_of_what_was_copied_already_ends_it_there(store, ns, cold, far, clock):
    out = out_for()
    clock.acts = [lambda: far.finish(0), lambda: far.finish(1), lambda: (ns.remove(cold[:1]), far.finish_all())]
    num_blocks, _ = ns.get(cold, out)
    assert num_blocks == 4 and all_right(cold[:4], out[:4])
    assert ns.match(cold).num_blocks == 0


def test_what_has_arrived_stays_while_the_rest_comes(store, ns, cold, far, clock):
    """Another put wants all of memory in between."""

    def pressure() -> None:
        far.finish(0)
        far.finish(1)
        settle(store)
        other = ns.keys(np.arange(4 * NUM, dtype=np.uint32) + np.uint32(9_000_000))
        assert len(ns.put(other, payload(other)).rejected) == NUM

    clock.acts = [pressure, lambda: far.finish(2), lambda: far.finish(3)]
    with ns.lease(cold) as lease:
        assert lease.num_blocks == NUM and all_right(cold, lease.views)


def test_a_get_ends_with_what_it_has_when_the_store_closes(store, ns, cold, far, clock):
    out = out_for()
    clock.acts = [lambda: far.finish(0), lambda: store.close(0)]
    assert ns.get(cold, out)[0] == 2 and all_right(cold[:2], out[:2])
    assert not store.is_open
    with pytest.raises(Unavailable, match="closed"):
        ns.get(cold, out)


def test_an_array_that_is_too_small_is_refused_and_nothing_stays_leased(store, ns, cold, far, clock):
    clock.acts = [lambda: far.finish(0), lambda: far.finish(1)]
    with pytest.raises(InvalidRequest, match="3 blocks, not for 4"):
        ns.get(cold, out_for(3))
    assert store.stats()["lookups"]["leases_in_use"] == 0


def test_a_prefetch_answers_when_all_pieces_are_there(store, ns, cold, far):
    answer = ns.prefetch(cold)
    for number in (3, 0, 2):
        far.finish(number)
        settle(store)
        assert not answer.done()
    far.finish(1)
    settle(store)
    assert answer.result(0).by_tier == {"host": NUM}


def test_a_read_that_somebody_waits_for_does_not_wake_the_mover_until_another_waits_too(store, ns, cold, far):
    mover = store.mover
    with store.lock:
        ids = store.index.find(cold)
        promotion = mover.promote(ids, ns.number, None, drop_unwritten=False)
        mover._wake.clear()
        for read in promotion.reads[:2]:
            read.awaited = True
        far.finish(0)
        assert not mover._wake.is_set()
        progress = mover.progress()
        assert mover._wake.is_set() and not progress.done()
        mover._wake.clear()
        far.finish(1)
        assert mover._wake.is_set()
        mover.step()
        assert progress.done() and ns.match(cold).by_tier["host"] == 4


def test_who_settles_second_does_nothing(store, ns, cold, far):
    with store.lock:
        promotion = store.mover.promote(store.index.find(cold), ns.number, None, drop_unwritten=False)
        far.finish_all()
        for read in promotion.reads:
            store.mover.settle(read)
            store.mover.settle(read)
        store.mover.step()
        assert promotion.settled.done() and store.mover.promoted_blocks == NUM
        store.check()
