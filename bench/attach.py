"""Lookups, reservations and copies of a process that is attached to a daemon, which is another process.

c_hot, c_cold: match, lease and release of a prefix of 64 blocks among a million resident ones, by the clock of
bench/lookup.py: single calls in C, less the clock's own time. The keys are in cache; hot is one prefix again and again,
cold walks through all of them in random order. The ceiling reads the same cache lines (64 buckets, 64 records) of the
same mapping and compares nothing. py_hot, py_cold: the same by `with ns.lease(keys)`; the ceiling is C.

rpc_match, ping_pong: the same question, cold, to the same daemon by one gRPC call; and as many bytes there and back
between two processes over a unix socket, in C on both ends. vs_rpc, vs_ping_pong: how many times longer that takes than
py_cold; vs_rpc_c: than c_cold.

reserve_commit: two messages to the daemon, a reservation of 64 new blocks and its commit, while there is room; the
ceiling is a ping-pong of messages of the same sizes in C. reserve_commit_full: likewise in a full store, which evicts
64 blocks for it. room_commit: the same by `with ns.reserve(keys) as room: room.commit()`.

reserve_commit_busy: p99 while the daemon's interpreter is busy, beside the p99 while it is not, in turn; medians of the
p99 of the rounds, so that a round falls out in which a neighbour took the core. The load is one process that asks for
statistics, one call after the other: nearly all of such a call is Python of the daemon. The daemon's other threads and
the load have a core, the daemon's thread behind the socket and this one another. reserve_commit_crowded: the same with
all of them on all cores, the load at the lowest priority; where there are two cores, most of what is added is that this
thread waits for one.

get_64x2m, put_64x2m: rates of whole calls with 64 blocks of 2 MiB. Of the CPU time of the calling thread and, because a
put has work done there, of the daemon. The ceiling is one contiguous copy of as many bytes between memory of the caller
(huge pages) and shared memory in the pages that the daemon's is in, all of it mapped and touched before; `copy_private`
is the same copy where both sides are in huge pages. The store is full: every put evicts as much as it stores.

views: as bench/store.py has it, of the daemon's memory.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator

import numpy as np

import kvstore
from bench import peers, stored
from bench.clock import SEED, Times, interleaved, rate_result, time_result
from bench.copy import Region
from bench.report import Result
from bench.store import BATCH_BLOCKS, bare_views, turns
from kvstore._core import clocked, transfer
from kvstore._core.arena import Arena
from kvstore._core.link import WAIT_DEFAULT
from kvstore.arrays import Keys
from kvstore.client.attached import AttachedNamespace
from kvstore.client.space import Space

NUM_CHAINS, NUM_CHAINS_QUICK = 15_625, 400
ENTRIES_MIN = 1 << 16
REMOVED_AT_ONCE = 16_384
KEYS_NBYTES = stored.CHAIN_BLOCKS * 32
# Sizes of the messages (docs/formats.md): a reservation of 64 keys and its answer, a commit and its answer.
RESERVE, COMMIT = (32 + KEYS_NBYTES, 32 + 8 * stored.CHAIN_BLOCKS), (24, 24)
SPEC = {"model": "bench", "block_tokens": 16}


class Attached:
    """One namespace of a daemon, attached to and by calls alone."""

    def __init__(self, found: peers.Daemon, block_nbytes: int) -> None:
        spec = kvstore.NamespaceSpec(block_nbytes=block_nbytes, **SPEC)
        self.store = kvstore.connect(found.target, timeout_ms=30_000)
        self.calling = kvstore.connect(found.target, attach=False, timeout_ms=30_000)
        namespace, self.by_calls = self.store.namespace(spec), self.calling.namespace(spec)
        assert isinstance(namespace, AttachedNamespace)
        self.ns = namespace
        space = namespace._attached()
        assert space is not None, "not attached"
        self.space: Space = space

    def close(self) -> None:
        self.calling.close()
        self.store.close()


def each_ns(ask: Callable[[Keys], object], chains: Keys) -> Times:
    """ns of one call for each chain, its keys in cache."""
    now_ns, ns = time.perf_counter_ns, []
    for chain in chains:
        keys = chain.copy()
        start_ns = now_ns()
        ask(keys)
        ns.append(now_ns() - start_ns)
    return np.array(ns, dtype=np.float64)


# ---- lookups ----


class Lookups(Attached):
    """A full daemon and the ways to ask it, each over one call a prefix: ns, less the clock's own."""

    def __init__(self, found: peers.Daemon, num_chains: int, fd: int, rng: np.random.Generator) -> None:
        super().__init__(found, 1)
        self.fd = fd
        self._age(stored.chains(rng, num_chains), rng)
        self.keys = stored.chains(rng, num_chains)
        stored.fill_with_chains(self.ns, self.keys)
        self.index, self.leases = self.space.attachment.index, self.space.attachment.leases
        self.ids = np.stack([self.leases.acquire(chain).ids() for chain in self.keys])
        self.c_clock = float(np.median(clocked.nothing(10_000)))
        nothing = np.zeros((10_000, 1, 32), dtype=np.uint8)
        self.python_clock = float(np.median(each_ns(lambda _: None, nothing)))

    def _age(self, keys: Keys, rng: np.random.Generator) -> None:
        """Fill and empty the store, so that ids are handed out in random order from now on, as after a long life:
        the deepest blocks of all chains go first, chains in random order."""
        stored.fill_with_chains(self.ns, keys)
        for depth in reversed(range(stored.CHAIN_BLOCKS)):
            level = np.ascontiguousarray(rng.permutation(keys[:, depth]))
            for first in range(0, len(level), REMOVED_AT_ONCE):
                self.by_calls.remove(level[first : first + REMOVED_AT_ONCE])

    def _public(self, keys: Keys) -> None:
        with self.ns.lease(keys):
            pass

    def ask(self, way: str, which: np.ndarray) -> Times:
        """One way to ask for the prefixes `which`."""
        chains = self.keys[which]
        if way == "lines":
            return clocked.lines(self.index, chains, self.ids[which]) - self.c_clock
        if way == "c":
            ns = clocked.leases(self.index, self.leases, chains, self.space.number)
            assert ns.all(), "a prefix was not found whole"
            return ns - self.c_clock
        if way == "ping":
            return clocked.pings(self.fd, len(which), [RESERVE]) - self.c_clock
        ask = self._public if way == "py" else self.by_calls.match
        return each_ns(ask, chains) - self.python_clock


def look_up(lookups: Lookups, num_rounds: int, rng: np.random.Generator) -> dict[str, Times]:
    """us of every way to ask, in interleaved rounds."""
    num_chains = len(lookups.keys)
    ways = [f"{way}_{kind}" for way in ("lines", "c", "py") for kind in ("hot", "cold")] + ["ping_cold", "rpc_cold"]
    times: dict[str, list[Times]] = {name: [] for name in ways}
    walk, at = rng.permutation(num_chains), 0
    for _ in range(num_rounds):
        for name in rng.permutation(ways):
            way, kind = name.rsplit("_", 1)
            turn = min(100 if way == "rpc" else 1000, num_chains)
            if kind == "hot":
                which = np.zeros(turn, dtype=np.intp)
                lookups.ask(way, which[:10])
            else:
                which, at = np.take(walk, range(at, at + turn), mode="wrap"), at + turn
            times[name].append(lookups.ask(way, which) / 1000)
    return {name: np.concatenate(parts) for name, parts in times.items()}


def lookup_cases(quick: bool) -> Iterator[Result]:
    rng = np.random.default_rng(SEED)
    num_chains = NUM_CHAINS_QUICK if quick else NUM_CHAINS
    num_blocks = num_chains * stored.CHAIN_BLOCKS
    settings = {"HOST_PREFAULT": "off", "INDEX_ENTRIES_MAX": str(max(num_blocks, ENTRIES_MIN))}
    with peers.answering() as fd, peers.serving(num_blocks * stored.PLACE_NBYTES, **settings) as found:
        lookups = Lookups(found, num_chains, fd, rng)
        try:
            times = look_up(lookups, 2 if quick else 40, rng)
        finally:
            lookups.close()
    p50 = {name: float(np.median(values)) for name, values in times.items()}
    for kind in ("hot", "cold"):
        ceiling = p50[f"lines_{kind}"], f"its {2 * stored.CHAIN_BLOCKS} lines"
        yield time_result("attach", f"c_{kind}", times[f"c_{kind}"], "us", ceiling, "acquire and release in C")
    for kind in ("hot", "cold"):
        name, c = f"py_{kind}", p50[f"c_{kind}"]
        yield time_result("attach", name, times[name], "us", (c, f"c_{kind}"), f"C + {p50[name] - c:.2f} us")
    yield time_result("attach", "rpc_match", times["rpc_cold"], "us", detail="Match by gRPC, same daemon")
    yield time_result("attach", "ping_pong", times["ping_cold"], "us", detail=f"{RESERVE} bytes over a unix socket")
    for case, slow, quick_one in (
        ("vs_rpc", "rpc_cold", "py_cold"),
        ("vs_rpc_c", "rpc_cold", "c_cold"),
        ("vs_ping_pong", "ping_cold", "py_cold"),
    ):
        yield Result("attach", case, p50[slow] / p50[quick_one], "x", detail=f"{slow} / {quick_one}, medians")


# ---- reservations ----


class Reservations(Attached):
    """Ways to reserve and commit 64 blocks, ns each."""

    def __init__(self, found: peers.Daemon, rng: np.random.Generator) -> None:
        super().__init__(found, 1)
        self.rng, self.daemon_clock = rng, peers.cpu_clock(found.pid)
        self.shares: list[float] = []  # of a core that the daemon took while it was busy

    def messages(self, keys: Keys) -> None:
        """The two messages alone."""
        link = self.space.attachment.link
        reserved = link.reserve(keys, self.space.number, 0, WAIT_DEFAULT)
        assert not isinstance(reserved, int) and len(reserved[1]) == stored.CHAIN_BLOCKS
        link.commit(reserved[0])

    def room(self, keys: Keys) -> None:
        """The public way."""
        with self.ns.reserve(keys) as room:
            room.commit()

    def round(self, way: str, num: int) -> Times:
        """us of each of `num`, the first of the round left out: they find the caches as something else left them."""
        times = each_ns(getattr(self, way), stored.chains(self.rng, num))
        return times[num // 10 :] / 1000

    def emptied(self, way: str, num: int) -> Times:
        """As `round`, into a store that has room for all of them."""
        self.by_calls.clear()
        return self.round(way, num)

    def busy(self, way: str, num: int, load: peers.Load) -> Times:
        """As `emptied`, with the load on."""
        load.on()
        began = time.perf_counter(), time.clock_gettime(self.daemon_clock)
        found = self.emptied(way, num)
        ended = time.perf_counter(), time.clock_gettime(self.daemon_clock)
        load.off()
        self.shares.append((ended[1] - began[1]) / (ended[0] - began[0]))
        return found


def beside_idle(case: str, times: dict[str, list[Times]], detail: str) -> Result:
    """The p99 of busy rounds beside that of idle ones, in us: medians of the rounds."""
    idle, busy = (float(np.median(np.percentile(times[name], 99, axis=1))) for name in ("idle", "busy"))
    p50, runs = float(np.median(times["busy"])), np.size(times["busy"])
    return Result("attach", case, busy, "us", idle, "idle p99", p50=p50, p99=busy, runs=runs, detail=detail)


def reservation_cases(quick: bool) -> Iterator[Result]:
    rng = np.random.default_rng(SEED)
    num, num_rounds = (50, 1) if quick else (500, 20)
    nbytes = (num + 50) * stored.CHAIN_BLOCKS * stored.PLACE_NBYTES
    with (
        peers.answering() as fd,
        peers.serving(nbytes) as found,
        peers.serving(16 << 20) as crowded,
        peers.load(found.target) as load,
    ):
        one, full = Reservations(found, rng), Reservations(crowded, rng)
        full.round("messages", 100)
        parts: dict[str, Callable[[], Times]] = {
            "idle": lambda: one.emptied("messages", num),
            "busy": lambda: one.busy("messages", num, load),
            "room": lambda: one.emptied("room", num),
            "full": lambda: full.round("messages", num),
            "ping": lambda: clocked.pings(fd, num, [RESERVE, COMMIT]) / 1000,
        }
        times = rounds(parts, num_rounds, rng)
        cores = os.sched_getaffinity(0)
        peers.keep_apart(found, load)
        try:
            apart = rounds({name: parts[name] for name in ("idle", "busy")}, num_rounds, rng)
        finally:
            os.sched_setaffinity(0, cores)
        one.close()
        full.close()
    ping = float(np.median(times["ping"])), "ping-pong, same sizes"
    for case, name, detail in (
        ("reserve_commit", "idle", "two messages"),
        ("reserve_commit_full", "full", "and 64 evictions"),
        ("room_commit", "room", "with ns.reserve(keys)"),
    ):
        yield time_result("attach", case, np.concatenate(times[name]), "us", ping, detail)
    shares = [f"daemon {100 * np.median(part):.0f} %" for part in (one.shares[num_rounds:], one.shares[:num_rounds])]
    yield beside_idle("reserve_commit_busy", apart, f"the interpreter has a core; {shares[0]}")
    yield beside_idle("reserve_commit_crowded", times, f"all on all cores; {shares[1]}")


def rounds(parts: dict[str, Callable[[], Times]], num_rounds: int, rng: np.random.Generator) -> dict[str, list[Times]]:
    """The times of every part, round by round, each round in another order."""
    times: dict[str, list[Times]] = {name: [] for name in parts}
    for _ in range(num_rounds):
        for name in rng.permutation(list(parts)):
            times[name].append(parts[name]())
    return times


# ---- copies ----


class Copies(Attached):
    """A full daemon of `num_batches` batches of blocks, and as much memory of the caller on either side."""

    def __init__(self, found: peers.Daemon, block_nbytes: int, num_batches: int) -> None:
        super().__init__(found, block_nbytes)
        self.batch_nbytes, self.num_batches = BATCH_BLOCKS * block_nbytes, num_batches
        self.daemon_clock = peers.cpu_clock(found.pid)
        nbytes = num_batches * self.batch_nbytes
        self.source, self.target = Region(nbytes, 1), Region(nbytes, 2)
        shape = (num_batches, BATCH_BLOCKS, block_nbytes)
        self.blocks, self.out = self.source.bytes.reshape(shape), self.target.bytes.reshape(shape)
        rng = np.random.default_rng()
        self.sources = self.source.addresses(self.batch_nbytes, False, rng)
        self.targets = self.target.addresses(self.batch_nbytes, False, rng)
        self.arena = Arena(nbytes, shared=True)  # as the daemon has it, and filled once
        places = np.arange(num_batches, dtype=np.uint32) * np.uint32(self.batch_nbytes // stored.PLACE_NBYTES)
        self.shared = self.arena.addresses(places)
        transfer.copy_pieces(self.shared, self.sources, self.batch_nbytes)
        self.rng = np.random.default_rng(SEED)
        self.recent: deque[Keys] = deque(maxlen=max(1, num_batches // 2))
        self.at = 0
        for _ in range(num_batches + 1):
            self.put()

    def _next(self) -> int:
        self.at = (self.at + 1) % self.num_batches
        return self.at

    def _cpu_ns(self, work: Callable[[], object]) -> int:
        """CPU time that this thread and the daemon spend on it."""
        now_ns = time.clock_gettime_ns
        start_ns = time.thread_time_ns() + now_ns(self.daemon_clock)
        work()
        return time.thread_time_ns() + now_ns(self.daemon_clock) - start_ns

    def put(self) -> int:
        """CPU ns of one put."""
        self.recent.append(stored.chains(self.rng, 1, BATCH_BLOCKS)[0])
        keys, blocks, results = self.recent[-1], self.blocks[self._next()], []
        ns = self._cpu_ns(lambda: results.append(self.ns.put(keys, blocks)))
        assert results == [kvstore.PutResult(BATCH_BLOCKS, 0, {})], results
        return ns

    def get(self) -> int:
        """CPU ns of one get of a batch that is stored and not in cache."""
        keys, out, results = self.recent[0], self.out[self._next()], []
        self.recent.rotate(-1)
        ns = self._cpu_ns(lambda: results.append(self.ns.get(keys, out)[0]))
        assert results == [BATCH_BLOCKS], results
        return ns

    def _copy(self, targets: np.ndarray, sources: np.ndarray) -> int:
        at = self._next()
        target, source = targets[at : at + 1].copy(), sources[at : at + 1].copy()
        return self._cpu_ns(lambda: transfer.copy_pieces(target, source, self.batch_nbytes))

    def copy_out(self) -> int:
        """CPU ns of the contiguous copy of a batch from shared memory."""
        return self._copy(self.targets, self.shared)

    def copy_in(self) -> int:
        """CPU ns of the contiguous copy of a batch to shared memory."""
        return self._copy(self.shared, self.sources)

    def copy_private(self) -> int:
        """CPU ns of the contiguous copy of a batch between the caller's regions."""
        return self._copy(self.targets, self.sources)

    def views(self) -> int:
        """CPU ns of the views of one batch."""
        keys = self.recent[0]

        def work() -> None:
            with self.ns.lease(keys) as lease:
                assert len(lease.views) == BATCH_BLOCKS

        return self._cpu_ns(lambda: [work() for _ in range(20)]) // 20


def copy_cases(quick: bool) -> Iterator[Result]:
    block_nbytes, num_batches, num_rounds = (64 << 10, 2, 1) if quick else (2 << 20, 4, 16)
    with peers.serving(num_batches * BATCH_BLOCKS * block_nbytes) as found:
        copies = Copies(found, block_nbytes, num_batches)
        pages = copies.arena.page_kind
        try:
            times = turns(copies, ("put", "get", "copy_in", "copy_out", "copy_private"), num_rounds, num_batches - 1)
            parts = {"views": copies.views, "bare": bare_views}
            rates = {name: BATCH_BLOCKS / ns * 1e9 for name, ns in interleaved(parts, 2 if quick else 200).items()}
        finally:
            copies.close()
    gb_s = {name: copies.batch_nbytes / ns for name, ns in times.items()}
    for case, copy in (("get_64x2m", "copy_out"), ("put_64x2m", "copy_in")):
        ceiling = float(np.median(gb_s[copy])), f"contiguous copy, shared pages: {pages}"
        yield rate_result("attach", case, gb_s[case[:3]], "GB/s", ceiling, f"{BATCH_BLOCKS} blocks a call")
    yield rate_result("attach", "copy_private", gb_s["copy_private"], "GB/s", detail="both sides private huge pages")
    ceiling = float(np.median(rates["bare"])), "bare memoryviews"
    yield rate_result("attach", "views", rates["views"], "views/s", ceiling, f"{BATCH_BLOCKS} a lease")


def cases(quick: bool) -> Iterator[Result]:
    yield from lookup_cases(quick)
    yield from reservation_cases(quick)
    yield from copy_cases(quick)
