"""The mover, stepped by hand over a far tier that obeys: queues, budgets, sick and rotten far tiers."""

import numpy as np
import pytest
from store_helpers import (
    BLOCK,
    SECOND_US,
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

from kvstore.carry import Carry
from kvstore.policy import WriteBack
from kvstore.tiers.base import Outcome


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def far():
    return ObedientTier(256 * BLOCK)


@pytest.fixture
def make(far, clock):
    """Stores over `far`, audited at the end."""
    made = []

    def make_one(num_blocks=8, **limits):
        made.append(make_store(num_blocks, far, clock=clock, **limits))
        return made[-1], made[-1].namespace(make_spec())

    yield make_one
    far.let_go()
    for store in made:
        settle(store)
        store.check()
        assert store.stats()["mover"]["defects"] == 0
        store.close()


def moved(store):
    return store.stats()["mover"]


def push_out(ns, num_blocks, prompt=50):
    """Fill memory with other blocks, so that what was there is far only."""
    keys = put_chain(ns, num_blocks, prompt)
    return keys


# ---- write-back ----


def test_blocks_are_written_back_ahead_of_need(make, far):
    store, ns = make()
    keys = put_chain(ns, 5)
    assert moved(store)["queued_blocks"] == 5
    settle(store)
    assert (moved(store)["written_blocks"], moved(store)["queued_blocks"], far.usage().num_blocks) == (5, 0, 5)
    assert ns.match(keys).by_tier == {"host": 5}  # and stay near
    settle(store)
    assert moved(store)["written_blocks"] == 5  # once


def test_over_the_queues_limit_blocks_stay_near_only(make, far):
    store, ns = make(8, writeback_queue_blocks=4)
    keys = put_chain(ns, 3, prompt=1)
    others = put_chain(ns, 2, prompt=2)
    assert (moved(store)["queued_blocks"], moved(store)["skipped_writes"]) == (3, 2)
    settle(store)
    assert far.usage().num_blocks == 3
    assert ns.match(keys).num_blocks == 3 and ns.match(others).num_blocks == 2
    put_chain(ns, 2, prompt=3)
    settle(store)
    assert far.usage().num_blocks == 5


def test_batches_are_cut_and_only_so_many_are_under_way(make, far):
    store, ns = make(8, batches=WriteBack(batch_blocks=2, batches_max=2))
    put_chain(ns, 7)
    far.holding = True
    settle(store)
    assert (moved(store)["writes_under_way"], moved(store)["queued_blocks"]) == (2, 3)
    far.let_go()
    settle(store)
    assert (moved(store)["writes_under_way"], moved(store)["queued_blocks"]) == (0, 0)
    assert moved(store)["written_blocks"] == 7


def test_the_write_budget_spreads_writes_over_time(make, clock):
    """One batch of two blocks a second."""
    store, ns = make(8, write_nbytes_per_s=2 * BLOCK, batches=WriteBack(batch_blocks=2, batches_max=4))
    put_chain(ns, 6)
    written = []
    for _ in range(4):
        settle(store)
        written.append(moved(store)["written_blocks"])
        clock.us += SECOND_US
    assert written == [2, 4, 6, 6]


def test_what_is_being_written_back_stays_until_it_is(make, far):
    store, ns = make(4)
    keys = put_chain(ns, 2, prompt=1)
    far.holding = True
    settle(store)
    others = chain(ns, 3, prompt=2)
    result = ns.put(others, payload(others))
    assert (result.stored, set(result.rejected)) == (2, {2})
    assert ns.match(keys).by_tier == {"host": 2}
    far.let_go()
    settle(store)
    assert ns.put(others, payload(others)).stored == 1
    assert ns.match(keys).num_blocks == 2
    assert all_right(keys, ns.get(keys)[1])


def test_write_back_holds_half_of_memory_at_most(make, far):
    store, ns = make(8)
    put_chain(ns, 8, prompt=1)
    far.holding = True
    settle(store)
    assert moved(store)["queued_blocks"] == 4 and moved(store)["writes_under_way"] == 1
    put_chain(ns, 4, prompt=2)
    far.let_go()
    settle(store)
    assert moved(store)["queued_blocks"] == 0


def test_a_removal_during_a_write_back_frees_both_places(make, far):
    store, ns = make()
    keys = put_chain(ns, 4)
    far.holding = True
    settle(store)
    assert ns.remove(keys) == 4
    assert store.stats()["tiers"]["host"]["used_nbytes"] == 4 * BLOCK  # it is still being read
    far.let_go()
    settle(store)
    assert store.stats()["tiers"]["host"]["used_nbytes"] == far.usage().used_nbytes == 0


def test_a_full_far_tier_drops_the_coldest(clock):
    far = ObedientTier(6 * BLOCK)
    store = make_store(4, far, clock=clock)
    ns = store.namespace(make_spec())
    prompts = [put_chain(ns, 2, prompt) for prompt in range(4) if settle(store) is None]
    settle(store)
    stored = [ns.match(keys).num_blocks for keys in prompts]
    assert stored == [0, 2, 2, 2]
    for keys in prompts[1:]:
        assert all_right(keys, ns.get(keys)[1])
    store.check()


# ---- promotion ----


def test_promotion_is_limited_by_its_queue(make, far):
    store, ns = make(8, promote_queue_blocks=2)
    keys = put_chain(ns, 5, prompt=1)
    settle(store)
    push_out(ns, 8)
    settle(store)
    far.holding = True
    with ns.lease(keys, deadline_ms=0) as lease:
        assert (lease.num_blocks, lease.pending) == (0, 5)
    assert far.usage().num_blocks == 13 and store.mover.num_views == 2
    far.let_go()
    settle(store)
    assert ns.match(keys).by_tier == {"host": 2, "far": 3}
    assert all_right(keys, ns.get(keys)[1])  # in rounds


def test_a_prefix_larger_than_memory_is_read_as_far_as_it_fits(make):
    store, ns = make(8)
    keys = put_chain(ns, 7, prompt=1)
    settle(store)
    others = push_out(ns, 8)
    settle(store)
    with ns.lease(others[:4]), ns.lease(keys) as lease:
        assert (lease.num_blocks, lease.pending) == (4, 3)
        assert all_right(keys[:4], lease.views)
    assert ns.match(keys).num_blocks == 7
    assert all_right(keys, ns.get(keys)[1])


def test_the_deadline_of_a_lease_reaches_the_tier(make, far, clock):
    store, ns = make(4)
    keys = put_chain(ns, 2, prompt=1)
    settle(store)
    push_out(ns, 4)
    settle(store)
    with ns.lease(keys, deadline_ms=40):
        pass
    assert far.deadlines == [clock.us + 40_000]


def test_reads_of_two_leases_are_shared(make, far):
    store, ns = make(8)
    keys = put_chain(ns, 3, prompt=1)
    settle(store)
    push_out(ns, 8)
    settle(store)
    far.holding = True
    with ns.lease(keys, deadline_ms=0), ns.lease(keys, deadline_ms=0):
        assert moved(store)["reads_under_way"] == 1
        far.let_go()
        settle(store)
    assert moved(store)["promoted_blocks"] == 3


def test_a_removal_during_a_promotion_frees_both_places(make, far):
    store, ns = make(8)
    keys = put_chain(ns, 3, prompt=1)
    settle(store)
    ns.remove(push_out(ns, 8))
    settle(store)
    far.holding = True
    future = ns.prefetch(keys)
    assert ns.remove(keys) == 3
    far.let_go()
    settle(store)
    assert future.result(0).num_blocks == 0
    assert store.stats()["tiers"]["host"]["used_nbytes"] == far.usage().used_nbytes == 0


# ---- a far tier that fails ----


def test_a_store_goes_on_from_memory_while_its_far_tier_is_ill(make, far):
    store, ns = make(4)
    keys = put_chain(ns, 3, prompt=1)
    settle(store)
    far.ill = "3 failures in a row, the last: write: Input/output error"
    near = put_chain(ns, 3, prompt=2)
    settle(store)
    assert all_right(near, ns.get(near)[1])
    assert ns.get(keys[:1])[0] in (0, 1)
    stats = store.stats()
    assert (stats["tiers"]["far"]["healthy"], stats["tiers"]["far"]["reason"]) == (False, far.ill)
    assert moved(store)["queued_blocks"] == 3 and far.usage().num_blocks == 3
    assert not store.flush(10)
    newest = put_chain(ns, 4, prompt=3)  # what could not be written gives way to what is new
    assert all_right(newest, ns.get(newest)[1])
    far.ill = ""
    settle(store)
    assert far.usage().num_blocks == 7 and all_right(keys, ns.get(keys)[1])


def test_writes_that_fail_are_tried_again(make, far):
    store, ns = make(8)
    far.answer = Outcome.IO_ERROR
    keys = put_chain(ns, 3)
    with store.lock:
        store.mover.step()
        store.mover.step()
    assert moved(store)["failed_writes"] >= 3 and moved(store)["written_blocks"] == 0
    assert far.usage().num_blocks <= 3  # places of failed writes went back
    far.answer = Outcome.OK
    settle(store)
    assert moved(store)["written_blocks"] == 3
    push_out(ns, 8)
    settle(store)
    assert all_right(keys, ns.get(keys)[1])


@pytest.mark.parametrize("outcome", [Outcome.IO_ERROR, Outcome.TIMEOUT, Outcome.CLOSED])
def test_reads_that_fail_are_misses_for_now(make, far, outcome):
    store, ns = make(4)
    keys = put_chain(ns, 3, prompt=1)
    settle(store)
    push_out(ns, 4)
    settle(store)
    far.answer = outcome
    num_blocks, out = ns.get(keys)
    assert num_blocks == 0 and out.shape == (0, BLOCK)
    assert moved(store)["failed_reads"] == 3 and moved(store)["corrupt_blocks"] == 0
    far.answer = Outcome.OK
    assert all_right(keys, ns.get(keys)[1])


def test_a_rotten_block_is_never_served(make, far):
    store, ns = make(4)
    keys = put_chain(ns, 3, prompt=1)
    settle(store)
    push_out(ns, 4)
    settle(store)
    far.rot()
    with ns.lease(keys) as lease:
        assert lease.lookups[0] == 0 and lease.views == []
    assert ns.match(keys).num_blocks == 0
    assert moved(store)["corrupt_blocks"] >= 1
    assert ns.explain(keys[:1])[0].startswith("rotten: its bytes did not match their checksum")
    store.mover.step()
    ns.put(keys, payload(keys))
    settle(store)
    assert all_right(keys, ns.get(keys)[1])


def test_a_rotten_block_takes_only_what_extends_it(make, far):
    store, ns = make(4)
    keys = put_chain(ns, 4, prompt=1)
    settle(store)
    push_out(ns, 4)
    settle(store)
    place = int(store.index.describe(store.index.find(keys[2:3]))[1][0])
    block = far._blocks[place]
    far._blocks[place] = block[:77] + bytes([block[77] ^ 128]) + block[78:]
    num_blocks, out = ns.get(keys)
    assert num_blocks == 2 and all_right(keys[:2], out)
    assert moved(store)["corrupt_blocks"] == 1
    assert [text.split(":")[0] for text in ns.explain(keys)][:3] == ["host", "host", "rotten"]


def test_a_step_that_fails_is_counted_and_the_next_one_is_made(make, monkeypatch):
    store, ns = make()
    steps, broken = [], [True]

    def step():
        steps.append(1)
        if broken:
            broken.pop()
            raise ZeroDivisionError
        store.mover._stopping = True

    monkeypatch.setattr(store.mover, "step", step)
    store.mover._run()
    assert len(steps) == 2 and store.mover.defects == 1
    store.mover.defects, store.mover._stopping = 0, False
    monkeypatch.undo()
    assert ns.get(put_chain(ns, 2))[0] == 2


# ---- forgetting ----


@pytest.mark.parametrize("how", ["remove", "clear", "rot"])
def test_what_was_removed_while_leased_is_forgotten_by_the_far_tier(make, far, monkeypatch, how):
    """Its places come free long after the removal, with the last lease: it must not come back at a restart."""
    store, ns = make(8)
    keys = put_chain(ns, 2)
    settle(store)
    forgotten, free = [], far.free

    def spy(places, nbytes, *, forget=False):
        forgotten.append((len(places), forget))
        free(places, nbytes, forget=forget)

    monkeypatch.setattr(far, "free", spy)
    with ns.lease(keys):
        if how == "remove":
            ns.remove(keys)
        elif how == "clear":
            ns.clear()
        else:
            store.mover.rotten(store.index.find(keys))
        assert forgotten == []
    settle(store)
    assert forgotten == [(2, True)]


@pytest.mark.parametrize("how", ["promotion", "carry"])
def test_a_flush_waits_for_what_was_removed_while_it_moved(make, far, how):
    """Its far place stays until the bytes are read: a flush that did not wait would promise what is not so yet."""
    store, ns = make(8)
    keys = put_chain(ns, 3)
    settle(store)
    ns.remove(push_out(ns, 8))
    settle(store)
    far.holding = True
    if how == "promotion":
        ns.prefetch(keys)
    else:
        store.mover._carry = Carry(store.mover, far, (0, 1 << 31))
        settle(store)
    assert ns.remove(keys) == 3
    assert not store.flush(0)
    assert far.usage().num_blocks == 3
    far.let_go()
    assert store.flush(0)
    assert far.usage().num_blocks == 0


def test_carrying_moves_what_lives_and_keeps_it_readable(tmp_path):
    """A small disk in segments of 1 MiB, most of whose blocks are removed again: what stays is found and right."""
    from kvstore.tiers.disk import DiskTier

    with make_store(16, DiskTier(tmp_path, capacity_nbytes=16 << 20, segment_nbytes=1 << 20)) as store:
        store.mover.start()
        ns = store.namespace(make_spec())
        kept = []
        for prompt in range(60):
            keys = put_chain(ns, 8, prompt)
            assert store.flush(30_000)
            if prompt % 6 == 0 and len(kept) < 6:
                kept.append(keys)
            else:
                ns.remove(keys)
        assert store.stats()["mover"]["carried_blocks"] >= 0
        found = [ns.get(keys) for keys in kept]
        assert [num_blocks for num_blocks, _ in found] == [8] * len(kept)
        assert all(all_right(keys, out) for keys, (_, out) in zip(kept, found, strict=True))
        assert np.unique(np.concatenate(kept), axis=0).shape[0] == 8 * len(kept)
        store.check()


def test_who_waits_for_progress_is_told_that_none_will_come_whoever_asked_meanwhile(make, far):
    store, ns = make(8)
    put_chain(ns, 2)
    with store.lock:  # queued for their write-back; nothing is under way
        progress = store.mover.progress()
        assert progress is not None and not progress.done()
        far.ill = "gone"
        assert store.mover.progress() is None
        store.mover.step()
    assert progress.done()


class TickingClock(FakeClock):
    """Who waits does so for one tick of the mover's thread at most."""

    def wait(self, future, timeout_us):
        self.num_waits += 1
        assert self.num_waits < 2_000, "this waits for ever"
        self.us += 50_000
        return future.done()


class FullTier(ObedientTier):
    """A far tier that always names a range to be emptied, and never has a place for new blocks however often it is."""

    is_full = False

    def allocate(self, nbytes, num_blocks, *, moving=False):
        if self.is_full:
            self._free_places.clear()  # what leaves the range comes to lie behind it
        return super().allocate(nbytes, num_blocks if moving or not self.is_full else 0, moving=moving)

    def vacate(self, nbytes):
        return (0, self._next_place) if self.is_full else None


@pytest.mark.parametrize("outcome", [Outcome.IO_ERROR, Outcome.OK], ids=["nothing-moves", "moves-in-vain"])
def test_a_flush_ends_although_every_carry_is_in_vain(outcome):
    far = FullTier(256 * BLOCK)
    store = make_store(16, far, clock=TickingClock())
    ns = store.namespace(make_spec())
    first = put_chain(ns, 4, prompt=1)
    assert store.flush()
    far.is_full, far.answer = True, outcome
    second = put_chain(ns, 4, prompt=2)
    assert not store.flush()
    assert (moved(store)["carried_blocks"] > 0) == (outcome == Outcome.OK)
    far.is_full, far.answer = False, Outcome.OK  # and nothing of what happened stays behind
    assert store.flush()
    assert ns.match(first).num_blocks == ns.match(second).num_blocks == 4
    settle(store)
    store.check()
    store.close()
