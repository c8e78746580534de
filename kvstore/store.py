"""BlockStore: namespaces and everything they share, over a near tier, a far tier and a mover."""

from __future__ import annotations

import logging
from collections import deque
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvstore import durability, recovery
from kvstore._core import eviction
from kvstore._core import index as core
from kvstore._core.index import Index
from kvstore._core.lease import LeaseTable
from kvstore.arrays import Ids, Words
from kvstore.attachment import DETACH_US, Attachment
from kvstore.block import Attached, Detached
from kvstore.checks import duration_us, whole_number
from kvstore.clock import Clock
from kvstore.errors import InvalidRequest, LimitExceeded, TierRefused, Unavailable
from kvstore.explain import why_absent
from kvstore.feed import Feed
from kvstore.handle import Namespace
from kvstore.hints import Hints
from kvstore.mover import Mover
from kvstore.namespace import NamespaceSpec
from kvstore.prefill import Prefill
from kvstore.quota import Quotas
from kvstore.recording import Recorder
from kvstore.space import DETACHED, Sizes, slot_nbytes
from kvstore.tiers.base import PLACE_NBYTES, DurableTier, Tier
from kvstore.tiers.host import HostTier
from kvstore.watching import Watching

log = logging.getLogger("kvstore")

NAMESPACES_MAX = 65_535
CLOSE_FLUSH_MS = 30_000
QUOTA_NBYTES_MAX = 1 << 60


class BlockStore(Watching):
    """A store of KV blocks in this process. `kvstore.open` makes one; `namespace` gives the verbs.

    Safe to use from several threads. Lookups and leases take no lock; whatever changes the store takes one.
    """

    recorder: Recorder | None = None  # of what callers ask for; namespaces that are opened later note it there

    def __init__(
        self,
        *,
        index: Index,
        leases: LeaseTable,
        near: HostTier,
        far: Tier | None,
        mover: Mover,
        clock: Clock,
        reservation_ttl_ms: int,
        put_wait_ms: int,
    ) -> None:
        self.index, self.leases, self.near = index, leases, near
        self.mover, self.clock, self.lock = mover, clock, mover.lock
        self.feed = Feed(index, mover.lock, clock, self.check_open)
        self.put_wait_ms = put_wait_ms
        self.near_capacity = mover.limits.near_nbytes
        self.far_name = far.name if far is not None else "none"
        self.abandoned: deque[tuple[Ids, int]] = deque()
        self._reserved: deque[tuple[int, Ids, Words]] = deque()
        self._ttl_us = reservation_ttl_ms * 1000
        self.quotas, self.hints, self.prefill = Quotas(mover), Hints(self), Prefill(mover)
        self._specs: dict[int, NamespaceSpec] = {}
        self._numbers: dict[str, int] = {}
        self._opened: set[int] = set()
        self._unreadable: set[int] = set()  # numbers whose text is no namespace: blocks on disk may still carry them
        self.got_nbytes = 0  # of blocks, by callers
        self.num_dropped = 0  # blocks on disk that no namespace could be found for
        self.is_open = True  # False once it is closed; may be read without the lock
        mover.chore = self._chore
        self.attachment = Attachment(self)
        if far is not None and isinstance(far, DurableTier):
            recovery.recover(self, far)

    @property
    def far(self) -> Tier | None:
        """The far tier; None without one, and while it is detached. It changes under the lock."""
        return self.mover.far

    # ---- namespaces ----

    def namespace(self, spec: NamespaceSpec, quota_nbytes: int | None = None) -> Namespace:
        """Open a namespace: the first time it is made, later the spec must be equal.

        `quota_nbytes`: what its blocks may take in all tiers together, each counted once and rounded up to 4 KiB; 0 is
        no limit, None leaves what was set before, also by an earlier run over this disk. A put over it evicts the
        namespace's own coldest blocks first. Errors: NamespaceMismatch names the field that differs; InvalidRequest
        when a block does not fit into memory or the quota; LimitExceeded over 65,535 namespaces.
        """
        if not isinstance(spec, NamespaceSpec):
            raise InvalidRequest(f"namespace wants a NamespaceSpec, not {type(spec).__name__}")
        self.check_open()
        if slot_nbytes(spec.block_nbytes) > self.near_capacity:
            raise InvalidRequest(f"block_nbytes={spec.block_nbytes} does not fit into host.nbytes={self.near_capacity}")
        if quota_nbytes is not None:
            whole_number("quota_nbytes", quota_nbytes, 0, QUOTA_NBYTES_MAX)
            if 0 < quota_nbytes < slot_nbytes(spec.block_nbytes):
                raise InvalidRequest(f"quota_nbytes={quota_nbytes} is less than one block, {spec.block_nbytes} bytes")
        most = self.attachment.block_nbytes_max
        if most is not None and spec.block_nbytes > most:
            raise InvalidRequest(
                f"block_nbytes={spec.block_nbytes} does not fit into a segment of the {self.far_name} tier, "
                f"{most} bytes; set disk.segment_nbytes"
            )
        with self.lock:
            number = self._numbers.get(spec.title)
            if number is not None and self._specs[number] != spec:
                if number in self._opened or self.index.num_blocks(number) or self.attachment.holds(number):
                    self._specs[number].require_equal(spec)
                self._define(number, spec)  # left over from an earlier run, and empty
            elif number is None:
                number = self._next_number()
                self._define(number, spec)
            self._opened.add(number)
            if quota_nbytes is not None:
                self.quotas.set(number, quota_nbytes)
        return Namespace(self, number, spec)

    def limit_tenant(self, tenant: str, quota_nbytes: int) -> None:
        """What the blocks of all namespaces of a tenant may take together, counted as a namespace's quota is; 0 is no
        limit. Said anew in every run. A put over it evicts the tenant's own coldest blocks first."""
        whole_number("quota_nbytes", quota_nbytes, 0, QUOTA_NBYTES_MAX)
        with self.lock:
            self.quotas.limit_tenant(tenant, quota_nbytes)

    def _next_number(self) -> int:
        taken = self._specs.keys() | self._unreadable
        if len(taken) >= NAMESPACES_MAX:
            raise LimitExceeded(f"{NAMESPACES_MAX} namespaces exist already")
        last = max(taken, default=0)
        if last < NAMESPACES_MAX:
            return last + 1
        return next(number for number in range(1, NAMESPACES_MAX + 1) if number not in taken)

    def _define(self, number: int, spec: NamespaceSpec) -> None:
        self._adopt_spec(number, spec)
        if isinstance(self.far, DurableTier):
            self.far.remember_namespace(number, spec.text())

    def _adopt_spec(self, number: int, spec: NamespaceSpec) -> None:
        slot = slot_nbytes(spec.block_nbytes)
        self._specs[number] = spec
        self._numbers[spec.title] = number
        self.mover.define(number, Sizes(spec.block_nbytes, slot, spec.block_tokens), spec.shards)
        self.quotas.belongs(number, spec.tenant)
        self.quotas.apply(number)

    def sizes_by_number(self) -> NDArray[np.uint32]:
        """Bytes of a block of each namespace; 0: there is none of that number."""
        block_nbytes = np.zeros(max(self._specs, default=0) + 1, dtype=np.uint32)
        for number, spec in self._specs.items():
            block_nbytes[number] = spec.block_nbytes
        return block_nbytes

    def claim(self, far: DurableTier) -> None:
        """Take in the namespaces of a tier that comes, under its numbers: its rows carry them. Caller holds the lock.
        Errors: TierRefused when a number or a name means something else here, and nothing has changed."""
        for number, text in far.namespaces().items():
            spec, known = recovery.spec_or_none(text), self._specs.get(number)
            named = number if spec is None else self._numbers.get(spec.title, number)
            if named != number or (known is not None and known != spec):
                raise TierRefused(
                    f"namespace {number} of the {far.name} tier is another one than in this store: {text:.200}"
                )
        if large := [spec.title for spec in self._specs.values() if spec.block_nbytes > far.block_nbytes_max]:
            raise TierRefused(f"blocks of {large[0]!r} do not fit into its segments of {far.block_nbytes_max} bytes")
        for number in far.namespaces().keys() - self._specs.keys():
            self.recover_namespace(number, far.namespaces()[number])

    def tell(self, far: DurableTier) -> None:
        """Have a tier that came keep what it does not know of namespaces and quotas. Caller holds the lock."""
        for number in self._specs.keys() - far.namespaces().keys():
            far.remember_namespace(number, self._specs[number].text())
        self.quotas.join(far)

    def recover_namespace(self, number: int, text: str) -> None:
        """What cannot be read costs its own blocks and nothing else."""
        try:
            if not 1 <= number <= NAMESPACES_MAX:
                raise InvalidRequest(f"number={number} is not an integer between 1 and {NAMESPACES_MAX}")
            self._adopt_spec(number, NamespaceSpec.from_text(text))
        except InvalidRequest as error:
            self._unreadable.add(number)
            log.warning("namespace %d on disk cannot be used, nor can its blocks: %s", number, error)

    def spec(self, number: int) -> NamespaceSpec:
        """Of a namespace that the index knows. Needs no lock."""
        return self._specs[number]

    # ---- what Namespace asks for; caller holds the lock unless it says otherwise ----

    def check_open(self) -> None:
        """Unavailable once the store is closed. Needs no lock."""
        if not self.is_open:
            raise Unavailable("the store is closed")

    def entries_room(self, wanted: int, ns: int) -> int:
        """Index entries for `wanted` blocks, making some free if need be; returns how many there are."""
        if self.index.num_free < wanted:
            self.mover.drop_entries(wanted, ns)
        return int(self.index.num_free)

    def why_full(self, ns: int, what: str) -> str:
        """Why new blocks of a namespace get no place: "memory", "index" or "quota" is full, or "worth" decided."""
        if what == "quota":
            return f"over the quota, and nothing more within it can go: {self.quotas.text(ns)}"
        if what == "worth":
            return f"bypassed by {eviction.name(self.index)}: everything that could make room is worth more"
        if what == "index":
            return f"no free index entry: index.entries_max={self.index.counts()['entries_max']}"
        return f"no room in memory: host.nbytes={self.near_capacity} is leased or being written"

    def explain(self, ns: int, block_id: int, reason: int, time_s: int, value: float | None) -> str:
        """Where a block is read from, or, if it has no id, why it is not there."""
        if block_id == core.NONE:
            age_s = self.clock.time_s() - time_s
            text = why_absent(reason, age_s, value, eviction.name(self.index), has_far=self.far is not None)
            text += f"; the {self.far_name} tier is detached" if self.attachment.is_detached else ""
            return f"{text} ({self.quotas.text(ns)})" if reason == core.OVER_QUOTA else text
        ids = np.array([block_id], dtype=np.uint32)
        if int(self.index.words(ids)[0]) & 0xFF == core.WRITING:
            return "being written"
        near, *_ = self.index.describe(ids)
        return self.near.name if near[0] != core.NONE else self.far_name

    def expire_later(self, ids: Ids, words: Words) -> None:
        """These ids were reserved just now, with these state words, and may not stay so for ever."""
        if len(ids):
            self._reserved.append((self.clock.now_us() + self._ttl_us, ids, words))

    def commit(self, ids: Ids, shard: int) -> int:
        """Commit one part of reserved blocks; returns how many had been undone before."""
        num_lost: int = self.mover.put.commit(ids, shard, self.clock.time_s())
        self.mover.collect()
        self.mover.return_far()
        return num_lost

    def count_got(self, nbytes: int) -> None:
        """Bytes of blocks were handed to a caller. Without the lock, for reads take none: it is a figure for people."""
        self.got_nbytes += nbytes

    def settle_locked(self) -> None:
        """Undo reservations that were left or whose time is up."""
        while self.abandoned:
            ids, shard = self.abandoned.popleft()
            self.mover.put.abandon(ids, shard, self.clock.time_s())
        now_us = self.clock.now_us()
        while self._reserved:
            expires_us, ids, words = self._reserved[0]
            is_over = now_us >= expires_us
            if self.mover.put.expire(ids, words, is_over, self.clock.time_s()) and not is_over:
                break
            self._reserved.popleft()
        self.mover.return_far()

    def _chore(self) -> None:
        self.settle_locked()
        self.hints.step()
        self.feed.step()

    # ---- the whole store ----

    def flush(self, deadline_ms: float | None = None) -> bool:
        """Write everything back and make it durable; False when that is not done before the deadline, or cannot be (the
        log says why)."""
        self.check_open()
        us = None if deadline_ms is None else duration_us("deadline_ms", deadline_ms)
        deadline_us = None if us is None else self.clock.now_us() + us
        return durability.flush(self, deadline_us)

    def detach_tier(self, tier: str, deadline_ms: float | None = None, *, force: bool = False) -> Detached:
        """Take the disk tier out of service, so that its file system can be unmounted: write everything back, wait for
        what is under way, close every file. Blocks that are only there are missed from then on; all others stay. Its
        folder is complete, for `attach_tier` or another store. Detached already: says so again.

        `deadline_ms`: until when it must be ready to leave (30 s without one); then a device that does not answer is
        waited for half a minute more. `force`: leave by then, whatever is not written back (it stays in memory only).
        Errors: TierRefused, and the tier is attached as before; InvalidRequest for another tier; Unavailable.
        """
        us = DETACH_US if deadline_ms is None else duration_us("deadline_ms", deadline_ms)
        return self.attachment.detach(tier, self.clock.now_us() + us, force=force)

    def attach_tier(self, tier: str) -> Attached:
        """Open the disk tier at its configured path again, and take in what its files hold, but for what was removed
        meanwhile. Lookups and puts go on; its blocks are found when it returns. Attached already: says so again.

        Errors: TierRefused when its namespaces are not those of this store; those of `kvstore.open` for a folder that
        cannot be used. The tier is detached as before then.
        """
        return self.attachment.attach(tier)

    def stats(self) -> dict[str, Any]:
        """Numbers of the store, its tiers, its index and all movement; units are in the names. Errors: Unavailable."""
        with self.lock:
            self.check_open()
            counts = self.index.counts()
            tiers = {self.near.name: self.near.usage().stats(counts["near"], self.near_capacity)}
            tiers[self.near.name] |= {
                "page_kind": self.near.arena.page_kind,
                "prefaulted_nbytes": self.near.arena.prefaulted_nbytes,
                "evicted": counts["evicted_near"],
            }
            if self.far is not None or self.attachment.is_detached:
                tiers[self.far_name] = (self.far.usage() if self.far else DETACHED).stats(counts["far"])
                tiers[self.far_name] |= {"evicted": counts["evicted_far"], "attached": not self.attachment.is_detached}
                if isinstance(self.far, DurableTier):
                    tiers[self.far_name]["dropped"] = self.num_dropped + self.far.num_dropped
            lookups = self.index.lookups() | self.prefill.stats()
            lookups["blocks_far"] = lookups["blocks_found"] - lookups["blocks_near"]
            lookups["leases_in_use"] -= self.hints.pins.num_leases
            return {
                "lookups": lookups,
                "traffic": {"put_nbytes": self.mover.put.put_nbytes, "got_nbytes": self.got_nbytes},
                "tiers": tiers,
                "index": counts | {"nbytes_per_entry": self.index.nbytes_per_entry, "events": self.feed.num_events},
                "mover": self.mover.stats(),
                "policy": self.mover.policy_stats() | self.hints.stats(),
                **self.mover.whatif_stats(self.far_name),
                "namespaces": {
                    spec.title: {
                        "tenant": spec.tenant,
                        **self.quotas.stats(number),
                        "prefill_tokens_per_s": self.prefill.learned_per_s(number),
                    }
                    for number, spec in self._specs.items()
                },
            }

    def check(self) -> None:
        """Audit the index and its accounting against the tiers; AssertionError names the rule. For tests."""
        with self.lock:
            self.settle_locked()
            broken = self.index.check()
            assert broken == 0, f"index rule {broken} is broken"
            used, taken = self.mover.put.used_nbytes()  # at one moment: attached processes put without our lock
            assert used == taken, f"near {used} != {taken}"
            assert used % PLACE_NBYTES == 0

    def close(self, flush_ms: float = CLOSE_FLUSH_MS) -> None:
        """Write back for at most `flush_ms` if it can outlive the process, then let go of memory and files. Idempotent.

        The log says what was not written. A device that does not answer is waited for half a minute, then the process
        keeps the memory that it may still use.
        Errors: Unavailable while views of blocks are in use; the store is still open then. InvalidRequest.
        """
        flush_us = duration_us("flush_ms", flush_ms)
        if not self.is_open:
            return
        with self.lock:
            self._check_unused()
        if isinstance(self.far, DurableTier) and flush_us > 0:
            self.flush(flush_ms)
        with self.lock:
            self._check_unused()  # somebody may have taken views during the flush
            self.is_open = False
            self.feed.wake()
        self.mover.stop()
        if self.far is not None:
            with self.lock:
                self.mover.reap()  # what was removed and is not leased any more has to be forgotten for good
            self.far.close()
        with self.lock:
            self.mover.step()  # what the tier finished or refused at its end
            self.mover.give_up()
        left = self.mover.num_unwritten
        if left and flush_us > 0 and isinstance(self.far, DurableTier):
            log.warning("%d blocks were not written to the %s tier; they are gone", left, self.far_name)
        if self.mover.num_views:
            log.error("%d blocks are still being moved: host memory is not given back", self.mover.num_views)
            return
        self.near.close()

    def _check_unused(self) -> None:
        in_use = self.near.arena.exports - self.mover.num_views
        if in_use > 0:
            raise Unavailable(f"{in_use} views of blocks are still in use; release them before closing the store")

    def __enter__(self) -> BlockStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
