"""What attached processes may rely on, and what hostile ones can do: nothing to anybody else."""

from __future__ import annotations

import gc
import hashlib
import os
import random
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import attach_raw as raw
import numpy as np
import pytest
from attach_raw import Raw
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


def path_of(way: Way) -> str:
    return way.server.attaching.path


def ticket(way: Way, ns, *, may_write: bool = True) -> bytes:
    """For one use, of the namespace of an attached client."""
    return way.server.attaching.ticket(ns._space.number, may_write=may_write)


def attached(way: Way, ns, stack: ExitStack, **rights: bool) -> Raw:
    """A raw client that has opened the namespace."""
    client = stack.enter_context(Raw(path_of(way)))
    assert client.open(ticket(way, ns, **rights)).status == raw.OK
    return client


def counts(way: Way) -> dict[str, int]:
    return way.server.attaching.counts()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


# ---- what our client does ----


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


# ---- what others may try ----


def test_a_ticket_is_good_once_and_for_its_namespace(way: Way):
    ns = way.store.namespace(make_spec())
    other = way.store.namespace(make_spec(salt="x"))
    put_chain(ns, 1), put_chain(other, 1)
    with ExitStack() as stack:
        once = ticket(way, ns)
        client = stack.enter_context(Raw(path_of(way)))
        reply = client.open(once)
        assert (reply.status, len(reply.fds)) == (raw.OK, 3)
        assert raw.opened(reply.body)["ns"] == ns._space.number
        again = client.open(once)
        assert (again.status, again.fds) == (raw.DENIED, [])
        stranger = stack.enter_context(Raw(path_of(way)))
        assert stranger.open(once).status == raw.DENIED and stranger.open(os.urandom(16)).status == raw.DENIED
        keys = chain(other, 2, prompt=5)
        assert client.reserve(other._space.number, keys).status == raw.DENIED
        assert client.reserve(60_000, keys).status == raw.DENIED and client.reserve(1 << 20, keys).status == raw.DENIED


def test_who_may_read_cannot_write(way: Way):
    ns = way.store.namespace(make_spec())
    keys = put_chain(ns, 1)
    with ExitStack() as stack:
        client = attached(way, ns, stack, may_write=False)
        assert client.reserve(ns._space.number, chain(ns, 2, prompt=3)).status == raw.DENIED
        index, _, arena = client.fds
        for descriptor in (index, arena):
            with pytest.raises(OSError):
                raw.mmap.mmap(descriptor, 4096, raw.mmap.MAP_SHARED, raw.mmap.PROT_READ | raw.mmap.PROT_WRITE)
            with pytest.raises(OSError):
                os.ftruncate(descriptor, 0)
            with pytest.raises(OSError):
                os.pwrite(descriptor, b"x", 0)
        assert all_right(keys, ns.get(keys)[1])
        writer = attached(way, ns, stack)
        for descriptor in writer.fds:
            with pytest.raises(OSError):
                os.ftruncate(descriptor, 0)


def test_reservations_are_their_clients_own(way: Way):
    ns = way.store.namespace(make_spec())
    put_chain(ns, 1)
    keys = chain(ns, 2, prompt=1)
    with ExitStack() as stack:
        one, two = (attached(way, ns, stack) for _ in range(2))
        number, at, ids = raw.reserved(one.reserve(ns._space.number, keys).body)
        assert number and (at < 1 << 31).all() and len(ids) == 2
        for kind in (raw.COMMIT, raw.ABANDON, raw.RETRY):
            assert two.end(kind, number).status == raw.UNKNOWN
        assert two.end(raw.COMMIT, 0).status == raw.UNKNOWN
        busy = raw.reserved(two.reserve(ns._space.number, keys).body)
        assert busy[0] == 0 and set(busy[1].tolist()) == {0xFFFFFFFE}
        assert one.end(raw.COMMIT, number).status == raw.OK
        assert one.end(raw.COMMIT, number).status == raw.UNKNOWN
        assert ns.match(keys).num_blocks == 2


def bodies(rng: random.Random, kind: int, ns: int, good_keys: bytes) -> bytes:
    """A body for a message that is wrong in some way, or right."""
    wanted = raw.TYPES.get(kind, 8)
    body = bytearray(rng.randbytes(wanted))
    if kind in (raw.RESERVE, raw.PROMOTE):
        num_keys = rng.choice([0, 1, 3, 8192, 8193, 1 << 31, len(good_keys) // 32])
        body[:] = struct.pack("<IIII", rng.choice([ns, ns, 0, 70_000]), rng.choice([0, 0, 1, 40]), 0, num_keys)
        body += good_keys[: rng.choice([0, 31, 32, len(good_keys)])]
    elif kind in (raw.COMMIT, raw.ABANDON, raw.RETRY):
        body[:] = struct.pack("<II", rng.choice([0, 1, 2, 3, 1 << 31]), rng.choice([0, 7]))
    if rng.random() < 0.3:
        body = body[: rng.randrange(len(body) + 1)] if rng.random() < 0.5 else body + rng.randbytes(rng.randrange(64))
    return bytes(body)


def attack(path: str, tickets: list[bytes], rng: random.Random, ns: int, good: bytes) -> set[int]:
    """Connections that say what no client of ours would; the statuses of the answers."""
    seen = set()
    for secret in tickets:
        with Raw(path) as client:
            if rng.random() < 0.7:
                assert client.open(secret).status == raw.OK
            for _message in range(rng.randrange(1, 8)):
                kind = rng.choice([*raw.TYPES, 0, 8, 65_535])
                message = bytearray(client.message(kind, bodies(rng, kind, ns, good)))
                if rng.random() < 0.1:
                    message[rng.randrange(len(message))] ^= 1 << rng.randrange(8)
                if rng.random() < 0.05:
                    message = message[: rng.randrange(1, 16)]
                if rng.random() < 0.02:
                    message += bytes(300_000 - len(message))
                try:
                    client.send(bytes(message), [0, 1, 2] if rng.random() < 0.1 else None)
                except OSError:
                    break
                status = client.receive().status
                seen.add(status)
                if status == -1 or kind == raw.BYE:
                    break
    return seen


def test_hostile_messages_get_named_answers_and_cost_nobody_else(way: Way):
    """From processes of their own, which end with whatever they hold."""
    ns = way.store.namespace(make_spec())
    kept = put_chain(ns, 4)
    good = chain(ns, 3, prompt=7).tobytes()
    before, seen = descriptors(), set()
    for seed in range(120):
        tickets = [ticket(way, ns) for _ in range(5)]
        answers, answer = os.pipe()
        child = os.fork()
        if not child:
            try:
                found = attack(path_of(way), tickets, random.Random(seed), ns._space.number, good)
                os.write(answer, " ".join(map(str, found)).encode())
            finally:
                os._exit(0)
        os.close(answer)
        with os.fdopen(answers) as said:
            seen |= {int(status) for status in said.read().split()}
        assert os.waitpid(child, 0)[1] == 0
    assert {-1, raw.OK, raw.MALFORMED, raw.DENIED, raw.UNKNOWN} <= seen <= {-1, *range(7), raw.WAIT}
    assert all_right(kept, ns.get(kept)[1]) and put_chain(ns, 2, prompt=3) is not None
    assert wait_for(lambda: counts(way)["num_clients"] == 1 and counts(way)["num_reservations"] == 0)
    assert counts(way)["num_malformed"] > 50 and way.inner.stats()["index"]["writing"] == 0
    assert descriptors() == before
    way.inner.check()


def test_connections_of_one_process_are_limited(way: Way):
    ns = way.store.namespace(make_spec())
    put_chain(ns, 1)
    with ExitStack() as stack:
        clients = [stack.enter_context(Raw(path_of(way))) for _ in range(20)]
        statuses = [client.open(ticket(way, ns)).status for client in clients]
        assert statuses.count(raw.OK) == 7 and statuses.count(-1) == 13  # with ours, eight
        assert counts(way)["num_refused"] == 13


def test_descriptors_that_a_client_sends_are_not_kept(way: Way):
    ns = way.store.namespace(make_spec())
    put_chain(ns, 1)
    with ExitStack() as stack:
        client = attached(way, ns, stack)
        before = descriptors()
        for _ in range(20):
            client.send(client.message(raw.ABANDON, struct.pack("<II", 9, 0)), [0, 1, 2])
            assert client.receive().status == raw.UNKNOWN
        assert descriptors() == before


def test_rubbish_in_a_lease_table_holds_up_nobody(way: Way):
    ns = way.store.namespace(make_spec())
    put_chain(ns, 1)
    rng = np.random.default_rng(3)
    with ExitStack() as stack:
        client = attached(way, ns, stack)
        table = client.table()
        for prompt in range(1, 50):
            rubbish = rng.integers(0, 256, len(table) - 12, dtype=np.uint8).tobytes()
            table[12:] = rubbish
            put_chain(ns, 6, prompt)
            way.inner.stats()
        table[12:] = bytes(len(table) - 12)
        table.close()
    way.inner.check()
    keys = put_chain(ns, 6, prompt=77)
    assert all_right(keys, ns.get(keys)[1])


def test_a_client_that_never_reads_its_answers_is_hung_up_on(way: Way):
    ns = way.store.namespace(make_spec())
    keys = put_chain(ns, 1)
    with ExitStack() as stack:
        client = attached(way, ns, stack)
        client.socket.settimeout(5)
        longest = chain(ns, 2_000, prompt=9)
        body = struct.pack("<IIII", ns._space.number, 0, 0, len(longest)) + longest.tobytes()
        with pytest.raises(OSError):
            for _ in range(5_000):
                client.send(client.message(raw.PROMOTE, body))
                client.send(client.message(raw.ABANDON, struct.pack("<II", 9, 0)))
        assert all_right(keys, ns.get(keys)[1]) and put_chain(ns, 2, prompt=1) is not None


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


def test_a_client_of_the_wrong_version_is_told(way: Way):
    ns = way.store.namespace(make_spec())
    put_chain(ns, 1)
    with Raw(path_of(way)) as client:
        assert client.open(ticket(way, ns), version=2).status == raw.VERSION
        assert client.receive().status == -1
