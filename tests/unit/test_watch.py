"""Reservations are watched until all of their blocks are visible, and no longer."""

import numpy as np
import pytest

import kvstore
import kvstore.errors
from kvstore.clock import SystemClock

BLOCK_NBYTES = 4096
TTL_MS = 1000


class SteppedClock(SystemClock):
    """Time that moves when the test says so."""

    us = 0

    def now_us(self):
        return self.us


@pytest.fixture
def store():
    config = kvstore.Config(host={"nbytes": 1 << 20}, disk={"nbytes": 0}, mover={"reservation_ttl_ms": TTL_MS})
    with kvstore.open(config) as opened:
        opened.clock = SteppedClock()
        yield opened
        opened.check()


def namespace(store, shards=1):
    return store.namespace(kvstore.NamespaceSpec(model="m", block_nbytes=BLOCK_NBYTES, shards=shards))


def keys_and_blocks(num_blocks, nbytes=BLOCK_NBYTES, seed=1):
    rng = np.random.default_rng(seed)
    return (rng.integers(0, 256, (num_blocks, width), dtype=np.uint8) for width in (32, nbytes))


def expire(store):
    """Let every reservation's time run out."""
    store.clock.us += TTL_MS * 1000 + 1
    with store.lock:
        store.settle_locked()


def test_committed_blocks_outlive_the_reservation_time(store):
    ns = namespace(store)
    keys, blocks = keys_and_blocks(4)
    assert ns.put(keys, blocks).stored == 4
    expire(store)
    assert ns.match(keys).num_blocks == 4


def test_a_reservation_without_its_commit_is_undone(store):
    ns = namespace(store)
    keys, _ = keys_and_blocks(4)
    room = ns.reserve(keys)
    other, more = keys_and_blocks(2, seed=2)
    assert ns.put(other, more).stored == 2
    expire(store)
    assert ns.match(other).num_blocks == 2
    with pytest.raises(kvstore.errors.LeaseExpired):
        room.commit()
    assert ns.explain(keys)[0].startswith("reserved but never committed")


def test_a_part_whose_other_ranks_never_come_is_undone(store):
    ns = namespace(store, shards=2)
    keys, parts = keys_and_blocks(3, BLOCK_NBYTES // 2)
    ns.put(keys, parts, shard=0)
    assert store._reserved
    expire(store)
    assert ns.explain(keys)[0].startswith("reserved but never committed")


def test_blocks_that_wait_for_their_parents_stay_watched(store):
    ns = namespace(store)
    keys, _ = keys_and_blocks(4)
    parents = ns.reserve(keys[:2])
    children = ns.reserve(keys)
    assert children.wanted.tolist() == [2, 3]
    assert children.commit().stored == 2
    assert ns.match(keys).num_blocks == 0
    parents.release()
    expire(store)
    assert [answer[:8] for answer in ns.explain(keys)] == ["reserved"] * 4
    assert store.index.counts()["writing"] == 0


def test_put_names_the_positions_it_could_not_store_and_why(store):
    ns = namespace(store)
    keys, blocks = keys_and_blocks(300)
    result = ns.put(keys, blocks)
    assert result.stored + len(result.rejected) == 300
    assert sorted(result.rejected) == list(range(result.stored, 300))
    assert all("no room in memory" in reason for reason in result.rejected.values())
    busy_keys, _ = keys_and_blocks(2, seed=5)
    with ns.reserve(busy_keys):
        refused = ns.reserve(busy_keys)
    assert refused.rejected == {0: "being written by another reservation", 1: "being written by another reservation"}


def test_put_copies_only_what_is_not_there(store):
    ns = namespace(store)
    keys, blocks = keys_and_blocks(6)
    ns.put(keys[:3], blocks[:3])
    assert ns.put(keys, np.concatenate([np.zeros_like(blocks[:3]), blocks[3:]])) == kvstore.PutResult(3, 3, {})
    num_blocks, out = ns.get(keys)
    assert num_blocks == 6 and (out == blocks).all()
