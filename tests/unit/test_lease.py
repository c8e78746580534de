"""Leases: what may be read, for how long, and that nobody overwrites what can still be seen."""

import gc

import numpy as np
import pytest
from store_helpers import BLOCK, FakeClock, ObedientTier, all_right, chain, make_spec, make_store, payload, put_chain

from kvstore import BlockLayout
from kvstore.errors import InvalidRequest, LeaseExpired, LimitExceeded


@pytest.fixture
def store():
    made = make_store(4, clock=FakeClock())
    yield made
    made.check()


@pytest.fixture
def ns(store):
    return store.namespace(make_spec())


def refill(ns, num_prompts=4):
    """Ask for more room than there is, so that whatever may be evicted is overwritten."""
    for prompt in range(100, 100 + num_prompts):
        keys = chain(ns, 4, prompt)
        ns.put(keys, payload(keys))


def test_views_are_valid_inside_and_expired_after(ns):
    keys = put_chain(ns, 3)
    with ns.lease(keys) as lease:
        views = lease.views
        assert lease.views is views and len(views) == 3
        assert all(view.nbytes == BLOCK and view.readonly for view in views)
        assert all_right(keys, views)
    with pytest.raises(LeaseExpired, match="released"):
        _ = lease.views
    with pytest.raises(LeaseExpired, match="released"):
        lease.copy_into(np.empty((3, BLOCK), np.uint8))
    with pytest.raises(ValueError, match="released"):
        _ = views[0][0]
    assert "released" in repr(lease)
    lease.release()


def test_a_lease_ends_when_the_with_is_left_by_an_error(store, ns):
    keys = put_chain(ns, 2)
    with pytest.raises(RuntimeError), ns.lease(keys):
        raise RuntimeError
    assert store.stats()["lookups"]["leases_in_use"] == 0


def test_a_forgotten_lease_ends_when_it_is_collected(store, ns):
    keys = put_chain(ns, 2)
    lease = ns.lease(keys)
    views = lease.views
    assert store.stats()["lookups"]["leases_in_use"] == 64
    del lease
    gc.collect()
    assert store.stats()["lookups"]["leases_in_use"] == 64  # the views still show the blocks
    del views
    gc.collect()
    assert store.stats()["lookups"]["leases_in_use"] == 0


def test_views_cannot_be_written_through(ns):
    keys = put_chain(ns, 1)
    with ns.lease(keys) as lease:
        (view,) = lease.views
        with pytest.raises(TypeError, match="read-only"):
            view[0] = 0
        array = np.asarray(view)
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
        with pytest.raises(ValueError, match="WRITEABLE"):
            array.flags.writeable = True
        del array


def test_leased_blocks_are_not_evicted(ns):
    keys = put_chain(ns, 3)
    with ns.lease(keys) as lease:
        refill(ns)
        assert all_right(keys, lease.views)
        assert ns.match(keys).num_blocks == 3
    refill(ns)
    assert ns.match(keys).num_blocks == 0


def test_an_array_made_of_a_view_keeps_its_block_after_the_release(store, ns):
    keys = put_chain(ns, 3)
    with ns.lease(keys) as lease:
        array = np.asarray(lease.views[1])[:100]
    refill(ns)
    assert (array == payload(keys)[1, :100]).all()
    assert store.stats()["lookups"]["leases_in_use"] == 64
    place = array.ctypes.data
    del array
    gc.collect()
    assert store.stats()["lookups"]["leases_in_use"] == 0
    refill(ns)
    newer = chain(ns, 4, 103)
    with ns.lease(newer) as lease:  # now it may be used again, and is
        assert place in [np.asarray(view).ctypes.data for view in lease.views]


def test_removed_blocks_stay_readable_until_the_lease_ends(store, ns):
    keys = put_chain(ns, 3)
    with ns.lease(keys) as lease:
        assert ns.remove(keys) == 3
        assert ns.match(keys).num_blocks == 0
        refill(ns)
        assert all_right(keys, lease.views)
        assert store.stats()["index"]["removed_pending"] == 3
    store.mover.step()
    assert store.stats()["index"]["removed_pending"] == 0


def test_two_leases_protect_independently(ns):
    keys = put_chain(ns, 3)
    one, two = ns.lease(keys), ns.lease(keys[:2])
    one.release()
    refill(ns)
    assert ns.match(keys).num_blocks == 2
    assert all_right(keys[:2], two.views)
    two.release()


def test_copy_into_needs_room_for_all_and_leaves_the_rest_alone(ns):
    keys = put_chain(ns, 3)
    out = np.full((5, BLOCK), 7, np.uint8)
    with ns.lease(keys) as lease:
        assert lease.copy_into(out) == 3
        assert all_right(keys, out[:3]) and (out[3:] == 7).all()
        with pytest.raises(InvalidRequest, match="for 2 blocks, not for 3"):
            lease.copy_into(out[:2])
        layout = BlockLayout((BLOCK,))
        with pytest.raises(InvalidRequest, match="for 4 blocks, not for 3"):
            lease.copy_into([out], layout, [0, 1, 2, 3])
        assert lease.copy_into([out], layout, [4, 3, 0]) == 3
        assert all_right(keys, out[[4, 3, 0]])


def test_the_number_of_leases_is_limited():
    store = make_store(4, leases_max=128)
    ns = store.namespace(make_spec())
    keys = put_chain(ns, 2)
    leases = [ns.lease(keys) for _ in range(2)]  # a lease takes 64 entries at least
    with pytest.raises(LimitExceeded, match=r"index\.leases_max=128"):
        ns.lease(keys)
    assert all_right(keys, leases[0].views)
    leases.pop().release()
    with ns.lease(keys) as lease:
        assert lease.num_blocks == 2
    leases.pop().release()
    assert store.stats()["lookups"]["leases_in_use"] == 0


def test_a_prefix_longer_than_the_limit_is_refused_whole():
    store = make_store(70, leases_max=64, block_nbytes=4096)
    ns = store.namespace(make_spec(block_nbytes=4096))
    keys = put_chain(ns, 64)
    with ns.lease(keys) as lease:
        assert lease.num_blocks == 64
    with pytest.raises(LimitExceeded, match="64 more blocks"), ns.lease(keys[:1]):
        ns.lease(keys)
    assert store.stats()["lookups"]["leases_in_use"] == 0


def test_the_other_verbs_meet_the_limit_too_and_leave_nothing_leased():
    store = make_store(4, ObedientTier(64 * BLOCK), leases_max=64)
    ns = store.namespace(make_spec())
    keys = put_chain(ns, 2)
    with ns.lease(keys) as lease:
        for call in (lambda: ns.get(keys), lambda: ns.reserve(keys), lambda: ns.put(keys, payload(keys))):
            with pytest.raises(LimitExceeded, match="leases_max=64"):
                call()
        assert ns.match(keys).num_blocks == 2 and ns.explain(keys) == ["host"] * 2
        assert lease.num_blocks == 2
    assert ns.get(keys)[0] == 2


def test_repr_says_what_is_held(ns):
    keys = put_chain(ns, 2)
    with ns.lease(keys) as lease:
        assert repr(lease) == "<Lease 2 blocks, 0 pending of 2 keys>"
    assert repr(ns) == "<Namespace 'tiny': 2 blocks>"
