"""Namespace and the far tier: prefetch, leases that wait, and what explain says."""

from types import SimpleNamespace

import numpy as np
import pytest
from store_helpers import (
    BLOCK,
    FakeClock,
    ObedientTier,
    all_right,
    chain,
    make_spec,
    make_store,
    payload,
    put_chain,
    settle,
)

from kvstore import Lookup
from kvstore.arrivals import Terms, bring
from kvstore.tiers.base import Outcome
from kvstore.tiers.disk import DiskTier


class MeddlingClock(FakeClock):
    """Something happens, once, as soon as somebody waits."""

    meddle = staticmethod(lambda: None)

    def wait(self, future, timeout_us):
        meddle, self.meddle = self.meddle, lambda: None
        meddle()
        return super().wait(future, timeout_us)


def test_prefetch_brings_far_blocks_near():
    far = ObedientTier(64 * BLOCK)
    store = make_store(4, far, clock=FakeClock())
    ns = store.namespace(make_spec())
    keys = put_chain(ns, 3, prompt=1)
    settle(store)
    put_chain(ns, 4, prompt=2)
    settle(store)
    assert ns.match(keys).by_tier == {"far": 3}
    far.holding = True
    future = ns.prefetch(keys)
    assert not future.done() and not future.cancel()
    far.let_go()
    settle(store)
    assert future.result(0).by_tier == {"host": 3}
    assert ns.prefetch(keys).result(0).by_tier == {"host": 3}  # nothing to do


def test_prefetch_of_a_store_that_closes_ends():
    far = ObedientTier(64 * BLOCK)
    store = make_store(4, far)
    ns = store.namespace(make_spec())
    keys = put_chain(ns, 3, prompt=1)
    settle(store)
    put_chain(ns, 4, prompt=2)
    settle(store)
    far.holding = True
    future = ns.prefetch(keys)
    closing = far.close
    far.close = lambda: (closing(), far.let_go())
    store.close()
    with pytest.raises(Exception, match="closed"):
        future.result(0)


def test_a_get_copies_no_more_than_there_was_when_it_began():
    """While it waits its prefix is removed, and a longer one put."""

    clock, far = MeddlingClock(), ObedientTier(64 * BLOCK)
    store = make_store(8, far, clock=clock)
    ns = store.namespace(make_spec())
    keys = chain(ns, 5, prompt=1)
    put_chain(ns, 3, prompt=1)
    settle(store)
    put_chain(ns, 8, prompt=2)
    settle(store)
    assert ns.match(keys).by_tier == {"far": 3}
    far.holding = True

    def meddle():
        ns.remove(keys[:1])
        assert ns.put(keys, payload(keys)).stored == 5
        far.let_go()

    clock.meddle = meddle
    num_blocks, out = ns.get(keys, deadline_ms=1_000)
    assert num_blocks == len(out) == 3 and all_right(keys[:3], list(out))


# ---- leases that wait ----


@pytest.mark.parametrize("deadline_ms", [None, 0])
def test_what_comes_near_while_a_lease_is_begun_is_in_it(deadline_ms, monkeypatch):
    """The blocks are far when the lease looks, and near when it asks for them: nothing is under way any more."""
    far = ObedientTier(64 * BLOCK)
    store = make_store(4, far, clock=FakeClock())
    ns = store.namespace(make_spec())
    keys = put_chain(ns, 3, prompt=1)
    settle(store)
    put_chain(ns, 4, prompt=2)
    settle(store)
    far.holding = True
    ns.prefetch(keys)
    leases = ns._leases

    def acquire_then_arrive(*args, **kwargs):
        grip = leases.acquire(*args, **kwargs)
        if far.holding:
            assert grip.num_near == 0
            far.let_go()
            settle(store)
        return grip

    monkeypatch.setattr(ns, "_leases", SimpleNamespace(acquire=acquire_then_arrive))
    with ns.lease(keys, deadline_ms) as lease:
        monkeypatch.undo()
        assert (lease.num_blocks, lease.pending) == (3, 0) and all_right(keys, lease.views)


@pytest.fixture
def far():
    return ObedientTier(64 * BLOCK)


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def store(far, clock):
    made = make_store(4, far, clock=clock)
    yield made
    far.let_go()
    settle(made)
    made.check()
    made.close()


@pytest.fixture
def ns(store):
    return store.namespace(make_spec())


@pytest.fixture
def gone(store, ns):
    """Three blocks that are in the far tier only."""
    keys = put_chain(ns, 3, prompt=1)
    settle(store)
    filling = put_chain(ns, 4, prompt=2)
    settle(store)
    ns.remove(filling)
    settle(store)
    assert ns.match(keys).by_tier == {"far": 3}
    return keys


def test_a_lease_brings_far_blocks_near(ns, gone):
    longer = np.concatenate([gone, chain(ns, 1, prompt=7)])
    with ns.lease(longer) as lease:
        assert (lease.num_blocks, lease.pending, lease.num_promoted) == (3, 0, 3)
        assert all_right(gone, lease.views)
    assert ns.match(gone).by_tier == {"host": 3}


def test_a_lease_that_waits_stays_in_its_namespace(store, ns, gone):
    other = put_chain(store.namespace(make_spec(model="other")), 1)
    with ns.lease(np.concatenate([gone, other])) as lease:
        assert (lease.num_blocks, lease.pending) == (3, 0)
        assert all_right(gone, lease.views)


def test_a_deadline_of_zero_never_waits(ns, gone, far, clock):
    far.holding = True
    with ns.lease(np.concatenate([gone, chain(ns, 1, prompt=7)]), deadline_ms=0) as lease:
        assert lease.lookups == [Lookup.PENDING] * 3 + [Lookup.MISS]
        assert (lease.num_blocks, lease.pending, lease.views) == (0, 3, [])
        assert ns.get(gone, deadline_ms=0)[0] == 0
    assert clock.num_waits == 0


def test_a_lease_ends_at_its_deadline_with_what_is_there(ns, gone, far, clock, store):
    with ns.lease(gone[:1]):
        pass  # one of them is near now
    far.holding = True
    began = clock.us
    with ns.lease(gone, deadline_ms=20) as lease:
        assert (lease.num_blocks, lease.pending) == (1, 2)
        assert lease.lookups == [Lookup.HIT, Lookup.PENDING, Lookup.PENDING]
        assert clock.us - began == 20_000
        far.let_go()
        settle(store)
    assert ns.match(gone).by_tier == {"host": 3}


def test_estimates_come_from_measured_bandwidth(ns, gone, store):
    assert ns.match(gone).load_us == 0  # nothing was read yet
    store.mover.read_bandwidth.record(BLOCK, began_us=0, ended_us=500)
    assert ns.match(gone).load_us == 1500


def test_a_lease_does_not_wait_for_a_tier_that_is_ill(ns, gone, far, clock):
    far.ill = "gone"
    with ns.lease(gone) as lease:
        assert (lease.num_blocks, lease.pending) == (0, 3)
    assert clock.num_waits == 0


def test_a_lease_does_not_ask_a_failing_tier_again_and_again(ns, gone, far, store):
    far.answer = Outcome.IO_ERROR
    with ns.lease(gone) as lease:
        assert (lease.num_blocks, lease.pending) == (0, 3)
    assert store.stats()["mover"]["failed_reads"] == 3
    far.answer = Outcome.OK
    assert all_right(gone, ns.get(gone)[1])


# ---- explain ----


def test_explain_names_the_tier(ns, gone):
    near = put_chain(ns, 1, prompt=3)
    assert ns.explain(np.concatenate([gone[:1], near])) == ["far", "host"]


def test_explain_what_was_never_stored(ns):
    assert ns.explain(chain(ns, 2)) == ["never stored, or gone too long ago to be remembered"] * 2


def test_explain_what_is_being_written_and_what_was_abandoned(ns, clock):
    keys = chain(ns, 2)
    room = ns.reserve(keys)
    assert ns.explain(keys) == ["being written"] * 2
    room.release()
    clock.us += 3_000_000
    assert ns.explain(keys) == ["reserved but never committed 3 s ago"] * 2


def test_explain_what_was_removed(ns, clock):
    keys = put_chain(ns, 2)
    ns.remove(keys)
    clock.us += 5_000_000
    assert ns.explain(keys) == ["removed 5 s ago"] * 2


def test_explain_what_was_evicted_from_a_store_of_one_tier():
    clock = FakeClock()
    store = make_store(4, clock=clock)
    ns = store.namespace(make_spec())
    keys = put_chain(ns, 2, prompt=1)
    put_chain(ns, 4, prompt=2)
    clock.us += 1_000_000
    assert ns.explain(keys) == ["evicted by lru 1 s ago"] * 2


def test_explain_what_was_evicted_before_its_write_back(ns, far, store):
    far.ill = "gone"
    keys = put_chain(ns, 2, prompt=1)
    put_chain(ns, 4, prompt=2)
    assert ns.explain(keys) == ["evicted by lru before it could be written back 0 s ago"] * 2
    assert store.stats()["index"]["dropped_unwritten"] == 2


def test_explain_what_was_evicted_from_the_last_tier():
    store = make_store(2, ObedientTier(4 * BLOCK), clock=FakeClock())
    ns = store.namespace(make_spec())
    keys = put_chain(ns, 2, prompt=1)
    settle(store)
    for prompt in (2, 3, 4):
        put_chain(ns, 2, prompt=prompt)
        settle(store)
    assert ns.match(keys).num_blocks == 0
    assert ns.explain(keys) == ["evicted by lru 0 s ago"] * 2
    store.check()


def test_explain_what_rotted(ns, gone, far, store, clock):
    far.rot()
    assert ns.get(gone)[0] == 0
    clock.us += 2_000_000
    text = "rotten: its bytes did not match their checksum 2 s ago"
    assert ns.explain(gone)[0] == text
    assert store.stats()["mover"]["corrupt_blocks"] >= 1


def test_a_flipped_byte_in_a_segment_file_is_a_miss(tmp_path):
    """One byte of the second of three blocks: it, and the third that extends it, are gone and stay so."""
    time = FakeClock()

    def opened():
        store = make_store(8, DiskTier(tmp_path, capacity_nbytes=16 << 20, time_s=time.time_s))
        store.mover.start()
        return store

    with opened() as store:
        keys = put_chain(store.namespace(make_spec()), 3)
    blocks, found = payload(keys), False
    for path in tmp_path.rglob("*.seg"):
        data = path.read_bytes()
        at = data.find(blocks[1].tobytes())
        if at >= 0:
            found = True
            with path.open("r+b") as file:
                file.seek(at + 100)
                file.write(bytes([data[at + 100] ^ 1]))
    assert found
    with opened() as store:
        ns = store.namespace(make_spec())
        assert ns.match(keys).by_tier == {"disk": 3}
        num_blocks, out = ns.get(keys)
        assert num_blocks == 1 and all_right(keys[:1], out)
        assert ns.explain(keys)[0] == "host"
        assert ns.explain(keys)[1].startswith("rotten")
        assert store.stats()["mover"]["corrupt_blocks"] == 1
        assert ns.match(keys).num_blocks == 1
        assert ns.put(keys, blocks).stored == 2  # computed again
        assert all_right(keys, ns.get(keys)[1])
    with opened() as store:
        ns = store.namespace(make_spec())
        assert all_right(keys, ns.get(keys)[1])


def test_bringing_waits_for_room_as_a_lease_does():
    """A prefetch takes what room there is; who waits for the blocks waits for write-back to make it."""

    clock, far = MeddlingClock(), ObedientTier(64 * BLOCK)
    store = make_store(4, far, clock=clock)
    ns = store.namespace(make_spec())
    keys = put_chain(ns, 2, prompt=1)
    settle(store)
    far.holding = True
    put_chain(ns, 2, prompt=2)
    settle(store)
    leased = ns.lease(put_chain(ns, 2, prompt=3))
    assert ns.prefetch(keys).result(0).by_tier == {"far": 2}  # all that is near is being written, or leased

    def meddle():
        far.let_go()
        settle(store)

    clock.meddle = meddle
    bring(ns, store, keys, Terms(clock.now_us() + 1_000_000, None))
    assert ns.match(keys).by_tier == {"host": 2}
    leased.release()
    assert store.stats()["lookups"]["leases_in_use"] == 0
