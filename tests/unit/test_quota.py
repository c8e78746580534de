"""Quotas of namespaces: the coldest of the namespace leave first, leaf first, and nobody else's."""

import numpy as np
import pytest
from store_helpers import BLOCK, FakeClock, ObedientTier, chain, make_spec, make_store, payload, put_chain, settle

import kvstore
from kvstore import Config
from kvstore._core import index as core
from kvstore.errors import InvalidRequest
from kvstore.explain import REASONS

OVER = REASONS[core.OVER_QUOTA]


def stored(ns, keys):
    return ns.match(keys).num_blocks


@pytest.fixture(params=["memory only", "written back", "far only"])
def store(request):
    """A store in which blocks end up in different tiers."""
    far = None if request.param == "memory only" else ObedientTier(256 * BLOCK)
    store = make_store(12 if request.param == "far only" else 64, far, clock=FakeClock())
    yield store
    store.close()


def fill_with_others(store):
    """In the small store everything that was there before is far only afterwards."""
    settle(store)
    put_chain(store.namespace(make_spec(model="other")), 12)
    settle(store)


def test_the_coldest_of_the_namespace_leaves_first(store):
    ns = store.namespace(make_spec(), quota_nbytes=8 * BLOCK)
    first, second = put_chain(ns, 4), put_chain(ns, 4, prompt=1)
    fill_with_others(store)
    ns.lease(first).release()  # hotter than the second now
    third = put_chain(ns, 3, prompt=2)
    assert [stored(ns, keys) for keys in (first, second, third)] == [4, 1, 3]
    assert ns.explain(second)[1:] == [f"{OVER} 0 s ago (quota_nbytes={8 * BLOCK}, of which {8 * BLOCK} are used)"] * 3
    assert stored(store.namespace(make_spec(model="other")), chain(store.namespace(make_spec(model="other")), 12)) == 12
    assert store.stats()["namespaces"]["tiny"] == {
        "tenant": "", "blocks": 8, "block_nbytes": BLOCK, "used_nbytes": 8 * BLOCK, "quota_nbytes": 8 * BLOCK,
        "prefill_tokens_per_s": 0.0,
    }  # fmt: skip
    settle(store)
    store.check()


def test_a_chain_is_emptied_from_its_end(store):
    ns = store.namespace(make_spec(), quota_nbytes=8 * BLOCK)
    first = put_chain(ns, 8)
    fill_with_others(store)
    for prompt in range(1, 8):
        put_chain(ns, 1, prompt)
        assert stored(ns, first) == 8 - prompt
        settle(store)
        store.check()


def test_what_does_not_fit_at_all_is_rejected_with_quota_and_use(store):
    ns = store.namespace(make_spec(), quota_nbytes=3 * BLOCK + 5)
    keys = chain(ns, 5)
    result = ns.put(keys, payload(keys))
    assert result.stored == 3 and sorted(result.rejected) == [3, 4]
    for reason in result.rejected.values():
        assert f"quota_nbytes={3 * BLOCK + 5}, of which {3 * BLOCK} are used" in reason
    fill_with_others(store)
    again = ns.put(keys, payload(keys))  # extending what is full of itself: the prefix does not make room for its tail
    assert (again.stored, again.present, sorted(again.rejected)) == (0, 3, [3, 4])


def test_leased_blocks_stay_and_the_rest_is_rejected(store):
    ns = store.namespace(make_spec(), quota_nbytes=6 * BLOCK)
    first = put_chain(ns, 4)
    put_chain(ns, 2, prompt=1)
    fill_with_others(store)
    with ns.lease(first) as lease:
        assert lease.num_blocks == 4
        keys = chain(ns, 4, prompt=2)
        result = ns.put(keys, payload(keys))
        assert (result.stored, sorted(result.rejected)) == (2, [2, 3])
        assert stored(ns, first) == 4
    settle(store)
    store.check()


def test_reservations_count_and_are_not_evicted(store):
    ns = store.namespace(make_spec(), quota_nbytes=4 * BLOCK)
    with ns.reserve(chain(ns, 3)) as room:
        assert len(room.wanted) == 3
        other = ns.reserve(chain(ns, 3, prompt=1))
        assert len(other.wanted) == 1 and len(other.rejected) == 2
        other.release()
    assert store.stats()["namespaces"]["tiny"]["used_nbytes"] == 0


def test_a_quota_can_be_changed_and_lifted(store):
    ns = store.namespace(make_spec())
    put_chain(ns, 10)
    store.namespace(make_spec(), quota_nbytes=4 * BLOCK)
    assert store.stats()["namespaces"]["tiny"]["blocks"] == 10  # until the next put
    put_chain(ns, 1, prompt=1)
    assert store.stats()["namespaces"]["tiny"]["blocks"] == 4
    store.namespace(make_spec())  # leaves it
    assert store.stats()["namespaces"]["tiny"]["quota_nbytes"] == 4 * BLOCK
    store.namespace(make_spec(), quota_nbytes=0)
    put_chain(ns, 8, prompt=2)
    assert store.stats()["namespaces"]["tiny"]["blocks"] == 12


def test_slots_count_not_bytes():
    store = make_store(64, clock=FakeClock())
    ns = store.namespace(make_spec(block_nbytes=5000), quota_nbytes=3 * 8192)
    keys = chain(ns, 4)
    assert ns.put(keys, payload(keys, 5000)).stored == 3
    store.close()


def test_large_quotas_are_made_room_in_ahead():
    """As memory is: at most a 1/1024 of it and a batch, so that the orders are not walked for every put."""
    store = make_store(4096, clock=FakeClock(), block_nbytes=4096, entries_max=8192)
    ns = store.namespace(make_spec(block_nbytes=4096), quota_nbytes=2048 * 4096)
    for prompt in range(2049):
        keys = chain(ns, 1, prompt)
        assert ns.put(keys, payload(keys, 4096)).stored == 1
    assert store.stats()["namespaces"]["tiny"]["blocks"] == 2048 + 1 - 1 - 2
    store.close()


@pytest.mark.parametrize("quota", [-1, True, 1.5, "8 GiB", BLOCK - 1, 1 << 61])
def test_a_wrong_quota_changes_nothing(quota):
    store = make_store(8)
    with pytest.raises(InvalidRequest, match="quota_nbytes"):
        store.namespace(make_spec(), quota_nbytes=quota)
    assert store.stats()["namespaces"] == {}
    store.close()


def test_the_walk_is_bounded_and_goes_on_where_it_ended():
    """Blocks of others lie at the cold end, more than one call looks at."""
    others, mine = 66_000, 10
    index = core.Index(70_000)
    index.set_namespace(1, 4096, 1)
    index.set_namespace(2, 4096, 1)
    keys = np.zeros((others + mine, 32), dtype=np.uint8)
    keys[:, :4] = np.arange(1, others + mine + 1, dtype="<u4")[:, None].view(np.uint8)
    parents = np.zeros_like(keys)
    namespaces = np.where(np.arange(others + mine) < others, 1, 2).astype(np.uint32)
    places = np.arange(others + mine, dtype=np.uint32)
    ids = index.adopt(keys, parents, namespaces, places, np.zeros(others + mine, dtype=np.uint64))
    index.reorder_far(ids)
    assert index.evict_namespace(2, 4, 0) == (0, [])
    gone, groups = index.evict_namespace(2, 4, 0)
    assert gone == 4 and [(tier, ns, len(places)) for tier, ns, places in groups] == [(1, 2, 4)]
    assert (index.find(keys[others : others + 4]) == core.NONE).all()  # the coldest of them
    assert index.num_blocks(1) == others and index.check() == 0


def test_blocks_that_were_in_the_way_before_are_looked_at_again():
    """The walk for the next put begins where this one ended, and comes back to what it passed over."""
    store = make_store(64, clock=FakeClock())
    ns = store.namespace(make_spec(), quota_nbytes=3 * BLOCK)
    first, second, third = (put_chain(ns, 1, prompt) for prompt in range(3))
    other = store.namespace(make_spec(model="other"))
    put_chain(other, 1)
    with store.lock:  # the first is being moved: nobody may take it
        marked = store.index.find(first)
        assert store.index.writeback_mark(marked, store.index.words(marked)).all()
    put_chain(ns, 1, 3)
    assert [stored(ns, keys) for keys in (first, second, third)] == [1, 0, 1]
    with store.lock:
        none = np.zeros(1, np.uint32)
        store.index.writeback_unmark(marked, none, none.astype(np.uint64), none.astype(np.uint8))
    put_chain(ns, 3, 4)
    assert [stored(ns, keys) for keys in (first, third, chain(ns, 3, 4))] == [0, 0, 3]
    store.close()


def test_a_quota_holds_over_a_real_disk_and_over_a_restart(tmp_path):
    config = Config(host={"nbytes": "1 MiB", "prefault": "off"}, disk={"nbytes": "16 MiB", "path": str(tmp_path)})
    with kvstore.open(config) as store:
        ns = store.namespace(make_spec(), quota_nbytes=40 * BLOCK)
        for prompt in range(30):
            keys = chain(ns, 4, prompt)
            assert ns.put(keys, payload(keys), deadline_ms=60_000).stored == 4
            assert store.stats()["namespaces"]["tiny"]["blocks"] <= 40
        assert store.flush()
        store.check()
    with kvstore.open(config) as store:
        assert store.stats()["namespaces"]["tiny"]["quota_nbytes"] == 40 * BLOCK
        ns = store.namespace(make_spec())
        for prompt in range(30, 45):
            keys = chain(ns, 4, prompt)
            assert ns.put(keys, payload(keys), deadline_ms=60_000).stored == 4
            assert store.stats()["namespaces"]["tiny"]["blocks"] <= 40
        store.namespace(make_spec(), quota_nbytes=0)
    with kvstore.open(config) as store:
        assert store.stats()["namespaces"]["tiny"]["quota_nbytes"] == 0


def test_a_tenant_has_one_quota_for_all_its_namespaces():
    store = make_store(64)
    first, second = (store.namespace(make_spec(tenant="acme", salt=salt)) for salt in ("a", "b"))
    other = store.namespace(make_spec(tenant="beta", salt="a"))
    store.limit_tenant("acme", 10 * BLOCK)
    kept = put_chain(other, 12)
    put_chain(first, 6, 1)
    put_chain(second, 4, 2)
    newest = put_chain(second, 3, 3)  # of its own coldest first
    assert [ns_blocks(store, ns) for ns in (first, second)] == [6, 4]
    put_chain(second, 9, 4)  # and then of the tenant's others
    assert [ns_blocks(store, ns) for ns in (first, second)] == [1, 9]
    assert stored(second, newest) == 0 and stored(other, kept) == 12
    keys = chain(second, 12, 5)
    result = second.put(keys, payload(keys))
    assert (result.stored, set(result.rejected)) == (10, {10, 11})
    assert "tenant 'acme': quota_nbytes=655360, of which 655360 are used" in result.rejected[10]
    store.limit_tenant("acme", 0)
    assert put_chain(first, 12, 6) is not None
    store.check()
    store.close()


def test_both_quotas_hold():
    store = make_store(64)
    small, large = (store.namespace(make_spec(tenant="acme", salt=salt)) for salt in ("a", "b"))
    store.namespace(make_spec(tenant="acme", salt="a"), quota_nbytes=4 * BLOCK)
    store.limit_tenant("acme", 8 * BLOCK)
    for prompt in range(4):
        put_chain(small, 3, prompt)
        put_chain(large, 3, prompt)
        assert ns_blocks(store, small) <= 4 and ns_blocks(store, small) + ns_blocks(store, large) <= 8
    store.close()


def test_room_for_what_extends_a_stored_prefix_needs_that_leased_once():
    store = make_store(64, leases_max=64)  # one group of leases
    ns = store.namespace(make_spec(), quota_nbytes=8 * BLOCK)
    old = put_chain(ns, 3, prompt=1)
    put_chain(ns, 5)
    longer = chain(ns, 8)
    result = ns.put(longer, payload(longer))
    assert (result.stored, result.present) == (3, 5) and stored(ns, old) == 0
    assert store.leases.used == 0
    store.close()


def ns_blocks(store, ns):
    return store.index.num_blocks(ns.number)
