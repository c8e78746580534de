"""AttachedNamespace: the verbs on blocks over a daemon's memory, mapped into this process."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from kvstore.arrays import Keys
from kvstore.block import BlockLayout, Match, PutResult
from kvstore.checks import checked_keys, duration_us, prefill_rate, whole_number
from kvstore.client.attachment import Attachments
from kvstore.client.coming import Coming
from kvstore.client.handle import RemoteNamespace
from kvstore.client.lease import RemoteLease
from kvstore.client.link import Link
from kvstore.client.putting import UNAVAILABLE
from kvstore.client.room import RemoteRoom
from kvstore.client.space import Space
from kvstore.copying import Located
from kvstore.errors import AccessDenied, LeaseExpired, LimitExceeded, Unavailable
from kvstore.hint import Hint, checked_hint
from kvstore.lease import Lease
from kvstore.namespace import NamespaceSpec
from kvstore.putting import fill_and_commit
from kvstore.room import Grant, Room, Told
from kvstore.v1 import kvstore_pb2 as pb

if TYPE_CHECKING:
    from kvstore._core.lease import Grip


class AttachedNamespace(RemoteNamespace):
    """As RemoteNamespace, but what is in the daemon's memory is looked up, read and written there, without a call.

    While it cannot be attached, every verb goes by calls. Leases are on the daemon's own blocks: LeaseExpired when one
    was held for longer than the daemon's serve.lease_ms_max and taken away. A view that outlives its lease's time may
    show other bytes: ask `Lease.is_intact` after reading. Errors besides those of RemoteNamespace: LimitExceeded over
    the daemon's limits on what one process may lease or reserve.
    """

    def __init__(
        self,
        link: Link,
        spec: NamespaceSpec,
        quota_nbytes: int | None,
        check_open: Callable[[], None],
        attachments: Attachments,
    ) -> None:
        super().__init__(link, spec, quota_nbytes, check_open)
        self._attachments = attachments
        self._space: Space | None = None

    def _attached(self) -> Space | None:
        """The daemon's memory; None while it is not to be had. Errors: Unavailable when the store is closed, which ends
        its attachments."""
        space = self._space
        if space is not None and not space.attachment.is_over:
            return space
        self._check_open()
        self._space = None
        if self._link.circuit.is_open or not self._attachments.ready():
            return None
        try:
            self._space = self._with_handle(self._attach)
        except (Unavailable, AccessDenied, LimitExceeded) as error:
            self._attachments.failed(error)
        return self._space

    def _attach(self, handle: int) -> Space:
        limits = self._link.capabilities
        if not limits.attach_path:
            raise Unavailable("the daemon lets nobody attach")
        reply = self._link.ask("Attach", pb.AttachRequest(namespace=handle), pb.AttachReply, repeat=True)
        attachment, number = self._attachments.open(limits.attach_path, reply.ticket)
        return Space(attachment, number, reply.key_seed, self.spec, (limits.near_tier, limits.far_tier))

    # ---- reading ----

    def match(self, keys: Keys, *, prefill_tokens_per_s: float | None = None) -> Match:
        """As Namespace.match; what is far is asked for by a call if it may be worth no load, for the daemon knows."""
        given = prefill_rate(prefill_tokens_per_s)
        space = self._attached()
        if space is None:
            return super().match(keys, prefill_tokens_per_s=given)
        index = space.attachment.index
        num_blocks, leading, near = index.match(space.known_by(checked_keys(keys)), space.number)
        if near < num_blocks and not index.far[0]:
            num_blocks = near = leading
        far = num_blocks - near
        if far and (worth := self._worth(keys, given)) is not None:
            return worth
        by_tier = {name: num for name, num in zip(space.tiers, (near, far), strict=True) if num}
        return Match(num_blocks, by_tier, space.load_us(far))

    def _worth(self, keys: Keys, given: float | None) -> Match | None:
        """What the daemon says is worth loading; None when nobody knows how fast this process computes."""
        try:
            is_known = self._rate(given)
        except Unavailable:
            return None
        return super().match(keys, prefill_tokens_per_s=given) if is_known else None

    def lease(  # type: ignore[override]
        self,
        keys: Keys,
        deadline_ms: float | None = None,
        *,
        hint: Hint | None = None,
        prefill_tokens_per_s: float | None = None,
    ) -> Lease | RemoteLease:
        """As Namespace.lease; a `hint` is a call."""
        given = prefill_rate(prefill_tokens_per_s)
        space = self._attached()
        if space is None:
            return super().lease(keys, deadline_ms, hint=hint, prefill_tokens_per_s=given)
        keys = checked_keys(keys)
        if deadline_ms is not None:
            duration_us("deadline_ms", deadline_ms)
        known = space.known_by(keys) if space.seed else keys
        grip = space.leases.acquire(known, True, space.number)
        if hint is not None:
            self.hint(keys, hint)
        if grip.is_near:
            return Lease(space, grip, len(keys))
        come = self._coming(space, keys, known, grip, deadline_ms, given)
        while come.next():
            pass
        return Lease(space, come.grip, len(keys), come.far)

    def _coming(
        self, space: Space, keys: Keys, known: Keys, grip: Grip, deadline_ms: float | None, given: float | None
    ) -> Coming:
        def prefetch() -> Future[Match]:
            return super(AttachedNamespace, self).prefetch(
                keys, space.tiers[0], deadline_ms, prefill_tokens_per_s=given
            )

        return Coming(space, known, grip, None if deadline_ms == 0 else prefetch, lambda: self._worth(keys, given))

    def get(
        self,
        keys: Keys,
        out: Any = None,
        deadline_ms: float | None = None,
        *,
        hint: Hint | None = None,
        prefill_tokens_per_s: float | None = None,
    ) -> tuple[int, Any]:
        """As Namespace.get; a `hint` is a call."""
        given = prefill_rate(prefill_tokens_per_s)
        space = self._attached()
        if space is None:
            return super().get(keys, out, deadline_ms, hint=hint, prefill_tokens_per_s=given)
        if out is not None:
            space.locate(out, None, None, writable=True)
        keys = checked_keys(keys)
        if deadline_ms is not None:
            duration_us("deadline_ms", deadline_ms)
        known = space.known_by(keys)
        grip = space.leases.acquire(known, True, space.number)
        if hint is not None:
            self.hint(keys, hint)
        coming = self._coming(space, keys, known, grip, deadline_ms, given)
        try:
            coming.settle()
            made = np.empty((coming.grip.num_blocks, self.spec.block_nbytes), dtype=np.uint8) if out is None else None
            found = space.locate(out if made is None else made, None, None, writable=True)
            num_copied = _copied(space, coming, found, len(keys) if made is None else len(made))
        finally:
            coming.grip.release()
        return num_copied, out if made is None else made[:num_copied]

    # ---- writing ----

    def reserve(  # type: ignore[override]
        self, keys: Keys, shard: int = 0, deadline_ms: float | None = None, *, hint: Hint | None = None
    ) -> Room | RemoteRoom:
        """As Namespace.reserve."""
        space = self._attached()
        keys, shard, hint = checked_keys(keys), self._checked_shard(shard), checked_hint(hint)
        if space is None or not space.takes(keys):
            return super().reserve(keys, shard, deadline_ms, hint=hint)
        if deadline_ms is not None:
            duration_us("deadline_ms", deadline_ms)
        try:
            reserved, grant = space.reserve(space.known_by(keys), shard, deadline_ms, hint)
        except Unavailable:
            nbytes = self.spec.part_nbytes
            return RemoteRoom(None, dict.fromkeys(range(len(keys)), UNAVAILABLE), nbytes, nbytes)
        known = hint if len(grant.ids) else None
        return Room(reserved, shard, grant, Told(hint, lambda given: self._tell(keys, given, known)))

    def _tell(self, keys: Keys, hint: Hint, known: Hint | None) -> None:
        """Say by a call what the attach socket has not said already: the time to live is the store's, which is not
        there, and what was reserved went with `known`."""
        if hint != known or hint.ttl_s is not None:
            self.hint(keys, hint)

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
        """As Namespace.put."""
        space = self._attached()
        keys, shard, hint = checked_keys(keys), self._checked_shard(shard), checked_hint(hint)
        if space is None or not space.takes(keys):
            arguments: dict[str, Any] = {"start": start, "shard": shard, "layout": layout, "block_ids": block_ids}
            return super().put(keys, blocks, deadline_ms=deadline_ms, durable=durable, hint=hint, **arguments)
        began_us = self._clock.now_us()
        if deadline_ms is not None:
            duration_us("deadline_ms", deadline_ms)
        start = whole_number("start", start, 0, len(keys))
        sources = space.locate(blocks, layout, block_ids, writable=False).require(len(keys) - start)
        result = self._put(space, keys, sources, start, shard, deadline_ms, hint)
        if hint is not None:
            self._tell(keys, hint, hint if result.stored else None)
        if not durable or result.rejected:
            return result
        left_ms = None if deadline_ms is None else max(0.0, deadline_ms - (self._clock.now_us() - began_us) / 1000)
        return replace(result, durable=self.make_durable(keys, left_ms))

    def _put(
        self,
        space: Space,
        keys: Keys,
        sources: Located,
        start: int,
        shard: int,
        deadline_ms: float | None,
        hint: Hint | None,
    ) -> PutResult:
        grant: Grant | None = None
        try:
            reserved, grant = space.reserve(space.known_by(keys), shard, deadline_ms, hint)
            return fill_and_commit(reserved, grant, sources, start=start, shard=shard)
        except (Unavailable, LeaseExpired):  # the daemon has gone meanwhile
            present = grant.present if grant is not None else 0
            return PutResult(0, present, dict.fromkeys(range(max(start, present), len(keys)), UNAVAILABLE))

    def __repr__(self) -> str:
        return f"<AttachedNamespace {self.spec.title!r} at {self._link.target}>"


def _copied(space: Space, coming: Coming, found: Located, most: int) -> int:
    """Copy what is near of `most` blocks while what follows it is still being read; how many. What was leased for too
    long and taken away is a miss, whatever was copied."""
    num_copied = 0
    while num_copied < most and (coming.grip.num_near > num_copied or coming.next()):
        num_near = min(coming.grip.num_near, most)
        if num_near > num_copied:
            found = found.require_room(num_near)
            space.copy_out(coming.grip.near_places()[num_copied:num_near], found.rows(num_copied, num_near))
            if not coming.grip.intact:
                return 0
            num_copied = num_near
    return num_copied
