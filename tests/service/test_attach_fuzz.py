"""What no client of ours would send or write: named answers, nothing held, and other clients unaffected."""

from __future__ import annotations

import gc
import mmap
import os
import random
import resource
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import attach_wire as wire
import pytest
from attach_house import House
from attach_wire import Child, Raw, chain, ended, head
from service_helpers import wait_for
from store_helpers import BLOCK, all_right, make_spec, payload
from store_helpers import chain as chain_keys

import kvstore
from kvstore.errors import LeaseExpired

ROUNDS = int(os.environ.get("KVSTORE_FUZZ_ROUNDS", "40"))  # for each message
NAMED = set(range(10))


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with ExitStack() as stack:
        yield House(tmp_path, stack)

    def limited(self, prompt: int = 0) -> tuple[int, bytes]:
        """A namespace with a quota of two blocks, and the keys of three."""
        ns = self.way.store.namespace(make_spec(model="limited"), quota_nbytes=2 * BLOCK)
        keys = chain_keys(ns, 3, prompt)
        ns.match(keys)
        return int(ns._space.number), keys.tobytes()


def seeded() -> random.Random:
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    return random.Random(seed)


def held_by_this_process() -> tuple[int, int]:
    gc.collect()
    return len(os.listdir("/proc/self/fd")), threading.active_count()


def mutations(rng: random.Random, good: bytes) -> list[bytes]:
    """Messages near a good one, and far from it."""
    cut = good[: rng.randrange(1, len(good) + 1)]
    flipped = bytearray(good)
    for _ in range(rng.randint(1, 4)):
        flipped[rng.randrange(len(flipped))] = rng.randrange(256)
    words = bytearray(good)
    at = 4 * rng.randrange(len(good) // 4)
    words[at : at + 4] = struct.pack("<I", rng.choice((0, 1, 2, 0x7FFFFFFF, 0xFFFFFFFF, 8192, 8193)))
    return [cut, bytes(flipped), bytes(words), good + rng.randbytes(rng.randrange(1, 40)), rng.randbytes(60)]


@pytest.mark.parametrize("kind", range(1, 8))
def test_any_bytes_get_a_named_answer_or_the_end(house: House, kind: int):
    rng = seeded()
    good = head(kind) + {
        wire.OPEN: struct.pack("<II", wire.VERSION, 0) + bytes(16),
        wire.RESERVE: chain(house.number, chain_keys(house.ns, 4, prompt=1).tobytes()),
        wire.PROMOTE: chain(house.number, house.keys.tobytes()),
        wire.BYE: b"",
    }.get(kind, ended(1))
    before = held_by_this_process()
    raw: Raw | None = None
    for _ in range(ROUNDS):
        for message in [*mutations(rng, good), good]:
            raw = house.raw() if raw is None else raw
            raw.send(message)
            answer = raw.answer()
            assert answer is None or answer.status in NAMED, message.hex()
            ends = answer is None or answer.status in (wire.MALFORMED, wire.WRONG_VERSION)
            if ends or message[4:6] == head(wire.BYE)[4:6]:
                assert answer is None or raw.is_over()
                raw.close()
                raw = None
            elif answer is not None and len(answer.body) >= 16 and message[4:6] == head(wire.RESERVE)[4:6]:
                # What this process has reserved, it may be writing to as long as it lives.
                done = raw.ask(wire.ABANDON, ended(answer.reservation)).status
                assert done == (wire.OK if answer.granted else wire.UNKNOWN)
    if raw is not None:
        raw.send(head(wire.BYE))
        assert raw.answer() is not None and raw.is_over()
        raw.close()
    house.require_well()
    assert wait_for(lambda: held_by_this_process() <= before), (held_by_this_process(), before)


@pytest.mark.parametrize(
    ("message", "status"),
    [
        (head(wire.OPEN, magic=1) + bytes(24), wire.MALFORMED),
        (head(wire.OPEN, status=1) + bytes(24), wire.MALFORMED),
        (head(wire.OPEN, detail=1) + bytes(24), wire.MALFORMED),
        (head(0), wire.MALFORMED),
        (head(8), wire.MALFORMED),
        (head(wire.OPEN) + struct.pack("<II", 1, 0) + bytes(16), wire.WRONG_VERSION),
        (head(wire.RESERVE) + chain(1, b""), wire.MALFORMED),
        (head(wire.RESERVE) + chain(1, bytes(32), num_keys=2), wire.MALFORMED),
        (head(wire.RESERVE) + chain(1, bytes(32), num_keys=0xFFFFFFFF), wire.MALFORMED),
        (head(wire.RESERVE) + chain(1, bytes(32), shard=32), wire.MALFORMED),
        *(
            (head(wire.RESERVE) + chain(1, bytes(32), hint=struct.pack("<BbHI", *wrong)), wire.MALFORMED)
            for wrong in ((4, 0, 0, 0), (0, 2, 0, 0), (0, -2, 0, 0), (0, 0, 1, 0))
        ),
        (head(wire.PROMOTE) + chain(1, bytes(32), hint=struct.pack("<BbHI", 9, 0, 0, 0)), wire.MALFORMED),
        (head(wire.BYE) + b"x", wire.MALFORMED),
        (bytes(wire.MAGIC & 0xFF), wire.MALFORMED),
        (head(wire.RESERVE) + bytes(1 << 18), wire.MALFORMED),
    ],
)
def test_what_is_malformed_is_said_and_ends_the_connection(house: House, message: bytes, status: int):
    raw = house.raw(opened=False)
    malformed = house.counts()["num_malformed"]
    raw.send(message)
    answer = raw.answer()
    assert answer is not None and answer.status == status
    assert raw.is_over()
    assert house.counts()["num_malformed"] == malformed + 1
    house.require_well()


def test_nothing_is_to_be_had_before_a_ticket_nor_after_the_end(house: House):
    keys = chain_keys(house.ns, 2, prompt=1).tobytes()
    raw = house.raw(opened=False)
    assert raw.ask(wire.RESERVE, chain(house.number, keys)).status == wire.DENIED
    assert raw.ask(wire.PROMOTE, chain(house.number, keys)).status == wire.DENIED
    for kind in (wire.COMMIT, wire.ABANDON, wire.RETRY):
        for number in (0, 1, 0xFFFFFFFF):
            assert raw.ask(kind, ended(number)).status == wire.UNKNOWN
    assert raw.open(house.ticket()).status == wire.OK and len(raw.fds) == 3
    reserved = raw.ask(wire.RESERVE, chain(house.number, keys))
    assert raw.ask(wire.COMMIT, ended(reserved.reservation)).status == wire.OK
    assert raw.ask(wire.COMMIT, ended(reserved.reservation)).status == wire.UNKNOWN  # said twice
    raw.send(head(wire.BYE) + b"")
    assert raw.answer() is not None and raw.is_over()
    with pytest.raises(OSError):
        raw.ask(wire.COMMIT, ended(1))
    house.require_well()


def test_a_ticket_is_for_one_use_one_namespace_and_some_rights(house: House):
    ticket = house.ticket()
    assert house.raw(opened=False).open(ticket).status == wire.OK
    late = house.attaching._socket.issue(os.geteuid(), house.number, 3, 0)
    for no_ticket in (ticket, late, bytes(16), os.urandom(16)):
        assert house.raw(opened=False).open(no_ticket).status == wire.DENIED
    other = house.way.store.namespace(make_spec(model="other"))
    other.match(house.keys)
    reader = house.raw(may_write=False)
    wish = chain_keys(house.ns, 2, prompt=1).tobytes()
    assert reader.ask(wire.RESERVE, chain(house.number, wish)).status == wire.DENIED
    assert reader.ask(wire.RESERVE, chain(other._space.number, wish)).status == wire.DENIED
    assert reader.ask(wire.PROMOTE, chain(other._space.number, wish)).status == wire.DENIED
    assert reader.ask(wire.RESERVE, chain(0xFFFFFFFF, wish)).status == wire.DENIED
    index, table, arena = reader.fds
    for sealed in (index, arena):
        with pytest.raises(PermissionError):
            mmap.mmap(sealed, mmap.PAGESIZE)
    for one in (index, table, arena):
        with pytest.raises(OSError):
            os.ftruncate(one, mmap.PAGESIZE)
    again = reader.open(house.ticket())  # and now it may write
    assert again.status == wire.OK and len(again.fds) == 1
    assert reader.ask(wire.RESERVE, chain(house.number, house.keys.tobytes() + wish)).status == wire.OK
    assert reader.ask(wire.RESERVE, chain(house.number, other.keys(range(8)).tobytes())).status == wire.OK


def test_reservations_are_their_clients_alone(house: House):
    keys = chain_keys(house.ns, 2, prompt=1)
    owner, thief = house.raw(), house.raw()
    reserved = owner.ask(wire.RESERVE, chain(house.number, keys.tobytes()))
    assert reserved.granted == 2
    for kind in (wire.COMMIT, wire.ABANDON, wire.RETRY):
        for number in range(100):
            assert thief.ask(kind, ended(number)).status == wire.UNKNOWN
    refused = thief.ask(wire.RESERVE, chain(house.number, keys.tobytes()))
    assert refused.granted == 0 and struct.unpack_from("<2I", refused.body, 16) == (wire.BUSY, wire.BUSY)
    assert owner.ask(wire.COMMIT, ended(reserved.reservation)).status == wire.OK
    assert house.ns.match(keys).num_blocks == 2


def test_descriptors_that_are_sent_along_are_not_kept(house: House):
    raw = house.raw()
    before = held_by_this_process()
    for message in (head(wire.COMMIT) + ended(1), head(wire.RESERVE) + chain(house.number, bytes(32))):
        read_end, write_end = os.pipe()
        for _ in range(50):
            raw.send(message, (write_end,) * 20)
            assert raw.answer() is not None
        os.close(write_end)
        assert os.read(read_end, 1) == b"", "somebody still has the other end"
        os.close(read_end)
    assert held_by_this_process() == before


def test_rubbish_in_its_own_memory_disturbs_only_the_client_itself(house: House):
    rng = seeded()
    raw = house.raw()
    table = wire.table_of(raw.fds[1])
    prompts = [chain_keys(house.ns, 40, prompt=number) for number in range(2, 8)]  # twice the memory
    for round_ in range(60):
        at = rng.choice((0, 8, 12, 16, 20, 24, 56, rng.randrange(len(table) - 8)))
        nbytes = rng.choice((4, 8, 4096, len(table)))
        filling = rng.choice((rng.randbytes(nbytes), b"\xff" * nbytes, bytes(nbytes), struct.pack("<I", 1) * nbytes))
        table[at : at + nbytes] = filling[: len(table[at : at + nbytes])]
        keys = prompts[round_ % len(prompts)]
        assert house.ns.put(keys, payload(keys)).stored or house.ns.match(keys).num_blocks or nbytes == len(table)
        num_blocks, blocks = house.ns.get(keys)
        assert all_right(keys[:num_blocks], list(blocks))
        house.way.inner.stats()
    table[:] = bytes(len(table))
    raw.send(head(wire.BYE))
    assert raw.answer() is not None
    house.require_well()
    keys = chain_keys(house.ns, 100, prompt=9)
    assert house.ns.put(keys, payload(keys)).stored == 100


def test_a_client_that_takes_no_answers_is_hung_up_on(house: House):
    raw = house.raw()
    raw.socket.settimeout(20)
    with pytest.raises(OSError) as ended_:
        while True:
            raw.send(head(wire.PROMOTE) + chain(house.number, house.keys.tobytes()))
    assert not isinstance(ended_.value, TimeoutError)
    raw.close()
    house.require_well()


def test_a_grant_that_could_not_be_told_is_undone(house: House):
    """Nobody knows of it, and its process goes on."""
    raw = house.raw()
    raw.socket.shutdown(0)
    raw.send(head(wire.RESERVE) + chain(house.number, chain_keys(house.ns, 4, prompt=1).tobytes()))
    assert wait_for(lambda: house.counts()["num_reserved"] == 2)  # ours at the start, and this one
    assert wait_for(house.is_idle), house.counts()


@pytest.mark.parametrize("state", [state for state in wire.STATES if state != "waiting"])
def test_a_client_that_dies_leaves_nothing_behind(house: House, state: str):
    inner, keys = house.way.inner, chain_keys(house.ns, 4, prompt=1)
    child = Child(house.path, house.ticket(), state, house.number, keys.tobytes())
    assert wait_for(lambda: house.counts()["num_clients"] == house.num_clients + 1)  # connected is not yet accepted
    counts = house.counts()
    if state in ("reserved", "silent"):
        assert counts["num_reservations"] == 1 and inner.stats()["index"]["writing"] == 4
    if state == "leasing":
        assert inner.stats()["lookups"]["leases_in_use"] == 64
    child.kill()
    assert wait_for(house.is_idle), house.counts()
    house.require_well()


def test_a_client_that_dies_while_its_reservation_waits_leaves_nothing_behind(house: House):
    number, keys = house.limited()
    with house.way.inner.lock:  # whoever needs the store waits for us
        child = Child(house.path, house.ticket(number), "waiting", number, keys)
        assert house.counts()["num_waits"] == 1
        child.kill()
        assert wait_for(lambda: house.counts()["num_clients"] == house.num_clients)
    house.require_well()


def test_one_process_has_so_many_connections_and_gets_them_back(house: House):
    raws = [house.raw(opened=False) for _ in range(8 - house.num_clients)]
    assert house.raw(opened=False).is_over()
    for raw in raws:
        raw.close()
    assert wait_for(house.is_idle)
    for _ in range(50):  # nobody who was never admitted counts once it has gone
        with Raw(house.path) as raw:
            assert raw.ask(wire.COMMIT, ended(1)).status == wire.UNKNOWN
    assert wait_for(house.is_idle)
    for _ in range(50):
        with kvstore.connect(house.way.target) as store:
            ns = store.namespace(make_spec())
            assert ns.match(house.keys).num_blocks == 3 and ns._space is not None
    house.require_well()


def test_without_descriptors_a_client_is_turned_away(house: House):
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    raw = Raw(house.path)
    assert raw.ask(wire.COMMIT, ended(1)).status == wire.UNKNOWN
    raw.close()
    assert wait_for(house.is_idle)
    fillers = [os.open("/dev/null", os.O_RDONLY)]
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (fillers[-1] + 3, before[1]))
        while len(fillers) < 1000:
            try:
                fillers.append(os.open("/dev/null", os.O_RDONLY))
            except OSError:
                break
        os.close(fillers.pop())
        raw = Raw(house.path)  # has the last one
        assert raw.is_over()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        raw.close()
        for filler in fillers:
            os.close(filler)
    assert house.raw().ask(wire.COMMIT, ended(1)).status == wire.UNKNOWN


def test_leases_that_are_held_for_ever_do_not_keep_others_out(tmp_path: Path):
    with ExitStack() as stack:
        house = House(tmp_path, stack, serve={"lease_ms_max": 50})
        ns, inner = house.ns, house.way.inner
        held = ns.lease(chain_keys(ns, 1, prompt=2))
        keys = chain_keys(ns, 120, prompt=3)
        assert ns.put(keys, payload(keys)).stored == 120
        held, viewed, unseen = (ns.lease(keys) for _ in range(3))
        views = viewed.views
        assert held.num_blocks == 120 and held.is_intact and all_right(keys, views)
        with kvstore.connect(f"unix:{house.way.target[5:]}") as other:
            others = other.namespace(make_spec())
            fresh = chain_keys(ns, 100, prompt=4)
            assert wait_for(lambda: others.put(fresh, payload(fresh)).rejected == {})
            num_blocks, blocks = others.get(fresh)
            assert num_blocks == 100 and all_right(fresh, list(blocks))
        assert not held.is_intact and not viewed.is_intact
        with pytest.raises(LeaseExpired, match="held for too long"):
            held.copy_into(payload(keys))
        with pytest.raises(LeaseExpired, match="held for too long"):
            len(unseen.views)
        assert house.counts()["num_revoked"] > 0
        for lease in (held, unseen):
            lease.release()
        del views
        viewed.release()
        assert ns.lease(fresh).num_blocks == 100
        inner.check()


def test_who_never_commits_keeps_the_slots_and_nothing_else(tmp_path: Path):
    with ExitStack() as stack:
        house = House(tmp_path, stack, mover={"reservation_ttl_ms": 50})
        keys = chain_keys(house.ns, 4, prompt=1)
        raw = house.raw()
        reserved = raw.ask(wire.RESERVE, chain(house.number, keys.tobytes()))
        used = house.way.inner.near.usage().used_nbytes
        assert house.ns.put(keys, payload(keys)).stored == 0  # being written
        assert wait_for(lambda: house.ns.put(keys, payload(keys)).stored == 4)
        assert house.counts()["num_expired"] == 1
        assert house.way.inner.near.usage().used_nbytes == used + 4 * BLOCK
        late = raw.ask(wire.COMMIT, ended(reserved.reservation))
        assert late.status == wire.OK and struct.unpack_from("<I", late.body)[0] == 4  # all were lost
        assert house.way.inner.near.usage().used_nbytes == used
        num_blocks, blocks = house.ns.get(keys)
        assert num_blocks == 4 and all_right(keys, list(blocks))
        house.way.inner.check()
