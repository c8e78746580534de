"""Namespaces of several shards: a block is visible when every rank has committed its part."""

import numpy as np
import pytest
from store_helpers import (
    BLOCK,
    ObedientTier,
    all_right,
    chain,
    make_spec,
    make_store,
    payload,
    settle,
)

from kvstore.room import BUSY_REASON


@pytest.fixture(params=["memory alone", "with a far tier"])
def store(request):
    made = make_store(16, None if request.param == "memory alone" else ObedientTier(256 * BLOCK))
    yield made
    settle(made)
    made.check()
    made.close()


@pytest.fixture
def ranks(store):
    """Two ranks' views of one namespace, and the parts of a chain of four."""
    ns = store.namespace(make_spec(shards=2))
    keys = chain(ns, 4)
    blocks = payload(keys)
    return ns, keys, [np.ascontiguousarray(blocks[:, : BLOCK // 2]), np.ascontiguousarray(blocks[:, BLOCK // 2 :])]


def test_a_block_is_visible_when_all_ranks_have_committed(ranks):
    ns, keys, parts = ranks
    assert ns.put(keys, parts[1], shard=1).stored == 4
    assert ns.match(keys).num_blocks == 0
    assert ns.explain(keys) == ["being written"] * 4
    assert ns.put(keys[:3], parts[0][:3], shard=0).stored == 3
    assert ns.match(keys).num_blocks == 3
    assert all_right(keys[:3], ns.get(keys)[1])
    assert ns.put(keys, parts[0], shard=0).stored == 1
    assert all_right(keys, ns.get(keys)[1])


def test_ranks_that_write_at_once_never_disagree(ranks):
    ns, keys, parts = ranks
    with ns.reserve(keys, 0) as one, ns.reserve(keys, 1) as two:
        assert one.wanted.tolist() == two.wanted.tolist() == [0, 1, 2, 3]
        one.fill(parts[0])
        two.fill(parts[1])
        one.commit()
        assert ns.match(keys).num_blocks == 0
        two.commit()
    assert all_right(keys, ns.get(keys)[1])


def test_a_rank_that_gives_up_leaves_the_part_to_be_written_again(ranks, store):
    ns, keys, parts = ranks
    ns.put(keys, parts[0], shard=0)
    with ns.reserve(keys, 1) as room:
        assert len(room.wanted) == 4
    assert ns.match(keys).num_blocks == 0
    assert ns.put(keys, parts[1], shard=1).stored == 4
    assert all_right(keys, ns.get(keys)[1])
    store.check()


def test_a_rank_that_asks_twice_for_a_key_joins_it_once(ranks, store):
    ns, keys, parts = ranks
    doubled = keys[[0, 0, 1]]
    ns.put(keys[:2], parts[0][:2], shard=0)
    result = ns.put(doubled, parts[1][[0, 0, 1]], shard=1)
    assert (result.stored, dict(result.rejected)) == (2, {1: BUSY_REASON})
    store.check()
    assert all_right(keys[:2], ns.get(keys)[1])


def test_removal_while_a_rank_writes_undoes_its_blocks(ranks, store):
    ns, keys, parts = ranks
    ns.put(keys, parts[0], shard=0)
    with ns.reserve(keys, 1) as room:
        assert ns.clear() == 0  # nothing of it could be seen yet
        room.fill(parts[1])
        with pytest.raises(Exception, match="4 of 4 reserved blocks were undone"):
            room.commit()
    assert ns.match(keys).num_blocks == 0 and store.stats()["index"]["entries"] == 0
    store.check()
