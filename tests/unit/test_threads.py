"""One store, several threads: every byte right, nothing leaked, whatever they do to each other's blocks."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvstore
from kvstore.config import Config
from kvstore.errors import LeaseExpired, LimitExceeded, Unavailable
from kvstore.workload import check_payloads, fill_payloads

NBYTES = 16 << 10
NUM_THREADS = 4
TURNS = 120
VERBS = {"put": 6, "reserve": 2, "get": 6, "lease": 6, "prefetch": 2, "remove": 1, "clear": 0.2, "flush": 0.3}
PREFIXES = 6  # few, so that the threads meet on the same chains


def opened(folder: Path, **settings: Any) -> Any:
    defaults = {"host.nbytes": "2MiB", "host.prefault": "off", "disk.path": folder, "disk.nbytes": "16MiB"}
    return kvstore.open(Config.load(**{**defaults, **settings}))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Any]:
    with opened(tmp_path) as made:
        yield made


def spec(**rest: Any) -> kvstore.NamespaceSpec:
    return kvstore.NamespaceSpec(model="threads", block_nbytes=NBYTES, block_tokens=1, **rest)


def chain(ns: Any, rng: random.Random) -> np.ndarray:
    """A path in a tree: two turns at its third block, two at its ninth."""
    prefix, left, right = rng.randrange(PREFIXES), rng.randrange(2), rng.randrange(2)
    tokens = [1000 + prefix] * 3 + [left] * 6 + [right] * rng.randrange(1, 16)
    return ns.keys(np.array(tokens, dtype=np.uint32))


def payloads(keys: np.ndarray) -> np.ndarray:
    blocks = np.empty((len(keys), NBYTES), np.uint8)
    if len(keys):
        fill_payloads(keys, blocks)
    return blocks


def assert_right(keys: np.ndarray, blocks: np.ndarray) -> None:
    assert len(keys) == len(blocks)
    if len(keys):
        assert check_payloads(keys, blocks).all()


def in_threads(num_threads: int, work: Callable[[int], None]) -> None:
    """Run `work(number)` in as many threads; the first exception of one of them is raised here."""
    errors: list[BaseException] = []
    start = threading.Barrier(num_threads)

    def run(number: int) -> None:
        try:
            start.wait()
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def settle(store: Any, *namespaces: Any) -> None:
    """Everything removed: nothing is leased, stored, waiting or allocated any more, near or far."""
    for ns in namespaces:
        ns.clear()
    store.flush()
    with store.lock:
        store.mover.step()
    store.check()
    counts = store.index.counts()
    assert counts["entries"] == counts["writing"] == counts["removed_pending"] == 0, counts
    assert store.leases.used == 0 and store.near.arena.exports == 0
    assert store.near.usage().used_nbytes == 0 and store.near.arena.check() == 0
    assert counts["far_nbytes"] == 0
    assert store.mover.stats()["defects"] == store.mover.stats()["corrupt_blocks"] == 0


def turn(store: Any, ns: Any, rng: random.Random) -> None:
    keys = chain(ns, rng)
    verb = rng.choices(list(VERBS), list(VERBS.values()))[0]
    if verb == "put":
        ns.put(keys, payloads(keys))
    elif verb == "reserve":
        with ns.reserve(keys) as room, suppress(LeaseExpired):  # another thread removed it meanwhile
            if rng.random() < 0.7:
                room.fill(payloads(keys[room.wanted]))
                room.commit()
    elif verb == "get":
        num, out = ns.get(keys, deadline_ms=rng.choice([None, 0, 5]))
        assert_right(keys[:num], out)
    elif verb == "lease":
        with ns.lease(keys, deadline_ms=rng.choice([None, 0])) as lease:
            for _ in range(2):
                for key, view in zip(keys, lease.views, strict=False):
                    assert check_payloads(key[None], np.frombuffer(view, np.uint8)[None]).all()
    elif verb == "prefetch":
        assert ns.prefetch(keys).result(60).num_blocks <= len(keys)
    elif verb == "flush":
        store.flush()
    else:
        ns.remove(keys[rng.randrange(len(keys)) :][:1]) if verb == "remove" else ns.clear()


@pytest.mark.parametrize("seed", [1, 2])
def test_all_verbs_at_once_on_shared_chains(store, seed):
    print("seed", seed)
    ns = store.namespace(spec())

    def work(number: int) -> None:
        rng = random.Random(seed * 100 + number)
        for _ in range(TURNS):
            turn(store, ns, rng)

    in_threads(NUM_THREADS, work)
    stats = store.stats()
    assert stats["index"]["evicted_near"] and stats["lookups"]["blocks_found"], "too little happened"
    settle(store, ns)


def test_ranks_put_their_parts_from_threads(store):
    ranks = 4
    ns = store.namespace(spec(shards=ranks))
    chains = [chain(ns, random.Random(seed)) for seed in range(40)]
    part = NBYTES // ranks

    def work(rank: int) -> None:
        for keys in chains:
            ns.put(keys, np.ascontiguousarray(payloads(keys)[:, rank * part : (rank + 1) * part]), shard=rank)
            num, out = ns.get(keys)
            assert_right(keys[:num], out)

    in_threads(ranks, work)
    num, out = ns.get(chains[-1])
    assert_right(chains[-1][:num], out)
    settle(store, ns)


def test_leases_run_out_for_all_threads_and_come_back(tmp_path):
    with opened(tmp_path, **{"index.leases_max": 128, "disk.nbytes": 0}) as store:
        ns = store.namespace(spec())
        keys = chain(ns, random.Random(0))
        ns.put(keys, payloads(keys))
        refused = [0] * NUM_THREADS

        def work(number: int) -> None:
            for _ in range(300):
                try:
                    with ns.lease(keys) as one, ns.lease(keys) as two:
                        assert one.num_blocks == two.num_blocks == len(keys)
                except LimitExceeded:
                    refused[number] += 1

        with ns.lease(keys):  # of two groups of leases one stays for the threads, so each second lease is refused
            in_threads(NUM_THREADS, work)
        assert refused == [300] * NUM_THREADS
        assert store.leases.used == 0
        in_threads(1, work)
        assert refused == [300] * NUM_THREADS
        settle(store, ns)


def test_a_prefetch_that_the_store_closes_under_is_answered(tmp_path):
    store = opened(tmp_path)
    ns = store.namespace(spec())
    keys = ns.keys(np.arange(200, dtype=np.uint32))
    for end in (50, 100, 150, 200):
        ns.put(keys[:end], payloads(keys[:end]), deadline_ms=10_000)
    store.flush()
    with store.lock:
        store.mover.room(1, 100, drop_unwritten=True)
    futures = [ns.prefetch(keys) for _ in range(3)]
    store.close()
    for future in futures:
        with suppress(Unavailable):
            assert future.result(30).num_blocks <= 200
    assert all(future.done() for future in futures)


@pytest.mark.parametrize("verb", ["copy_into", "fill"])
def test_leases_and_reservations_that_outlive_the_store_are_refused(tmp_path, verb):
    store = opened(tmp_path, **{"disk.nbytes": 0})
    ns = store.namespace(spec())
    keys, more = (ns.keys(np.full(4, token, dtype=np.uint32)) for token in (1, 2))
    ns.put(keys, payloads(keys))
    lease, room = ns.lease(keys), ns.reserve(more)
    store.close()
    with pytest.raises(Unavailable, match="closed"):
        lease.copy_into(np.empty((4, NBYTES), np.uint8)) if verb == "copy_into" else room.fill(payloads(more))
    lease.release()
    room.release()


def test_a_store_is_not_closed_under_a_copy(tmp_path, monkeypatch):
    copy, refused = kvstore.copying.transfer.copy_pieces, []

    def copy_and_close(*pieces: Any) -> None:
        with pytest.raises(Unavailable, match="in use") as raised:
            store.close()
        refused.append(raised)
        copy(*pieces)

    with opened(tmp_path, **{"disk.nbytes": 0}) as store:
        ns = store.namespace(spec())
        keys = chain(ns, random.Random(0))
        monkeypatch.setattr(kvstore.copying.transfer, "copy_pieces", copy_and_close)
        ns.put(keys, payloads(keys))
        num, out = ns.get(keys)
        monkeypatch.undo()
        assert num == len(keys) and len(refused) == 2
        assert_right(keys, out)
        settle(store, ns)
