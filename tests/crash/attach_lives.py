"""A daemon and client processes that are attached to it, all forked from one process without threads that has all
imported; it kills a client every few milliseconds, stops one now and then, and starts another in its place.

    python attach_lives.py SEED SECONDS NUM_PINS NUM_KILLS DISK_MIB FOLDER

Runs for so long, and on until so many blocks were leased and so many clients killed. Every block's bytes follow from
its key. Prints, as JSON, what was done and what the daemon has left when every client is gone.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import signal
import socket
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np

import kvstore
from kvstore.config import Config
from kvstore.daemon import Daemon
from kvstore.errors import LeaseExpired, LimitExceeded, Unavailable
from kvstore.service.server import Server
from kvstore.workload import fill_payloads, require_payloads

MIB = 1 << 20
NUM_CLIENTS = 5
TOKENS = 4  # per block
BLOCK_NBYTES, CHAIN_BLOCKS, NUM_CHAINS = (4096, 20_000), (64, 8), (48, 24)  # of the two common namespaces
HOST_NBYTES = 4 * MIB  # a third of what the chains have
LEASE_MS_MAX, RESERVATION_TTL_MS = 200, 300
PINS_AT_ONCE = 200
KILL_S_MAX = 0.02
PAUSE_S = 0.4  # once in PAUSES kills: some lives are longer than a lease or a reservation may last
PAUSES = 40
GRACE_S = 30.0
COUNTS = ("pins", "verified", "puts", "rooms", "left", "removed", "cleared", "far", "revoked", "refused", "gone", "bye")


class Board:
    """What the clients counted, in memory that outlives them. A row belongs to one process, a column to a count."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, NUM_CLIENTS * len(COUNTS) * 8)
        self.rows = np.frombuffer(self._memory, np.int64).reshape(NUM_CLIENTS, len(COUNTS))

    def sums(self) -> dict[str, int]:
        return dict(zip(COUNTS, self.rows.sum(axis=0).tolist(), strict=True))


# ---- a client ----


class Client:
    """Does one thing after another until it is killed."""

    def __init__(self, number: int, row: Any, target: str, seed: int) -> None:
        self.row, self.rng = row, random.Random(seed)
        self.store = kvstore.connect(target, timeout_ms=5_000)
        specs = [kvstore.NamespaceSpec(model=f"m{n}", block_nbytes=n, block_tokens=TOKENS) for n in BLOCK_NBYTES]
        self.spaces = [self.store.namespace(spec) for spec in specs]
        own = kvstore.NamespaceSpec(model=f"own{number}", block_nbytes=8192, block_tokens=TOKENS)
        self.own = self.store.namespace(own)
        self.kept: list[Any] = []
        self.verbs = [self.pin] * 3 + [self.read, self.view, self.put, self.put, self.room, self.match, self.far]
        self.verbs += [self.hold, self.own_blocks]

    def count(self, what: str, num: int = 1) -> None:
        self.row[COUNTS.index(what)] += num

    def chain(self) -> tuple[Any, Any]:
        """A namespace and the keys of some prefix of one of its chains."""
        which = self.rng.randrange(2)
        number, length = self.rng.randrange(NUM_CHAINS[which]), self.rng.randint(1, CHAIN_BLOCKS[which])
        first = number * CHAIN_BLOCKS[which] * TOKENS
        return self.spaces[which], self.spaces[which].keys(np.arange(first, first + length * TOKENS, dtype=np.uint32))

    def verify(self, keys: Any, blocks: Any) -> None:
        if len(blocks):
            require_payloads(keys[: len(blocks)], blocks)
        self.count("verified", len(blocks))

    def pin(self) -> None:
        ns, keys = self.chain()
        for _ in range(PINS_AT_ONCE):
            with ns.lease(keys, 0) as lease:
                num = lease.num_blocks
            self.count("pins", num)
            if not num:
                return

    def read(self) -> None:
        ns, keys = self.chain()
        num, blocks = ns.get(keys, deadline_ms=self.rng.choice((0, 20)))
        self.verify(keys, blocks[:num])

    def view(self) -> None:
        ns, keys = self.chain()
        with ns.lease(keys, self.rng.choice((0, 20))) as lease:
            self.count("pins", lease.num_blocks)
            copy = np.array([np.frombuffer(view, np.uint8) for view in lease.views])
            if not lease.is_intact:
                raise LeaseExpired("a view was read too late")
        self.verify(keys, copy)

    def hold(self) -> None:
        """Keep leases longer than is allowed, then copy under them."""
        ns, keys = self.chain()
        self.kept.append((ns, keys, ns.lease(keys, 0)))
        if len(self.kept) > 4:
            ns, keys, lease = self.kept.pop(self.rng.randrange(len(self.kept)))
            out = np.empty((lease.num_blocks, ns.spec.block_nbytes), np.uint8)
            try:
                lease.copy_into(out)
            finally:
                lease.release()
            self.verify(keys, out)

    def put(self) -> None:
        ns, keys = self.chain()
        blocks = np.empty((len(keys), ns.spec.block_nbytes), np.uint8)
        fill_payloads(keys, blocks)
        result = ns.put(keys, blocks, deadline_ms=self.rng.choice((0, 20)), durable=self.rng.random() < 0.02)
        self.count("puts", result.stored)

    def room(self) -> None:
        """A reservation that is committed, left alone, or written to after its time."""
        ns, keys = self.chain()
        room = ns.reserve(keys, deadline_ms=5)
        fate, wanted = self.rng.randrange(8), list(room.wanted)
        for position, view in zip(wanted, room.views, strict=True):
            fill_payloads(keys[position : position + 1], np.frombuffer(view, np.uint8)[None])
            if fate == 0 and self.rng.random() < 0.1:
                time.sleep(RESERVATION_TTL_MS / 1000)
            if fate == 1:
                break
        if fate == 1:
            self.count("left", len(wanted))
            del room
        elif fate == 2:
            self.kept.append((ns, keys[:0], ns.lease(keys[:0])))
            room.release()
        else:
            room.commit()
            self.count("rooms", len(wanted))

    def match(self) -> None:
        ns, keys = self.chain()
        assert ns.match(keys).num_blocks <= len(keys)
        if self.rng.random() < 0.1:
            self.count("removed", ns.remove(keys[-1:]))

    def far(self) -> None:
        ns, keys = self.chain()
        if self.rng.random() < 0.5:
            ns.prefetch(keys, "host", 20)
        with ns.lease(keys, 50) as lease:
            self.count("far", lease.num_promoted)
            out = np.empty((lease.num_blocks, ns.spec.block_nbytes), np.uint8)
            lease.copy_into(out)
        self.verify(keys, out)

    def own_blocks(self) -> None:
        keys = self.own.keys(np.arange(4 * TOKENS, dtype=np.uint32) + self.rng.randrange(1000))
        blocks = np.empty((len(keys), self.own.spec.block_nbytes), np.uint8)
        fill_payloads(keys, blocks)
        self.own.put(keys, blocks, deadline_ms=0)
        num, found = self.own.get(keys, deadline_ms=0)
        self.verify(keys, found[:num])
        if self.rng.random() < 0.2:
            self.count("cleared", self.own.clear())

    def work(self) -> None:
        """Until killed, or until it has had enough and leaves as it should."""
        while self.rng.random() > 0.000_5:
            try:
                self.rng.choice(self.verbs)()
            except LeaseExpired:
                self.count("revoked")
            except LimitExceeded:
                self.count("refused")
            except Unavailable:
                self.count("gone")
        self.count("bye")


def live(number: int, board: Board, target: str, folder: Path, seed: int) -> None:
    """The whole life of a client process; never returns."""
    try:
        client = Client(number, board.rows[number], target, seed)
        if seed % 3 == 0:  # a second thread, on the same attachment
            other = Client.__new__(Client)
            other.__dict__ = {**client.__dict__, "rng": random.Random(seed + 1), "kept": []}
            other.verbs = [getattr(other, verb.__name__) for verb in client.verbs]
            threading.Thread(target=told, args=(other.work, folder), daemon=True).start()
        told(client.work, folder)
        if seed % 2:
            client.store.close()
    finally:
        os._exit(0)


def told(work: Any, folder: Path) -> None:
    try:
        work()
    except BaseException:
        with (folder / "wrong").open("a") as file:
            file.write(traceback.format_exc())


# ---- the daemon ----


def held_by(server: Server) -> dict[str, Any]:
    """What the daemon holds for whom."""
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines())
    stats = server.stats()
    return {
        "fds": len(os.listdir("/proc/self/fd")),
        "threads": int(status["Threads"]),
        "rss_kib": int(status["VmRSS"].split()[0]),
        "attached": stats["attached"],
        "lookups": stats["lookups"],
        "index": stats["index"],
        "defects": stats["mover"]["defects"],
        "corrupt": stats["mover"]["corrupt_blocks"],
    }


def answer(server: Server, line: socket.socket) -> None:
    """One question a datagram: `stats`, or `check` for an audit as well."""
    while question := line.recv(100):
        try:
            if question == b"check":
                server._store.check()
            line.send(json.dumps(held_by(server)).encode())
        except BaseException:
            line.send(json.dumps(traceback.format_exc()).encode())


def serve(config: Config, line: socket.socket) -> None:
    """The life of the daemon; never returns."""
    try:

        def ready(server: Server) -> None:
            threading.Thread(target=answer, args=(server, line), daemon=True).start()
            line.send(b"ready")

        Daemon(lambda: config).run(ready)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


class Served:
    """A daemon in a process of its own."""

    def __init__(self, config: Config) -> None:
        self.line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = os.fork()
        if self.pid == 0:
            serve(config, theirs)
        theirs.close()
        self.line.settimeout(GRACE_S)
        assert self.line.recv(100) == b"ready"

    def ask(self, question: str) -> dict[str, Any]:
        self.line.send(question.encode())
        found = json.loads(self.line.recv(1 << 16))
        assert isinstance(found, dict), found
        return found

    def ask_until_idle(self) -> dict[str, Any]:
        """Once no client is left, or as it is when that does not come about."""
        end_s = time.monotonic() + GRACE_S
        while True:
            found = self.ask("check")
            is_idle = not found["attached"]["num_clients"] and not found["index"]["writing"]
            if (is_idle and not found["lookups"]["leases_in_use"]) or time.monotonic() > end_s:
                return found
            time.sleep(0.05)

    def end(self) -> int:
        os.kill(self.pid, signal.SIGTERM)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


# ---- the parent ----


class Parent:
    """Starts clients and kills them."""

    def __init__(self, seed: int, target: str, folder: Path) -> None:
        self.rng, self.target, self.folder = random.Random(seed), target, folder
        self.board = Board()
        self.pids = [0] * NUM_CLIENTS
        self.num_lives = self.num_kills = self.num_stops = 0

    def start(self, number: int) -> None:
        seed = self.rng.randrange(1 << 30)
        self.pids[number] = os.fork()
        self.num_lives += 1
        if self.pids[number] == 0:
            live(number, self.board, self.target, self.folder, seed)

    def kill(self, number: int) -> None:
        os.kill(self.pids[number], signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(self.pids[number], 0)[1])
        assert status in (-signal.SIGKILL, 0), status  # 0: it has left by itself
        self.num_kills += status != 0

    def step(self) -> None:
        """Wait a little, then kill one and start another; or let one stand still meanwhile."""
        if self.num_lives % PAUSES == PAUSES // 2:
            stopped = self.pids[self.rng.randrange(NUM_CLIENTS)]
            os.kill(stopped, signal.SIGSTOP)
            time.sleep(PAUSE_S)
            os.kill(stopped, signal.SIGCONT)
            self.num_stops += 1
            time.sleep(PAUSE_S)
        time.sleep(self.rng.uniform(0, KILL_S_MAX))
        number = self.rng.randrange(NUM_CLIENTS)
        self.kill(number)
        self.start(number)


def config_for(folder: Path, disk_mib: int) -> Config:
    disk: dict[str, Any] = {"nbytes": 0}
    if disk_mib:
        disk = {"nbytes": disk_mib * MIB, "path": str(folder / "disk"), "free_nbytes_min": 0}
    return Config(
        host={"nbytes": HOST_NBYTES},
        disk=disk,
        index={"entries_max": 1 << 16},
        mover={"reservation_ttl_ms": RESERVATION_TTL_MS, "put_wait_ms": 5},
        serve={"socket": str(folder / "s"), "lease_ms_max": LEASE_MS_MAX, "leases_max": 1024, "drain_ms": 0},
    )


def main(seed: int, seconds: int, num_pins: int, num_kills: int, disk_mib: int, folder: Path) -> None:
    config = config_for(folder, disk_mib)
    daemon = Served(config)
    parent = Parent(seed, f"unix:{config.serve.socket}", folder)
    for number in range(NUM_CLIENTS):
        parent.start(number)
    time.sleep(1)
    for number in range(NUM_CLIENTS):
        parent.kill(number)
    before = daemon.ask_until_idle()  # everything that is made once is there now
    for number in range(NUM_CLIENTS):
        parent.start(number)
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s or parent.board.sums()["pins"] < num_pins or parent.num_kills < num_kills:
        parent.step()
        if (folder / "wrong").exists():
            break
    for number in range(NUM_CLIENTS):
        parent.kill(number)
    after = daemon.ask_until_idle()
    status = daemon.end()
    wrong = (folder / "wrong").read_text() if (folder / "wrong").exists() else ""
    lives = {"lives": parent.num_lives, "kills": parent.num_kills, "stops": parent.num_stops}
    done = parent.board.sums() | lives | {"status": status}
    print(json.dumps({"done": done, "before": before, "after": after, "wrong": wrong}))


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:6]]
    try:
        main(*numbers, folder=Path(sys.argv[6]))
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os.killpg(0, signal.SIGKILL)  # with the daemon and the clients, which hold the same pipes
