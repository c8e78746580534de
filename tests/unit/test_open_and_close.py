"""Opening that fails leaves nothing behind, and closing leaves nobody waiting."""

import errno
import threading
from concurrent.futures import Future

import numpy as np
import pytest
from disk_helpers import wait_until

import kvstore
from kvstore.errors import Unavailable
from kvstore.tiers.base import ENTRY
from kvstore.tiers.changes import Clean, Put
from kvstore.tiers.disk import DiskTier
from kvstore.tiers.journal import Journal

BLOCK_NBYTES = 65_536


def refuse_sync(segment):
    raise OSError(errno.EIO, "Input/output error")


def config_for(path):
    return kvstore.Config(
        host={"nbytes": "8 MiB", "prefault": "off"}, disk={"nbytes": "32 MiB", "path": path, "io_threads": 1}
    )


def test_a_folder_is_free_again_after_opening_it_failed(tmp_path, monkeypatch):
    def refuse(tier):
        raise Unavailable("the rows cannot be read")

    monkeypatch.setattr(DiskTier, "recover", refuse)
    for _ in range(2):  # the second attempt hears of the rows too, and not of a folder in use
        with pytest.raises(Unavailable, match="the rows cannot be read"):
            kvstore.open(config_for(tmp_path))


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (1, '{"model":"m","block_nbytes":4096,"unheard_of":1}'),
        (1, "[" * 60_000),
        (1, "\x00rubbish"),
        (2, "{}"),
        (0, kvstore.NamespaceSpec(model="zero", block_nbytes=4096).text()),
        (70_000, kvstore.NamespaceSpec(model="high", block_nbytes=4096).text()),
    ],
)
def test_a_namespace_that_cannot_be_read_costs_its_own_blocks_only(tmp_path, caplog, number, text):
    tokens = np.arange(16 * 4, dtype=np.uint32)
    blocks = np.ones((4, BLOCK_NBYTES), dtype=np.uint8)
    specs = [kvstore.NamespaceSpec(model=model, block_nbytes=BLOCK_NBYTES) for model in ("lost", "kept")]
    with kvstore.open(config_for(tmp_path)) as store:
        for spec in specs:
            namespace = store.namespace(spec)
            namespace.put(namespace.keys(tokens), blocks)
        assert store.flush()
        store.far.remember_namespace(number, text)
    held = [0 if number == lost else 4 for lost in (1, 2)]
    for num_lost in (8 - sum(held), 0):  # what a start does not take over is forgotten for good
        caplog.clear()
        with kvstore.open(config_for(tmp_path)) as store:
            assert f"namespace {number} on disk cannot be used" in caplog.text
            dropped = store.stats()["tiers"]["disk"]["dropped"]
            found = [store.namespace(spec) for spec in specs]
            assert [namespace.match(namespace.keys(tokens)).num_blocks for namespace in found] == held
            assert dropped == num_lost
            assert number not in store._specs


@pytest.mark.timeout(60)
def test_a_flush_ends_although_the_disk_is_smaller_than_what_is_in_memory(tmp_path):
    config = kvstore.Config(host={"nbytes": "64 MiB", "prefault": "off"}, disk={"nbytes": "16 MiB", "path": tmp_path})
    with kvstore.open(config) as store:
        namespace = store.namespace(kvstore.NamespaceSpec(model="m", block_nbytes=1 << 20))
        chains = [namespace.keys(np.full(16, number, dtype=np.uint32)) for number in range(40)]
        for keys in chains:
            namespace.put(keys, np.zeros((1, 1 << 20), dtype=np.uint8))
        assert not store.flush()
        assert sum(len(keys) for keys in chains if namespace.match(keys)) == 40
        assert store.stats()["mover"]["carried_blocks"] == 0
        for keys in chains[:30]:  # what is left fits: a flush has an end again, and a better one
            namespace.remove(keys)
        assert store.flush()


def test_a_flush_does_not_say_that_it_is_durable_when_the_device_refused(tmp_path, monkeypatch, caplog):
    with kvstore.open(config_for(tmp_path)) as store:
        namespace = store.namespace(kvstore.NamespaceSpec(model="m", block_nbytes=BLOCK_NBYTES))
        keys = namespace.keys(np.arange(16 * 4, dtype=np.uint32))

        with monkeypatch.context() as broken:
            broken.setattr(store.far._journal, "_sync", refuse_sync)
            namespace.put(keys, np.zeros((len(keys), BLOCK_NBYTES), dtype=np.uint8))
            assert not store.flush()
        assert "not durable: sync of segment" in caplog.text
        wait_until(store.flush)  # once they were written anew, and not before
        assert store.stats()["mover"]["carried_blocks"] == len(keys)
    with kvstore.open(config_for(tmp_path)) as store:
        namespace = store.namespace(kvstore.NamespaceSpec(model="m", block_nbytes=BLOCK_NBYTES))
        assert namespace.match(keys).num_blocks == len(keys)


class AcceptingManifest:
    def apply(self, changes):
        pass


def test_every_flush_hears_of_blocks_that_an_earlier_group_lost_until_their_segment_is_cleaned():
    reported = threading.Event()
    journal = Journal(
        AcceptingManifest(),
        refuse_sync,
        lambda segments: None,
        lambda commit, sync: reported.set(),
        lambda segments: None,
    )
    journal.add(Put(0, 1, np.zeros(1, dtype=ENTRY)), urgent=True)
    assert reported.wait(60)  # the group is over before anybody asks

    def flushed():
        answer = Future()
        journal.flush(answer)
        return answer.exception(timeout=60)

    assert "sync of segment 0" in str(flushed())
    assert "sync of segment 0" in str(flushed())
    journal.add(Clean(0))
    assert flushed() is None
    journal.close()


def test_blocks_removed_under_a_lease_do_not_come_back_after_a_restart(tmp_path):
    spec = kvstore.NamespaceSpec(model="m", block_nbytes=BLOCK_NBYTES)
    with kvstore.open(config_for(tmp_path)) as store:
        namespace = store.namespace(spec)
        keys = namespace.keys(np.arange(16 * 4, dtype=np.uint32))
        namespace.put(keys, np.zeros((len(keys), BLOCK_NBYTES), dtype=np.uint8))
        assert store.flush()
        with namespace.lease(keys):
            assert namespace.remove(keys) == len(keys)
        assert store.flush()
    with kvstore.open(config_for(tmp_path)) as store:
        assert store.namespace(spec).match(keys).num_blocks == 0


def test_a_rotten_block_does_not_come_back_after_a_restart(tmp_path):
    spec = kvstore.NamespaceSpec(model="m", block_nbytes=BLOCK_NBYTES)
    with kvstore.open(config_for(tmp_path)) as store:
        keys = store.namespace(spec).keys(np.arange(16 * 4, dtype=np.uint32))
        store.namespace(spec).put(keys, np.ones((len(keys), BLOCK_NBYTES), dtype=np.uint8))
        assert store.flush()
    for path in (tmp_path / "segments").glob("*.seg"):
        with path.open("r+b") as file:
            file.seek(2 * BLOCK_NBYTES)  # of four blocks in one segment, the third
            file.write(b"rot")
    with kvstore.open(config_for(tmp_path)) as store:
        assert store.namespace(spec).match(keys).num_blocks == 4
        with store.namespace(spec).lease(keys) as lease:
            assert lease.num_blocks == 2
        assert store.stats()["mover"]["corrupt_blocks"] == 1
        assert store.flush()
    with kvstore.open(config_for(tmp_path)) as store:
        assert store.namespace(spec).match(keys).num_blocks == 2


def test_who_waits_for_a_prefetch_hears_that_the_store_was_closed(tmp_path):
    store = kvstore.open(config_for(tmp_path))
    namespace = store.namespace(kvstore.NamespaceSpec(model="m", block_nbytes=BLOCK_NBYTES))
    keys = namespace.keys(np.arange(16 * 100, dtype=np.uint32))
    others = namespace.keys(np.arange(10**6, 10**6 + 16 * 128, dtype=np.uint32))
    for chain in (keys, others):  # the second pushes the first out of memory
        namespace.put(chain, np.zeros((len(chain), BLOCK_NBYTES), dtype=np.uint8), deadline_ms=60_000)
        assert store.flush()
    store.mover.stop()  # so that nothing settles before the store is closed
    future = namespace.prefetch(keys)
    assert not future.done()
    store.close()
    with pytest.raises(Unavailable, match="closed"):
        future.result(timeout=30)
