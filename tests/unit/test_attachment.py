"""A disk tier that leaves its store and comes back to it: what stays, what is missed, what must not return."""

from __future__ import annotations

import shutil
import time

import pytest
from attachment_helpers import cold, config, is_right, open_files
from disk_helpers import wait_until
from store_helpers import (
    BLOCK,
    SECOND_US,
    FakeClock,
    ObedientTier,
    chain,
    make_spec,
    make_store,
    payload,
    put_chain,
    settle,
)

import kvstore
from kvstore import attachment as attachment_module
from kvstore import removals as removals_module
from kvstore._core import index as core
from kvstore.errors import InvalidRequest, TierRefused, Unavailable
from kvstore.tiers.disk import DiskTier


@pytest.fixture
def store(tmp_path):
    with kvstore.open(config(tmp_path / "disk")) as store:
        yield store
        if store.is_open:
            store.check()


# ---- detach


def test_near_blocks_stay_and_far_ones_are_missed_until_the_tier_is_back(store, tmp_path):
    ns = store.namespace(make_spec())
    far, near = cold(store, ns, 4, 1), put_chain(ns, 3, 2)
    assert open_files(tmp_path)
    assert store.detach_tier("disk") == (True, 0)
    assert open_files(tmp_path) == []
    assert ns.match(far).num_blocks == 0 and ns.match(near).by_tier == {"host": 3}
    assert is_right(ns, near)
    assert ns.explain(far)[0].endswith("; the disk tier is detached")
    store.check()
    assert store.attach_tier("disk") == (7, 0)
    assert ns.match(far).by_tier == {"disk": 4} and ns.match(near).by_tier == {"host": 3}
    assert is_right(ns, far) and is_right(ns, near)
    assert store.index.counts()["far"] == 7
    written = store.stats()["mover"]["written_blocks"]
    assert store.flush(60_000) and store.stats()["mover"]["written_blocks"] == written  # nothing was dirty


def test_a_detach_and_an_attach_may_be_repeated(store):
    assert store.detach_tier("disk").released and store.detach_tier("disk") == (True, 0)
    put_chain(store.namespace(make_spec()), 2)
    assert store.attach_tier("disk") and store.flush(60_000) and store.attach_tier("disk") == (2, 0)


def test_while_it_is_detached_the_store_is_one_of_memory_that_promises_nothing(store):
    ns = store.namespace(make_spec())
    store.detach_tier("disk")
    keys = chain(ns, 40)  # memory has room for 32
    assert ns.put(keys[:20], payload(keys[:20]), durable=True).durable is False
    assert not store.flush(10) and not ns.make_durable(keys[:1], 10)
    assert ns.put(chain(ns, 20, 5), payload(chain(ns, 20, 5)), deadline_ms=60_000).stored == 20  # nothing to wait for
    stats = store.stats()
    disk = stats["tiers"]["disk"]
    assert (disk["attached"], disk["healthy"], disk["reason"], disk["blocks"]) == (False, False, "detached", 0)
    assert stats["mover"]["queued_blocks"] == 0 and stats["mover"]["skipped_writes"] == 0
    assert store.attach_tier("disk") and store.stats()["tiers"]["disk"]["attached"] is True
    assert store.flush(60_000) and ns.make_durable(chain(ns, 20, 5), 60_000)


def test_what_was_dirty_is_in_the_files(store, tmp_path):
    ns = store.namespace(make_spec())
    keys = put_chain(ns, 6)
    store.detach_tier("disk")
    shutil.copytree(tmp_path / "disk", tmp_path / "copy")
    with kvstore.open(config(tmp_path / "copy")) as other:
        assert is_right(other.namespace(make_spec()), keys)


def test_a_near_block_on_top_of_a_far_one_leaves_with_it_and_comes_back(store):
    ns = store.namespace(make_spec())
    keys = chain(ns, 6)
    ns.put(keys[:3], payload(keys[:3]))
    assert store.flush(60_000)
    with store.lock:
        store.mover.put.evict(store.near_capacity, True, 0)
    ns.put(keys, payload(keys[3:]), start=3)
    assert ns.match(keys).by_tier == {"disk": 3, "host": 3}
    store.detach_tier("disk")
    assert ns.match(keys).num_blocks == 0
    store.check()
    assert store.attach_tier("disk") == (6, 0)
    assert is_right(ns, keys)


def test_a_lease_on_far_blocks_does_not_hold_the_tier(store, tmp_path):
    ns = store.namespace(make_spec())
    keys = cold(store, ns, 4, 1)
    with store.lock:  # leased, and nothing of it on its way
        grip = ns.lease_again(keys, None)
    assert store.detach_tier("disk").released and open_files(tmp_path) == []
    assert ns.match(keys).num_blocks == 0 and store.index.num_removed == 4
    store.attach_tier("disk")
    assert ns.match(keys).num_blocks == 4
    grip.release()
    assert is_right(ns, keys)
    wait_until(lambda: store.stats()["index"]["removed_pending"] == 0)


def test_a_reservation_on_top_of_a_far_block_is_lost(store):
    ns = store.namespace(make_spec())
    keys = cold(store, ns, 2, 1)
    longer = chain(ns, 4, 1)
    with ns.reserve(longer) as room:
        assert list(room.wanted) == [2, 3]
        store.detach_tier("disk")
        room.fill(payload(longer[2:]))
        with pytest.raises(kvstore.errors.LeaseExpired):
            room.commit()
    store.attach_tier("disk")
    assert is_right(ns, keys)


def test_a_leased_block_that_is_removed_while_the_tier_leaves_is_forgotten(store, monkeypatch):
    ns = store.namespace(make_spec())
    keys = cold(store, ns, 4, 1)
    with store.lock:
        grip = ns.lease_again(keys, None)
    real = attachment_module.Attachment._evict_far

    def evict_far(attachment):
        assert ns.remove(keys[3:]) == 1
        real(attachment)

    monkeypatch.setattr(attachment_module.Attachment, "_evict_far", evict_far)
    assert store.detach_tier("disk").released
    grip.release()
    store.attach_tier("disk")
    assert ns.match(keys).num_blocks == 3 and is_right(ns, keys[:3])


def test_a_scrub_that_is_left_behind_keeps_its_memory():
    far = ObedientTier(64 * BLOCK)
    clock = FakeClock()
    store = make_store(8, far, clock=clock, scrub_nbytes_per_s=1 << 30)
    put_chain(store.namespace(make_spec()), 4)
    settle(store)
    far.holding = True
    clock.us += 60 * SECOND_US
    scrub = store.mover._scrub
    for _ in range(4):
        with store.lock:
            store.mover.step()
    reading, scratch = scrub.reading, scrub._scratch
    assert reading is not None and not reading.done()
    scrub.set_far(far)
    far.let_go()
    clock.us += SECOND_US
    for _ in range(4):
        with store.lock:
            store.mover.step()
    assert scrub.scrubbed_blocks == 4 and scrub._scratch is not scratch and reading.done()


@pytest.mark.parametrize("tier", ["", "host", "remote", "Disk"])
def test_only_the_disk_tier_can_be_detached(store, tier):
    for verb in (store.detach_tier, store.attach_tier):
        with pytest.raises(InvalidRequest, match="disk"):
            verb(tier)


def test_a_tier_that_does_not_outlive_the_store_cannot_be_detached():
    with pytest.raises(InvalidRequest, match="memory only"):
        make_store().detach_tier("disk")
    store = make_store(far=ObedientTier(64 * BLOCK))
    with pytest.raises(TierRefused, match="outlive"):
        store.detach_tier("far")


@pytest.mark.parametrize("deadline_ms", [-1, float("nan"), "soon"])
def test_a_wrong_deadline_is_refused(store, deadline_ms):
    with pytest.raises(InvalidRequest, match="deadline_ms"):
        store.detach_tier("disk", deadline_ms)


def test_only_one_at_a_time_and_only_in_an_open_store(store):
    with store.attachment._alone("disk"), pytest.raises(TierRefused, match="already"):
        store.detach_tier("disk")
    store.detach_tier("disk")
    store.close()
    with pytest.raises(Unavailable):
        store.attach_tier("disk")


def test_a_detached_store_closes_and_the_next_one_has_all(tmp_path):
    with kvstore.open(config(tmp_path)) as store:
        keys = put_chain(store.namespace(make_spec()), 5)
        store.detach_tier("disk")
    with kvstore.open(config(tmp_path)) as store:
        assert is_right(store.namespace(make_spec()), keys)


# ---- attach


def test_removed_blocks_and_what_extends_them_do_not_come_back(store):
    ns = store.namespace(make_spec())
    one, two, three = (cold(store, ns, 4, prompt) for prompt in (1, 2, 3))
    store.detach_tier("disk")
    assert ns.remove(one[2:3]) == 0  # it was not found, and yet
    ns.remove(two[:1])
    put_chain(ns, 2, 2)  # here again, but what extended it was removed too
    assert store.attach_tier("disk").dropped == 6
    assert [ns.match(keys).num_blocks for keys in (one, two, three)] == [2, 2, 4]
    assert is_right(ns, one[:2]) and is_right(ns, two[:2]) and is_right(ns, three)
    store.check()
    assert store.flush(60_000)
    path = store.far._folder.path
    store.close()
    with kvstore.open(config(path)) as again:
        ns = again.namespace(make_spec())
        assert [ns.match(keys).num_blocks for keys in (one, two, three)] == [2, 2, 4]


def test_a_cleared_namespace_does_not_come_back(store):
    ns, other = store.namespace(make_spec()), store.namespace(make_spec(model="other"))
    keys, others = cold(store, ns, 4, 1), cold(store, other, 4, 1)
    store.detach_tier("disk")
    ns.clear()
    fresh = put_chain(ns, 2, 7)
    assert store.attach_tier("disk") == (4, 4)
    assert (ns.match(keys).num_blocks, ns.match(fresh).num_blocks, other.match(others).num_blocks) == (0, 2, 4)


def test_over_the_bound_of_removals_a_whole_namespace_stays_away(store, monkeypatch):
    monkeypatch.setattr(removals_module, "KEYS_MAX", 8)
    ns, other = store.namespace(make_spec()), store.namespace(make_spec(model="other"))
    keys, others = cold(store, ns, 4, 1), cold(store, other, 4, 1)
    store.detach_tier("disk")
    other.remove(others[3:])
    for prompt in range(10, 19):
        ns.remove(chain(ns, 1, prompt))
    store.attach_tier("disk")
    assert (ns.match(keys).num_blocks, other.match(others).num_blocks) == (0, 3)


def test_a_removal_is_remembered_over_an_attach_that_failed(store, monkeypatch):
    ns = store.namespace(make_spec())
    keys = cold(store, ns, 4, 1)
    store.detach_tier("disk")
    ns.remove(keys[1:2])
    with monkeypatch.context() as patch:
        patch.setattr(DiskTier, "adopt", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            store.attach_tier("disk")
    with monkeypatch.context() as patch:
        patch.setattr(attachment_module.Attachment, "_unwritten", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            store.attach_tier("disk")
    assert store.far is None and store.stats()["tiers"]["disk"]["reason"] == "detached"
    store.check()
    store.attach_tier("disk")
    assert ns.match(keys).num_blocks == 1 and is_right(ns, keys[:1])


def test_removals_while_it_attaches_count(store, monkeypatch):
    """Others have the lock between two pieces: blocks go that are in already, and such as are still to come."""
    monkeypatch.setattr(attachment_module, "PIECE_BLOCKS", 1)
    ns = store.namespace(make_spec())
    one, two = cold(store, ns, 4, 1), cold(store, ns, 4, 2)
    store.detach_tier("disk")
    real, num = attachment_module.leave.rejoin, 0

    def rejoin(*arguments):
        nonlocal num
        num += 1
        if num == 3:  # the first blocks of both are in
            ns.remove(one[:1])
            ns.put(one, payload(one))
            ns.remove(two[2:3])
        return real(*arguments)

    monkeypatch.setattr(attachment_module.leave, "rejoin", rejoin)
    store.attach_tier("disk")
    assert ns.match(one).by_tier == {"host": 4} and ns.match(two).num_blocks == 2
    assert is_right(ns, one) and is_right(ns, two[:2])
    store.check()


def test_a_reservation_of_a_block_that_comes_back_is_undone(store):
    ns = store.namespace(make_spec())
    keys = cold(store, ns, 4, 1)
    store.detach_tier("disk")
    with ns.reserve(keys[:2]) as room:
        room.fill(payload(keys[:2]))
        store.attach_tier("disk")
        assert ns.match(keys).by_tier == {"disk": 4}  # what was durable wins
        with pytest.raises(kvstore.errors.LeaseExpired):
            room.commit()
    assert is_right(ns, keys)
    store.check()


def test_blocks_put_meanwhile_get_their_far_copy_back_or_are_written(store):
    ns = store.namespace(make_spec())
    keys = cold(store, ns, 4, 1)
    store.detach_tier("disk")
    put_chain(ns, 6, 1)  # the first four are on disk
    before = store.stats()["mover"]["written_blocks"]
    assert store.attach_tier("disk") == (4, 0)
    assert store.flush(60_000)
    assert store.stats()["mover"]["written_blocks"] == before + 2
    assert (store.index.describe(store.index.find(chain(ns, 6, 1)))[1] != core.NONE).all()
    with store.lock:
        store.mover.put.evict(store.near_capacity, True, 0)
    assert is_right(ns, chain(ns, 6, 1)) and is_right(ns, keys)


def test_no_more_is_queued_than_the_queue_takes_and_parents_go_first(tmp_path):
    with kvstore.open(config(tmp_path, mover={"writeback_queue_blocks_max": 10})) as store:
        ns = store.namespace(make_spec())
        store.detach_tier("disk")
        chains = [put_chain(ns, 8, prompt) for prompt in range(3)]
        store.attach_tier("disk")
        assert store.stats()["mover"]["skipped_writes"] == 14
        assert store.flush(60_000)
        far = [store.index.describe(store.index.find(keys))[1] != core.NONE for keys in chains]
        assert sum(int(one.sum()) for one in far) == 10
        assert all(not (one[1:] & ~one[:-1]).any() for one in far), "a child without its parent"


def test_the_order_of_use_survives(store):
    ns = store.namespace(make_spec())
    cold(store, ns, 4, 1)
    time.sleep(1.1)  # the files know seconds
    cold(store, ns, 4, 2)
    store.detach_tier("disk")
    store.attach_tier("disk")
    with store.lock:
        store.mover._evict_far(4 * BLOCK)
    assert [ns.match(chain(ns, 4, prompt)).num_blocks for prompt in (1, 2)] == [0, 4]
    store.check()
