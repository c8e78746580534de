"""Arrivals: the far part of a leased prefix on its way near."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, NamedTuple

from kvstore._core.lease import STOP_BUSY
from kvstore.arrays import Ids, Keys
from kvstore.lease import Far
from kvstore.tiers.base import Outcome

if TYPE_CHECKING:
    from kvstore._core.lease import Grip
    from kvstore.handle import Namespace
    from kvstore.promotion import Promotion, Read
    from kvstore.store import BlockStore

ROUNDS_MAX = 1000  # of asking for more: each brings at least one batch nearer or ends it


class Terms(NamedTuple):
    """Until when somebody waits for what is far (None: for all of it), and how fast he computes it otherwise (None: he
    does not say)."""

    deadline_us: int | None
    prefill_tokens_per_s: float | None


class Arrivals:
    """Brings what is far of a leased prefix near, and waits for it piece by piece; of one thread.

    `grip` holds the whole stored prefix, near and far, from the beginning to the end: what has arrived stays while the
    rest comes. It is another one only after a block of it was removed. What is computed sooner than loaded stays far.
    Whoever stops before `next` says False leaves what is under way to the mover, and calls `leave`.
    """

    def __init__(self, namespace: Namespace, store: BlockStore, keys: Keys, grip: Grip, terms: Terms) -> None:
        self._prefill, self._given_per_s = store.prefill, terms.prefill_tokens_per_s
        self._most: int | None = None  # leading blocks that are worth having; decided once
        self._recompute_us = 0  # of the others
        self._namespace, self._mover, self._clock, self._lock = namespace, store.mover, store.clock, store.lock
        self._number, self._keys, self._deadline_us = namespace.number, keys, terms.deadline_us
        # Until then only blocks with a far copy make room.
        self._room_us = store.clock.now_us() + store.put_wait_ms * 1000
        self._rounds_left = ROUNDS_MAX
        self._reads: deque[Read] = deque()  # that this started, in the order of their blocks
        self._num_near = grip.num_near
        self._more = True
        self.grip = grip
        self.load_us = 0

    @property
    def num_promoted(self) -> int:
        """Blocks that have arrived; after a removal there may be fewer near than there were at first."""
        return max(0, self.grip.num_near - self._num_near)

    @property
    def far(self) -> Far:
        """What has become of it so far."""
        most = self.grip.num_blocks if self._most is None else max(self._most, self.grip.num_near)
        skipped = max(0, self.grip.num_blocks - most)
        return Far(self.load_us, self.num_promoted, skipped, self._recompute_us if skipped else 0)

    def next(self) -> bool:
        """Wait until more leading blocks are near; False when none will be in time. Errors: LimitExceeded."""
        num_near = self.grip.num_near
        while self._more and self.grip.num_near <= num_near:
            self._more = self._await_read() if self._reads else self._ask()
        if not self._more:
            self.leave()
        return self.grip.num_near > num_near

    def leave(self) -> None:
        """Nobody waits for what is still under way."""
        for read in self._reads:
            read.awaited = False
        if self._reads:
            self._mover.notice()  # some of it may be done already
            self._reads.clear()

    def _await_read(self) -> bool:
        """Wait for the next piece. False when it did not come in time, or not whole: the prefix ends there."""
        read = self._reads.popleft()
        left_us = None if self._deadline_us is None else self._deadline_us - self._clock.now_us()
        in_time = self._clock.wait(read.future, left_us)
        with self._lock:
            if in_time:
                self._mover.settle(read)
            else:
                read.awaited = False
                self._mover.step()
            self._look()
        return in_time and not (read.future.result() != Outcome.OK).any()

    def _look(self) -> None:
        """See what has arrived. Caller holds the lock."""
        if not self.grip.advance():
            self.grip = self._namespace.lease_again(self._keys, self.grip)

    def _ask(self) -> bool:
        """Start what can be started, or wait for what others have under way. False when nothing can come in time."""
        self._rounds_left -= 1
        self._namespace.check_stop(self.grip, len(self._keys))
        with self._lock:
            if self.grip.stop == STOP_BUSY:
                self.grip = self._namespace.lease_again(self._keys, self.grip)
                return self._rounds_left > 0
            far = self._wanted()
            now_us = self._clock.now_us()
            late = self._deadline_us is not None and now_us >= self._deadline_us
            started, waiting = self._promote(far, None if late else self._deadline_us, now_us >= self._room_us)
            self.load_us = self._prefill.load_us(len(far), self._number, self._mover.promoter.num_coming(far))
            if started is not None and not late:
                for read in started.reads:
                    read.awaited = True
                self._reads.extend(started.reads)
                return self._rounds_left > 0
            if waiting is None:  # nothing is under way, or is no more: it may have settled since `grip` was taken
                num_near = self.grip.num_near
                self._look()
                return self.grip.num_near > num_near
        if late or not self._rounds_left:
            return False
        return self._await_progress(waiting, now_us)

    def _wanted(self) -> Ids:
        """What is not near, as far as it is worth loading. Caller holds the lock."""
        num_near = self.grip.num_near
        rest = self.grip.ids()[num_near:]
        if self._most is None and len(rest) and self._mover.far_is_well:
            cut = self._prefill.cut(rest, self._number, self._given_per_s, takes=True)
            self._most, self._recompute_us = num_near + cut.kept, cut.recompute_us
        return rest if self._most is None else rest[: max(0, self._most - num_near)]

    def _await_progress(self, waiting: Future[Any], now_us: int) -> bool:
        for_room = now_us < self._room_us
        until_us = self._deadline_us
        if for_room:
            until_us = self._room_us if until_us is None else min(until_us, self._room_us)
        in_time = self._clock.wait(waiting, None if until_us is None else until_us - now_us)
        with self._lock:
            self._mover.step()
            self._look()
        return in_time or for_room

    def _promote(
        self, far: Ids, deadline_us: int | None, drop_unwritten: bool
    ) -> tuple[Promotion | None, Future[Any] | None]:
        """What could be started, else the future to wait for; both None when nothing can come."""
        if not len(far) or not self._mover.far_is_well:
            return None, None
        # Who does not wait at all asks again later: what was begun for him must not end at once.
        promotion = self._mover.promote(far, self._number, deadline_us, drop_unwritten=drop_unwritten)
        if promotion is not None:
            return promotion, None
        waiting = self._mover.progress()
        if waiting is None and not drop_unwritten:  # no write-back is coming that could make room
            return self._promote(far, deadline_us, True)
        return None, waiting


def bring(namespace: Namespace, store: BlockStore, keys: Keys, terms: Terms) -> None:
    """Bring the stored prefix near as for a lease, which waits for room too, and let go of it. It is no use of the
    blocks. Errors: LimitExceeded."""
    with store.lock:
        grip = namespace.lease_again(keys, None)
    come = Arrivals(namespace, store, keys, grip, terms)
    try:
        while come.next():
            pass
    finally:
        come.leave()
        come.grip.release()
