"""A daemon that dies, is stopped or drains while processes are attached to it: they get misses and rejections, hold
what they hold, and attach to the next one by themselves."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attach_wire as wire
import numpy as np
import pytest
from attach_wire import Child, Raw, ended
from service_helpers import wait_for
from store_helpers import TOKENS, all_right, chain, make_spec, payload
from test_daemon import Process

from kvstore.errors import KVStoreError, LeaseExpired, Unavailable

NUM_DEATHS = 3


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Process]:
    process = Process(tmp_path)
    process.write(disk="1 GiB")  # nothing that was put durably has to make room
    process.start()
    yield process
    if process.process.poll() is None:
        process.end(signal.SIGKILL)


def is_attached(ns: Any) -> bool:
    """Has the last call found the daemon's memory?"""
    return ns._space is not None and not ns._space.attachment.is_over


class Work:
    """What several threads do to one connected store all the time; `wrong` has what should not have happened."""

    def __init__(self, store: Any) -> None:
        self.ns = store.namespace(make_spec())
        self.durable: list[Any] = []  # keys of prompts, the latest last
        self.wrong: list[str] = []
        self.attachments: set[Any] = set()  # lives of the daemon that were seen from inside
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,), daemon=True) for number in range(2)]
        for thread in self._threads:
            thread.start()

    def _run(self, number: int) -> None:
        rng = np.random.default_rng([number, id(self)])  # prompts of its own
        known: list[Any] = [self.ns.keys(rng.integers(0, 1 << 32, 3 * TOKENS))]
        verbs = (self._put, self._read, self._view, self._reserve, self._match, self._remove)
        while not self._stop.wait(0.001):  # or a dead daemon would be asked a million times
            if rng.random() < 0.3:
                known = [*known[-20:], self.ns.keys(rng.integers(0, 1 << 32, 3 * TOKENS))]
            keys = known[rng.integers(len(known))]
            try:
                verbs[rng.integers(len(verbs))](keys, rng)
            except LeaseExpired:  # of what was under way when it died
                continue
            except KVStoreError as error:
                self.wrong.append(repr(error))
            space = getattr(self.ns, "_space", None)
            if space is not None:
                self.attachments.add(space.attachment)

    def _require(self, keys: Any, blocks: Any) -> None:
        if not all_right(keys[: len(blocks)], list(blocks)):
            self.wrong.append("wrong bytes")

    def _put(self, keys: Any, rng: Any) -> None:
        durable = bool(rng.random() < 0.5)
        if self.ns.put(keys, payload(keys), durable=durable, deadline_ms=2_000).durable:
            self.durable.append(keys)

    def _read(self, keys: Any, rng: Any) -> None:
        num_blocks, blocks = self.ns.get(keys, deadline_ms=int(rng.choice((0, 200))))
        self._require(keys, blocks[:num_blocks])

    def _view(self, keys: Any, rng: Any) -> None:
        with self.ns.lease(keys, 50) as lease:
            self._stop.wait(0.002)
            self._require(keys, [bytes(view) for view in lease.views])

    def _reserve(self, keys: Any, rng: Any) -> None:
        with self.ns.reserve(keys, deadline_ms=100) as room:
            if len(room.wanted):
                room.fill(payload(keys[list(room.wanted)]))
                room.commit()

    def _match(self, keys: Any, rng: Any) -> None:
        assert self.ns.match(keys).num_blocks <= 3

    def _remove(self, keys: Any, rng: Any) -> None:
        if any(keys is one for one in self.durable):
            return
        try:
            self.ns.remove(keys[2:])
        except Unavailable:  # nobody knows whether it was done
            return

    def end(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in self._threads)


def test_killed_under_load_clients_attach_again_by_themselves(daemon: Process):
    with daemon.connect(timeout_ms=1_000) as near, daemon.connect(timeout_ms=1_000, attach=False) as far:
        works = [Work(near), Work(far)]
        for _ in range(NUM_DEATHS):
            seen = [len(work.durable) for work in works]
            for work, num in zip(works, seen, strict=True):
                assert wait_for(lambda work=work, num=num: len(work.durable) >= num + 3, 60), work.wrong[:3]
            assert wait_for(lambda: is_attached(works[0].ns), 60)
            daemon.end(signal.SIGKILL)
            daemon.start()
        assert wait_for(lambda: len(works[0].attachments) >= NUM_DEATHS + 1, 60), works[0].attachments
        for work in works:
            work.end()
            assert work.wrong == []
        assert wait_for(lambda: works[1].ns.match(works[0].durable[-1]).num_blocks == 3)  # it asks now and then
        assert far.stats()["index"]["evicted_far"] == 0
        for work in works:
            latest = work.durable[-10:]
            assert [work.ns.match(keys).num_blocks for keys in latest] == [3] * len(latest)
            for keys in latest:
                num_blocks, blocks = work.ns.get(keys)
                assert num_blocks == 3 and all_right(keys, list(blocks))
    assert daemon.end() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_what_is_held_when_it_ends_stays_as_it_is(daemon: Process, number: signal.Signals):
    with daemon.connect() as store:
        ns = store.namespace(make_spec())
        keys, others = chain(ns, 6), chain(ns, 2, prompt=1)
        assert ns.put(keys, payload(keys), durable=True).stored == 6
        lease, viewed = ns.lease(keys), ns.lease(keys)
        views = viewed.views
        room = ns.reserve(others)
        room_views = room.views
        dead = ns._space.attachment
        assert daemon.end(number) == (0 if number == signal.SIGTERM else -number)
        assert wait_for(lambda: dead.is_over)
        out = payload(keys)
        out[:] = 0
        assert lease.copy_into(out) == 6 and all_right(keys, list(out)) and all_right(keys, views)
        assert ns.match(keys).num_blocks == 0 and ns.get(keys)[0] == 0 and ns.lease(keys).num_blocks == 0
        assert ns.put(others, payload(others)).rejected.keys() == {0, 1}
        daemon.start()
        assert wait_for(lambda: ns.match(keys).num_blocks == 6 and is_attached(ns))
        assert ns._space.attachment is not dead
        np.frombuffer(room_views[0], np.uint8)[:] = 255  # nobody's any more
        with pytest.raises(LeaseExpired):
            room.commit()
        assert all_right(keys, views) and lease.is_intact
        del views, room_views
        viewed.release()
        lease.release()
        assert ns.put(others, payload(others)).stored == 2
        num_blocks, blocks = ns.get(keys)
        assert num_blocks == 6 and all_right(keys, list(blocks))
    assert daemon.end() == 0


def ticket_of(ns: Any) -> tuple[str, bytes, int]:
    """The attach socket's path, a ticket, and the namespace's number."""
    from kvstore.v1 import kvstore_pb2 as pb

    request = pb.AttachRequest(namespace=ns._handle)
    ticket = ns._link.ask("Attach", request, pb.AttachReply, repeat=True).ticket
    return ns._link.capabilities.attach_path, ticket, ns._space.number


def test_the_end_of_one_client_is_not_taken_for_that_of_the_next(daemon: Process):
    """While the daemon stands still one client says goodbye, another one connects, and the first one's process ends: it
    finds all three when it goes on, and the second client gets the place that the first one had."""
    with daemon.connect() as store:
        ns = store.namespace(make_spec())
        keys = chain(ns, 2)
        assert ns.put(keys, payload(keys)).stored == 2
        path, ticket, _ = ticket_of(ns)
        child = Child(path, ticket, "opened")
        daemon.stand_still()
        child.tell("bye")
        with Raw(path) as raw:
            child.kill()
            daemon.process.send_signal(signal.SIGCONT)
            for _ in range(3):
                assert raw.ask(wire.COMMIT, ended(1)).status == wire.UNKNOWN
            assert wait_for(lambda: store.stats()["attached"]["num_clients"] == 2), store.stats()["attached"]
    assert daemon.end() == 0


def test_a_daemon_that_stands_still_costs_its_clients_time_and_nothing_else(daemon: Process):
    """No answer in time: the line is given up, calls are misses, and later it is another line."""
    with daemon.connect(timeout_ms=200) as store:
        ns = store.namespace(make_spec())
        keys, others = chain(ns, 2), chain(ns, 2, prompt=1)
        assert ns.put(keys, payload(keys)).stored == 2
        first = ns._space.attachment
        lease = ns.lease(keys)
        daemon.stand_still()
        assert set(ns.put(others, payload(others)).rejected) == {0, 1}
        assert wait_for(lambda: first.is_over)
        assert ns.get(keys)[0] == 0
        daemon.process.send_signal(signal.SIGCONT)
        assert wait_for(lambda: ns.match(keys).num_blocks == 2 and is_attached(ns))
        assert ns._space.attachment is not first
        assert lease.is_intact and lease.copy_into(payload(keys)) == 2
        lease.release()
        num_blocks, blocks = ns.get(keys)
        assert num_blocks == 2 and all_right(keys, list(blocks))
    assert daemon.end() == 0
