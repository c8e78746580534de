"""kvstore.open: what is there after it, after a restart, after a failure and after close."""

import gc
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from store_helpers import (
    BLOCK,
    MIB,
    SECOND_US,
    FakeClock,
    all_right,
    chain,
    make_spec,
    make_store,
    payload,
    put_chain,
)

import kvstore
from kvstore import Config
from kvstore.clock import SystemClock
from kvstore.errors import NamespaceMismatch, Unavailable
from kvstore.tiers.disk import DiskTier

DISK = {"nbytes": "16 MiB"}  # 16 segments of 1 MiB


def config(path: Path | None = None, **sections):
    disk = {**DISK, "path": str(path)} if path else {"nbytes": 0}
    return Config(**{"host": {"nbytes": "4 MiB", "prefault": "off"}, "disk": disk, **sections})


def disk(path, time):
    return DiskTier(path, capacity_nbytes=16 * MIB, time_s=time.time_s)


def test_an_embedded_store_serves_and_closes(tmp_path):
    with kvstore.open(config(tmp_path)) as store:
        ns = store.namespace(make_spec())
        keys = put_chain(ns, 5)
        num_blocks, out = ns.get(keys)
        assert num_blocks == 5 and (out == payload(keys)).all()
        store.check()
    with pytest.raises(Unavailable, match="closed"):
        ns.match(keys)
    store.close()  # a second time: nothing


def test_open_without_a_configuration_uses_memory_and_a_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    store = kvstore.open()
    stats = store.stats()
    assert stats["tiers"]["host"]["capacity_nbytes"] == 1 << 30
    assert 0 < stats["tiers"]["disk"]["capacity_nbytes"] <= 8 << 30
    assert len(os.listdir(tmp_path)) == 1
    put_chain(store.namespace(make_spec()), 3)
    store.close()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("prefault", ["now", "background", "off"])
def test_memory_can_be_prefaulted_before_while_or_not_at_all(prefault):
    with kvstore.open(config(host={"nbytes": "4 MiB", "prefault": prefault})) as store:
        ns = store.namespace(make_spec())
        assert ns.get(put_chain(ns, 2))[0] == 2
        if prefault == "now":
            assert store.stats()["tiers"]["host"]["prefaulted_nbytes"] >= 4 * MIB


def test_the_folder_brings_everything_back(tmp_path):
    spec, other = make_spec(), make_spec(model="other", block_nbytes=8192)
    with kvstore.open(config(tmp_path)) as store:
        first = put_chain(store.namespace(spec), 6)
        second = put_chain(store.namespace(other), 3)
    with kvstore.open(config(tmp_path)) as store:
        ns = store.namespace(spec)
        assert ns.match(first).by_tier == {"disk": 6}
        assert store.namespace(other).match(second).by_tier == {"disk": 3}
        assert ns.explain(first) == ["disk"] * 6
        num_blocks, out = ns.get(first)
        assert num_blocks == 6 and (out == payload(first)).all()
        with pytest.raises(NamespaceMismatch, match="dtype"):
            store.namespace(make_spec(dtype="float16"))
        store.check()


class CalendarClock(SystemClock):
    """Waits as the machine does, and takes the calendar from a clock that stands still."""

    def __init__(self, calendar):
        self.time_s = calendar.time_s


def test_the_order_of_last_use_survives_a_restart(tmp_path):
    time = FakeClock()
    with make_store(16, disk(tmp_path, time), clock=CalendarClock(time)) as store:
        store.mover.start()
        ns = store.namespace(make_spec())
        old = put_chain(ns, 4, prompt=1)
        assert store.flush()
        time.us += 5 * SECOND_US
        young = put_chain(ns, 4, prompt=2)
    with make_store(16, disk(tmp_path, time), clock=CalendarClock(time)) as store:
        store.mover.start()
        ns = store.namespace(make_spec())
        with store.lock:
            _, freed = store.index.evict_far(4 * BLOCK, 1)
            store.mover.give_back(freed)
        assert (ns.match(old).num_blocks, ns.match(young).num_blocks) == (0, 4)


def test_who_does_not_wait_finds_the_blocks_when_asking_again(tmp_path):
    """A deadline of 0 begins the reading and leaves it to run: were it called off, nobody would ever find them."""
    with kvstore.open(config(tmp_path)) as store:
        ns = store.namespace(make_spec())
        put_chain(ns, 5)
    with kvstore.open(config(tmp_path)) as store:  # all on disk
        ns = store.namespace(make_spec())
        keys = chain(ns, 5)
        with ns.lease(keys, deadline_ms=0) as lease:
            assert (lease.num_blocks, lease.pending) == (0, 5)
        assert ns.prefetch(keys).result(60).by_tier == {"host": 5} or store.stats()["mover"]["reads_under_way"]
        with ns.lease(keys) as lease:
            assert lease.num_blocks == 5 and all_right(keys, lease.views)
        assert store.stats()["mover"]["failed_reads"] == 0


def test_what_was_removed_stays_removed_after_a_restart(tmp_path):
    with kvstore.open(config(tmp_path)) as store:
        ns = store.namespace(make_spec())
        keys = put_chain(ns, 6)
        assert store.flush()
        assert ns.remove(keys[4:]) == 2
    with kvstore.open(config(tmp_path)) as store:
        assert store.namespace(make_spec()).match(keys).num_blocks == 4


@pytest.mark.parametrize("culprit", ["Index", "LeaseTable", "EmbeddedStore", "Mover"])
def test_an_opening_that_fails_leaves_nothing_behind(tmp_path, monkeypatch, culprit):
    def refuse(*_args, **_rest):
        raise Unavailable("no")

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = threading.active_count()
    monkeypatch.setattr(f"kvstore.embedded.{culprit}", refuse)
    with pytest.raises(Unavailable, match="no"):
        kvstore.open(config(disk=DISK))
    assert os.listdir(tmp_path) == []
    assert threading.active_count() == before


def test_close_refuses_while_a_view_lives_and_the_store_goes_on():
    store = kvstore.open(config())
    ns = store.namespace(make_spec())
    keys = put_chain(ns, 3)
    lease = ns.lease(keys)
    views = lease.views
    with pytest.raises(Unavailable, match="3 views"):
        store.close()
    assert all_right(keys, views)
    assert ns.get(keys)[0] == 3
    assert put_chain(ns, 2, prompt=1) is not None
    del views
    lease.release()
    store.close()


def test_close_refuses_while_an_array_made_of_a_view_lives():
    store = kvstore.open(config())
    ns = store.namespace(make_spec())
    keys = put_chain(ns, 2)
    with ns.lease(keys) as lease:
        array = np.asarray(lease.views[1])
    with pytest.raises(Unavailable, match="1 views"):
        store.close()
    assert (array == payload(keys)[1]).all()
    del array
    gc.collect()
    store.close()


def test_close_refuses_views_taken_during_its_flush(tmp_path, monkeypatch):
    store = kvstore.open(config(tmp_path))
    ns = store.namespace(make_spec())
    keys = put_chain(ns, 2)
    taken = []
    flush = store.flush

    def flush_and_take(deadline_ms):
        lease = ns.lease(keys)
        taken.extend([lease, lease.views])
        return flush(deadline_ms)

    monkeypatch.setattr(store, "flush", flush_and_take)
    with pytest.raises(Unavailable, match="2 views"):
        store.close()
    monkeypatch.undo()
    assert all_right(keys, taken[1])
    taken.pop()
    taken.pop().release()
    assert ns.get(keys)[0] == 2
    store.close()


def test_leases_and_rooms_outlive_a_closed_store_without_reaching_into_it():
    """Without views nothing keeps the store open: what is asked of them afterwards must not touch unmapped memory."""
    store = kvstore.open(config())
    ns = store.namespace(make_spec())
    keys = put_chain(ns, 2)
    lease, room = ns.lease(keys), ns.reserve(chain(ns, 2, prompt=9))
    store.close()
    out = np.empty((2, BLOCK), np.uint8)
    for call in (
        lambda: lease.copy_into(out),
        lambda: lease.views,
        lambda: room.views,
        lambda: room.fill(out),
        room.commit,
    ):
        with pytest.raises(Unavailable, match="closed"):
            call()
    lease.release()
    room.release()
    room.release()


def test_every_verb_says_that_the_store_is_closed():
    store = make_store()
    ns = store.namespace(make_spec())
    keys = put_chain(ns, 2)
    store.close()
    blocks = payload(keys)
    for call in (
        lambda: ns.match(keys),
        lambda: ns.lease(keys),
        lambda: ns.get(keys),
        lambda: ns.put(keys, blocks),
        lambda: ns.reserve(keys),
        lambda: ns.prefetch(keys),
        lambda: ns.remove(keys),
        ns.clear,
        lambda: ns.explain(keys),
        lambda: store.namespace(make_spec()),
        store.flush,
        store.stats,
    ):
        with pytest.raises(Unavailable, match="closed"):
            call()
    assert len(ns.keys([1, 2, 3, 4])) == 1  # needs nothing of the store


def test_memory_that_cannot_be_had_names_the_setting_and_what_there_is():
    with pytest.raises(Unavailable, match=r"host.nbytes=16492674416640.* bytes are available"):
        kvstore.open(config(host={"nbytes": "15 TiB"}))
    with pytest.raises(Unavailable, match=r"host.nbytes=17592186044416"):
        kvstore.open(config(host={"nbytes": "16 TiB"}))
