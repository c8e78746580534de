"""A scripted load on a disk tier whose folder is recorded, and what it may expect of the folder after a power cut."""

from __future__ import annotations

import random
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from kvstore.tiers.base import ENTRY, Outcome, Places
from kvstore.tiers.disk import DiskTier
from kvstore.tiers.geometry import PLACES_PER_SEGMENT
from sim.power import MIB, Event, Recorder

SIZES = (4096, 10_000, 60_000, 300_000)
CAPACITIES = (12 * MIB, 14 * MIB)
BLOCKS_MAX = 60  # alive at a time


@dataclass(slots=True, eq=False)
class Block:
    """A block the load has stored; its key says `number`, its bytes follow from it."""

    number: int
    nbytes: int
    namespace: int
    place: int
    written: Future[Any]


@lru_cache(maxsize=256)
def content(number: int, nbytes: int) -> bytes:
    return random.Random(number).randbytes(nbytes)


def quota_of(namespace: int) -> int:
    return namespace << 20


def text_of(namespace: int) -> str:
    return f"namespace {namespace} " + "x" * (namespace % 7 * 500)


def entries_of(blocks: list[Block]) -> Any:
    entries = np.zeros(len(blocks), dtype=ENTRY)
    for entry, block in zip(entries, blocks, strict=True):
        entry["key"][:8] = np.frombuffer(np.uint64(block.number).tobytes(), dtype=np.uint8)
        entry["namespace"], entry["num_tokens"] = block.namespace, 16
    return entries


def number_of(entry: Any) -> int:
    return int(entry["key"][:8].view("<u8")[0])


@dataclass
class Expected:
    """What must be true of the folder after the events so far."""

    kept: dict[int, int] = field(default_factory=dict)  # number → the size of a block that must be there
    gone: set[int] = field(default_factory=set)  # must not be
    used_s: dict[int, int] = field(default_factory=dict)  # when they were used at the earliest
    _freed: set[int] = field(default_factory=set)
    _flushes: dict[int, Event] = field(default_factory=dict)

    def apply(self, event: Event) -> None:
        kind, *rest = event
        if kind == "free":
            self._freed |= rest[0]
            for number in rest[0]:
                self.kept.pop(number, None)
        elif kind == "flush":
            self._flushes[rest[0]] = event
        elif kind == "flushed":
            _, _, live, forgotten, used_s = self._flushes.pop(rest[0])
            self.kept |= {number: nbytes for number, nbytes in live.items() if number not in self._freed}
            self.gone |= forgotten
            self.used_s |= used_s


class Load:
    """Steps drawn from a seed. `events` of the recorder also get: free numbers; flush id live forgotten used_s;
    flushed id."""

    def __init__(self, path: Path, recorder: Recorder, rng: random.Random) -> None:
        self._path, self._recorder, self._rng = path, recorder, rng
        self._blocks: dict[int, Block] = {}
        self._gone: set[int] = set()
        self._used_s: dict[int, int] = {}
        self._flushes: list[Future[None]] = []
        self._next = self._num_flushes = self._num_namespaces = 0
        self._capacity = CAPACITIES[1]
        self._tier = self._open()
        self._tier.adopt(np.empty(0, np.uint32), np.empty(0, np.uint32))

    def _open(self) -> DiskTier:
        return DiskTier(self._path, capacity_nbytes=self._capacity, segment_nbytes=MIB, io_threads=2)

    def run(self, num_events: int) -> None:
        """Steps until there are so many events."""
        steps = [self.write, self.free, self.flush, self.wait, self.recycle, self.name, self.use, self.reopen]
        self.name()
        while len(self._recorder.events) < num_events:
            self._rng.choices(steps, weights=[12, 4, 4, 3, 4, 0.5, 2, 0.3])[0]()
        self.wait()
        self._tier.close()

    def write(self) -> None:
        nbytes, num_blocks = self._rng.choice(SIZES), self._rng.randint(1, 5)
        while len(self._blocks) > BLOCKS_MAX:
            self.free()
        self._write(self._tier.allocate(nbytes, num_blocks), nbytes)

    def _write(self, places: Places, nbytes: int) -> None:
        if not len(places):
            self.free()
            self.recycle()
            return
        namespace = self._rng.randint(1, self._num_namespaces)
        blocks = [
            Block(number, nbytes, namespace, place, Future())
            for number, place in enumerate(places.tolist(), self._next)
        ]
        self._next += len(blocks)
        self._start(blocks, places)

    def _start(self, blocks: list[Block], places: Places) -> None:
        buffers = [memoryview(content(block.number, block.nbytes)) for block in blocks]
        written = self._tier.write(places, entries_of(blocks), buffers)
        for block, place in zip(blocks, places.tolist(), strict=True):
            block.place, block.written = place, written
            self._blocks[block.number] = block

    def free(self) -> None:
        """Some blocks, perhaps while they are being written."""
        numbers = self._rng.sample(list(self._blocks), min(len(self._blocks), self._rng.randint(1, 8)))
        forget = self._rng.random() < 0.7
        self._recorder.add("free", set(numbers))  # said before it is done: from here on they may be missing
        for number in numbers:
            block = self._blocks.pop(number)
            self._tier.free(np.array([block.place], np.uint32), block.nbytes, forget=forget)
        if forget:
            self._gone |= set(numbers)

    def flush(self) -> None:
        flush_id, self._num_flushes = self._num_flushes, self._num_flushes + 1
        live = {block.number: block.nbytes for block in self._blocks.values()}
        self._recorder.add("flush", flush_id, live, set(self._gone), dict(self._used_s))
        future = self._tier.flush()
        future.add_done_callback(lambda _: self._recorder.add("flushed", flush_id))
        self._flushes.append(future)

    def wait(self) -> None:
        """For everything that is under way."""
        for block in self._blocks.values():
            assert not block.written.result(60).any()
        for future in self._flushes:
            future.result(60)
        self._flushes.clear()

    def recycle(self) -> None:
        """Carry the blocks of the segment that is to be emptied, as the store does."""
        window = self._tier.vacate(SIZES[-1])
        if window is None:
            return
        inside = [block for block in self._blocks.values() if window[0] <= block.place < window[1]]
        for nbytes in SIZES:
            old = [block for block in inside if block.nbytes == nbytes and not block.written.result(60).any()]
            places = self._tier.allocate(nbytes, len(old), moving=True)
            old, old_places = old[: len(places)], [block.place for block in old[: len(places)]]
            if old:
                self._start(old, places)
                assert not old[0].written.result(60).any()
                self._note([block for block in old if block.number in self._used_s])
                self._tier.free(np.array(old_places, np.uint32), nbytes, forget=True)

    def name(self) -> None:
        self._num_namespaces += 1
        self._tier.remember_namespace(self._num_namespaces, text_of(self._num_namespaces))
        self._tier.remember_quota(self._num_namespaces, quota_of(self._num_namespaces))

    def use(self) -> None:
        """Some blocks are used: far in the future, so that it is later than their writing."""
        blocks = self._rng.sample(list(self._blocks.values()), min(len(self._blocks), 4))
        blocks = [block for block in blocks if block.written.done()]
        self._used_s |= dict.fromkeys((block.number for block in blocks), 2_000_000_000 + len(self._recorder.events))
        self._note(blocks)

    def _note(self, blocks: list[Block]) -> None:
        places = np.array([block.place for block in blocks], np.uint32)
        self._tier.note_usage(places, np.array([self._used_s[block.number] for block in blocks], np.uint32))

    def reopen(self) -> None:
        """Close, and go on with fewer or more segments; what is beyond them is lost."""
        self.wait()
        self._capacity = self._rng.choice(CAPACITIES)
        num_segments = self._capacity // MIB
        beyond = {number for number, b in self._blocks.items() if b.place // PLACES_PER_SEGMENT >= num_segments}
        self._recorder.add("free", beyond)
        for number in beyond:
            del self._blocks[number]
        self._tier.close()
        self._tier = self._open()
        found = {number_of(entry) for _, entries, _ in self._tier.recover() for entry in entries}
        assert found >= set(self._blocks), "a restart lost blocks"
        live = list(self._blocks.values())
        sizes = np.array([block.nbytes for block in live], np.uint32)
        self._tier.adopt(np.array([block.place for block in live], np.uint32), sizes)
        self._gone |= found - set(self._blocks)


def check(tier: DiskTier, expected: Expected) -> int:
    """Hold a tier that was opened after a cut against what is expected; how many blocks it has."""
    texts, quotas = tier.namespaces(), tier.quotas()
    parts = list(tier.recover())
    seen: dict[int, int] = {}
    for places, entries, last_used_s in parts:
        buffers = [bytearray(nbytes) for nbytes in entries["nbytes"].tolist()]
        checksums = entries["checksum"].astype(np.uint64)
        outcomes = tier.read(places, checksums, [memoryview(buffer) for buffer in buffers]).result(60)
        for entry, outcome, buffer, used_s in zip(entries, outcomes, buffers, last_used_s.tolist(), strict=True):
            number = number_of(entry)
            # No row may outlive or precede its bytes: the checksum is the last line, and must not be needed here.
            assert outcome == Outcome.OK, f"block {number}: {Outcome(outcome).name}"
            assert buffer == content(number, len(buffer)), f"block {number} has wrong bytes"
            assert texts.get(int(entry["namespace"])) == text_of(int(entry["namespace"])), (
                f"block {number}: no namespace"
            )
            assert quotas.get(int(entry["namespace"])) == quota_of(int(entry["namespace"])), f"block {number}: no quota"
            seen[number] = max(seen.get(number, 0), used_s)
    assert tier.num_dropped == 0, f"{tier.num_dropped} rows could not be used"
    missing = set(expected.kept) - set(seen)
    assert not missing, f"blocks {sorted(missing)} had been flushed"
    assert not expected.gone & set(seen), f"blocks {sorted(expected.gone & set(seen))} had been forgotten"
    unused = [number for number in expected.kept if seen[number] < expected.used_s.get(number, 0)]
    assert not unused, f"the uses of blocks {unused} had been flushed"
    check_space(tier, parts)
    return len(seen)


def check_space(tier: DiskTier, parts: list[Any]) -> None:
    """Everything can be adopted, and takes exactly its place."""
    places = np.concatenate([np.empty(0, np.uint32), *(places for places, _, _ in parts)])
    sizes = np.concatenate([np.empty(0, np.uint32), *(entries["nbytes"] for _, entries, _ in parts)])
    tier.adopt(places, sizes.astype(np.uint32))
    used_nbytes = int((-(-sizes.astype(np.int64) // 4096) * 4096).sum())
    assert (tier.usage().num_blocks, tier.usage().used_nbytes) == (len(places), used_nbytes)
    if len(places):
        tier.free(places[:1], int(sizes[0]))
