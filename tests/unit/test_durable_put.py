"""put(durable=True): what its answer promises, and when it says that it cannot."""

import shutil

import numpy as np
import pytest
from store_helpers import BLOCK, FakeClock, ObedientTier, all_right, chain, make_spec, make_store, payload, put_chain

import kvstore
from kvstore import durability
from kvstore._core import index as core
from kvstore.errors import InvalidRequest
from kvstore.tiers.disk import DiskTier


@pytest.fixture
def disk(tmp_path):
    return DiskTier(tmp_path, capacity_nbytes=16 << 20)


def put(ns, keys, **options):
    return ns.put(keys, payload(keys, ns.spec.block_nbytes), **options)


def put_shard(ns, keys, shard):
    blocks = payload(keys)[:, : ns.spec.part_nbytes]
    return ns.put(keys, np.ascontiguousarray(blocks), shard=shard, durable=True, deadline_ms=5_000)


def test_a_durable_put_is_there_after_a_kill(tmp_path):
    """Nothing of the first store is closed or flushed: the second opens a copy of its folder."""
    config, copy = (
        kvstore.Config(host={"nbytes": "8 MiB", "prefault": "off"}, disk={"nbytes": "16 MiB", "path": tmp_path / name})
        for name in "ab"
    )
    with kvstore.open(config) as store:
        ns = store.namespace(make_spec())
        first, second = chain(ns, 3), chain(ns, 5)
        put(ns, first)  # what the durable ones extend has to be safe, too
        result = put(ns, second, durable=True)
        assert (result.stored, result.present, result.durable) == (2, 3, True)
        assert put(ns, second, durable=True).durable and not put(ns, second).durable
        shutil.copytree(tmp_path / "a", tmp_path / "b")
    with kvstore.open(copy) as store:
        num_blocks, blocks = store.namespace(make_spec()).get(second)
        assert num_blocks == 5 and all_right(second, list(blocks))


def test_without_a_tier_that_outlives_the_process_nothing_is_durable():
    for far in (None, ObedientTier(64 * BLOCK)):
        store = make_store(8, far)
        result = put(store.namespace(make_spec()), chain(store.namespace(make_spec()), 2), durable=True)
        assert (result.stored, result.durable) == (2, False)
        store.close(0)


def test_a_device_that_fails_is_said_and_the_blocks_stay_in_memory(disk, monkeypatch):
    store = make_store(8, disk, clock=FakeClock())
    ns = store.namespace(make_spec())
    monkeypatch.setattr(disk, "allocate", lambda *rest, **options: np.empty(0, np.uint32))
    result = put(ns, chain(ns, 2), durable=True, deadline_ms=50)
    assert (result.stored, result.durable) == (2, False)
    assert ns.match(chain(ns, 2)).num_blocks == 2
    store.close(0)


def test_blocks_over_the_queue_are_queued_again(disk):
    store = make_store(32, disk, writeback_queue_blocks=4)
    store.mover.start()
    ns = store.namespace(make_spec())
    store.mover.lock.acquire()  # the mover's thread writes nothing meanwhile
    put_chain(ns, 4, prompt=1)
    keys = chain(ns, 3, prompt=2)
    put(ns, keys)
    store.mover.lock.release()
    assert store.stats()["mover"]["skipped_writes"] == 3
    assert store.flush()
    ids = store.index.find(keys, ns.number)
    assert (store.index.describe(ids)[1] == core.NONE).all()
    assert put(ns, keys, durable=True).durable
    assert (store.index.describe(ids)[1] != core.NONE).all()
    store.close()


def test_a_block_is_not_durable_before_all_shards_have_written_it(disk):
    store = make_store(8, disk)
    store.mover.start()
    ns = store.namespace(make_spec(shards=2))
    keys = chain(ns, 2)
    assert not put_shard(ns, keys, 0).durable
    assert put_shard(ns, keys, 1).durable
    store.close()


def test_rejected_blocks_are_not_durable_and_wrong_deadlines_are_errors(disk):
    store = make_store(4, disk)
    store.mover.start()
    ns = store.namespace(make_spec())
    result = put(ns, chain(ns, 6), durable=True, deadline_ms=200)
    assert result.rejected and not result.durable
    with pytest.raises(InvalidRequest, match="deadline_ms"):
        put(ns, chain(ns, 1), durable=True, deadline_ms=-1)
    assert durability.wait_us(None) == durability.DURABLE_PUT_US
    store.close()
