"""What applications do to a store, at random: one Client is one thread of one of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kvstore.arrays import Keys
from kvstore.errors import LeaseExpired, LimitExceeded
from kvstore.handle import Namespace
from kvstore.hint import STOPS, Hint
from kvstore.lease import Lease
from kvstore.namespace import NamespaceSpec
from kvstore.room import Room
from kvstore.workload import fill_payloads

if TYPE_CHECKING:
    from sim.world import World

SLACK_US = 2  # deadlines are cut to whole microseconds
HELD_MAX = 4


@dataclass(slots=True)
class Space:
    """A namespace and the prompts that are asked of it."""

    spec: NamespaceSpec
    quota_blocks: int = 0
    prompts: list[Keys] = field(default_factory=list)
    known: dict[bytes, bytes] = field(default_factory=dict)  # what each of their blocks holds, by key
    handle: Namespace = None  # type: ignore[assignment]

    def learn(self, keys: Keys) -> None:
        """Another prompt."""
        whole = np.empty((len(keys), self.spec.block_nbytes), dtype=np.uint8)
        fill_payloads(keys, whole)
        self.prompts.append(keys)
        self.known.update((key.tobytes(), block.tobytes()) for key, block in zip(keys, whole, strict=True))

    def payload(self, keys: Keys, shard: int) -> NDArray[np.uint8]:
        """One shard's part of each block, (num_blocks, part_nbytes)."""
        part = slice(shard * self.spec.part_nbytes, (shard + 1) * self.spec.part_nbytes)
        parts = b"".join(self.known[key.tobytes()][part] for key in keys)
        return np.frombuffer(parts, dtype=np.uint8).reshape(len(keys), self.spec.part_nbytes)

    def check(self, keys: Keys, blocks: Sequence[NDArray[np.uint8]]) -> None:
        """Every byte of each block is what belongs to its key."""
        for key, block in zip(keys, blocks, strict=False):
            assert block.tobytes() == self.known[key.tobytes()], "wrong bytes"


@dataclass(slots=True, eq=False)
class Held:
    """A lease that is kept, and arrays made of its views, which may live longer."""

    lease: Lease | None
    space: Space
    keys: Keys
    arrays: list[NDArray[np.uint8]]

    def check(self) -> None:
        self.space.check(self.keys, self.arrays)


@dataclass(slots=True, eq=False)
class Reserved:
    """A reservation that is open, and what is still to be filled in."""

    room: Room
    space: Space
    keys: Keys
    shard: int
    filled: bool = False


class Client:
    """Acts by `act(blocking)`; holds leases, reservations and arrays between its acts."""

    def __init__(self, world: World, number: int, rng: Random) -> None:
        self._world, self.number, self._rng = world, number, rng
        self.leases: list[Held] = []
        self.rooms: list[Reserved] = []
        self.futures: list[Any] = []
        self.patient = rng.random() < 0.5  # waits without a deadline, sometimes
        verbs: list[Callable[[int | None], None]] = [
            self.get, self.get, self.hold, self.let_go, self.put, self.put, self.put_all, self.put_rest,
            self.reserve, self.commit, self.abandon, self.remove, self.prefetch, self.look, self.die,
            self.hint, self.pin, self.unpin,
        ]  # fmt: skip
        self._verbs = verbs
        self._weights = [rng.choice((0, 1, 1, 4)) for _ in verbs]
        self._weights[4] += 1
        self._weights[11] *= rng.random() < 0.3
        self._weights[14] *= rng.random() < 0.3

    # ---- choices ----

    def act(self, *, blocking: bool) -> None:
        verb = self._rng.choices(self._verbs, self._weights)[0]
        deadline_ms = self._deadline() if blocking else 0
        self._world.note(f"client {self.number} {verb.__name__} deadline_ms={deadline_ms}")
        try:
            verb(deadline_ms)
        except LimitExceeded:
            assert self._world.few_leases

    def _deadline(self) -> int | None:
        if self.patient and self._rng.random() < 0.4:
            return None
        return self._rng.choice((0, 1, 3, 20, 200, 3_000, 20_000))

    def _space(self) -> Space:
        return self._rng.choice(self._world.spaces)

    def _keys(self, space: Space) -> Keys:
        """A prompt, or the beginning of one."""
        keys = self._rng.choice(space.prompts)
        return keys if self._rng.random() < 0.7 else keys[: self._rng.randrange(len(keys) + 1)]

    def _in_time(self, began_us: int, deadline_ms: float | None) -> None:
        if deadline_ms is not None:
            took_us = self._world.clock.now_us() - began_us
            assert took_us <= deadline_ms * 1000 + SLACK_US, f"took {took_us} us with deadline_ms={deadline_ms}"

    # ---- reading ----

    def _lease(self, space: Space, keys: Keys, deadline_ms: int | None) -> Lease:
        began_us = self._world.clock.now_us()
        lease = space.handle.lease(keys, deadline_ms)
        self._in_time(began_us, deadline_ms)
        assert lease.num_blocks + lease.pending <= len(keys)
        self._world.note(f"  leased {lease.num_blocks} of {len(keys)}, {lease.pending} pending")
        return lease

    def get(self, deadline_ms: int | None) -> None:
        space = self._space()
        keys = self._keys(space)
        if self._rng.random() < 0.5:
            began_us = self._world.clock.now_us()
            num_blocks, blocks = space.handle.get(keys, deadline_ms=deadline_ms)
            self._in_time(began_us, deadline_ms)
            assert num_blocks == len(blocks)
            self._world.note(f"  got {num_blocks} of {len(keys)}")
            space.check(keys, blocks)
            return
        with self._lease(space, keys, deadline_ms) as lease:
            out = np.empty((lease.num_blocks, space.spec.block_nbytes), dtype=np.uint8)
            lease.copy_into(out)
            space.check(keys, out)

    def hold(self, deadline_ms: int | None) -> None:
        if len(self.leases) >= HELD_MAX:
            self.let_go(deadline_ms)
        space = self._space()
        keys = self._keys(space)
        lease = self._lease(space, keys, deadline_ms)
        held = Held(lease, space, keys, [np.frombuffer(view, dtype=np.uint8) for view in lease.views])
        held.check()
        self.leases.append(held)

    def let_go(self, _deadline_ms: int | None) -> None:
        """Of a lease, and perhaps later of its arrays."""
        if not self.leases:
            return
        held = self.leases.pop(self._rng.randrange(len(self.leases)))
        held.check()
        lease, held.lease = held.lease, None
        if lease is not None:
            lease.release()
        held.check()
        if held.arrays and lease is not None and self._rng.random() < 0.5:
            self.leases.append(held)

    def look(self, _deadline_ms: int | None) -> None:
        space = self._space()
        keys = self._keys(space)
        match = space.handle.match(keys)
        assert match.num_blocks <= len(keys)
        assert len(space.handle.explain(keys)) == len(keys)
        self._world.store.stats()

    def prefetch(self, deadline_ms: int | None) -> None:
        space = self._space()
        self.futures.append(space.handle.prefetch(self._keys(space), deadline_ms=deadline_ms))

    # ---- writing ----

    def _put(self, space: Space, keys: Keys, shard: int, deadline_ms: int | None, start: int = 0) -> None:
        world = self._world
        began_us = world.clock.now_us()
        blocks = space.payload(keys[start:], shard)
        result = space.handle.put(keys, blocks, start=start, shard=shard, deadline_ms=deadline_ms)
        self._in_time(began_us, world.put_wait_ms if deadline_ms is None else deadline_ms)
        if space.quota_blocks and result.stored and not world.has_returned:
            num_blocks = world.store.index.num_blocks(space.handle.number)
            assert num_blocks <= space.quota_blocks, f"{num_blocks} blocks, over the quota"
        assert result.stored + result.present + len(result.rejected) <= len(keys)
        world.note(f"  put {result.stored} of {len(keys)}, {result.present} present, {len(result.rejected)} rejected")

    def put(self, deadline_ms: int | None) -> None:
        space = self._space()
        self._put(space, self._keys(space), self._rng.randrange(space.spec.shards), deadline_ms)

    def put_all(self, deadline_ms: int | None) -> None:
        """Every rank, in any order, not all with as much of the prompt."""
        space = self._space()
        keys = self._keys(space)
        for shard in self._rng.sample(range(space.spec.shards), space.spec.shards):
            self._put(space, keys[: self._rng.choice((len(keys), len(keys), len(keys) // 2))], shard, deadline_ms)

    def put_rest(self, deadline_ms: int | None) -> None:
        """What an engine does: lease what is there, compute and put the rest."""
        space = self._space()
        keys = self._keys(space)
        with self._lease(space, keys, deadline_ms) as lease:
            start = lease.num_blocks
            self._put(space, keys, self._rng.randrange(space.spec.shards), deadline_ms, start)

    def reserve(self, deadline_ms: int | None) -> None:
        if len(self.rooms) >= HELD_MAX:
            self.commit(deadline_ms)
        space, world = self._space(), self._world
        keys, shard = self._keys(space), self._rng.randrange(space.spec.shards)
        began_us = world.clock.now_us()
        room = space.handle.reserve(keys, shard, deadline_ms)
        self._in_time(began_us, world.put_wait_ms if deadline_ms is None else deadline_ms)
        reserved = Reserved(room, space, keys[room.wanted], shard)
        if self._rng.random() < 0.5:
            self._fill(reserved)
        self.rooms.append(reserved)

    def _fill(self, reserved: Reserved) -> None:
        reserved.filled = True
        parts = reserved.space.payload(reserved.keys, reserved.shard)
        if self._rng.random() < 0.5:
            reserved.room.fill(parts)
            return
        for view, part in zip(reserved.room.views, parts, strict=True):
            view[:] = part

    def commit(self, _deadline_ms: int | None) -> None:
        if not self.rooms:
            return
        reserved = self.rooms.pop(self._rng.randrange(len(self.rooms)))
        if not reserved.filled:
            self._fill(reserved)
        arrays = []
        if self._rng.random() < 0.3:  # somebody still looks at them after the commit
            arrays = [np.frombuffer(view, dtype=np.uint8) for view in reserved.room.views]
        try:
            reserved.room.commit()
        except LeaseExpired:
            self._world.note("  too late")
            return
        if arrays and reserved.space.spec.shards == 1:
            self.leases.append(Held(None, reserved.space, reserved.keys, arrays))

    def abandon(self, _deadline_ms: int | None) -> None:
        if self.rooms:
            self.rooms.pop(self._rng.randrange(len(self.rooms))).room.release()

    def remove(self, _deadline_ms: int | None) -> None:
        space = self._space()
        keys = self._rng.choice(space.prompts)
        if self._rng.random() < 0.1:
            self._world.clearing()
            space.handle.clear()
            return
        first = self._rng.randrange(len(keys))
        self._world.removing(keys[first].tobytes())
        space.handle.remove(keys[first : first + 1])
        assert space.handle.match(keys).num_blocks <= first, "a removed block is still found"

    # ---- what stays ----

    def hint(self, _deadline_ms: int | None) -> None:
        """Often with a time to live, which may be over at once."""
        space, ttl_s = self._space(), self._rng.choice((None, 0, 0.05, 1, 20))
        if ttl_s is not None:
            self._world.ending()
        hint = Hint(self._rng.choice(STOPS), self._rng.choice((None, 9)), self._rng.randrange(-1, 2), ttl_s)
        keys = self._keys(space)
        assert space.handle.hint(keys, hint) <= len(keys)

    def pin(self, _deadline_ms: int | None) -> None:
        space = self._space()
        keys = self._keys(space)
        with suppress(LimitExceeded):
            num_blocks = space.handle.pin(keys, self._rng.choice((0, 0.05, 1, 20)))
            self._world.note(f"  pinned {num_blocks} of {len(keys)}")

    def unpin(self, _deadline_ms: int | None) -> None:
        space = self._space()
        space.handle.unpin(self._keys(space))

    # ---- ends ----

    def die(self, _deadline_ms: int | None) -> None:
        """Gone in the middle of everything, without a word."""
        self.leases.clear()
        self.rooms.clear()

    def check(self) -> None:
        for held in self.leases:
            held.check()
