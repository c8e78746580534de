"""Namespace: keys, match, lease, get, put, remove, clear and prefetch on stores with and without a far tier."""

import numpy as np
import pytest
from store_helpers import (
    BLOCK,
    TOKENS,
    ObedientTier,
    all_right,
    chain,
    make_spec,
    make_store,
    payload,
    put_chain,
    settle,
    snapshot,
)

from kvstore import BlockLayout, Lookup
from kvstore.errors import InvalidRequest, LimitExceeded
from kvstore.putting import PREFIX_GONE
from kvstore.room import BUSY_REASON


@pytest.fixture(params=["memory alone", "with a far tier"])
def store(request):
    made = make_store(16, None if request.param == "memory alone" else ObedientTier(256 * BLOCK))
    yield made
    settle(made)
    made.check()
    made.close()


@pytest.fixture
def ns(store):
    return store.namespace(make_spec())


# ---- keys ----


def test_keys_are_one_for_each_full_block(ns):
    tokens = list(range(3 * TOKENS + 3))
    keys = ns.keys(tokens)
    assert keys.shape == (3, 32) and keys.dtype == np.uint8
    assert (ns.keys(tokens[:-3]) == keys).all()
    assert (ns.keys(np.array(tokens, np.int64)[: 2 * TOKENS]) == keys[:2]).all()
    assert ns.keys([]).shape == (0, 32) and ns.keys([1, 2]).shape == (0, 32)


def test_keys_of_an_engines_own_hashes(ns):
    hashes = [bytes([number]) * 16 for number in range(3)]
    keys = ns.keys(block_hashes=hashes)
    rows = np.frombuffer(b"".join(hashes), np.uint8).reshape(3, 16)
    assert keys.shape == (3, 32) and (ns.keys(block_hashes=rows) == keys).all()
    assert ns.keys(block_hashes=[]).shape == (0, 32)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"token_ids": [1], "block_hashes": [b"x"]},
        {"token_ids": [-1] * TOKENS},
        {"token_ids": [2**32] * TOKENS},
        {"token_ids": [1.5] * TOKENS},
        {"token_ids": "text"},
        {"token_ids": [[1] * TOKENS]},
        {"token_ids": 7},
        {"block_hashes": 5},
        {"block_hashes": [b""]},
        {"block_hashes": [b"a", b"bc"]},
        {"block_hashes": [b"x" * 65]},
        {"block_hashes": "text"},
        {"block_hashes": b"bytes"},
        {"block_hashes": np.zeros((2, 8), np.int64)},
    ],
)
def test_keys_of_anything_else_are_refused(ns, given):
    with pytest.raises(InvalidRequest):
        ns.keys(**given)


# ---- put, match, lease, get ----


def test_what_was_put_is_matched_leased_and_copied_out(ns):
    keys = put_chain(ns, 5)
    longer = chain(ns, 7)
    match = ns.match(longer)
    assert (match.num_blocks, dict(match.by_tier), match.load_us, bool(match)) == (5, {"host": 5}, 0, True)
    with ns.lease(longer) as lease:
        assert (lease.num_blocks, lease.pending) == (5, 0)
        assert lease.lookups == [Lookup.HIT] * 5 + [Lookup.MISS] * 2
        assert all_right(keys, lease.views)
    num_blocks, out = ns.get(longer)
    assert num_blocks == 5 and out.shape == (5, BLOCK) and (out == payload(keys)).all()


def test_a_miss_is_an_answer(ns):
    keys = chain(ns, 3)
    assert not ns.match(keys) and ns.match(keys).by_tier == {}
    with ns.lease(keys) as lease:
        assert (lease.num_blocks, lease.views) == (0, [])
        assert lease.lookups == [Lookup.MISS] * 3
    num_blocks, out = ns.get(keys)
    assert num_blocks == 0 and out.shape == (0, BLOCK)
    assert (ns.remove(keys), ns.clear()) == (0, 0)


def test_no_keys_are_no_question(ns):
    none = ns.keys([])
    assert ns.match(none).num_blocks == 0 and ns.get(none)[0] == 0
    assert ns.put(none, payload(none)).stored == 0
    assert ns.explain(none) == [] and ns.remove(none) == 0
    assert ns.prefetch(none).result(0).num_blocks == 0


def test_the_prefix_ends_at_the_first_hole(ns):
    keys = put_chain(ns, 6)
    other = chain(ns, 1, prompt=5)
    holed = np.concatenate([keys[:2], other, keys[2:]])
    assert ns.match(holed).num_blocks == 2
    assert ns.get(holed)[0] == 2
    assert ns.match(keys[3:]).num_blocks == 3  # a chain may be asked for from anywhere


def test_what_is_there_already_is_not_stored_again(ns):
    keys = put_chain(ns, 3)
    longer = chain(ns, 5)
    wrong = np.zeros((5, BLOCK), np.uint8)
    wrong[3:] = payload(longer[3:])
    result = ns.put(longer, wrong)
    assert (result.stored, result.present, result.rejected) == (2, 3, {})
    assert all_right(longer, ns.get(longer)[1])
    assert keys.shape == (3, 32)


def test_the_same_keys_as_bytes(ns):
    keys = chain(ns, 3)
    assert ns.put(keys.tobytes(), payload(keys)).stored == 3
    with ns.lease(memoryview(keys.tobytes())) as lease:
        assert lease.lookups == [Lookup.HIT] * 3


def test_a_key_that_is_asked_for_twice_is_stored_once(store, ns):
    keys = chain(ns, 3)
    doubled = keys[[0, 0, 1, 1, 2]]
    result = ns.put(doubled, payload(doubled))
    assert (result.stored, dict(result.rejected)) == (3, {1: BUSY_REASON, 3: BUSY_REASON})
    store.check()
    assert all_right(keys, ns.get(keys)[1])
    assert all_right(doubled, ns.get(doubled)[1])
    assert ns.remove(doubled) == 3


def test_put_from_a_later_position(ns):
    put_chain(ns, 2)
    keys = chain(ns, 5)
    result = ns.put(keys, payload(keys[2:]), start=2)
    assert (result.stored, result.present) == (3, 2)
    assert all_right(keys, ns.get(keys)[1])
    assert ns.put(keys, payload(keys[5:]), start=5).stored == 0


def test_put_does_not_store_what_extends_nothing(store, ns):
    put_chain(ns, 1)
    keys = chain(ns, 4)
    result = ns.put(keys, payload(keys[2:]), start=2)
    assert (result.stored, result.present) == (0, 1)
    assert dict(result.rejected) == {1: PREFIX_GONE, 2: PREFIX_GONE, 3: PREFIX_GONE}  # from where the stored chain ends
    assert store.stats()["index"]["entries"] == 1


def test_put_and_get_with_lists_of_buffers(ns):
    keys = chain(ns, 3)
    blocks = payload(keys)
    assert ns.put(keys, [blocks[0], bytes(blocks[1]), memoryview(blocks[2])]).stored == 3
    out = [bytearray(BLOCK), np.empty(BLOCK, np.uint8), memoryview(bytearray(BLOCK))]
    num_blocks, given = ns.get(keys, out)
    assert num_blocks == 3 and given is out and all_right(keys, out)


def test_rows_may_be_of_any_type_and_shape_of_that_size(ns):
    keys = chain(ns, 2)
    blocks = payload(keys)
    assert ns.put(keys[:1], blocks[:1].view(np.float16).reshape(1, 2, -1)).stored == 1
    assert ns.put(keys, blocks.reshape(-1)).stored == 1
    out = np.zeros((4, BLOCK // 8), np.int64)
    assert ns.get(keys, out)[0] == 2
    assert all_right(keys, out[:2]) and not out[2:].any()


def test_put_and_get_through_a_layout(ns):
    """Two tensors of eight rows, a quarter and three quarters of a block in each row."""
    layout = BlockLayout((BLOCK // 4, 3 * BLOCK // 4))
    keys = chain(ns, 3)
    blocks = payload(keys)
    tensors = [np.zeros((8, 64, size // 64), np.uint8) for size in layout.pieces]
    rows = [5, 1, 6]
    for tensor, start in zip(tensors, (0, BLOCK // 4), strict=True):
        tensor.reshape(8, -1)[rows] = blocks[:, start : start + tensor[0].size]
    assert ns.put(keys, tensors, layout=layout, block_ids=rows).stored == 3
    assert all_right(keys, ns.get(keys)[1])
    back = [np.zeros_like(tensor) for tensor in tensors]
    with ns.lease(keys) as lease:
        assert lease.copy_into(back, layout, np.array([0, 7, 3])) == 3
    for tensor, copy in zip(tensors, back, strict=True):
        assert (copy[[0, 7, 3]] == tensor[rows]).all() and not copy[[1, 2, 4, 5, 6]].any()


def test_put_through_a_layout_takes_only_the_rows_it_needs(ns):
    put_chain(ns, 2)
    keys = chain(ns, 4)
    tensor = np.zeros((9, BLOCK), np.uint8)
    tensor[[7, 8]] = payload(keys[2:])
    result = ns.put(keys, [tensor], layout=BlockLayout((BLOCK,)), block_ids=[0, 0, 7, 8])
    assert (result.stored, result.present) == (2, 2)
    assert all_right(keys, ns.get(keys)[1])


def test_a_second_writer_is_told_that_the_first_is_busy(ns):
    keys = chain(ns, 3)
    with ns.reserve(keys[:2]) as room:
        assert room.wanted.tolist() == [0, 1]
        result = ns.put(keys, payload(keys))
        assert dict(result.rejected) == {0: BUSY_REASON, 1: BUSY_REASON}
        assert result.stored == 1 and ns.match(keys).num_blocks == 0  # it waits for its parents
        room.fill(payload(keys[:2]))
        room.commit()
    assert all_right(keys, ns.get(keys)[1])


def test_a_put_larger_than_memory_stores_the_leading_part(store, ns):
    keys = chain(ns, 20)
    result = ns.put(keys, payload(keys))
    assert result.stored == 16 and sorted(result.rejected) == [16, 17, 18, 19]
    for reason in result.rejected.values():
        assert reason == f"no room in memory: host.nbytes={16 * BLOCK} is leased or being written"
    assert all_right(keys[:16], ns.get(keys)[1])
    store.check()


def test_a_full_index_is_named():
    store = make_store(16, entries_max=4)
    ns = store.namespace(make_spec())
    keys = chain(ns, 6)
    with ns.reserve(chain(ns, 2, prompt=1)) as room:
        result = ns.put(keys, payload(keys))
        assert result.stored == 2
        assert set(result.rejected.values()) == {"no free index entry: index.entries_max=4"}
        assert len(room.wanted) == 2


def test_eviction_takes_leaves_first():
    store = make_store(4)
    ns = store.namespace(make_spec())
    first = put_chain(ns, 3, prompt=1)
    second = put_chain(ns, 3, prompt=2)
    assert ns.match(second).num_blocks == 3
    assert ns.match(first).num_blocks == 1  # its last two went; a child never stays without its parent
    assert ns.explain(first)[0] == "host"


def test_remove_takes_what_extends_a_block_and_clear_takes_all(store, ns):
    keys = put_chain(ns, 5)
    other = store.namespace(make_spec(model="other"))
    kept = put_chain(other, 2)
    assert ns.remove(keys[3:4]) == 2
    assert ns.match(keys).num_blocks == 3
    assert ns.remove(keys) == 3 and ns.remove(keys) == 0
    put_chain(ns, 4)
    assert ns.clear() == 4
    assert other.match(kept).num_blocks == 2
    settle(store)
    assert store.stats()["tiers"]["host"]["used_nbytes"] == 2 * BLOCK


def test_put_with_no_room_in_the_lease_table_says_so(ns):
    store = make_store(16, leases_max=64)
    ns = store.namespace(make_spec())
    keys = put_chain(ns, 2)
    with ns.lease(keys):
        before = snapshot(store)
        with pytest.raises(LimitExceeded, match="leases_max=64"):
            ns.put(keys, payload(keys))
        assert snapshot(store) == before


def test_keys_of_another_namespace_open_nothing(store, ns):
    """Its blocks have another size: read as one's own they would show what lies behind them."""
    other = store.namespace(make_spec(model="other", block_nbytes=2 * BLOCK))
    keys, own = put_chain(ns, 4), put_chain(other, 2)
    mixed = np.concatenate([own, keys])
    assert other.match(keys).num_blocks == 0 and other.match(mixed).num_blocks == 2
    with other.lease(keys) as lease:
        assert lease.lookups == [Lookup.MISS] * 4
    with other.lease(mixed) as lease:
        assert lease.num_blocks == 2 and all_right(own, lease.views)
    assert other.get(keys)[0] == 0
    before = snapshot(store)
    for call in (lambda: other.put(mixed, payload(mixed, 2 * BLOCK)), lambda: other.reserve(keys)):
        with pytest.raises(InvalidRequest, match=r"keys\[\d\] is a key of another namespace"):
            call()
    assert snapshot(store)["index"] == before["index"]
    assert other.explain(keys) == ["never stored, or gone too long ago to be remembered"] * 4
    assert other.remove(keys) == 0 and other.prefetch(keys).result(0).num_blocks == 0
    assert ns.match(keys).num_blocks == 4
