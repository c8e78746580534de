"""Reservations: undone unless committed, and never overwritten or overwriting while somebody sees them."""

import gc

import numpy as np
import pytest
from store_helpers import BLOCK, FakeClock, ObedientTier, all_right, chain, make_spec, make_store, payload, put_chain

from kvstore import BlockLayout
from kvstore.errors import InvalidRequest, LeaseExpired, LimitExceeded
from kvstore.room import BUSY_REASON

TTL_MS = 1000


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture(params=["memory alone", "with a far tier"])
def store(request, clock):
    far = None if request.param == "memory alone" else ObedientTier(64 * BLOCK)
    made = make_store(4, far, clock=clock, ttl_ms=TTL_MS)
    yield made
    made.check()


@pytest.fixture
def ns(store):
    return store.namespace(make_spec())


def used(store):
    return store.stats()["tiers"]["host"]["used_nbytes"]


def refill(ns, num_prompts=4):
    for prompt in range(100, 100 + num_prompts):
        keys = chain(ns, 4, prompt)
        ns.put(keys, payload(keys))


def fill(room, keys):
    for view, block in zip(room.views, payload(keys), strict=True):
        view[:] = block


def test_what_is_written_into_the_views_is_read_after_the_commit(ns):
    keys = chain(ns, 3)
    with ns.reserve(keys) as room:
        assert room.wanted.tolist() == [0, 1, 2] and (room.present, dict(room.rejected)) == (0, {})
        assert [(view.nbytes, view.readonly) for view in room.views] == [(BLOCK, False)] * 3
        assert len(room.places) == 3
        fill(room, keys)
        assert ns.match(keys).num_blocks == 0
        result = room.commit()
    assert (result.stored, result.present, dict(result.rejected)) == (3, 0, {})
    assert all_right(keys, ns.get(keys)[1])


def test_a_room_wants_only_what_is_missing(ns):
    put_chain(ns, 2)
    keys = chain(ns, 4)
    with ns.reserve(keys) as room:
        assert (room.wanted.tolist(), room.present) == ([2, 3], 2)
        with pytest.raises(InvalidRequest, match="for 4 blocks, not for 2"):
            room.fill(payload(keys))  # these are not the ones that are wanted
        room.fill(payload(keys[2:]))
        assert room.commit().stored == 2
    assert all_right(keys, ns.get(keys)[1])


def test_a_room_can_be_filled_through_a_layout(ns):
    keys = chain(ns, 2)
    tensor = np.zeros((5, BLOCK), np.uint8)
    tensor[[3, 1]] = payload(keys)
    with ns.reserve(keys) as room:
        room.fill([tensor], BlockLayout((BLOCK,)), [3, 1])
        room.commit()
    assert all_right(keys, ns.get(keys)[1])


def test_leaving_without_commit_undoes_it(store, ns):
    keys = chain(ns, 3)
    with ns.reserve(keys) as room:
        views = room.views
        assert used(store) == 3 * BLOCK
    assert used(store) == 0 and store.stats()["index"]["entries"] == 0
    with pytest.raises(LeaseExpired, match="ended"):
        _ = room.views
    for call in (room.commit, lambda: room.fill(payload(keys)), lambda: room.places):
        with pytest.raises(LeaseExpired, match="ended"):
            call()
    with pytest.raises(ValueError, match="released"):
        views[0][0] = 1
    room.release()
    assert put_chain(ns, 3) is not None


def test_an_error_inside_undoes_it(store, ns):
    with pytest.raises(RuntimeError), ns.reserve(chain(ns, 3)):
        raise RuntimeError
    assert used(store) == 0


def test_a_second_commit_is_refused(ns):
    keys = chain(ns, 1)
    with ns.reserve(keys) as room:
        room.fill(payload(keys))
        room.commit()
        with pytest.raises(LeaseExpired):
            room.commit()
    assert ns.match(keys).num_blocks == 1


def test_a_forgotten_room_is_undone_when_it_is_collected(store, ns):
    room = ns.reserve(chain(ns, 3))
    assert len(room.views) == 3
    del room
    gc.collect()
    store.mover.step()
    assert used(store) == 0
    room = ns.reserve(chain(ns, 2))
    del room
    gc.collect()
    assert put_chain(ns, 2) is not None  # whoever comes next finds it undone


def test_views_that_outlive_an_undone_room_keep_their_places(store, ns):
    keys = chain(ns, 2)
    with ns.reserve(keys) as room:
        array = np.asarray(room.views[0])
    assert used(store) == 2 * BLOCK
    refill(ns)
    array[:] = 7  # into nobody's block
    for prompt in range(100, 104):
        found = chain(ns, 4, prompt)
        num_blocks, out = ns.get(found)
        assert all_right(found[:num_blocks], out)
    del array
    gc.collect()
    store.mover.step()
    assert ns.put(keys, payload(keys)).stored == 2


def test_a_reservation_times_out(store, ns, clock):
    keys = chain(ns, 3)
    with ns.reserve(keys) as room:
        room.fill(payload(keys))
        clock.us += TTL_MS * 1000 - 1
        store.mover.step()
        assert ns.explain(keys) == ["being written"] * 3
        clock.us += 1
        store.mover.step()
        assert ns.explain(keys) == ["reserved but never committed 0 s ago"] * 3
        assert put_chain(ns, 1) is not None  # the key is free for others
        with pytest.raises(LeaseExpired, match="3 of 3 reserved blocks were undone"):
            room.commit()
    assert ns.match(keys).num_blocks == 1
    assert used(store) == BLOCK


def test_a_writer_that_is_late_writes_into_nobodys_block(store, ns, clock):
    """After the time-out its places are its own until it lets go."""
    keys = chain(ns, 2)
    room = ns.reserve(keys)
    views = room.views
    clock.us += 2 * TTL_MS * 1000
    refill(ns)
    for view in views:
        view[:] = bytes(BLOCK)
    for prompt in range(100, 104):
        found = chain(ns, 4, prompt)
        num_blocks, out = ns.get(found)
        assert all_right(found[:num_blocks], out)
    del views, view
    room.release()


def test_a_commit_in_time_is_not_undone_later(store, ns, clock):
    keys = put_chain(ns, 2)
    clock.us += 10 * TTL_MS * 1000
    store.mover.step()
    assert ns.match(keys).num_blocks == 2


def test_views_outlive_a_commit_without_being_overwritten(store, ns):
    keys = chain(ns, 2)
    with ns.reserve(keys) as room:
        fill(room, keys)
        array = np.asarray(room.views[1])
        room.commit()
    refill(ns)
    assert (array == payload(keys)[1]).all()
    assert ns.match(keys).num_blocks == 2
    del array
    gc.collect()
    refill(ns)
    assert ns.match(keys).num_blocks == 0
    assert store.stats()["lookups"]["leases_in_use"] == 0


def test_views_outlive_a_commit_that_came_too_late(store, ns, clock):
    """The blocks were undone, so no lookup finds them: their places must still not be given to others."""
    keys = chain(ns, 2)
    room = ns.reserve(keys)
    fill(room, keys)
    array = np.asarray(room.views[1])
    clock.us += 2 * TTL_MS * 1000
    store.mover.step()
    with pytest.raises(LeaseExpired, match="2 of 2"):
        room.commit()
    refill(ns)
    assert (array == payload(keys)[1]).all()
    del array, room
    gc.collect()
    store.mover.step()
    refill(ns)
    assert used(store) == 4 * BLOCK


def test_a_rank_that_keeps_its_view_keeps_its_place(clock):
    """Its block is not visible before the other rank commits, which it never does."""
    store = make_store(4, clock=clock, ttl_ms=TTL_MS)
    ns = store.namespace(make_spec(shards=2))
    keys = chain(ns, 1)
    with ns.reserve(keys, 0) as room:
        room.views[0][:] = b"\7" * (BLOCK // 2)
        array = np.asarray(room.views[0])
        room.commit()
    clock.us += 2 * TTL_MS * 1000
    other = store.namespace(make_spec(model="other"))
    refill(other)
    assert (array == 7).all()
    del array
    gc.collect()
    refill(other)
    store.check()
    assert used(store) == 4 * BLOCK


def test_a_view_that_cannot_be_protected_undoes_the_commit(clock):
    store = make_store(8, clock=clock, leases_max=64)
    ns = store.namespace(make_spec())
    stored, keys = put_chain(ns, 1, prompt=5), chain(ns, 2)
    room = ns.reserve(keys)
    array = np.asarray(room.views[0])
    with ns.lease(stored), pytest.raises(LimitExceeded, match="leases_max=64"):
        room.commit()
    assert ns.match(keys).num_blocks == 0
    with pytest.raises(LeaseExpired):
        room.commit()
    del array
    gc.collect()
    store.mover.step()
    assert put_chain(ns, 2) is not None
    store.check()


def test_another_room_on_the_same_keys_wants_nothing(ns):
    keys = chain(ns, 2)
    with ns.reserve(keys) as first, ns.reserve(keys) as second:
        assert second.wanted.tolist() == [] and dict(second.rejected) == {0: BUSY_REASON, 1: BUSY_REASON}
        assert second.views == [] and second.commit().stored == 0
        first.fill(payload(keys))
        first.commit()
    assert all_right(keys, ns.get(keys)[1])


def test_what_extends_an_abandoned_room_is_undone_with_it(store, ns):
    """Its own parts stay out until its owner lets go, and can never become visible."""
    keys = chain(ns, 4)
    with ns.reserve(keys[:2]) as first, ns.reserve(keys) as second:
        assert second.wanted.tolist() == [2, 3]
        second.fill(payload(keys[2:]))
        first.release()
        with pytest.raises(LeaseExpired, match="2 of 2"):
            second.commit()
    assert used(store) == 0


def test_waiting_for_room_ends_at_the_deadline(clock):
    far = ObedientTier(64 * BLOCK)
    store = make_store(4, far, clock=clock)
    ns = store.namespace(make_spec())
    put_chain(ns, 2, prompt=1)
    far.holding = True
    store.mover.step()
    others = put_chain(ns, 2, prompt=2)
    began = clock.us
    keys = chain(ns, 2)
    with ns.lease(others), ns.reserve(keys, deadline_ms=30) as room:
        assert clock.us - began == 30_000
        assert len(room.wanted) == 0  # two are being written back and two leased: all must stay
        assert set(room.rejected.values()) == {f"no room in memory: host.nbytes={4 * BLOCK} is leased or being written"}
    far.let_go()
    store.mover.step()
    with ns.reserve(keys, deadline_ms=30) as room:
        assert len(room.wanted) == 2
    store.check()
