"""A made-up world for the real store, after the manner of TigerBeetle's VOPR.

The store, its index, its mover, its policies and the near tier are the real ones. Time, the lock, the far tier and
everybody who uses the store are simulated, in one thread and from one seed: the same seed is the same run, event by
event. While somebody waits, or is about to take the store's lock, another client may act first.

After every step the audit holds the store against the tiers and against what must always be true; at the end faults
stop, everybody goes, and the store has to come to rest by itself with nothing left over.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np

from kvstore import carry, listing, policy, recency, scrub
from kvstore._core import index as core
from kvstore._core import walk
from kvstore._core.index import POLICIES, Index
from kvstore._core.lease import LeaseTable
from kvstore.errors import TierRefused
from kvstore.mover import Mover
from kvstore.store import BlockStore
from kvstore.tiers.base import PLACE_NBYTES
from kvstore.tiers.host import HostTier
from sim.client import Client, Space
from sim.clock import SimClock, SimLock
from sim.far import Medium, SimFar
from sim.shape import CHUNK_NBYTES, LEASES_MAX, Shape, draw_faults, draw_prompts, draw_spaces

FAR = 1
PLACE_MAX = 2**32 - 1
KNOBS: dict[tuple[Any, str], tuple[int, ...]] = {  # constants that only large stores would feel
    (carry, "CARRY_NBYTES"): (8 << 10, 8 << 20),
    (policy, "READ_NBYTES"): (4 << 10, 16 << 10, 4 << 20),
    (listing, "LOOK_MAX"): (5, 1 << 16),
    (listing, "LIST_BLOCKS_MAX"): (3, 1 << 14),
    (recency, "LOOK_MAX"): (5, 1 << 16),
    (recency, "FOUND_MAX"): (2, 1 << 12),
    (recency, "PERIOD_US"): (100_000, 10_000_000),
    (scrub, "SCRUB_NBYTES"): (8 << 10, 1 << 20),
    (scrub, "EMPTY_US"): (10_000, 10_000_000),
    (scrub, "ROUND_US_MIN"): (1_000_000, 60_000_000),
}


class Complaints(logging.Handler):
    """Collects what would only be logged: exceptions in callbacks of futures."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        detail = record.exc_info[1] if record.exc_info else ""
        self.texts.append(f"{record.getMessage()}: {detail!r}")


class World:
    """One run of one seed."""

    def __init__(self, seed: int, note: Callable[[str], None] = lambda _: None) -> None:
        self._rng = Random(seed)
        self._note = note
        self.clock, self.lock = SimClock(), SimLock()
        self.clock.locked = lambda: self.lock.held
        self.shape, self.faults = Shape.drawn(self._rng), draw_faults(self._rng)
        for knob, values in KNOBS.items():
            setattr(*knob, self._rng.choice(values))
        self.medium = Medium(self.shape.geometry)
        self.spaces = draw_spaces(self._rng)
        quotas = Random(f"quotas of {seed}")
        for space in self.spaces:
            space.quota_blocks = quotas.choice((0, 0, 8, 20))
        self.policy = Random(f"policy of {seed}").choice(POLICIES)
        self.few_leases = self.shape.leases_max < LEASES_MAX
        self.put_wait_ms = self.shape.put_wait_ms
        self._quiet = True  # nobody comes in between
        self._intrusion = self._rng.choice((0.0, 0.05, 0.3))
        self._sloth = self._rng.choice((0.0, 0.5))  # how often the mover's thread is late
        self._durable: dict[bytes, Space] = {}  # acknowledged by a flush, and there ever since
        self._leaving: bytes | None = None  # being asked away
        self._removed: set[bytes] = set()  # asked away, and not put again
        self._forgotten: set[bytes] = set()  # of these, those before the last flush: a restart may not bring them back
        self._tier_rng = Random(f"tier of {seed}")
        self._restlessness = self._tier_rng.choice((0.0, 0.03, 0.2))  # how often the far tier is taken away or comes
        self.has_returned = False  # a tier has brought blocks, perhaps more than a quota allows before the next put
        self._promised: dict[bytes, Space] = {}  # durable when the tier was detached,
        self._away: dict[bytes, Space] = {}  # and of these, what nobody may have removed since
        self.futures_left = 0
        self._boot()
        for space in self.spaces:
            draw_prompts(self._rng, space)
        self.clients = [Client(self, number, Random(self._rng.random())) for number in range(self._rng.randrange(1, 5))]
        self.lock.before = self.intrude
        self.clock.turn = self._turn

    def note(self, text: str) -> None:
        self._note(f"{self.clock.now_us()} {text}")

    # ---- life of the store ----

    def _boot(self) -> None:
        shape = self.shape
        self.far = SimFar(self.clock, Random(self._rng.random()), self.medium, self.faults, self.note)
        near = HostTier(shape.arena_nbytes, base_pages=True)
        index = Index(shape.entries_max, seed=self._rng.randbytes(16), policy=self.policy)
        mover = Mover(index, near, self.far, self.lock, self.clock, shape.limits)  # type: ignore[arg-type]
        self.store = BlockStore(
            index=index,
            leases=LeaseTable(index, shape.leases_max),
            near=near,
            far=self.far,
            mover=mover,
            clock=self.clock,
            reservation_ttl_ms=shape.ttl_ms,
            put_wait_ms=shape.put_wait_ms,
        )
        self.store.attachment.reopen = self._reopen
        for space in self.spaces:
            slot = -(-space.spec.block_nbytes // PLACE_NBYTES) * PLACE_NBYTES
            space.handle = self.store.namespace(space.spec, quota_nbytes=space.quota_blocks * slot)

    def _reopen(self) -> SimFar:
        self.far = SimFar(self.clock, Random(self._tier_rng.random()), self.medium, self.faults, self.note)
        return self.far

    # ---- the far tier comes and goes ----

    def detach(self) -> None:
        """Take the far tier away, perhaps by force, perhaps while others act."""
        rng = self._tier_rng
        force, deadline_ms = rng.random() < 0.3, rng.choice((0, 20, 5_000, 60_000))
        self._quiet = is_alone = rng.random() < 0.5
        if is_alone:
            self.flush(5_000)
        is_ending = self._policy("ttl_chains") > 0  # then anything may leave by itself meanwhile
        expected, usage = {} if is_ending else dict(self._durable), self.far.usage()
        began_us = self.clock.now_us()
        try:
            answer = self.store.detach_tier("far", deadline_ms, force=force)
        except TierRefused as error:
            self.note(f"detach force={force}: {error}")
            assert not force and self.store.far is self.far
            return
        finally:
            assert self.clock.now_us() - began_us <= deadline_ms * 1000 + 2, "detach missed its deadline"
        self.note(f"detach force={force}: {answer}, {len(expected)} promised")
        assert answer.released and self.store.far is None and not self.store.index.counts()["far"]
        rows = {row["key"].tobytes() for row in self.medium.rows.values()}
        has_room = usage.used_nbytes + self.shape.near_nbytes < usage.capacity_nbytes
        is_sound = not self.faults.corrupt and not self.faults.rot  # else some may have been found rotten meanwhile
        if is_alone and has_room and is_sound and not force:
            assert expected.keys() <= rows, "the files have lost what was durable"
        self._away = {key: space for key, space in expected.items() if is_alone and key in rows}
        self._promised = dict(self._away)
        self._keep_track()

    def attach(self) -> None:
        """The tier comes back with everything but what was removed."""
        self._quiet = self._tier_rng.random() < 0.5
        self._keep_track()
        removed = set(self._removed) if self._quiet else set()
        self.has_returned = True
        answer = self.store.attach_tier("far")
        self.note(f"attach: {answer}, {len(self._away)} promised, {len(removed)} removed")
        index = self.store.index
        for key in removed:
            assert index.find(key)[0] == core.NONE, f"removed block {key.hex()} came back with the tier"
        if self._quiet and self.shape.entries_max == 4096:
            for key in self._away:
                assert index.find(key)[0] != core.NONE, f"durable block {key.hex()} did not come back with the tier"
        if self._quiet:
            self._durable |= self._away
        self._away = {}

    def _dismiss(self) -> None:
        """Everybody lets go of everything."""
        for client in self.clients:
            client.die(None)

    def crash(self) -> None:
        """Power fails; the machine comes back with what was durable."""
        self.note("power cut")
        self._quiet, before = True, self._quiet
        self._keep_track()
        self.far.power_cut()
        self._dismiss()
        for client in self.clients:
            client.futures.clear()  # died with the process
        expected = self._durable | (self._promised if self.store.far is None else {})
        self._boot()
        self._check_return(expected)
        self._promised, self._away = {}, {}
        self._quiet = before

    def restart(self) -> None:
        """An orderly end, and a new start."""
        self.note("restart")
        self._quiet, before = True, self._quiet
        self._dismiss()
        self._promised, self._away = {}, {}
        for client in self.clients:
            client.prefetch(None)
        self.store.close(flush_ms=self._rng.choice((0, 1_000, 60_000)))
        self._check_futures()
        self._boot()
        self._quiet = before

    def _check_return(self, expected: dict[bytes, Space]) -> None:
        index = self.store.index
        for key in self._forgotten:
            assert index.find(key)[0] == core.NONE, f"removed block {key.hex()} came back"
        if self.shape.entries_max == 4096:
            for key in expected:
                assert index.find(key)[0] != core.NONE, f"durable block {key.hex()} is gone after a power cut"
        self.note(f"back with {index.counts()['far']} blocks, {len(expected)} promised")

    # ---- time passes ----

    def _turn(self) -> None:
        if self._rng.random() >= self._sloth:
            with self.lock:
                self.store.mover.step()
        self._keep_track()
        self.intrude()

    def intrude(self) -> None:
        """Perhaps somebody else acts now."""
        if self._quiet or self._rng.random() >= self._intrusion:
            return
        self._quiet = True
        self._leaving = None  # it may leave in another way now
        self._rng.choice(self.clients).act(blocking=False)
        self._keep_track()
        self._quiet = False

    def step(self) -> None:
        """One event of the world's own choice."""
        dice = self._rng.random()
        self._quiet = False
        if self._tier_rng.random() < self._restlessness:
            (self.detach if self.store.far is not None else self.attach)()
            self.audit()
            self._quiet = False
        if dice < 0.75:
            self._rng.choice(self.clients).act(blocking=True)
        elif dice < 0.93:
            self.clock.advance(self._rng.choice((100, 5_000, 60_000, 1_000_000)))
        elif dice < 0.97:
            self.flush(self._rng.choice((None, 0, 50, 5_000)))
            if self._rng.random() < 0.2:
                self.crash()
        elif dice < 0.985 and self.faults.batch_error:
            self.note("the device falls ill")
            self.far.fall_ill(self._rng.choice((10_000, 1_000_000, 20_000_000)))
        elif dice > 0.993:
            self._rng.choice((self.crash, self.restart))()
        self.audit()

    def flush(self, deadline_ms: int | None) -> bool:
        began_us = self.clock.now_us()
        # What is removed but still leased is forgotten when its lease ends.
        stored, removed = self._stored(), set(self._removed) if not self.store.index.num_removed else set()
        done = self.store.flush(deadline_ms)
        if deadline_ms is not None:
            assert self.clock.now_us() - began_us <= deadline_ms * 1000 + 2, "flush missed its deadline"
        self.note(f"flush deadline_ms={deadline_ms}: {done}")
        if done:
            self._flushed(stored, removed)
        return done

    def _flushed(self, stored: dict[bytes, tuple[int, int, Space]], removed: set[bytes]) -> None:
        index = self.store.index
        for key, (block_id, word, space) in stored.items():
            now = int(index.words(np.array([block_id], np.uint32))[0])
            if now != word:
                continue
            far = index.describe(np.array([block_id], np.uint32))[1][0]
            if far != core.NONE:
                self._durable[key] = space
            elif not self.store.mover.skipped_writes:
                raise AssertionError(f"flushed, but block {block_id} has no far copy")
        self._forgotten |= removed & self._removed

    # ---- what is known ----

    def _stored(self) -> dict[bytes, tuple[int, int, Space]]:
        """Visible blocks: id and state word."""
        index = self.store.index
        known = [(space, key) for space in self.spaces for key in space.known]
        ids = index.find(b"".join(key for _, key in known))
        words = index.words(np.where(ids == core.NONE, 0, ids)) if index.counts()["entries"] else ids
        return {
            key: (int(block_id), int(word), space)
            for (space, key), block_id, word in zip(known, ids, words, strict=True)
            if block_id != core.NONE and int(word) & 0xFF == core.VALID
        }

    def _keep_track(self) -> None:
        """Forget of what was promised what has left, and of what was removed what is back."""
        self._note_removal()
        index = self.store.index
        if self._durable:
            keys = list(self._durable)
            ids = index.find(b"".join(keys))
            present = ids != core.NONE
            far = np.full(len(ids), core.NONE, dtype=np.uint32)
            far[present] = index.describe(ids[present])[1]
            for key, place in zip(keys, far, strict=True):
                if place == core.NONE:
                    del self._durable[key]
        if self._removed:
            keys = list(self._removed)
            back = {key for key, found in zip(keys, index.find(b"".join(keys)), strict=True) if found != core.NONE}
            self._removed -= back
            self._forgotten -= back

    def removing(self, key: bytes) -> None:
        """A client is about to ask this block away. Rows that an eviction left behind may bring it back, others not."""
        index = self.store.index
        if self.store.far is None:  # whatever the files have of it
            self._away.clear()  # it, and who knows what extends it
            self._leaving = key
            return
        ids = index.find(key)
        far = int(index.describe(ids)[1][0]) if ids[0] != core.NONE else core.NONE
        self._leaving = key if far != core.NONE and self.far.copies(key) <= {far} else None

    def ending(self) -> None:
        """A client is about to give a chain a time to live."""
        self._away.clear()

    def _policy(self, name: str) -> int:
        return int(self.store.hints.stats()[name])

    def clearing(self) -> None:
        """A client is about to remove all blocks of a namespace."""
        self._away.clear()

    def _note_removal(self) -> None:
        if self._leaving is not None and self.store.index.find(self._leaving)[0] == core.NONE:
            self._removed.add(self._leaving)
        self._leaving = None

    # ---- audit ----

    def audit(self) -> None:
        """What is true at any moment."""
        self._quiet, before = True, self._quiet
        self._keep_track()
        self.store.check()
        assert self.store.near.arena.check() == 0
        mover, index = self.store.mover, self.store.index
        mover.reap()  # far places that came free in the core wait there for the next step
        under_way = sum(len(write.ids) * mover.sizes[write.ns].slot_nbytes for write in mover._writes)
        carry_ = mover._carry
        if carry_ is not None and carry_._writing is not None:
            under_way += len(carry_._new) * mover.sizes[carry_._ns].slot_nbytes
        used = self.far.usage().used_nbytes if self.store.far is not None else 0
        assert used == index.far_nbytes + under_way, f"far {used} != {index.far_nbytes} + {under_way}"
        assert mover._backlog.num_blocks == sum(
            len(dirty.ids) for dirty in (*mover._backlog._waiting, *mover._backlog._failed)
        )
        ids = walk.in_range(index, FAR, 0, PLACE_MAX)
        parents = index.describe(ids)[4]
        parents = parents[parents != core.NONE]
        assert (index.describe(parents)[1] != core.NONE).all(), "a far block's parent has no far copy"
        for pin in self.store.hints.pins._pins.values():
            states = index.words(pin.ids) & np.uint64(0xFF)
            assert (states == core.VALID).all() or index.num_removed, "a pinned block is gone"
        for client in self.clients:
            client.check()
        self._quiet = before

    def _check_futures(self) -> None:
        for client in self.clients:
            assert all(future.done() for future in client.futures), "a prefetch was left without an answer"
            client.futures.clear()

    def finish(self) -> None:
        """Faults end and everybody goes: the store has to come to rest and to work by itself."""
        self.note("calm")
        self._quiet = True
        self.faults.calm()
        self.far.recuperate()
        self.attach()
        self._quiet = True
        self._dismiss()
        self.clock.advance(60_000_000)
        self._flush_at_last()
        self._at_rest()
        self._works_again()
        self.crash()
        self.clock.advance(5_000_000)
        self._at_rest()
        self._read_everything()
        self.restart()
        self._read_everything()
        self.store.close(0)

    def _flush_at_last(self) -> None:
        done = self.flush(None)
        if self.shape.far_nbytes >= 2 * self.shape.near_nbytes:
            assert done, "nothing is wrong any more, and yet not everything can be written back"

    def _at_rest(self) -> None:
        self.audit()
        store = self.store
        counts, mover = store.index.counts(), store.mover.stats()
        assert not counts["writing"] and not counts["removed_pending"], counts
        assert not mover["writes_under_way"] and not mover["reads_under_way"], mover
        assert store.leases.used == 0 and store.near.arena.exports == 0
        assert not any(map(self._policy, ("ttl_chains", "ttl_blocks", "pins", "pinned_blocks", "pinned_nbytes")))
        assert store.near.usage().used_nbytes == store.index.near_nbytes
        assert mover["defects"] == 0
        self._check_futures()

    def _works_again(self) -> None:
        """A prompt is put, written back, evicted and read again."""
        for space in self.spaces:
            if self.shape.entries_max < 4096 or self.shape.arena_nbytes < CHUNK_NBYTES * len(self.spaces):
                continue
            slot = -(-space.spec.block_nbytes // PLACE_NBYTES) * PLACE_NBYTES
            keys = space.handle.keys(list(range(5000, 5000 + 2 * min(4, self.shape.near_nbytes // slot))))
            space.learn(keys)
            num_stored = len(keys)
            for shard in range(space.spec.shards):
                result = space.handle.put(keys, space.payload(keys, shard), shard=shard, deadline_ms=60_000)
                others = [why for why in result.rejected.values() if not why.startswith("bypassed")]
                assert not others, f"an idle store rejects a put: {result}"
                num_stored = min(num_stored, *result.rejected) if result.rejected else num_stored
            with space.handle.lease(keys) as lease:
                assert lease.num_blocks >= num_stored

    def _read_everything(self) -> None:
        for space in self.spaces:
            for keys in space.prompts:
                num_blocks, out = space.handle.get(keys, deadline_ms=60_000)
                space.check(keys, out[:num_blocks])


def run(seed: int, note: Callable[[str], None] = lambda _: None, num_steps: int | None = None) -> None:
    """Live through one seed; AssertionError says what went wrong."""
    complaints = Complaints()
    logging.getLogger("concurrent.futures").addHandler(complaints)
    usual = {knob: getattr(*knob) for knob in KNOBS}
    try:
        world = World(seed, note)
        for _ in range(world._rng.randrange(30, 100) if num_steps is None else num_steps):
            world.step()
        world.finish()
        assert not complaints.texts, complaints.texts
    finally:
        for knob, value in usual.items():
            setattr(*knob, value)
        logging.getLogger("concurrent.futures").removeHandler(complaints)
