"""Devices that fail while their tier leaves; namespaces, quotas and indexes that it finds when it comes back."""

from __future__ import annotations

import shutil
import time
from contextlib import ExitStack

import numpy as np
import pytest
from attachment_helpers import cold, config, is_right, open_files
from disk_helpers import wait_until
from faulty_disk import EIO, FaultyDisk
from store_helpers import (
    BLOCK,
    MIB,
    chain,
    make_spec,
    put_chain,
)

import kvstore
from kvstore import attachment as attachment_module
from kvstore.errors import NamespaceMismatch, TierRefused, Unavailable
from kvstore.tiers import disk as disk_module
from kvstore.tiers.disk import DiskTier


@pytest.fixture
def store(tmp_path):
    with kvstore.open(config(tmp_path / "disk")) as store:
        yield store
        if store.is_open:
            store.check()


# ---- devices that fail


@pytest.fixture
def disk(tmp_path):
    disk = FaultyDisk(tmp_path)
    disk.store.attachment.reopen = lambda: DiskTier(tmp_path, capacity_nbytes=16 * MIB)
    yield disk
    disk.close()


def test_without_force_a_device_that_refuses_stays_attached(disk):
    disk.engine.write_errno = EIO
    keys = disk.put(4, 0)
    disk.rests()
    with pytest.raises(TierRefused, match=r"Input/output error.*stays attached"):
        disk.store.detach_tier("disk", 100)
    assert disk.store.far is disk.tier
    disk.engine.write_errno = 0
    disk.recovers()
    assert disk.store.flush(60_000) and disk.is_right(keys)
    assert disk.store.detach_tier("disk").released


def test_with_force_a_device_that_refuses_leaves_and_memory_keeps_its_blocks(disk, tmp_path):
    disk.engine.write_errno = EIO
    keys = disk.put(4, 0)
    disk.rests()
    assert disk.store.detach_tier("disk", 100, force=True) == (True, 4)
    assert disk.is_right(keys) and open_files(tmp_path) == []
    disk.store.attach_tier("disk")
    assert disk.store.flush(60_000)  # they were queued anew
    assert disk.store.index.counts()["far"] == 4


def test_a_silent_device_is_left_only_by_force_and_its_memory_stays_in_place(disk, tmp_path, monkeypatch):
    monkeypatch.setattr(disk_module, "CLOSE_WAIT_S", 0.05)
    far = disk.cold(1)
    disk.engine.gate.clear()
    prefetch = disk.ns.prefetch(far)
    dirty = disk.put(4, 2)
    wait_until(lambda: disk.engine.num_held == 2)
    with pytest.raises(TierRefused, match="before the deadline"):
        disk.store.detach_tier("disk", 20)
    assert disk.store.far is disk.tier and not prefetch.done() and disk.ns.match(far).num_blocks == 4
    assert disk.store.detach_tier("disk", 20, force=True).released is False
    assert prefetch.done() and disk.ns.match(far).num_blocks == 0
    assert disk.store.mover.num_views == 8  # nothing else may use that memory yet
    for prompt in range(10, 40):
        disk.serves_from_memory(prompt)
    assert open_files(tmp_path)
    with pytest.raises(Unavailable, match="in use"):
        disk.store.attach_tier("disk")
    disk.engine.answer()
    wait_until(lambda: disk.store.detach_tier("disk").released)
    wait_until(lambda: disk.store.mover.num_views == 0)
    assert open_files(tmp_path) == []
    disk.store.check()
    disk.store.attach_tier("disk")
    assert disk.is_right(far) and disk.is_right(dirty)
    disk.store.check()


def test_a_block_that_is_removed_while_it_is_written_does_not_come_back(disk, monkeypatch):
    """The device answers while the tier closes: the write gets its row when nobody settles it any more."""
    disk.engine.gate.clear()
    keys = disk.put(4, 2)
    wait_until(lambda: disk.engine.num_held == 1)
    disk.ns.remove(keys[2:])
    stop = disk.engine.stop
    monkeypatch.setattr(disk.engine, "stop", lambda: (disk.engine.answer(), time.sleep(0.2), stop()))
    assert disk.store.detach_tier("disk", 20, force=True).released
    with disk.store.lock:
        disk.store.mover.put.evict(disk.store.near_capacity, False, 0)
        disk.store.mover.step()
        disk.store.mover.put.evict(disk.store.near_capacity, False, 0)
    disk.store.attach_tier("disk")
    assert disk.ns.match(keys).by_tier == {"disk": 2} and disk.is_right(keys[:2])
    disk.store.check()


def test_what_was_removed_before_a_silent_device_left_does_not_come_back(disk, monkeypatch):
    monkeypatch.setattr(disk_module, "CLOSE_WAIT_S", 0.05)
    other = disk.store.namespace(make_spec(model="other"))
    kept = put_chain(other, 2)
    keys = disk.cold(1)
    disk.commit_errno = EIO
    disk.ns.remove(keys[2:])
    disk.store.detach_tier("disk", 20, force=True)
    disk.commit_errno = 0
    disk.store.attach_tier("disk")
    assert disk.ns.match(keys).num_blocks == 0  # no one knows which of its blocks were not forgotten
    assert other.match(kept).num_blocks == 2


# ---- namespaces and quotas


def test_namespaces_made_meanwhile_get_numbers_of_their_own_and_are_remembered(store):
    one = store.namespace(make_spec(), quota_nbytes=8 * BLOCK)
    keys = cold(store, one, 2, 1)
    store.detach_tier("disk")
    two = store.namespace(make_spec(model="two"), quota_nbytes=4 * BLOCK)
    store.namespace(make_spec(), quota_nbytes=6 * BLOCK)
    others = put_chain(two, 2)
    store.attach_tier("disk")
    assert store.flush(60_000)
    path = store.far._folder.path
    store.close()
    with kvstore.open(config(path)) as again:
        one, two = again.namespace(make_spec()), again.namespace(make_spec(model="two"))
        assert is_right(one, keys) and is_right(two, others)
        quotas = {name: row["quota_nbytes"] for name, row in again.stats()["namespaces"].items()}
        assert quotas == {"tiny": 6 * BLOCK, "two": 4 * BLOCK}


def test_an_empty_drive_learns_everything(store, tmp_path):
    ns = store.namespace(make_spec(), quota_nbytes=16 * BLOCK)
    far, near = cold(store, ns, 4, 1), put_chain(ns, 3, 2)
    store.detach_tier("disk")
    (tmp_path / "disk").rename(tmp_path / "old")
    assert store.attach_tier("disk") == (0, 0)
    assert ns.match(far).num_blocks == 0 and is_right(ns, near)
    assert store.flush(60_000)
    store.close()
    with kvstore.open(config(tmp_path / "disk")) as again:
        ns = again.namespace(make_spec())
        assert is_right(ns, near) and again.quotas.quota_nbytes(ns.number) == 16 * BLOCK


def test_a_drive_of_another_store_is_refused_and_changes_nothing(store, tmp_path):
    ns = store.namespace(make_spec())
    near = put_chain(ns, 3, 2)
    store.detach_tier("disk")
    (tmp_path / "disk").rename(tmp_path / "old")
    with kvstore.open(config(tmp_path / "disk")) as other:
        put_chain(other.namespace(make_spec(model="other")), 2)
    with pytest.raises(TierRefused, match=r"namespace 1 .* another one"):
        store.attach_tier("disk")
    assert open_files(tmp_path) == [] and is_right(ns, near) and store.far is None
    shutil.rmtree(tmp_path / "disk")
    (tmp_path / "old").rename(tmp_path / "disk")
    assert store.attach_tier("disk") == (3, 0)


def test_a_drive_that_another_store_used_meanwhile_brings_its_namespaces(store, tmp_path):
    ns = store.namespace(make_spec())
    keys = cold(store, ns, 2, 1)
    store.detach_tier("disk")
    with kvstore.open(config(tmp_path / "disk")) as other:
        others = put_chain(other.namespace(make_spec(model="new"), quota_nbytes=4 * BLOCK), 3)
    store.attach_tier("disk")
    new = store.namespace(make_spec(model="new"))
    assert is_right(ns, keys) and is_right(new, others)
    assert store.quotas.quota_nbytes(new.number) == 4 * BLOCK


def test_one_name_under_two_numbers_is_refused(store, tmp_path):
    store.namespace(make_spec(model="first"))
    store.detach_tier("disk")
    with kvstore.open(config(tmp_path / "disk")) as other:
        put_chain(other.namespace(make_spec(model="second")), 3)
    store.namespace(make_spec(model="third"))  # takes the number that `second` has there
    with pytest.raises(TierRefused, match="another one"):
        store.attach_tier("disk")


def test_a_name_that_has_another_number_there_is_refused(store, tmp_path):
    ns = store.namespace(make_spec())
    store.detach_tier("disk")
    (tmp_path / "disk").rename(tmp_path / "old")
    with kvstore.open(config(tmp_path / "disk")) as other:
        other.far.remember_namespace(7, ns.spec.text())
        assert other.flush(60_000)
    with pytest.raises(TierRefused, match="namespace 7"):
        store.attach_tier("disk")


def test_a_namespace_whose_blocks_are_away_is_not_empty(tmp_path):
    with kvstore.open(config(tmp_path)) as store:
        keys = put_chain(store.namespace(make_spec()), 3)
    with kvstore.open(config(tmp_path)) as store:  # nobody has opened it in this run
        store.detach_tier("disk")
        with pytest.raises(NamespaceMismatch, match="revision"):
            store.namespace(make_spec(revision="v2"))
        store.attach_tier("disk")
        assert is_right(store.namespace(make_spec()), keys)


def test_a_folder_that_cannot_be_used_leaves_the_tier_detached(store, tmp_path):
    ns = store.namespace(make_spec())
    keys = cold(store, ns, 2, 1)
    store.detach_tier("disk")
    with ExitStack() as stack:
        stack.enter_context(kvstore.open(config(tmp_path / "disk")))
        with pytest.raises(Unavailable, match="in use"):
            store.attach_tier("disk")
    assert store.attach_tier("disk").blocks == 2 and is_right(ns, keys)


def test_an_index_that_is_full_takes_what_fits(tmp_path):
    with kvstore.open(config(tmp_path, index={"entries_max": 8})) as store:
        ns = store.namespace(make_spec())
        cold(store, ns, 6, 1)
        store.detach_tier("disk")
        near = put_chain(ns, 5, 2)
        assert store.attach_tier("disk") == (3, 3)
        assert ns.match(chain(ns, 6, 1)).num_blocks == 3 and is_right(ns, near)
        assert is_right(ns, chain(ns, 3, 1))
        store.check()


def test_blocks_of_a_prompt_come_back_in_any_size_of_piece(store, monkeypatch):
    ns, other = store.namespace(make_spec()), store.namespace(make_spec(model="small", block_nbytes=5000))
    keys = [cold(store, ns, 7, 1), cold(store, ns, 3, 2), cold(store, other, 9, 1)]
    for size in (1, 2, 3, 1000):
        monkeypatch.setattr(attachment_module, "PIECE_BLOCKS", size)
        monkeypatch.setattr(attachment_module, "LOOK_MAX", size)
        store.detach_tier("disk")
        assert store.index.counts()["entries"] == 0
        assert store.attach_tier("disk") == (19, 0)
        store.check()
    assert is_right(ns, keys[0]) and is_right(ns, keys[1]) and is_right(other, keys[2])
    assert np.all(keys[0] == chain(ns, 7, 1))
