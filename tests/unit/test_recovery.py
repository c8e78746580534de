"""From manifest rows to blocks in the index: whatever order they come in, and only what can be used."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from store_helpers import BLOCK, FakeClock, chain, make_spec, make_store

from kvstore._core import index as core
from kvstore._core.index import Index
from kvstore.errors import InvalidRequest
from kvstore.store import BlockStore
from kvstore.tiers.base import ENTRY, Entries, Places
from kvstore.tiers.geometry import PLACES_PER_SEGMENT
from kvstore.tiers.manifest import Row
from kvstore.tiers.memory import MemoryTier
from kvstore.tiers.recovery import surviving_entries
from kvstore.tiers.segments import by_segment

PAGES = BLOCK // 4096


class Remembering(MemoryTier):
    """A far tier that says it kept `parts` from an earlier run."""

    block_nbytes_max = 1 << 30
    num_dropped = 0
    is_released = True

    def __init__(self, parts: list[tuple[Places, Entries, Any]], texts: dict[int, str]) -> None:
        super().__init__(1 << 30, "far")
        self._parts, self._texts = parts, texts
        self.adopted: dict[int, int] = {}
        self.remembered_quotas: dict[int, int] = {}

    def namespaces(self) -> dict[int, str]:
        return self._texts

    def remember_namespace(self, number: int, text: str) -> None:
        self._texts[number] = text

    def quotas(self) -> dict[int, int]:
        return self.remembered_quotas

    def remember_quota(self, number: int, nbytes: int) -> None:
        self.remembered_quotas[number] = nbytes

    def recover(self) -> Iterator[tuple[Places, Entries, Any]]:
        yield from self._parts

    def adopt(self, places: Places, nbytes: Any) -> None:
        assert places.dtype == nbytes.dtype == np.uint32 and len(set(places.tolist())) == len(places)
        self.adopted = dict(zip(places.tolist(), nbytes.tolist(), strict=True))

    def note_usage(self, places: Places, last_used_s: Any) -> None:
        """Nothing to keep: each test opens one store."""


def rows_of(keys: Any, namespace: int = 1) -> Entries:
    """A chain as entries, parents first."""
    entries = np.zeros(len(keys), ENTRY)
    entries["key"], entries["parent"][1:] = keys, keys[:-1]
    entries["nbytes"], entries["namespace"] = BLOCK, namespace
    return entries


def opened(
    entries: Entries, order: list[int], num_parts: int, last_used_s: Any = None
) -> tuple[BlockStore, Remembering]:
    """A store over a tier that gives `entries` in this order, cut into parts; a block's place is its row number."""
    parts = []
    last_used_s = np.zeros(len(entries), np.uint32) if last_used_s is None else last_used_s
    for piece in np.array_split(np.array(order, dtype=np.uint32), num_parts):
        parts.append((piece * np.uint32(PAGES), entries[piece], last_used_s[piece]))
    far = Remembering(parts, {1: make_spec().text()})
    return make_store(4, far, clock=FakeClock()), far


def random_chains(rng: random.Random) -> list[Any]:
    ns = make_store().namespace(make_spec())
    return [chain(ns, rng.randrange(1, 12), prompt) for prompt in range(rng.randrange(1, 5))]


@pytest.mark.parametrize("seed", range(20))
def test_blocks_come_back_in_whatever_order_they_lie(seed):
    rng = random.Random(seed)
    chains = random_chains(rng)
    entries = np.concatenate([rows_of(keys) for keys in chains])
    order = list(range(len(entries)))
    rng.shuffle(order)
    store, far = opened(entries, order, rng.randrange(1, 6))
    ns = store.namespace(make_spec())
    assert [ns.match(keys).num_blocks for keys in chains] == [len(keys) for keys in chains], f"seed {seed}"
    assert far.adopted == {number * PAGES: BLOCK for number in order}
    store.check()


@pytest.mark.parametrize("seed", range(20))
def test_what_extends_a_lost_block_does_not_come_back(seed):
    rng = random.Random(seed)
    chains = random_chains(rng)
    lost = [rng.randrange(len(keys)) for keys in chains]
    entries = np.concatenate([np.delete(rows_of(keys), at, 0) for keys, at in zip(chains, lost, strict=True)])
    order = list(range(len(entries)))
    rng.shuffle(order)
    store, far = opened(entries, order, rng.randrange(1, 6))
    ns = store.namespace(make_spec())
    assert [ns.match(keys).num_blocks for keys in chains] == lost, f"seed {seed}"
    assert len(far.adopted) == sum(lost) and store.stats()["tiers"]["far"]["evicted"] == 0
    store.check()


def test_of_two_copies_of_a_block_the_first_comes_back():
    keys = chain(make_store().namespace(make_spec()), 3)
    entries = np.concatenate([rows_of(keys), rows_of(keys)])
    store, far = opened(entries, [1, 4, 0, 2, 3, 5], 2)
    assert far.adopted.keys() == {number * PAGES for number in (1, 0, 2)}
    assert store.namespace(make_spec()).match(keys).num_blocks == 3
    store.check()


def test_blocks_of_unknown_namespaces_and_other_sizes_stay_out():
    ns = make_store().namespace(make_spec())
    good, unknown, beyond, odd = (chain(ns, 2, prompt) for prompt in range(4))
    entries = np.concatenate([rows_of(good), rows_of(unknown, 0), rows_of(beyond, 70_000), rows_of(odd)])
    entries["nbytes"][6:] = BLOCK - 1
    store, far = opened(entries, list(range(8)), 1)
    ns = store.namespace(make_spec())
    assert [ns.match(keys).num_blocks for keys in (good, unknown, beyond, odd)] == [2, 0, 0, 0]
    assert far.adopted.keys() == {0, PAGES}


def test_what_was_used_longest_ago_leaves_first():
    ns = make_store().namespace(make_spec())
    chains = [chain(ns, 3, prompt) for prompt in range(3)]
    entries = np.concatenate([rows_of(keys) for keys in chains])
    last_used_s = np.repeat(np.array([30, 10, 20], np.uint32), 3)
    store, _ = opened(entries, [8, 0, 3, 5, 1, 4, 2, 7, 6], 4, last_used_s)
    ns, left = store.namespace(make_spec()), []
    with store.lock:
        for _ in range(9):
            store.index.evict_far(BLOCK, 0)
            left.append([ns.match(keys).num_blocks for keys in chains])
    assert left == [[3, n, 3] for n in (2, 1, 0)] + [[3, 0, n] for n in (2, 1, 0)] + [[n, 0, 0] for n in (2, 1, 0)]


def test_a_full_index_takes_parents_first():
    keys = np.frombuffer(random.Random(1).randbytes(32 * 40), np.uint8).reshape(-1, 32)
    entries = rows_of(keys)[::-1]
    index = Index(16)
    index.set_namespace(1, BLOCK, 1)
    columns = (entries[name] for name in ("key", "parent", "namespace"))
    ids = index.adopt(*columns, np.arange(40, dtype=np.uint32), entries["checksum"])
    assert int((ids != core.NONE).sum()) == 16 == index.match(keys)[0] and index.check() == 0


def test_columns_of_a_recovery_have_one_length():
    index, entries = Index(16), np.zeros(3, ENTRY)
    with pytest.raises(InvalidRequest, match="one length"):
        index.adopt(
            entries["key"], entries["parent"], entries["namespace"], np.zeros(2, np.uint32), entries["checksum"]
        )
    with pytest.raises(InvalidRequest, match="keys must be"):
        index.adopt(
            entries["key"][:, :31], entries["parent"], entries["namespace"], np.zeros(3, np.uint32), entries["checksum"]
        )
    assert len(index.adopt(*(entries[:0][name] for name in ("key", "parent", "namespace", "offset", "checksum")))) == 0


@pytest.mark.parametrize("seed", range(20))
def test_positions_by_segment_are_those_of_a_search(seed):
    rng = np.random.default_rng(seed)
    places = (rng.integers(0, rng.integers(1, 5), rng.integers(0, 30)) * PLACES_PER_SEGMENT).astype(np.uint32)
    places += rng.integers(0, 9, len(places)).astype(np.uint32)
    found = [(segment, positions.tolist()) for segment, positions in by_segment(places)]
    segments = places // PLACES_PER_SEGMENT
    wanted = [(int(segment), np.flatnonzero(segments == segment).tolist()) for segment in np.unique(segments)]
    assert found == wanted, f"seed {seed}"


def test_a_segment_filled_front_to_back_is_used_as_it_is():
    entries = np.zeros(4, ENTRY)
    entries["offset"], entries["nbytes"] = [0, 2, 3, 7], [8192, 1, 4096, 4096]
    rows = [Row(0, 1, entries[:1]), Row(1, 1, entries[1:])]
    found, num_bad = surviving_entries(rows, 8)
    assert num_bad == 0 and found.tobytes() == entries.tobytes() and found.base is not entries
    assert surviving_entries(rows, 7)[0].tobytes() == entries[:3].tobytes()
    entries["nbytes"][1] = 0
    assert surviving_entries(rows, 8)[1] == 1
