"""What goes to disk: what is likely to come back, and once that is full, what is worth more than what has to go."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from store_helpers import MIB, SECOND_US, FakeClock, ObedientTier, make_store, payload, settle

from kvstore import Hint, NamespaceSpec
from kvstore.policy import is_full
from kvstore.store import BlockStore
from kvstore.tiers.disk import DiskTier

BLOCK = 4096
LENGTH = 4  # blocks of a prompt
FAR_BLOCKS = 64 * LENGTH
BACK, GONE = Hint(stop="tool_use"), Hint(stop="end_turn")


class Traffic:
    """Prompts that have nothing in common: some are asked for again after two minutes, the others never."""

    def __init__(self, **limits: Any) -> None:
        self.clock, self.far = FakeClock(), ObedientTier(FAR_BLOCKS * BLOCK)
        self.store: BlockStore = make_store(
            8 * LENGTH, self.far, clock=self.clock, block_nbytes=BLOCK, eviction="gittins", **limits
        )
        self._namespace = self.store.namespace(NamespaceSpec(model="m", block_nbytes=BLOCK, block_tokens=1))
        self._number = 0
        settle(self.store)

    def ask(self, number: int, hint: Hint) -> None:
        keys = self._namespace.keys(np.arange(LENGTH, dtype=np.uint32) + np.uint32(number * LENGTH))
        self._namespace.lease(keys, 0).release()
        self._namespace.put(keys, payload(keys, BLOCK), hint=hint)
        settle(self.store)

    def new(self, num_prompts: int, hint: Hint) -> int:
        """Blocks that were written for so many prompts of a kind, one a second."""
        before = self.store.stats()["mover"]["written_blocks"]
        for _ in range(num_prompts):
            self._number += 1
            self.ask(self._number, hint)
            self.clock.us += SECOND_US
        settle(self.store)
        return self.store.stats()["mover"]["written_blocks"] - before

    def learn(self) -> None:
        """Half of them are asked for again after two minutes, three times; by then they have gone from memory."""
        due: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)  # by second: prompts, and how often yet
        for second in range(1800):
            self._number += 1
            due[second].append((self._number, 3 if second % 2 else 0))
            for number, times in due.pop(second):
                self.ask(number, BACK if times else GONE)
                if times:
                    due[second + 120].append((number, times - 1))
            self.clock.us += SECOND_US
        settle(self.store)

    @property
    def num_kept_out(self) -> int:
        """Blocks that were not written, or got no place in memory either."""
        stats = self.store.stats()["policy"]
        return stats["unworthy_blocks"] + stats["bypassed_blocks"]

    def fill(self, hint: Hint) -> None:
        while not is_full(self.far.usage().used_nbytes, FAR_BLOCKS * BLOCK, BLOCK):
            self.new(1, hint)


@pytest.mark.parametrize("gain", [0.0, 1.5])
def test_a_full_disk_takes_what_is_worth_more_than_what_goes(gain: float) -> None:
    traffic = Traffic(far_gain_min=gain)
    traffic.learn()
    kept_out = traffic.num_kept_out
    traffic.clock.us += 1000 * SECOND_US  # nothing on disk is expected any more
    settle(traffic.store)
    written = [traffic.new(64, BACK), traffic.new(16, BACK), traffic.new(16, GONE)]
    # Those that have waited for a while come back sooner than new ones.
    assert written == [64 * LENGTH, 0 if gain else 16 * LENGTH, 0 if gain else 16 * LENGTH]
    assert traffic.num_kept_out == kept_out + 96 * LENGTH - sum(written)
    traffic.store.check()


def test_a_full_disk_takes_everything_while_nothing_is_known() -> None:
    """Levels are ages then, and of what comes at the same time none is worth more than another."""
    traffic = Traffic(far_gain_min=1000.0)
    traffic.fill(GONE)
    assert traffic.new(20, GONE) == 20 * LENGTH


@pytest.mark.parametrize("chance", [0.0, 0.5])
def test_a_disk_takes_what_is_likely_to_come_back(chance: float) -> None:
    traffic = Traffic(far_chance_min=chance)
    traffic.learn()
    assert traffic.new(20, BACK) == 20 * LENGTH
    assert traffic.new(20, GONE) == (0 if chance else 20 * LENGTH)


def test_what_was_not_worth_it_is_written_when_it_is_asked_for_again() -> None:
    traffic = Traffic(far_chance_min=0.5)
    traffic.learn()
    assert traffic.new(1, GONE) == 0
    before = traffic.store.stats()["mover"]["written_blocks"]
    traffic.ask(traffic._number, BACK)
    settle(traffic.store)
    assert traffic.store.stats()["mover"]["written_blocks"] - before == LENGTH


@pytest.mark.parametrize(("used", "full"), [(0, False), (126, False), (127, True), (128, True)])
def test_a_sixty_fourth_of_room_is_none(used: int, full: bool) -> None:
    assert is_full(used, 128, 1) is full


def test_a_tier_is_full_when_no_block_fits_and_when_it_is_not_there() -> None:
    assert is_full(91, 100, 10) and not is_full(90, 100, 10)
    assert is_full(0, 0, 1)


def test_what_is_to_be_durable_is_written_whatever_it_is_worth(tmp_path: Path) -> None:
    far = DiskTier(tmp_path, capacity_nbytes=16 * MIB)
    with make_store(16, far, block_nbytes=BLOCK, eviction="gittins", far_chance_min=1.0) as store:
        store.mover.start()
        namespace = store.namespace(NamespaceSpec(model="m", block_nbytes=BLOCK, block_tokens=1))
        keys = namespace.keys(np.arange(4, dtype=np.uint32))
        assert namespace.put(keys, payload(keys, BLOCK)).stored == 4 and store.flush()
        stats = store.stats()
        assert (stats["policy"]["unworthy_blocks"], stats["mover"]["written_blocks"]) == (4, 0)
        assert namespace.put(keys, payload(keys, BLOCK), durable=True).durable
        assert store.stats()["mover"]["written_blocks"] == 4
