"""Processes that work on a daemon's memory and are killed at any moment.

They are forked from one that has imported everything and has no thread, which says {"kills", "pins", ...} at the end.
Blocks prove themselves (kvstore.workload): a wrong byte ends a life with status 3, any error that is not documented
with status 4, and both end the whole.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable

import numpy as np

import kvstore
from kvstore.errors import KVStoreError, LeaseExpired, LimitExceeded
from kvstore.workload import fill_payloads, require_payloads

TOKENS = 4
NUM_PROMPTS, CHAIN_BLOCKS_MAX = 150, 16
COUNTS = ("pins", "blocks_read", "blocks_put", "left", "removed", "taken", "attached")
BLOCK_NBYTES = 4096
PIN_CALLS = 300  # lease and release of one prefix, each


class Life:
    """One process's verbs on one namespace, drawn at random."""

    def __init__(self, target: str, seed: int, counts: np.ndarray) -> None:
        self._rng = random.Random(seed)
        self._counts = counts
        self._store = kvstore.connect(target)
        spec = kvstore.NamespaceSpec(model="stress", block_nbytes=BLOCK_NBYTES, block_tokens=TOKENS)
        self._ns = self._store.namespace(spec)
        self._held: list[tuple[object, np.ndarray]] = []

    def run(self, end_s: float) -> None:
        """Until then; what is allowed to happen to a client of a busy daemon is passed over."""
        verbs: list[Callable[[], None]] = [self.get, self.views, self.hold, self.put, self.leave, self.remove, self.pin]
        weights = [4, 4, 1, 6, 1, 1, 3]
        while time.monotonic() < end_s:
            try:
                self._rng.choices(verbs, weights)[0]()
            except (LimitExceeded, LeaseExpired):
                self._held.clear()
            self._count("attached", self._ns._space is not None)
        self._held.clear()
        self._store.close()

    def _count(self, name: str, amount: int = 1) -> None:
        self._counts[COUNTS.index(name)] += amount

    def _keys(self) -> np.ndarray:
        prompt = min(int(self._rng.paretovariate(0.6)), NUM_PROMPTS)
        num_blocks = self._rng.randint(1, CHAIN_BLOCKS_MAX)
        return self._ns.keys(np.arange(num_blocks * TOKENS) + prompt * 1000)

    def get(self) -> None:
        keys = self._keys()
        num_blocks, out = self._ns.get(keys, deadline_ms=self._rng.choice([0, 5]))
        if num_blocks:
            require_payloads(keys[:num_blocks], out[:num_blocks])
        self._count("blocks_read", num_blocks)

    def views(self) -> None:
        keys = self._keys()
        with self._ns.lease(keys, deadline_ms=0) as lease:
            self._require(keys, lease)

    def _require(self, keys: np.ndarray, lease: object) -> None:
        blocks = [np.frombuffer(view, np.uint8) for view in lease.views]
        if not blocks:
            return
        copied = np.stack(blocks)
        if lease.is_intact:  # else it was held for too long
            require_payloads(keys[: len(blocks)], copied)
            self._count("blocks_read", len(blocks))
        else:
            self._count("taken")

    def hold(self) -> None:
        """Leases over a while, under whatever the others do."""
        keys = self._keys()
        self._held.append((self._ns.lease(keys, deadline_ms=0), keys))
        if len(self._held) > 8:
            lease, keys = self._held.pop(0)
            self._require(keys, lease)
            lease.release()

    def put(self) -> None:
        keys = self._keys()
        blocks = np.empty((len(keys), BLOCK_NBYTES), np.uint8)
        fill_payloads(keys, blocks)
        result = self._ns.put(keys, blocks, deadline_ms=self._rng.choice([0, 2]))
        self._count("blocks_put", result.stored)

    def leave(self) -> None:
        """A reservation that is written to and never committed, or by views, or by the end of this process."""
        keys = self._keys()
        room = self._ns.reserve(keys, deadline_ms=0)
        for view in room.views:
            view[:] = b"\xff" * len(view)
        if self._rng.random() < 0.7:
            room.release()
        self._count("left")

    def remove(self) -> None:
        if self._rng.random() < 0.2:
            self._count("removed", self._ns.remove(self._keys()[-1:]))

    def pin(self) -> None:
        keys = self._keys()
        space = self._ns._space
        if space is None:
            return
        leases, number = space.attachment.leases, space.number
        for _ in range(PIN_CALLS):
            grip = leases.acquire(keys, False, number)
            num_blocks = grip.num_blocks
            grip.release()
        self._count("pins", PIN_CALLS * num_blocks)


def live(target: str, seed: int, counts: np.ndarray, end_s: float) -> int:
    """One life; its status."""
    try:
        Life(target, seed, counts).run(end_s)
    except AssertionError:
        traceback.print_exc()
        return 3
    except Exception as error:
        if isinstance(error, KVStoreError) and error.code == "UNAVAILABLE":  # killed daemon: not in this test
            print("the daemon is gone", file=sys.stderr)
        traceback.print_exc()
        return 4
    return 0


def fork(target: str, seed: int, counts: np.ndarray, end_s: float) -> int:
    child = os.fork()
    if child:
        return child
    status = 5
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        status = live(target, seed, counts, end_s)
    finally:
        sys.stderr.flush()
        os._exit(status)


def main(target: str, seed: int, num_processes: int, seconds: float) -> None:
    rng = random.Random(seed)
    shared = mmap.mmap(-1, num_processes * len(COUNTS) * 8)
    counts = np.frombuffer(shared, np.int64).reshape(num_processes, len(COUNTS))
    end_s = time.monotonic() + seconds
    lives = {fork(target, rng.randrange(2**32), counts[slot], end_s): slot for slot in range(num_processes)}
    kills = 0
    while time.monotonic() < end_s - 0.5:
        time.sleep(rng.uniform(0.005, 0.06))
        victim = rng.choice(list(lives))
        os.kill(victim, signal.SIGKILL)
        _, status = os.waitpid(victim, 0)
        if not os.WIFSIGNALED(status):
            raise SystemExit(f"a life ended by itself: {os.waitstatus_to_exitcode(status)}")
        kills += 1
        slot = lives.pop(victim)
        lives[fork(target, rng.randrange(2**32), counts[slot], end_s)] = slot
    statuses = [os.waitstatus_to_exitcode(os.waitpid(life, 0)[1]) for life in lives]
    print(
        json.dumps({"kills": kills, "statuses": statuses} | dict(zip(COUNTS, counts.sum(axis=0).tolist(), strict=True)))
    )


main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
