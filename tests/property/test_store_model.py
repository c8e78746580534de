"""A whole store against a dict: random calls, and after each everything that must hold at any time.

`HYPOTHESIS_PROFILE=long` runs many more and longer examples.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from block_model import Model, Reservation, Watcher, payload
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from stepped_store import ENTRIES_MAX, FAR_NBYTES, NEAR_NBYTES, TTL_MS, StepClock, SteppedStore

from kvstore.errors import LeaseExpired
from kvstore.hashing import xxh3_64
from kvstore.namespace import NamespaceSpec
from kvstore.tiers.base import Outcome

KIB, MIB = 1 << 10, 1 << 20
# Sizes that make 4 and 3 blocks of 2 MiB of memory, and a small one; the second in two parts with a tail.
SPECS = [
    NamespaceSpec(model="a", block_nbytes=512 * KIB, block_tokens=1),
    NamespaceSpec(model="b", block_nbytes=640 * KIB - 200, block_tokens=1, shards=2, hash="xxh3_128"),
    NamespaceSpec(model="c", block_nbytes=60_000, block_tokens=1),
]
ROOMS_MAX, LEASES_MAX, VIEWS_MAX = 3, 3, 3
namespaces = st.integers(0, len(SPECS) - 1)
# A prompt is a path in a tree with few branches, so that prefixes are shared; six blocks of any size fit into memory.
paths = st.lists(st.integers(0, 1), min_size=1, max_size=6)
PATIENT_MS = 2_000
deadlines = st.sampled_from([PATIENT_MS, PATIENT_MS, 0, 1, 5])


class StoreMachine(RuleBasedStateMachine):
    """`kind` is the far tier."""

    kind = "none"
    eviction = "lru"

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="kvstore-model-"))
        self.clock = StepClock()
        self.model = Model([spec.shards for spec in SPECS])
        self.rooms: list[Reservation] = []
        self.leases: list[tuple[Any, list[int]]] = []  # lease, checksums of its blocks
        self.views: list[tuple[Any, int]] = []  # array on a block that nobody else holds, checksum of its bytes
        self.prefetches: list[Any] = []
        self.faults = 0
        self.visible: set[Any] = set()  # found after the call before this one
        self.lost = 0  # blocks that had left by eviction then
        self.watcher = Watcher()
        self.open()

    def open(self) -> None:
        self.removed = False
        self.store = SteppedStore.make(self.kind, self.folder, self.clock, self.eviction)
        self.spaces = [self.store.namespace(spec) for spec in SPECS]

    # ---- what is held, asked and expected

    @property
    def quiet(self) -> bool:
        """Nothing but the call under test holds blocks."""
        return not (self.rooms or self.leases or self.views)

    def is_alone(self, ns: int) -> bool:
        """Every place in memory is of this namespace's size, and no block of it is being written."""
        others = sum(space._index.num_blocks(space.number) for space in self.spaces if space is not self.spaces[ns])
        counts = self.store.index.counts()
        return not others and not counts["writing"] and not counts["removed_pending"]

    def chain(self, ns: int, path: list[int]) -> tuple[Any, Any, list[Any]]:
        space = self.spaces[ns]
        keys = space.keys(np.array(path, dtype=np.uint32))
        return space, keys, self.model.nodes(ns, path, keys)

    def tiers_of(self, ns: int, keys: Any) -> list[str]:
        """Per key: a tier, "writing" or ""."""
        names = (self.store.near.name, self.store.far_name)
        answers = self.spaces[ns].explain(keys)
        return [a if a in names else "writing" if a == "being written" else "" for a in answers]

    def disturb(self) -> None:
        for room in self.rooms:
            room.disturbed = True

    def versions(self, ns: int, keys: Any, nodes: list[Any]) -> list[int]:
        """What to write where a reservation grants it."""
        tiers = self.tiers_of(ns, keys)
        return [
            self.model.version(n, join=t == "writing") if t in ("", "writing") else 0
            for n, t in zip(nodes, tiers, strict=True)
        ]

    def part(self, ns: int, node: Any, version: int, shard: int) -> Any:
        spec = SPECS[ns]
        whole = payload(self.model.keys[node], version, spec.block_nbytes)
        return whole[shard * spec.part_nbytes : (shard + 1) * spec.part_nbytes]

    def check_blocks(self, nodes: list[Any], blocks: Any) -> None:
        for node, block in zip(nodes, blocks, strict=False):
            assert self.model.explains(node, block), f"{node} has bytes that were never committed to it"

    # ---- writing

    @rule(ns=namespaces, path=paths, start=st.integers(0, 5), shard=st.integers(0, 1))
    def put(self, ns: int, path: list[int], start: int, shard: int) -> None:
        space, keys, nodes = self.chain(ns, path)
        shard %= SPECS[ns].shards
        start = min(start, space.match(keys).num_blocks) if start else 0
        versions = self.versions(ns, keys, nodes)
        blocks = [self.part(ns, n, v, shard) for n, v in zip(nodes[start:], versions[start:], strict=True)]
        result = space.put(keys, blocks, start=start, shard=shard)
        assert result.stored + result.present + len(result.rejected) == len(keys)
        granted = [at for at in range(result.present, len(keys)) if at not in result.rejected]
        chosen, written = [nodes[at] for at in granted], [versions[at] for at in granted]
        self.model.commit(chosen, written, shard, certain=True)
        if self.quiet and self.is_alone(ns):
            assert not result.rejected, "an idle store with room for all of it refused blocks"
            assert space.match(keys).num_blocks == len(keys)

    @precondition(lambda self: len(self.rooms) < ROOMS_MAX)
    @rule(ns=namespaces, path=paths, shard=st.integers(0, 1), deadline_ms=deadlines)
    def reserve(self, ns: int, path: list[int], shard: int, deadline_ms: int) -> None:
        space, keys, nodes = self.chain(ns, path)
        shard %= SPECS[ns].shards
        versions = self.versions(ns, keys, nodes)
        room = space.reserve(keys, shard=shard, deadline_ms=deadline_ms)
        wanted = room.wanted.tolist()
        assert len(wanted) + room.present + len(room.rejected) == len(keys)
        assert not set(wanted) & set(room.rejected)
        self.rooms.append(Reservation(room, ns, shard, [nodes[at] for at in wanted], [versions[at] for at in wanted]))

    @precondition(lambda self: self.rooms)
    @rule(at=st.integers(0, ROOMS_MAX - 1), num=st.integers(1, 6))
    def fill_a_few(self, at: int, num: int) -> None:
        reserved = self.rooms[at % len(self.rooms)]
        views = reserved.room.views
        for view, node, version in list(zip(views, reserved.nodes, reserved.versions, strict=True))[:num]:
            view[:] = self.part(reserved.ns, node, version, reserved.shard)

    @precondition(lambda self: self.rooms)
    @rule(at=st.integers(0, ROOMS_MAX - 1), by_views=st.booleans(), keep=st.booleans())
    def commit(self, at: int, by_views: bool, keep: bool) -> None:
        reserved = self.rooms.pop(at % len(self.rooms))
        parts = [
            self.part(reserved.ns, node, version, reserved.shard)
            for node, version in zip(reserved.nodes, reserved.versions, strict=True)
        ]
        kept = None
        if by_views:
            for view, part in zip(reserved.room.views, parts, strict=True):
                view[:] = part
            if keep and parts and not reserved.disturbed and len(self.views) < VIEWS_MAX:
                kept = (np.frombuffer(reserved.room.views[0], np.uint8), xxh3_64(parts[0]))
        elif parts:
            reserved.room.fill(parts)
        lost = False
        try:
            result = reserved.room.commit()
            assert not reserved.dead and result.stored == len(parts)
        except LeaseExpired:
            assert reserved.disturbed, "blocks were undone although nothing happened to them"
            lost = True
        alive = [(n, v) for n, v in zip(reserved.nodes, reserved.versions, strict=True) if n not in reserved.dead]
        self.model.commit([n for n, _ in alive], [v for _, v in alive], reserved.shard, certain=not lost)
        if kept is not None:
            self.views.append(kept)
        if not reserved.disturbed:
            self.check_visible(reserved)

    def check_visible(self, reserved: Reservation) -> None:
        """What is complete and has its parent is found."""
        stored = self.stored()
        for node, version in zip(reserved.nodes, reserved.versions, strict=True):
            if len(node[1]) == 1 or (node[0], node[1][:-1]) in stored:
                assert node in stored or not self.model.is_complete(node, version)

    @precondition(lambda self: self.rooms)
    @rule(at=st.integers(0, ROOMS_MAX - 1), how=st.sampled_from(["release", "drop"]))
    def abandon(self, at: int, how: str) -> None:
        reserved = self.rooms.pop(at % len(self.rooms))
        if how == "release":
            reserved.room.release()
        del reserved
        self.disturb()

    # ---- reading

    @precondition(lambda self: len(self.leases) < LEASES_MAX)
    @rule(ns=namespaces, path=paths, deadline_ms=deadlines)
    def lease(self, ns: int, path: list[int], deadline_ms: int) -> None:
        space, keys, nodes = self.chain(ns, path)
        match = space.match(keys)
        lease = space.lease(keys, deadline_ms)
        near = match.by_tier.get(self.store.near.name, 0)
        assert lease.num_blocks + lease.pending <= len(keys) and lease.num_promoted <= lease.num_blocks
        if near == match.num_blocks:
            assert (lease.num_blocks, lease.pending) == (near, 0)
        elif self.quiet and self.is_alone(ns) and deadline_ms == PATIENT_MS and not self.faults:
            assert lease.num_blocks == match.num_blocks, "stored blocks did not come near in an idle store"
        self.check_blocks(nodes, lease.views)
        self.leases.append((lease, [xxh3_64(view) for view in lease.views]))

    @precondition(lambda self: self.leases)
    @rule(at=st.integers(0, LEASES_MAX - 1), keep_view=st.booleans())
    def release(self, at: int, keep_view: bool) -> None:
        lease, sums = self.leases.pop(at % len(self.leases))
        if keep_view and sums and len(self.views) < VIEWS_MAX:
            self.views.append((np.frombuffer(lease.views[-1], np.uint8), sums[-1]))
        lease.release()

    @precondition(lambda self: self.views)
    @rule(at=st.integers(0, VIEWS_MAX - 1))
    def forget_view(self, at: int) -> None:
        del self.views[at % len(self.views)]

    @rule(ns=namespaces, path=paths, deadline_ms=deadlines)
    def get(self, ns: int, path: list[int], deadline_ms: int) -> None:
        space, keys, nodes = self.chain(ns, path)
        num, out = space.get(keys, deadline_ms=deadline_ms)
        assert num <= len(keys) and out.shape == (num, SPECS[ns].block_nbytes)
        self.check_blocks(nodes[:num], out)

    @rule(ns=namespaces, path=paths)
    def match(self, ns: int, path: list[int]) -> None:
        space, keys, nodes = self.chain(ns, path)
        match = space.match(keys)
        tiers = self.tiers_of(ns, keys)
        assert sum(match.by_tier.values()) == match.num_blocks and bool(match) == (match.num_blocks > 0)
        assert all(tiers[at] in match.by_tier for at in range(match.num_blocks))
        assert match.num_blocks == len(keys) or tiers[match.num_blocks] in ("", "writing")
        assert all(node in self.model.current for node in nodes[: match.num_blocks])

    @rule(ns=namespaces, path=paths, deadline_ms=deadlines)
    def prefetch(self, ns: int, path: list[int], deadline_ms: int) -> None:
        space, keys, _ = self.chain(ns, path)
        self.prefetches.append(space.prefetch(keys, deadline_ms=deadline_ms))

    # ---- taking away

    def gone(self, ns: int, paths: list[tuple[int, ...]]) -> None:
        nodes = self.model.remove(ns, paths)
        self.visible -= nodes
        self.removed = True
        for room in self.rooms:
            room.dead |= nodes & set(room.nodes)
            room.disturbed |= bool(room.dead)

    @rule(ns=namespaces, path=paths, whole=st.booleans())
    def remove(self, ns: int, path: list[int], whole: bool) -> None:
        space, keys, _ = self.chain(ns, path)
        found = sum(bool(tier) for tier in self.tiers_of(ns, keys))
        removed = space.remove(keys if whole else keys[-1:])
        assert removed >= (found if whole else 0) or self.rooms
        self.gone(ns, [tuple(path[: depth + 1]) for depth in range(0 if whole else len(path) - 1, len(path))])
        assert not any(self.tiers_of(ns, keys if whole else keys[-1:]))

    @rule(ns=namespaces)
    def clear(self, ns: int) -> None:
        self.spaces[ns].clear()
        self.gone(ns, [()])

    # ---- time, movement, the end

    @rule(ms=st.sampled_from([1, 100, TTL_MS // 2, TTL_MS + 1]))
    def time_passes(self, ms: int) -> None:
        self.clock.us += ms * 1000
        if ms >= TTL_MS // 2:
            self.disturb()

    @rule(num=st.integers(1, 4))
    def steps(self, num: int) -> None:
        for _ in range(num):
            self.store.step()

    @precondition(lambda self: self.store.far is not None and self.store.far.held)
    @rule(at=st.integers(0, 9))
    def one_transfer_ends(self, at: int) -> None:
        far = self.store.far
        assert far is not None
        far.let_go(at % len(far.held))

    @precondition(lambda self: self.store.far is not None and self.store.far.held)
    @rule(at=st.integers(0, 9), block=st.integers(0, 9), rotten=st.booleans())
    def one_transfer_fails(self, at: int, block: int, rotten: bool) -> None:
        far = self.store.far
        assert far is not None
        at %= len(far.held)
        self.faults += 1
        self.disturb()
        far.let_go(at, (block, Outcome.CORRUPT if rotten and not far.is_write(at) else Outcome.IO_ERROR))

    @rule()
    def flush(self) -> None:
        if self.store.flush(100):
            counts = self.store.index.counts()
            if self.store.far is not None and not counts["removed_pending"]:
                assert counts["far"] == counts["entries"] - counts["writing"], "flush left blocks without a far copy"

    def let_all_go(self) -> None:
        self.views.clear()
        for lease, _ in self.leases:
            lease.release()
        self.leases.clear()
        for room in self.rooms:
            room.room.release()
        self.rooms.clear()

    def close(self) -> None:
        self.store.close(0)
        for prefetch in self.prefetches:
            assert prefetch.done(), "a prefetch never ended"
        self.prefetches.clear()

    @precondition(lambda self: self.kind == "disk")
    @rule(flushed=st.booleans(), idle=st.booleans())
    def reopen(self, flushed: bool, idle: bool) -> None:
        self.let_all_go()
        # A block that is removed while it moves is forgotten when the move ends, and an abrupt close cuts that short.
        while (idle or self.removed) and self.store.work():
            pass
        is_durable = flushed and self.store.flush(500)
        before = self.stored()
        self.close()
        self.model.reopen()
        self.open()
        after = self.visible = self.stored()
        self.lost = 0
        assert not is_durable or before <= after, "what was flushed did not come back"
        for node in after:
            assert node in self.model.current, f"{node} was removed or never committed and came back"

    def stored(self) -> set[Any]:
        nodes = list(self.model.keys)
        found: set[Any] = set()
        for ns in range(len(SPECS)):
            mine = [node for node in nodes if node[0] == ns]
            if mine:
                tiers = self.tiers_of(ns, np.array([self.model.keys[node] for node in mine]))
                found |= {node for node, tier in zip(mine, tiers, strict=True) if tier not in ("", "writing")}
        return found

    # ---- what holds after every call

    @invariant()
    def audits_pass(self) -> None:
        self.store.check()
        assert self.store.near.arena.check() == 0

    @invariant()
    def what_is_found_was_committed_and_has_its_parent(self) -> None:
        stored = self.stored()
        for ns, path in stored:
            assert (ns, path) in self.model.current, f"{ns, path} was removed or never committed, and is found"
            assert len(path) == 1 or (ns, path[:-1]) in stored, f"{ns, path} is found without its parent"

    @invariant()
    def whoever_watches_knows_what_is_stored(self) -> None:
        self.watcher.look(self.store)
        stored = {(SPECS[node[0]].title, self.model.keys[node].tobytes()) for node in self.stored()}
        assert self.watcher.known == stored

    @invariant()
    def blocks_vanish_only_by_eviction(self) -> None:
        counts, stored = self.store.index.counts(), self.stored()
        lost = counts["evicted_far"] + counts["dropped_unwritten"]
        if not self.faults:
            assert len(self.visible - stored) <= lost - self.lost, "blocks are gone that nobody removed or evicted"
        self.visible, self.lost = stored, lost

    @invariant()
    def what_is_held_stays_as_it_is(self) -> None:
        for lease, sums in self.leases:
            assert [xxh3_64(view) for view in lease.views] == sums, "a block changed while it was leased"
        for array, checksum in self.views:
            assert xxh3_64(array) == checksum, "a block changed while it could be seen"

    @invariant()
    def sizes_are_within_their_limits(self) -> None:
        stats = self.store.stats()
        near, index = stats["tiers"]["host"], stats["index"]
        assert near["used_nbytes"] <= NEAR_NBYTES and index["entries"] <= ENTRIES_MAX
        assert index["entries"] == sum(one["blocks"] for one in stats["namespaces"].values())
        lookups = stats["lookups"]
        assert lookups["blocks_near"] <= lookups["blocks_found"] <= lookups["blocks_asked"]
        assert lookups["leases_in_use"] >= 64 * sum(lease.num_blocks > 0 for lease, _ in self.leases)
        assert stats["mover"]["defects"] == 0
        if self.store.far is not None:
            far = stats["tiers"][self.store.far.name]
            under_way = 2 * MIB if self.store.mover._carry is not None else 0  # blocks on the move count twice
            assert far["used_nbytes"] <= FAR_NBYTES + under_way  # the capacity shrinks with what segments waste
            if not self.store.far.held and not stats["mover"]["writes_under_way"] and not under_way:
                if far["used_nbytes"] != index["far_nbytes"]:  # what the core freed goes back with the next step
                    self.store.step()
                    stats = self.store.stats()
                assert stats["tiers"][self.store.far.name]["used_nbytes"] == stats["index"]["far_nbytes"]

    def teardown(self) -> None:
        try:
            self.let_all_go()
            for space in self.spaces:
                space.clear()
            while self.store.work():
                pass
            self.store.step()
            stats = self.store.stats()
            assert stats["tiers"]["host"]["used_nbytes"] == 0, "memory leaked"
            assert stats["lookups"]["leases_in_use"] == 0, "leases leaked"
            assert stats["index"]["entries"] == stats["index"]["removed_pending"] == 0
            if self.store.far is not None:
                assert stats["tiers"][self.store.far.name]["used_nbytes"] == 0, "far places leaked"
            self.close()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)


class OnDisk(StoreMachine):
    kind = "disk"


class OverMemory(StoreMachine):
    kind = "memory"


class MemoryOnly(StoreMachine):
    kind = "none"


class UnderS3Fifo(StoreMachine):
    kind = "memory"
    eviction = "s3fifo"


class UnderArc(StoreMachine):
    kind = "memory"
    eviction = "arc"


class UnderGittins(StoreMachine):
    kind = "memory"
    eviction = "gittins"


LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"
EXAMPLES = {MemoryOnly: 250, OverMemory: 350, OnDisk: 200, UnderS3Fifo: 100, UnderArc: 100, UnderGittins: 100}


@pytest.mark.timeout(0 if LONG else 300)
@pytest.mark.parametrize("machine", EXAMPLES, ids=lambda machine: machine.__name__)
def test_the_store_answers_as_a_dict_would(machine: type[StoreMachine]) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES[machine] * (15 if LONG else 1),
            stateful_step_count=80 if LONG else 50,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
