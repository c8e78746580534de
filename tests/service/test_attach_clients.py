"""Attached clients that come, wait, hang up and fork; and what one of them may take from the others: nothing."""

from __future__ import annotations

import os
import signal
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import attach_wire as wire
import numpy as np
import pytest
from attach_house import House
from attach_wire import chain, ended
from service_helpers import MIB, wait_for
from store_helpers import BLOCK, all_right, make_spec, payload
from store_helpers import chain as chain_keys

import kvstore
from kvstore._core.lease import STOP_BUSY
from kvstore.errors import LeaseExpired, Unavailable
from kvstore.service import attaching


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with ExitStack() as stack:
        yield House(tmp_path, stack)


# ---- hanging up ----


def test_a_client_that_hung_up_is_forgotten_once_it_holds_nothing(house: House):
    with kvstore.connect(house.way.target) as store:
        ns = store.namespace(make_spec())
        lease = ns.lease(house.keys)
        space = ns._space
        views = lease.views
        space.attachment.link.end()
        assert wait_for(lambda: house.counts()["num_silent"] == 1)
        fresh = chain_keys(house.ns, 128, prompt=2)
        house.ns.put(fresh, payload(fresh))  # whatever is not leased goes
        assert lease.is_intact and all_right(house.keys, views)
        del views
        lease.release()
        assert wait_for(lambda: house.counts()["num_clients"] == house.num_clients), house.counts()
        late = space.attachment.leases.acquire(space.known_by(fresh), True, space.number)
        assert (late.num_blocks, space.attachment.leases.used) == (0, 0)  # nobody would see it
        assert ns.match(fresh).num_blocks and ns._space is not space  # attached again
    house.require_well()


def test_what_was_left_is_given_back_before_the_store_is_closed(house: House):
    with kvstore.connect(house.way.target) as store:
        ns = store.namespace(make_spec())
        room = ns.reserve(chain_keys(ns, 2, prompt=3))
        assert house.counts()["num_reservations"] == 1
        del room
    assert wait_for(house.is_idle), house.counts()


def test_no_call_reserves_any_more_when_reservations_are_undone(house: House, monkeypatch: pytest.MonkeyPatch):
    """Their owners may still be writing to the slots."""
    server, stop, ended_calls = house.way.server, house.attaching.stop, []
    assert server is not None
    monkeypatch.setattr(house.attaching, "stop", lambda: (ended_calls.append(server._pool._shutdown), stop()))
    server.drain(0)
    assert ended_calls == [True]


# ---- waiting ----


def test_a_deadline_holds_while_another_reservation_waits(house: House):
    number, keys = house.limited()
    _, others = house.limited(7)
    with house.way.inner.lock:
        raw = house.raw(number=number)
        waiting = raw.ask(wire.RESERVE, chain(number, keys, deadline_ms=60_000))
        assert (waiting.status, waiting.detail > 0) == (wire.WAIT, True)
        later = raw.ask(wire.RESERVE, chain(number, others, deadline_ms=60_000))
        assert (later.status, later.detail) == (wire.WAIT, 0)
        now = raw.ask(wire.RESERVE, chain(number, others))
        assert (now.status, now.granted) == (wire.OK, 2)  # what the quota allows
        assert raw.ask(wire.RETRY, ended(waiting.detail)).status == wire.WAIT
        assert raw.ask(wire.RETRY, ended(waiting.detail + 1)).status == wire.UNKNOWN
        assert raw.ask(wire.ABANDON, ended(now.reservation)).status == wire.OK


def test_limits_count_when_a_wait_is_over(tmp_path: Path):
    with ExitStack() as stack:
        house = House(tmp_path, stack, serve={"client_nbytes_max": 64 * BLOCK})
        number, keys = house.limited()
        with house.way.inner.lock:
            raw = house.raw(number=number)
            assert raw.open(house.ticket()).status == wire.OK
            waiting = raw.ask(wire.RESERVE, chain(number, keys))
            assert waiting.status == wire.WAIT
            much = raw.ask(wire.RESERVE, chain(house.number, chain_keys(house.ns, 64, prompt=2).tobytes()))
            assert much.granted == 64
            over = raw.ask(wire.RETRY, ended(waiting.detail))
            assert (over.status, over.detail) == (wire.LIMIT, wire.LIMIT_RESERVED)
            assert raw.ask(wire.ABANDON, ended(much.reservation)).status == wire.OK
            again = raw.ask(wire.RESERVE, chain(number, keys))
            assert again.status == wire.WAIT and again.detail > 0  # the place of who gave up is free
            answers = []  # nobody can look at it while this test has the lock; it is not waited for very long
            assert wait_for(lambda: answers.append(raw.ask(wire.RETRY, ended(again.detail))) or answers[-1].body)
            assert answers[-1].granted == 2


def test_those_that_wait_keep_nobody_else_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As many long chains as the server can keep leases on: they wait, others reserve."""
    monkeypatch.setattr(attaching, "CLIENTS_PER_PROCESS_MAX", 64)
    with ExitStack() as stack:
        house = House(tmp_path, stack, host={"nbytes": 48 * MIB})
        spec = make_spec(model="long", block_nbytes=4096)
        ns = house.way.store.namespace(spec, quota_nbytes=8191 * 4096)
        keys = chain_keys(ns, 8192)
        assert ns.put(keys[:8191], np.zeros((8191, 4096), np.uint8)).stored == 8191
        number, sent = ns._space.number, keys.tobytes()
        with house.way.inner.lock:
            for _ in range(8):
                raw = house.raw(number=number)
                assert raw.ask(wire.RESERVE, chain(number, sent, deadline_ms=60_000)).status == wire.WAIT
            wish = chain_keys(house.ns, 4).tobytes()
            assert house.raw().ask(wire.RESERVE, chain(house.number, wish)).granted == 1


def test_one_client_s_wishes_leave_room_for_who_waits(house: House):
    number, keys = house.limited()
    with house.way.inner.lock:
        raw = house.raw()
        wish = chain(house.number, house.keys.tobytes())
        taken = [raw.ask(wire.PROMOTE, wish).status for _ in range(300)]
        assert taken[:100] == [wire.OK] * 100 and taken[-1] == wire.LIMIT
        other = house.raw(number=number)
        waiting = other.ask(wire.RESERVE, chain(number, keys, deadline_ms=60_000))
    # Long before its deadline: the store was asked.
    assert wait_for(lambda: other.ask(wire.RETRY, ended(waiting.detail)).status == wire.OK)


# ---- reading ----


class Busy:
    """A lease table that first finds an eviction at work."""

    class grip:
        num_blocks = num_near = 0
        stop, is_near = STOP_BUSY, False

        @staticmethod
        def release() -> None:
            pass

    def __init__(self, leases: Any) -> None:
        self.leases, self.num_asked = leases, 0

    def acquire(self, *arguments: Any) -> Any:
        self.num_asked += 1
        return self.grip if self.num_asked == 1 else self.leases.acquire(*arguments)


def test_a_get_that_met_an_eviction_reads_what_is_there(house: House):
    attachment = house.ns._space.attachment
    attachment.leases, leases = Busy(attachment.leases), attachment.leases
    try:
        num_blocks, blocks = house.ns.get(house.keys)
    finally:
        attachment.leases = leases
    assert num_blocks == 3 and all_right(house.keys, list(blocks))


# ---- forks ----


NUM_FORKS, CHILD_S = 20, 20


def in_a_child(work: Any) -> int:
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # not the handler of the test's own limit
        signal.alarm(CHILD_S)  # ends it, should it wait for ever
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_child_leaves_its_parent_s_leases_and_reservations_alone(house: House):
    ns, inner = house.ns, house.way.inner
    lease, viewed = ns.lease(house.keys), ns.lease(house.keys)
    views = viewed.views
    room_keys = chain_keys(ns, 2, prompt=1)
    room, left = ns.reserve(room_keys), ns.reserve(chain_keys(ns, 1, prompt=5))
    attachment = ns._space.attachment

    def child() -> None:
        nonlocal lease, viewed, views, room, left
        assert all_right(house.keys, views)  # the bytes are there
        for one in (lease, viewed):
            try:
                one.copy_into(payload(house.keys))
            except LeaseExpired:
                continue
            raise AssertionError("a lease of the parent's")
        assert attachment.leases.acquire(house.keys, True, house.number).num_blocks == 0
        views = None
        lease.release()
        viewed.release()
        room.release()
        lease = viewed = room = left = None
        house.ns._attachments.end()

    assert in_a_child(child) == 0
    assert inner.stats()["lookups"]["leases_in_use"] == 2 * 64
    assert house.counts()["num_reservations"] == 2 and house.counts()["num_silent"] == 0
    fresh = chain_keys(ns, 128, prompt=2)
    ns.put(fresh, payload(fresh))  # whatever is not leased goes
    assert lease.is_intact and viewed.is_intact and all_right(house.keys, views)
    room.fill(payload(room_keys))
    assert room.commit().stored == 2
    left.release()
    assert ns.match(room_keys).num_blocks == 2 and ns._space.attachment is attachment
    del views
    lease.release()
    viewed.release()
    house.require_well()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_fork_while_other_threads_have_the_locks_does_not_hang_the_child(house: House):
    """Threads lease, reserve and hang up all the time; no child ever waits for one of them."""
    stop = threading.Event()

    def lease() -> None:
        while not stop.is_set():
            house.ns.lease(house.keys).release()

    def reserve() -> None:
        keys = chain_keys(house.ns, 4000, prompt=9)  # so many that the answer takes its time
        while not stop.is_set():
            house.ns.reserve(keys).release()

    threads = [threading.Thread(target=work) for work in (lease, lease, reserve, reserve)]
    for thread in threads:
        thread.start()
    kept = house.ns.lease(house.keys)
    attachment = house.ns._space.attachment

    def child() -> None:
        kept.release()
        with pytest.raises(Unavailable):
            attachment.link.bye()
        attachment.end()
        house.ns._attachments.end()

    try:
        assert [in_a_child(child) for _ in range(NUM_FORKS)] == [0] * NUM_FORKS
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert kept.is_intact
    kept.release()
    house.require_well()


def test_a_lease_table_of_64_words_is_where_the_format_says(house: House):
    """The raw client of these tests writes into the right place."""
    raw = house.raw()
    table = wire.table_of(raw.fds[1])
    table[wire.GROUPS_TOP_AT : wire.GROUPS_TOP_AT + 4] = struct.pack("<I", 1)
    assert house.way.inner.stats()["lookups"]["leases_in_use"] == 0
    table[wire.LEASES_AT : wire.LEASES_AT + 4] = struct.pack("<I", 1)
    assert house.way.inner.stats()["lookups"]["leases_in_use"] == 64
