"""Namespace: the verbs on blocks, as an application uses them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kvstore import copying, durability, hashing, matching
from kvstore._core.lease import STOP_FULL
from kvstore.arrays import Ids, Keys
from kvstore.arrivals import Arrivals, Terms
from kvstore.block import BlockLayout, Match, PutResult
from kvstore.checks import checked_keys, duration_us, prefill_rate, whole_number
from kvstore.copying import Located
from kvstore.errors import InvalidRequest, LimitExceeded, Unavailable
from kvstore.hint import Hint, checked_hint
from kvstore.hinting import Hinting
from kvstore.joining import Step
from kvstore.lease import Lease
from kvstore.namespace import NamespaceSpec
from kvstore.putting import fill_and_commit
from kvstore.reservation import Reservation
from kvstore.room import Grant, Room, Told
from kvstore.tiers.base import Places

if TYPE_CHECKING:
    from kvstore._core.arena import Arena, Window
    from kvstore._core.lease import Grip
    from kvstore.store import BlockStore


class Namespace(Hinting):
    """Blocks of one NamespaceSpec in a store. Made by BlockStore.namespace; safe to use from several threads."""

    def __init__(self, store: BlockStore, number: int, spec: NamespaceSpec) -> None:
        self._store, self.number, self.spec = store, number, spec
        self._seed = spec.digest()
        self._leases, self._index, self._mover, self._lock = store.leases, store.index, store.mover, store.lock
        self.arena: Arena = store.near.arena
        self._note = None if store.recorder is None else store.recorder.of(number, spec.block_tokens)

    # ---- keys ----

    def keys(self, token_ids: Any = None, *, block_hashes: Sequence[bytes] | None = None) -> Keys:
        """Keys uint8 (num_blocks, 32), one per full block of `token_ids` (integers in [0, 2^32)).

        Or from an engine's own chained block hashes, one key each, mixed with this namespace's digest. A trailing
        partial block has no key. Errors: InvalidRequest.
        """
        if (token_ids is None) == (block_hashes is None):
            raise InvalidRequest("keys are made of either token_ids or block_hashes: give one of them")
        if block_hashes is not None:
            return hashing.mix_keys(self._seed, block_hashes)
        return hashing.chain_keys(self._seed, token_ids, self.spec.block_tokens, self.spec.hash)

    def event_keys(self, keys: Keys) -> Keys:
        """What events call these blocks: here the keys themselves."""
        return checked_keys(keys)

    # ---- reading ----

    def match(self, keys: Keys, *, prefill_tokens_per_s: float | None = None) -> Match:
        """The longest stored prefix of `keys`, where it lies, and how long it would take to read. Protects nothing.

        While the far tier is not healthy, what could only be read from there is left out: it is not to be had. So is
        what would take longer to load than to compute (Match.skipped), if it is known how fast the caller computes:
        from `prefill_tokens_per_s` (0: load in any case), mover.prefill_tokens_per_s, or `computed`.
        """
        self._store.check_open()
        keys, rate = checked_keys(keys), prefill_rate(prefill_tokens_per_s)
        if self._note is not None:
            self._note(Step.MATCH, keys)
        return self.peek(keys, rate)

    def peek(self, keys: Keys, rate: float | None = None) -> Match:
        """As match, but no request of a caller that is to be recorded."""
        self._store.check_open()
        return matching.match(self._store, checked_keys(keys), self.number, rate)

    def lease(
        self,
        keys: Keys,
        deadline_ms: float | None = None,
        *,
        hint: Hint | None = None,
        prefill_tokens_per_s: float | None = None,
    ) -> Lease:
        """Protect the longest prefix of `keys` that is readable before the deadline (None: wait for all of it).

        What cannot be here in time is left out (it counts as `pending`). deadline_ms=0 never waits, but what is far is
        on its way then: ask again. Room for what comes near is made as for a put: for up to the configured put_wait_ms
        no block leaves that has no far copy. What is computed sooner than loaded is left out (`skipped`), as in match.
        `hint`: what is known of the request, as in `hint`.

        Errors: InvalidRequest for malformed keys, LimitExceeded over the number of blocks that can be leased at a time.
        """
        if not self._store.is_open:
            self._store.check_open()
        keys = checked_keys(keys)
        deadline_us = None if deadline_ms is None else self._deadline_us(deadline_ms)
        rate = None if prefill_tokens_per_s is None else prefill_rate(prefill_tokens_per_s)
        grip = self._leases.acquire(keys, True, self.number)
        if hint is not None:
            self._store.hints.held(self.number, grip, hint)
        if self._note is not None:  # who does not wait for what is far asks again
            self._note(Step.MATCH if deadline_ms == 0 and not grip.is_near else Step.TAKE, keys, hint)
        if grip.is_near:
            return Lease(self, grip, len(keys))
        come = Arrivals(self, self._store, keys, grip, Terms(deadline_us, rate))
        while come.next():
            pass
        return Lease(self, come.grip, len(keys), come.far)

    def _deadline_us(self, deadline_ms: float | None) -> int | None:
        return None if deadline_ms is None else self._store.clock.now_us() + duration_us("deadline_ms", deadline_ms)

    def lease_again(self, keys: Keys, grip: Grip | None) -> Grip:
        """Ask again. Caller holds the lock, so that nothing is evicted between the two leases."""
        if grip is not None:
            grip.release()
        return self._leases.acquire(keys, counted=False, ns=self.number)

    def get(
        self,
        keys: Keys,
        out: Any = None,
        deadline_ms: float | None = None,
        *,
        hint: Hint | None = None,
        prefill_tokens_per_s: float | None = None,
    ) -> tuple[int, Any]:
        """Copy the leading readable blocks out: (how many, `out` or a new uint8 array (num_blocks, block_nbytes)).

        `out`: a writable array of at least as many rows, or a list of buffers. Errors: as lease; InvalidRequest when
        `out` does not fit.
        """
        if not self._store.is_open:
            self._store.check_open()
        if out is not None:
            self.locate(out, None, None, writable=True)
        keys = checked_keys(keys)
        deadline_us = None if deadline_ms is None else self._deadline_us(deadline_ms)
        rate = prefill_rate(prefill_tokens_per_s)
        grip = self._leases.acquire(keys, True, self.number)
        if hint is not None:
            self._store.hints.held(self.number, grip, hint)
        if self._note is not None:
            self._note(Step.TAKE, keys, hint)
        if not grip.is_near:
            if out is None:
                keys = keys[: grip.num_blocks]  # removed and put again meanwhile, the prefix may be longer than it was
            return self._get_far(Arrivals(self, self._store, keys, grip, Terms(deadline_us, rate)), out)
        with Lease(self, grip, len(keys)) as lease:
            if out is None:
                out = np.empty((lease.num_blocks, self.spec.block_nbytes), dtype=np.uint8)
            lease.copy_into(out)
            return lease.num_blocks, out

    def _get_far(self, arrivals: Arrivals, out: Any) -> tuple[int, Any]:
        """Copy what is near while what follows it is still being read."""
        num_blocks = arrivals.grip.num_blocks
        made = np.empty((num_blocks, self.spec.block_nbytes), dtype=np.uint8) if out is None else None
        found = self.locate(out if made is None else made, None, None, writable=True)
        num_copied = 0
        try:
            while arrivals.grip.num_near > num_copied or arrivals.next():
                num_near = arrivals.grip.num_near
                if num_near > num_copied:  # fewer are stored when some were removed meanwhile
                    found = found.require_room(num_near)
                    self.copy_out(arrivals.grip.near_places()[num_copied:num_near], found.rows(num_copied, num_near))
                    num_copied = num_near
        finally:
            arrivals.leave()
            arrivals.grip.release()
        return num_copied, out if made is None else made[:num_copied]

    def prefetch(
        self,
        keys: Keys,
        tier: str = "host",
        deadline_ms: float | None = None,
        *,
        prefill_tokens_per_s: float | None = None,
    ) -> Future[Match]:
        """Start bringing the stored prefix near and return at once; the future's result is the Match then, as `match`
        with this rate would give it.

        The future cannot be cancelled; it has Unavailable when the store was closed before. Errors: InvalidRequest.
        """
        self._store.check_open()
        if tier != self._store.near.name:
            raise InvalidRequest(f"tier={tier!r}: blocks can be prefetched to {self._store.near.name!r} only")
        keys, deadline_us, rate = checked_keys(keys), self._deadline_us(deadline_ms), prefill_rate(prefill_tokens_per_s)
        answer: Future[Match] = Future()
        answer.set_running_or_notify_cancel()  # nobody can cancel what is under way
        if self._note is not None:
            self._note(Step.MATCH, keys)
        grip = self._leases.acquire(keys, counted=False, ns=self.number)
        with self._lock:
            far = grip.ids()[grip.num_near :]
            if self._mover.far_is_well:
                far = far[: self._store.prefill.cut(far, self.number, rate, takes=True).kept]
            promotion = self._mover.promote(far, self.number, deadline_us, drop_unwritten=True)
        grip.release()
        if promotion is None:
            self._answer(answer, keys, rate)
        else:
            promotion.settled.add_done_callback(lambda _: self._answer(answer, keys, rate))
        return answer

    def _answer(self, answer: Future[Match], keys: Keys, rate: float | None) -> None:
        try:
            answer.set_result(self.peek(keys, rate))
        except Unavailable as error:  # closed meanwhile: whoever waits must not do so for ever
            answer.set_exception(error)

    # ---- writing ----

    def reserve(
        self, keys: Keys, shard: int = 0, deadline_ms: float | None = None, *, hint: Hint | None = None
    ) -> Room:
        """Places for what of the chain `keys` is not stored yet, one shard's part of each block.

        `keys` is the whole chain from the first block of the prompt. `deadline_ms`: how long it may wait for
        write-back to make room before it drops blocks that have no far copy yet (None: the configured put_wait_ms).
        `hint`: what is known of the request, unless the commit says something else. Errors: InvalidRequest for
        malformed keys or a wrong shard. What gets no place is in Room.rejected.
        """
        keys, shard = checked_keys(keys), self._checked_shard(shard)
        grant = self._reserve(keys, shard, deadline_ms, checked_hint(hint))
        return Room(self, shard, grant, Told(hint, lambda given: self.hint(keys, given)))

    def _checked_shard(self, shard: int) -> int:
        return whole_number("shard", shard, 0, self.spec.shards - 1)

    def _reserve(self, keys: Keys, shard: int, deadline_ms: float | None, hint: Hint | None) -> Grant:
        store = self._store
        store.check_open()
        wait_us = duration_us("deadline_ms", store.put_wait_ms if deadline_ms is None else deadline_ms)
        if self._note is not None:
            self._note(Step.PUT, keys, hint)
        return Reservation(self, store, keys, shard, hint).run(store.clock.now_us() + wait_us)

    def check_stop(self, grip: Grip, num_keys: int) -> None:
        """Errors: LimitExceeded when the lease table had no room for all of the leases; they end then."""
        if grip.stop == STOP_FULL:
            grip.release()
            limit = self._leases.entries_max
            raise LimitExceeded(f"{num_keys} more blocks do not fit into index.leases_max={limit}; release some leases")

    def put(
        self,
        keys: Keys,
        blocks: Any,
        *,
        start: int = 0,
        shard: int = 0,
        layout: BlockLayout | None = None,
        block_ids: Any = None,
        deadline_ms: float | None = None,
        durable: bool = False,
        hint: Hint | None = None,
    ) -> PutResult:
        """Store the blocks of the chain `keys` from position `start` on; what is there already is not copied.

        `blocks`: array (len(keys) - start, part_nbytes), a list of as many buffers, or, with a `layout`, tensors and
        the `block_ids` of their rows. `durable`: return when they, and those before them, are on disk, or when the
        deadline (30 s without one) shows that they will not be; PutResult.durable says which. `hint`: what is known of
        the request, as in `hint`. Errors: InvalidRequest for wrong shapes; nothing is stored then.
        """
        self._store.check_open()
        keys, shard, hint = checked_keys(keys), self._checked_shard(shard), checked_hint(hint)
        if not durable:
            return self._put(keys, blocks, start, shard, layout, block_ids, deadline_ms, hint)
        began_us, wait_us = self._store.clock.now_us(), durability.wait_us(deadline_ms)
        result = self._put(keys, blocks, start, shard, layout, block_ids, deadline_ms, hint)
        left_ms = max(0, began_us + wait_us - self._store.clock.now_us()) / 1000
        return replace(result, durable=not result.rejected and self.make_durable(keys, left_ms))

    def make_durable(self, keys: Keys, deadline_ms: float | None = None) -> bool:
        """Wait until all of these blocks are on disk, for 30 s without a deadline; False when they are not then, cannot
        be, or are not all stored. Errors: InvalidRequest."""
        self._store.check_open()
        keys, until_us = checked_keys(keys), self._store.clock.now_us() + durability.wait_us(deadline_ms)
        return durability.make_durable(self._store, keys, self.number, until_us)

    def _put(
        self,
        keys: Keys,
        blocks: Any,
        start: int,
        shard: int,
        layout: BlockLayout | None,
        block_ids: Any,
        deadline_ms: float | None,
        hint: Hint | None,
    ) -> PutResult:
        start = whole_number("start", start, 0, len(keys))
        sources = self.locate(blocks, layout, block_ids, writable=False).require(len(keys) - start)
        grant = self._reserve(keys, shard, deadline_ms, hint)
        result = fill_and_commit(self, grant, sources, start=start, shard=shard)
        if hint is not None:
            self._store.hints.known(self.number, keys, hint)
        return result

    def remove(self, keys: Keys) -> int:
        """Remove these blocks and every stored block that extends one of them; returns how many went."""
        self._store.check_open()
        keys = checked_keys(keys)
        with self._lock:
            self._store.attachment.removals.note(self.number, keys)
            removed = self._index.remove_keys(keys, self.number, self._store.clock.time_s())
            self._mover.reap()
        return int(removed)

    def clear(self) -> int:
        """Remove every block of this namespace; returns how many went."""
        self._store.check_open()
        with self._lock:
            self._store.attachment.removals.note(self.number, None)
            removed = self._index.clear(self.number, self._store.clock.time_s())
            self._mover.reap()
        return int(removed)

    def explain(self, keys: Keys) -> list[str]:
        """Per key: the tier it would be read from, or why it is not there."""
        self._store.check_open()
        keys = checked_keys(keys)
        with self._lock:
            ids = self._index.find(keys, self.number)
            ghosts = self._index.ghosts(keys)
            return [self._store.explain(self.number, int(i), *ghost) for i, ghost in zip(ids, ghosts, strict=True)]

    # ---- what Lease and Room ask for ----

    def read_window(self, places: Places, on_release: Callable[[], None]) -> Window:
        """Read-only views of leased blocks. Errors: Unavailable."""
        self._store.check_open()
        self._store.count_got(len(places) * self.spec.block_nbytes)
        return self.arena.window(places, self.spec.block_nbytes, readonly=True, on_release=on_release)

    def part_window(self, places: Places, shard: int, on_release: Callable[[], None]) -> Window:
        """Writable views of one shard's parts of reserved blocks. Errors: Unavailable."""
        self._store.check_open()
        return self.arena.window(
            places,
            self.spec.part_nbytes,
            offset=shard * self.spec.part_nbytes,
            readonly=False,
            on_release=on_release,
        )

    def locate(self, other: Any, layout: BlockLayout | None, block_ids: Any, *, writable: bool) -> Located:
        """Find the caller's memory: whole blocks to be read into it when `writable`, one shard's parts otherwise."""
        nbytes = self.spec.block_nbytes if writable else self.spec.part_nbytes
        return copying.locate(other, nbytes, layout, block_ids, writable=writable)

    def copy_in(self, places: Places, shard: int, blocks: Located, chosen: NDArray[np.intp] | None) -> None:
        """Copy one shard's parts into reserved blocks. Errors: Unavailable."""
        self._store.check_open()
        copying.into_arena(self.arena, places, shard * self.spec.part_nbytes, blocks, chosen)

    def copy_out(self, places: Places, out: Located) -> None:
        """Copy leased blocks out. Errors: Unavailable."""
        self._store.check_open()
        copying.out_of_arena(self.arena, places, out)
        self._store.count_got(len(places) * self.spec.block_nbytes)

    def commit(self, ids: Ids, shard: int) -> int:
        """Make reserved parts count; returns how many blocks had been undone before. Errors: Unavailable."""
        with self._lock:
            self._store.check_open()
            return self._store.commit(ids, shard)

    def hold(self, ids: Ids) -> Grip:
        """Leases on reserved blocks, whatever becomes of the reservation. Errors: LimitExceeded."""
        with self._lock:
            self._store.check_open()
            return self._leases.hold(ids)

    def abandon_later(self, ids: Ids, shard: int) -> None:
        """Note that a reservation was left; from any thread, also while it holds the lock."""
        self._store.abandoned.append((ids, shard))

    def settle(self) -> None:
        """Undo what was noted as abandoned; in a closed store there is nothing left to undo it in."""
        with self._lock:
            if self._store.is_open:
                self._store.settle_locked()

    def __repr__(self) -> str:
        return f"<Namespace {self.spec.title!r}: {self._index.num_blocks(self.number)} blocks>"
