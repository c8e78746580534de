"""One suite over every way to a store: what an application sees must not depend on where the store is."""

from __future__ import annotations

import gc
from contextlib import ExitStack

import numpy as np
import pytest
from service_helpers import WAYS, Way, open_way, wait_for
from store_helpers import BLOCK, all_right, chain, make_spec, payload, put_chain

import kvstore
from kvstore import BlockLayout, Lookup, Match, PutResult
from kvstore.errors import InvalidRequest, LeaseExpired, NamespaceMismatch, Unavailable


@pytest.fixture
def ns(way: Way):
    return way.store.namespace(make_spec())


# ---- namespaces and keys ----


def test_keys_are_the_same_everywhere(ns):
    embedded_keys = kvstore.NamespaceSpec(model="tiny", block_nbytes=BLOCK, block_tokens=4).digest()
    tokens = np.arange(12)
    assert np.array_equal(ns.keys(tokens), kvstore.hashing.chain_keys(embedded_keys, tokens, 4, "sha256"))
    hashes = [bytes([i]) * 20 for i in range(3)]
    assert np.array_equal(ns.keys(block_hashes=hashes), kvstore.hashing.mix_keys(embedded_keys, hashes))
    with pytest.raises(InvalidRequest):
        ns.keys()


def test_a_mismatch_names_the_field_and_both_values(way: Way, ns):
    with pytest.raises(NamespaceMismatch) as caught:
        way.store.namespace(make_spec(dtype="float16"))
    error = caught.value
    assert (error.name, error.field, error.stored, error.wanted) == ("tiny", "dtype", "bfloat16", "float16")


def test_equal_specs_share_blocks_and_others_do_not(way: Way, ns):
    keys = put_chain(ns, 2)
    assert way.store.namespace(make_spec()).match(keys).num_blocks == 2
    assert way.store.namespace(make_spec(salt="x")).match(keys).num_blocks == 0


@pytest.mark.parametrize("spec", [None, "tiny", {"model": "m"}])
def test_a_namespace_wants_a_spec(way: Way, spec):
    with pytest.raises(InvalidRequest, match="NamespaceSpec"):
        way.store.namespace(spec)


def test_a_block_that_cannot_fit_is_refused(way: Way):
    with pytest.raises(InvalidRequest, match="does not fit"):
        way.store.namespace(make_spec(block_nbytes=64 << 20))


# ---- put, match, get, lease ----


def test_what_was_put_is_found_and_read(ns):
    keys = chain(ns, 5)
    assert ns.match(keys) == Match(0, {}, 0)
    assert ns.put(keys, payload(keys)) == PutResult(5, 0)
    assert ns.match(keys) == Match(5, {"host": 5}, 0)
    num_blocks, out = ns.get(keys)
    assert num_blocks == 5 and out.shape == (5, BLOCK) and all_right(keys, out)


def test_a_match_ends_at_the_first_block_that_is_not_there(ns):
    keys = put_chain(ns, 3)
    longer = chain(ns, 6)
    assert np.array_equal(longer[:3], keys)
    assert ns.match(longer).num_blocks == 3
    assert ns.match(longer[3:]).num_blocks == 0
    assert ns.get(longer)[0] == 3


def test_no_keys_are_no_blocks(ns):
    none = chain(ns, 0)
    assert ns.match(none).num_blocks == 0 and ns.get(none)[0] == 0 and ns.explain(none) == [] and ns.remove(none) == 0
    assert ns.put(none, np.empty((0, BLOCK), dtype=np.uint8)) == PutResult(0, 0)
    with ns.lease(none) as lease:
        assert lease.num_blocks == 0 and lease.views == []


def test_a_second_put_stores_only_what_is_new(ns):
    put_chain(ns, 3)
    keys = chain(ns, 5)
    assert ns.put(keys, payload(keys)) == PutResult(2, 3)
    assert ns.put(keys, payload(keys)) == PutResult(0, 5)
    assert all_right(keys, ns.get(keys)[1])


def test_a_put_may_start_behind_what_is_stored(ns):
    put_chain(ns, 3)
    keys = chain(ns, 6)
    assert ns.put(keys, payload(keys)[4:], start=4).rejected.keys() == {3, 4, 5}, "block 3 is not there to be extended"
    assert ns.put(keys, payload(keys)[3:], start=3) == PutResult(3, 3)
    assert all_right(keys, ns.get(keys)[1])


def test_get_copies_into_what_is_given(ns):
    keys = put_chain(ns, 3)
    out = np.zeros((4, BLOCK), dtype=np.uint8)
    num_blocks, same = ns.get(keys, out)
    assert num_blocks == 3 and same is out and all_right(keys, out[:3]) and not out[3].any()
    buffers = [bytearray(BLOCK) for _ in range(3)]
    assert ns.get(keys, buffers)[0] == 3 and all_right(keys, buffers)


def test_get_into_too_little_room_is_refused(ns):
    keys = put_chain(ns, 3)
    with pytest.raises(InvalidRequest, match="for 2 blocks, not for 3"):
        ns.get(keys, np.zeros((2, BLOCK), dtype=np.uint8))
    with pytest.raises(InvalidRequest):
        ns.get(keys, np.zeros((3, BLOCK - 1), dtype=np.uint8))
    assert ns.get(keys)[0] == 3


def test_a_lease_shows_the_blocks_until_it_is_released(ns):
    keys = put_chain(ns, 3)
    asked = chain(ns, 4)
    with ns.lease(asked) as lease:
        assert (lease.num_blocks, lease.pending, lease.num_promoted, lease.load_us) == (3, 0, 0, 0)
        assert lease.lookups == [Lookup.HIT] * 3 + [Lookup.MISS]
        assert all_right(keys, lease.views) and all(view.readonly for view in lease.views)
        out = np.zeros((3, BLOCK), dtype=np.uint8)
        assert lease.copy_into(out) == 3 and all_right(keys, out)
    for use in (lambda: lease.views, lambda: lease.copy_into(out)):
        with pytest.raises(LeaseExpired):
            use()
    lease.release()


def test_what_still_uses_a_view_outlives_the_lease(ns):
    keys = put_chain(ns, 2)
    with ns.lease(keys) as lease:
        arrays = [np.frombuffer(view, dtype=np.uint8) for view in lease.views]
    ns.clear()
    put_chain(ns, 100, 9)
    assert all_right(keys, arrays)


@pytest.mark.parametrize("way_in", ["put", "fill"])
def test_blocks_may_lie_in_several_tensors(ns, way_in):
    layout = BlockLayout((BLOCK // 4, BLOCK // 2, BLOCK // 4))
    keys, rows = chain(ns, 3), np.array([5, 0, 2])
    blocks = payload(keys)
    tensors = [np.zeros((6, piece), dtype=np.uint8) for piece in layout.pieces]
    edges = np.cumsum((0, *layout.pieces))
    for tensor, first, last in zip(tensors, edges, edges[1:], strict=False):
        tensor[rows] = blocks[:, first:last]
    if way_in == "put":
        assert ns.put(keys, tensors, layout=layout, block_ids=rows) == PutResult(3, 0)
    else:
        with ns.reserve(keys) as room:
            room.fill(tensors, layout, rows)
            room.commit()
    assert all_right(keys, ns.get(keys)[1])
    with ns.lease(keys) as lease:
        back = [np.zeros_like(tensor) for tensor in tensors]
        assert lease.copy_into(back, layout, rows) == 3
    assert all(np.array_equal(one, other) for one, other in zip(tensors, back, strict=True))


@pytest.mark.parametrize("nbytes", [1, 100, (2 << 20) // 3, 2 << 20, (2 << 20) + 1, 3_500_000])
def test_blocks_of_every_size_travel(way: Way, nbytes):
    ns = way.store.namespace(make_spec(block_nbytes=nbytes))
    keys = chain(ns, min(300, 6_000_000 // nbytes))
    blocks = payload(keys, nbytes)
    assert ns.put(keys, blocks) == PutResult(len(keys), 0)
    out = np.zeros_like(blocks)
    assert ns.get(keys, out)[0] == len(keys) and np.array_equal(out, blocks)
    assert np.array_equal(ns.get(keys)[1], blocks)
    with ns.lease(keys) as lease:
        assert [bytes(view) for view in lease.views] == [block.tobytes() for block in blocks]
    ns.clear()
    with ns.reserve(keys) as room:
        room.fill(blocks)
        room.commit()
    assert np.array_equal(ns.get(keys)[1], blocks)
    layout = BlockLayout((nbytes - nbytes // 3, nbytes // 3)) if nbytes >= 3 else BlockLayout((nbytes,))
    back = [np.zeros((len(keys), piece), dtype=np.uint8) for piece in layout.pieces]
    with ns.lease(keys) as lease:
        lease.copy_into(back, layout, np.arange(len(keys)))
    assert np.array_equal(np.hstack(back), blocks)


def test_a_strided_source_is_stored_right(ns):
    keys = chain(ns, 3)
    wide = np.zeros((3, 2 * BLOCK), dtype=np.uint8)
    wide[:, :BLOCK] = payload(keys)
    assert ns.put(keys, list(wide[:, :BLOCK])).stored == 3
    assert all_right(keys, ns.get(keys)[1])


# ---- reserve and commit ----


def test_a_reservation_is_seen_by_nobody_until_its_commit(ns):
    put_chain(ns, 1)
    keys = chain(ns, 3)
    with ns.reserve(keys) as room:
        assert room.wanted.tolist() == [1, 2] and room.present == 1 and room.rejected == {}
        assert ns.match(keys).num_blocks == 1
        for view, block in zip(room.views, payload(keys)[1:], strict=True):
            view[:] = block.tobytes()
        del view
        assert room.commit() == PutResult(2, 1)
        with pytest.raises(LeaseExpired):
            room.commit()
        with pytest.raises(LeaseExpired):
            room.views  # noqa: B018
    assert ns.match(keys).num_blocks == 3 and all_right(keys, ns.get(keys)[1])


def test_leaving_a_room_undoes_it(ns):
    keys = chain(ns, 3)
    with ns.reserve(keys) as room:
        room.fill(payload(keys))
    with pytest.raises(LeaseExpired):
        room.fill(payload(keys))
    assert wait_for(lambda: ns.put(keys, payload(keys)).stored == 3)


def test_a_room_that_was_dropped_is_undone(ns):
    keys = chain(ns, 3)
    room = ns.reserve(keys)
    assert len(room.wanted) == 3
    del room
    gc.collect()
    assert wait_for(lambda: ns.put(keys, payload(keys)).stored == 3)


def test_what_another_reservation_is_writing_is_rejected(ns):
    keys = chain(ns, 2)
    with ns.reserve(keys) as room:
        result = ns.put(keys, payload(keys))
        assert result.stored == 0 and set(result.rejected) == {0, 1} and "another reservation" in result.rejected[0]
        room.fill(payload(keys))
        room.commit()
    assert ns.get(keys)[0] == 2


def test_shards_make_a_block_visible_together(way: Way):
    ns = way.store.namespace(make_spec(shards=2))
    keys = chain(ns, 2)
    parts = payload(keys).reshape(2, 2, BLOCK // 2)
    assert ns.put(keys, np.ascontiguousarray(parts[:, 1]), shard=1).stored == 2
    assert ns.match(keys).num_blocks == 0
    assert ns.put(keys, np.ascontiguousarray(parts[:, 0]), shard=0).stored == 2
    assert ns.match(keys).num_blocks == 2 and all_right(keys, ns.get(keys)[1])


def test_a_full_store_evicts_and_goes_on(ns):
    chains = [put_chain(ns, 32, prompt) for prompt in range(8)]  # twice what memory holds
    assert ns.match(chains[-1]).num_blocks == 32
    assert ns.match(chains[0]).num_blocks < 32
    assert all_right(chains[-1], ns.get(chains[-1])[1])


# ---- removing, explaining, the whole store ----


def test_removed_blocks_take_what_extends_them(ns):
    keys = put_chain(ns, 5)
    assert ns.remove(keys[2:3]) == 3
    assert ns.match(keys).num_blocks == 2 and ns.remove(keys[2:3]) == 0
    assert ns.clear() == 2 and ns.clear() == 0


def test_explain_says_where_or_why_not(ns):
    keys = put_chain(ns, 2)
    ns.remove(keys[1:])
    where, why = ns.explain(keys)
    assert where == "host" and why.startswith("removed")
    with ns.reserve(keys):
        assert ns.explain(keys)[1] == "being written"


def test_prefetch_answers_with_a_match(ns):
    keys = put_chain(ns, 2)
    assert ns.prefetch(keys).result(30) == Match(2, {"host": 2}, 0)
    with pytest.raises(InvalidRequest, match="tier"):
        ns.prefetch(keys, tier="hbm")


def test_stats_have_the_same_names(way: Way, ns):
    put_chain(ns, 2)
    found = way.store.stats()
    assert found["tiers"]["host"]["blocks"] == 2 and found["namespaces"]["tiny"]["blocks"] == 2
    assert found.keys() - {"service", "attached"} == way.inner.stats().keys()


def test_flush_and_cold_reads(disk_way: Way):
    ns = disk_way.store.namespace(make_spec())
    chains = [put_chain(ns, 32, prompt) for prompt in range(3)]
    assert disk_way.store.flush() and disk_way.store.flush(deadline_ms=60_000)
    put_chain(ns, 100, 9)  # pushes the others out of memory
    match = ns.match(chains[0])
    assert match.num_blocks == 32 and match.by_tier["disk"] > 0 and match.load_us >= 0
    with ns.lease(chains[0]) as lease:
        assert lease.num_blocks == 32 and lease.num_promoted > 0 and all_right(chains[0], lease.views)
    assert ns.get(chains[1], np.zeros((32, BLOCK), dtype=np.uint8))[0] == 32
    assert ns.prefetch(chains[2], deadline_ms=30_000).result(60).num_blocks == 32


def test_a_lease_that_must_not_wait_says_what_is_pending(disk_way: Way):
    ns = disk_way.store.namespace(make_spec())
    keys = put_chain(ns, 32)
    assert disk_way.store.flush()
    put_chain(ns, 120, 9)
    with ns.lease(keys, deadline_ms=0) as lease:
        assert lease.num_blocks < 32 and lease.num_blocks + lease.pending == 32
        assert lease.lookups.count(Lookup.PENDING) == lease.pending


BAD_KEYS = [None, "keys", 5, [b"x" * 32], b"x" * 33, np.zeros((2, 31), dtype=np.uint8), np.zeros((2, 32))]


@pytest.mark.parametrize("keys", BAD_KEYS, ids=lambda keys: type(keys).__name__)
@pytest.mark.parametrize("verb", ["match", "lease", "get", "prefetch", "reserve", "remove", "explain"])
def test_malformed_keys_are_refused(ns, verb, keys):
    with pytest.raises(InvalidRequest, match="keys"):
        getattr(ns, verb)(keys)


@pytest.mark.parametrize("deadline_ms", [-1, float("nan"), "soon", True, 2.0**40])
@pytest.mark.parametrize("verb", ["lease", "get", "prefetch", "reserve"])
def test_malformed_deadlines_are_refused(ns, verb, deadline_ms):
    with pytest.raises(InvalidRequest, match="deadline_ms"):
        getattr(ns, verb)(chain(ns, 1), deadline_ms=deadline_ms)


def test_blocks_of_another_shape_are_refused_and_nothing_is_stored(ns):
    keys = chain(ns, 2)
    for blocks in (payload(keys)[:1], payload(keys)[:, 1:], [b"short"] * 2, 5, None):
        with pytest.raises(InvalidRequest):
            ns.put(keys, blocks)
    with pytest.raises(InvalidRequest):
        ns.put(keys, payload(keys), shard=1)
    with pytest.raises(InvalidRequest):
        ns.put(keys, payload(keys), start=3)
    assert ns.match(keys).num_blocks == 0


def test_a_closed_store_is_unavailable(way: Way):
    ns = way.store.namespace(make_spec())
    keys = put_chain(ns, 1)
    way.store.close()
    way.store.close()
    for call in (ns.match, ns.lease, ns.get, ns.reserve, ns.remove, ns.explain, ns.prefetch):
        with pytest.raises(Unavailable, match="closed"):
            call(keys)
    for call in (ns.clear, way.store.stats, way.store.flush, lambda: way.store.namespace(make_spec())):
        with pytest.raises(Unavailable, match="closed"):
            call()
    with pytest.raises(Unavailable, match="closed"):
        ns.put(keys, payload(keys))


@pytest.mark.parametrize("name", WAYS)
def test_a_durable_put_is_on_disk_when_it_returns(name, tmp_path):
    disk = {"nbytes": "16 MiB", "path": str(tmp_path / "disk")}
    with ExitStack() as stack:
        way = open_way(name, tmp_path, stack, disk=disk)
        ns = way.store.namespace(make_spec())
        keys = chain(ns, 4)
        assert not ns.put(keys[:2], payload(keys[:2])).durable
        result = ns.put(keys, payload(keys), durable=True)
        assert (result.stored, result.present, result.durable) == (2, 2, True)
        assert way.inner.stats()["tiers"]["disk"]["blocks"] == 4
        assert ns.make_durable(keys, deadline_ms=5_000)
        assert not ns.make_durable(chain(ns, 5), deadline_ms=50)  # the fifth is not stored
        with pytest.raises(InvalidRequest, match="deadline_ms"):
            ns.make_durable(keys, deadline_ms=-1)


def test_without_a_disk_nothing_is_durable(ns):
    keys = chain(ns, 2)
    result = ns.put(keys, payload(keys), durable=True, deadline_ms=50)
    assert (result.stored, result.durable) == (2, False)
