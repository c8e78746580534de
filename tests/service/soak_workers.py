"""Clients that load a daemon, each of its own kind; `python soak_workers.py TARGET KIND SEED` is one to be killed.

A kind is a class with a `step`. Another way to the store is one more kind: a subclass whose `connect` goes that way.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from store_helpers import all_right, chain, make_spec, payload

import kvstore
from kvstore import frames
from kvstore.errors import LimitExceeded
from kvstore.v1 import kvstore_pb2 as pb

NUM_PROMPTS, PROMPT_BLOCKS_MAX = 400, 8  # together more than the tiers hold
READ, WRITE = "/kvstore.v1.KVStore/Read", "/kvstore.v1.KVStore/Write"
ABANDONED_S = 2.0  # the deadline of streams that nobody goes on with


class Journal:
    """What all workers did: how long calls took and when, how often what happened, and what must not have."""

    def __init__(self) -> None:
        self.times: dict[str, array[float]] = defaultdict(lambda: array("d"))  # verb → when, how long, when, …
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._lock = threading.Lock()

    @contextmanager
    def timed(self, verb: str) -> Iterator[None]:
        """One call. One that a limit refuses is counted: that is what limits are for."""
        began_s = time.perf_counter()
        try:
            yield
        except LimitExceeded:
            self.count("refused")
        else:
            with self._lock:
                self.times[verb].extend((began_s, time.perf_counter() - began_s))
        finally:
            self.count(verb)

    def count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1

    def percentile_ms(self, verb: str, share: float, since_s: float, until_s: float) -> float:
        """Of the calls that began in that time; 0 without any."""
        times = self.times[verb]
        found = sorted(times[i + 1] for i in range(0, len(times), 2) if since_s <= times[i] < until_s)
        return 1000 * found[min(len(found) - 1, int(share * len(found)))] if found else 0.0


class Worker(ABC):
    """One client with a connection of its own."""

    def __init__(self, target: str, seed: int, journal: Journal) -> None:
        self.target, self.journal, self.rng = target, journal, random.Random(seed)
        self.store = self.connect()
        self.ns = self.store.namespace(make_spec())

    def connect(self) -> Any:
        """The way to the store."""
        return kvstore.connect(self.target, timeout_ms=10_000)

    def prompt(self) -> Any:
        """Keys of a prompt; a few come often, most seldom."""
        often = self.rng.random() < 0.5
        number = min(int(self.rng.paretovariate(0.6)), NUM_PROMPTS) if often else self.rng.randrange(NUM_PROMPTS)
        return chain(self.ns, 1 + number % PROMPT_BLOCKS_MAX, prompt=number)

    @abstractmethod
    def step(self) -> None: ...

    def close(self) -> None:
        self.store.close()


class Chat(Worker):
    """An engine: match, read what is there and check every byte, write the rest."""

    def step(self) -> None:
        keys = self.prompt()
        with self.journal.timed("match"):
            self.ns.match(keys)
        with self.journal.timed("read"):
            num_blocks, blocks = self.ns.get(keys, deadline_ms=self.rng.choice([0, 50, 500]))
            if not all_right(keys[:num_blocks], list(blocks)):
                self.journal.wrong.append("wrong bytes")
        with self.journal.timed("write"):
            self.ns.put(keys, payload(keys), deadline_ms=self.rng.choice([0, 100]))


class Tidier(Worker):
    """Prefetches, removes, clears now and then, asks why, and makes durable."""

    def step(self) -> None:
        keys = self.prompt()
        draw = self.rng.random()
        if draw < 0.6:
            with self.journal.timed("prefetch"):
                self.ns.prefetch(keys, deadline_ms=100).result(30)
        elif draw < 0.8:
            with self.journal.timed("remove"):
                self.ns.remove(keys[self.rng.randrange(len(keys)) :])
        elif draw < 0.9:
            with self.journal.timed("explain"):
                self.ns.explain(keys)
        elif draw < 0.9995:
            with self.journal.timed("make_durable"):
                self.ns.make_durable(keys, deadline_ms=50)
        else:
            with self.journal.timed("clear"):
                self.ns.clear()


class Raw(Worker):
    """Speaks the protocol without our client, to do what that never would."""

    def __init__(self, target: str, seed: int, journal: Journal) -> None:
        super().__init__(target, seed, journal)
        self.channel = self._channel()

    def _channel(self) -> grpc.Channel:
        return grpc.insecure_channel(self.target, options=(("grpc.use_local_subchannel_pool", 1),))

    def begin(self, timeout_s: float) -> Any:
        """A Read, or a Write with some of its pieces, that has begun."""
        keys = self.prompt()
        handle = self.ns._handle
        if self.rng.random() < 0.5:
            request = pb.ReadRequest(namespace=handle, keys=keys.tobytes(), deadline_ms=50).SerializeToString()
            call = self.channel.unary_stream(READ)(request, timeout=timeout_s)
            wanted = self.rng.randrange(3)
        else:
            header = pb.WriteHeader(namespace=handle, keys=keys.tobytes())
            pieces = [frames.encode_data([bytes(1000)]) for _ in range(self.rng.randrange(3))]
            messages = [pb.WriteRequest(header=header).SerializeToString(), *pieces]
            call = self.channel.stream_stream(WRITE)(self._said(messages, timeout_s), timeout=timeout_s)
            wanted = self.rng.randrange(2)
        try:
            for _ in range(wanted):
                next(call)
        except (grpc.RpcError, StopIteration):  # nothing stored, everything stored, or a limit
            self.journal.count("ended by itself")
        return call

    @staticmethod
    def _said(messages: list[bytes], timeout_s: float) -> Iterator[bytes]:
        """The messages, and then silence for as long as the call can last."""
        yield from messages
        threading.Event().wait(timeout_s)

    def close(self) -> None:
        self.channel.close()
        super().close()


class Canceller(Raw):
    """Cancels streams wherever they are."""

    def step(self) -> None:
        call = self.begin(ABANDONED_S)
        time.sleep(self.rng.random() * 0.01)
        call.cancel()
        self.journal.count("cancel")


class Abandoner(Raw):
    """Leaves streams open and says nothing more: some end by their deadline, some with the connection."""

    def step(self) -> None:
        calls = [self.begin(ABANDONED_S * self.rng.random()) for _ in range(3)]
        self.journal.count("abandon")
        if self.rng.random() < 0.5:
            time.sleep(0.2)
            self.channel.close()
            self.channel = self._channel()
        else:
            for call in calls:
                call.code()


class Visitor(Worker):
    """Comes, asks little, and goes: connections must leave nothing behind."""

    def step(self) -> None:
        with self.connect() as store:
            ns = store.namespace(make_spec())
            ns.match(self.prompt())
            store.stats()
        self.journal.count("visit")


class Victim(Worker):
    """Clients of other kinds in processes of their own, that are killed in the middle of whatever they do."""

    kinds: tuple[str, ...] = ("Chat", "Canceller")

    def step(self) -> None:
        kind, seed = self.rng.choice(self.kinds), self.rng.getrandbits(32)
        command = [sys.executable, __file__, self.target, kind, str(seed)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        try:
            assert process.stdout is not None
            if process.stdout.readline() == b"at work\n":
                time.sleep(self.rng.random())
                self.journal.count("kill")
            else:
                self.journal.wrong.append(f"a {kind} did not begin")
        finally:
            process.send_signal(signal.SIGKILL)
            process.communicate()


KINDS: tuple[type[Worker], ...] = (Chat, Chat, Tidier, Canceller, Abandoner, Visitor, Victim)


class Crew:
    """Workers at work, one thread each, until `stop`."""

    def __init__(self, target: str, seed: int, journal: Journal, kinds: tuple[type[Worker], ...] = KINDS) -> None:
        self._stop = threading.Event()
        self._journal = journal
        workers = [kind(target, seed + number, journal) for number, kind in enumerate(kinds)]
        self._threads = [threading.Thread(target=self._run, args=(one,), daemon=True) for one in workers]
        for thread in self._threads:
            thread.start()

    def _run(self, worker: Worker) -> None:
        try:
            while not self._stop.wait(0.001):
                worker.step()
        except Exception as error:
            self._journal.wrong.append(f"{type(worker).__name__}: {error!r}")
        finally:
            worker.close()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "a worker does not end"


def main(target: str, kind: str, seed: str) -> None:
    """Work until killed."""
    journal = Journal()
    worker = {one.__name__: one for one in KINDS}[kind](target, int(seed), journal)
    worker.step()
    sys.stdout.write("at work\n")
    sys.stdout.flush()
    while not journal.wrong:
        worker.step()


if __name__ == "__main__":
    main(*sys.argv[1:])
