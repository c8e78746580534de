"""The disk tier leaves and comes back all the time while threads put, read and remove: no wrong byte, no removed block,
no thread that hangs."""

from __future__ import annotations

import os
import random
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_threads import NBYTES, in_threads, opened, settle, spec, turn

from kvstore import attachment
from kvstore.errors import TierRefused

STRESS_S = float(os.environ.get("STRESS_S", "4"))
CHAINS, BLOCKS_MAX = 6, 20  # of each thread


def coming_and_going(store: Any, rng: random.Random, end_s: float) -> tuple[int, int]:
    """How often the tier left, and how often it was refused to."""
    num_left = num_refused = 0
    while time.monotonic() < end_s:
        try:
            store.detach_tier("disk", rng.choice([0, 5, 1_000]), force=rng.random() < 0.3)
        except TierRefused:
            num_refused += 1
        else:
            num_left += 1
            time.sleep(rng.random() * 0.05)
            store.attach_tier("disk")
        time.sleep(rng.random() * 0.05)
    return num_left, num_refused


@pytest.mark.timeout(120)
@pytest.mark.parametrize("seed", [1, 2])
def test_all_verbs_while_the_tier_comes_and_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    print("seed", seed)
    monkeypatch.setattr(attachment, "PIECE_BLOCKS", 3)
    with opened(tmp_path) as store:
        ns = store.namespace(spec())
        end_s = time.monotonic() + STRESS_S
        counts: list[tuple[int, int]] = []

        def work(number: int) -> None:
            rng = random.Random(seed * 100 + number)
            if number == 0:
                counts.append(coming_and_going(store, rng, end_s))
                return
            while time.monotonic() < end_s:
                turn(store, ns, rng)

        in_threads(4, work)
        print(counts)
        assert counts[0][0] > 3
        store.attach_tier("disk")
        settle(store, ns)


class Owner:
    """Chains of one thread, whose bytes say how often they were removed before."""

    def __init__(self, ns: Any, number: int, rng: random.Random) -> None:
        self._ns, self._rng = ns, rng
        first = number * CHAINS
        self._keys = [
            ns.keys(np.array([5000 + chain] + [0] * (BLOCKS_MAX - 1), dtype=np.uint32))
            for chain in range(first, first + CHAINS)
        ]
        self._versions = np.zeros((CHAINS, BLOCKS_MAX), dtype=np.uint64)
        self.num_read = 0

    def _bytes(self, chain: int, num_blocks: int) -> np.ndarray:
        words = np.empty((num_blocks, NBYTES // 8), dtype=np.uint64)
        words[:] = self._keys[chain][:num_blocks, :8].copy().view(np.uint64) + self._versions[chain, :num_blocks, None]
        return words.view(np.uint8)

    def act(self) -> None:
        chain, num_blocks = self._rng.randrange(CHAINS), self._rng.randrange(1, BLOCKS_MAX + 1)
        keys = self._keys[chain][:num_blocks]
        dice = self._rng.random()
        if dice < 0.5:
            num, out = self._ns.get(keys, deadline_ms=self._rng.choice([0, 5, 1_000]))
            assert (out[:num] == self._bytes(chain, num)).all(), "bytes of a removed block"
            self.num_read += num
        elif dice < 0.85:
            self._ns.put(keys, self._bytes(chain, num_blocks), durable=dice < 0.53, deadline_ms=20)
        else:
            self._ns.remove(keys[-1:])
            self._versions[chain, num_blocks - 1 :] += 1


@pytest.mark.timeout(120)
@pytest.mark.parametrize("seed", [1, 2])
def test_what_was_removed_never_comes_back_with_the_tier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    print("seed", seed)
    monkeypatch.setattr(attachment, "PIECE_BLOCKS", 5)
    with opened(tmp_path) as store:
        ns = store.namespace(spec())
        end_s = time.monotonic() + STRESS_S
        owners: list[Owner] = []

        def work(number: int) -> None:
            rng = random.Random(seed * 100 + number)
            if number == 0:
                assert coming_and_going(store, rng, end_s)[0] > 3
                return
            owner = Owner(ns, number, rng)
            owners.append(owner)
            while time.monotonic() < end_s:
                owner.act()

        in_threads(4, work)
        assert sum(owner.num_read for owner in owners) > 100
        store.attach_tier("disk")
        settle(store, ns)
        assert threading.active_count() < 20
