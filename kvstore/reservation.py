"""Reservation: asks the core for places until it has granted some, making what room the core cannot make by itself."""

from __future__ import annotations

from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from kvstore._core import put
from kvstore.arrays import Keys
from kvstore.errors import InvalidRequest, Unavailable
from kvstore.hint import Hint
from kvstore.room import BUSY_REASON, Grant

if TYPE_CHECKING:
    from kvstore._core.lease import Grip
    from kvstore.handle import Namespace
    from kvstore.store import BlockStore

Answer = tuple[Any, ...]  # of PutPath.reserve


class Reservation:
    """Of one shard's part of what is not stored of the chain `keys`; of one thread."""

    def __init__(
        self, namespace: Namespace, store: BlockStore, keys: Keys, shard: int, hint: Hint | None = None
    ) -> None:
        self._namespace, self._store, self._mover = namespace, store, store.mover
        self._hint = None if hint is None else hint.numbers
        self._number, self._keys, self._shard = namespace.number, keys, shard
        self._told = 0  # put.AGAIN once the core has heard of this request

    def run(self, deadline_us: int) -> Grant:
        """Wait for write-back to make room until the deadline; from then on take what is to be had. Errors:
        LimitExceeded, InvalidRequest, Unavailable."""
        clock = self._store.clock
        grip: Grip | None = None
        try:
            while True:
                with self._store.lock:
                    if grip is not None:  # the core leases the same blocks: the table need not have room for both
                        grip.release()
                    late = clock.now_us() >= deadline_us
                    answer, progress = self._make_room(self._attempt(put.LATE if late else 0), late=late)
                    if answer[0] == put.OK:
                        return self._granted(answer)
                    grip = self._leased()  # what this extends must not go while it waits
                if progress is None:  # nothing is under way that could make room: take what there is
                    deadline_us = 0
                else:
                    clock.wait(progress, deadline_us - clock.now_us())
        finally:
            if grip is not None:
                grip.release()

    def _leased(self) -> Grip:
        """Leases on the stored prefix. Errors: LimitExceeded."""
        grip = self._namespace.lease_again(self._keys, None)
        self._namespace.check_stop(grip, len(self._keys))
        return grip

    def _attempt(self, flags: int) -> Answer:
        """Ask the core. Caller holds the lock. Errors: InvalidRequest for a key of another namespace, or one block size
        too many; Unavailable without memory."""
        store, namespace = self._store, self._namespace
        store.settle_locked()
        self._mover.settle_writes()
        answer: Answer = self._mover.put.reserve(
            store.leases, self._keys, self._number, self._shard, flags | self._told, store.clock.time_s(), self._hint
        )
        self._told = put.AGAIN
        if answer[0] == put.FOREIGN:
            raise InvalidRequest(f"keys[{answer[1]}] is a key of another namespace")
        if answer[0] == put.NO_MEMORY:
            namespace.arena.num_free(namespace.spec.block_nbytes)  # says so if it has slots of too many sizes
            raise Unavailable("no memory for the slots of another slab")
        return answer

    def _make_room(self, answer: Answer, *, late: bool) -> tuple[Answer, Future[None] | None]:
        """What the core could not do by itself: room within the quota, index entries. Another answer then, or one that
        says what is short and the future to wait for."""
        store, mover = self._store, self._mover
        flags = put.LATE if late else 0
        while answer[0] in (put.SHORT_QUOTA, put.SHORT_ENTRIES):  # each at most once
            grip = self._leased()  # making room must not take away what this extends
            try:
                if answer[0] == put.SHORT_QUOTA:
                    _, is_short = store.quotas.room(self._number, answer[1])
                    if is_short and not late and (progress := mover.progress()) is not None:
                        return answer, progress  # what is being moved now can go afterwards
                    flags |= put.PAST_QUOTA
                else:
                    store.entries_room(answer[1], self._number)
                    flags |= put.PAST_ENTRIES
            finally:
                grip.release()
            answer = self._attempt(flags)
        return answer, None if answer[0] == put.OK else mover.progress()

    def _granted(self, answer: Answer) -> Grant:
        _, positions, mine, places, words, present, refused, why = answer
        self._store.expire_later(mine, words)
        full = self._store.why_full(self._number, why) if refused else ""
        rejected = {position: BUSY_REASON if busy else full for position, busy in refused}
        return Grant(positions, mine, places, present, rejected)
