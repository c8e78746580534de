"""What attached processes may rely on."""

from __future__ import annotations

import gc
import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from service_helpers import MIB, Way, config_for, open_way, start, wait_for
from store_helpers import BLOCK, all_right, chain, make_spec, payload, put_chain

import kvstore
from kvstore import Match
from kvstore.errors import LeaseExpired, LimitExceeded


@pytest.fixture
def way(tmp_path: Path) -> Iterator[Way]:
    """An attached client of a daemon in this process with 8 MiB of memory."""
    with ExitStack() as stack:
        yield open_way("attached", tmp_path, stack)


def counts(way: Way) -> dict[str, int]:
    return way.server.attaching.counts()


def test_lookups_and_reads_make_no_call(way: Way):
    ns = way.store.namespace(make_spec())
    keys = put_chain(ns, 4)
    before = way.server.held.counts()["calls"]
    assert ns.match(keys).num_blocks == 4
    with ns.lease(keys) as lease:
        assert all_right(keys, lease.views)
    assert ns.get(keys)[0] == 4 and ns.put(keys, payload(keys)).present == 4
    assert way.server.held.counts()["calls"] == before


def test_what_is_put_attached_is_seen_by_all_and_the_other_way_round(way: Way):
    ns, inner = way.store.namespace(make_spec()), way.inner.namespace(make_spec())
    keys = put_chain(ns, 3)
    assert all_right(keys, inner.get(keys)[1])
    others = put_chain(inner, 3, prompt=1)
    with ns.lease(others) as lease:
        assert all_right(others, lease.views)
    assert way.inner.stats()["lookups"]["leases"] >= 1


def test_statistics_count_what_attached_processes_look_up(way: Way):
    ns = way.store.namespace(make_spec())
    keys = put_chain(ns, 4)
    before = way.inner.stats()["lookups"]
    with ns.lease(chain(ns, 6)) as lease:
        now = way.inner.stats()["lookups"]
        assert now["leases"] == before["leases"] + 1 and now["blocks_asked"] == before["blocks_asked"] + 6
        assert now["blocks_found"] == before["blocks_found"] + 4 and now["leases_in_use"] == 64
        assert lease.num_blocks == len(keys)
    way.store.close()
    assert way.inner.stats()["lookups"]["leases"] == now["leases"]


def test_a_leased_block_is_not_evicted(way: Way):
    ns = way.store.namespace(make_spec())
    keys = put_chain(ns, 3)
    with ns.lease(keys) as lease:
        for prompt in range(1, 60):
            others = chain(ns, 8, prompt)
            ns.put(others, payload(others))
        assert way.inner.stats()["tiers"]["host"]["evicted"] > 100
        assert all_right(keys, lease.views) and lease.is_intact


def test_a_view_that_outlives_its_commit_keeps_its_place(way: Way):
    ns = way.store.namespace(make_spec())
    keys = chain(ns, 2)
    with ns.reserve(keys) as room:
        blocks = [np.frombuffer(view, np.uint8) for view in room.views]
        for block, wanted in zip(blocks, payload(keys), strict=True):
            block[:] = wanted
        room.commit()
    for prompt in range(1, 60):
        others = chain(ns, 8, prompt)
        ns.put(others, payload(others))
    assert all_right(keys, blocks) and ns.match(keys).num_blocks == 2
    del blocks, block
    gc.collect()
    assert way.inner.stats()["lookups"]["leases_in_use"] == 0


def test_what_lies_on_disk_comes_for_a_lease_and_for_the_next_time(tmp_path: Path):
    disk = {"nbytes": "32 MiB", "path": str(tmp_path / "disk")}
    with ExitStack() as stack:
        sections = {"disk": disk, "host": {"nbytes": 2 * MIB}, "mover": {"put_wait_ms": 60_000}}
        way = open_way("attached", tmp_path, stack, **sections)
        ns = way.store.namespace(make_spec())
        chains = [put_chain(ns, 8, prompt) for prompt in range(12)]
        assert way.store.flush(30_000)
        assert ns.match(chains[0]) == Match(8, {"disk": 8}, 0)
        assert all_right(chains[0], ns.get(chains[0])[1])
        assert ns.match(chains[0]).by_tier == {"host": 8}
        with ns.lease(chains[1]) as lease:
            assert (lease.num_blocks, lease.num_promoted) == (8, 8) and all_right(chains[1], lease.views)
        with ns.lease(chains[2], deadline_ms=0) as lease:
            assert (lease.num_blocks, lease.pending) == (0, 8)
        assert wait_for(lambda: ns.match(chains[2]).by_tier == {"host": 8})
        assert ns.match(chains[3]).load_us > 0  # measured by now


def test_a_put_waits_for_room_like_any_other(tmp_path: Path):
    disk = {"nbytes": "256 MiB", "path": str(tmp_path / "disk")}
    with ExitStack() as stack:
        sections = {"disk": disk, "host": {"nbytes": 2 * MIB}, "mover": {"put_wait_ms": 60_000}}
        way = open_way("attached", tmp_path, stack, **sections)
        ns = way.store.namespace(make_spec())
        spaces = [way.store.namespace(make_spec(salt=str(number))) for number in range(3)]

        def fill(space) -> None:
            for prompt in range(20):
                put_chain(space, 12, prompt)

        threads = [threading.Thread(target=fill, args=(space,)) for space in (ns, *spaces)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert counts(way)["num_waits"] > 0 and way.inner.stats()["index"]["dropped_unwritten"] == 0
        assert way.store.flush(60_000)
        assert sum(space.match(chain(space, 12, prompt)).num_blocks for space in spaces for prompt in range(20)) == 720


def test_a_quota_holds_for_attached_puts(way: Way):
    ns = way.store.namespace(make_spec(), quota_nbytes=6 * BLOCK)
    old = put_chain(ns, 4)
    new = put_chain(ns, 5, prompt=1)
    assert ns.match(new).num_blocks == 5 and ns.match(old).num_blocks <= 1
    keys = chain(ns, 9, prompt=2)
    result = ns.put(keys, payload(keys))
    assert result.stored == 6 and "quota" in result.rejected[6]


def test_long_chains_go_by_calls(way: Way):
    ns = way.store.namespace(make_spec(block_nbytes=256))
    keys = ns.keys(np.arange(9_000 * 4))
    ns.put(keys[:1000], np.zeros((1000, 256), np.uint8))
    result = ns.put(keys, np.zeros((8_000 + 1_000, 256), np.uint8))
    assert result.present == 1000 and result.stored > 500
    assert ns.match(keys).num_blocks == 1000 + result.stored


def test_a_lease_held_for_too_long_is_taken_away(tmp_path: Path):
    with ExitStack() as stack:
        way = open_way("attached", tmp_path, stack, serve={"lease_ms_max": 50})
        ns = way.store.namespace(make_spec())
        keys = put_chain(ns, 3)
        lease = ns.lease(keys)
        out = np.empty((3, BLOCK), np.uint8)
        assert lease.copy_into(out) == 3
        assert wait_for(lambda: not lease.is_intact)
        assert counts(way)["num_revoked"] == 1
        with pytest.raises(LeaseExpired, match="held for too long"):
            lease.copy_into(out)
        for prompt in range(1, 60):
            put_chain(ns, 8, prompt)
        assert ns.match(keys).num_blocks == 0, "a revoked lease stood in the way of eviction"
        lease.release()
        again = put_chain(ns, 3, prompt=99)
        with ns.lease(again) as fresh:
            assert fresh.is_intact and all_right(again, fresh.views)


def test_a_reservation_held_for_too_long_is_undone(tmp_path: Path):
    with ExitStack() as stack:
        way = open_way("attached", tmp_path, stack, mover={"reservation_ttl_ms": 50})
        ns = way.store.namespace(make_spec())
        keys = chain(ns, 2)
        room = ns.reserve(keys)
        assert wait_for(lambda: counts(way)["num_expired"] == 1)
        with pytest.raises(LeaseExpired, match="undone"):
            room.commit()
        assert ns.match(keys).num_blocks == 0
        assert ns.put(keys, payload(keys)).stored == 2
        assert wait_for(lambda: counts(way)["num_reservations"] == 0)


def test_a_room_that_is_dropped_is_undone(way: Way):
    ns = way.store.namespace(make_spec())
    keys = chain(ns, 2)
    with ns.reserve(keys):
        pass
    assert way.inner.stats()["index"]["writing"] == 0
    ns.reserve(keys)  # dropped at once; undone with the next call
    assert ns.put(keys, payload(keys)).stored == 2


def test_a_child_after_a_fork_leaves_the_parents_attachment_alone(way: Way):
    ns = way.store.namespace(make_spec())
    keys = put_chain(ns, 2)
    with ns.lease(keys) as lease:
        child = os.fork()
        if not child:
            gone = ns._space.attachment.is_over
            os._exit(0 if gone else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert all_right(keys, lease.views) and not ns._space.attachment.is_over
    assert put_chain(ns, 2, prompt=1) is not None and counts(way)["num_clients"] == 1


def test_who_may_not_attach_uses_calls(tmp_path: Path):
    table = tmp_path / "access.toml"
    token = "3b3e1b9c7f4f1f0b6c5c4d0d7a4f0a8b4f2c9d7e6a5b4c3d2e1f0a9b8c7d6e5f"
    digest = hashlib.sha256(token.encode()).hexdigest()
    row = '[[tenant]]\nname = "{0}"\ntoken_sha256 = ["{1}"]\nverbs = {2}\n'
    table.write_text(row.format("plain", digest, '["read", "write"]'))
    with ExitStack() as stack:
        config = config_for(tmp_path, serve={"access": str(table), "attach": True})
        _, server = start(config, stack)
        store = stack.enter_context(kvstore.connect(f"unix:{config.serve.socket}", token=token))
        ns = store.namespace(make_spec())
        keys = put_chain(ns, 3)
        assert all_right(keys, ns.get(keys)[1])
        assert server.attaching.counts()["num_accepted"] == 0


def test_tenants_who_attach_do_not_find_each_others_blocks(tmp_path: Path):
    table = tmp_path / "access.toml"
    row = '[[tenant]]\nname = "{0}"\ntoken_sha256 = ["{1}"]\nverbs = ["read", "write", "attach"]\n'
    names = ("one", "two")
    table.write_text("".join(row.format(name, hashlib.sha256(name.encode()).hexdigest()) for name in names))
    with ExitStack() as stack:
        config = config_for(tmp_path, serve={"access": str(table), "attach": True})
        _, server = start(config, stack)
        target = f"unix:{config.serve.socket}"
        one, two = (stack.enter_context(kvstore.connect(target, token=name)).namespace(make_spec()) for name in names)
        keys = put_chain(one, 3)
        assert one.match(keys).num_blocks == 3 and all_right(keys, one.get(keys)[1])
        assert two.match(keys).num_blocks == 0 and two.get(keys)[0] == 0
        assert server.attaching.counts()["num_clients"] == 2
        remote = stack.enter_context(kvstore.connect(target, token="one", attach=False)).namespace(make_spec())
        assert all_right(keys, remote.get(keys)[1])


def test_reservations_and_leases_of_one_client_are_limited(tmp_path: Path):
    with ExitStack() as stack:
        way = open_way("attached", tmp_path, stack, serve={"client_nbytes_max": "1 MiB", "leases_max": 64})
        ns = way.store.namespace(make_spec())
        keys = chain(ns, 40)
        with pytest.raises(LimitExceeded, match="reserved bytes"):
            ns.reserve(keys)
        keys = put_chain(ns, 3)
        with ns.lease(keys), pytest.raises(LimitExceeded, match="leases_max=64"):
            ns.lease(keys)
